"""Permutation Shapley: marginal contributions along random orders of arrival."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from vcca_jax.arguments import check_count
from vcca_jax.contribution.coalitions import (
    BATCH_SIZE,
    evaluate,
    marginal,
    only_present,
    participation,
)
from vcca_jax.contribution.protocols import Sampled, Utility
from vcca_jax.contribution.sampling import check_draws, sampled


def permutation_shapley(
    utility: Utility,
    weights: jax.typing.ArrayLike,
    *,
    permutations: int,
    key: jax.Array | None = None,
    antithetic: bool = False,
    truncation: float | None = None,
    batch_size: int | None = None,
) -> jax.Array:
    """Estimate every agent's Shapley value over random orders of arrival.

    c_i = mean over orders of  v(those before i, and i) - v(those before i)

    Order m is drawn with `fold_in(key, m)` (antithetic: pair m), so neither the chunk nor the
    number of orders changes an earlier one: a longer run extends a shorter one.

    Cost: P (A - 1) + 2 utility evaluations for P orders, the two ends being shared. Holds:
    efficiency (to rounding, for any P: each order sums to v(w) - v(0)), null agent (exactly 0, in
    the sense of `leave_one_out`), linearity in the utility for a fixed key; symmetry in
    expectation. Unbiased. Does not hold: split-invariance.

    With `truncation`, the rest of an order gets 0 once those arrived are within a tolerance of
    everybody, |v(w) - v(S)| <= truncation |v(w) - v(0)|. A batch of orders advances together, agent
    by agent, and an order that ends makes room for the next, so that what is saved is saved for
    each order by itself as long as `batch_size` is well below P (a batch of all orders takes as
    many turns as its longest). The last agent's contribution costs nothing and is never cut.

    Truncation breaks: efficiency, by at most `truncation` |v(w) - v(0)| (what was cut is given to
    nobody; `efficiency_gap` tells it); unbiasedness, against those who are worth something to many
    others already there, where v saturates, and without bound where v is not monotone and passes
    v(w) on its way; linearity, but for scaling. It cannot be differentiated in reverse. Kept:
    null agent, exactly, and symmetry in expectation. At an equal number of evaluations
    `stratified_shapley` is nearer, without bias.

    Args:
        utility: A pure function of participation weights `[A]`.
        weights: The grand coalition's participation weights, `[A]` in [0, 1].
        permutations: P, how many orders, at least 1.
        key: A `jax.random.key`; required.
        antithetic: Follow each order by its reverse, which cancels errors linear in the position; P
            must then be even.
        truncation: A share of |v(w) - v(0)|, in [0, 1); None for none, and 0 where only exact
            equality ends an order, which changes nothing in a monotone game.
        batch_size: How many coalitions at once; None means 256.

    Returns:
        Credits `[A]`, in the unit of the utility.

    Raises:
        ValueError: If `key` is None, `permutations` is less than 1 (or odd with `antithetic`),
            `truncation` is outside [0, 1), `weights` is not `[A]` in [0, 1], `batch_size` is less
            than 1, or the utility does not return a scalar.

    Source: Castro, Gomez & Tejada, "Polynomial calculation of the Shapley value based on sampling",
    Computers & Operations Research 36 (2009); Mitchell et al., "Sampling permutations for Shapley
    value estimation", arXiv:2104.12199, for the reverse order; Ghorbani &
    Zou, "Data Shapley", arXiv:1904.02868, for truncation (with an absolute tolerance there).
    """
    weights = participation(weights)
    marginals, _ = _marginals(
        utility, weights, key, permutations, antithetic, truncation, batch_size
    )
    return only_present(jnp.mean(marginals, axis=0), weights)


def permutation_shapley_with_error(
    utility: Utility,
    weights: jax.typing.ArrayLike,
    *,
    permutations: int,
    key: jax.Array | None = None,
    antithetic: bool = False,
    truncation: float | None = None,
    batch_size: int | None = None,
) -> Sampled:
    """Estimate Shapley values as `permutation_shapley` does, with their standard errors.

    s_i = standard deviation over independent draws / sqrt(number of draws), where a draw is one
    order, or a pair of orders with `antithetic`. Of the bias of `truncation` it knows nothing.

    Args:
        utility: A pure function of participation weights `[A]`.
        weights: The grand coalition's participation weights, `[A]` in [0, 1].
        permutations: How many orders; at least 2 (4 with `antithetic`), or no error is known.
        key: A `jax.random.key`; required.
        antithetic: Follow each order by its reverse.
        truncation: As there.
        batch_size: How many coalitions at once; None means 256.

    Returns:
        `Sampled(credits, standard_error, evaluations)`; the credits are those of
        `permutation_shapley` with the same arguments. With `truncation`, the evaluations are those
        of the prefixes up to where each order ended, and the two ends: the same whatever the batch.

    Raises:
        ValueError: As `permutation_shapley`, and if there are fewer than two independent draws.
    """
    weights = participation(weights)
    orders = 2 if antithetic else 1
    check_count("permutations", permutations)
    if permutations < 2 * orders:
        raise ValueError(
            f"permutations is {permutations}; a standard error needs at least {2 * orders}"
        )
    marginals, asked = _marginals(
        utility, weights, key, permutations, antithetic, truncation, batch_size
    )
    return sampled(marginals, weights, draw_size=orders, evaluations=asked)


def _marginals(
    utility: Utility,
    weights: jax.Array,
    key: jax.Array | None,
    permutations: int,
    antithetic: bool,
    truncation: float | None,
    batch_size: int | None,
) -> tuple[jax.Array, int | jax.Array]:
    """Marginal contribution of every agent in every order, `[P, A]`, and the evaluations."""
    key = check_draws("permutations", permutations, key, antithetic)
    if not (truncation is None or isinstance(truncation, jax.core.Tracer) or 0 <= truncation < 1):
        raise ValueError(
            f"truncation is {truncation}; pass a share of v(w) - v(0) in [0, 1), or None"
        )
    agents = weights.shape[0]
    positions = _positions(key, agents, permutations, antithetic)
    inner = permutations * (agents - 1)
    # Of one or two agents nobody comes between the first and the last.
    if truncation is not None and agents > 2:
        return _truncated(utility, weights, positions, truncation, batch_size)

    def member(row: jax.Array) -> jax.Array:
        # The first rows are all proper prefixes, order by order; the last two the shared ends.
        order, length = jnp.divmod(row, max(agents - 1, 1))
        length = jnp.where(row < inner, length + 1, jnp.where(row == inner, 0, agents))
        return positions[jnp.where(row < inner, order, 0)] < length

    values = evaluate(utility, weights, jnp.arange(inner + 2), member, batch_size=batch_size)
    ends = jnp.broadcast_to(values[inner:], (permutations, 2))
    prefixes = values[:inner].reshape((permutations, agents - 1))
    path = jnp.concatenate([ends[:, :1], prefixes, ends[:, 1:]], axis=1)
    found = jnp.take_along_axis(marginal(path[:, 1:], path[:, :-1]), positions, axis=1)
    return found, inner + 2


class _Turn(NamedTuple):
    """Orders under way, one a slot `[n]`, and what is known so far."""

    order: jax.Array  # which; P for a slot that has none left
    length: jax.Array  # how many have arrived in the prefix that is asked for next
    left: jax.Array  # the utility of the prefix before it
    waiting: jax.Array  # the first order that no slot has taken yet
    ends: jax.Array  # v(0) and v(w), [2]
    asked: jax.Array  # evaluations; 0 before the first turn
    marginals: jax.Array  # [P, A]


def _truncated(
    utility: Utility,
    weights: jax.Array,
    positions: jax.Array,
    truncation: float,
    batch_size: int | None,
) -> tuple[jax.Array, jax.Array]:
    """Marginal contributions up to where each order ends, `[P, A]`, and the evaluations."""
    permutations, agents = positions.shape
    arrivals = jnp.argsort(positions, axis=1)
    # Two at least: the first turn asks for both ends.
    slots = max(2, min(permutations, BATCH_SIZE if batch_size is None else batch_size))

    def values_of(order: jax.Array, length: jax.Array) -> jax.Array:
        rows = jnp.stack([jnp.minimum(order, permutations - 1), length], axis=1)
        member = lambda row: positions[row[0]] < row[1]  # noqa: E731
        return evaluate(utility, weights, rows, member, batch_size=batch_size)

    def advanced(turn: _Turn) -> _Turn:
        # The ends are asked for by the same program as all else, or a null agent that comes first
        # or last would not cancel; slots beyond two ask for an end once more.
        first = turn.asked == 0
        end = agents * (jnp.arange(slots) % 2)
        values = values_of(turn.order, jnp.where(first, end, turn.length))
        started = turn._replace(
            ends=values[:2], left=jnp.broadcast_to(values[0], values.shape), asked=jnp.int32(2)
        )
        nobody, everybody = turn.ends
        limit = jnp.asarray(truncation, values.dtype) * jnp.abs(everybody - nobody)
        live, last = turn.order < permutations, turn.length == agents - 1
        # Writing to order P, which there is not, is dropped.
        marginals = turn.marginals.at[turn.order, arrivals[turn.order, turn.length - 1]].set(
            marginal(values, turn.left), mode="drop"
        )
        marginals = marginals.at[
            jnp.where(last, turn.order, permutations), arrivals[turn.order, agents - 1]
        ].set(marginal(jnp.broadcast_to(everybody, values.shape), values), mode="drop")
        ended = live & (last | (jnp.abs(everybody - values) <= limit))
        taken = turn.waiting + jnp.cumsum(ended, dtype=jnp.int32) - 1
        going_on = _Turn(
            order=jnp.where(ended, jnp.minimum(taken, permutations), turn.order),
            length=jnp.where(ended, 1, turn.length + 1),
            left=jnp.where(ended, nobody, values),
            waiting=turn.waiting + jnp.sum(ended, dtype=jnp.int32),
            ends=turn.ends,
            asked=turn.asked + jnp.sum(live, dtype=jnp.int32),
            marginals=marginals,
        )
        return jax.tree.map(lambda now, then: jnp.where(first, now, then), started, going_on)

    order = jnp.minimum(jnp.arange(slots, dtype=jnp.int32), permutations)
    length = jnp.ones(slots, jnp.int32)
    kind = jax.eval_shape(values_of, order, length).dtype
    final = jax.lax.while_loop(
        lambda turn: jnp.any(turn.order < permutations),
        advanced,
        _Turn(
            order=order,
            length=length,
            left=jnp.zeros(slots, kind),
            waiting=jnp.int32(slots),
            ends=jnp.zeros(2, kind),
            asked=jnp.int32(0),
            marginals=jnp.zeros((permutations, agents), kind),
        ),
    )
    return final.marginals, final.asked


def _positions(key: jax.Array, agents: int, permutations: int, antithetic: bool) -> jax.Array:
    """Position of every agent in every order, `[P, A]`."""
    draws = jnp.arange(permutations // 2 if antithetic else permutations)
    # Of a uniformly random order, the positions are a uniformly random order themselves.
    positions = jax.vmap(
        lambda draw: jax.random.permutation(jax.random.fold_in(key, draw), agents)
    )(draws)
    if antithetic:
        both = jnp.stack([positions, agents - 1 - positions], axis=1)
        return both.reshape((permutations, agents))
    return positions
