"""The active-set solver of the projection: one row in or out at a time, on a tableau.

For one agent, in the scaled units of ``duals``; it solves

    min 1/2 lambda^T G lambda - b^T lambda   subject to   0 <= lambda <= cap,

whose slack is w = G lambda - b. Rows strictly between their bounds are *free*, and w = 0 there.
Starting from lambda = 0, the worst row is moved into the free set along the line on which every
free row keeps w = 0, as far as its own w reaches zero or some multiplier meets a bound; that one
then leaves the free set and the move goes on. The objective falls with every move, so no free set
comes back (D. Goldfarb and A. Idnani, *A numerically stable dual method for solving strictly
convex quadratic programs*, 1983, in the space of the Gram matrix; C. van de Panne and A. Whinston,
1964). The number of moves is about the number of rows that bind, not of rows that are violated.

What a move needs is a column of the symmetric tableau

    T = [[-G_FF^-1, G_FF^-1 G_FR], [G_RF G_FF^-1, G_RR - G_RF G_FF^-1 G_FR]]   (free F, the rest R),

which a sweep on one row keeps up to date by a rank-one change: nothing is factored, and under
``vmap`` every lane does the same arithmetic. Rounding gathers in T, so that the result is refined
once against G itself and must be verified by the caller.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from vcca_jax.cones.solvers import matmul

# Pivots below this many eps are taken for zero: the row depends on the free rows.
SMALLEST_PIVOT = 8.0


def most_moves(size: int) -> int:
    """Moves after which a problem is given up. Ordinary ones take less than ``size`` + 10."""
    return 4 * size + 8


class _Tableau(NamedTuple):
    table: jax.Array  # [K, K]: T + 2 on the diagonal of free rows, see ``move``
    free: jax.Array  # [K] bool
    multipliers: jax.Array  # [K]
    slack: jax.Array  # [K]
    step: jax.Array
    done: jax.Array


def active_set(
    gram: jax.Array, deficit: jax.Array, caps: jax.Array | None, tolerance: jax.Array
) -> jax.Array:
    """Returns multipliers [K] within their bounds that solve the problem, unless it is degenerate.

    Args:
        gram: G [K, K], with diagonal entries of about one.
        deficit: b [K], with a largest entry of about one.
        caps: upper bounds [K] above zero, or None for none.
        tolerance: a row counts as wrong beyond this times the largest multiplier (or one).
    """
    size = deficit.shape[0]
    order = jnp.arange(size)
    smallest = SMALLEST_PIVOT * float(jnp.finfo(gram.dtype).eps)
    moves = most_moves(size)

    def unfinished(state: _Tableau) -> jax.Array:
        return ~state.done & (state.step < moves)

    def move(state: _Tableau) -> _Tableau:
        free, value, slack = state.free, state.multipliers, state.slack
        # A row under way is strictly between its bounds without being free: it goes on first.
        wrong = jnp.where(value > 0, jnp.inf, -slack)
        if caps is not None:
            wrong = jnp.where(value >= caps, slack, wrong)
        wrong = jnp.where(free, -jnp.inf, wrong)
        entering = jnp.argmax(wrong)
        needed = wrong[entering] > tolerance * jnp.maximum(1.0, jnp.max(value))
        column, excess = state.table[entering], slack[entering]
        if caps is not None:  # downwards from a cap
            sign = jnp.where(excess > 0, -1.0, 1.0).astype(gram.dtype)
            column, excess = sign * column, sign * excess
            curvature = sign * column[entering]
        else:
            curvature = column[entering]

        # Along the line, free multipliers move by -column and the other slacks by +column.
        whole = jnp.where(
            curvature > smallest,
            jnp.maximum(-excess, 0) / jnp.where(curvature > smallest, curvature, 1),
            jnp.inf,
        )
        falls = free & (column > 0)
        room = jnp.where(falls, value / jnp.where(falls, column, 1), jnp.inf)
        if caps is not None:
            rises = free & (column < 0) & jnp.isfinite(caps)
            above = (caps - value) / jnp.where(rises, -column, 1)
            room = jnp.minimum(room, jnp.where(rises, above, jnp.inf))
        blocking = jnp.argmin(room)
        length = jnp.minimum(whole, room[blocking])
        enters = whole <= room[blocking]
        if caps is not None:
            own = jnp.where(sign > 0, caps[entering] - value[entering], value[entering])
            stops = own < length
            length = jnp.minimum(length, own)
        usable = needed & jnp.isfinite(length)
        length = jnp.where(usable, length, 0)
        pivot = jnp.where(enters, entering, blocking)
        at, leaves = order == pivot, (order == pivot) & ~enters

        moved = jnp.where(free, value - length * column, value)
        if caps is None:
            moved = jnp.where(order == entering, value + length, moved)
            moved = jnp.where(leaves, 0, jnp.maximum(moved, 0))
            exchanged = usable
        else:
            exchanged = usable & ~stops
            leaves = leaves & ~stops
            moved = jnp.where(order == entering, value + sign * length, moved)
            moved = jnp.where(leaves, jnp.where(column > 0, 0, caps), moved)
            # Not value + own, which rounding may leave beside the bound.
            bound = jnp.where(sign > 0, caps, 0)
            moved = jnp.where((order == entering) & stops, bound, moved)
            moved = jnp.clip(moved, 0, caps)
            at = at & ~stops
        drifted = jnp.where(free | at, 0, slack + length * column)

        # Sweeping a row in (pivot d, result -1 / d) or out is the same rank-one change
        # T - v v^T / d, v = T e_k - e_k, if free rows keep 2 added to their diagonal.
        row = state.table[pivot]
        size_of_pivot = row[pivot] - jnp.where(enters, 0, 2)
        direction = row - at
        table = (
            state.table
            - jnp.where(exchanged, 1 / size_of_pivot, 0) * direction[:, None] * direction[None, :]
        )
        return _Tableau(
            table,
            jnp.where(exchanged & at, enters, free),
            jnp.where(usable, moved, value),
            jnp.where(usable, drifted, slack),
            state.step + 1,
            ~usable,
        )

    start = _Tableau(
        gram,
        jnp.zeros((size,), bool),
        jnp.zeros_like(deficit),
        -deficit,
        jnp.asarray(0),
        ~jnp.any(deficit > tolerance),
    )
    state = lax.while_loop(unfinished, move, start)
    free, value = state.free, state.multipliers
    missing = jnp.where(free, deficit - matmul(gram, value), 0)
    # G_FF^-1 = 2 I - table on the free rows, never formed.
    change = 2 * missing - matmul(state.table, missing)
    return jnp.clip(value + jnp.where(free, change, 0), 0, caps)
