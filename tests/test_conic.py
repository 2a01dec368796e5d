"""Laws of the projection onto half-spaces, ball, angle cones and regions, against oracles."""

import functools

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
    Problem,
    clarabel_solution,
    exact_update,
    example,
    padded,
    rounded,
    solve,
    solve_both,
    violation,
)
from vcca_jax import conic, conic_newton
from vcca_jax.conic import solve_conic_program
from vcca_jax.conic_interior import interior_point

SIZES = (1, 2, 4, 8, 16)


def plain(gradient, values, **limits):
    """A problem without limits but those given."""
    gradient, values = np.asarray(gradient, float), np.asarray(values, float)
    count = len(values)
    nothing = Problem(
        gradient,
        values,
        value=np.arange(count),
        sign=np.ones(count),
        margin=np.full(count, -1e6),
        price=np.full(count, np.inf),
        max_norm=np.inf,
        cosines=np.full(count, -1.0),
        weights=np.zeros((REGIONS, count)),
        radii=np.full(REGIONS, np.inf),
    )
    return nothing._replace(**{k: np.asarray(v) for k, v in limits.items()})


def agreement(dtype, soft):
    """The worst error of each kind relative to |u| (or |g| / 10), over all sizes."""
    rng = np.random.default_rng(int(soft))
    worst, exact = {}, 0
    for name, kinds in KINDS.items():
        problems = [example(rng, kinds, size, soft=soft) for size in SIZES for _ in range(4)]
        updates, solution = solve(problems, dtype)
        assert solution.feasible.all()
        assert np.isfinite(solution.residual).all()
        errors = []
        for problem, update in zip(problems, updates, strict=True):
            problem = rounded(problem, dtype)
            reference = exact_update(problem)
            if reference is not None:
                size = max(np.linalg.norm(reference), 0.1 * np.linalg.norm(problem.gradient))
                errors.append(np.linalg.norm(update - reference) / size)
        exact += len(errors)
        worst[name] = max(errors)
    assert exact >= 0.9 * len(KINDS) * 4 * len(SIZES)
    return worst


@pytest.mark.parametrize("soft", [False, True], ids=["hard", "priced"])
def test_equals_clarabel_in_float32(soft):
    for name, error in agreement(np.float32, soft).items():
        assert error <= 3e-6, name


@pytest.mark.parametrize("soft", [False, True], ids=["hard", "priced"])
def test_equals_clarabel_in_float64(soft):
    for name, error in agreement(np.float64, soft).items():
        assert error <= 1e-10, name


