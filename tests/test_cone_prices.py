"""Rows that may be left at a price, against a float64 quadratic program with slack."""

import chex
import clarabel
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from tests.cone_examples import (
    KINDS,
    ROWS,
    SMALL,
    WIDTH,
    batch,
    example,
    live,
    margins_by,
    padded_cones,
    project_batch,
    project_one,
    random_cones,
    worst_error,
)
from vcca_jax.cones import pivoting
from vcca_jax.cones.duals import solve_cone_dual
from vcca_jax.cones.projection import cone_projection, project_onto_cone

ENDLESS = np.inf


def priced(g, normals, margins, mask, prices):
    return cone_projection(g, normals, margins, mask, prices=prices)


priced_one, priced_batch = jax.jit(priced), jax.jit(jax.vmap(priced))


def slack_program(g, normals, margins, prices):
    """min 1/2 |u - g|^2 + tau^T xi, N u >= m - xi, xi >= 0 (0 where the price is infinite)."""
    kept = np.linalg.norm(normals, axis=1) > 0
    normals, margins, prices = normals[kept], margins[kept], prices[kept]
    rows, width = normals.shape
    soft = np.flatnonzero(np.isfinite(prices))
    slack = np.eye(rows)[:, soft]
    cost = sparse.diags(np.r_[np.ones(width), np.zeros(len(soft))]).tocsc()
    upper = np.vstack([np.hstack([-normals, -slack]), np.eye(width + len(soft))[width:] * -1.0])
    settings = clarabel.DefaultSettings()
    settings.verbose = False
    for name in ("tol_gap_abs", "tol_gap_rel", "tol_feas"):
        setattr(settings, name, 1e-13)
    result = clarabel.DefaultSolver(
        cost,
        np.r_[-g, prices[soft]],
        sparse.csc_matrix(upper),
        np.r_[-margins, np.zeros(len(soft))],
        [clarabel.NonnegativeConeT(rows + len(soft))],
        settings,
    ).solve()
    return np.array(result.x)[:width]


def some_prices(rng, shape):
    drawn = rng.exponential(size=shape) * 0.3
    return np.where(rng.random(shape) < 0.6, drawn, ENDLESS)


@given(padded_cones(), st.integers(0, 2**32 - 1))
def test_a_multiplier_never_exceeds_its_price_and_holds_below_it(cone, seed):
    prices = some_prices(np.random.default_rng(seed), ROWS).astype(np.float32)
    projection = priced_one(*cone, np.where(cone[3], prices, np.nan))
    g, normals, margins = live(cone)
    mask = cone[3]
    update = np.asarray(projection.update, float)
    multipliers, caps = np.asarray(projection.multipliers, float)[mask], prices[mask]
    assert projection.feasible
    assert projection.residual <= 1e-5
    assert (multipliers >= 0).all()
    assert (multipliers <= caps * (1 + 1e-6)).all()
    norms = np.linalg.norm(normals, axis=1)
    size = np.linalg.norm(g) + np.linalg.norm(update)
    slack = normals @ update - margins
    below = multipliers < caps * (1 - 1e-5)
    assert (slack[below] >= -2e-6 * (norms * size)[below]).all()
    paid = multipliers > 1e-5 * size
    at_cap = paid & ~below
    assert (slack[at_cap] <= 2e-6 * (norms * size)[at_cap]).all()
    np.testing.assert_allclose(update, g + multipliers @ normals, atol=1e-5 * size)
    violation = np.asarray(projection.violation, float)[mask]
    missing = np.maximum(-slack, 0.0)
    np.testing.assert_allclose(violation, missing, atol=1e-5 * size * norms.max())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_equals_a_quadratic_program_with_slack(dtype):
    rng = np.random.default_rng(31)
    draws = [(kind, rows) for kind in KINDS for rows in (4, 8, 16) for _ in range(4)]
    cones = [example(rng, kind, rows, 2 * rows + 10) for kind, rows in draws]
    cones = [tuple(x.astype(dtype) for x in cone) for cone in cones]
    prices = some_prices(rng, SMALL[:2]).astype(dtype)
    with jax.enable_x64(dtype == "float64"):
        projection = priced_batch(*batch(cones, SMALL, dtype), prices)
    references = [
        slack_program(*(x.astype(float) for x in cone), prices[i, : len(cone[1])].astype(float))
        for i, cone in enumerate(cones)
    ]
    assert projection.feasible.all()
    capped = np.asarray(projection.multipliers) >= 0.999 * prices
    assert capped.sum() > 40
    assert worst_error(projection, references) <= (1e-6 if dtype == "float32" else 1e-10)


