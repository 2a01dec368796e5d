"""Sampled semivalues: pairs of coalitions that differ by one agent, of sizes drawn by a measure."""

import jax
import jax.numpy as jnp
import numpy as np

from vcca_jax.arguments import check_count
from vcca_jax.contribution.coalitions import marginal, only_present, participation
from vcca_jax.contribution.protocols import Sampled, Utility
from vcca_jax.contribution.sampling import check_draws, turned_values
from vcca_jax.contribution.size_measures import SizeMeasure, sizes_for


def semivalue_sampled(
    utility: Utility,
    weights: jax.typing.ArrayLike,
    *,
    by_size: SizeMeasure,
    samples: int,
    key: jax.Array | None = None,
    batch_size: int | None = None,
) -> jax.Array:
    """Estimate any semivalue, for any number of agents: Beta-Shapley, weighted Banzhaf, one's own.

    c_i = E[ v(S + i) - v(S) ],  |S| drawn by `by_size`, S evenly among the others' of its size

    Sample m of M takes a size s at random in the m-th of M equal parts of the measure, and a random
    order of the agents. Whoever comes after the first s joins these; each of the first s joins the
    others among the first s + 1. So all agents share one sample's two coalitions, and each gets a
    pair that differs by itself: in an additive game every sample is exact, and an agent that
    matters little has a small error, which means over coalitions with and without it
    (`banzhaf_sampled`) do not give.

    Cost: M (A + 1) utility evaluations. Holds: null agent (exactly 0, in the sense of
    `leave_one_out`), linearity in the utility for a fixed key; symmetry in expectation. Unbiased.
    Does not hold: efficiency (but in expectation for Shapley's measure, for which the samplers of
    that value are nearer), split-invariance.

    Args:
        utility: A pure function of participation weights `[A]`.
        weights: The grand coalition's participation weights, `[A]` in [0, 1].
        by_size: As for `semivalue`.
        samples: M, how many pairs an agent, at least 1.
        key: A `jax.random.key`; required.
        batch_size: How many coalitions at once; None means 256.

    Returns:
        Credits `[A]`, in the unit of the utility.

    Raises:
        ValueError: If `by_size` is no probability of the sizes 0 .. A - 1, `key` is None, `samples`
            is less than 1, `weights` is not `[A]` in [0, 1], `batch_size` is less than 1, or the
            utility does not return a scalar.

    Source: Dubey, Neyman & Weber, "Value theory without efficiency", Mathematics of Operations
    Research 6 (1981), for semivalues; the order that all agents share is our addition.
    """
    weights = participation(weights)
    marginals = _marginals(utility, weights, key, samples, by_size, batch_size)
    return only_present(jnp.mean(marginals, axis=0), weights)


def semivalue_sampled_with_error(
    utility: Utility,
    weights: jax.typing.ArrayLike,
    *,
    by_size: SizeMeasure,
    samples: int,
    key: jax.Array | None = None,
    batch_size: int | None = None,
) -> Sampled:
    """Estimate a semivalue as `semivalue_sampled` does, with its standard errors.

    s_i^2 = sum over m of (d_mi - d_ni)^2 / (2 M^2),  n the sample after m, and after the last the
    first

    for the contributions d_mi. Neighbours are drawn from neighbouring parts of the measure, so that
    the spread over sizes, of which the mean has none, is in their differences only as far as it
    changes from part to part: s_i^2 is never too small on average, and little too large.

    Args:
        utility: A pure function of participation weights `[A]`.
        weights: The grand coalition's participation weights, `[A]` in [0, 1].
        by_size: As for `semivalue`.
        samples: How many pairs an agent; at least 2, or no error is known.
        key: A `jax.random.key`; required.
        batch_size: How many coalitions at once; None means 256.

    Returns:
        `Sampled(credits, standard_error, evaluations)`; the credits are those of
        `semivalue_sampled` with the same arguments.

    Raises:
        ValueError: As `semivalue_sampled`, and if there are fewer than two samples.
    """
    weights = participation(weights)
    if check_count("samples", samples) < 2:
        raise ValueError(f"samples is {samples}; a standard error needs at least 2")
    marginals = _marginals(utility, weights, key, samples, by_size, batch_size)
    apart = marginals - jnp.roll(marginals, 1, axis=0)
    error = jnp.sqrt(jnp.sum(apart**2, axis=0) / 2) / samples
    return Sampled(
        credits=only_present(jnp.mean(marginals, axis=0), weights),
        standard_error=only_present(error, weights),
        evaluations=jnp.asarray(samples * (weights.shape[0] + 1), dtype=jnp.int32),
    )


def _marginals(
    utility: Utility,
    weights: jax.Array,
    key: jax.Array | None,
    samples: int,
    by_size: SizeMeasure,
    batch_size: int | None,
) -> jax.Array:
    """Marginal contribution of every agent in every sample, `[M, A]`."""
    key = check_draws("samples", samples, key, antithetic=False)
    agents = weights.shape[0]
    sizes, places = _draws(key, sizes_for(by_size, agents), samples)

    def member(sample: jax.Array, own: jax.Array) -> jax.Array:
        # With nobody turned, the first s + 1.
        place, size = places[sample], sizes[sample]
        joins = jnp.any(own & (place > size))
        return jnp.where(joins, (place < size) | own, (place <= size) & ~own)

    values = turned_values(utility, weights, member, samples, batch_size)
    # Without the agent at place s, the first s + 1 are the first s.
    last = jnp.argmax(places == sizes[:, None], axis=1)
    first = jnp.broadcast_to(jnp.take_along_axis(values, last[:, None], axis=1), places.shape)
    whole = jnp.broadcast_to(values[:, agents:], places.shape)
    turned = values[:, :agents]
    inside = places <= sizes[:, None]
    return marginal(jnp.where(inside, whole, turned), jnp.where(inside, turned, first))


def _draws(key: jax.Array, measure: np.ndarray, samples: int) -> tuple[jax.Array, jax.Array]:
    """Of every sample the size `[M]`, and every agent's place in its order `[M, A]`."""
    bounds = jnp.asarray(np.cumsum(measure)[:-1])
    # Rounding of the sums must not let in sizes that are never joined.
    possible = np.flatnonzero(measure)

    def draw(index: jax.Array) -> tuple[jax.Array, jax.Array]:
        for_size, for_order = jax.random.split(jax.random.fold_in(key, index))
        level = (index + jax.random.uniform(for_size, dtype=bounds.dtype)) / samples
        size = jnp.searchsorted(bounds, level, side="right")
        order = jax.random.permutation(for_order, len(measure))
        return jnp.clip(size, possible[0], possible[-1]), order

    return jax.vmap(draw)(jnp.arange(samples))
