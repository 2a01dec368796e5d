"""Margins that exclude each other, lowered by as little as makes them compatible.

v* = argmin |v|^2 over unit rows, subject to {u : N u >= m - v} not being empty; it depends on rows
and margins, not on g. The proximal point iteration of the dual,

    lambda' = argmin_{l >= 0} 1/2 l^T G l - b^T l + delta/2 |l - lambda_0|^2,

has v = delta (lambda' - lambda_0) -> v*, and each lambda' solves the projection for the margins
m - v exactly (the method of multipliers on an infeasible program; A. Chiche and J. Gilbert, *How
the augmented Lagrangian algorithm can deal with an infeasible convex quadratic optimization
problem*, 2016). v* is a certificate as well: N^T v* = 0 and m^T v* = |v*|^2.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from vcca_jax.cones import solvers
from vcca_jax.cones.pivoting import active_set
from vcca_jax.cones.programs import Program
from vcca_jax.cones.solvers import matmul

# In each step v moves toward v* by delta / (delta + smallest eigenvalue).
PROXIMAL_STEPS = 20


class _Proximal(NamedTuple):
    multipliers: jax.Array
    violation: jax.Array
    imbalance: jax.Array  # max |G v| / max v, the smallest so far
    step: jax.Array
    done: jax.Array


def least_violation(program: Program, skip: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Multipliers [K] of the projection onto {N u >= m - v*}, v* [K], and the worst residual."""
    gram, deficit, caps, rounding, *_ = program
    dtype = gram.dtype
    epsilon = float(jnp.finfo(dtype).eps)
    tiny = float(jnp.finfo(dtype).tiny)
    hard = jnp.ones(deficit.shape, bool) if caps is None else jnp.isinf(caps)
    # Multipliers grow to v / delta, whose rounding is that of v; larger takes more steps.
    delta = jnp.where(hard, jnp.asarray(epsilon**0.5, dtype), 0.0)
    proximal = gram + jnp.diag(delta)

    def unfinished(state: _Proximal) -> jax.Array:
        return ~state.done & (state.step < PROXIMAL_STEPS)

    def advance(state: _Proximal) -> _Proximal:
        centre = state.multipliers
        value = active_set(proximal, deficit + delta * centre, caps, epsilon * rounding)
        violation = jnp.maximum(delta * (value - centre), 0.0)
        largest = jnp.maximum(jnp.max(violation), tiny)
        imbalance = jnp.max(jnp.abs(matmul(gram, violation))) / largest
        better = imbalance < state.imbalance
        return _Proximal(
            jnp.where(better, value, centre),
            jnp.where(better, violation, state.violation),
            jnp.where(better, imbalance, state.imbalance),
            state.step + 1,
            ~(imbalance < 0.5 * state.imbalance) | (imbalance <= 2.0 * epsilon),
        )

    zeros = jnp.zeros_like(deficit)
    start = _Proximal(zeros, zeros, jnp.asarray(jnp.inf, dtype), jnp.asarray(0), skip)
    state = lax.while_loop(unfinished, advance, start)
    violation = _polished(gram, deficit, state.violation)
    lowered = deficit - violation

    def finished(multipliers: jax.Array) -> tuple[jax.Array, jax.Array]:
        refined = solvers.refine(gram, lowered, multipliers, caps)
        return refined, solvers.natural_residual(gram, lowered, refined, caps)

    # From the iteration, whose multipliers still hold a multiple of v; or once more from zero.
    first, first_residual = finished(_without_ray(state.multipliers, violation))
    again = active_set(gram, lowered, caps, 4.0 * epsilon * rounding)
    second, second_residual = finished(again)
    better = second_residual < first_residual
    multipliers = jnp.where(better, second, first)
    residual = jnp.where(better, second_residual, first_residual) / rounding
    largest = jnp.maximum(jnp.max(violation), tiny)
    imbalance = jnp.max(jnp.abs(matmul(gram, violation))) / largest
    return multipliers, violation, jnp.maximum(residual, imbalance)


def _polished(gram: jax.Array, deficit: jax.Array, violation: jax.Array) -> jax.Array:
    """v* from its support S alone: the part of b_S in the null space of G_SS, without delta."""
    threshold = float(jnp.finfo(gram.dtype).eps) ** 0.5
    support = violation > threshold * jnp.max(violation)
    _, vectors, small = solvers.restricted_eigen(gram, support)
    null = small.astype(gram.dtype)
    exact = matmul(vectors, null * matmul(vectors.T, jnp.where(support, deficit, 0.0)))
    exact = jnp.maximum(jnp.where(support, exact, 0.0), 0.0)
    before, after = (
        jnp.max(jnp.abs(matmul(gram, value))) / jnp.max(value) for value in (violation, exact)
    )
    # Not where the support was wrong, or where rounding hides what depends on what.
    return jnp.where(after <= before + threshold, exact, violation)


def _without_ray(multipliers: jax.Array, violation: jax.Array) -> jax.Array:
    """lambda - c v with the largest c that keeps it >= 0: N^T lambda stays, since N^T v* = 0."""
    along = violation > 0.0
    multiple = jnp.min(jnp.where(along, multipliers / jnp.where(along, violation, 1.0), jnp.inf))
    multiple = jnp.where(jnp.isfinite(multiple), multiple, 0.0)
    return jnp.maximum(multipliers - multiple * violation, 0.0)
