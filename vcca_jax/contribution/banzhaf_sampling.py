"""Sampled Banzhaf: every coalition drawn is reused for all agents."""

import math

import jax
import jax.numpy as jnp

from vcca_jax.contribution.coalitions import evaluate, marginal, only_present, participation
from vcca_jax.contribution.protocols import Sampled, Utility
from vcca_jax.contribution.sampling import check_draws


def banzhaf_sampled(
    utility: Utility,
    weights: jax.typing.ArrayLike,
    *,
    samples: int,
    key: jax.Array | None = None,
    antithetic: bool = False,
    batch_size: int | None = None,
) -> jax.Array:
    """Estimate Banzhaf values by maximum sample reuse.

    c_i = mean of v(S) over drawn S with i  -  mean of v(S) over drawn S without i

    where S is uniform over all coalitions. The second draw is the complement of the first, so that
    neither mean is ever empty; given who is in, everybody else still is with probability 1 / 2.
    With `antithetic` every S is followed by its complement, and c_i becomes the mean of
    +-(v(S) - v(N - S)): what depends on the size alone, evenly about the middle, then cancels.

    Cost: M utility evaluations, whatever A. Holds: linearity in the utility for a fixed key;
    symmetry and null agent in expectation (an agent of weight 0 gets exactly 0). Unbiased. Does not
    hold: efficiency, split-invariance. Unlike differences of paired coalitions, the means carry the
    whole spread of v: an agent's error does not shrink with its influence, and additive games are
    not exact.

    Args:
        utility: A pure function of participation weights `[A]`.
        weights: The grand coalition's participation weights, `[A]` in [0, 1].
        samples: M, how many coalitions, at least 2 (and even with `antithetic`).
        key: A `jax.random.key`; required.
        antithetic: Follow each coalition by its complement.
        batch_size: How many coalitions at once; None means 256.

    Returns:
        Credits `[A]`, in the unit of the utility.

    Raises:
        ValueError: If `key` is None, `samples` is less than 2 (or odd with `antithetic`), `weights`
            is not `[A]` in [0, 1], `batch_size` is less than 1, or the utility does not return a
            scalar.

    Source: Wang & Jia, "Data Banzhaf: a robust data valuation framework for machine learning",
    arXiv:2205.15466; the complement of the first draw is our addition.
    """
    weights = participation(weights)
    key = _checked(samples, key, antithetic, least=2)
    inside, values = _values(utility, weights, key, samples, antithetic, batch_size)
    return only_present(_contrast(inside, values), weights)


def banzhaf_sampled_with_error(
    utility: Utility,
    weights: jax.typing.ArrayLike,
    *,
    samples: int,
    key: jax.Array | None = None,
    antithetic: bool = False,
    batch_size: int | None = None,
) -> Sampled:
    """Estimate Banzhaf values as `banzhaf_sampled` does, with their standard errors.

    s_i^2 = var(v with i) / m + var(v without i) / n - 2 cov(v(S), v(N - S)) / (m n)

    for m draws with i and n without, S the first draw, whose complement is the second: the two are
    never on the same side, and utilities that grow with the coalition make their covariance
    negative. It is estimated from this one pair, without bias as the variances are; so s_i^2 is
    right on average, however few the draws, though it varies. Where m or n is 1, the other side's
    variance serves for both, and the covariance is taken at its worst, as minus that. With
    `antithetic`, s_i^2 is the variance of the pairs' differences over the number of pairs.

    Args:
        utility: A pure function of participation weights `[A]`.
        weights: The grand coalition's participation weights, `[A]` in [0, 1].
        samples: How many coalitions, at least 4.
        key: A `jax.random.key`; required.
        antithetic: Follow each coalition by its complement.
        batch_size: How many coalitions at once; None means 256.

    Returns:
        `Sampled(credits, standard_error, evaluations)`; the credits are those of `banzhaf_sampled`
        with the same arguments.

    Raises:
        ValueError: As `banzhaf_sampled`, and if there are fewer than 4 samples.
    """
    weights = participation(weights)
    key = _checked(samples, key, antithetic, least=4)
    inside, values = _values(utility, weights, key, samples, antithetic, batch_size)
    if antithetic:
        half = jnp.where(inside[0::2], 1.0, -1.0).astype(values.dtype)
        differences = half * marginal(values[0::2], values[1::2])[:, None]
        error = jnp.std(differences, axis=0, ddof=1) / math.sqrt(samples // 2)
    else:
        means, counts = _means(inside, values)
        centred = values[None, :, None] - means[:, None, :]
        both = jnp.stack([inside, ~inside])
        squares = jnp.sum(jnp.where(both, centred, jnp.zeros_like(centred)) ** 2, axis=1)
        variance = squares / jnp.maximum(counts - 1, 1)
        # At least four draws: never are both groups too small to have a variance.
        variance = jnp.where(counts > 1, variance, variance[::-1])
        # A draw pulls its own mean towards itself: deviations are smaller by a factor 1 - 1 / n.
        factor = jnp.prod(1 - 1 / counts, axis=0)
        mine = jnp.where(inside[0], centred[0, 0], centred[1, 0])
        others = jnp.where(inside[0], centred[1, 1], centred[0, 1])
        known = factor > 0
        covariance = mine * others / jnp.where(known, factor, 1)
        covariance = jnp.where(known, covariance, -variance[0])
        square = jnp.sum(variance / counts, axis=0) - 2 * covariance / jnp.prod(counts, axis=0)
        error = jnp.sqrt(jnp.maximum(square, 0))
    return Sampled(
        credits=only_present(_contrast(inside, values), weights),
        standard_error=only_present(error, weights),
        evaluations=jnp.asarray(samples, dtype=jnp.int32),
    )


def _checked(samples: int, key: jax.Array | None, antithetic: bool, *, least: int) -> jax.Array:
    key = check_draws("samples", samples, key, antithetic)
    if samples < least:
        wanted = "both means need one" if least == 2 else "a standard error needs more"
        raise ValueError(f"samples is {samples}; pass at least {least}, {wanted}")
    return key


def _values(
    utility: Utility,
    weights: jax.Array,
    key: jax.Array,
    samples: int,
    antithetic: bool,
    batch_size: int | None,
) -> tuple[jax.Array, jax.Array]:
    """Members `[M, A]` of the coalitions drawn and their utilities `[M]`."""
    agents = weights.shape[0]
    count = samples // 2 if antithetic else samples - 1
    inside = jax.random.bernoulli(key, shape=(count, agents))
    if antithetic:
        inside = jnp.stack([inside, ~inside], axis=1).reshape((samples, agents))
    else:
        inside = jnp.concatenate([inside[:1], ~inside[:1], inside[1:]])
    return inside, evaluate(utility, weights, inside, batch_size=batch_size)


def _means(inside: jax.Array, values: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean value with and without each agent, `[2, A]`, and of how many, `[2, A]`."""
    both = jnp.stack([inside, ~inside])
    counts = jnp.sum(both, axis=1).astype(values.dtype)
    kept = jnp.where(both, values[None, :, None], jnp.zeros((), values.dtype))
    return jnp.sum(kept, axis=1) / counts, counts


def _contrast(inside: jax.Array, values: jax.Array) -> jax.Array:
    # From a common origin, so that a large constant utility costs no precision.
    means, _ = _means(inside, values - values[0])
    return means[0] - means[1]
