"""Projections onto admissible cones, for one agent; callers ``vmap``.

A profile's K half-spaces, stacked as rows N [K, D] with margins m [K], allow the updates
{u : N u >= m}. Screening by projection replaces an agent gradient g by

    u = argmin |u - g|^2  subject to  N u >= m,        u = g + N^T lambda,
    lambda = argmin_{lambda >= 0} 1/2 lambda^T G lambda - b^T lambda,   G = N N^T, b = m - N g,

which is our reading of "updates that remain admissible" in arXiv:2606.28217. The dual has K
unknowns: D is met only by G, by N g and by one combination of rows, and ``solve_cone_dual`` meets
it not at all, so that a caller may keep rows and gradients implicit.

With margins above zero the half-spaces may have no point in common. That is decided by the
homogenised dual (least distance programming; C. Lawson and R. Hanson, *Solving Least Squares
Problems*, 1974, ch. 23),

    y = argmin_{y >= 0} 1/2 y^T (G + b b^T) y - b^T y,    rho = 1 - b^T y = 1 / (1 + distance^2),

which always has a solution: lambda = y / rho, and rho = 0 exactly if no update is admissible, y
then being a certificate (N^T y = 0, m^T y > 0). The quotient |N^T y| / b^T y bounds what is
proven: every admissible update is at least b^T y / |N^T y| away from g.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from vcca_jax import cone_solvers as solvers
from vcca_jax.cone_solvers import matmul

# Steps in parameter space: one is enough unless rounding picked the wrong binding rows.
CORRECTION_STEPS = 3


class ConeSolution(NamedTuple):
    """The dual solution of one projection.

    Attributes:
        multipliers: lambda [K] >= 0, the prices of the rows; zero on masked and zero rows, and
            everywhere when infeasible. Not unique where rows depend on each other; N^T lambda is.
        feasible: bool scalar. False when no admissible update exists within reach, or when none
            could be verified: the update is then to be dropped.
        residual: scalar, the worst violation of the optimality conditions,
            max_k |min(lambda_k, (G lambda - b)_k)| for unit rows, relative to the largest
            deficit, margin or ``scale``; before any correction in parameter space. When
            infeasible, |N^T y| / (b^T y) of the certificate instead: small means proven
            infeasible, anything else that rounding left the question open. Infinite for a zero
            row with a margin above zero, and for input that is not finite.
    """

    multipliers: jax.Array
    feasible: jax.Array
    residual: jax.Array


class ConeProjection(NamedTuple):
    """A projected update [D] with the ``ConeSolution`` it came from."""

    update: jax.Array
    multipliers: jax.Array
    feasible: jax.Array
    residual: jax.Array


def solve_cone_dual(
    gram: ArrayLike,
    deficit: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    margins: ArrayLike | None = None,
    scale: ArrayLike | None = None,
) -> ConeSolution:
    """Solves min_{lambda >= 0} 1/2 lambda^T G lambda - b^T lambda from inner products alone.

    Rows are scaled to unit norm, so that gradients of very different sizes share a cone. Masked
    rows may hold NaN. A zero row (G_kk = 0) asks 0 >= m_k: with a deficit above zero nothing is
    admissible, otherwise it says nothing. The derivative (jvp and vjp, of any order) is that of
    the equations of the binding rows, S = {lambda > G lambda - b}; at points where a row is about
    to bind it is one of the one-sided derivatives.

    What counts as infeasible is what rounding can tell: no solution verified to sqrt(eps) of the
    largest deficit (3e-4 in float32, 1e-8 in float64), or none nearer than eps^(-3/8) times the
    largest of deficits, margins and ``scale`` (400 and 7e5).

    Args:
        gram: G = N N^T, [K, K].
        deficit: b = m - N g, [K]; above zero where g violates a row.
        mask: bool [K], True for rows that count. Default: all.
        margins: m [K] or a scalar, if known. Where no margin is above zero, u = 0 is admissible
            and ``feasible`` is True without asking rounding.
        scale: |g|, or any size that N g / |N_k| was computed at, if known. Deficits below
            rounding at that size are then taken for zero, so that a projected update projects
            onto itself.

    Returns:
        A ``ConeSolution``; finite for finite input.

    Raises:
        ValueError: if shapes do not fit.
    """
    gram, deficit = _floating(gram), _floating(deficit)
    dtype = jnp.promote_types(gram.dtype, deficit.dtype)
    gram, deficit = gram.astype(dtype), deficit.astype(dtype)
    if deficit.ndim != 1 or gram.shape != (deficit.shape[0], deficit.shape[0]):
        raise ValueError(
            f"gram {gram.shape} and deficit {deficit.shape} do not fit: pass one agent's [K, K] "
            "and [K], and use jax.vmap for more."
        )
    size = deficit.shape[0]
    mask = _mask(mask, size)
    if size == 0:
        return ConeSolution(deficit, jnp.asarray(True), jnp.zeros((), dtype))
    if margins is None:
        known, bounded = jnp.zeros((size,), dtype), jnp.asarray(False)
    else:
        known = jnp.where(mask, _margins(margins, size, dtype), 0.0)
        bounded = jnp.all(known <= 0)
    gram = jnp.where(mask[:, None] & mask[None, :], gram, 0.0)
    deficit = jnp.where(mask, deficit, -1.0)
    finite = jnp.all(jnp.isfinite(gram)) & jnp.all(jnp.isfinite(deficit))

    squared = jnp.diagonal(gram)
    present = mask & (squared >= jnp.finfo(dtype).tiny)
    impossible = jnp.any(mask & ~present & (deficit > 0)) & ~bounded
    # Any fixed scaling leaves lambda^T N as it is: its own derivative is no part of the answer.
    inverse = jax.lax.stop_gradient(jnp.where(present, jnp.where(present, squared, 1.0) ** -0.5, 1))
    both = present[:, None] & present[None, :]
    identity = jnp.eye(size, dtype=dtype)
    unit = jnp.where(both, gram * inverse[:, None] * inverse[None, :], identity)
    depth = jnp.where(present & finite, deficit * inverse, 0.0)
    largest = jax.lax.stop_gradient(jnp.max(depth))
    largest = jnp.where(largest > 0, largest, 1.0)
    magnitude = jnp.max(jnp.where(present, jnp.abs(known) * inverse, 0.0))
    if scale is not None:
        magnitude = jnp.maximum(magnitude, jnp.abs(jnp.asarray(scale, dtype)))
    rounding = jnp.maximum(1.0, jax.lax.stop_gradient(magnitude) / largest)
    depth = jnp.where(present & finite, depth / largest, -1.0)
    unit = jnp.where(finite, unit, identity)

    solution = _solve_scaled(
        jax.lax.stop_gradient(unit), jax.lax.stop_gradient(depth), rounding, bounded
    )
    feasible = solution.feasible & ~impossible & finite
    scaled = jnp.where(feasible, solution.multipliers, 0.0)
    scaled = _differentiable_multipliers(unit, depth, scaled)
    residual = jnp.where(impossible | ~finite, jnp.inf, solution.residual)
    return ConeSolution(scaled * (largest * inverse), feasible, residual)


def cone_projection(
    g: ArrayLike,
    normals: ArrayLike,
    margins: ArrayLike = 0.0,
    mask: ArrayLike | None = None,
) -> ConeProjection:
    """Projects g onto {u : N u >= m} and says how that went: ``project_onto_cone`` with a report.

    See ``project_onto_cone`` for arguments and guarantees. ``feasible`` and ``residual`` are
    those of ``ConeSolution``.
    """
    g, normals = _floating(g), _floating(normals)
    dtype = jnp.promote_types(g.dtype, normals.dtype)
    g, normals = g.astype(dtype), normals.astype(dtype)
    if g.ndim != 1 or normals.ndim != 2 or normals.shape[1] != g.shape[0]:
        raise ValueError(
            f"g {g.shape} and normals {normals.shape} do not fit: pass one agent's [D] and "
            "[K, D], and use jax.vmap for more."
        )
    size = normals.shape[0]
    mask = _mask(mask, size)
    margins = jnp.where(mask, _margins(margins, size, dtype), 0.0)
    normals = jnp.where(mask[:, None], normals, 0.0)
    if size == 0:
        return ConeProjection(g, margins, jnp.asarray(True), jnp.zeros((), dtype))

    # Unit rows before the Gram matrix: squares of small gradients would vanish in float32.
    peak = jnp.max(jnp.abs(normals), axis=1)
    safe = jnp.where(peak > 0, peak, 1.0)
    norm = safe * jnp.linalg.norm(normals / safe[:, None], axis=1)
    inverse = jax.lax.stop_gradient(jnp.where(peak > 0, 1.0 / norm, 1.0))
    rows, limits = normals * inverse[:, None], margins * inverse
    gram = matmul(rows, rows.T)
    solution = solve_cone_dual(
        gram,
        limits - matmul(rows, g),
        mask,
        margins=limits,
        scale=jnp.linalg.norm(jax.lax.stop_gradient(g)),
    )
    multipliers = solution.multipliers
    update = g + matmul(multipliers, rows)
    change, drift = _correct(
        *jax.lax.stop_gradient((gram, rows, limits, update, multipliers, solution.feasible))
    )
    update = jnp.where(solution.feasible, update + drift, 0.0)
    multipliers = jnp.maximum(multipliers + change, 0.0)
    return ConeProjection(update, multipliers * inverse, solution.feasible, solution.residual)


def project_onto_cone(
    g: ArrayLike,
    normals: ArrayLike,
    margins: ArrayLike = 0.0,
    mask: ArrayLike | None = None,
) -> tuple[jax.Array, jax.Array]:
    """The admissible update nearest to g: argmin |u - g|^2 subject to N u >= m.

    u = g + N^T lambda with lambda from ``solve_cone_dual``, followed by one correction that
    measures m - N u on the binding rows in parameter space, where nearly dependent rows lose
    fewer digits than in the Gram matrix.

    If no update is admissible (possible only with a margin above zero, or when rounding leaves
    it open) the update is dropped: u = 0 and lambda = 0. ``cone_projection`` returns the
    same two and the flag that tells a dropped update from one that is zero.

    Safe under jit, vmap, jvp and vjp. Relative error of u against a float64 quadratic program:
    about 1e-6 in float32 and 1e-12 in float64 for well-conditioned, duplicate, opposing and zero
    rows; it grows with the condition number of the unit rows (float32: below 1e-5 at 100 and
    1e-4 at 1000). g inside the cone is returned bit for bit.

    Args:
        g: the agent gradient [D].
        normals: rows N [K, D]; masked rows may hold NaN.
        margins: m, [K] or a scalar, in units of <u, N_k>.
        mask: bool [K], True for rows that count. Default: all.

    Returns:
        (u [D], lambda [K]), with lambda >= 0.

    Raises:
        ValueError: if shapes do not fit.
    """
    projection = cone_projection(g, normals, margins, mask)
    return projection.update, projection.multipliers


def _solve_scaled(
    gram: jax.Array, deficit: jax.Array, rounding: jax.Array, bounded: jax.Array
) -> ConeSolution:
    """``solve_cone_dual`` in scaled units; ``rounding`` is the size deficits were computed at."""
    if deficit.shape[0] == 1:
        return ConeSolution(
            jnp.maximum(deficit, 0.0), jnp.asarray(True), jnp.zeros((), deficit.dtype)
        )
    epsilon = float(jnp.finfo(gram.dtype).eps)
    tolerance = 4.0 * epsilon * rounding
    # An answer farther away than 1 / sqrt(threshold) largest deficits is as good as none.
    threshold = epsilon**0.75

    def verified(multipliers: jax.Array) -> tuple[jax.Array, jax.Array]:
        residual = solvers.natural_residual(gram, deficit, multipliers)
        allowed = 8.0 * tolerance * jnp.maximum(1.0, jnp.max(multipliers))
        near = jnp.dot(deficit, multipliers) * threshold <= rounding**2
        most = jnp.maximum(epsilon**0.5, 8.0 * tolerance)
        return residual, (residual <= jnp.minimum(allowed, most)) & (near | bounded)

    start = deficit > tolerance
    pivoted = solvers.block_pivoting(gram, deficit, tolerance, start, ~jnp.any(start))
    residual, solved = verified(pivoted)

    lift = jnp.where(bounded, 0.0, deficit)
    balance = (1.0 + lift**2) ** -0.5
    lifted = (gram + lift[:, None] * lift[None, :]) * balance[:, None] * balance[None, :]
    ray = balance * solvers.interior_point(lifted, balance * deficit, solved)
    gain = jnp.dot(deficit, ray)
    rho = jnp.where(bounded, 1.0, 1.0 - gain)
    inner = ray / jnp.maximum(rho, threshold)
    better = ~solved & (solvers.natural_residual(gram, deficit, inner) < residual)
    multipliers = solvers.refine(gram, deficit, jnp.where(better, inner, pivoted))
    residual, solved = verified(multipliers)

    feasible = solved | bounded
    length = jnp.sqrt(jnp.maximum(jnp.dot(ray, matmul(gram, ray)), 0.0))
    certificate = jnp.where(gain > 0, length / jnp.where(gain > 0, gain, 1.0), jnp.inf)
    return ConeSolution(
        jnp.where(feasible, multipliers, 0.0),
        feasible,
        jnp.where(feasible, residual / rounding, certificate),
    )


@jax.custom_jvp
def _differentiable_multipliers(
    gram: jax.Array, deficit: jax.Array, multipliers: jax.Array
) -> jax.Array:
    """Returns ``multipliers``, with the derivative of G_SS lambda_S = b_S attached."""
    return multipliers


@_differentiable_multipliers.defjvp
def _multipliers_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    gram, deficit, _ = primals
    gram_dot, deficit_dot, _ = tangents
    multipliers = _differentiable_multipliers(*primals)
    active = (multipliers > 0) & (multipliers > matmul(gram, multipliers) - deficit)
    solve = _refined_solver(gram, active)
    return multipliers, solve(deficit_dot - matmul(gram_dot, multipliers))


def _refined_solver(gram: jax.Array, active: jax.Array) -> Any:
    """The pseudo-inverse of G_SS on consistent right sides, as a linear map."""
    ridge = solvers.smallest_ridge(gram.dtype) * gram.shape[0] ** 0.5
    solve = solvers.restricted_solver(gram, active, ridge)

    def refined(right: jax.Array) -> jax.Array:
        result = solve(right)
        return result + solve(right - matmul(gram, result))

    return refined


class _Correction(NamedTuple):
    change: jax.Array  # [K] of the multipliers
    drift: jax.Array  # [D] of the update: its rows' combination
    step: jax.Array
    done: jax.Array


def _correct(
    gram: jax.Array,
    rows: jax.Array,
    limits: jax.Array,
    update: jax.Array,
    multipliers: jax.Array,
    feasible: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """What to add to the multipliers and the update so that S = {lambda > N u - m} holds exactly.

    One or a few active-set steps with residuals measured in parameter space; none where the
    residual is at rounding already, since a singular G_SS would only amplify noise.
    """
    epsilon = float(jnp.finfo(gram.dtype).eps)
    enough = 0.5 * epsilon * (jnp.linalg.norm(update) + jnp.max(jnp.abs(limits)))

    def unfinished(state: _Correction) -> jax.Array:
        return ~state.done & (state.step < CORRECTION_STEPS)

    def correct(state: _Correction) -> _Correction:
        value = multipliers + state.change
        missing = limits - matmul(rows, update + state.drift)
        active = value > -missing
        needed = jnp.max(jnp.where(active, jnp.abs(missing), 0.0)) > enough
        step = _refined_solver(gram, active)(missing)
        # Shortened, not clipped: multipliers of dependent rows may move far along G_SS x = 0,
        # which leaves the update alone only as long as they move together.
        falling = step < 0
        room = jnp.where(falling, value / jnp.where(falling, -step, 1.0), 1.0)
        step = jnp.minimum(1.0, jnp.min(room)) * step
        usable = needed & jnp.all(jnp.isfinite(step))
        step = jnp.where(usable, step, 0.0)
        return _Correction(
            jnp.maximum(value + step, 0.0) - multipliers,
            state.drift + matmul(step, rows),
            state.step + 1,
            ~usable,
        )

    start = _Correction(
        jnp.zeros_like(multipliers), jnp.zeros_like(update), jnp.asarray(0), ~feasible
    )
    state = jax.lax.while_loop(unfinished, correct, start)
    return state.change, state.drift


def _floating(value: ArrayLike) -> jax.Array:
    array = jnp.asarray(value)
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))


def _mask(mask: ArrayLike | None, size: int) -> jax.Array:
    if mask is None:
        return jnp.ones((size,), bool)
    mask = jnp.asarray(mask)
    if mask.shape != (size,):
        raise ValueError(f"mask {mask.shape} does not fit {size} rows: pass bool [{size}].")
    return mask.astype(bool)


def _margins(margins: ArrayLike, size: int, dtype: Any) -> jax.Array:
    margins = jnp.asarray(margins, dtype)
    if margins.ndim > 1 or (margins.ndim == 1 and margins.shape[0] != size):
        raise ValueError(
            f"margins {margins.shape} do not fit {size} rows: pass a scalar or [{size}]."
        )
    return jnp.broadcast_to(margins, (size,))