def test_interior_point_alone_keeps_the_prices(monkeypatch):
    monkeypatch.setattr(pivoting, "most_moves", lambda size: 0)
    rng = np.random.default_rng(32)
    cones = [example(rng, kind, 12, 20) for kind in KINDS for _ in range(8)]
    cones = [tuple(x.astype(np.float32) for x in cone) for cone in cones]
    prices = some_prices(rng, SMALL[:2]).astype(np.float32)
    fallback = jax.jit(jax.vmap(lambda *cone: priced(*cone)))
    projection = fallback(*batch(cones, SMALL, np.float32), prices)
    assert projection.feasible.all()
    references = [
        slack_program(*(x.astype(float) for x in cone), prices[i, :12].astype(float))
        for i, cone in enumerate(cones)
    ]
    assert worst_error(projection, references) <= 3e-6


def test_infinite_prices_change_nothing():
    rng = np.random.default_rng(33)
    draws = [(kind, rows) for kind in KINDS for rows in (1, 4, 16) for _ in range(4)]
    cones = [example(rng, kind, rows, 2 * rows + 10) for kind, rows in draws]
    padded = batch(cones, SMALL, np.float32)
    plain = project_batch(*padded)
    dear = priced_batch(*padded, np.full(SMALL[:2], ENDLESS, np.float32))
    np.testing.assert_array_equal(dear.feasible, plain.feasible)
    np.testing.assert_allclose(dear.update, plain.update, rtol=2e-6, atol=2e-6)
    np.testing.assert_array_equal(plain.violation, 0.0)
    np.testing.assert_array_equal(dear.violation, 0.0)


def test_a_price_makes_what_excludes_itself_admissible():
    normals, g = np.array([[1.0, 0.0], [-1.0, 0.0]], np.float32), np.array([0.3, 0.7], np.float32)
    margins, every = np.full(2, 0.1, np.float32), np.ones(2, bool)
    assert not project_one(g, normals, margins, every).feasible
    for prices, expected in [((2.0, ENDLESS), -0.1), ((ENDLESS, 2.0), 0.1), ((0.05, 0.1), 0.2)]:
        projection = priced_one(g, normals, margins, every, np.array(prices, np.float32))
        assert projection.feasible
        np.testing.assert_allclose(projection.update, [expected, 0.7], atol=1e-6)
        missing = np.maximum(margins - normals @ projection.update, 0.0)
        np.testing.assert_allclose(projection.violation, missing, atol=1e-6)


def test_rows_without_a_price_still_decide():
    rng = np.random.default_rng(34)
    signs = np.arange(64) % 2 == 0
    cones = [margins_by(rng, 8, 12, 0.1 if sign else -0.1) for sign in signs]
    padded = list(batch(cones, SMALL, np.float32))
    # Four more rows that contradict each other, at a price.
    extra = rng.standard_normal((SMALL[0], 2, SMALL[2])).astype(np.float32)
    padded[1][:, 8:12] = np.concatenate([extra, -extra], axis=1)
    padded[2][:, 8:12] = 0.5
    padded[3][:, 8:12] = True
    prices = np.full(SMALL[:2], ENDLESS, np.float32)
    prices[:, 8:12] = 0.2
    projection = priced_batch(*padded, prices)
    np.testing.assert_array_equal(np.asarray(projection.feasible)[:64], signs)
    np.testing.assert_array_equal(np.asarray(projection.update)[:64][~signs], 0.0)

    def cost(update, g, normals, margins, prices):
        missing = np.maximum(margins[8:] - normals[8:] @ update, 0.0)
        return 0.5 * np.sum((update - g) ** 2) + prices[8:] @ missing

    # Compared by cost: the interior point of the reference stops early on rows like these.
    for index in np.flatnonzero(signs):
        cone = [
            np.asarray(x[index], float)
            for x in (padded[0], padded[1][:, :12], padded[2][:, :12], prices[:, :12])
        ]
        update = np.asarray(projection.update[index], float)
        least = cost(slack_program(*cone), *cone)
        assert cost(update, *cone) <= least + 1e-5
        assert (cone[1][:8] @ update - cone[2][:8] >= -1e-5).all()


def test_zero_rows_and_zero_prices():
    normals = np.array([[0.0, 0.0], [1.0, 0.0]], np.float32)
    g, every = np.array([-1.0, 2.0], np.float32), np.ones(2, bool)
    margins = np.array([0.5, 0.0], np.float32)
    projection = priced_one(g, normals, margins, every, np.array([1.0, ENDLESS], np.float32))
    assert projection.feasible
    np.testing.assert_allclose(projection.update, [0.0, 2.0], atol=1e-7)
    np.testing.assert_allclose(projection.violation, [0.5, 0.0])
    free = priced_one(g, normals, margins, every, np.array([0.0, -1.0], np.float32))
    assert free.feasible
    np.testing.assert_array_equal(free.update, g)
    bad = priced_one(g, normals, margins, every, np.array([1.0, np.nan], np.float32))
    assert not bad.feasible
    np.testing.assert_array_equal(bad.update, 0.0)


