"""One pass for a whole step, against gradients that are formed one by one, in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.problems import CLASSES, FEATURES, in_float64, problem, relative_difference
from vcca_jax.constraints import forbid, freeze, protect
from vcca_jax.contribution import aumann_shapley, first_order, influence
from vcca_jax.cooperate import cooperate
from vcca_jax.gradients import agent_gradients, from_stack
from vcca_jax.held_out import HeldOutLoss
from vcca_jax.one_pass.shared_pass import OnePass, losses_at, shared_pass, take
from vcca_jax.operators import affine, example_products, inner_products
from vcca_jax.profiles import value_profiles
from vcca_jax.rows import as_rows
from vcca_jax.screening import screen
from vcca_jax.trainer import noisy
from vcca_jax.utility import one_step_utility
from vcca_jax.values import (
    group_loss,
    loss_gap,
    squared_distance,
    value_losses,
    weighted_sum,
    worst_group_loss,
)
from vcca_jax.virtual_batch import by_example

TOLERANCE = 1e-10


def rows_of(count, seed):
    generator = np.random.default_rng(seed)
    inputs = generator.normal(size=(count, FEATURES))
    return jnp.asarray(inputs), jnp.asarray(generator.integers(0, CLASSES, count), jnp.int32)


@functools.cache
def setting():
    """Four losses that name their examples, one that does not, and the batch they join."""
    with jax.enable_x64(True):
        _, _, loss_fn, params, steps = problem()
        params, batch = in_float64(params), in_float64(steps[0])
        groups = [group_loss(loss_fn, *rows_of(n, n)) for n in (2, 3, 4)]
        held_out = {
            "group": groups[0],
            "worst": worst_group_loss(groups[1:], temperature=0.5),
            "distance": squared_distance(jax.tree.map(jnp.ones_like, params)),
            "gap": loss_gap(groups[0], groups[2], smoothing=0.1),
            "sum": weighted_sum(groups[:2], [0.3, 2.0]),
        }
        return loss_fn, params, batch, held_out


def scalars(params):
    leaves, structure = jax.tree.flatten(params)
    return jax.tree.unflatten(structure, [jnp.asarray(1.0 + i) for i in range(len(leaves))])


def diagonal(params):
    return jax.tree.map(
        lambda p: 1 + jnp.square(jnp.sin(jnp.arange(p.size))).reshape(p.shape), params
    )


@functools.cache
def told_and_expected():
    """Everything a screen asks, from the pass and from stacks."""
    with jax.enable_x64(True):
        loss_fn, params, batch, held_out = setting()

        @jax.jit
        def all_of_it(params):
            shared = shared_pass(loss_fn, params, batch, list(held_out.values()))
            stack = agent_gradients(loss_fn, params, batch, method="stacked")
            rows = jax.tree.map(
                lambda *leaves: jnp.stack(leaves),
                *(jax.grad(loss)(params, None) for loss in held_out.values()),
            )
            scale = jnp.asarray([[1.0, 0.5, 0.0, 1.0, 2.0]])
            coefficients = jnp.sin(jnp.arange(25.0)).reshape(1, 5, 5)
            both = []
            for gradients, mine in (
                (shared.gradients, shared.rows),
                (
                    from_stack(stack.stack(), stack.losses, stack.present, stack.active),
                    as_rows(rows),
                ),
            ):
                changed = affine(gradients, scale, coefficients, mine)
                again = affine(changed, scale[0] / 2, coefficients[0].T, mine)
                weights = jnp.arange(5.0)
                both.append(
                    {
                        "plain": inner_products(gradients, mine),
                        "scalars": inner_products(gradients, mine, scalars(params)),
                        "diagonal": inner_products(gradients, mine, diagonal(params)),
                        "changed": inner_products(changed, mine, scalars(params)),
                        "twice": inner_products(again, mine),
                        "total": changed.sum(weights),
                        "twice total": again.sum(weights),
                        "dot": mine.dot(params),
                        "combination": mine.combination(weights),
                        "each": mine.each(lambda row: row),
                        "norms": changed.squared_norms(),
                    }
                )
            losses = jnp.stack([loss(params, None) for loss in held_out.values()])
            told = (
                shared.losses,
                losses_at(loss_fn, params, list(held_out.values())),
                inner_products(shared.gradients, take(shared.rows, (3, 2)))[1],
            )
            gram = both[1]["plain"][1]
            return both, (
                told,
                (losses, losses, gram[jnp.ix_(jnp.array([3, 2]), jnp.array([3, 2]))]),
            )

        return jax.device_get(all_of_it(params))


@pytest.mark.parametrize(
    "what",
    [
        *("plain", "scalars", "diagonal", "changed", "twice", "total", "twice total", "dot"),
        *("combination", "each", "norms"),
    ],
)
def test_the_pass_tells_what_stacks_tell(what):
    (ours, theirs), _ = told_and_expected()
    assert relative_difference(ours[what], theirs[what]) < TOLERANCE


def test_losses_and_some_of_the_rows():
    _, (told, expected) = told_and_expected()
    for ours, theirs in zip(told, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-10)


def test_composed_values_name_their_examples_only_where_all_do():
    loss_fn, _, _, held_out = setting()
    assert [isinstance(each, HeldOutLoss) for each in held_out.values()] == [1, 1, 0, 1, 1]
    assert [len(held_out[name].examples) for name in ("group", "worst", "gap", "sum")] == [
        1,
        2,
        2,
        2,
    ]
    other = group_loss(lambda *arguments: loss_fn(*arguments), *rows_of(2, 2))
    assert not isinstance(loss_gap(held_out["group"], other), HeldOutLoss)
    assert not isinstance(loss_gap(held_out["group"], held_out["distance"]), HeldOutLoss)


def test_what_a_sample_brings_adds_up_to_its_owners_products():
    with jax.enable_x64(True):
        loss_fn, params, batch, held_out = setting()
        scale = jnp.arange(1.0, 6.0)

        @jax.jit
        def both(params):
            shared = shared_pass(loss_fn, params, batch, list(held_out.values()))
            scaled = affine(shared.gradients, scale, jnp.zeros((5, 5)), shared.rows)
            alone = agent_gradients(loss_fn, params, by_example(batch), method="stacked")
            ones = affine(alone, scale[batch.owners], jnp.zeros((len(batch.mask), 5)), shared.rows)
            return (
                example_products(scaled, shared.rows, batch.owners),
                shared.rows.each(ones.dot).T,
                inner_products(scaled, shared.rows)[0],
            )

        told, expected, agents = jax.device_get(both(params))
        assert relative_difference(told, expected) < TOLERANCE
        summed = np.zeros_like(agents)
        np.add.at(summed, np.asarray(batch.owners), told)
        assert relative_difference(summed, agents) < TOLERANCE
        assert (
            example_products(shared_rows_less(loss_fn, params, batch), as_rows(params), None)
            is None
        )


def shared_rows_less(loss_fn, params, batch):
    return agent_gradients(loss_fn, params, batch)


def profiles_of(names, params, frozen):
    stated = [protect("group"), forbid("worst"), protect("sum")]
    free = [protect("gap", margin=-0.01)]
    if frozen:
        free.append(freeze(lambda path: "bias" in path))
    return value_profiles(names, [stated, free, stated, free, stated], params=params)


def trained(method, estimator, optimizer, *, frozen=False, wrap=None, scope="own", **options):
    """Two steps of the whole cooperative."""
    with jax.enable_x64(True):
        loss_fn, params, batch, held_out = setting()
        validation = group_loss(loss_fn, *rows_of(5, 9))
        trainer = cooperate(
            loss_fn,
            optimizer,
            validation,
            value_losses(held_out),
            screen=screen("project", scope=scope),
            estimator=estimator,
            method=method,
            **options,
        )
        trainer = trainer if wrap is None else wrap(trainer)

        @jax.jit
        def steps(params):
            state = trainer.init(params, profiles_of(tuple(held_out), params, frozen))
            state, _ = trainer.step(state, batch)
            return trainer.step(state, batch)

        return jax.device_get(steps(params))


SGD = optax.sgd(0.3)
MOMENTUM = optax.sgd(optax.linear_schedule(0.3, 0.1, 5), momentum=0.9)


@pytest.mark.parametrize(
    ("estimator", "optimizer", "options"),
    [
        pytest.param(first_order, MOMENTUM, {"frozen": True}, id="first order, momentum, frozen"),
        pytest.param(
            first_order,
            SGD,
            {"scope": "everyone"},
            id="first order, everyone",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            first_order, optax.adam(0.05), {}, id="first order, Adam", marks=pytest.mark.slow
        ),
        pytest.param(aumann_shapley, MOMENTUM, {}, id="Aumann-Shapley", marks=pytest.mark.slow),
        pytest.param(
            influence, SGD, {"screen_inside": True}, id="screen inside", marks=pytest.mark.slow
        ),
    ],
)
def test_a_cooperative_in_one_pass_is_the_same_cooperative(estimator, optimizer, options):
    ours = trained("one_pass", estimator, optimizer, **options)
    theirs = trained("linearized", estimator, optimizer, **options)
    assert relative_difference(ours[0].params, theirs[0].params) < TOLERANCE
    for name in ("credits", "value_losses", "value_changes", "gain", "loss"):
        told, expected = getattr(ours[1], name), getattr(theirs[1], name)
        np.testing.assert_allclose(told, expected, rtol=1e-7, atol=1e-11, err_msg=name)
    np.testing.assert_allclose(ours[1].carry_over, theirs[1].carry_over, atol=1e-11)
    assert ours[1].report.conflicts.any()


@pytest.mark.slow
def test_noise_in_the_batch_leaves_held_out_examples_to_themselves():
    """Training samples come with keys and held-out ones without: they cannot stand in one batch."""
    wrap = functools.partial(noisy, key=jax.random.key(0))
    ours = trained("one_pass", first_order, SGD, wrap=wrap)
    theirs = trained("linearized", first_order, SGD, wrap=wrap)
    np.testing.assert_allclose(ours[1].credits, theirs[1].credits, rtol=1e-7, atol=1e-11)


def test_credit_by_sample_is_the_credit_of_samples_as_agents():
    with jax.enable_x64(True):
        loss_fn, params, batch, _ = setting()
        validation = group_loss(loss_fn, *rows_of(5, 9))
        # Nothing is violated, so what the screen adds is nothing and credits are the samples' own.
        values = value_losses({"own": group_loss(loss_fn, *rows_of(2, 2))})

        def told(method, batch, **options):
            agents = batch.active.shape[0]
            trainer = cooperate(
                loss_fn,
                SGD,
                validation,
                values,
                screen=screen("reject"),
                estimator=first_order,
                method=method,
                **options,
            )
            stated = value_profiles(values.names, [[protect("own", margin=-1e3)]] * agents)
            return jax.jit(lambda p: trainer.step(trainer.init(p, stated), batch)[1])(params)

        info = told(OnePass(form="stacked"), batch, credit_examples=True)
        alone = told("linearized", by_example(batch))
        np.testing.assert_allclose(info.example_credits, alone.credits, rtol=1e-9, atol=1e-13)
        summed = np.zeros(5)
        np.add.at(summed, np.asarray(batch.owners), np.asarray(info.example_credits))
        np.testing.assert_allclose(summed, info.credits, rtol=1e-9, atol=1e-13)


def test_credit_by_sample_says_what_it_takes():
    loss_fn, params, batch, held_out = setting()
    values = value_losses({"group": held_out["group"]})
    given = (loss_fn, optax.adam(0.1), held_out["group"], values)
    not_passing = {"estimator": first_order, "method": "linearized"}
    for wrong in ({}, {"method": "one_pass"}, not_passing):
        with pytest.raises(ValueError, match="credit_examples=True takes"):
            cooperate(*given, credit_examples=True, **wrong)
    trainer = cooperate(*given, method="one_pass", estimator=first_order, credit_examples=True)
    with jax.enable_x64(True):
        state = trainer.init(params, value_profiles(values.names, [[protect("group")]] * 5))
        with pytest.raises(ValueError, match="not proportional"):
            jax.eval_shape(trainer.step, state, batch)


@pytest.mark.parametrize("name", ["momentum", "Adam"])
def test_first_order_credit_is_the_slope_of_the_expanded_loss(name):
    """Its readable twin: the loss is replaced by its tangent, and the game differentiated."""
    optimizer = {"momentum": MOMENTUM, "Adam": optax.adam(0.05)}[name]
    with jax.enable_x64(True):
        loss_fn, params, batch, held_out = setting()
        validation = held_out["group"]

        @jax.jit
        def both(params):
            gradients = agent_gradients(loss_fn, params, batch)
            begun = optimizer.init(params)
            _, state = optimizer.update(gradients.sum(), begun, params)
            weights = jnp.asarray([0.5, 1.0, 1.0, 0.25, 0.0])
            utility = one_step_utility(params, state, gradients, optimizer, validation)
            slope = jax.grad(validation)(params)

            def expanded(weights):
                update, _ = optimizer.update(gradients.sum(weights), state, params)
                terms = jax.tree.map(jnp.vdot, slope, update)
                return -jax.tree.reduce(jnp.add, terms)

            return first_order(utility, weights), weights * jax.grad(expanded)(weights)

        told, expected = jax.device_get(both(params))
        assert relative_difference(told, expected) < 1e-9
        assert told[4] == 0
