"""The numerical core of the projection: a linear complementarity problem in K unknowns.

Everything here is for one agent, in *scaled units* that ``cones`` prepares: the Gram matrix has
a unit diagonal, the largest positive deficit is one, and rows that take no part are identity
rows with deficit -1. The problem is

    find lambda >= 0 with slack = G lambda - b >= 0 and lambda * slack = 0.

Block principal pivoting (J. Judice and F. Pires, 1994; L. Portugal, J. Judice and L. Vicente,
1994) guesses which rows bind, solves for them, and moves every row whose sign is wrong. It
needs a handful of Cholesky factors whatever K is, but may cycle on degenerate data. A primal-dual
interior point (S. Mehrotra, 1992) takes over there. Both are ``while`` loops whose condition is
false from the start for a solved problem, so that under ``vmap`` the second one costs nothing
unless some problem in the batch needs it.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

PIVOT_STEPS = 12
INTERIOR_STEPS = 30
REFINE_STEPS = 6
# Full exchanges tolerated without progress before one row is moved at a time.
PATIENCE = 3


def matmul(left: jax.Array, right: jax.Array) -> jax.Array:
    """The product at full precision, which accelerators do not choose by themselves."""
    return jnp.matmul(left, right, precision=lax.Precision.HIGHEST)


def smallest_ridge(dtype: jnp.dtype) -> float:
    """What keeps the Cholesky factor of an exactly singular Gram matrix real, most of the time."""
    return 4.0 * float(jnp.finfo(dtype).eps)


def restricted_solver(
    gram: jax.Array, active: jax.Array, ridge: jax.Array | float
) -> Callable[[jax.Array], jax.Array]:
    """Returns the map r -> (G_SS + ridge I)^-1 r_S, extended by zero, for S = ``active`` [K].

    The map is linear in r, and JAX can transpose it. Its matrix is factored once.
    """
    size = gram.shape[0]
    both = active[:, None] & active[None, :]
    diagonal = jnp.where(active, jnp.asarray(ridge, gram.dtype), jnp.ones((), gram.dtype))
    matrix = jnp.where(both, gram, 0.0) + jnp.eye(size, dtype=gram.dtype) * diagonal[:, None]
    factor = lax.linalg.cholesky(matrix, symmetrize_input=False)

    def solve(right: jax.Array) -> jax.Array:
        column = jnp.where(active, right, 0.0)[:, None]
        half = lax.linalg.triangular_solve(factor, column, left_side=True, lower=True)
        full = lax.linalg.triangular_solve(
            factor, half, left_side=True, lower=True, transpose_a=True
        )
        return full[:, 0]

    return solve


def natural_residual(gram: jax.Array, deficit: jax.Array, multipliers: jax.Array) -> jax.Array:
    """The worst |min(lambda_k, slack_k)|: zero exactly at a solution, for lambda >= 0."""
    slack = matmul(gram, multipliers) - deficit
    return jnp.max(jnp.abs(jnp.minimum(multipliers, slack)))


class _Pivoting(NamedTuple):
    active: jax.Array  # [K] rows now taken to bind
    flip: jax.Array  # [K] rows to move before the next solve
    multipliers: jax.Array  # [K]
    ridge: jax.Array
    fewest: jax.Array  # smallest number of wrong signs so far
    patience: jax.Array
    step: jax.Array
    done: jax.Array


def block_pivoting(
    gram: jax.Array,
    deficit: jax.Array,
    tolerance: jax.Array,
    start: jax.Array,
    skip: jax.Array,
) -> jax.Array:
    """Returns multipliers [K] >= 0 that solve the problem unless the step cap was hit.

    Signs are judged to ``tolerance`` times the largest multiplier (or one). ``start`` [K] is the
    first guess of the binding rows; where ``skip`` holds nothing is computed and the result is
    zero. The caller must check the residual.
    """
    size = gram.shape[0]
    order = jnp.arange(size)

    def unfinished(state: _Pivoting) -> jax.Array:
        return ~state.done & (state.step < PIVOT_STEPS)

    def exchange(state: _Pivoting) -> _Pivoting:
        active = state.active ^ state.flip
        solve = restricted_solver(gram, active, state.ridge)
        multipliers = solve(deficit)
        multipliers = multipliers + solve(deficit - matmul(gram, multipliers))
        slack = matmul(gram, multipliers) - deficit
        failed = ~jnp.all(jnp.isfinite(multipliers))
        allowed = tolerance * jnp.maximum(1.0, jnp.max(jnp.abs(multipliers)))
        wrong = jnp.where(active, multipliers, slack) < -allowed
        count = jnp.sum(wrong)
        better = count < state.fewest
        patience = jnp.where(better, PATIENCE, state.patience - 1)
        last = order == jnp.max(jnp.where(wrong, order, -1))
        flip = jnp.where(patience >= 0, wrong, last)
        # A factor that broke down says nothing about signs: same rows again, larger ridge.
        return _Pivoting(
            active,
            flip & ~failed,
            jnp.where(failed, 0.0, multipliers),
            jnp.where(failed, 16.0 * state.ridge, state.ridge),
            jnp.where(failed, state.fewest, jnp.minimum(count, state.fewest)),
            jnp.where(failed, state.patience, patience),
            state.step + 1,
            ~failed & (count == 0),
        )

    state = lax.while_loop(
        unfinished,
        exchange,
        _Pivoting(
            start,
            jnp.zeros_like(start),
            jnp.zeros_like(deficit),
            jnp.asarray(smallest_ridge(gram.dtype), gram.dtype),
            jnp.asarray(size + 1),
            jnp.asarray(PATIENCE),
            jnp.asarray(0),
            skip,
        ),
    )
    return jnp.maximum(state.multipliers, 0.0)


class _Interior(NamedTuple):
    multipliers: jax.Array
    slack: jax.Array
    step: jax.Array
    done: jax.Array


def interior_point(gram: jax.Array, deficit: jax.Array, skip: jax.Array) -> jax.Array:
    """Returns multipliers [K] > 0 close to a solution, by Mehrotra's predictor-corrector.

    Needs a problem that has a solution. A step that is not finite is not taken: the iterate
    before it is returned.
    """
    size = gram.shape[0]
    epsilon = float(jnp.finfo(gram.dtype).eps)
    ridge = smallest_ridge(gram.dtype) * size**0.5
    everything = jnp.ones((size,), bool)

    def longest(value: jax.Array, change: jax.Array) -> jax.Array:
        ratio = jnp.where(change < 0, value / jnp.where(change < 0, -change, 1.0), jnp.inf)
        return jnp.min(ratio)

    def unfinished(state: _Interior) -> jax.Array:
        return ~state.done & (state.step < INTERIOR_STEPS)

    def newton(state: _Interior) -> _Interior:
        value, slack = state.multipliers, state.slack
        error = matmul(gram, value) - deficit - slack
        gap = jnp.mean(value * slack)
        ratio = slack / value
        # The ridge makes Newton's step inexact, not its fixed point; without it the factor
        # breaks down once more rows bind than the rank of G.
        solve = restricted_solver(gram + jnp.diag(ratio), everything, ridge)

        predicted = solve(-error - slack)
        predicted_slack = -slack - ratio * predicted
        length = jnp.minimum(
            1.0, jnp.minimum(longest(value, predicted), longest(slack, predicted_slack))
        )
        reached = jnp.mean((value + length * predicted) * (slack + length * predicted_slack))
        centre = gap * (reached / gap) ** 3
        push = (centre - predicted * predicted_slack) / value - slack
        change = solve(push - error)
        slack_change = push - ratio * change
        length = jnp.minimum(
            1.0, 0.99 * jnp.minimum(longest(value, change), longest(slack, slack_change))
        )
        new_value, new_slack = value + length * change, slack + length * slack_change
        usable = jnp.all((new_value > 0) & (new_slack > 0)) & jnp.isfinite(
            jnp.sum(new_value) + jnp.sum(new_slack)
        )
        return _Interior(
            jnp.where(usable, new_value, value),
            jnp.where(usable, new_slack, slack),
            state.step + 1,
            ~usable
            | (
                (jnp.mean(new_value * new_slack) < epsilon**2)
                & (jnp.max(jnp.abs(matmul(gram, new_value) - deficit - new_slack)) < 4.0 * epsilon)
            ),
        )

    ones = jnp.ones_like(deficit)
    return lax.while_loop(
        unfinished, newton, _Interior(ones, ones, jnp.asarray(0), skip)
    ).multipliers


class _Refinement(NamedTuple):
    multipliers: jax.Array
    error: jax.Array  # largest |b - G lambda| on the binding rows
    ridge: jax.Array  # constant; kept here so that the factor is not hoisted out of the loop
    step: jax.Array
    done: jax.Array


def refine(gram: jax.Array, deficit: jax.Array, multipliers: jax.Array) -> jax.Array:
    """Iterative refinement on S = {lambda > slack}, for as long as the equations get better.

    It is the proximal point iteration of the ridge, so nearly dependent rows converge to the
    solution without it. A solution that is good to rounding is returned as it is, at no cost.
    """
    epsilon = float(jnp.finfo(gram.dtype).eps)
    # Larger than in block_pivoting when K is, since this factor has no second attempt.
    ridge = smallest_ridge(gram.dtype) * gram.shape[0] ** 0.5
    active = multipliers > matmul(gram, multipliers) - deficit

    def residual(value: jax.Array) -> jax.Array:
        return jnp.where(active, deficit - matmul(gram, value), 0.0)

    def unfinished(state: _Refinement) -> jax.Array:
        return ~state.done & (state.step < REFINE_STEPS)

    def correct(state: _Refinement) -> _Refinement:
        solve = restricted_solver(gram, active, state.ridge)
        value = jnp.maximum(state.multipliers + solve(residual(state.multipliers)), 0.0)
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
    enough = 2.0 * epsilon * jnp.maximum(1.0, jnp.max(multipliers))
    start = _Refinement(
        multipliers, error, jnp.asarray(ridge, gram.dtype), jnp.asarray(0), error <= enough
    )
    return lax.while_loop(unfinished, correct, start).multipliers
