"""The numerical core of the projection beside its active set: what verifies, rescues and refines.

Everything here is for one agent, in *scaled units* that ``duals`` prepares: the Gram matrix
has a unit diagonal, the largest positive deficit is one, and rows that take no part are identity
rows with deficit -1. The problem is

    find 0 <= lambda <= cap with slack w = G lambda - b:  w >= 0 where lambda = 0,
    w <= 0 where lambda = cap, w = 0 between; that is, lambda = clip(lambda - w, 0, cap).

``pivoting`` solves it in a few moves. Where rounding or exact degeneracy stops it, a
primal-dual interior point (S. Mehrotra, 1992) takes over. Its ``while`` loop has a condition that
is false from the start for a solved problem, so that under ``vmap`` it costs nothing unless some
problem in the batch needs it.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

INTERIOR_STEPS = 30
REFINE_STEPS = 6


def matmul(left: jax.Array, right: jax.Array) -> jax.Array:
    """The product at full precision, which accelerators do not choose by themselves."""
    return jnp.matmul(left, right, precision=lax.Precision.HIGHEST)


def smallest_ridge(dtype: jnp.dtype) -> float:
    """What keeps the Cholesky factor of an exactly singular Gram matrix real, most of the time."""
    return 4.0 * float(jnp.finfo(dtype).eps)


def restricted_eigen(gram: jax.Array, active: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Eigenvalues [K] and -vectors of G_SS, one outside of S; and which are rounding's zeros.

    What depends on what, in the answer and in its derivative alike.
    """
    both = active[:, None] & active[None, :]
    identity = jnp.eye(gram.shape[0], dtype=gram.dtype)
    values, vectors = jnp.linalg.eigh(jnp.where(both, gram, identity))
    return values, vectors, values < float(jnp.finfo(gram.dtype).eps) ** 0.5


def restricted_solver(
    gram: jax.Array, active: jax.Array, ridge: jax.Array | float
) -> Callable[[jax.Array], jax.Array]:
    """Returns the map r -> (G_SS + ridge I)^-1 r_S, extended by zero, for S = ``active`` [K].

    The map is linear in r, and JAX can transpose it. Its matrix is factored once.
    """
    size = gram.shape[0]
    both = active[:, None] & active[None, :]
    diagonal = jnp.where(active, jnp.asarray(ridge, gram.dtype), jnp.ones((), gram.dtype))
    # The transpose is the same matrix in the order that LAPACK reads, at no cost.
    matrix = jnp.where(both, gram.T, 0.0) + jnp.eye(size, dtype=gram.dtype) * diagonal[:, None]
    factor = lax.linalg.cholesky(matrix, symmetrize_input=False)

    def solve(right: jax.Array) -> jax.Array:
        column = jnp.where(active, right, 0.0)[:, None]
        half = lax.linalg.triangular_solve(factor, column, left_side=True, lower=True)
        full = lax.linalg.triangular_solve(
            factor, half, left_side=True, lower=True, transpose_a=True
        )
        return full[:, 0]

    return solve


def natural_residual(
    gram: jax.Array, deficit: jax.Array, multipliers: jax.Array, caps: jax.Array | None = None
) -> jax.Array:
    """The worst |lambda - clip(lambda - slack, 0, cap)|: zero exactly at a solution."""
    slack = matmul(gram, multipliers) - deficit
    if caps is None:
        return jnp.max(jnp.abs(jnp.minimum(multipliers, slack)))
    # The middle of the three, which keeps the digits of a slack beside large multipliers.
    return jnp.max(jnp.abs(jnp.minimum(multipliers, jnp.maximum(slack, multipliers - caps))))


def free_rows(multipliers: jax.Array, slack: jax.Array, caps: jax.Array | None = None) -> jax.Array:
    """Which rows are between their bounds, bool [K]: 0 < lambda - slack < cap."""
    target = multipliers - slack
    return target > 0 if caps is None else (target > 0) & (target < caps)


class _Interior(NamedTuple):
    multipliers: jax.Array
    room: jax.Array  # cap - lambda, which would round to zero; one where there is no cap
    slack: jax.Array  # price of lambda >= 0
    excess: jax.Array  # price of lambda <= cap; zero where there is no cap
    step: jax.Array
    done: jax.Array


