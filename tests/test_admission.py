"""What is applied: the optimizer's own update, projected and verified."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import quadprog
from hypothesis import given
from hypothesis import strategies as st

from tests.screens import AGENTS, VALUES, curved_values, flatten, unflatten
from vcca_jax.admission import keep_admissible
from vcca_jax.constraints import forbid, freeze, max_norm, preserve, protect
from vcca_jax.profiles import value_profiles
from vcca_jax.values import value_losses

NAMES = tuple(f"V{m}" for m in range(VALUES))
ACTIVE = np.array([True, True, True, False, True])
OPTIMIZERS = {
    "adam": (optax.adam(0.05), 0.05),
    "clipped, decayed": (optax.chain(optax.clip(0.5), optax.adamw(0.05, weight_decay=0.1)), 0.05),
    "momentum": (optax.sgd(0.02, momentum=0.9), 0.02),
}
STATED = [[protect("V0"), forbid("V1")], [protect("V2", -0.1)], [], [forbid("V3", 9.0)], []]


def profiles_of(stated):
    return value_profiles(NAMES, stated, params=unflatten(np.zeros(10)), constraints=3, patterns=3)


def quadratic(params, target):
    return 0.5 * sum(
        jnp.sum((leaf - goal) ** 2)
        for leaf, goal in zip(jax.tree.leaves(params), jax.tree.leaves(target), strict=True)
    )


@functools.cache
def run(name, wrapped=True, **options):
    """Forty steps towards a target: parameters, value losses and reports of every step."""
    inner, eta = OPTIMIZERS[name]
    values = curved_values()
    extra = {"learning_rate": eta, **options}
    optimizer = keep_admissible(inner, values, **extra) if wrapped else inner

    @jax.jit
    def steps(params, target, profiles, active):
        def step(carried, _):
            at, state = carried
            gradient = jax.grad(quadratic)(at, target)
            updates, fresh = optax.with_extra_args_support(optimizer).update(
                gradient, state, at, profiles=profiles, active=active
            )
            after = optax.apply_updates(at, updates)
            report = fresh.report if wrapped else None
            return (after, fresh), (at, updates, report, values.losses(after, None))

        start = (params, optimizer.init(params))
        (_, state), told = jax.lax.scan(step, start, None, length=40)
        return state, told, values.losses(params, None)

    return steps


def journey(seed):
    rng = np.random.default_rng(seed)
    return unflatten(rng.standard_normal(10)), unflatten(3 * rng.standard_normal(10))


def moves(first, losses):
    """[T, M], what each step did to the value losses."""
    return np.diff(np.concatenate([np.asarray(first)[None], np.asarray(losses)]), axis=0)


@pytest.mark.parametrize("name", list(OPTIMIZERS))
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_over_a_whole_run_no_constraint_is_broken_beyond_the_tolerance(name, dtype):
    tolerance = {"float32": 1e-6, "float64": 1e-12}[dtype]
    with jax.enable_x64(dtype == "float64"):
        eta, worst, broken = OPTIMIZERS[name][1], 0.0, 0.0
        for seed in range(4):
            start = [jax.tree.map(lambda x: jnp.asarray(x, dtype), tree) for tree in journey(seed)]
            given = (*start, profiles_of(STATED), ACTIVE)
            _, (_, _, report, losses), first = run(name, tolerance=tolerance)(*given)
            rise = moves(first, losses)
            scale = np.maximum(1, np.abs(np.asarray(losses))).max()
            allowed = np.array([0.0, 0.0, 0.1 * eta])
            excess = (rise * [1, -1, 1, 0])[:, :3] - allowed
            worst = max(worst, excess.max() / scale)
            assert np.asarray(report.verified).mean() > 0.9
            # Progress is made nevertheless, mostly with steps of full length.
            assert np.abs(rise).max() > 1e-2
            assert (np.asarray(report.scale) == 1).mean() > 0.5
            _, (_, _, _, losses), first = run(name, wrapped=False)(*given)
            broken = max(broken, ((moves(first, losses) * [1, -1, 1, 0])[:, :3] - allowed).max())
    assert worst <= 1.01 * tolerance + np.finfo(dtype).eps
    assert broken > 0.1


@given(seed=st.integers(0, 2**31), name=st.sampled_from(list(OPTIMIZERS)))
def test_the_first_order_step_is_the_nearest_admissible_one(seed, name):
    with jax.enable_x64(True):
        eta = OPTIMIZERS[name][1]
        start = journey(seed)
        _, (params, updates, report, _), _ = run(name, verify=False)(
            *start, profiles_of(STATED), ACTIVE
        )
        # The inner optimizer sees the same gradients, so its wishes are found by running it alone.
        inner, values = OPTIMIZERS[name][0], curved_values()
        state, update = inner.init(start[0]), jitted_update(name)
        for t in range(3):
            at = jax.tree.map(lambda leaf, t=t: leaf[t], params)
            wished, state, rows = update(at, state, start[1])
            normals = flatten(rows)[:3] * [[1], [-1], [1]]
            nearest = quadprog.solve_qp(
                np.eye(10), -flatten(wished) / eta, normals.T, np.array([0, 0, -0.1])
            )[0]
            told = flatten(jax.tree.map(lambda leaf, t=t: leaf[t], updates))
            np.testing.assert_allclose(told, -eta * nearest, atol=1e-9)
            crossed = normals @ (-flatten(wished) / eta) < [0, 0, -0.1]
            np.testing.assert_array_equal(np.asarray(report.conflicts)[t, :3], crossed)
            np.testing.assert_allclose(
                report.removed_norm[t], np.linalg.norm(told - flatten(wished)), atol=1e-9
            )
        assert values.names == NAMES


@functools.cache
def jitted_update(name):
    inner, values = OPTIMIZERS[name][0], curved_values()

    @jax.jit
    def update(at, state, target):
        wished, state = inner.update(jax.grad(quadratic)(at, target), state, at)
        return wished, state, values.gradients(at, None)[1]

    return update


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_what_is_admissible_is_applied_as_it_is(name):
    with jax.enable_x64(True):
        start = journey(0)
        nobody = profiles_of([[]] * AGENTS)
        _, (_, told, report, _), _ = run(name)(*start, nobody, ACTIVE)
        _, (_, alone, _, _), _ = run(name, wrapped=False)(*start, nobody, ACTIVE)
    np.testing.assert_allclose(flatten(told), flatten(alone), rtol=1e-11, atol=1e-14)
    assert np.asarray(report.verified).all()
    assert (np.asarray(report.attempts) == 1).all()
    assert not np.asarray(report.removed_norm).any()


def test_what_is_preserved_stays_and_what_is_frozen_does_not_move():
    with jax.enable_x64(True):
        stated = [[preserve("V0")], [freeze("b")], [], [freeze("a")], []]
        _, (params, _, report, losses), first = run("adam")(
            *journey(1), profiles_of(stated), ACTIVE
        )
        drift = np.abs(moves(first, losses)[:, 0])
        assert (drift <= 1e-6 * np.maximum(1, np.asarray(losses)[:, 0])).all()
        assert np.abs(moves(first, losses)[:, 1]).max() > 1e-2
        assert np.ptp(np.asarray(params["b"]), axis=0).max() == 0
        assert np.ptp(np.asarray(params["a"]), axis=0).max() > 0.1
        assert np.asarray(report.verified).all()


def test_what_nothing_can_keep_is_not_applied():
    """Two principals who demand the opposite: the model stands still, the report says so."""
    stated = [[protect("V0", 1.0)], [forbid("V0", 1.0)], [], [], []]
    state, (_, updates, report, _), _ = run("adam")(*journey(2), profiles_of(stated), ACTIVE)
    assert not flatten(updates).any()
    assert not np.asarray(report.verified).any()
    assert (np.asarray(report.attempts) == 12).all()
    assert int(state.inner[0].count) == 40  # the optimizer's memory moved on


@pytest.mark.parametrize("verify", [True, False], ids=["verified", "first order"])
@pytest.mark.parametrize(
    ("dtype", "x64"), [("bfloat16", False), ("bfloat16", True), ("float32", True)]
)
def test_parameters_of_any_precision_are_scanned_over(dtype, x64, verify):
    """Margins and reports are of the usual type, products and losses of the parameters'."""
    with jax.enable_x64(x64):
        start = [jax.tree.map(lambda x: jnp.asarray(x, dtype), tree) for tree in journey(0)]
        told = run("adam", tolerance=1e-2, verify=verify)(*start, profiles_of(STATED), ACTIVE)
    state, (params, updates, report, _), _ = told
    assert {leaf.dtype for leaf in jax.tree.leaves((params, updates))} == {jnp.dtype(dtype)}
    assert np.asarray(report.verified).any() == verify
    assert np.isfinite(flatten(params)).all()
    assert int(state.steps) == 40


