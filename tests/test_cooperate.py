"""The whole step: what it is made of, what it books to whom, and that it is traced once."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from tests.cooperatives import (
    CAPACITY,
    CONTEXT,
    LOSS,
    MODEL,
    RATE,
    STATED,
    VALUES,
    held_out,
    in_default,
    members_and_params,
    profiles_of,
    validation_loss,
)
from tests.problems import (
    CLASSES,
    FEATURES,
    batches,
    criterion,
    relative_difference,
    shards,
)
from tests.screens import twin
from vcca_jax.baselines.centralized import centralized
from vcca_jax.constraints import protect
from vcca_jax.contribution import influence, leave_one_out
from vcca_jax.cooperate import cooperate
from vcca_jax.cooperative import join, leave
from vcca_jax.gradients import agent_gradients
from vcca_jax.model import model_loss
from vcca_jax.models import mlp
from vcca_jax.profiles import value_profiles
from vcca_jax.screening import screen
from vcca_jax.trainer import noisy
from vcca_jax.values import group_loss, value_losses


@jax.jit
def measured(params, context, inputs, targets):
    """Value losses, validation loss and the losses of some examples."""
    return VALUES.losses(params, context), validation_loss(params), LOSS(params, inputs, targets)


def validated(params):
    return jax.jit(validation_loss)(params)


@functools.cache
def momentum_trainer():
    """The default screen and estimator, and its step jitted with a count of traces; in float64."""
    trainer = cooperate(LOSS, optax.sgd(RATE, momentum=0.9), validation_loss, VALUES)
    traces = []

    @jax.jit
    def step(state, batch):
        traces.append(state.credits.dtype)
        return trainer.step(state, batch)

    return trainer, step, traces


@functools.cache
def plain_trainer():
    """Plain SGD, a screen that is quick to compile, coalitions one by one; in float32."""
    trainer = cooperate(
        LOSS,
        optax.sgd(RATE),
        validation_loss,
        VALUES,
        screen=screen("reject", scope="own"),
        estimator=leave_one_out,
    )
    return trainer, jax.jit(trainer.step)


def run(trainer, step, steps, params, stated=STATED):
    state = trainer.init(params, profiles_of(stated), context=jnp.asarray(in_default(CONTEXT)))
    infos = []
    for batch in steps:
        state, info = step(state, batch)
        infos.append(info)
    return state, infos


def test_one_step_is_its_parts_composed_by_hand():
    """Gradients agent by agent, a quadratic program each, momentum, and the quadrature."""
    with jax.enable_x64(True):
        members, params = members_and_params()
        first, batch, *_ = batches(members)
        trainer, step, _ = momentum_trainer()
        state, _ = run(trainer, step, [first], params)
        after, info = step(state, batch)

        theta, unravel = ravel_pytree(state.params)
        count = int(batch.mask.sum())

        def loss_on(at, kept):
            return jnp.where(kept, LOSS(unravel(at), batch.inputs, batch.targets), 0).sum() / count

        own = [np.asarray(batch.mask & (batch.owners == i)) for i in range(CAPACITY)]
        stack = np.stack([jax.jit(jax.grad(loss_on))(theta, kept) for kept in own])
        present = np.array([kept.any() for kept in own])
        rows = jax.jit(jax.jacrev(lambda p: VALUES.losses(unravel(p), state.context)))(theta)
        wanted = twin(
            "project",
            "own",
            stack,
            present,
            members.shards.active,
            np.asarray(rows),
            state.profiles,
        )
        np.testing.assert_array_equal(info.present, present)
        for name in ("admissible", "feasible", "conflicts"):
            np.testing.assert_array_equal(getattr(info.report, name), getattr(wanted, name))
        np.testing.assert_allclose(info.report.coefficients, wanted.coefficients, atol=1e-9)
        assert (present & ~wanted.feasible).any()
        assert (wanted.coefficients != 0).any()

        memory, _ = ravel_pytree(state.optimizer_state[0].trace)

        @jax.jit
        def utility(weights):
            return -validation_loss(unravel(theta - RATE * (0.9 * memory + weights @ wanted.stack)))

        slope = jax.jit(jax.grad(utility))
        points, masses = np.polynomial.legendre.leggauss(4)
        credits = sum(
            mass / 2 * slope(jnp.full(CAPACITY, (point + 1) / 2))
            for point, mass in zip(points, masses, strict=True)
        )
        np.testing.assert_allclose(info.credits, credits, atol=1e-10)
        np.testing.assert_allclose(after.credits, state.credits + credits, atol=1e-10)
        nobody, everybody = utility(jnp.zeros(CAPACITY)), utility(jnp.ones(CAPACITY))
        np.testing.assert_allclose(info.gain, everybody - nobody, atol=1e-12)
        values, before, losses = measured(state.params, state.context, batch.inputs, batch.targets)
        carried = nobody + before
        assert abs(carried) > 1e-5
        np.testing.assert_allclose(info.carry_over, carried, atol=1e-12)
        np.testing.assert_allclose(info.residual, info.gain - credits.sum(), atol=1e-10)
        moved = theta - RATE * (0.9 * memory + wanted.stack.sum(axis=0))
        assert relative_difference(after.params, unravel(moved)) < 1e-10
        np.testing.assert_allclose(info.loss, losses[batch.mask].mean(), rtol=1e-12)
        np.testing.assert_allclose(info.value_losses, values, rtol=1e-12)
        # The quadrature error of one short step is far below what there is to share.
        assert abs(info.residual) < 1e-6 * abs(info.gain)


@pytest.mark.parametrize("optimizer", ["momentum", "sgd"])
def test_nothing_is_booked_to_the_absent_and_the_dropped_and_all_else_adds_up(optimizer):
    exact = optimizer == "momentum"
    with jax.enable_x64(exact):
        members, params = members_and_params()
        steps = [batch for epoch in range(3) for batch in batches(members, 4, epoch=epoch)]
        trainer, step = momentum_trainer()[:2] if exact else plain_trainer()
        state, infos = run(trainer, step, steps, params)
        tolerance = 1e-12 if exact else 1e-5
        for info in infos:
            idle = ~np.asarray(info.present & info.report.feasible)
            assert (np.asarray(info.credits)[idle] == 0).all()
            np.testing.assert_allclose(
                info.gain - info.credits.sum(), info.residual, atol=tolerance
            )
        assert any((info.present & ~info.report.feasible).any() for info in infos)
        total = np.sum([info.credits for info in infos], axis=0)
        np.testing.assert_allclose(state.credits, total, atol=tolerance)
        carried = np.array([info.carry_over for info in infos])
        np.testing.assert_allclose(state.carry_over, carried.sum(), atol=tolerance)
        assert (carried[1:] != 0).all() if exact else (carried == 0).all()
        # Gain and carry-over together are all that the validation loss did.
        gained = np.sum([info.gain for info in infos]) + carried.sum()
        fallen = validated(params) - validated(state.params)
        np.testing.assert_allclose(gained, fallen, atol=tolerance)


def test_an_empty_batch_changes_nothing_at_all():
    with jax.enable_x64(True):
        members, params = members_and_params()
        *steps, empty = batches(members, steps=4)
        assert not empty.mask.any()
        trainer, step, _ = momentum_trainer()
        state, _ = run(trainer, step, steps, params)
        after, info = step(state, empty)
    for left, right in zip(jax.tree.leaves(after), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(*(_plain(leaf) for leaf in (left, right)))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(info))
    assert state.step == 3


def _plain(leaf):
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(leaf) if is_key else leaf


def test_joins_leaves_profiles_and_contexts_change_without_a_new_trace():
    with jax.enable_x64(True):
        members, params = members_and_params()
        without = leave(members, "agent 3")
        shard = tuple(in_default(part) if part.ndim > 1 else part for part in shards()[3])
        over_time = [members, without, join(without, "newcomer", shard)]
        trainer, step, traces = momentum_trainer()
        state, _ = run(trainer, step, batches(members), params)
        before, finals = len(traces), []
        for number, now in enumerate(over_time):
            state = state._replace(
                profiles=jax.tree.map(jnp.asarray, profiles_of(STATED[number:])),
                context=jnp.asarray(in_default(CONTEXT) * (number + 1)),
            )
            for batch in batches(now, steps=3):
                state, info = step(state, batch)
            finals.append(float(info.value_losses[2]))
    assert len(traces) == before
    assert len(set(finals)) == 3


@pytest.mark.parametrize("optimizer", ["momentum", "sgd"])
def test_without_values_at_stake_it_is_centralized_training(optimizer):
    exact = optimizer == "momentum"
    with jax.enable_x64(exact):
        members, params = members_and_params()
        steps = [batch for epoch in range(17) for batch in batches(members, epoch=epoch)][:50]
        trainer, step = momentum_trainer()[:2] if exact else plain_trainer()
        state, infos = run(trainer, step, steps, params, stated=[[]])
        plain = centralized(LOSS, optax.sgd(RATE, momentum=0.9 if exact else None))
        expected, expect = plain.init(params), jax.jit(plain.step)
        for batch, info in zip(steps, infos, strict=True):
            expected, wanted = expect(expected, batch)
            np.testing.assert_allclose(info.loss, wanted.loss, rtol=1e-12 if exact else 1e-5)
        difference = relative_difference(state.params, expected.params)
        assert difference < (1e-12 if exact else 1e-5)
        assert state.step == 50


def test_estimators_get_the_members_and_a_key_of_the_run_and_the_step():
    def drawn(utility, weights, *, key=None):
        return weights * jax.random.uniform(key, weights.shape)

    members, _ = members_and_params()
    trainer = cooperate(
        LOSS, optax.sgd(RATE), validation_loss, VALUES, screen=screen("reject"), estimator=drawn
    )
    seeds = 3
    keys = jax.random.split(jax.random.key(8), seeds)
    start = [jax.jit(MODEL.init)(key) for key in keys]
    several = [batches(members, seed=seed, steps=3)[:2] for seed in range(seeds)]

    def epoch(params, key, steps):
        state = trainer.init(params, profiles_of(STATED), context=jnp.asarray(CONTEXT), key=key)
        return jax.lax.scan(trainer.step, state, steps)

    def stacked(trees):
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)

    steps = [stacked(each) for each in several]
    # Over seeds by vmap, over steps by scan.
    state, infos = jax.jit(jax.vmap(epoch))(stacked(start), keys, stacked(steps))
    for number, key in enumerate(keys):
        for t in range(2):
            expected = jax.random.uniform(jax.random.fold_in(key, t), (CAPACITY,))
            # The grand coalition are those whose update was neither absent nor dropped.
            expected = expected * infos.report.feasible[number, t]
            np.testing.assert_allclose(infos.credits[number, t], expected, rtol=1e-6)
    # One seed and one step after the other, by the trainer that differs in the estimator alone.
    other, step = plain_trainer()
    for number in range(seeds):
        alone, told = run(other, step, several[number], start[number])
        one = jax.tree.map(lambda leaf, n=number: leaf[n], state.params)
        assert relative_difference(alone.params, one) < 1e-5
        for t, info in enumerate(told):
            np.testing.assert_array_equal(info.report.feasible, infos.report.feasible[number, t])
            np.testing.assert_allclose(info.gain, infos.gain[number, t], atol=1e-6)


def test_the_screen_inside_credits_restraint_and_leaves_training_alone():
    members, params = members_and_params()
    batch, restrain = batches(members)[0], screen("shrink", scope="everyone")
    trainer = cooperate(
        LOSS,
        optax.sgd(RATE),
        validation_loss,
        VALUES,
        screen=restrain,
        screen_inside=True,
        estimator=leave_one_out,
    )
    stated = [[], [protect("women"), protect("men")]]
    state, (info,) = run(trainer, jax.jit(trainer.step), [batch], params, stated)

    @jax.jit
    def update(params, batch, *, profiles):
        gradients = agent_gradients(LOSS, params, batch)
        rows = VALUES.gradients(params, jnp.asarray(CONTEXT))[1]
        return restrain(gradients, rows, profiles)[0].sum()

    by_everyone = update(params, batch, profiles=profiles_of(stated))
    moved = jax.tree.map(lambda p, u: p - RATE * u, params, by_everyone)
    assert relative_difference(state.params, moved) < 1e-6
    # The absent principal's only contribution is that it held the others back.
    assert not info.present[1]
    unrestrained = jax.tree.map(
        lambda p, u: p - RATE * u, params, update(params, batch, profiles=profiles_of([[]]))
    )
    restraint = validated(unrestrained) - validated(moved)
    assert abs(restraint) > 1e-3
    np.testing.assert_allclose(info.credits[1], restraint, atol=1e-6)


def test_an_unknown_way_of_taking_gradients_is_refused():
    with pytest.raises(ValueError, match="method='guess'"):
        cooperate(
            LOSS, optax.sgd(RATE), validation_loss, VALUES, screen=screen("reject"), method="guess"
        )


def test_dropout_is_drawn_in_training_and_not_in_what_is_measured():
    """The step of a noisy cooperative, against gradients taken by hand with the same noise."""
    members, _ = members_and_params()
    model = mlp(FEATURES, (6,), CLASSES, cut=1, dropout=0.5)
    loss_fn = model_loss(model, criterion)
    params, key = jax.jit(model.init)(jax.random.key(0)), jax.random.key(3)
    held = group_loss(loss_fn, *held_out(4, 1))
    values = value_losses({"held": held})
    trainer = cooperate(
        loss_fn, optax.sgd(RATE), lambda at: held(at, None), values, estimator=influence
    )
    state = trainer.init(params, value_profiles(values.names, [[]] * CAPACITY))
    batch = batches(members)[0]
    after, info = jax.jit(noisy(trainer, key).step)(state, batch)

    @jax.jit
    def by_hand(params):
        drawn = batch.keyed(jax.random.fold_in(key, 0))
        gradient = agent_gradients(loss_fn, params, drawn).sum()
        quiet = agent_gradients(loss_fn, params, batch).sum()
        return gradient, quiet, held(params, None)

    gradient, quiet, measured_loss = by_hand(params)
    moved = jax.tree.map(lambda p, g: p - RATE * g, params, gradient)
    assert relative_difference(after.params, moved) < 1e-6
    assert relative_difference(gradient, quiet) > 0.1
    np.testing.assert_allclose(info.value_losses[0], measured_loss, rtol=1e-6)
