"""Laws of the projection onto half-spaces, ball, angle cones and regions, against oracles."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conic_examples import (
    AGENTS,
    KINDS,
    REGIONS,
    SMALL,
    anything,
    clarabel_solution,
    contradictions,
    degenerate,
    exact_update,
    example,
    impossible,
    padded,
    plain,
    rounded,
    solve,
    solve_both,
    update_of,
    violation,
)
from vcca_jax.cones import conic, conic_newton
from vcca_jax.cones.conic import solve_conic_program
from vcca_jax.cones.conic_interior import conic_interior_point
from vcca_jax.cones.conic_programs import Asked, ConicPoint, scaled

SIZES = (1, 2, 4, 8, 16)


def agreement(dtype, soft):
    """Errors relative to |u| (or |g| / 10) by kind, over all sizes."""
    rng = np.random.default_rng(int(soft))
    errors = {}
    for name, kinds in KINDS.items():
        problems = [example(rng, kinds, size, soft=soft) for size in SIZES for _ in range(4)]
        updates, solution = solve(problems, dtype)
        assert solution.feasible.all()
        assert np.isfinite(solution.residual).all()
        errors[name] = []
        for problem, update in zip(problems, updates, strict=True):
            problem = rounded(problem, dtype)
            reference = exact_update(problem)
            if reference is not None:
                size = max(np.linalg.norm(reference), 0.1 * np.linalg.norm(problem.gradient))
                errors[name].append(np.linalg.norm(update - reference) / size)
    assert sum(map(len, errors.values())) >= 0.9 * len(KINDS) * 4 * len(SIZES)
    return errors


@pytest.mark.parametrize("soft", [False, True], ids=["hard", "priced"])
def test_equals_clarabel_in_float32(soft):
    errors = agreement(np.float32, soft)
    for name, some in errors.items():
        assert max(some) <= 6e-6, name
    assert np.quantile(np.concatenate(list(errors.values())), 0.9) <= 6e-7


@pytest.mark.slow
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "priced"])
def test_equals_clarabel_in_float64(soft):
    for name, some in agreement(np.float64, soft).items():
        assert max(some) <= 1e-11, name


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_degenerate_problems(dtype):
    rng = np.random.default_rng(5)
    names, problems = zip(
        *[pair for _ in range(4) for pair in degenerate(rng).items()], strict=True
    )
    updates, solution = solve(problems, dtype)
    assert solution.feasible.all()
    for name, problem, update in zip(names, problems, updates, strict=True):
        problem = rounded(problem, dtype)
        reference = clarabel_solution(problem)[0]
        size = np.linalg.norm(problem.gradient) or 1.0
        # Clarabel's own error is the square root of its gap.
        allowed = 2e-4 if dtype == np.float32 else 4e-5
        assert np.linalg.norm(update - reference) <= allowed * size, name
        assert violation(problem, update) <= (2e-6 if dtype == np.float32 else 1e-12), name


kinds = st.sampled_from(sorted(KINDS))
seeds = st.integers(0, 2**32 - 1)


@given(kinds, seeds)
def test_admissible_optimal_idempotent_and_non_expansive(kind, seed):
    rng = np.random.default_rng(seed)
    problem = rounded(example(rng, KINDS[kind]), np.float64)
    other = problem.gradient + rng.standard_normal(len(problem.gradient))
    others = [rng.standard_normal(len(other)) * rng.uniform(0, 2) for _ in range(AGENTS - 3)]
    family = [problem._replace(gradient=g) for g in (problem.gradient, other, *others)]
    updates, solution = solve(family, np.float64)
    assert solution.feasible.all()
    assert (solution.residual <= 1e-9).all()
    size = np.linalg.norm(problem.gradient)
    assert max(violation(p, u) for p, u in zip(family, updates, strict=True)) <= 1e-10
    # The variational inequality, with the other updates for admissible points.
    outward = problem.gradient - updates[0]
    for admissible in updates[1:]:
        assert outward @ (admissible - updates[0]) <= 1e-9 * size**2
    assert np.linalg.norm(updates[0] - updates[1]) <= np.linalg.norm(problem.gradient - other) * (
        1 + 1e-12
    )
    again, kept = solve([problem._replace(gradient=updates[0])], np.float64)
    assert np.linalg.norm(again[0] - updates[0]) <= 1e-9 * size
    assert kept.feasible.all()


@given(kinds, seeds, st.booleans())
def test_the_optimality_conditions_hold_in_parameter_space(kind, seed, soft):
    rng = np.random.default_rng(seed)
    problem = rounded(example(rng, KINDS[kind], soft=soft), np.float64)
    (update,), solution = solve([problem], np.float64)
    count, norms = len(problem.values), np.linalg.norm(problem.values, axis=1)
    half, angles = solution.multipliers[0][:count], solution.angle_multipliers[0][:count]
    assert (half >= 0).all()
    assert (half <= problem.price * (1 + 1e-12)).all()
    assert (angles >= 0).all()
    assert (angles[problem.cosines < 0] == 0).all()
    length, measured = np.linalg.norm(update), problem.weights * (problem.values @ update)
    if length < 1e-8:
        return
    force = problem.gradient + (half * problem.sign + angles) @ problem.values
    pull = solution.norm_multiplier[0] + angles @ (np.maximum(problem.cosines, 0) * norms)
    for multiplier, weight, z in zip(
        solution.region_multipliers[0], problem.weights, measured, strict=True
    ):
        if multiplier > 0:
            force -= multiplier * (weight * z / np.linalg.norm(z)) @ problem.values
    size = np.linalg.norm(problem.gradient)
    np.testing.assert_allclose(update * (1 + pull / length), force, atol=1e-9 * size)
    slack = problem.sign * (problem.values @ update) - problem.margin
    capped = half >= problem.price * (1 - 1e-9)
    assert (np.where(capped, np.maximum(slack, 0), np.abs(slack)) * half <= 1e-8 * size**2).all()
    if np.isfinite(problem.max_norm):
        assert abs(problem.max_norm - length) * solution.norm_multiplier[0] <= 1e-8 * size**2


@given(kinds, seeds)
def test_the_half_spaces_answer_stands_bit_for_bit_where_nothing_else_binds(kind, seed):
    problem = example(np.random.default_rng(seed), KINDS[kind])
    problem = problem._replace(
        max_norm=1e3, cosines=np.full(SMALL, -1.0), radii=np.full(REGIONS, 1e6)
    )
    solution, half = solve_both([problem])
    assert solution.stands.all()
    np.testing.assert_array_equal(solution.multipliers, half.multipliers)
    np.testing.assert_array_equal(solution.residual, half.residual)
    count = len(problem.values)
    expected = problem.sign * half.multipliers[0][:count]
    np.testing.assert_array_equal(solution.coefficients[0][:count], expected)
    np.testing.assert_array_equal(solution.scale, 1.0)


@given(kinds, seeds)
def test_inside_it_is_the_identity(kind, seed):
    problem = rounded(example(np.random.default_rng(seed), KINDS[kind]), np.float32)
    products = problem.values @ problem.gradient
    norms, size = np.linalg.norm(problem.values, axis=1), np.linalg.norm(problem.gradient)
    problem = problem._replace(
        margin=np.minimum(problem.margin, problem.sign * products - 0.01),
        max_norm=size * 1.01,
        cosines=np.where(products > 0, np.maximum(products / norms / size - 0.01, 0), -1.0),
        radii=np.linalg.norm(problem.weights * products, axis=1) + 0.01,
    )
    _, solution = solve([problem])
    np.testing.assert_array_equal(solution.scale, 1.0)
    np.testing.assert_array_equal(solution.coefficients, 0.0)
    assert solution.stands.all()


def test_no_loop_is_entered_where_the_half_spaces_answer_stands(monkeypatch):
    entered = []

    def counting(program, start, skip):
        jax.debug.callback(lambda: entered.append(1))
        return start, jnp.asarray(0.0, program.gram.dtype)

    monkeypatch.setattr(conic_newton, "newton", counting)
    monkeypatch.setattr(conic, "conic_interior_point", lambda program, skip: zero_point(program))
    program = jax.jit(
        lambda max_norm: solve_conic_program(
            jnp.eye(1), jnp.ones(1), 4.0, jnp.zeros(1, int), jnp.ones(1), max_norm=max_norm
        )
    )
    jax.block_until_ready(program(2.5))
    jax.effects_barrier()
    assert not entered
    jax.block_until_ready(program(1.5))
    jax.effects_barrier()
    assert entered


def zero_point(program):
    return ConicPoint(
        0 * program.target,
        0 * program.margins,
        0 * program.cosines,
        0 * program.max_norm,
        0 * program.radii,
    )


def test_a_ball_alone_scales():
    rng = np.random.default_rng(0)
    problems = [plain(rng.standard_normal(6), rng.standard_normal((2, 6))) for _ in range(8)]
    problems = [p._replace(max_norm=0.8 * 10.0**-i) for i, p in enumerate(problems[:4])]
    updates, solution = solve(problems)
    for problem, update in zip(problems, updates, strict=True):
        size = np.linalg.norm(problem.gradient)
        np.testing.assert_allclose(
            update, problem.gradient * problem.max_norm / size, rtol=1e-5, atol=1e-12
        )
    np.testing.assert_array_equal(solution.coefficients, 0.0)


@pytest.mark.parametrize("cosine", [0.0, 0.3, 0.9, 0.99])
def test_an_angle_alone_has_a_closed_form(cosine):
    rng = np.random.default_rng(3)
    axis = rng.standard_normal(7)
    problems = [
        plain(rng.standard_normal(7), [axis], cosines=np.array([cosine])) for _ in range(AGENTS)
    ]
    updates, _ = solve(problems, np.float64)
    unit, sine = axis / np.linalg.norm(axis), np.sqrt(1 - cosine**2)
    kinds_met = set()
    for problem, update in zip(problems, updates, strict=True):
        along = problem.gradient @ unit
        across = problem.gradient - along * unit
        width = np.linalg.norm(across)
        if along >= cosine * np.hypot(along, width):
            kind, expected = "inside", problem.gradient
        elif cosine * along + sine * width <= 0:
            kind, expected = "apex", np.zeros(7)
        else:
            kind = "surface"
            expected = (cosine * along + sine * width) * (cosine * unit + sine * across / width)
        kinds_met.add(kind)
        np.testing.assert_allclose(update, expected, atol=1e-12)
    assert kinds_met >= {"surface"}


def test_capping_the_half_spaces_answer_is_wrong_with_margins():
    # u_1 >= 0.8 and |u| <= 1 from g = (0, 3): the nearest is (0.8, 0.6); the half-space's answer,
    # (0.8, 3), capped, breaks the half-space. With an allowance, u_1 >= -0.6 from (-3, 3), capped
    # (-0.196, 0.981) is admissible and not the nearest, (-0.6, 0.8).
    for gradient, margin, nearest in [((0, 3), 0.8, (0.8, 0.6)), ((-3, 3), -0.6, (-0.6, 0.8))]:
        problem = plain(gradient, [(1.0, 0.0)], margin=np.array([margin]), max_norm=1.0)
        updates, _ = solve([problem, problem._replace(max_norm=np.inf)], np.float64)
        np.testing.assert_allclose(updates[0], nearest, atol=1e-12)
        capped = updates[1] / np.linalg.norm(updates[1])
        assert np.linalg.norm(capped - updates[0]) > 0.23


@pytest.mark.parametrize("size", [1e-6, 1e6])
def test_sizes_of_gradients_and_values_do_not_matter(size):
    rng = np.random.default_rng(1)
    problems = [example(rng, kinds, 4, soft=True) for kinds in KINDS.values()]
    updates, _ = solve(problems)
    larger = [
        p._replace(
            gradient=p.gradient * size,
            values=p.values / size,
            price=p.price * size**2,
            max_norm=p.max_norm * size,
        )
        for p in problems
    ]
    resized, solution = solve(larger)
    assert solution.feasible.all()
    for problem, update, other in zip(problems, updates, resized, strict=True):
        scale = np.linalg.norm(problem.gradient)
        np.testing.assert_allclose(other / size, update, atol=1e-5 * scale)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_what_margins_exclude_is_reported_infeasible_and_what_they_admit_is_not(dtype):
    rng = np.random.default_rng(2)
    for distance in (0.1, 0.01):
        problems = [p for _ in range(8) for p in impossible(rng, distance)]
        updates, solution = solve(problems, dtype)
        assert not solution.feasible.any()
        assert not np.abs(updates).any()
        chex.assert_tree_all_finite(tuple(solution)[:6])
        problems = [p for _ in range(8) for p in impossible(rng, -distance)]
        updates, solution = solve(problems, dtype)
        # The last kind, with no margin above zero, admits u = 0.
        assert solution.feasible.all()
        for problem, update in zip(problems, updates, strict=True):
            assert violation(rounded(problem, dtype), update) <= 1e-5


def none_is_nan(seed):
    rng = np.random.default_rng(seed)
    problems = [rounded(anything(rng), np.float32) for _ in range(AGENTS)]
    solution, half = solve_both(problems)
    chex.assert_tree_all_finite(tuple(solution)[:6])
    assert not np.isnan(solution.residual).any()
    easy = np.array([np.where(np.isfinite(p.price), 0.0, p.margin).max() <= 0 for p in problems])
    assert solution.feasible[easy].all()
    verified = solution.feasible & (solution.residual <= 1e-5)
    for index in np.flatnonzero(verified):
        problem = problems[index]
        update = update_of(problem, index, solution)
        pushed = problem.sign * half.multipliers[index][: len(problem.value)]
        # The program's size, since with g = 0 an update of rounding's size may be all there is.
        base = np.linalg.norm(problem.gradient) + np.linalg.norm(update)
        size = base + np.linalg.norm(problem.gradient + pushed @ problem.values[problem.value])
        assert violation(problem, update) * (base or 1.0) <= 1e-4 * size
    return verified[easy].mean()


@pytest.mark.slow
def test_random_programs_are_never_nan_and_never_infeasible_without_margins():
    assert np.mean([none_is_nan(seed) for seed in range(4)]) > 0.7


@pytest.mark.slow
def test_ten_thousand_random_programs_are_never_nan():
    for seed in range(4, 4 + 10_000 // AGENTS + 1):
        none_is_nan(seed)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_opposing_copies_that_exclude_each_other_are_infeasible(dtype):
    problems = contradictions(dtype)
    updates, solution = solve(problems, dtype)
    assert not solution.feasible.any()
    assert not np.abs(updates).any()
    chex.assert_tree_all_finite(tuple(solution)[:6])
    # Without the copy each asks for something that can be had.
    free = [p._replace(margin=np.where(np.arange(4) == 1, -1e6, p.margin)) for p in problems]
    updates, solution = solve(free, dtype)
    assert solution.feasible.all()
    for problem, update in zip(free, updates, strict=True):
        reference = exact_update(rounded(problem, dtype))
        exact = 1e-5 if dtype == np.float32 else 1e-11
        np.testing.assert_allclose(update, reference, atol=exact)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_what_a_dear_price_cannot_buy_costs_no_more_digits_the_dearer_it_is(dtype):
    # The first row pushes with all of its price against an opposing copy that must hold; both
    # multipliers are what the price says, and u is what it is without the first row.
    rows = [[3.0, 1.0, 2.0], [-3.0, -1.0, -2.0]]
    asked = plain((0.3, -1.0, 2.0), rows, margin=[5.0, 0.0], max_norm=1.0)
    prices = 10.0 ** np.arange(13)
    problems = [asked._replace(price=np.array([price, np.inf])) for price in prices]
    updates, solution = solve(problems, dtype)
    reference = exact_update(problems[0])
    assert solution.feasible.all()
    assert (solution.multipliers[:, 0] <= prices * (1 + 1e-6)).all()
    pushes = np.abs(solution.multipliers[:, :2]).sum(axis=1) * np.linalg.norm(rows[0])
    pushes /= np.linalg.norm(asked.gradient)
    assert (pushes >= 2).all()
    # What is lost is no more than rounding makes of these pushes, and the residual says so.
    epsilon = np.finfo(dtype).eps
    assert (solution.residual >= 0.4 * epsilon * pushes).all()
    assert (solution.residual <= 3 * epsilon**0.5).all()
    errors = np.linalg.norm(np.stack(updates) - reference, axis=1)
    assert (errors <= 3 * solution.residual + 16 * epsilon).all()


def test_a_price_of_zero_counts_for_nothing_and_a_high_one_like_none():
    problems = [example(np.random.default_rng(6), kinds, 4) for kinds in KINDS.values()]
    hard, _ = solve(problems, np.float64)
    dear, _ = solve([p._replace(price=np.full(4, 1e3)) for p in problems], np.float64)
    np.testing.assert_allclose(np.stack(dear), np.stack(hard), atol=1e-9)
    free, _ = solve([p._replace(price=np.zeros(4)) for p in problems], np.float64)
    none, _ = solve([p._replace(margin=np.full(4, -1e6)) for p in problems], np.float64)
    np.testing.assert_allclose(np.stack(free), np.stack(none), atol=1e-9)


def test_a_ball_of_zero_admits_zero_or_nothing():
    problem = plain((1.0, 2.0), [(1.0, 0.0)], max_norm=0.0)
    updates, solution = solve([problem, problem._replace(margin=np.array([0.1]))])
    np.testing.assert_array_equal(solution.feasible, [True, False])
    np.testing.assert_array_equal(np.stack(updates), 0.0)


@pytest.mark.slow
def test_the_interior_point_alone_comes_close():
    rng = np.random.default_rng(9)
    with jax.enable_x64(True):
        programs = []
        for kinds in KINDS.values():
            arguments = padded(example(rng, kinds, 4), np.float64, 4, 4)
            arguments = {k: jnp.asarray(x) for k, x in arguments.items()}
            arguments["prices"] = jnp.full(4, jnp.inf)
            programs.append(scaled(Asked(**arguments), jnp.zeros(4), 0.0)[0])
        programs = jax.tree.map(lambda *x: jnp.stack(x), *programs)
        point = jax.jit(jax.vmap(lambda p: conic_interior_point(p, jnp.asarray(False))))(programs)
        residual = jax.vmap(conic_newton.residual)(programs, point)
    assert (np.asarray(residual) <= 1e-6).all()


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("gram", jnp.eye(3)),
        ("value", jnp.zeros((2, 2), int)),
        ("margin", jnp.zeros(3)),
        ("cosines", jnp.zeros(3)),
        ("weights", jnp.zeros((1, 3))),
        ("radii", jnp.zeros(3)),
        ("max_norm", jnp.zeros(2)),
    ],
)
def test_shapes_that_do_not_fit_are_refused_by_name(name, wrong):
    arguments = {
        "gram": jnp.eye(2),
        "products": jnp.ones(2),
        "squared_norm": 1.0,
        "value": jnp.arange(2),
        "sign": jnp.ones(2),
        "weights": jnp.ones((1, 2)),
    }
    with pytest.raises(ValueError, match=name):
        solve_conic_program(**dict(arguments, **{name: wrong}))