@pytest.mark.parametrize("rate", [-0.1, math.nan, math.inf])
def test_a_learning_rate_that_turns_no_direction_into_a_step_is_refused(rate):
    with pytest.raises(ValueError, match="learning_rate="):
        keep_admissible(optax.sgd(0.1), value_losses({"v": lambda p, c: 0.0}), learning_rate=rate)


def test_the_first_state_can_be_donated():
    optimizer = keep_admissible(optax.adam(0.05), curved_values())
    params, profiles = journey(0)[0], profiles_of(STATED)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state, params):
        gradient = jax.tree.map(jnp.ones_like, params)
        told = optimizer.update(gradient, state, params, profiles=profiles, active=ACTIVE)[1]
        live = params["b"][0] < jnp.inf  # as where_live does, which reads the old state's leaves
        return jax.tree.map(lambda new, old: jnp.where(live, new, old), told, state)

    state = step(step(optimizer.init(params), params), params)
    assert int(state.steps) == 2


@pytest.mark.slow
def test_a_norm_is_kept_in_units_of_the_direction():
    with jax.enable_x64(True):
        stated = [[max_norm(0.5), protect("V0")], [], [], [], []]
        _, (_, updates, _, _), _ = run("momentum")(*journey(3), profiles_of(stated), ACTIVE)
        lengths = np.linalg.norm(flatten(updates), axis=1)
        np.testing.assert_allclose(lengths.max(), 0.02 * 0.5, rtol=1e-6)
