"""What the forms of a step are expected to cost, against the compiler's own account."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.problems import in_float64, problem, relative_difference
from vcca_jax.constraints import protect
from vcca_jax.contribution import first_order
from vcca_jax.cooperate import cooperate
from vcca_jax.gradients import agent_gradients
from vcca_jax.model import model_loss
from vcca_jax.models import mlp
from vcca_jax.one_pass.shared_pass import OnePass
from vcca_jax.profiles import value_profiles
from vcca_jax.programs import multiplications
from vcca_jax.step_forms import FormCost, cheapest_form, form_costs
from vcca_jax.values import group_loss, value_losses
from vcca_jax.virtual_batch import VirtualBatch

FEATURES, WIDTH, CLASSES = 40, 30, 10


def convolved(x, w):
    return jax.lax.conv_general_dilated(x, w, (2, 1), "SAME", feature_group_count=3)


def looped(x, w):
    return jax.lax.scan(lambda carried, _: (carried @ w, None), x, None, length=5)[0]


def chosen(x, w):
    return jax.lax.cond(x[0, 0] > 0, lambda: x @ w @ w, lambda: x @ w)


@pytest.mark.parametrize(
    ("function", "x", "w", "counted"),
    [
        (lambda x, w: jnp.einsum("bij,bjk->bik", x, w), (3, 4, 5), (3, 5, 6), 3 * 4 * 5 * 6),
        (lambda x, w: jax.jit(jnp.matmul)(x, w) ** 2, (4, 5), (5, 6), 4 * 5 * 6),
        (convolved, (2, 3, 8, 7), (6, 1, 3, 3), 2 * 6 * 4 * 7 * 9),
        (looped, (4, 6), (6, 6), 5 * 4 * 6 * 6),
        (chosen, (4, 6), (6, 6), 2 * 4 * 6 * 6),
    ],
)
def test_multiplications_are_those_of_matrix_products(function, x, w, counted):
    program = jax.make_jaxpr(function)(jnp.ones(x), jnp.ones(w))
    assert multiplications(program.eqns) == counted


def test_multiplications_are_half_the_compilers_operations():
    """A convolution without padding, whose every multiplication is made, and no loop."""

    def program(x, w):
        return jax.lax.conv_general_dilated(x, w, (1, 1), "VALID").reshape(2, -1) @ jnp.ones(
            (6 * 6 * 5, 9)
        )

    given = jnp.ones((2, 3, 8, 7)), jnp.ones((6, 3, 3, 3))
    told = jax.jit(program).lower(*given).cost_analysis()["flops"]
    assert multiplications(jax.make_jaxpr(program)(*given).eqns) == told / 2


@functools.cache
def setting(batch_size=64, agents=4, values=3, rows=5):
    """A batch dealt to agents, and held-out losses that name their examples."""
    generator = np.random.default_rng(0)

    def examples(count):
        inputs = jnp.asarray(generator.normal(size=(count, FEATURES)), jnp.float32)
        return inputs, jnp.asarray(generator.integers(0, CLASSES, count), jnp.int32)

    model = mlp(FEATURES, (WIDTH,), CLASSES, cut=1)
    loss_fn = model_loss(model, optax.softmax_cross_entropy_with_integer_labels)
    batch = VirtualBatch(
        *examples(batch_size),
        owners=jnp.arange(batch_size, dtype=jnp.int32) % agents,
        rows=jnp.zeros(batch_size, jnp.int32),
        mask=jnp.ones(batch_size, bool),
        active=jnp.ones(agents, bool),
    )
    held_out = [group_loss(loss_fn, *examples(rows)) for _ in range(values)]
    return loss_fn, model.init(jax.random.key(0)), batch, held_out


def unnamed(held_out):
    return [lambda params, context, loss=loss: loss(params, context) for loss in held_out]


def test_linearized_counts_what_the_compiler_counts():
    loss_fn, params, batch, held_out = setting()

    def asked(params, directions):
        gradients = agent_gradients(loss_fn, params, batch, method="linearized")
        return gradients.sum(), [gradients.dot(direction) for direction in directions]

    told = jax.jit(asked).lower(params, [params] * 3).compile().cost_analysis()["flops"] / 2
    expected = form_costs(loss_fn, params, batch, unnamed(held_out))["linearized"].multiplications
    assert 0.9 * told <= expected <= 1.1 * told


def test_costs_follow_the_sizes():
    """By hand, for a perceptron of two layers whose inputs take no cotangent."""
    loss_fn, params, batch, held_out = setting()
    costs = form_costs(loss_fn, params, batch, held_out)
    first, second = FEATURES * WIDTH, WIDTH * CLASSES
    gradient, tangent = 2 * first + 3 * second, first + 2 * second
    rows, held, directions, parameters = 64, 15, 3, first + second + WIDTH + CLASSES
    assert costs["linearized"].multiplications == (rows + held) * gradient + 3 * rows * tangent
    visited = 4 * 16 + 3 * 16  # 4 agents and (64 - 4) // 16 more visits, of 16 samples each
    told = costs["scanned"].multiplications
    assert told == (3 * (directions + 1) * visited + held) * gradient
    assert costs["stacked"].bytes == 4 * 4 * parameters
    assert costs["stacked"].multiplications > (3 * visited + held) * gradient


def test_names_make_one_pass_cheap_and_agents_make_stacks_dear():
    loss_fn, params, batch, held_out = setting()
    named = form_costs(loss_fn, params, batch, held_out)
    assert cheapest_form(named) == "one_pass"
    hidden = form_costs(loss_fn, params, batch, unnamed(held_out))
    assert hidden["one_pass"].multiplications > named["one_pass"].multiplications
    assert form_costs(loss_fn, params, batch, held_out, apart=True) == hidden
    many = form_costs(*setting(agents=64))
    assert many["stacked"].multiplications > 4 * named["stacked"].multiplications
    assert many["linearized"] == named["linearized"]


def test_few_agents_and_many_values_are_stacked():
    loss_fn, params, batch, held_out = setting(batch_size=2048, agents=2, values=40, rows=2)
    assert cheapest_form(form_costs(loss_fn, params, batch, unnamed(held_out))) == "stacked"


def test_shapes_are_enough():
    loss_fn, params, batch, held_out = setting()
    shapes = jax.eval_shape(lambda: (params, batch))
    assert form_costs(loss_fn, *shapes, held_out) == form_costs(loss_fn, params, batch, held_out)


@jax.custom_vjp
def straight_through(numbers):
    return jnp.round(4 * numbers) / 4


straight_through.defvjp(lambda numbers: (straight_through(numbers), None), lambda _, g: (g,))


def test_a_rule_for_backward_mode_alone_leaves_the_forms_that_need_no_other():
    """Of parameters it rules out products by forward mode, of activations "linearized" alone."""
    _, params, batch, _ = setting()

    def of_weights(params, inputs, targets):
        hidden = jnp.tanh(inputs @ straight_through(params["w"]))
        return jnp.square(hidden @ params["v"] - targets)

    def of_activations(params, inputs, targets):
        hidden = straight_through(jnp.tanh(inputs @ params["w"]))
        return jnp.square(hidden @ params["v"] - targets)

    params = {"w": jnp.full((FEATURES, 3), 0.3), "v": jnp.ones(3)}
    assert set(form_costs(of_weights, params, batch)) == {"stacked", "scanned"}
    assert set(form_costs(of_activations, params, batch)) == {"one_pass", "stacked", "scanned"}
    expected = agent_gradients(of_weights, params, batch, method="stacked")
    for method in ("one_pass", "linearized"):
        gradients = agent_gradients(of_weights, params, batch, method=method)
        assert relative_difference(gradients.sum(), expected.sum()) < 1e-5
        with pytest.raises(ValueError, match=r"custom_vjp.*use method='scanned' or 'stacked'"):
            gradients.dot(params)
    with pytest.raises(ValueError, match=f"method='{method}' takes products"):
        jax.vmap(gradients.dot)(jax.tree.map(lambda leaf: leaf[None], params))
    gradients = agent_gradients(of_activations, params, batch, method="one_pass")
    expected = agent_gradients(of_activations, params, batch, method="stacked")
    np.testing.assert_allclose(gradients.dot(params), expected.dot(params), rtol=1e-4)


def test_auto_takes_a_form_that_can_be_had():
    _, _, batch, _ = setting()

    def loss_fn(params, inputs, targets):
        return jnp.square(inputs @ straight_through(params) - targets)

    params, rows = jnp.full(FEATURES, 0.3), (batch.inputs[:5], batch.targets[:5])
    held_out = group_loss(loss_fn, *rows)
    values = value_losses({"group": held_out})
    profiles = value_profiles(values.names, [[protect("group")]] * 4)
    credits = []
    for method in ("auto", "stacked"):
        trainer = cooperate(
            loss_fn, optax.sgd(0.1), held_out, values, estimator=first_order, method=method
        )
        state = trainer.init(params, profiles)
        credits.append(jax.jit(trainer.step)(state, batch)[1].credits)
    np.testing.assert_allclose(*credits, rtol=1e-4)


def test_what_does_not_fit_is_not_chosen():
    costs = {
        "one_pass": FormCost(1.0, 100.0),
        "linearized": FormCost(2.0, 50.0),
        "scanned": FormCost(9.0, 5.0),
    }
    assert cheapest_form(costs) == "one_pass"
    assert cheapest_form(costs, room=99) == "linearized"
    assert cheapest_form(costs, room=49) == "scanned"
    assert cheapest_form(costs, room=1) == "scanned"


def test_forms_of_one_cooperative_are_one_cooperative():
    """The default is some form, and every form gives the same step."""
    with jax.enable_x64(True):
        _, _, loss_fn, params, steps = problem()
        params, batch = in_float64(params), in_float64(steps[0])
        generator = np.random.default_rng(5)
        rows = [
            (jnp.asarray(generator.normal(size=(n, 5))), jnp.arange(n, dtype=jnp.int32) % 3)
            for n in (4, 6)
        ]
        validation = group_loss(loss_fn, *rows[0])
        values = value_losses({"group": group_loss(loss_fn, *rows[1])})
        profiles = value_profiles(values.names, [[protect("group")]] * 5)

        def step(options):
            trainer = cooperate(
                loss_fn, optax.sgd(0.3), validation, values, estimator=first_order, **options
            )
            return jax.jit(trainer.step)(trainer.init(params, profiles), batch)

        every = [{}, *({"method": m} for m in ("one_pass", "linearized", "scanned", "stacked"))]
        every += [{"method": OnePass(form="pairs")}, {"stream_values": True}]
        told = [step(options) for options in every]
        for state, info in told[1:]:
            assert relative_difference(state.params, told[0][0].params) <= 1e-12
            np.testing.assert_allclose(info.credits, told[0][1].credits, atol=1e-12)
