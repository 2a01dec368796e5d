"""Exact semivalues: Shapley, Banzhaf, Beta-Shapley and any other, from all 2**A coalitions.

A semivalue weighs an agent's marginal contributions by the size of the coalition it joins:

    c_i = sum over S without i of  p(|S|) (v(S + i) - v(S)),  sum_s C(A-1, s) p(s) = 1.

The three that have a name come from one measure on [0, 1] for every number of agents, so agents of
weight 0 (padding) change nobody else's value.
"""

import math
from collections.abc import Sequence
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np

from vcca_jax.contribution.coalitions import coalition_values, marginal, only_present, participation
from vcca_jax.contribution.protocols import Utility
from vcca_jax.contribution.size_measures import SizeMeasure, beta_sizes, sizes_for


def exact_shapley(
    utility: Utility,
    weights: jax.typing.ArrayLike,
    *,
    key: jax.Array | None = None,
    batch_size: int | None = None,
) -> jax.Array:
    """Credit every agent with its Shapley value, by enumeration.

    c_i = sum over S without i of  |S|! (A - |S| - 1)! / A!  (v(S + i) - v(S))

    Cost: 2**A utility evaluations, exactly one a coalition. Holds: efficiency, symmetry, null agent
    (exactly 0, in the sense of `leave_one_out`), linearity in the utility. Does not hold:
    split-invariance.

    Args:
        utility: A pure function of participation weights `[A]`.
        weights: The grand coalition's participation weights, `[A]` in [0, 1], A <= 20.
        key: Not used; accepted so that all estimators are called alike.
        batch_size: How many coalitions at once; None means 256.

    Returns:
        Credits `[A]`, in the unit of the utility.

    Raises:
        ValueError: If A > 20, `weights` is not `[A]` in [0, 1], `batch_size` is less than 1, or the
            utility does not return a scalar.

    Example:
        >>> def utility(w):  # a pair of gloves is worth 1; agents 0 and 1 have left ones
        ...     return jnp.minimum(w[0] + w[1], w[2])
        >>> [round(float(credit), 3) for credit in exact_shapley(utility, jnp.ones(3))]
        [0.167, 0.167, 0.667]

    Source: Shapley, "A value for n-person games", Contributions to the Theory of Games II (1953).
    """
    del key
    weights = participation(weights)
    return _semivalue(utility, weights, shapley_masses(weights.shape[0]), batch_size)


def banzhaf(
    utility: Utility,
    weights: jax.typing.ArrayLike,
    *,
    key: jax.Array | None = None,
    batch_size: int | None = None,
) -> jax.Array:
    """Credit every agent with its Banzhaf value, by enumeration; not normalised.

    c_i = 2**-(A - 1) sum over S without i of  (v(S + i) - v(S))

    Cost: 2**A utility evaluations, exactly one a coalition. Holds: symmetry, null agent (exactly 0,
    in the sense of `leave_one_out`), linearity in the utility; of all semivalues its ranking stands
    the most noise in the utility. Does not hold: efficiency, split-invariance.

    Args:
        utility: A pure function of participation weights `[A]`.
        weights: The grand coalition's participation weights, `[A]` in [0, 1], A <= 20.
        key: Not used; accepted so that all estimators are called alike.
        batch_size: How many coalitions at once; None means 256.

    Returns:
        Credits `[A]`, in the unit of the utility.

    Raises:
        ValueError: If A > 20, `weights` is not `[A]` in [0, 1], `batch_size` is less than 1, or the
            utility does not return a scalar.

    Source: Banzhaf, Rutgers Law Review 19 (1965); Wang & Jia, "Data Banzhaf", arXiv:2205.15466.
    """
    del key
    weights = participation(weights)
    agents = weights.shape[0]
    return _semivalue(utility, weights, [Fraction(1, 2 ** (agents - 1))] * agents, batch_size)


def beta_shapley(
    utility: Utility,
    weights: jax.typing.ArrayLike,
    *,
    alpha: float,
    beta: float,
    key: jax.Array | None = None,
    batch_size: int | None = None,
) -> jax.Array:
    """Credit every agent with its Beta(alpha, beta)-Shapley value, by enumeration.

    c_i = sum over S without i of  B(|S| + beta, A - |S| - 1 + alpha) / B(alpha, beta)
          (v(S + i) - v(S)),  B the beta function

    alpha > beta stresses small coalitions, beta > alpha large ones; Beta(1, 1) is Shapley.

    Cost: 2**A utility evaluations, exactly one a coalition. Holds: symmetry, null agent (exactly 0,
    in the sense of `leave_one_out`), linearity in the utility. Does not hold: efficiency (but for
    alpha = beta = 1), split-invariance.

    Args:
        utility: A pure function of participation weights `[A]`.
        weights: The grand coalition's participation weights, `[A]` in [0, 1], A <= 20.
        alpha: First parameter, positive; (16, 1) is a common choice to find bad data.
        beta: Second parameter, positive.
        key: Not used; accepted so that all estimators are called alike.
        batch_size: How many coalitions at once; None means 256.

    Returns:
        Credits `[A]`, in the unit of the utility.

    Raises:
        ValueError: If `alpha` or `beta` is not positive and finite, A > 20, `weights` is not `[A]`
            in [0, 1], `batch_size` is less than 1, or the utility does not return a scalar.

    Source: Kwon & Zou, "Beta Shapley", arXiv:2110.14049.
    """
    sizes = beta_sizes(alpha, beta)
    return semivalue(utility, weights, by_size=sizes, key=key, batch_size=batch_size)


