"""Coalitions of agents, and the utility of many of them within bounded memory.

A coalition S of the grand coalition `weights` is `weights * indicator(S)`. Every estimator asks for
its coalitions in one call of `evaluate`, so that all of them go through the same program: a value
that does not depend on an agent then is the same bit for bit with and without that agent, and
`marginal` makes their difference exactly 0.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vcca_jax.arguments import check_count
from vcca_jax.contribution.protocols import Utility

BATCH_SIZE = 256
"""How many coalitions are evaluated at once when `batch_size` is None."""

MAX_ENUMERATED_AGENTS = 20
"""The largest agent axis whose coalitions are enumerated: a million utilities."""


def participation(weights: jax.typing.ArrayLike) -> jax.Array:
    """Return participation weights as a floating array `[A]`, checked.

    Args:
        weights: `[A]`, 1 for a present agent, 0 for an absent one or for padding, or anything
            between; booleans and integers are converted to the default floating type.

    Raises:
        ValueError: If `weights` is not one-dimensional, is empty, or (when its values are known,
            that is outside of `jit` and `vmap`) has an entry outside [0, 1] or not a number.
    """
    array = jnp.asarray(weights)
    if array.ndim != 1 or array.shape[0] == 0:
        raise ValueError(
            f"weights has shape {array.shape}; pass one weight an agent, shape [A] with A >= 1 "
            "(use jax.vmap over several grand coalitions)"
        )
    if not jnp.issubdtype(array.dtype, jnp.floating):
        array = array.astype(jnp.result_type(float))
    if not isinstance(array, jax.core.Tracer):
        host = np.asarray(array, dtype=np.float64)
        if not np.all((host >= 0) & (host <= 1)):
            raise ValueError(f"weights must lie in [0, 1]; got {host}: scale or clip them")
    return array


def only_present(credits: jax.Array, weights: jax.Array) -> jax.Array:
    """Set the credit of agents of weight 0 to exactly 0, whatever the utility did with them."""
    return jnp.where(weights == 0, jnp.zeros_like(credits), credits)


@jax.custom_jvp
def marginal(joined: jax.Array, left: jax.Array) -> jax.Array:
    """Return `joined - left`, two arrays of utilities of one shape; exactly 0 where they are equal.

    A plain difference is not: compilers fuse it with the utility's last product into a single
    rounding (x c - y c becomes fma(x, c, -(y c))), which leaves a residue even where x = y. Its
    derivative is that of the plain difference everywhere.
    """
    return jnp.where(joined == left, jnp.zeros_like(joined), joined - left)


marginal.defjvps(
    lambda tangent, _result, _joined, _left: tangent,
    lambda tangent, _result, _joined, _left: -tangent,
)


def chunked_map(
    function: Callable[[jax.Array], Any], rows: jax.Array, *, batch_size: int | None = None
) -> Any:
    """Map `function` over the leading axis of `rows`, at most `batch_size` of them at once.

    All chunks have the same size, so that `function` is traced once and every row is computed by
    the same program (a smaller last chunk may round differently, and a null agent would then no
    longer cancel). Where no divisor of the number of rows comes near `batch_size`, the last row is
    repeated: fewer than one extra row a chunk.

    Args:
        function: A pure function of one row to an array or several.
        rows: `[n, ...]`, n >= 1.
        batch_size: How many rows at once; None means `BATCH_SIZE`.

    Returns:
        The stacked results, `[n, ...]`.

    Raises:
        ValueError: If `batch_size` is no whole number or less than 1.
    """
    count = rows.shape[0]
    chunks, size = _chunk_shape(count, batch_size)
    if chunks == 1:
        return jax.vmap(function)(rows)
    padding = jnp.minimum(jnp.arange(chunks * size), count - 1)
    chunked = rows[padding].reshape((chunks, size, *rows.shape[1:]))
    results = jax.lax.map(jax.vmap(function), chunked)
    return jax.tree.map(
        lambda found: found.reshape((chunks * size, *found.shape[2:]))[:count], results
    )


def _chunk_shape(count: int, batch_size: int | None) -> tuple[int, int]:
    limit = BATCH_SIZE if batch_size is None else check_count("batch_size", batch_size)
    limit = min(limit, count)
    divisor = next(size for size in range(limit, 0, -1) if count % size == 0)
    # For a power of two, as all subsets are, this always holds: nothing is evaluated twice.
    if 2 * divisor >= limit:
        return count // divisor, divisor
    chunks = math.ceil(count / limit)
    return chunks, math.ceil(count / chunks)


def evaluate(
    utility: Utility,
    weights: jax.Array,
    rows: jax.Array,
    member: Callable[[jax.Array], jax.Array] | None = None,
    *,
    batch_size: int | None = None,
) -> jax.Array:
    """Return v(weights * member(row)) for every row, `[n]`.

    Args:
        utility: A pure function of participation weights.
        weights: The grand coalition's participation weights, `[A]`.
        rows: `[n, ...]`, one coalition a row: booleans `[n, A]`, or anything that `member` decodes
            (a row's number, say, so that n coalitions need no n x A memory).
        member: Turns a row into booleans `[A]`, true for the members; None if rows are such.
        batch_size: How many coalitions at once; None means `BATCH_SIZE`. It bounds the memory and
            decides nothing else: the coalitions are the same, and so are their utilities, to the
            rounding of the utility's own batched form.

    Returns:
        The utilities, `[n]`, of the common floating type of `weights` and the utility.

    Raises:
        ValueError: If the utility does not return a scalar.
    """

    def value(row: jax.Array) -> jax.Array:
        members = row if member is None else member(row)
        result = jnp.asarray(utility(jnp.where(members, weights, jnp.zeros_like(weights))))
        _check_scalar("utility", result)
        return result.astype(jnp.result_type(result, weights))

    return chunked_map(value, rows, batch_size=batch_size)


def scalar_of(
    function: Callable[[Any], jax.Array], name: str = "utility"
) -> Callable[[Any], jax.Array]:
    """The same function, which tells in words what it returned where it cannot be differentiated.

    It is looked at as it is traced: nothing is run or traced twice.

    Args:
        function: A utility, or a loss.
        name: What it is called in the message.

    Raises:
        ValueError: When called, if the function does not return a floating-point scalar.
    """

    def checked(given: Any) -> jax.Array:
        result = jnp.asarray(function(given))
        _check_scalar(name, result)
        if not jnp.issubdtype(result.dtype, jnp.floating):
            raise ValueError(
                f"{name} returned {result.dtype}, which has no derivative; return a floating-point"
                " number that changes with what it is given, or use an estimator that evaluates"
                " coalitions"
            )
        return result

    return checked


def _check_scalar(name: str, result: jax.Array) -> None:
    if result.shape != ():
        raise ValueError(
            f"{name} returned shape {result.shape}; it must return a scalar: sum or mean it"
        )


def forward_slopes(
    at: Callable[[jax.Array], tuple[jax.Array, jax.Array]],
    weights: jax.Array,
    scale: jax.typing.ArrayLike = 1,
) -> jax.Array:
    """Derivatives in forward mode at `scale * weights`, with absent agents held constant.

    Forward mode multiplies every slope by a tangent, and an absent agent's tangent of 0 by a slope
    that is infinite where its weight is 0 (that of a root, say) is not a number, and spoils
    everybody's. Where that happens, slopes are taken with the absent agents' weights a hair above
    0, provided that the value stays what it is (a utility that jumps there has no such neighbour).

    Args:
        at: Value and derivatives at a point; any shapes.
        weights: The grand coalition's participation weights, `[A]`.
        scale: Of the point on the diagonal.
    """
    point = jnp.multiply(scale, weights)
    value, slopes = at(point)
    if not isinstance(weights, jax.core.Tracer) and np.all(np.asarray(weights) > 0):
        return slopes
    tiny = jnp.finfo(weights.dtype).tiny

    def beside() -> jax.Array:
        moved, found = at(jnp.where(weights == 0, tiny, point))
        near = 4 * jnp.finfo(value.dtype).eps * jnp.abs(value) + 1e3 * float(tiny) ** 0.5
        same = jnp.all(jnp.abs(moved - value) <= near)
        return jnp.where(jnp.isnan(slopes) & same, found, slopes)

    spoilt = jnp.any(jnp.isnan(slopes)) & jnp.any(weights == 0)
    return jax.lax.cond(spoilt, beside, lambda: slopes)


def members_of(codes: jax.Array, agents: int) -> jax.Array:
    """Decode coalition numbers into members: agent i belongs to S if bit i of the number is set.

    Args:
        codes: Integers `[...]`, each in 0 .. 2**agents - 1.
        agents: A, the length of the agent axis.

    Returns:
        Booleans `[..., A]`.
    """
    bits = jnp.arange(agents).reshape((1,) * jnp.ndim(codes) + (agents,))
    return (jnp.expand_dims(codes, -1) >> bits) & 1 == 1


def all_coalitions(agents: int) -> jax.Array:
    """Return all 2**A coalitions as booleans `[2**A, A]`, row k with the binary digits of k."""
    return members_of(jnp.arange(2**agents), agents)


def coalition_values(
    utility: Utility, weights: jax.typing.ArrayLike, *, batch_size: int | None = None
) -> jax.Array:
    """Return the utility of all 2**A coalitions, each evaluated exactly once, `[2**A]`.

    Args:
        utility: A pure function of participation weights.
        weights: The grand coalition's participation weights, `[A]`, A <= 20.
        batch_size: How many coalitions at once; None means `BATCH_SIZE`.

    Returns:
        v(weights * indicator(S)) at index sum_{i in S} 2**i; index 0 is the empty coalition.

    Raises:
        ValueError: If A > 20.
    """
    weights = participation(weights)
    agents = weights.shape[0]
    if agents > MAX_ENUMERATED_AGENTS:
        raise ValueError(
            f"weights has {agents} agents, and all 2**{agents} coalitions are too many to "
            f"enumerate (at most {MAX_ENUMERATED_AGENTS} agents): use a sampler, as "
            "permutation_shapley and semivalue_sampled are, or aumann_shapley, or leave padding out"
            " of the agent axis"
        )
    return evaluate(
        utility,
        weights,
        jnp.arange(2**agents),
        lambda code: members_of(code, agents),
        batch_size=batch_size,
    )
