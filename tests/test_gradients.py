import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.problems import in_float64, problem, relative_difference
from vcca_jax.gradients import agent_gradients, agent_norms
from vcca_jax.one_pass.shared_pass import OnePass
from vcca_jax.operators import affine
from vcca_jax.rows import rows_dot, rows_gram, tree_dot

METHODS = ("linearized", "one_pass", "scanned", "stacked")


def actions(loss_fn, params, batch, method, direction, weights, **options):
    """Everything an operator says, in one compiled call."""

    @jax.jit
    def run(params, batch, direction, weights):
        operator = agent_gradients(loss_fn, params, batch, method=method, **options)
        return {
            "dot": operator.dot(direction),
            "weighted": operator.sum(weights),
            "sum": operator.sum(),
            "stack": operator.stack(),
            "losses": operator.losses,
            "present": operator.present,
        }

    return run(params, batch, direction, weights)


def direction_like(params, seed=0):
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return tree.unflatten(
        [jax.random.normal(k, leaf.shape, leaf.dtype) for k, leaf in zip(keys, leaves, strict=True)]
    )


def each_agents_gradient(loss_fn, params, batch):
    """The definition, one agent at a time in Python: what every form must equal."""
    count = int(batch.mask.sum())
    gradient = jax.jit(jax.grad(lambda p, x, y: loss_fn(p, x, y).sum() / count))
    parts = []
    for i in range(batch.active.shape[0]):
        own = np.flatnonzero(batch.mask & (batch.owners == i))
        parts.append(gradient(params, batch.inputs[own], batch.targets[own]))
    return jax.tree.map(lambda *leaves: np.stack(leaves), *parts)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("step", [0, 3])  # a full batch and the last, which is not
def test_every_form_equals_the_definition(method, step):
    with jax.enable_x64(True):
        _, _, loss_fn, params, steps = problem(batch_size=6)
        params, batch = in_float64(params), in_float64(steps[step])
        expected = each_agents_gradient(loss_fn, params, batch)
        direction, weights = direction_like(params), jnp.linspace(0.2, 1.0, 5)
        told = actions(loss_fn, params, batch, method, direction, weights)
        assert relative_difference(told["stack"], expected) < 1e-13
        np.testing.assert_allclose(
            told["dot"], rows_dot(expected, direction), rtol=1e-11, atol=1e-14
        )
        weighted = jax.tree.map(lambda leaf: np.tensordot(weights, leaf, 1), expected)
        assert relative_difference(told["weighted"], weighted) < 1e-13
        whole = jax.tree.map(lambda leaf: np.sum(leaf, axis=0), expected)
        assert relative_difference(told["sum"], whole) < 1e-13


@pytest.mark.parametrize("method", METHODS)
def test_in_float32_the_sum_is_the_pooled_gradient_and_an_absent_agent_is_exactly_zero(method):
    _, _, loss_fn, params, steps = problem()
    for batch in (steps[0], steps[-1]):
        live = np.flatnonzero(batch.mask)
        mean = jax.jit(lambda p, x, y: loss_fn(p, x, y).mean())
        pooled = jax.grad(mean)(params, batch.inputs[live], batch.targets[live])
        told = actions(loss_fn, params, batch, method, direction_like(params), jnp.ones(5))
        assert relative_difference(told["sum"], pooled) < 1e-6
        loss = mean(params, batch.inputs[live], batch.targets[live])
        np.testing.assert_allclose(told["losses"].sum(), loss, rtol=1e-6)
        absent = ~np.asarray(told["present"])
        assert absent.any()
        for leaf in [told["dot"], told["losses"], *jax.tree.leaves(told["stack"])]:
            assert (np.asarray(leaf)[absent] == 0).all()


@pytest.mark.parametrize("width", [1, 3, 8])
def test_the_width_of_a_visit_does_not_matter(width):
    _, _, loss_fn, params, steps = problem()
    rest = (direction_like(params), jnp.ones(5))
    whole = actions(loss_fn, params, steps[0], "scanned", *rest)
    cut = actions(loss_fn, params, steps[0], "scanned", *rest, samples_per_visit=width)
    assert relative_difference(cut, whole) < 1e-6


@pytest.mark.parametrize("method", METHODS)
def test_weights_can_be_differentiated_both_ways(method):
    """d<sum(w), d>/dw = dot(d), forward and backward: the two actions are adjoint."""
    _, _, loss_fn, params, steps = problem()
    direction = direction_like(params)

    def inner(weights):
        operator = agent_gradients(loss_fn, params, steps[0], method=method)
        return tree_dot(operator.sum(weights), direction)

    told = actions(loss_fn, params, steps[0], method, direction, jnp.ones(5))
    for derivative in (jax.grad, jax.jacfwd):
        np.testing.assert_allclose(
            jax.jit(derivative(inner))(jnp.ones(5)), told["dot"], rtol=2e-4, atol=1e-6
        )


@pytest.mark.parametrize("method", METHODS)
def test_affine_operators_are_what_their_stack_says(method):
    with jax.enable_x64(True):
        _, _, loss_fn, params, steps = problem()
        params, batch = in_float64(params), in_float64(steps[0])
        rows = jax.tree.map(
            lambda *leaves: jnp.stack(leaves), *(direction_like(params, seed) for seed in range(2))
        )
        scale = jnp.array([1.0, 0.5, 0.0, 1.0, 2.0])
        coefficients = jnp.arange(10.0).reshape(5, 2) / 7
        direction, weights = direction_like(params, 5), jnp.linspace(-1.0, 1.0, 5)

        @jax.jit
        def run(params, batch):
            base = agent_gradients(loss_fn, params, batch, method=method)
            # Twice, since screens chain.
            operator = affine(affine(base, scale, coefficients, rows), scale, coefficients, rows)
            return (
                operator.dot(direction),
                operator.sum(weights),
                operator.stack(),
                agent_norms(operator),
            )

        dot, total, stack, norms = run(params, batch)

        def once(stack):
            return jax.tree.map(
                lambda g, n: (
                    g * np.asarray(scale).reshape((-1,) + (1,) * (g.ndim - 1))
                    + np.tensordot(coefficients, n, 1)
                ),
                stack,
                rows,
            )

        twice = once(once(each_agents_gradient(loss_fn, params, batch)))
        assert relative_difference(stack, twice) < 1e-13
        np.testing.assert_allclose(dot, rows_dot(twice, direction), rtol=1e-10)
        combined = jax.tree.map(lambda leaf: np.tensordot(weights, leaf, 1), twice)
        assert relative_difference(total, combined) < 1e-12
        squares = sum((leaf[3] ** 2).sum() for leaf in jax.tree.leaves(twice))
        np.testing.assert_allclose(norms[3], np.sqrt(squares), rtol=1e-12)
        np.testing.assert_allclose(rows_gram(rows)[0], rows_dot(rows, direction_like(params, 0)))


def test_bad_input_is_refused_by_name():
    _, _, loss_fn, params, steps = problem()
    with pytest.raises(ValueError, match="method='guess'"):
        agent_gradients(loss_fn, params, steps[0], method="guess")
    with pytest.raises(ValueError, match="method=OnePass"):
        agent_gradients(loss_fn, params, steps[0], method=OnePass())
    with pytest.raises(ValueError, match="one loss an example"):
        agent_gradients(lambda p, x, y: loss_fn(p, x, y).mean(), params, steps[0])