def interior_point(
    gram: jax.Array, deficit: jax.Array, skip: jax.Array, caps: jax.Array | None = None
) -> jax.Array:
    """Returns multipliers [K] close to a solution, by Mehrotra's predictor-corrector.

    Needs a problem that has a solution. A step that is not finite is not taken: the iterate
    before it is returned.
    """
    size = gram.shape[0]
    epsilon = float(jnp.finfo(gram.dtype).eps)
    ridge = smallest_ridge(gram.dtype) * size**0.5
    everything = jnp.ones((size,), bool)
    ones = jnp.ones_like(deficit)
    capped = jnp.zeros((size,), bool) if caps is None else jnp.isfinite(caps)
    ceiling = ones if caps is None else jnp.where(capped, caps, 1.0)
    pairs = size + jnp.sum(capped)

    def longest(value: jax.Array, change: jax.Array) -> jax.Array:
        ratio = jnp.where(change < 0, value / jnp.where(change < 0, -change, 1.0), jnp.inf)
        return jnp.min(ratio)

    def mean_gap(point: _Interior) -> jax.Array:
        return jnp.sum(point.multipliers * point.slack + point.room * point.excess) / pairs

    def unfinished(state: _Interior) -> jax.Array:
        return ~state.done & (state.step < INTERIOR_STEPS)

    def newton(state: _Interior) -> _Interior:
        value, room, slack, excess, _, _ = state
        error = matmul(gram, value) - deficit - slack + excess
        gap = mean_gap(state)
        lower, upper = slack / value, excess / room
        # The ridge makes Newton's step inexact, not its fixed point; without it the factor
        # breaks down once more rows bind than the rank of G.
        solve = restricted_solver(gram + jnp.diag(lower + upper), everything, ridge)

        def moved(
            length: jax.Array, change: jax.Array, low: jax.Array, high: jax.Array
        ) -> _Interior:
            return state._replace(
                multipliers=value + length * change,
                room=room - jnp.where(capped, length * change, 0.0),
                slack=slack + length * low,
                excess=excess + length * high,
            )

        def longest_step(change: jax.Array, low: jax.Array, high: jax.Array) -> jax.Array:
            return jnp.minimum(
                jnp.minimum(longest(value, change), longest(slack, low)),
                jnp.minimum(longest(room, jnp.where(capped, -change, 0.0)), longest(excess, high)),
            )

        predicted = solve(-error - slack + excess)
        low, high = -slack - lower * predicted, -excess + upper * predicted
        length = jnp.minimum(1.0, longest_step(predicted, low, high))
        reached = mean_gap(moved(length, predicted, low, high))
        centre = gap * (reached / gap) ** 3
        push = (centre - predicted * low) / value - slack
        pull = jnp.where(capped, (centre + predicted * high) / room - excess, 0.0)
        change = solve(push - pull - error)
        low, high = push - lower * change, pull + upper * change
        new = moved(jnp.minimum(1.0, 0.99 * longest_step(change, low, high)), change, low, high)
        inside = (new.multipliers > 0) & (new.slack > 0) & (new.room > 0)
        usable = jnp.all(inside & (~capped | (new.excess > 0))) & jnp.isfinite(
            jnp.sum(new.multipliers) + jnp.sum(new.slack) + jnp.sum(new.excess)
        )
        error = matmul(gram, new.multipliers) - deficit - new.slack + new.excess
        closed = (mean_gap(new) < epsilon**2) & (jnp.max(jnp.abs(error)) < 4.0 * epsilon)
        kept = jax.tree.map(lambda after, before: jnp.where(usable, after, before), new, state)
        return kept._replace(step=state.step + 1, done=~usable | closed)

    begun = jnp.minimum(1.0, jnp.where(capped, 0.5 * ceiling, 1.0))
    start = _Interior(
        begun,
        jnp.where(capped, ceiling - begun, 1.0),
        ones,
        jnp.where(capped, 1.0, 0.0),
        jnp.asarray(0),
        skip,
    )
    return lax.while_loop(unfinished, newton, start).multipliers


class _Refinement(NamedTuple):
    multipliers: jax.Array
    error: jax.Array  # largest |b - G lambda| on the binding rows
    ridge: jax.Array  # constant; kept here so that the factor is not hoisted out of the loop
    step: jax.Array
    done: jax.Array


def refine(
    gram: jax.Array, deficit: jax.Array, multipliers: jax.Array, caps: jax.Array | None = None
) -> jax.Array:
    """Iterative refinement on the free rows, for as long as the equations get better.

    It is the proximal point iteration of the ridge, so nearly dependent rows converge to the
    solution without it. A solution that is good to rounding is returned as it is, at no cost.
    """
    # Large enough for a factor that has no second attempt.
    ridge = smallest_ridge(gram.dtype) * gram.shape[0] ** 0.5
    slack = matmul(gram, multipliers) - deficit
    free = free_rows(multipliers, slack, caps)
    if caps is not None:
        # A cap that is nearly reached moves the free rows too.
        multipliers = jnp.where(free, multipliers, jnp.clip(multipliers - slack, 0.0, caps))

    def residual(value: jax.Array) -> jax.Array:
        return jnp.where(free, deficit - matmul(gram, value), 0.0)

    def unfinished(state: _Refinement) -> jax.Array:
        return ~state.done & (state.step < REFINE_STEPS)

    def correct(state: _Refinement) -> _Refinement:
        solve = restricted_solver(gram, free, state.ridge)
        value = jnp.clip(state.multipliers + solve(residual(state.multipliers)), 0.0, caps)
        error = jnp.max(jnp.abs(residual(value)))
        better = error < state.error  # False for NaN: a factor that broke down changes nothing
        return _Refinement(
            jnp.where(better, value, state.multipliers),
            jnp.where(better, error, state.error),
            state.ridge,
            state.step + 1,
            ~better | (error <= enough),
        )

    error = jnp.max(jnp.abs(residual(multipliers)))
    enough = refined_enough(multipliers)
    start = _Refinement(
        multipliers, error, jnp.asarray(ridge, gram.dtype), jnp.asarray(0), error <= enough
    )
    return lax.while_loop(unfinished, correct, start).multipliers


def refined_enough(multipliers: jax.Array) -> jax.Array:
    """The residual at which rounding of G lambda itself hides any further progress."""
    epsilon = float(jnp.finfo(multipliers.dtype).eps)
    return 2.0 * multipliers.shape[0] ** 0.5 * epsilon * jnp.maximum(1.0, jnp.max(multipliers))
