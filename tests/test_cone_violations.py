"""Margins that exclude each other, under ``policy="least_violation"``, in two float64 stages."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import quadprog
from scipy.optimize import nnls

from tests.cone_examples import (
    ROWS,
    SMALL,
    WIDTH,
    batch,
    example,
    margins_by,
    project_batch,
    random_cones,
)
from vcca_jax.cones.duals import solve_cone_dual
from vcca_jax.cones.projection import cone_projection, project_onto_cone


def lowered(*cone):
    return cone_projection(*cone, policy="least_violation")


lowered_one, lowered_batch = jax.jit(lowered), jax.jit(jax.vmap(lowered))


def smallest_violation(normals, margins):
    """The distance, on unit rows, of m from {N u - s : s >= 0}, by non-negative least squares."""
    norms = np.linalg.norm(normals, axis=1)
    unit, limits = normals / norms[:, None], margins / norms
    reachable = np.hstack([unit, -unit, -np.eye(len(norms))])
    return (limits - reachable @ nnls(reachable, limits)[0]) * norms


def nearest(g, normals, margins, violation):
    """The projection onto {N u >= m - v*}: rows with v* > 0 hold with equality there."""
    norms = np.linalg.norm(normals, axis=1)
    unit, limits = normals / norms[:, None], (margins - violation) / norms
    tight = violation > 1e-8
    _, sizes, rows = np.linalg.svd(unit[tight])
    free = rows[np.sum(sizes > 1e-9) :].T
    base = np.linalg.lstsq(unit[tight], limits[tight], rcond=1e-9)[0]
    others = unit[~tight] @ free
    kept = np.linalg.norm(others, axis=1) > 1e-9
    if not kept.any():
        return base + free @ (free.T @ g)
    left = (limits[~tight] - unit[~tight] @ base)[kept]
    inside = quadprog.solve_qp(np.eye(free.shape[1]), free.T @ g, others[kept].T, left)[0]
    return base + free @ inside


def contradictions(rng, count):
    """Rows in general position beside a well-conditioned contradiction among the first few."""
    cones = []
    for index in range(count):
        g, normals, margins = example(rng, "plain", 8, 20)
        used = 2 + index % 4
        weights = rng.uniform(0.3, 1.0, used)
        normals /= np.linalg.norm(normals, axis=1, keepdims=True)
        normals[used] = -weights @ normals[:used]
        margins = 0.3 * rng.standard_normal(8)
        margins[used] = 0.2 - weights @ margins[:used]
        factor = np.exp(rng.uniform(-1, 1, 8))
        cones.append((g, normals * factor[:, None], margins * factor))
    return cones


def test_contradictions_end_at_the_two_stage_solution():
    rng = np.random.default_rng(41)
    cones = contradictions(rng, 48)
    stages = [(c, smallest_violation(*c[1:])) for c in cones]
    assert all(np.linalg.norm(v) > 0.01 for _, v in stages)
    for dtype, allowed in ((np.float32, 2e-5), (np.float64, 1e-9)):
        with jax.enable_x64(dtype == np.float64):
            projection = lowered_batch(*batch(cones, SMALL, dtype))
        assert not np.asarray(projection.feasible)[:48].any()
        for index, (cone, violation) in enumerate(stages):
            found = np.asarray(projection.violation[index, :8], float)
            np.testing.assert_allclose(found, violation, atol=allowed * np.abs(violation).max())
            expected = nearest(*cone, violation)
            update = np.asarray(projection.update[index, :20], float)
            assert np.linalg.norm(update - expected) <= 10 * allowed * np.linalg.norm(expected)


def test_any_shape_of_contradiction_in_float64():
    rng = np.random.default_rng(42)
    shapes = ((2, 8), (4, 3), (8, 4), (16, 32), (16, 6))
    cones = [margins_by(rng, *shape, -0.1) for shape in shapes for _ in range(20)]
    with jax.enable_x64(True):
        projection = lowered_batch(*batch(cones, SMALL, np.float64))
    assert not np.asarray(projection.feasible)[: len(cones)].any()
    for index, (g, normals, margins) in enumerate(cones):
        rows, width = normals.shape
        violation = np.asarray(projection.violation[index, :rows])
        np.testing.assert_allclose(violation, smallest_violation(normals, margins), atol=1e-8)
        update = np.asarray(projection.update[index, :width])
        multipliers = np.asarray(projection.multipliers[index, :rows])
        # Optimal for the lowered margins: the conditions prove it, whatever the multipliers are.
        size = max(1.0, np.linalg.norm(update), multipliers.max())
        slack = normals @ update - margins + violation
        assert (multipliers >= 0).all()
        assert (slack >= -1e-9 * size).all()
        assert (multipliers * slack <= 1e-8 * size**2).all()
        np.testing.assert_allclose(update, g + multipliers @ normals, atol=1e-9 * size)


def test_feasible_margins_are_projected_as_ever():
    rng = np.random.default_rng(43)
    cones = [margins_by(rng, rows, 12, 0.1) for rows in (4, 8, 16) for _ in range(12)]
    padded = batch(cones, SMALL, np.float32)
    plain, same = project_batch(*padded), lowered_batch(*padded)
    assert same.feasible.all()
    np.testing.assert_allclose(same.update, plain.update, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(same.violation, 0.0)


def test_two_opposite_margins_meet_half_way():
    normals = np.array([[1.0, 0.0], [-2.0, 0.0], [0.0, 1.0]], np.float32)
    margins, g = np.array([0.3, 0.2, 1.0], np.float32), np.array([5.0, 0.5], np.float32)
    projection = lowered_one(g, normals, margins, np.ones(3, bool))
    # On unit rows: x >= 0.3 and -x >= 0.1 both miss by 0.2 at x = 0.1.
    np.testing.assert_allclose(projection.violation, [0.2, 0.4, 0.0], atol=1e-5)
    np.testing.assert_allclose(projection.update, [0.1, 1.0], atol=1e-5)
    assert not projection.feasible
    assert projection.residual <= 1e-4


def test_a_zero_row_misses_its_margin_and_the_others_hold():
    normals = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], np.float32)
    margins, g = np.array([0.5, 0.0, 0.0], np.float32), np.array([-1.0, 2.0], np.float32)
    projection = lowered_one(g, normals, margins, np.ones(3, bool))
    assert not projection.feasible
    np.testing.assert_allclose(projection.violation, [0.5, 0.0, 0.0])
    np.testing.assert_allclose(projection.update, [0.0, 2.0], atol=1e-7)


def test_priced_rows_yield_before_the_others_do():
    # x >= 1 at a price, x <= -1 and x >= 0 without one: v* knows nothing of the first.
    normals = np.array([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.0]], np.float32)
    margins = np.array([1.0, 1.0, 0.0], np.float32)
    prices = np.array([0.5, np.inf, np.inf], np.float32)
    projection = jax.jit(
        lambda *cone: cone_projection(*cone, prices=prices, policy="least_violation")
    )(np.array([0.0, 1.0], np.float32), normals, margins)
    assert not projection.feasible
    np.testing.assert_allclose(projection.update, [-0.5, 1.0], atol=1e-5)
    np.testing.assert_allclose(projection.violation, [1.5, 0.5, 0.5], atol=1e-5)
    assert projection.multipliers[0] <= 0.5


def test_anything_goes_and_is_finite():
    rng = np.random.default_rng(44)
    dropped = 0
    for _ in range(3):
        g, normals, margins, mask = random_cones(rng, SMALL[0])
        rows = [(a, n[m], b[m]) for a, n, b, m in zip(g, normals, margins, mask, strict=True)]
        projection = lowered_batch(*batch(rows, SMALL, np.float32))
        chex.assert_tree_all_finite(tuple(projection))
        assert (np.asarray(projection.multipliers) >= 0).all()
        assert (np.asarray(projection.violation) >= 0).all()
        dropped += np.sum(~np.asarray(projection.feasible))
    assert dropped > 20


def test_input_that_is_not_finite_is_dropped_all_the_same():
    normals = np.array([[1.0, 0.0], [np.nan, 0.0], [0.0, 1.0]], np.float32)
    projection = lowered_one(
        np.array([-1.0, 1.0], np.float32), normals, np.zeros(3, np.float32), np.ones(3, bool)
    )
    assert not projection.feasible
    assert np.isinf(projection.residual)
    for value in (projection.update, projection.multipliers, projection.violation):
        np.testing.assert_array_equal(value, 0.0)


def update_of(g, normals, margins):
    return project_onto_cone(g, normals, margins, policy="least_violation")[0]


@jax.jit
def derivatives(cone, tangents, cotangent):
    _, tangent = jax.jvp(update_of, cone, tangents)
    return tangent, jax.vjp(update_of, *cone)[1](cotangent)


@pytest.mark.parametrize("rows_move", [False, True])
def test_derivatives_agree_with_finite_differences_where_the_rank_stays(rows_move):
    rng = np.random.default_rng(45)
    step = 1e-6
    with jax.enable_x64(True):
        project = jax.jit(lowered)
        for _ in range(3):
            # With more binding rows than dimensions the rank stays when they move; without,
            # moving them makes a contradiction an acute angle, which has no derivative.
            plane = np.arange(WIDTH) < (2 if rows_move else WIDTH)
            normals = rng.standard_normal((ROWS, WIDTH)) * plane
            angles = 0.4 + 2 * np.pi * np.arange(3) / 3
            normals[:3] = 0.0
            normals[:3, 0], normals[:3, 1] = np.cos(angles), np.sin(angles)
            margins = np.r_[0.3, 0.2, 0.25, -9.0, -9.0 if rows_move else -0.1]
            cone = (rng.standard_normal(WIDTH), normals, margins)
            every = np.ones(ROWS, bool)
            assert not project(*cone, every).feasible
            tangents = tuple(rng.standard_normal(x.shape) for x in cone)
            tangents = (tangents[0], tangents[1] * plane * rows_move, tangents[2])
            cotangent = rng.standard_normal(WIDTH)
            tangent, pulled = derivatives(cone, tangents, cotangent)
            ahead, behind = (
                project(*(x + s * t for x, t in zip(cone, tangents, strict=True)), every).update
                for s in (step, -step)
            )
            np.testing.assert_allclose(tangent, (ahead - behind) / (2 * step), atol=1e-5)
            pair = sum(np.vdot(p, t) for p, t in zip(pulled, tangents, strict=True))
            np.testing.assert_allclose(np.vdot(cotangent, tangent), pair, rtol=1e-8, atol=1e-12)


def test_prices_that_some_rows_lack_leave_derivatives_finite():
    """An infinite price times the derivative of a length would be no number."""
    g, normals = jnp.array([-1.0, -0.5]), jnp.eye(2)
    prices = jnp.array([0.3, jnp.inf])

    def pulled(policy):
        def total(normals, g, prices):
            return cone_projection(g, normals, prices=prices, policy=policy).update.sum()

        return jax.jit(jax.grad(total, argnums=(0, 1)))(normals, g, prices)

    for found, wanted in zip(pulled("least_violation"), pulled("drop"), strict=True):
        assert np.isfinite(wanted).all()
        np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_the_dual_reports_the_violation_in_units_of_the_margins():
    normals = jnp.array([[3.0, 0.0], [-1.0, 0.0]])
    margins = jnp.array([3.0, 1.0])
    solution = jax.jit(
        lambda gram, deficit: solve_cone_dual(
            gram, deficit, margins=margins, policy="least_violation"
        )
    )(normals @ normals.T, margins)
    np.testing.assert_allclose(solution.violation, [3.0, 1.0], rtol=1e-5)
