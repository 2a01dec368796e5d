"""Laws of the projection onto admissible cones, against float64 oracles."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.cone_examples import (
    KINDS,
    LARGE,
    ROWS,
    SMALL,
    WIDTH,
    batch,
    enumerated,
    example,
    live,
    margins_by,
    nearly_dependent,
    padded_cones,
    project_batch,
    project_one,
    project_padded,
    quadratic_program,
    random_cones,
    reference,
    worst_error,
)
from vcca_jax.cones import pivoting
from vcca_jax.cones.duals import solve_cone_dual
from vcca_jax.cones.projection import ConeProjection, cone_projection, project_onto_cone


@given(padded_cones())
def test_projection_is_admissible_optimal_and_equals_enumeration(cone):
    projection = project_one(*cone)
    g, normals, margins = live(cone)
    update = np.asarray(projection.update, float)
    multipliers = np.asarray(projection.multipliers, float)
    chex.assert_tree_all_finite(tuple(projection))
    assert projection.feasible
    assert projection.residual <= 1e-5
    assert (multipliers >= 0).all()
    assert (multipliers[~cone[3]] == 0).all()
    norms = np.linalg.norm(normals, axis=1)
    size = np.linalg.norm(g) + np.linalg.norm(update)
    slack = normals @ update - margins
    assert (slack >= -1e-6 * norms * size).all()
    np.testing.assert_allclose(update, g + multipliers[cone[3]] @ normals, atol=1e-5 * size)
    assert (multipliers[cone[3]] * slack <= 1e-5 * size**2).all()
    assert np.linalg.norm(update - enumerated(g, normals, margins)) <= 2e-6 * size


@given(padded_cones())
def test_projection_is_idempotent_and_the_identity_inside(cone):
    first = project_one(*cone)
    again = project_one(first.update, *cone[1:])
    size = np.linalg.norm(cone[0]) + np.linalg.norm(first.update)
    assert again.feasible
    assert again.residual <= 1e-5
    assert np.linalg.norm(again.update - first.update) <= 1e-6 * size
    # Half-spaces opened until g is inside.
    g, normals, margins, mask = cone
    inside = np.minimum(margins, normals @ g - np.float32(0.01))
    kept = project_one(g, normals, inside, mask)
    np.testing.assert_array_equal(kept.update, g)
    np.testing.assert_array_equal(kept.multipliers, 0.0)


@given(padded_cones(), st.integers(0, 2**32 - 1))
def test_projection_is_non_expansive(cone, seed):
    g, *rest = cone
    other = g + np.random.default_rng(seed).standard_normal(WIDTH).astype(np.float32)
    distance = np.linalg.norm(project_one(g, *rest).update - project_one(other, *rest).update)
    assert distance <= np.linalg.norm(g - other) + 1e-5


def agreement(rows, dtype, shape, count):
    rng = np.random.default_rng(rows[0])
    draws = [(kind, size) for kind in KINDS for size in rows for _ in range(count)]
    cones = [example(rng, kind, size, 2 * size + 10) for kind, size in draws]
    cones = [tuple(x.astype(dtype) for x in cone) for cone in cones]
    projection = project_batch(*batch(cones, shape, dtype))
    assert projection.update.dtype == dtype
    assert projection.feasible.all()
    return worst_error(
        projection, [reference(k, *cone) for (k, _), cone in zip(draws, cones, strict=True)]
    )


def test_equals_a_quadratic_program_in_float32():
    assert agreement((1, 2, 4, 8, 16), "float32", SMALL, 4) <= 1e-6
    assert agreement((1,), "float32", (24, 1, 12), 4) <= 1e-6
    assert agreement((64,), "float32", LARGE, 4) <= 1e-6


def test_equals_a_quadratic_program_in_float64():
    with jax.enable_x64(True):
        assert agreement((1, 2, 4, 8, 16), "float64", SMALL, 4) <= 1e-10


@pytest.mark.slow
def test_equals_a_quadratic_program_in_float64_with_many_rows():
    with jax.enable_x64(True):
        assert agreement((64,), "float64", LARGE, 4) <= 1e-10


@pytest.mark.parametrize(("condition", "allowed"), [(10, 1e-6), (100, 1e-5), (1000, 1e-4)])
def test_nearly_dependent_rows_in_float32(condition, allowed):
    rng = np.random.default_rng(condition)
    sizes = [rows for rows in (2, 4, 8, 16) for _ in range(24)]
    cones = [nearly_dependent(rng, rows, 2 * rows + 10, condition) for rows in sizes]
    single = [tuple(x.astype(np.float32) for x in cone) for cone in cones]
    projection = project_batch(*batch(single, SMALL, np.float32))
    assert projection.feasible.all()
    assert worst_error(projection, [quadratic_program(*cone) for cone in single]) <= allowed


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_infeasible_margins_are_reported_and_feasible_ones_are_not(dtype):
    rng = np.random.default_rng(7)
    shapes = [shape for shape in ((2, 8), (4, 3), (8, 4), (16, 32), (16, 6)) for _ in range(20)]
    signs = np.arange(len(shapes)) % 2 == 0
    cones = [
        margins_by(rng, *shape, 0.1 if sign else -0.1)
        for shape, sign in zip(shapes, signs, strict=True)
    ]
    with jax.enable_x64(dtype == "float64"):
        projection = project_batch(*batch(cones, SMALL, dtype))
    projection = jax.tree.map(lambda x: np.asarray(x)[: len(cones)], projection)
    np.testing.assert_array_equal(projection.feasible, signs)
    for name in ("update", "multipliers"):
        value = getattr(projection, name)
        assert np.isfinite(value).all()
        np.testing.assert_array_equal(value[~signs], 0.0)
    solved = jax.tree.map(lambda x: x[signs], projection)
    references = [quadratic_program(*c) for c, sign in zip(cones, signs, strict=True) if sign]
    assert worst_error(solved, references) <= (1e-5 if dtype == "float32" else 1e-10)


def test_a_proven_infeasibility_has_a_small_residual():
    normals = jnp.array([[1.0, 0.0], [-1.0, 0.0]])
    projection = project_padded(jnp.array([0.3, 0.7]), normals, jnp.array([0.1, 0.1]))
    assert not projection.feasible
    assert projection.residual < 1e-2


def test_zero_rows_are_vacuous_or_impossible():
    normals = jnp.array([[0.0, 0.0], [1.0, 0.0]])
    g = jnp.array([-1.0, 2.0])
    for margin, feasible in [(0.0, True), (-0.5, True), (0.5, False)]:
        projection = project_padded(g, normals, jnp.array([margin, 0.0]))
        assert projection.feasible == feasible
        np.testing.assert_allclose(projection.update, [0.0, 2.0 * feasible], atol=1e-7)
    single = project_one(g, jnp.zeros((1, 2)), jnp.array([0.5]))
    assert not single.feasible
    assert np.isinf(single.residual)


@pytest.mark.parametrize("size", [1e-15, 1e-6, 1e6, 1e15])
def test_the_sizes_of_gradients_and_rows_do_not_matter(size):
    rng = np.random.default_rng(0)
    g, normals, margins = (x.astype(np.float32) for x in example(rng, "margins", ROWS, WIDTH))
    plain = project_padded(g, normals, margins)
    rows = (normals * np.float32(size), margins * np.float32(size))
    np.testing.assert_allclose(project_padded(g, *rows).update, plain.update, rtol=1e-5, atol=1e-6)
    scaled = project_padded(g * np.float32(size), normals, margins * np.float32(size))
    np.testing.assert_allclose(scaled.update / size, plain.update, rtol=1e-5, atol=1e-6)


def none_is_nan(seed):
    g, normals, margins, mask = random_cones(np.random.default_rng(seed), SMALL[0])
    live = [(a, n[m], b[m]) for a, n, b, m in zip(g, normals, margins, mask, strict=True)]
    projection = project_batch(*batch(live, SMALL, np.float32))
    projection = projection._replace(update=projection.update[:, :WIDTH])
    chex.assert_tree_all_finite((projection.update, projection.multipliers))
    assert not np.isnan(projection.residual).any()
    known = (np.where(mask, margins, 0.0) <= 0).all(axis=1)
    assert np.asarray(projection.feasible)[known].all()
    norms = np.linalg.norm(normals, axis=2)
    slack = np.einsum("akd,ad->ak", normals.astype(float), np.asarray(projection.update, float))
    size = np.linalg.norm(g, axis=1)[:, None] * norms + np.abs(margins)
    # Some of these cones are needles, whose multipliers are a hundred times |g|.
    assert (np.where(known[:, None] & mask, slack - margins, 0.0) >= -1e-4 * size).all()
    return known.sum()


def test_random_cones_are_never_nan():
    assert sum(none_is_nan(seed) for seed in range(4)) > SMALL[0]


@pytest.mark.slow
def test_ten_thousand_random_cones_are_never_nan():
    for seed in range(4, 4 + 10_000 // SMALL[0] + 1):
        none_is_nan(seed)


def test_interior_point_alone_solves_what_pivoting_leaves(monkeypatch):
    monkeypatch.setattr(pivoting, "most_moves", lambda size: 0)
    rng = np.random.default_rng(4)
    kinds = [kind for kind in KINDS for _ in range(8)]
    cones = [example(rng, kind, 12, 20) for kind in kinds]
    single = [tuple(x.astype(np.float32) for x in cone) for cone in cones]
    # A new function: the steps are read while tracing, and jit caches traces by function.
    fallback = jax.jit(jax.vmap(lambda *cone: cone_projection(*cone)))
    projection = fallback(*batch(single, SMALL, np.float32))
    assert projection.feasible.all()
    references = [reference(k, *cone) for k, cone in zip(kinds, single, strict=True)]
    assert worst_error(projection, references) <= 2e-6


def test_many_more_rows_than_dimensions_need_the_interior_point():
    rng = np.random.default_rng(5)
    cones = [margins_by(rng, 64, 20, 0.1) for _ in range(8)]
    projection = project_batch(*batch(cones, LARGE, np.float32))
    assert projection.feasible.all()
    assert worst_error(projection, [quadratic_program(*cone) for cone in cones]) <= 1e-5


def test_the_dual_needs_inner_products_only():
    rng = np.random.default_rng(2)
    g, normals, margins = (x.astype(np.float32) for x in example(rng, "margins", ROWS, WIDTH))
    gram, deficit = normals @ normals.T, margins - normals @ g
    gram[1], gram[:, 1], deficit[1] = np.nan, np.nan, np.nan
    mask = np.arange(ROWS) != 1
    solution = jax.jit(solve_cone_dual)(gram, deficit, mask)
    assert solution.feasible
    assert solution.multipliers[1] == 0.0
    rest = project_padded(g, normals[mask], margins[mask])
    update = g + np.asarray(solution.multipliers) @ normals
    np.testing.assert_allclose(update, rest.update, rtol=1e-5, atol=1e-5)


def test_scale_and_margins_tell_the_dual_what_rounding_means():
    # Two opposing rows and a deficit of pure rounding: without a scale it is a contradiction.
    solve = jax.jit(lambda *args: solve_cone_dual(*args[:2], margins=args[2], scale=args[3]))
    gram = jnp.array([[1.0, -1.0], [-1.0, 1.0]])
    noise, positive = jnp.array([2e-8, 1e-8]), jnp.full(2, 1e-9)
    assert not solve(gram, noise, positive, 0.0).feasible
    assert solve(gram, noise, positive, 1.0).feasible
    assert solve(gram, noise, -positive, 0.0).feasible
    assert not solve(gram, 1e7 * noise, positive, 1.0).feasible


def test_input_that_is_not_finite_is_dropped_and_reported():
    normals = jnp.array([[1.0, 0.0], [jnp.nan, 0.0]])
    projection = project_padded(jnp.array([-1.0, 1.0]), normals, jnp.zeros(2))
    assert not projection.feasible
    np.testing.assert_array_equal(projection.update, 0.0)
    np.testing.assert_array_equal(projection.multipliers, 0.0)


def test_no_rows_constrain_nothing():
    g = jnp.array([1.0, -2.0])
    for projection in (
        cone_projection(g, jnp.zeros((0, 2))),
        project_padded(g, np.zeros((0, 2)), np.zeros(0)),
    ):
        np.testing.assert_array_equal(projection.update, g)
        assert projection.feasible
    assert solve_cone_dual(jnp.zeros((0, 0)), jnp.zeros(0)).feasible


def update_of(*cone):
    return project_onto_cone(*cone)[0]


@jax.jit
def derivatives(cone, tangents, cotangent):
    _, tangent = jax.jvp(update_of, cone, tangents)
    return tangent, jax.vjp(update_of, *cone)[1](cotangent)


@pytest.mark.parametrize("kind", KINDS)
def test_derivatives_agree_with_finite_differences(kind):
    rng = np.random.default_rng(11)
    step = 1e-6
    with jax.enable_x64(True):
        cone = example(rng, kind, ROWS, WIDTH)
        every = np.ones(ROWS, bool)
        assert np.linalg.norm(project_one(*cone, every).update - cone[0]) > 0.1
        for _ in range(3):
            tangents = [rng.standard_normal(x.shape) for x in cone]
            if kind in ("duplicate", "opposing", "zero"):  # moving such rows has no derivative
                tangents[1:] = [np.zeros_like(x) for x in tangents[1:]]
            cotangent = rng.standard_normal(WIDTH)
            tangent, pulled = derivatives(cone, tuple(tangents), cotangent)
            ahead, behind = (
                project_one(*(x + s * t for x, t in zip(cone, tangents, strict=True)), every).update
                for s in (step, -step)
            )
            np.testing.assert_allclose(tangent, (ahead - behind) / (2 * step), atol=1e-6)
            inner = sum(np.vdot(p, t) for p, t in zip(pulled, tangents, strict=True))
            np.testing.assert_allclose(np.vdot(cotangent, tangent), inner, rtol=1e-9)


@pytest.mark.slow
def test_second_derivatives_agree_with_finite_differences():
    rng = np.random.default_rng(3)
    step = 1e-5
    with jax.enable_x64(True):
        g, normals, margins = example(rng, "margins", 3, 4)
        gradient = jax.jit(jax.grad(lambda rows: jnp.sum(update_of(g, rows, margins) ** 3)))
        direction = rng.standard_normal(normals.shape)
        _, second = jax.jvp(gradient, (normals,), (direction,))
        assert np.linalg.norm(second) > 0.1
        expected = gradient(normals + step * direction) - gradient(normals - step * direction)
        np.testing.assert_allclose(second, expected / (2 * step), rtol=1e-5, atol=1e-5)


def test_derivatives_under_vmap_ignore_padding_and_dropped_updates():
    normals = jnp.array([[[1.0, 0.2], [jnp.nan, jnp.nan]], [[1.0, 0.0], [-1.0, 0.0]]])
    margins = jnp.array([[0.0, jnp.nan], [0.1, 0.1]])
    mask = jnp.array([[True, False], [True, True]])
    g = jnp.array([[-1.0, 0.5], [0.3, 0.4]])

    def total(g, normals, margins, mask):
        return jnp.sum(project_onto_cone(g, normals, margins, mask)[0])

    gradients = jax.jit(jax.vmap(jax.grad(total, argnums=(0, 1, 2))))(g, normals, margins, mask)
    chex.assert_tree_all_finite(gradients)
    unit = np.array([1.0, 0.2]) / np.sqrt(1.04)
    np.testing.assert_allclose(gradients[0][0], 1.0 - unit.sum() * unit, atol=1e-6)
    np.testing.assert_array_equal(gradients[1][0, 1], 0.0)
    for gradient in gradients:
        np.testing.assert_array_equal(gradient[1], 0.0)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"g \(3,\) and normals \(2, 4\).*vmap"):
        project_onto_cone(jnp.zeros(3), jnp.zeros((2, 4)))
    with pytest.raises(ValueError, match=r"margins \(3,\)"):
        project_onto_cone(jnp.zeros(4), jnp.zeros((2, 4)), jnp.zeros(3))
    with pytest.raises(ValueError, match=r"mask \(1,\)"):
        project_onto_cone(jnp.zeros(4), jnp.zeros((2, 4)), mask=jnp.ones(1, bool))
    with pytest.raises(ValueError, match=r"gram \(2, 3\)"):
        solve_cone_dual(jnp.zeros((2, 3)), jnp.zeros(2))


def test_the_report_and_the_pair_agree():
    g, normals = jnp.array([-1.0, 0.5]), jnp.array([[1.0, 0.0]])
    update, multipliers = jax.jit(project_onto_cone)(g, normals, 0.25)
    report = project_one(g, normals, 0.25)
    assert isinstance(report, ConeProjection)
    np.testing.assert_array_equal(update, report.update)
    np.testing.assert_array_equal(multipliers, report.multipliers)
    np.testing.assert_allclose(update, [0.25, 0.5])
    np.testing.assert_allclose(multipliers, [1.25])
