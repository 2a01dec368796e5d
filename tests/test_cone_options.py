"""A batch of duals, exactly degenerate rows, and what the correction in parameter space is for."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import quadprog

from tests.compiling import optimized
from tests.cone_examples import (
    SMALL,
    batch,
    example,
    margins_by,
    nearly_dependent,
    project_batch,
    quadratic_program,
    worst_error,
)
from vcca_jax.cones import projection
from vcca_jax.cones.duals import BLOCK, ConeSolution, solve_cone_dual, solve_cone_duals
from vcca_jax.cones.projection import cone_projection


def dual_programs(rng):
    """Duals in float32, [44, 8]: most are easy, and more than one block of them is not."""
    kinds = ["plain", "margins", "duplicate", "opposing"] * 3
    cones = [example(rng, kind, 8, 20) for kind in kinds]
    cones += [margins_by(rng, 8, 20, -0.1) for _ in range(BLOCK + 10)]
    cones += [margins_by(rng, 8, 20, 0.1) for _ in range(44 - len(cones))]
    g, normals, margins = (np.stack(part) for part in zip(*cones, strict=True))
    order = rng.permutation(len(g))
    g, normals, margins = g[order], normals[order], margins[order]
    grams = normals @ normals.transpose(0, 2, 1)
    deficits = margins - np.einsum("akd,ad->ak", normals, g)
    floats = (grams, deficits, margins, np.linalg.norm(g, axis=1))
    grams, deficits, margins, scale = (x.astype(np.float32) for x in floats)
    mask = rng.random(deficits.shape) < 0.98
    grams[0, 0], deficits[0, 0], mask[0, 0] = np.nan, np.nan, False
    return grams, deficits, mask, margins, scale, normals


@functools.cache
def pair_of_solvers(policy, priced):
    """The batch, and ``vmap`` of one, of the same arguments."""

    def options(margins, scale, prices):
        caps = {"prices": prices} if priced else {}
        return {"margins": margins, "scale": scale, "policy": policy, **caps}

    def together(grams, deficits, mask, *rest):
        return solve_cone_duals(grams, deficits, mask, **options(*rest))

    def alone(gram, deficit, mask, *rest):
        return solve_cone_dual(gram, deficit, mask, **options(*rest))

    return jax.jit(together), jax.jit(jax.vmap(alone))


@pytest.mark.slow
@pytest.mark.parametrize(("policy", "priced"), [("drop", False), ("least_violation", True)])
def test_a_batch_of_duals_is_the_dual_of_each(policy, priced):
    rng = np.random.default_rng(51)
    *arguments, normals = dual_programs(rng)
    prices = np.where(rng.random(arguments[1].shape) < 0.5, 0.5, np.inf).astype(np.float32)
    together, alone = (
        jax.tree.map(np.asarray, solve(*arguments, prices))
        for solve in pair_of_solvers(policy, priced)
    )
    assert isinstance(together, ConeSolution)
    chex.assert_trees_all_equal_shapes_and_dtypes(together, alone)
    np.testing.assert_array_equal(together.feasible, alone.feasible)
    if not priced:
        assert (~alone.feasible).sum() > BLOCK
        assert alone.feasible.sum() > BLOCK

    def moved(solution):
        return np.einsum("ak,akd->ad", solution.multipliers, normals)

    size = arguments[4][:, None] + np.linalg.norm(moved(alone), axis=1)[:, None]
    np.testing.assert_allclose(moved(together) / size, moved(alone) / size, atol=1e-6)
    np.testing.assert_allclose(together.violation, alone.violation, atol=1e-5)
    # The certificate of an infeasible program is the quotient of two small numbers.
    good = alone.feasible
    np.testing.assert_allclose(together.residual[good], alone.residual[good], atol=1e-6)
    if policy == "least_violation":
        assert (together.violation[~good].max(axis=1) > 0.01).any()


def test_a_batch_says_which_argument_does_not_fit():
    grams, deficits = jnp.zeros((3, 2, 2)), jnp.zeros((3, 2))
    with pytest.raises(ValueError, match=r"grams \(3, 2, 2\) and deficits \(2, 2\)"):
        solve_cone_duals(grams, jnp.zeros((2, 2)))
    for name in ("mask", "margins", "scale", "prices"):
        with pytest.raises(ValueError, match=rf"{name} \(2, 2\) does not fit 3 agents"):
            solve_cone_duals(grams, deficits, **{name: jnp.zeros((2, 2))})
    with pytest.raises(ValueError, match="policy='hope'"):
        solve_cone_duals(grams, deficits, policy="hope")
    solve = optimized(solve_cone_duals)
    assert solve(jnp.zeros((0, 2, 2)), jnp.zeros((0, 2))).feasible.shape == (0,)
    assert solve(jnp.zeros((3, 0, 0)), jnp.zeros((3, 0))).feasible.all()


def exactly_degenerate(rng, rows, width):
    """More rows than dimensions, half of them exact multiples of others: no step is unique."""
    normals = rng.standard_normal((rows, width)).astype(np.float32).astype(float)
    half = rows // 2
    multiples = rng.choice([-0.5, 1.0, 2.0], (rows - half, 1))
    normals[half:] = multiples * normals[rng.integers(0, half, rows - half)]
    return rng.standard_normal(width).astype(np.float32).astype(float), normals, np.zeros(rows)


def quadprog_raises(g, normals, _):
    """Whether it does on what ours is given, the dual in float64."""
    rows = len(normals)
    try:
        quadprog.solve_qp(normals @ normals.T, -normals @ g, np.eye(rows), np.zeros(rows))
    except ValueError:
        return True
    return False


@pytest.mark.parametrize(("dtype", "allowed"), [("float32", 3e-4), ("float64", 1e-11)])
def test_exactly_degenerate_rows_are_solved_where_quadprog_gives_up(dtype, allowed):
    rng = np.random.default_rng(52)
    shapes = ((8, 4), (12, 5), (16, 6), (16, 3))
    asked = [exactly_degenerate(rng, *shape) for shape in shapes for _ in range(32)]
    with jax.enable_x64(dtype == "float64"):
        projection = project_batch(*batch(asked, SMALL, dtype))
    solved = 0
    for index, (g, normals, _) in enumerate(asked):
        update = np.asarray(projection.update[index], float)[: len(g)]
        norms = np.linalg.norm(normals, axis=1)
        multipliers = np.asarray(projection.multipliers[index], float)[: len(norms)]
        slack = normals @ update / norms
        # Sufficient for the nearest admissible update, whichever multipliers were found; those of
        # a degenerate program reach a hundred times the update, and so does their rounding.
        errors = (
            -slack.min(),
            np.abs(update - g - multipliers @ normals).max(),
            np.abs(update @ (update - g)) / np.linalg.norm(g),
        )
        assert (multipliers >= 0).all()
        solved += max(errors) <= allowed * np.linalg.norm(g)
    assert projection.feasible.all()
    assert solved == len(asked)
    assert sum(quadprog_raises(*cone) for cone in asked) >= len(asked) // 2


@pytest.mark.parametrize(
    ("condition", "allowed", "without"), [(100, 1e-6, 1e-5), (1000, 1e-5, 1e-4)]
)
def test_one_correction_in_parameter_space_brings_the_digits_back(
    condition, allowed, without, monkeypatch
):
    rng = np.random.default_rng(condition)
    asked = [nearly_dependent(rng, 16, 42, condition) for _ in range(SMALL[0])]
    asked = [tuple(x.astype(np.float32) for x in cone) for cone in asked]
    references = [quadratic_program(*cone) for cone in asked]
    corrected = project_batch(*batch(asked, SMALL, np.float32))
    monkeypatch.setattr(projection, "CORRECTION_STEPS", 0)
    # A new function: the steps are read while tracing, and jit caches traces by function.
    plain = optimized(jax.vmap(lambda *cone: cone_projection(*cone)))(
        *batch(asked, SMALL, np.float32)
    )
    assert worst_error(corrected, references) <= allowed
    assert worst_error(plain, references) > without