def degenerate(rng):
    """Problems at which constraint qualifications, ranks or smoothness fail: name -> problem."""
    base = example(rng, KINDS["all"], 4)
    zero = base.values.copy()
    zero[2] = 0.0
    twice = base.values.copy()
    twice[1] = 2.0 * twice[0]
    loose = base._replace(margin=np.zeros(4))
    flat = example(rng, KINDS["angles, ball"], 4, width=3)
    return {
        "equality": loose._replace(value=np.array([0, 0, 1, 2]), sign=np.array([1.0, -1, 1, 1])),
        "equalities": loose._replace(value=np.array([0, 0, 1, 1]), sign=np.array([1.0, -1, 1, -1])),
        "duplicate values": loose._replace(values=twice),
        "opposing values": loose._replace(values=twice, sign=np.array([1.0, -1, 1, 1])),
        "zero value": loose._replace(values=zero),
        "zero gradient": loose._replace(gradient=0 * base.gradient),
        "in the values' span": loose._replace(gradient=np.array([1.0, -2, 0.5, 0.3]) @ base.values),
        "more values than dimensions": flat,
        "many for one": loose._replace(value=np.array([0, 0, 0, 0]), sign=np.ones(4)),
    }


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
    monkeypatch.setattr(conic, "interior_point", lambda program, skip: zero_point(program))
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
    return conic_newton.Point(
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


def impossible(rng, distance):
    """Margins that a ball, a region, both or an angle exclude by ``distance``."""
    values = rng.standard_normal((3, 8))
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    values[1] = values[0] * 0.6 + 0.8 * np.linalg.qr(values[:2].T)[0][:, 1]
    gradient = rng.standard_normal(8)
    margin = np.array([1.0, -1e6, -1e6])
    problem = functools.partial(plain, gradient, values, margin=margin)
    # <e_0, e_1> = 0.6. In a ball of radius 1.2, u_0 >= 1 leaves u_1 at most ``reach``. An angle
    # cone around e_1 has no point with u_1 < 0.
    reach = 0.6 + 0.8 * np.sqrt(max(1.2**2 - 1, 0.0))
    region = np.eye(REGIONS, 3)
    return [
        problem(max_norm=1.0 - distance),
        problem(weights=region, radii=np.array([1.0 - distance, np.inf])),
        problem(margin=np.array([1.0, reach + distance, -1e6]), max_norm=1.2),
        problem(
            sign=np.array([1.0, -1.0, 1.0]),
            cosines=np.array([-1.0, 0.5, -1.0]),
            margin=np.array([distance, distance, -1e6]),
        ),
    ]


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


def anything(rng, values=4, width=6):
    """Ranks, sizes and limits at random."""
    rows = rng.standard_normal((values, width)) * 10.0 ** rng.uniform(-6, 6, (values, 1))
    copied = rng.integers(0, values, values)
    repeated = rng.random((values, 1)) < 0.3
    rows = np.where(repeated, rows[copied] * rng.choice([-1, 1e-3, 1], (values, 1)), rows)
    rows *= rng.random((values, 1)) < 0.9
    size = 10.0 ** rng.uniform(-6, 6)
    norms = np.linalg.norm(rows, axis=1)
    gradient = size * rng.standard_normal(width) * (rng.random() < 0.95)
    limits = plain(gradient, rows)
    return limits._replace(
        sign=rng.choice([-1.0, 1.0], values),
        margin=np.where(rng.random(values) < 0.6, 0, rng.standard_normal(values)) * size * norms,
        price=np.where(
            rng.random(values) < 0.7,
            np.inf,
            size / np.where(norms > 0, norms, 1.0) * 10.0 ** rng.uniform(-2, 3, values),
        ),
        max_norm=np.inf if rng.random() < 0.3 else size * 10.0 ** rng.uniform(-4, 1),
        cosines=np.where(rng.random(values) < 0.6, -1.0, rng.random(values) ** 0.1),
        weights=rng.random((REGIONS, values)) / np.where(norms > 0, norms, 1.0)[None, :],
        radii=np.where(rng.random(REGIONS) < 0.4, np.inf, size * rng.random(REGIONS) ** 3),
    )


def none_is_nan(seed):
    rng = np.random.default_rng(seed)
    problems = [anything(rng) for _ in range(AGENTS)]
    updates, solution = solve(problems)
    chex.assert_tree_all_finite(tuple(solution)[:6])
    assert not np.isnan(solution.residual).any()
    easy = np.array([np.where(np.isfinite(p.price), 0.0, p.margin).max() <= 0 for p in problems])
    assert solution.feasible[easy].all()
    verified = solution.feasible & (solution.residual <= 1e-5)
    for problem, update, good in zip(problems, updates, verified, strict=True):
        if good:
            assert violation(rounded(problem, np.float32), update) <= 1e-4
    return verified[easy].mean()


def test_random_programs_are_never_nan_and_never_infeasible_without_margins():
    assert np.mean([none_is_nan(seed) for seed in range(4)]) > 0.7


@pytest.mark.slow
def test_ten_thousand_random_programs_are_never_nan():
    for seed in range(4, 4 + 10_000 // AGENTS + 1):
        none_is_nan(seed)


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
            programs.append(conic._scaled(conic._Asked(**arguments), jnp.zeros(4))[0])
        programs = jax.tree.map(lambda *x: jnp.stack(x), *programs)
        point = jax.jit(jax.vmap(lambda p: interior_point(p, jnp.asarray(False))))(programs)
        residual = jax.vmap(conic_newton.residual)(programs, point)
    assert (np.asarray(residual) <= 1e-6).all()


def of_update(arguments, gradient, values):
    """u and all multipliers as functions of what they depend on smoothly."""
    arguments = dict(
        arguments,
        gram=values @ values.T,
        products=values @ gradient,
        squared_norm=gradient @ gradient,
    )
    solution = solve_conic_program(**arguments)
    update = solution.scale * gradient + solution.coefficients @ values
    return update, solution[2:6]


@jax.jit
@jax.vmap
def derivatives(primals, tangents, cotangent, fixed):
    """The value, its derivative along ``tangents``, and the transpose of that on ``cotangent``."""

    def function(smooth, gradient, values):
        return of_update(dict(smooth, **fixed), gradient, values)

    value, push = jax.linearize(function, *primals)
    return value, push(*tangents), jax.linear_transpose(push, *primals)(cotangent)


def smooth_parts(rng, problem):
    """Arguments split in those with derivatives and the others, and a random tangent."""
    count = len(problem.values)
    arguments = padded(problem, np.float64, count, count)
    fixed = {name: arguments[name] for name in ("value", "sign", "mask", "prices")}
    smooth = {name: arguments[name] for name in ("margin", "cosines", "weights", "radii")}
    smooth["max_norm"] = arguments["max_norm"]
    primals = (smooth, problem.gradient, problem.values)
    tangents = jax.tree.map(lambda x: np.asarray(rng.standard_normal(np.shape(x))), primals)
    for name, none in (("cosines", smooth["cosines"] < 0), ("radii", np.isinf(smooth["radii"]))):
        tangents[0][name] = np.where(none, 0.0, 0.1 * tangents[0][name])
    tangents[0]["weights"] = np.where(smooth["weights"] > 0, tangents[0]["weights"], 0.0)
    tangents[0]["max_norm"] = np.where(np.isinf(smooth["max_norm"]), 0.0, tangents[0]["max_norm"])
    return primals, tangents, fixed


def cotangent_of(rng, primals):
    smooth, gradient, _ = primals
    shapes = [smooth[name].shape for name in ("margin", "max_norm", "cosines", "radii")]
    update, *multipliers = (rng.standard_normal(shape) for shape in (gradient.shape, *shapes))
    return update, tuple(multipliers)


def shifted(primals, tangents, step):
    return jax.tree.map(
        lambda x, t: np.where(np.isinf(x), x, np.where(np.isinf(x), 0, x) + step * t),
        primals,
        tangents,
    )


def test_derivatives_are_those_of_finite_differences():
    rng = np.random.default_rng(4)
    problems = [example(rng, kinds, 4, soft=True) for kinds in KINDS.values()]
    # And one at the apex, where the derivative is zero.
    away = np.array([0.2, -1.0]) @ problems[0].values[:2]
    apex = plain(away, problems[0].values, cosines=np.array([-1.0, 0.9, -1.0, -1.0]))
    parts = [smooth_parts(rng, problem) for problem in (*problems, apex)]
    primals, tangents, fixed = jax.tree.map(lambda *x: np.stack(x), *parts)
    with jax.enable_x64(True):
        cotangent = cotangent_of(rng, primals)
        value, pushed, pulled = derivatives(primals, tangents, cotangent, fixed)
        above, below = (
            derivatives(shifted(primals, tangents, step), tangents, cotangent, fixed)[0]
            for step in (1e-6, -1e-6)
        )
    np.testing.assert_array_equal(value[0][-1], 0.0)
    np.testing.assert_array_equal(pushed[0][-1], 0.0)
    numeric = jax.tree.map(lambda a, b: (np.asarray(a) - np.asarray(b)) / 2e-6, above, below)
    for mine, theirs in zip(jax.tree.leaves(pushed), jax.tree.leaves(numeric), strict=True):
        mine, theirs = np.asarray(mine)[:-1], np.asarray(theirs)[:-1]
        assert np.abs(theirs).max() > 0.01
        np.testing.assert_allclose(mine, theirs, atol=1e-6, rtol=1e-6)

    def inner(left, right):
        pairs = zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
        return sum(np.sum(np.asarray(a) * np.asarray(b)) for a, b in pairs)

    assert inner(pushed, cotangent) == pytest.approx(inner(tangents, pulled), rel=1e-9)


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
