"""Conic programs to solve, and float64 oracles to compare with, for the tests of ``conic``."""

import functools
from typing import NamedTuple
from unittest import mock

import clarabel
import jax
import numpy as np
from scipy import sparse

from vcca_jax.cones import conic
from vcca_jax.cones.conic import solve_conic_program
from vcca_jax.cones.duals import solve_cone_dual

AGENTS, VALUES, ROWS, REGIONS = 48, 16, 16, 2  # the padded shape: one trace for all tests
SMALL = 3  # values of the problems that free tests draw
KINDS = {
    "half-spaces": (),
    "margins": ("margins",),
    "ball": ("ball",),
    "ball, margins": ("ball", "margins"),
    "angles": ("angles",),
    "angles, margins": ("angles", "margins"),
    "regions": ("regions",),
    "regions, margins": ("regions", "margins"),
    "angles, ball": ("angles", "ball"),
    "regions, ball": ("regions", "ball"),
    "angles, regions": ("angles", "regions"),
    "all": ("angles", "ball", "regions", "margins"),
}


class Problem(NamedTuple):
    """One agent's program in parameter space; limits that are not there are infinite, or -1."""

    gradient: np.ndarray  # [D]
    values: np.ndarray  # [M, D]
    value: np.ndarray  # [K]
    sign: np.ndarray  # [K]
    margin: np.ndarray  # [K]
    price: np.ndarray  # [K]
    max_norm: float
    cosines: np.ndarray  # [M]
    weights: np.ndarray  # [R, M]
    radii: np.ndarray  # [R]


