"""Reject and shrink under limits, least violation, and who was screened by whom."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import quadprog

from tests.screens import AGENTS, VALUES, case, flatten, gradients_of, linear_loss, unflatten
from vcca_jax.constraints import forbid, freeze, max_norm, protect, trust_region, within_angle
from vcca_jax.gradients import agent_gradients, from_stack
from vcca_jax.profiles import value_profiles
from vcca_jax.screen_report import screened_by, untouched
from vcca_jax.screening import screen

NAMES = tuple(f"V{m}" for m in range(VALUES))
EVERYBODY = np.ones(AGENTS, bool)


@functools.cache
def jitted(method, scope, **options):
    apply = screen(method, scope=scope, measure_norms=True, **options)

    @jax.jit
    def run(given, profiles):
        gradients = agent_gradients(linear_loss, given.params, given.batch)
        screened, report = apply(gradients, given.rows, profiles)
        return screened.stack(), screened.present, report

    return run


def setting(seed, stated, **options):
    """A case in which everybody is active and has a sample, and profiles for it."""
    this = case(seed)
    batch = this.batch._replace(
        owners=(np.arange(len(this.batch.owners)) % AGENTS).astype(np.int32),
        mask=np.ones_like(this.batch.mask),
        active=EVERYBODY,
    )
    profiles = value_profiles(NAMES, stated, params=unflatten(np.zeros(10)), **options)
    return this._replace(batch=batch), profiles


def inside(u, rows, stated):
    """Whether an update is within a profile's limits, from the words' own definitions."""
    norm, products = np.linalg.norm(u), rows @ u
    lengths = np.linalg.norm(rows, axis=1)
    return (
        norm <= stated["norm"] + 1e-12
        and products[0] >= np.cos(np.radians(stated["angle"])) * norm * lengths[0] - 1e-12
        and np.hypot(products[1], products[2]) <= stated["radius"] + 1e-12
    )


@pytest.mark.parametrize("method", ["reject", "shrink"])
def test_limits_reject_and_shrink_what_is_beyond_them(method):
    limits = {"norm": 0.4, "angle": 85.0, "radius": 0.5}
    stated = [
        max_norm(limits["norm"]),
        within_angle("V0", limits["angle"]),
        trust_region(["V1", "V2"], limits["radius"]),
    ]
    kept, whole = 0, 0
    with jax.enable_x64(True):
        for seed in range(12):
            this, profiles = setting(seed, [stated] * AGENTS)
            stack, present, report = jitted(method, "own")(this, profiles)
            before, _ = gradients_of(this.batch)
            rows = flatten(this.rows)
            for i, (g, u) in enumerate(zip(before, flatten(stack), strict=True)):
                fits = inside(g, rows, limits)
                whole += fits
                assert bool(report.admissible[i]) == fits
                if method == "reject":
                    np.testing.assert_allclose(u, g if fits else 0 * g, atol=1e-12)
                    assert bool(present[i]) == fits != bool(report.dropped[i])
                    continue
                # The largest multiple that is inside, found by trying.
                tried = np.linspace(0, 1, 2001)
                best = max(s for s in tried if inside(s * g, rows, limits))
                np.testing.assert_allclose(report.scale[i], best, atol=6e-4)
                np.testing.assert_allclose(u, float(report.scale[i]) * g, atol=1e-12)
                assert bool(report.limited[i]) == (report.scale[i] < 1)
                kept += bool(report.scale[i] > 0)
    assert 0 < whole < 60
    assert method == "reject" or whole < kept < 60


def test_the_least_violation_is_what_two_quadratic_programs_say():
    """Opposite demands with margins: the smallest violation, then the nearest update at it."""
    stated = [[protect("V0", 0.6), forbid("V0", 0.2), protect("V1", 0.1)], [protect("V1", 0.1)]]
    stated += [[]] * (AGENTS - 2)
    with jax.enable_x64(True):
        this, profiles = setting(3, stated)
        before, _ = gradients_of(this.batch)
        rows = flatten(this.rows)
        for policy in ("least_violation", "drop"):
            stack, present, report = jitted("project", "own", policy=policy)(this, profiles)
            np.testing.assert_array_equal(report.feasible, [False] + [True] * 4)
            np.testing.assert_array_equal(report.dropped, [policy == "drop"] + [False] * 4)
            np.testing.assert_array_equal(present, ~np.asarray(report.dropped))
            if policy == "drop":
                assert not flatten(stack)[0].any()
                continue
            # <u, V0> >= .6 and <= -.2 miss each other by .8: both are missed by .4.
            normals = np.stack([rows[0], rows[1]])
            limits = np.array([0.2, 0.1])
            nearest = quadprog.solve_qp(np.eye(10), before[0], normals.T, limits, meq=1)[0]
            np.testing.assert_allclose(flatten(stack)[0], nearest, atol=1e-6)
            np.testing.assert_allclose(report.violations[0], [0.4, 0, 0, 0], atol=1e-6)
            np.testing.assert_allclose(flatten(stack)[2:], before[2:], atol=1e-12)


def test_what_everybody_put_on_an_update_is_ascribed_to_those_who_bind():
    stated = [[protect("V0", 1.0)], [protect("V0", 1.0), forbid("V1", 0.5)], [forbid("V1", 0.1)]]
    stated += [[protect("V0", -9.0)], []]
    with jax.enable_x64(True):
        this, profiles = setting(1, stated)
        _, _, report = jitted("project", "everyone")(this, profiles)
        matrix = np.asarray(screened_by(report, profiles, EVERYBODY))
        lengths = np.abs(report.coefficients) * np.linalg.norm(flatten(this.rows), axis=1)
        assert (lengths[:, :2] > 1e-3).any(axis=0).all()
        expected = np.zeros((AGENTS, AGENTS))
        expected[:, 0] = expected[:, 1] = lengths[:, 0] / 2
        expected[:, 1] += lengths[:, 1]
        np.testing.assert_allclose(matrix, expected, atol=1e-12)
        # Without them the next strictest bind, and are named.
        alone = np.array([False, False, True, True, True])
        matrix = np.asarray(screened_by(report, profiles, alone))
        np.testing.assert_allclose(matrix[:, 2], lengths[:, 1], atol=1e-12)
        np.testing.assert_allclose(matrix[:, 3], lengths[:, 0], atol=1e-12)
        own = np.asarray(screened_by(report, profiles, EVERYBODY, scope="own"))
        np.testing.assert_allclose(own, np.diag(lengths.sum(axis=1)), atol=1e-12)


def test_what_a_limit_put_on_an_update_is_ascribed_to_those_who_state_it():
    g, row = jnp.array([[-0.5, 1.0, 0.0], [0.2, 1.0, 0.0]]), jnp.array([[1.0, 0.0, 0.0]])
    both = jnp.ones(2, bool)
    cases = {
        "angle": [[within_angle("V0", 30)], [within_angle("V0", 60)]],
        "region": [[trust_region(["V0"], 0.1)], [max_norm(9.0)]],
        "beside a half-space": [[within_angle("V0", 30)], [protect("V0", 0.3)]],
    }
    for name, stated in cases.items():
        profiles = value_profiles(("V0",), stated)
        gradients = from_stack(g, jnp.zeros(2), both, both)
        _, report = screen(scope="everyone", measure_norms=True)(gradients, row, profiles)
        told = screened_by(report, profiles, both)
        lengths = np.abs(report.coefficients[:, 0])
        assert lengths.min() > 0.01
        np.testing.assert_allclose(told.sum(axis=1), lengths, rtol=1e-5)
        # The half-space is taken for the cause where there is one.
        np.testing.assert_allclose(told[:, 1 if "beside" in name else 0], lengths, rtol=1e-5)


def test_a_compromise_is_the_weighted_mean_and_says_what_it_crosses():
    """Two principals of weights 3 and 1 who demand the opposite of one value."""
    stated = [[protect("V0", 0.4)], [forbid("V0", 0.4)], [], [], []]
    with jax.enable_x64(True):
        this, profiles = setting(5, stated, weights=[3.0, 1.0, 1e-9, 1e-9, 1e-9])
        stack, _, report = jitted("project", "weighted")(this, profiles)
        told = flatten(stack) @ flatten(this.rows)[0]
        before = gradients_of(this.batch)[0] @ flatten(this.rows)[0]
        wanted = (3 * np.maximum(before, 0.4) + np.minimum(before, -0.4)) / 4
        np.testing.assert_allclose(told, wanted, atol=1e-7)
        np.testing.assert_allclose(
            report.violations[:, 0], np.maximum(0.4 - wanted, wanted + 0.4), atol=1e-7
        )
        assert np.asarray(report.feasible).all()


def test_a_price_is_the_most_that_a_value_costs():
    """Below its price a constraint is kept exactly; above it the rest is bought."""
    with jax.enable_x64(True):
        for price in (1e-3, 1e3):
            this, profiles = setting(7, [[protect("V0", 1.0, price=price)]] * AGENTS)
            _, _, report = jitted("project", "own")(this, profiles)
            kept = np.asarray(report.violations[:, 0]) < 1e-12
            np.testing.assert_array_equal(kept, price > 1)
            assert (np.asarray(report.coefficients[:, 0]) <= price * (1 + 1e-6)).all()
            if price < 1:
                np.testing.assert_allclose(report.coefficients[:, 0], price, rtol=1e-6)
        with_reject = jitted("reject", "own")(this, profiles)[2]
        assert np.asarray(with_reject.feasible).all()


def test_frozen_parts_are_cut_under_every_method():
    with jax.enable_x64(True):
        for method in ("project", "reject", "shrink"):
            this, profiles = setting(2, [[freeze("b")]] * 2 + [[]] * 3)
            stack, _, report = jitted(method, "own")(this, profiles)
            before, _ = gradients_of(this.batch)
            wanted = before.copy()
            wanted[:2, 6:] = 0
            np.testing.assert_allclose(flatten(stack), wanted, atol=1e-13)
            np.testing.assert_allclose(
                report.removed_norm, np.linalg.norm(wanted - before, axis=1), atol=1e-12
            )


def test_a_report_of_ones_own_starts_from_nothing_done():
    this, _ = setting(0, [[]] * AGENTS)
    gradients = agent_gradients(linear_loss, this.params, this.batch)
    told = untouched(gradients, this.rows)
    wanted = screen("project")(gradients, this.rows, value_profiles(NAMES, [[]] * AGENTS))[1]
    for name, field in told._asdict().items():
        assert field.shape == getattr(wanted, name).shape, name
        assert field.dtype == getattr(wanted, name).dtype, name
        if name != "value_norms":
            np.testing.assert_array_equal(field, getattr(wanted, name), err_msg=name)


def test_bad_input_is_refused_by_name():
    with pytest.raises(ValueError, match="scope='weighted' must be"):
        screened_by(None, None, None, scope="weighted")
    with pytest.raises(ValueError, match="policy='pray' must be"):
        screen(policy="pray")