@pytest.mark.parametrize("size", [1e-12, 1e-3, 1e6])
def test_prices_scale_with_rows_and_gradients(size):
    rng = np.random.default_rng(35)
    g, normals, margins = (x.astype(np.float32) for x in example(rng, "margins", ROWS, WIDTH))
    every, prices = np.ones(ROWS, bool), np.full(ROWS, 0.1, np.float32)
    size = np.float32(size)
    plain = priced_one(g, normals, margins, every, prices)
    assert (np.asarray(plain.multipliers) >= np.float32(0.0999)).any()
    rows = priced_one(g, normals * size, margins * size, every, prices / size)
    np.testing.assert_allclose(rows.update, plain.update, rtol=1e-5, atol=1e-6)
    both = priced_one(g * size, normals, margins * size, every, prices * size)
    np.testing.assert_allclose(both.update / size, plain.update, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(both.violation / size, plain.violation, rtol=1e-5, atol=1e-5)


def test_random_priced_cones_are_never_nan():
    rng = np.random.default_rng(36)
    for _ in range(2):
        g, normals, margins, mask = random_cones(rng, SMALL[0])
        rows = [(a, n[m], b[m]) for a, n, b, m in zip(g, normals, margins, mask, strict=True)]
        prices = 10.0 ** rng.uniform(-9, 9, SMALL[:2])
        prices[rng.random(SMALL[:2]) < 0.3] = ENDLESS
        projection = priced_batch(*batch(rows, SMALL, np.float32), prices.astype(np.float32))
        chex.assert_tree_all_finite(
            (projection.update, projection.multipliers, projection.violation)
        )
        assert not np.isnan(projection.residual).any()
        soft = np.asarray(
            [np.isfinite(p[: len(r[1])]).all() for p, r in zip(prices, rows, strict=True)]
        )
        assert np.asarray(projection.feasible)[soft].all()


def update_of(g, normals, margins, prices):
    return project_onto_cone(g, normals, margins, prices=prices)[0]


@jax.jit
def derivatives(cone, tangents, cotangent):
    _, tangent = jax.jvp(update_of, cone, tangents)
    return tangent, jax.vjp(update_of, *cone)[1](cotangent)


def test_derivatives_of_priced_rows_agree_with_finite_differences():
    rng = np.random.default_rng(37)
    step, capped, inner = 1e-6, 0, 0
    with jax.enable_x64(True):
        project = jax.jit(priced)
        for kind in ("plain", "margins", "correlated"):
            cone = (*example(rng, kind, ROWS, WIDTH), rng.exponential(size=ROWS) * 0.1)
            cone[3][0] = ENDLESS
            every = np.ones(ROWS, bool)
            multipliers = np.asarray(project(*cone[:3], every, cone[3]).multipliers)
            capped += np.sum(multipliers >= 0.999999 * cone[3])
            inner += np.sum((multipliers > 0) & (multipliers < 0.999999 * cone[3]))
            tangents = tuple(rng.standard_normal(x.shape) for x in cone)
            tangents[3][0] = 0.0
            cotangent = rng.standard_normal(WIDTH)
            tangent, pulled = derivatives(cone, tangents, cotangent)
            ahead, behind = (
                project(*moved[:3], every, moved[3]).update
                for moved in (
                    [x + s * t for x, t in zip(cone, tangents, strict=True)] for s in (step, -step)
                )
            )
            np.testing.assert_allclose(tangent, (ahead - behind) / (2 * step), atol=1e-6)
            chex.assert_tree_all_finite(pulled)
            pair = sum(np.vdot(p, t) for p, t in zip(pulled, tangents, strict=True))
            np.testing.assert_allclose(np.vdot(cotangent, tangent), pair, rtol=1e-9)
    assert capped >= 2
    assert inner >= 2


def test_prices_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"prices \(3,\)"):
        solve_cone_dual(jnp.eye(2), jnp.zeros(2), prices=jnp.ones(3))
    with pytest.raises(ValueError, match=r"policy='hope'"):
        solve_cone_dual(jnp.eye(2), jnp.zeros(2), policy="hope")
    with pytest.raises(ValueError, match=r"policy='hope'"):
        project_onto_cone(jnp.zeros(2), jnp.eye(2), policy="hope")
