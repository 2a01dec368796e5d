"""Stratified Shapley: every coalition serves the strata of all its members and non-members."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vcca_jax.contribution.coalition_sizes import Strata, draw_coalitions, share_out, strata
from vcca_jax.contribution.coalitions import evaluate, only_present, participation
from vcca_jax.contribution.protocols import Enumerated, Sampled, Utility
from vcca_jax.contribution.sampling import among_present, check_evaluations

RIDGE = 0.01
"""Penalty on the model's freedom beyond additive games, relative to the weight of one size.

Credits are unbiased whatever it is; it keeps the fit well posed at the smallest budgets.
"""


def stratified_shapley(
    utility: Utility,
    weights: jax.typing.ArrayLike,
    *,
    evaluations: int,
    key: jax.Array | None = None,
    batch_size: int | None = None,
) -> jax.Array:
    """Estimate Shapley values size by size, from coalitions that all agents share.

    c_i = ( v(w) - v(0) + sum_{s=1}^{A-1} d_is ) / A,
    d_is = E[ v(S) | i in S ] - E[ v(S) | i not in S ] = E[ v(S) z_i(S) ],  |S| = s,
    z_i(S) = A / s if i is in S, else -A / (A - s)

    so one coalition tells something about every agent. Sizes 1 and A - 1 are enumerated, the others
    get draws in proportion to 1 / sqrt(s (A - s)), which is where the error is least if utilities
    spread alike in all sizes; none is drawn twice where coalitions are few, and a size whose turn
    exceeds its coalitions is enumerated too. Means of v(S) z_i(S) alone would carry the whole
    spread of v. So a model of the game is fitted to the drawn coalitions (a worth an agent, which
    may change linearly with the size, and a mean a size); its d_is are known, and only
    (v(S) - m(S)) z_i(S) is averaged, m being fitted without S (in closed form, by deleted
    residuals, finite populations allowed for). What the model says therefore never biases; it only
    decides how much is left to average.

    Cost: exactly `evaluations` utility evaluations, at most 2**A, from where on the result is
    exact. Holds: efficiency (to rounding: z_i(S) sums to 0 over the agents, so nothing has to be
    corrected), linearity in the utility for a fixed key; symmetry and null agent in expectation
    (an agent of weight 0 gets exactly 0, and its share of the noise goes to the others evenly).
    Exact in additive games. Unbiased. Does not hold: split-invariance.

    Args:
        utility: A pure function of participation weights `[A]`.
        weights: The grand coalition's participation weights, `[A]` in [0, 1].
        evaluations: How many coalitions are evaluated, at least 2 of each size (all, if fewer):
            4 A - 4 for A >= 2 agents, 2 for one.
        key: A `jax.random.key`; required.
        batch_size: How many coalitions at once; None means 256.

    Returns:
        Credits `[A]`, in the unit of the utility.

    Raises:
        ValueError: If `key` is None, `evaluations` is too small, `weights` is not `[A]` in [0, 1],
            `batch_size` is less than 1, or the utility does not return a scalar.

    Source: Kolpaczki, Bengs, Muschalik & Huellermeier, "Approximating the Shapley value without
    marginal contributions", arXiv:2302.00736, for the strata, their shared coalitions and exact end
    sizes; Witter, Liu & Musco, "Regression-adjusted Monte Carlo estimators for Shapley values and
    probabilistic values", arXiv:2506.11849, for averaging what a model leaves. The model, the
    deleted residuals and the finite populations are our reading.
    """
    return stratified_shapley_with_error(
        utility, weights, evaluations=evaluations, key=key, batch_size=batch_size
    ).credits


def stratified_shapley_with_error(
    utility: Utility,
    weights: jax.typing.ArrayLike,
    *,
    evaluations: int,
    key: jax.Array | None = None,
    batch_size: int | None = None,
) -> Sampled:
    """Estimate Shapley values as `stratified_shapley` does, with their standard errors.

    s_i^2 = sum over S of (1 - f_s) ((v(S) - m(S)) z_i(S) / (A n_s))^2,  f_s = n_s / C(A, s)

    with m fitted without S, over n_s coalitions of size s drawn. Squares are not centred and
    deleted residuals are never smaller than residuals, so s_i errs upwards where draws are few.

    Args:
        utility: A pure function of participation weights `[A]`.
        weights: The grand coalition's participation weights, `[A]` in [0, 1].
        evaluations: How many coalitions are evaluated, at least 4 A - 4 (2 for one agent).
        key: A `jax.random.key`; required.
        batch_size: How many coalitions at once; None means 256.

    Returns:
        `Sampled(credits, standard_error, evaluations)`; the credits are those of
        `stratified_shapley` with the same arguments.

    Raises:
        ValueError: As `stratified_shapley`.
    """
    weights = participation(weights)
    agents = weights.shape[0]
    key = check_evaluations(evaluations, 2 if agents == 1 else 4 * agents - 4, key)
    drawn = _strata(agents, evaluations)
    members = draw_coalitions(key, agents, drawn)
    rows = jnp.concatenate([jnp.zeros((1, agents), bool), jnp.ones((1, agents), bool), members])
    values = evaluate(utility, weights, rows, batch_size=batch_size)
    asked = values.dtype
    # The model is solved for in single precision at least: there is no lower one that could be.
    values = values.astype(jnp.promote_types(asked, jnp.float32))
    gain = values[1] - values[0]
    present = (weights > 0).astype(values.dtype)
    credits, terms = _differences(members, values[2:] - values[0], present, drawn)
    credits = only_present(among_present(gain / agents + credits, weights), weights)
    error = jnp.sqrt(jnp.sum(among_present(terms, weights) ** 2, axis=0))
    told = Enumerated if np.all(drawn.counts == drawn.totals) else Sampled
    return told(
        credits=credits.astype(asked),
        standard_error=only_present(error, weights).astype(asked),
        evaluations=jnp.asarray(rows.shape[0], dtype=jnp.int32),
    )


def _strata(agents: int, evaluations: int) -> Strata:
    sizes = range(1, agents)
    totals = [math.comb(agents, size) for size in sizes]
    inner = range(2, agents - 1)
    shares = [1 / math.sqrt(size * (agents - size)) for size in inner]
    ends = 2 + sum(math.comb(agents, size) for size in sizes if size not in inner)
    counts = iter(share_out(evaluations - ends, shares, totals[1 : agents - 2], least=2))
    taken = [next(counts) if size in inner else agents for size in sizes]
    return strata(sizes, taken, totals)


class _Model(NamedTuple):
    """The regression that estimates no credit, but spares it most of the spread.

    Attributes:
        features: `[n, p]`, a row a coalition.
        effects: `[A - 1, A, p]`, E[z x^T] over all coalitions of each size: d_is of the features.
        penalty: `[p, p]`.
    """

    features: jax.Array
    effects: jax.Array
    penalty: jax.Array


def _model(inside: jax.Array, present: jax.Array, sizes: np.ndarray) -> _Model:
    """Constant, number present, one worth an agent; penalised: a mean a size, worth times size."""
    agents, rows = present.shape[0], inside.shape[0]
    kind = inside.dtype
    every = np.arange(1, agents)
    share = present / jnp.maximum(jnp.sum(present), 1)
    # Worths are deviations from the mean of those present.
    centre = (jnp.eye(agents, dtype=kind) - share[:, None]) * present[None, :]
    worth = inside @ centre
    slope = jnp.asarray(sizes / agents - 0.5, dtype=kind)[:, None]
    level = jnp.asarray(sizes[:, None] == every[None, :], dtype=kind)
    number = (inside @ share)[:, None]
    features = jnp.concatenate(
        [jnp.ones((rows, 1), kind), number, worth, level, slope * worth], axis=1
    )
    # Of z and the members' indicators, for every size alike.
    spread = jnp.asarray((agents * np.eye(agents) - 1) / max(agents - 1, 1), dtype=kind)
    slopes = jnp.asarray(every / agents - 0.5, dtype=kind)[:, None, None]
    known = jnp.broadcast_to((spread @ centre)[None], (agents - 1, agents, agents))
    nothing = jnp.zeros((agents - 1, agents, 1), kind)
    effects = jnp.concatenate(
        [
            nothing,
            jnp.broadcast_to((spread @ share)[None, :, None], nothing.shape),
            known,
            jnp.zeros((agents - 1, agents, agents - 1), kind),
            slopes * known,
        ],
        axis=2,
    )
    # The worths' own null directions (their sum, and agents that are absent) are closed.
    closed = jnp.outer(share, share) + jnp.diag(1 - present)
    ridge = RIDGE * jnp.ones(2 * agents - 1, kind)
    penalty = jax.scipy.linalg.block_diag(jnp.zeros((2, 2), kind), closed, jnp.diag(ridge))
    return _Model(features, effects, penalty)


def _differences(
    members: jax.Array, values: jax.Array, present: jax.Array, drawn: Strata
) -> tuple[jax.Array, jax.Array]:
    """sum_s d_is / A, `[A]`, and each coalition's term in its error, `[n, A]`."""
    agents, kind = present.shape[0], values.dtype
    if agents == 1:
        return jnp.zeros(1, kind), jnp.zeros((1, 1), kind)
    sizes = np.repeat(drawn.sizes, drawn.counts)
    per_row = np.repeat(drawn.counts, drawn.counts)
    inside = members.astype(kind)
    model = _model(inside, present, sizes)
    score = jnp.where(members, (agents / sizes)[:, None], (-agents / (agents - sizes))[:, None])
    score = score.astype(kind)
    # A coalition stands for 1 / n_s of its size, and a size for 1 / (s (A - s)): the variance of z.
    weight = jnp.asarray(agents / (per_row * sizes * (agents - sizes)), dtype=kind)
    weighted = model.features * weight[:, None]
    factor = jax.scipy.linalg.cho_factor(model.features.T @ weighted + model.penalty)
    hat = jax.scipy.linalg.cho_solve(factor, weighted.T).T
    fitted = values @ hat
    residual = values - model.features @ fitted
    leverage = jnp.sum(hat * model.features, axis=1)
    deleted = residual / jnp.maximum(1 - leverage, 1e-4)
    # Without coalition S the fit would be less by `shift`.
    shift = hat * deleted[:, None]

    fraction = jnp.asarray(np.repeat(drawn.counts / drawn.totals, drawn.counts), dtype=kind)
    share = score / jnp.asarray(per_row, dtype=kind)[:, None]
    # Of each stratum, what its coalitions shift the fit by on average, [A - 1, p].
    rows = jnp.asarray((drawn.sizes[:, None] == sizes) / drawn.counts[:, None], dtype=kind)
    mean_shift = rows @ shift
    shifted = jnp.sum(model.features * mean_shift[np.searchsorted(drawn.sizes, sizes)], axis=1)
    # Residuals are averaged over what was not drawn by the model fitted without S, over what was
    # drawn by their own sum: together they are unbiased for every fraction drawn.
    left = (1 - fraction) * deleted + fraction * (residual + shifted)
    modelled = jnp.sum(model.effects @ (fitted[None, :] - mean_shift)[:, :, None], axis=(0, 2))
    terms = (jnp.sqrt(1 - fraction) * deleted)[:, None] * share
    return (left @ share + modelled) / agents, terms / agents
