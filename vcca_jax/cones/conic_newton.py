"""Newton's method for conic programs: one agent, from inner products alone.

Everything here is in *scaled units* that ``conic`` prepares: vectors are combinations of n = M + 1
unit rows E (the value gradients, then the gradient g), x = E^T a, and met only through their
coordinates a [n] and the Gram matrix C = E E^T, so that <E, x> = C a and |x|^2 = a^T C a. The
larger of |g| and of its projection onto the half-spaces is one. The program is

    minimise   1/2 |x - g|^2 + price^T xi
    subject to N x >= m - xi, xi >= 0;   |x| <= T;   <x, e_q> >= c_q |x|;   |W_r E x| <= rho_r

Every curved constraint is convex and, but for its apex, smooth, so a quadratic program with those
constraints made linear and the curvature of the Lagrangian as its metric (sequential quadratic
programming; R. Wilson, 1963) is a Newton step on the optimality conditions that chooses the
binding constraints by itself. Its linear constraints contain the curved ones: where they exclude
each other, so do those. Each step is one dual solve of ``cones``. C may be singular.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from vcca_jax.cones.conic_programs import ConicPoint, ConicProgram
from vcca_jax.cones.duals import solve_cone_dual
from vcca_jax.cones.solvers import matmul

NEWTON_STEPS = 12
# Newton steps without progress before the best point so far is kept.
PATIENCE = 3


def length_of(program: ConicProgram, coordinates: jax.Array) -> jax.Array:
    """|x| of x = E^T a."""
    square = jnp.dot(coordinates, matmul(program.gram, coordinates))
    positive = square > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1.0)), 0.0)


class _Geometry(NamedTuple):
    products: jax.Array  # [n]
    length: jax.Array
    direction: jax.Array  # coordinates of x / |x|, [n]
    measured: jax.Array  # |W_r E x|, [R]
    outward: jax.Array  # coordinates of the gradient of |W_r E x|, [R, n]


def _geometry(program: ConicProgram, coordinates: jax.Array) -> _Geometry:
    products = matmul(program.gram, coordinates)
    length = length_of(program, coordinates)
    inside = program.weights * products[None, :-1]
    square = jnp.sum(inside**2, axis=1)
    some = square > 0
    measured = jnp.where(some, jnp.sqrt(jnp.where(some, square, 1.0)), 0.0)
    outward = program.weights * inside / jnp.where(some, measured, 1.0)[:, None]
    return _Geometry(
        products,
        length,
        coordinates / jnp.where(length > 0, length, 1.0),
        measured,
        jnp.pad(outward, ((0, 0), (0, 1))),
    )


def residual(program: ConicProgram, point: ConicPoint) -> jax.Array:
    """The worst violation of the optimality conditions: zero exactly at a solution.

    Constraints are measured relative to a ball smaller than one, so that what a small ball clips
    is as exact, for its size, as any other.
    """
    at = _geometry(program, point.coordinates)
    pull = jnp.dot(program.cosines, point.angles) + point.norm
    force = (
        program.target
        - point.coordinates
        + matmul(point.rows, program.rows)
        + jnp.append(point.angles, 0.0)
        - matmul(point.regions, at.outward)
    )
    # At the apex every vector no longer than one is a gradient of |x|.
    apex = jnp.maximum(length_of(program, force) - pull, 0.0)
    smooth = length_of(program, force - pull * at.direction)
    small = program.capped & (program.max_norm < 1.0) & (program.max_norm > 0)
    least = float(jnp.finfo(pull.dtype).eps) ** 0.5
    unit = jnp.where(small, jnp.maximum(program.max_norm, least), 1.0)

    def gap(multiplier: jax.Array, slack: jax.Array, most: jax.Array | float) -> jax.Array:
        # multiplier - clip(multiplier - slack, 0, most), also where the multiplier diverged.
        return jnp.minimum(multiplier, jnp.maximum(slack / unit, multiplier - most))

    gaps = [
        gap(point.rows, matmul(program.rows, at.products) - program.margins, program.prices),
        gap(point.angles, at.products[:-1] - program.cosines * at.length, jnp.inf),
        gap(point.norm, program.max_norm - at.length, jnp.inf)[None],
        gap(point.regions, program.radii - at.measured, jnp.inf),
    ]
    counted = [program.mask, program.angled, program.capped[None], program.bounded]
    worst = jnp.max(
        jnp.where(jnp.concatenate(counted), jnp.abs(jnp.concatenate(gaps)), 0.0), initial=0.0
    )
    # x (1 + pull / |x|) is the force: what an error of the force means for x.
    share = at.length / jnp.where(at.length > 0, (at.length + pull) * unit, 1.0)
    error = jnp.where(at.length > 0, smooth * share, apex)
    # Nor is x known better than its summands are.
    summands = (
        jnp.sum(point.rows)
        + jnp.sum(point.angles)
        + jnp.dot(point.regions, jnp.sum(jnp.abs(at.outward), axis=1))
    )
    hidden = jnp.maximum(jnp.sum(jnp.abs(point.coordinates)) / unit, summands * share)
    rounding = 0.5 * float(jnp.finfo(pull.dtype).eps) * hidden
    return jnp.maximum(jnp.maximum(worst, error), rounding)


def newton_step(program: ConicProgram, point: ConicPoint) -> tuple[ConicPoint, jax.Array]:
    """One quadratic program at ``point``: the next point, and whether one exists.

    At a solution, its derivative with respect to ``program`` is that of the solution: the
    derivative with respect to ``point`` vanishes there, as for every step of Newton's.
    """
    at = _geometry(program, point.coordinates)
    size, values = program.gram.shape[0], program.cosines.shape[0]
    bend = (jnp.dot(program.cosines, point.angles) + point.norm) / jnp.where(
        at.length > 0, at.length, 1.0
    )
    tight = jnp.where(
        program.bounded, point.regions / jnp.where(at.measured > 0, at.measured, 1.0), 0.0
    )
    squares = jnp.append(matmul(tight, program.weights**2), 0.0)
    curvature = (
        squares[:, None] * jnp.eye(size, dtype=squares.dtype)
        - matmul(at.outward.T * tight[None, :], at.outward)
        - bend * at.direction[:, None] * at.direction[None, :]
    )
    metric = matmul(curvature, program.gram) + (1.0 + bend) * jnp.eye(size, dtype=squares.dtype)

    rows = jnp.concatenate(
        [
            program.rows,
            jnp.eye(values, size, dtype=squares.dtype)
            - program.cosines[:, None] * at.direction[None, :],
            -at.direction[None, :],
            -at.outward,
        ]
    )
    none = jnp.zeros((values,), squares.dtype)
    margins = jnp.concatenate([program.margins, none, -program.max_norm[None], -program.radii])
    mask = jnp.concatenate([program.mask, program.angled, program.capped[None], program.bounded])
    hard = jnp.full((margins.shape[0] - program.prices.shape[0],), jnp.inf, squares.dtype)
    # (metric)^-1 acts on coordinates as the inverse Hessian does on vectors.
    moved = jnp.linalg.solve(
        metric,
        jnp.concatenate([(program.target - point.coordinates)[None, :], rows]).T,
    )
    free = point.coordinates + moved[:, 0]
    products = matmul(rows, program.gram)
    gram = matmul(products, moved[:, 1:])
    square = jnp.dot(matmul(program.gram, free), matmul(metric, free))
    solution = solve_cone_dual(
        0.5 * (gram + gram.T),
        margins - matmul(products, free),
        mask,
        margins=margins,
        scale=jnp.sqrt(lax.stop_gradient(jnp.maximum(square, 0.0))),
        prices=jnp.concatenate([program.prices, hard]),
    )
    multipliers = solution.multipliers
    first, second = program.margins.shape[0], program.margins.shape[0] + values
    return (
        ConicPoint(
            free + matmul(moved[:, 1:], multipliers),
            multipliers[:first],
            multipliers[first:second],
            multipliers[second],
            multipliers[second + 1 :],
        ),
        solution.feasible,
    )


class _Newton(NamedTuple):
    point: ConicPoint
    best: ConicPoint
    residual: jax.Array  # of the best
    patience: jax.Array
    step: jax.Array
    done: jax.Array


def newton(
    program: ConicProgram, start: ConicPoint, skip: jax.Array
) -> tuple[ConicPoint, jax.Array]:
    """The best point of a few Newton steps from ``start``, which counts, and its residual."""
    tolerance = 2.0 * float(jnp.finfo(program.gram.dtype).eps)

    def unfinished(state: _Newton) -> jax.Array:
        return ~state.done & (state.step < NEWTON_STEPS)

    def move(state: _Newton) -> _Newton:
        point, exists = newton_step(program, state.point)
        # Along x, the step is a difference of numbers of size one; a small ball is not.
        length = length_of(program, point.coordinates)
        onto = jnp.where((point.norm > 0) & (length > 0), program.max_norm / length, 1.0)
        point = point._replace(coordinates=point.coordinates * onto)
        error = residual(program, point)
        better = error < state.residual  # False for NaN
        patience = jnp.where(better, PATIENCE, state.patience - 1)
        best = jnp.minimum(error, state.residual)
        return _Newton(
            point,
            jax.tree.map(lambda new, old: jnp.where(better, new, old), point, state.best),
            jnp.where(better, error, state.residual),
            patience,
            state.step + 1,
            ~exists
            | ~jnp.isfinite(error)
            | (best <= tolerance)
            | (patience < 0)
            # At rounding's size: nothing is gained by going on.
            | (~better & (best <= 16.0 * tolerance)),
        )

    error = residual(program, start)
    error = jnp.where(jnp.isfinite(error), error, jnp.inf)
    state = lax.while_loop(
        unfinished,
        move,
        _Newton(start, start, error, jnp.asarray(PATIENCE), jnp.asarray(0), skip),
    )
    return state.best, state.residual
