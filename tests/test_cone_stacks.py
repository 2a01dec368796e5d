"""Many agents at once: stacks of gradients and batches of duals equal one agent at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import quadprog

from tests.compiling import optimized
from tests.cone_examples import (
    KINDS,
    SMALL,
    batch,
    degenerate,
    example,
    margins_by,
    nearly_dependent,
    project_batch,
    quadratic_program,
    worst_error,
)
from vcca_jax.cones import projection, stacks
from vcca_jax.cones.duals import solve_cone_dual, solve_cone_duals
from vcca_jax.cones.projection import cone_projection
from vcca_jax.cones.stacks import project_stack_onto_cones

SHARED = (0, None, None, None)


def mixed_batch(seed, dtype=np.float32):
    """Ordinary, degenerate and contradictory cones, and nearly dependent ones."""
    rng = np.random.default_rng(seed)
    cones = [example(rng, kind, rows, 2 * rows + 10) for kind in KINDS for rows in (1, 5, 16)]
    cones += [margins_by(rng, 8, 12, distance) for distance in (0.1, -0.1) for _ in range(8)]
    cones += [nearly_dependent(rng, 16, 40, 300.0) for _ in range(8)]
    return batch(cones, SMALL, dtype), len(cones)


@pytest.fixture
def small_chunks(monkeypatch):
    # Several chunks and a rest, at the width that other tests compile for.
    monkeypatch.setattr(stacks, "CHUNK", 16)


def test_a_stack_equals_one_agent_at_a_time(small_chunks):
    padded, count = mixed_batch(51)
    single = project_batch(*padded)
    stacked = jax.jit(lambda *cone: project_stack_onto_cones(*cone))(*padded)
    for name in ("update", "multipliers", "violation"):
        one, all_at_once = getattr(single, name), getattr(stacked, name)
        size = np.abs(np.asarray(one)).max(axis=1, initial=1.0)[:, None]
        # Multipliers of dependent rows may differ; what they add up to may not.
        if name != "multipliers":
            assert (np.abs(all_at_once - one) <= 3e-6 * size).all(), name
    np.testing.assert_array_equal(stacked.feasible, single.feasible)
    assert not np.asarray(stacked.feasible)[:count].all()
    inside = np.asarray((single.multipliers == 0).all(axis=1) & single.feasible)
    assert inside.sum() > 10
    np.testing.assert_array_equal(np.asarray(stacked.update)[inside], padded[0][inside])


def test_a_stack_in_float64_follows_the_quadratic_program(small_chunks):
    rng = np.random.default_rng(52)
    cones = [example(rng, "plain", 16, 42) for _ in range(12)]
    cones += [nearly_dependent(rng, 16, 42, 100.0) for _ in range(12)]
    with jax.enable_x64(True):
        projection = jax.jit(lambda *cone: project_stack_onto_cones(*cone))(
            *batch(cones, SMALL, np.float64)
        )
    assert worst_error(projection, [quadratic_program(*cone) for cone in cones]) <= 1e-10


@pytest.mark.parametrize("size", [1e-25, 1.0, 1e18])
def test_squares_that_leave_the_number_format_are_scaled(small_chunks, size):
    rng = np.random.default_rng(53)
    (g, normals, margins, mask), _ = mixed_batch(53)
    g = rng.standard_normal(g.shape).astype(np.float32)
    plain = scaled_stack(g, normals, margins, mask)
    size = np.float32(size)
    rows = scaled_stack(g, normals * size, margins * size, mask)
    both = plain.feasible & rows.feasible
    assert both.sum() > 100
    difference = np.abs(rows.update - plain.update).max(axis=1)
    largest = np.abs(plain.update).max(axis=1)
    assert (difference <= 2e-5 * largest)[np.asarray(both)].all()


scaled_stack = jax.jit(lambda *cone: project_stack_onto_cones(*cone))


def test_shared_rows_equal_rows_of_each_agent(small_chunks):
    (g, normals, margins, mask), _ = mixed_batch(54)
    g = np.random.default_rng(54).standard_normal(g.shape).astype(np.float32)
    shared = (normals[1], np.nan_to_num(margins[1]), mask[1])
    assert np.isnan(shared[0]).any()
    stacked = jax.jit(lambda *cone: project_stack_onto_cones(*cone))(g, *shared)
    single = jax.jit(jax.vmap(cone_projection, in_axes=SHARED))(g, *shared)
    np.testing.assert_allclose(stacked.update, single.update, atol=2e-6)
    assert (np.abs(single.update - g).max(axis=1) > 0.1).any()


def test_a_stack_is_differentiated_like_one_agent():
    rng = np.random.default_rng(55)
    g, normals = rng.standard_normal((3, 6)), rng.standard_normal((3, 4, 6))

    def total(project):
        return lambda g, normals: jnp.sum(project(g, normals).update ** 3)

    g, normals = g.astype(np.float32), normals.astype(np.float32)
    found, expected = (
        jax.jit(jax.grad(total(project), argnums=(0, 1)))(g, normals)
        for project in (project_stack_onto_cones, jax.vmap(cone_projection))
    )
    for one, other in zip(found, expected, strict=True):
        assert np.abs(other).max() > 0.1
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_priced_and_lowered_stacks(small_chunks):
    padded, count = mixed_batch(56)
    prices = np.full(SMALL[1], 0.2, np.float32)
    prices[::2] = np.inf

    def project(*cone):
        return cone_projection(*cone, prices=prices, policy="least_violation")

    single = jax.jit(jax.vmap(project))(*padded)
    stacked = jax.jit(
        lambda *cone: project_stack_onto_cones(*cone, prices=prices, policy="least_violation")
    )(*padded)
    np.testing.assert_array_equal(stacked.feasible, single.feasible)
    assert (np.asarray(single.violation)[:count] > 0.01).any()
    sound = np.asarray(single.residual <= 1e-4)
    assert sound[:count].mean() > 0.9
    np.testing.assert_allclose(
        np.asarray(stacked.update)[sound], np.asarray(single.update)[sound], rtol=1e-3, atol=1e-4
    )


def test_a_batch_of_duals_equals_one_at_a_time():
    padded, _ = mixed_batch(57)
    g, normals, margins, mask = (np.asarray(x)[:50] for x in padded)
    rows, limits = np.where(mask[:, :, None], normals, 0), np.where(mask, margins, 0)
    grams = np.einsum("akd,ald->akl", rows, rows)
    deficits = limits - np.einsum("akd,ad->ak", rows, g)
    grams[~mask], deficits[~mask] = np.nan, np.nan

    def one(gram, deficit, mask, margins):
        return solve_cone_dual(gram, deficit, mask, margins=margins)

    single = optimized(jax.vmap(one))(grams, deficits, mask, limits)
    together = optimized(lambda *parts: solve_cone_duals(*parts[:3], margins=parts[3]))(
        grams, deficits, mask, limits
    )
    # More hard programs than one block holds, and not a multiple of it.
    assert (~np.asarray(single.feasible)).sum() >= 6
    np.testing.assert_array_equal(together.feasible, single.feasible)
    for found, expected in zip(together, single, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_degenerate_data_are_solved_where_quadprog_gives_up():
    rng = np.random.default_rng(58)
    data = [degenerate(rng, 16, 42) for _ in range(64)]
    projection = project_batch(*batch(data, SMALL, np.float32))
    solved = given_up = 0
    for index, (g, normals, margins) in enumerate(data):
        try:
            quadprog.solve_qp(np.eye(len(g)), g, normals.T, margins)
        except ValueError:
            given_up += 1
        update = np.asarray(projection.update[index, : len(g)], float)
        multipliers = np.asarray(projection.multipliers[index, : len(normals)], float)
        slack = normals @ update
        size = np.linalg.norm(g) * np.linalg.norm(normals, axis=1)
        solved += bool(
            projection.feasible[index]
            and (multipliers >= 0).all()
            and (slack >= -1e-6 * size).all()
            and (multipliers * np.abs(slack) <= 1e-5 * np.linalg.norm(g) ** 2).all()
            and np.allclose(update, g + multipliers @ normals, atol=1e-5 * np.linalg.norm(g))
        )
    assert solved == 64
    assert given_up >= 16


@pytest.mark.parametrize("condition", [100.0, 1000.0])
def test_one_step_in_parameter_space_gains_a_digit(monkeypatch, condition):
    rng = np.random.default_rng(59)
    data = [nearly_dependent(rng, 16, 42, condition) for _ in range(96)]
    data = [tuple(x.astype(np.float32) for x in cone) for cone in data]
    padded = batch(data, SMALL, np.float32)
    exact = [quadratic_program(*cone) for cone in data]
    errors = []
    for steps in (0, 1):
        monkeypatch.setattr(projection, "CORRECTION_STEPS", steps)
        found = optimized(jax.vmap(lambda *cone: cone_projection(*cone)))(*padded)
        assert found.feasible.all()
        errors.append(worst_error(found, exact))
    assert errors[1] <= (1e-6 if condition == 100.0 else 1e-5)
    assert errors[0] >= 10 * errors[1]


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"g \(3,\) and normals"):
        project_stack_onto_cones(jnp.zeros(3), jnp.zeros((1, 2, 3)))
    with pytest.raises(ValueError, match=r"normals \(3, 2, 4\)"):
        project_stack_onto_cones(jnp.zeros((2, 4)), jnp.zeros((3, 2, 4)))
    with pytest.raises(ValueError, match=r"margins \(3,\)"):
        project_stack_onto_cones(jnp.zeros((2, 4)), jnp.zeros((2, 2, 4)), jnp.zeros(3))
    with pytest.raises(ValueError, match=r"grams \(2, 2\)"):
        solve_cone_duals(jnp.zeros((2, 2)), jnp.zeros(2))
    with pytest.raises(ValueError, match=r"margins \(2,\)"):
        solve_cone_duals(jnp.zeros((3, 2, 2)), jnp.zeros((3, 2)), margins=jnp.zeros(2))


def test_no_rows_and_no_agents():
    g = jnp.ones((2, 3))
    np.testing.assert_array_equal(project_stack_onto_cones(g, jnp.zeros((2, 0, 3))).update, g)
    assert project_stack_onto_cones(g[:0], jnp.zeros((0, 2, 3))).update.shape == (0, 3)
    assert solve_cone_duals(jnp.zeros((2, 0, 0)), jnp.zeros((2, 0))).feasible.all()
