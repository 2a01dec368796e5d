"""The derivative of the projection's dual: implicit, on the rows that bind.

With F the free rows and C those at their cap, G_FF lambda_F = b_F - G_FC tau_C, and therefore
d lambda_F = G_FF^-1 (d b - d G lambda - G d tau)_F. Loops are never differentiated.

Where margins were lowered by v*, the rows of F depend on each other: with Z a basis of the null
space of G_FF, v in its span, differentiating G lambda + v = b and G v = 0 gives

    d v = Z Z^T (d b - d G lambda) - G^+ d G v,    d lambda = G^+ (d b - d G lambda - d v).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from vcca_jax.cones import solvers
from vcca_jax.cones.solvers import matmul


def with_derivative(
    gram: jax.Array,
    deficit: jax.Array,
    caps: jax.Array | None,
    multipliers: jax.Array,
    violation: jax.Array,
    lowered: bool,
) -> tuple[jax.Array, jax.Array]:
    """Returns ``multipliers`` and ``violation`` as they are, with their derivative attached."""
    if lowered:
        return _of_lowered(gram, deficit, caps, multipliers, violation)
    return _of_multipliers(gram, deficit, caps, multipliers), violation


@jax.custom_jvp
def _of_multipliers(
    gram: jax.Array, deficit: jax.Array, caps: jax.Array | None, multipliers: jax.Array
) -> jax.Array:
    return multipliers


@_of_multipliers.defjvp
def _multipliers_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    gram, deficit, caps, _ = primals
    gram_dot, deficit_dot, caps_dot, _ = tangents
    multipliers = _of_multipliers(*primals)
    slack = matmul(gram, multipliers) - deficit
    free = (multipliers > 0) & solvers.free_rows(multipliers, slack, caps)
    fixed = _fixed(caps, caps_dot, multipliers, slack)
    solve = refined_solver(gram, free)
    right = deficit_dot - matmul(gram_dot, multipliers) - matmul(gram, fixed)
    return multipliers, solve(right) + fixed


@jax.custom_jvp
def _of_lowered(
    gram: jax.Array,
    deficit: jax.Array,
    caps: jax.Array | None,
    multipliers: jax.Array,
    violation: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    return multipliers, violation


@_of_lowered.defjvp
def _lowered_jvp(primals: Any, tangents: Any) -> tuple[Any, Any]:
    gram, deficit, caps, multipliers, violation = primals
    gram_dot, deficit_dot, caps_dot, _, _ = tangents
    slack = matmul(gram, multipliers) - deficit + violation
    free = (multipliers > 0) & solvers.free_rows(multipliers, slack, caps)
    # v can be above zero on a row from whose multiplier all of the ray was taken.
    free = free | (violation > 0)
    fixed = _fixed(caps, caps_dot, multipliers, slack)
    moved = deficit_dot - matmul(gram_dot, multipliers) - matmul(gram, fixed)
    moved = jnp.where(free, moved, 0.0)

    values, vectors, small = solvers.restricted_eigen(gram, free)
    inverse = jnp.where(small, 0.0, 1.0 / jnp.where(small, 1.0, values))

    def pseudo(right: jax.Array) -> jax.Array:
        return matmul(vectors, inverse * matmul(vectors.T, jnp.where(free, right, 0.0)))

    null = jnp.where(small, 1.0, 0.0)
    turned = matmul(vectors, null * matmul(vectors.T, moved))
    violation_dot = turned - pseudo(matmul(gram_dot, violation))
    lowered = jnp.any(violation > 0)
    violation_dot = jnp.where(lowered, violation_dot, 0.0)
    regular = refined_solver(gram, free)(moved)
    change = jnp.where(lowered, pseudo(moved - violation_dot), regular)
    return (multipliers, violation), (change + fixed, violation_dot)


def _fixed(
    caps: jax.Array | None, caps_dot: Any, multipliers: jax.Array, slack: jax.Array
) -> jax.Array:
    """What moves the rows at their cap: the cap itself."""
    if caps is None:
        return jnp.zeros_like(multipliers)
    at_cap = jnp.isfinite(caps) & (multipliers - slack >= caps)
    return jnp.where(at_cap, caps_dot, 0.0)


def refined_solver(gram: jax.Array, free: jax.Array) -> Callable[[jax.Array], jax.Array]:
    """The pseudo-inverse of G_FF on consistent right sides, as a linear map."""
    ridge = solvers.smallest_ridge(gram.dtype) * gram.shape[0] ** 0.5
    solve = solvers.restricted_solver(gram, free, ridge)

    def refined(right: jax.Array) -> jax.Array:
        result = solve(right)
        return result + solve(right - matmul(gram, result))

    return refined
