"""Sampling until it is precise enough, or the budget is spent."""

from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from vcca_jax.arguments import check_count, check_key
from vcca_jax.contribution.coalitions import participation
from vcca_jax.contribution.protocols import Enumerated, Sampled, Utility

LEAST_BATCHES = 8
"""The fewest batches by default: that many say something of their own spread."""


class SampledEstimator(Protocol):
    """A sampler with its standard errors, its batch's size bound by `functools.partial`."""

    def __call__(
        self, utility: Utility, weights: jax.Array, *, key: jax.Array | None = None
    ) -> Sampled:
        """Return credits, standard errors and evaluations of one batch."""
        ...


class Pooled(NamedTuple):
    """Independent batches, pooled.

    Attributes:
        sampled: The mean of the batches' credits, its standard error, and all evaluations.
        batches: How many batches were drawn, a scalar integer.
        reached: Whether the tolerance was met, a scalar boolean.
    """

    sampled: Sampled
    batches: jax.Array
    reached: jax.Array


class _Drawn(NamedTuple):
    """The batches so far."""

    batches: jax.Array
    credits: jax.Array  # their mean
    variance: jax.Array  # sum of their own squared standard errors
    scatter: jax.Array  # sum of their squared distances from the mean
    evaluations: jax.Array


def until_precise(
    estimator: SampledEstimator,
    utility: Utility,
    weights: jax.typing.ArrayLike,
    *,
    key: jax.Array | None = None,
    tolerance: float,
    most: int,
    least: int | None = None,
    relative: bool = False,
) -> Pooled:
    """Repeat a sampler, batch after batch, until its largest standard error is small enough.

    c = mean_b c^(b),   s_i = max( sqrt( sum_b (s_i^(b))^2 / B ), sd_b(c_i^(b)) ) / sqrt(B),
    until max_i s_i <= tolerance, after B batches

    The error is the larger of what the batches say of themselves and of what they tell of each
    other: a batch whose few draws happen to coincide reports no error where there is one, and its
    word alone would end everything. So at least 8 batches are drawn, or `least`. A sampler that has
    evaluated every coalition (the stratified one and the regressions, from 2**A evaluations on)
    says so, and its first batch is the last; of any other, an error of 0 after few draws means that
    none differed so far, which is no proof.

    Batch b draws from `fold_in(key, b)`. Batches are of one size, so the plain mean is the pooled
    estimate (weighing them by their own errors would bias it, as errors and estimates depend on
    each other). With `relative`, `tolerance` is a part of the spread of the credits so far,
    max_i c_i - min_i c_i: whether agents can be told apart.

    One batch is compiled, whatever `most`; it runs under `jit` and `vmap` (which goes on until the
    last of the mapped is precise).

    Stopping looks at the estimate that it then reports. Of unbiased batches the mean is unbiased
    for a number of batches fixed beforehand; stopping early favours runs whose errors happen to
    look small, so that credits are slightly biased where a batch's error and its estimate depend on
    each other. The effect falls with the size of a batch and with `least`. A biased sampler (the
    regressions) keeps the bias of one batch however many are pooled: give it large batches.

    Args:
        estimator: Any sampler that returns `Sampled`, such as
            `functools.partial(stratified_shapley_with_error, evaluations=200)`.
        utility: A pure function of participation weights `[A]`.
        weights: The grand coalition's participation weights, `[A]` in [0, 1].
        key: A `jax.random.key`; required.
        tolerance: The largest standard error that is precise enough, in the unit of the utility, or
            a part of the credits' spread with `relative`; positive.
        most: The most batches, at least 1.
        least: The fewest batches, between 1 and `most`; None means 8, or `most` if that is less.
            With 1 a batch is believed by itself: only where it holds hundreds of draws.
        relative: Whether `tolerance` is relative.

    Returns:
        `Pooled(sampled, batches, reached)`.

    Raises:
        ValueError: If `key` is None, `tolerance` is not positive, `most` or `least` is no whole
            number or out of range, the estimator returns no `Sampled`, or it refuses its arguments.

    Source: sequential sampling to a fixed width; Chow & Robbins, "On the asymptotic theory of
    fixed-width sequential confidence intervals for the mean", Annals of Mathematical Statistics 36
    (1965).
    """
    weights = participation(weights)
    start = check_key(key, "the batches are")
    if not isinstance(tolerance, jax.core.Tracer) and not tolerance > 0:
        raise ValueError(f"tolerance is {tolerance}; pass a positive number")
    most = check_count("most", most)
    fewest = min(LEAST_BATCHES, most) if least is None else check_count("least", least)
    if fewest > most:
        raise ValueError(f"least is {least} and most is {most}; pass 1 <= least <= most")

    def draw(batch: jax.Array) -> Sampled:
        return estimator(utility, weights, key=jax.random.fold_in(start, batch))

    shape = jax.eval_shape(draw, jnp.int32(0))
    if not isinstance(shape, Sampled):
        raise ValueError(
            f"estimator returned a {type(shape).__name__}; pass one that returns Sampled, such as"
            " functools.partial(stratified_shapley_with_error, evaluations=200)"
        )
    if least is None and isinstance(shape, Enumerated):
        fewest = 1
    kind = shape.credits.dtype
    nothing = jnp.zeros(weights.shape, kind)

    def pooled(state: _Drawn) -> jax.Array:
        """The standard error of the mean of the batches so far."""
        count = jnp.maximum(state.batches, 1).astype(kind)
        within = state.variance / count
        between = state.scatter / jnp.maximum(count - 1, 1)
        return jnp.sqrt(jnp.maximum(within, between) / count)

    def precise(state: _Drawn) -> jax.Array:
        credits, error = state.credits, pooled(state)
        here = weights > 0
        spread = jnp.max(jnp.where(here, credits, -jnp.inf)) - jnp.min(
            jnp.where(here, credits, jnp.inf)
        )
        limit = tolerance * spread if relative else jnp.asarray(tolerance, kind)
        return (state.batches >= fewest) & (jnp.max(error) <= limit)

    def unfinished(state: _Drawn) -> jax.Array:
        return (state.batches < most) & ~precise(state)

    def another(state: _Drawn) -> _Drawn:
        fresh = draw(state.batches)
        batches = state.batches + 1
        # The mean goes on from deviations, so that their squares lose nothing to a large mean.
        apart = fresh.credits - state.credits
        credits = state.credits + apart / batches.astype(kind)
        return _Drawn(
            batches=batches,
            credits=credits,
            variance=state.variance + fresh.standard_error**2,
            scatter=state.scatter + apart * (fresh.credits - credits),
            evaluations=state.evaluations + fresh.evaluations,
        )

    start_state = _Drawn(jnp.int32(0), nothing, nothing, nothing, jnp.int32(0))
    final = jax.lax.while_loop(unfinished, another, start_state)
    return Pooled(
        Sampled(final.credits, pooled(final), final.evaluations), final.batches, precise(final)
    )