def semivalue(
    utility: Utility,
    weights: jax.typing.ArrayLike,
    *,
    by_size: SizeMeasure,
    key: jax.Array | None = None,
    batch_size: int | None = None,
) -> jax.Array:
    """Credit every agent with a semivalue of one's own choice, by enumeration.

    c_i = sum_s q(s) mean over S without i, |S| = s, of  (v(S + i) - v(S)),  sum_s q(s) = 1

    q(s), `by_size`, is the probability that the coalition joined has s members: even for Shapley,
    binomial for Banzhaf and its weighted form (`binomial_sizes`), beta-binomial for Beta-Shapley
    (`beta_sizes`), all on A - 1 for leave-one-out.

    Cost: 2**A utility evaluations, exactly one a coalition; `semivalue_sampled` goes further.
    Holds: symmetry, null agent (exactly 0, in the sense of `leave_one_out`), linearity in the
    utility. Does not hold: efficiency (but for Shapley), split-invariance. Agents of weight 0 count
    among the A: they change nobody's credit where the q of all A come from one measure on [0, 1],
    as those of both functions named do.

    Args:
        utility: A pure function of participation weights `[A]`.
        weights: The grand coalition's participation weights, `[A]` in [0, 1], A <= 20.
        by_size: q(0) .. q(A - 1), or a function of A that returns them, as `beta_sizes(4, 1)` is.
        key: Not used; accepted so that all estimators are called alike.
        batch_size: How many coalitions at once; None means 256.

    Returns:
        Credits `[A]`, in the unit of the utility.

    Raises:
        ValueError: If `by_size` is no probability of the sizes 0 .. A - 1, A > 20, `weights` is not
            `[A]` in [0, 1], `batch_size` is less than 1, or the utility does not return a scalar.

    Example:
        >>> def utility(w):  # a motion needs two of three, and each says yes with 0.9
        ...     return jnp.where(jnp.sum(w > 0) > 1, 1.0, 0.0)
        >>> credits = semivalue(utility, jnp.ones(3), by_size=[0.01, 0.18, 0.81])
        >>> [round(float(credit), 2) for credit in credits]
        [0.18, 0.18, 0.18]

    Source: Dubey, Neyman & Weber, "Value theory without efficiency", Mathematics of Operations
    Research 6 (1981).
    """
    del key
    weights = participation(weights)
    others = weights.shape[0] - 1
    sizes = sizes_for(by_size, others + 1)
    masses = [float(q) / math.comb(others, size) for size, q in enumerate(sizes)]
    return _semivalue(utility, weights, masses, batch_size)


def _semivalue(
    utility: Utility, weights: jax.Array, masses: Sequence[Fraction | float], batch_size: int | None
) -> jax.Array:
    values = coalition_values(utility, weights, batch_size=batch_size)
    return only_present(by_sizes(values, masses), weights)


def shapley_masses(agents: int) -> list[Fraction]:
    """What Shapley's value gives one coalition of each size of the others, `[A]`."""
    return [Fraction(1, agents * math.comb(agents - 1, size)) for size in range(agents)]


def by_sizes(values: jax.Array, masses: Sequence[Fraction | float]) -> jax.Array:
    """Every agent's contributions `[A]`, from the values of all coalitions `[2**A]`.

    Args:
        values: As `coalition_values` returns them.
        masses: `[A]`, by the size of the coalition joined.
    """
    agents = len(masses)
    # Coalitions of the others, whoever is taken out of the numbering, keep their order: the same
    # sizes serve every agent.
    sizes = np.bitwise_count(np.arange(2 ** (agents - 1)))
    mass = jnp.asarray(np.array([float(p) for p in masses])[sizes], dtype=values.dtype)

    def credit(agent: int) -> jax.Array:
        # Differences first, so that an agent that changes nothing gets a sum of exact zeros.
        split = values.reshape((-1, 2, 2**agent))
        return jnp.sum(mass * marginal(split[:, 1], split[:, 0]).reshape(-1))

    return jnp.stack([credit(agent) for agent in range(agents)])