def example(rng, kinds, values=SMALL, width=None, soft=False):
    """A problem all of whose constraints may bind, around an update known to be admissible."""
    width = width or 2 * values + 6
    rows = rng.standard_normal((values, width)) * np.exp(rng.uniform(-1, 1, (values, 1)))
    norms = np.linalg.norm(rows, axis=1)
    gradient = rng.standard_normal(width)
    inside = 0.5 * rng.standard_normal(width)
    cosines = np.full(values, -1.0)
    if "angles" in kinds:
        chosen = rng.permutation(values)[: max(1, min(3, values // 2))]
        inside = 0.3 * inside + (rows[chosen] / norms[chosen, None]).sum(axis=0)
        reached = rows[chosen] @ inside / norms[chosen] / np.linalg.norm(inside)
        cosines[chosen] = np.maximum(0.0, reached - rng.uniform(0.02, 0.3, len(chosen)))
    sign, margin = np.where(rows @ inside >= 0, 1.0, -1.0), np.zeros(values)
    if "margins" in kinds:
        sign = rng.choice([-1.0, 1.0], values)
        margin = sign * (rows @ inside) - 0.3 * rng.exponential(size=values)
    max_norm = np.inf
    if "ball" in kinds:
        max_norm = 1.05 * np.linalg.norm(inside)
        if "margins" not in kinds:
            max_norm = rng.uniform(0.1, 0.5) * np.sqrt(width)
    weights, radii = np.zeros((REGIONS, values)), np.full(REGIONS, np.inf)
    if "regions" in kinds:
        weights = rng.uniform(0, 1, (REGIONS, values)) * (rng.random((REGIONS, values)) < 0.7)
        reached = np.linalg.norm(weights * (rows @ inside), axis=1)
        radii = np.where(reached > 0, (1.1 if "margins" in kinds else 0.5) * reached, 1.0)
    price = np.full(values, np.inf)
    if soft:
        price = np.where(rng.random(values) < 0.5, 0.3 * rng.exponential(size=values), np.inf)
    return Problem(
        gradient, rows, np.arange(values), sign, margin, price, max_norm, cosines, weights, radii
    )


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


def contradictions(dtype):
    """Opposing copies of one row whose margins exclude each other, by a tenth and more of |g|.

    In ``dtype`` the half-spaces' dual takes their copies' difference, which is rounding, for a row:
    its multipliers of 1 / eps solve it, and add up to rounding.
    """
    found = {
        np.float32: [
            (
                [-0.9, -0.9, -0.4, 0.4, 0.0],
                [
                    [-0.25, -0.1, 0.9, -0.3, -0.2],
                    [-0.75, -0.3, 2.7, -0.9, -0.6],
                    [0.85, -0.7, 0.4, 0.0, -0.5],
                    [-0.65, -0.4, -0.5, 0.5, 0.3],
                ],
                [1.0, -1.0, 1.0, 1.0],
                0.1,
            ),
            (
                [-0.9, -0.5, 0.8, -0.6, -0.1],
                [
                    [-0.25, -0.2, -0.4, 0.5, 0.8],
                    [0.75, 0.6, 1.2, -1.5, -2.4],
                    [-0.15, 0.9, 0.0, 0.5, 0.2],
                    [0.45, -0.2, 0.0, 0.3, -0.2],
                ],
                [1.0, 1.0, 1.0, -1.0],
                0.3,
            ),
            (
                [-0.9, -0.4, -0.4, -0.9, -0.9],
                [
                    [-0.35, -0.1, -0.2, -0.1, 0.8],
                    [0.00035, 0.0001, 0.0002, 0.0001, -0.0008],
                    [0.45, -0.8, 0.5, 0.3, 0.5],
                    [-0.85, 0.1, -0.6, 0.6, -0.3],
                ],
                [1.0, 1.0, 1.0, 1.0],
                0.3,
            ),
        ],
        np.float64: [
            (
                [-0.9, -0.6, -0.7, 0.0, -0.7],
                [
                    [-0.35, -0.4, -0.9, -0.4, 0.2],
                    [-0.35, -0.4, -0.9, -0.4, 0.2],
                    [0.85, -0.9, -0.7, 0.2, -0.2],
                    [-0.75, 0.6, 0.4, 0.5, 0.1],
                ],
                [1.0, -1.0, 1.0, -1.0],
                0.1,
            ),
            (
                [-0.6, -0.9, 0.1, -0.2, 0.1],
                [
                    [0.55, -0.8, -0.1, 0.9, 0.2],
                    [0.385, -0.56, -0.07, 0.63, 0.14],
                    [-0.85, -0.2, -0.7, 0.8, 0.4],
                    [0.65, -0.6, -0.7, -0.1, -0.6],
                ],
                [1.0, -1.0, -1.0, -1.0],
                0.3,
            ),
        ],
    }
    return [
        plain(gradient, rows, sign=sign, margin=[margin, 0.0, 0.0, 0.0], max_norm=4.0)
        for gradient, rows, sign, margin in found[dtype]
    ]


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


def rounded(problem, dtype):
    """The problem whose numbers are exact in ``dtype``, in float64."""
    return jax.tree.map(
        lambda x: x if np.asarray(x).dtype.kind == "i" else np.asarray(x, dtype).astype(float),
        problem,
    )


def padded(problem, dtype, values=VALUES, rows=ROWS):
    """Inner products in the corner of [values] and [rows]: zero values, NaN in masked rows."""
    more = (0, values - len(problem.values))
    lines = (0, rows - len(problem.value))
    gram = problem.values @ problem.values.T
    arguments = {
        "gram": np.pad(gram, (more, more)),
        "products": np.pad(problem.values @ problem.gradient, more),
        "squared_norm": problem.gradient @ problem.gradient,
        "value": np.pad(problem.value, lines),
        "sign": np.pad(problem.sign, lines, constant_values=1.0),
        "margin": np.pad(problem.margin, lines, constant_values=np.nan),
        "mask": np.arange(rows) < len(problem.value),
        "prices": np.pad(problem.price, lines, constant_values=np.nan),
        "max_norm": problem.max_norm,
        "cosines": np.pad(problem.cosines, more, constant_values=-1.0),
        "weights": np.pad(problem.weights, ((0, 0), more)),
        "radii": problem.radii,
    }
    kept = {"value": np.int32, "mask": bool}
    return {name: np.asarray(x, kept.get(name, dtype)) for name, x in arguments.items()}


@jax.jit
@jax.vmap
def solve_batch(arguments):
    """The solution, and the one that ``conic`` had from the half-spaces alone."""
    seen = []

    def recorded(*args, **options):
        seen.append(solve_cone_dual(*args, **options))
        return seen[-1]

    with mock.patch.object(conic, "solve_cone_dual", recorded):
        solution = solve_conic_program(**arguments)
    (half,) = seen
    return solution, half


def solve_both(problems, dtype=np.float32):
    """Solves up to AGENTS problems in the one shape: what ``solve_batch`` returns."""
    arguments = [padded(problem, dtype) for problem in problems]
    arguments += arguments[:1] * (AGENTS - len(arguments))
    with jax.enable_x64(dtype == np.float64):
        pair = solve_batch(jax.tree.map(lambda *x: np.stack(x), *arguments))
    assert pair[0].scale.dtype == dtype
    return jax.tree.map(lambda x: np.asarray(x)[: len(problems)], pair)


def solve(problems, dtype=np.float32):
    """Solves up to AGENTS problems in the one shape; updates [problem][D] in float64, solution."""
    problems = [rounded(problem, dtype) for problem in problems]
    solution, _ = solve_both(problems, dtype)
    return [update_of(p, i, solution) for i, p in enumerate(problems)], solution


def update_of(problem, index, solution):
    coefficients = solution.coefficients[index][: len(problem.values)].astype(float)
    return float(solution.scale[index]) * problem.gradient + coefficients @ problem.values


class _Form(NamedTuple):
    """min 1/2 |u - g|^2 + price^T xi over (u, xi), and the cones of right - left (u, xi)."""

    left: np.ndarray
    right: np.ndarray
    cones: list
    soft: np.ndarray  # the rows with a slack


def standard_form(problem):
    """Clarabel's: non-negative slacks of unit rows and of xi, then one cone a curved limit."""
    values, width = problem.values, len(problem.gradient)
    norms = np.linalg.norm(values, axis=1)
    safe = np.where(norms > 0, norms, 1.0)
    soft = np.flatnonzero(np.isfinite(problem.price))
    slack = np.eye(len(problem.value))[:, soft]
    lines = problem.sign[:, None] * values[problem.value] / safe[problem.value, None]
    left = [np.hstack([-lines, -slack]), -np.eye(width + len(soft))[width:]]
    right = [-problem.margin / safe[problem.value], np.zeros(len(soft))]
    cones = [clarabel.NonnegativeConeT(len(lines) + len(soft))]

    def cone(head, limit, tail):
        block = -np.vstack([head, tail])
        left.append(np.hstack([block, np.zeros((len(block), len(soft)))]))
        right.append(np.append(limit, np.zeros(len(tail))))
        cones.append(clarabel.SecondOrderConeT(len(block)))

    if np.isfinite(problem.max_norm):
        cone(np.zeros(width), problem.max_norm, np.eye(width))
    for cosine, row, norm in zip(problem.cosines, values, norms, strict=True):
        if cosine >= 0 and norm > 0:
            cone(row / norm, 0.0, cosine * np.eye(width))
    for weight, radius in zip(problem.weights, problem.radii, strict=True):
        size = (weight * norms).max()
        if np.isfinite(radius) and size > 0:
            cone(np.zeros(width), radius / size, (weight / size)[:, None] * values)
    return _Form(np.vstack(left), np.concatenate(right), cones, soft)


def clarabel_solution(problem):
    """Clarabel's answer to as many digits as it finds: (u, its result, the form)."""
    form = standard_form(problem)
    width, count = len(problem.gradient), len(form.soft)
    norms = np.linalg.norm(problem.values, axis=1)[problem.value]
    settings = clarabel.DefaultSettings()
    settings.verbose = False
    settings.max_iter = 200
    for name in ("tol_gap_abs", "tol_gap_rel", "tol_feas"):
        setattr(settings, name, 1e-12)
    result = clarabel.DefaultSolver(
        sparse.diags(np.append(np.ones(width), np.zeros(count))).tocsc(),
        np.append(-problem.gradient, problem.price[form.soft] * norms[form.soft]),
        sparse.csc_matrix(form.left),
        form.right,
        form.cones,
        settings,
    ).solve()
    return np.array(result.x)[:width], result, form


def violation(problem, update):
    """The worst of what u breaks, for unit rows, relative to |g| + |u|; prices are not asked."""
    norms = np.linalg.norm(problem.values, axis=1)
    safe = np.where(norms > 0, norms, 1.0)
    products, length = problem.values @ update / safe, np.linalg.norm(update)
    hard = ~np.isfinite(problem.price)
    parts = [0.0, length - problem.max_norm]
    short = problem.margin / safe[problem.value] - problem.sign * products[problem.value]
    parts += list(short[hard])
    parts += list((problem.cosines * length - products)[(problem.cosines >= 0) & (norms > 0)])
    for weight, radius in zip(problem.weights, problem.radii, strict=True):
        size = (weight * norms).max()
        if size > 0:
            parts.append(np.linalg.norm(weight / size * safe * products) - radius / size)
    return max(parts) / (np.linalg.norm(problem.gradient) + length or 1.0)


def _bound(problem, form, result):
    """What binds, [(u -> (f, gradient, Hessian), multiplier)], and the force of rows at a price."""
    dual, slack = np.array(result.z), np.array(result.s)
    width, right = len(problem.gradient), form.right
    left = form.left[:, :width]
    norms = np.linalg.norm(problem.values, axis=1)[problem.value]
    lines = form.cones[0].dim - len(form.soft)
    found, forces = [], np.zeros(width)
    for k in range(lines):
        place = np.flatnonzero(form.soft == k)
        if len(place) and slack[lines + place[0]] > dual[lines + place[0]]:
            # At its price, which is known better than the dual: a constant force.
            forces -= problem.price[k] * norms[k] * left[k]
        elif dual[k] > slack[k]:
            found.append((functools.partial(_line, -left[k], -right[k]), dual[k]))
    start = form.cones[0].dim
    for cone in form.cones[1:]:
        rows = slice(start, start + cone.dim)
        start += cone.dim
        if dual[rows][0] > slack[rows][0] - np.linalg.norm(slack[rows][1:]):
            found.append((functools.partial(_curve, -left[rows], right[rows]), dual[rows][0]))
    return found, forces


def _line(row, limit, u):
    return row @ u - limit, row, 0.0


def _curve(rows, right, u):
    head, tail = rows[0] @ u + right[0], rows[1:] @ u
    length = np.linalg.norm(tail) or np.nan
    unit = tail / length
    hessian = (rows[1:].T @ rows[1:] - np.outer(unit @ rows[1:], unit @ rows[1:])) / length
    return head - length, rows[0] - unit @ rows[1:], -hessian


def exact_update(problem):
    """Clarabel's answer made exact, or None where it cannot be said to be.

    An interior point knows u to about the square root of its gap. What binds in its answer is
    solved for, in parameter space, by Newton's method; the result counts only if it meets every
    optimality condition to 1e-12.
    """
    update, result, form = clarabel_solution(problem)
    width = len(update)
    if str(result.status) not in ("Solved", "AlmostSolved"):
        return None
    if np.linalg.norm(update) <= 1e-8 * np.linalg.norm(problem.gradient):
        return np.zeros(width)
    found, forces = _bound(problem, form, result)
    multipliers = np.array([multiplier for _, multiplier in found])
    for _ in range(12):
        parts = [function(update) for function, _ in found]
        normals = np.array([normal for _, normal, _ in parts]).reshape(-1, width)
        error = np.concatenate(
            [
                update - problem.gradient - forces - multipliers @ normals,
                [value for value, _, _ in parts],
            ]
        )
        if np.abs(error).max() <= 1e-13:
            break
        if not np.isfinite(error).all():
            return None
        bend = sum((m * h for m, (_, _, h) in zip(multipliers, parts, strict=True)), 0.0)
        matrix = np.block(
            [
                [np.eye(width) - bend, -normals.T],
                [normals, np.zeros((len(found), len(found)))],
            ]
        )
        step = np.linalg.lstsq(matrix, -error, rcond=None)[0]
        update, multipliers = update + step[:width], multipliers + step[width:]
    optimal = np.abs(error).max() <= 1e-12 and (multipliers >= -1e-9).all()
    return update if optimal and violation(problem, update) <= 1e-11 else None
