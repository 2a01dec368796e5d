"""Shapley values by regression: the additive game closest to the utility, from pairs of coalitions.

The Shapley value minimises sum over S of k(S) (v(S) - v(0) - sum_{i in S} c_i)^2 among all credits
that sum to v(w) - v(0), with k(S) = (A - 1) / (C(A, s) s (A - s)) for s = |S| (Charnes, Golany,
Keane & Rousseau 1988). Estimators draw coalitions, each with its complement, and solve the same
problem for those; the residual's even part cancels in a pair, so one row a pair is left,

    u(S) = ( v(S) - v(N - S) ) / 2,    x_i(S) = 1[i in S] - s / A,

with c = gain / A + the least-squares slope of u(S) - gain (s - A / 2) / A on x.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from vcca_jax.contribution.coalition_sizes import (
    coalitions_of_size,
    draw_coalitions,
    share_out,
    strata,
)
from vcca_jax.contribution.coalitions import evaluate, marginal, only_present, participation
from vcca_jax.contribution.protocols import Enumerated, Sampled, Utility
from vcca_jax.contribution.sampling import among_present, check_evaluations


def kernel_shapley(
    utility: Utility,
    weights: jax.typing.ArrayLike,
    *,
    evaluations: int,
    key: jax.Array | None = None,
    batch_size: int | None = None,
) -> jax.Array:
    """Estimate Shapley values by KernelSHAP: regression on pairs drawn by the Shapley kernel.

    c = argmin sum over drawn S of (v(S) - v(0) - sum_{i in S} c_i)^2, sum_i c_i = v(w) - v(0)

    Sizes are drawn with probability proportional to 1 / (s (A - s)), coalitions uniformly within a
    size, with replacement, each with its complement. Sizes 1 and A - 1 are always enumerated
    instead, and so are the next ones inwards as long as the budget would draw them that often;
    enumerated sizes enter with the kernel's own weight.

    Cost: at most `evaluations` utility evaluations (an odd one is not used), and from 2**A on all
    coalitions and the exact value. Holds: efficiency (to rounding), linearity in the utility for a
    fixed key; symmetry and null agent up to the sampling error (an agent of weight 0 gets exactly
    0). Exact in additive games. Consistent, with a bias of the order of 1 / evaluations. Does not
    hold: split-invariance.

    Args:
        utility: A pure function of participation weights `[A]`.
        weights: The grand coalition's participation weights, `[A]` in [0, 1].
        evaluations: The budget, at least 2 A + 2 (2**A for A <= 2): the ends and both end sizes.
        key: A `jax.random.key`; required.
        batch_size: How many coalitions at once; None means 256.

    Returns:
        Credits `[A]`, in the unit of the utility.

    Raises:
        ValueError: If `key` is None, `evaluations` is too small, `weights` is not `[A]` in [0, 1],
            `batch_size` is less than 1, or the utility does not return a scalar.

    Source: Lundberg & Lee, "A unified approach to interpreting model predictions",
    arXiv:1705.07874; Covert & Lee, "Improving KernelSHAP", arXiv:2012.01536, for the pairs.
    """
    return kernel_shapley_with_error(
        utility, weights, evaluations=evaluations, key=key, batch_size=batch_size
    ).credits


def kernel_shapley_with_error(
    utility: Utility,
    weights: jax.typing.ArrayLike,
    *,
    evaluations: int,
    key: jax.Array | None = None,
    batch_size: int | None = None,
) -> Sampled:
    """Estimate Shapley values as `kernel_shapley` does, with their standard errors.

    The standard errors are the regression's, robust to unequal spread, by deleted residuals; pairs
    of enumerated sizes contribute none. The bias is not in them.

    Args:
        utility: A pure function of participation weights `[A]`.
        weights: The grand coalition's participation weights, `[A]` in [0, 1].
        evaluations: The budget, as in `kernel_shapley`.
        key: A `jax.random.key`; required.
        batch_size: How many coalitions at once; None means 256.

    Returns:
        `Sampled(credits, standard_error, evaluations)`; the credits are those of `kernel_shapley`
        with the same arguments.

    Raises:
        ValueError: As `kernel_shapley`.
    """
    weights = participation(weights)
    agents = weights.shape[0]
    key = check_evaluations(evaluations, _least(agents), key)
    sizes, totals = _pairs(agents)
    pairs = (evaluations - 2) // 2
    shares = [1 / (size * (agents - size)) for size in sizes]
    if agents % 2 == 0:  # the middle size is its own complement's
        shares[-1:] = [share / 2 for share in shares[-1:]]
    # From outside inwards, what the rest of the budget would draw about entirely is enumerated.
    whole, left = 0, pairs
    while whole < len(sizes) and (
        whole == 0 or left * shares[whole] >= totals[whole] * sum(shares[whole:])
    ):
        left -= totals[whole]
        whole += 1
    enumerated = strata(sizes[:whole], totals[:whole], totals[:whole])
    members = draw_coalitions(key, agents, enumerated)
    mass = np.repeat(np.divide(shares[:whole], totals[:whole]), totals[:whole])
    fraction = np.ones(len(mass))
    if whole < len(sizes):
        rest = np.array(shares[whole:])
        for_sizes, for_members = jax.random.split(key)
        bounds = jnp.asarray(np.cumsum(rest)[:-1] / rest.sum())
        places = jnp.searchsorted(bounds, jax.random.uniform(for_sizes, (left,), bounds.dtype))
        chosen = jnp.asarray(sizes[whole:], jnp.int32)[places]
        members = jnp.concatenate([members, coalitions_of_size(for_members, chosen, agents)])
        mass = np.concatenate([mass, np.full(left, rest.sum() / max(left, 1))])
        fraction = np.concatenate([fraction, np.zeros(left)])
    return _solve(utility, weights, members, mass, fraction, batch_size)


def leverage_shapley(
    utility: Utility,
    weights: jax.typing.ArrayLike,
    *,
    evaluations: int,
    key: jax.Array | None = None,
    batch_size: int | None = None,
) -> jax.Array:
    """Estimate Shapley values by regression on pairs drawn by their leverage, none of them twice.

    c = argmin sum over drawn S of k(S) / p(S) (v(S) - v(0) - sum_{i in S} c_i)^2,
    sum_i c_i = v(w) - v(0), p(S) the probability of being drawn

    The leverage of a coalition in the Shapley regression is 1 / C(A, s) (up to a factor), so every
    size gets the same number of draws; a size with fewer coalitions is enumerated, which sizes 1
    and A - 1 are in any case. The numbers a size are fixed at their expectation instead of drawn,
    so that shapes are static.

    Cost: at most `evaluations` utility evaluations (an odd one is not used), and from 2**A on all
    coalitions and the exact value. Holds: efficiency (to rounding), linearity in the utility for a
    fixed key; symmetry and null agent up to the sampling error (an agent of weight 0 gets exactly
    0). Exact in additive games. Consistent, with a bias of the order of 1 / evaluations; O(A log A)
    evaluations come within a constant factor of the best additive fit. Does not hold:
    split-invariance.

    Args:
        utility: A pure function of participation weights `[A]`.
        weights: The grand coalition's participation weights, `[A]` in [0, 1].
        evaluations: The budget, at least 2 A + 2 (2**A for A <= 2), plus two for every size
            between: a pair of each.
        key: A `jax.random.key`; required.
        batch_size: How many coalitions at once; None means 256.

    Returns:
        Credits `[A]`, in the unit of the utility.

    Raises:
        ValueError: If `key` is None, `evaluations` is too small, `weights` is not `[A]` in [0, 1],
            `batch_size` is less than 1, or the utility does not return a scalar.

    Source: Musco & Witter, "Provably accurate Shapley value estimation via leverage score
    sampling", arXiv:2410.01917.
    """
    return leverage_shapley_with_error(
        utility, weights, evaluations=evaluations, key=key, batch_size=batch_size
    ).credits


def leverage_shapley_with_error(
    utility: Utility,
    weights: jax.typing.ArrayLike,
    *,
    evaluations: int,
    key: jax.Array | None = None,
    batch_size: int | None = None,
) -> Sampled:
    """Estimate Shapley values as `leverage_shapley` does, with their standard errors.

    The standard errors are the regression's, robust to unequal spread, by deleted residuals, with
    the correction for finite populations. The bias is not in them.

    Args:
        utility: A pure function of participation weights `[A]`.
        weights: The grand coalition's participation weights, `[A]` in [0, 1].
        evaluations: The budget, as in `leverage_shapley`.
        key: A `jax.random.key`; required.
        batch_size: How many coalitions at once; None means 256.

    Returns:
        `Sampled(credits, standard_error, evaluations)`; the credits are those of `leverage_shapley`
        with the same arguments.

    Raises:
        ValueError: As `leverage_shapley`.
    """
    weights = participation(weights)
    agents = weights.shape[0]
    sizes, totals = _pairs(agents)
    least = _least(agents) + 2 * max(len(sizes) - 1, 0)
    key = check_evaluations(evaluations, least, key)
    # A size and its complement's are two; the middle size of an even number of agents is one.
    shares = [0.5 if 2 * size == agents else 1.0 for size in sizes]
    first = totals[:1]
    others = share_out((evaluations - 2) // 2 - sum(first), shares[1:], totals[1:], least=1)
    counts = [*first, *others]
    drawn = strata(sizes, counts, totals)
    members = draw_coalitions(key, agents, drawn)
    share = np.array([1 / (size * (agents - size)) for size in sizes]) * shares
    mass = np.repeat(share / counts, counts)
    return _solve(
        utility, weights, members, mass, np.repeat(drawn.counts / drawn.totals, counts), batch_size
    )


def _least(agents: int) -> int:
    return min(2 * agents + 2, 2**agents)


def _pairs(agents: int) -> tuple[list[int], list[int]]:
    """Sizes up to half of the agents, and how many pairs of complements each has.

    Of the middle size, the coalitions without the last agent, which rank first, are one of each.
    """
    sizes = list(range(1, agents // 2 + 1))
    return sizes, [math.comb(agents, size) // (2 if 2 * size == agents else 1) for size in sizes]


def _solve(
    utility: Utility,
    weights: jax.Array,
    members: jax.Array,
    mass: np.ndarray,
    fraction: np.ndarray,
    batch_size: int | None,
) -> Sampled:
    """The constrained regression on pairs `members[j]` and its complement, each of this mass.

    Args:
        utility: A pure function of participation weights.
        weights: `[A]`.
        members: One coalition of each pair, booleans `[n, A]`.
        mass: The pair's weight in the sum of squares, `[n]`.
        fraction: Which part of its population its draw took, `[n]`; 1 where enumerated.
        batch_size: How many coalitions at once.
    """
    agents = weights.shape[0]
    rows = jnp.concatenate(
        [jnp.zeros((1, agents), bool), members, ~members, jnp.ones((1, agents), bool)]
    )
    values = evaluate(utility, weights, rows, batch_size=batch_size)
    asked = values.dtype
    # Systems are solved in single precision at least: there is no lower one that could be.
    kind = jnp.promote_types(asked, jnp.float32)
    values = values.astype(kind)
    gain = values[-1] - values[0]
    present = (weights > 0).astype(kind)
    share = present / jnp.maximum(jnp.sum(present), 1)
    even = gain * share
    if not len(mass):
        even, nothing = even.astype(asked), jnp.zeros_like(even, asked)
        return Enumerated(even, nothing, jnp.asarray(rows.shape[0], jnp.int32))
    odd = 0.5 * marginal(values[1 : 1 + len(mass)], values[1 + len(mass) : -1])
    inside = members.astype(kind)
    number = inside @ share
    target = odd - gain * (number - 0.5)
    # Deviations from an even share, of those present alone.
    design = (inside - number[:, None]) * present[None, :]
    weight = jnp.asarray(mass / mass.sum(), dtype=kind)
    closed = jnp.outer(share, share) + jnp.diag(1 - present)
    factor = jax.scipy.linalg.cho_factor(design.T @ (weight[:, None] * design) + closed)
    hat = jax.scipy.linalg.cho_solve(factor, (weight[:, None] * design).T).T
    slope = target @ hat
    residual = target - design @ slope
    leverage = jnp.sum(hat * design, axis=1)
    deleted = residual / jnp.maximum(1 - leverage, 1e-3)
    unseen = jnp.sqrt(jnp.asarray(1 - fraction, dtype=kind))
    terms = among_present(hat * (unseen * deleted)[:, None], weights)
    credits = only_present(among_present(slope, weights) + even, weights)
    error = only_present(jnp.sqrt(jnp.sum(terms**2, axis=0)), weights)
    told = Enumerated if np.all(fraction == 1) else Sampled
    return told(
        credits=credits.astype(asked),
        standard_error=error.astype(asked),
        evaluations=jnp.asarray(rows.shape[0], dtype=jnp.int32),
    )
