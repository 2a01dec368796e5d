"""Interactions of agents: what two are worth together beyond what each is worth alone."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from vcca_jax.contribution.coalitions import coalition_values, marginal, only_present, participation
from vcca_jax.contribution.protocols import Utility
from vcca_jax.contribution.semivalues import by_sizes, shapley_masses


def shapley_interactions(
    utility: Utility,
    weights: jax.typing.ArrayLike,
    *,
    key: jax.Array | None = None,
    batch_size: int | None = None,
) -> jax.Array:
    """The Shapley interaction index of every pair of agents, by enumeration.

    I_ij = sum over S without i and j of  |S|! (A - |S| - 2)! / (A - 1)!
           (v(S + i + j) - v(S + i) - v(S + j) + v(S)),     I_ii = c_i, the Shapley value

    Positive: the two complement each other; negative: they replace each other, as replicas do. The
    diagonal holds the index of order one, which is the Shapley value, at no further cost.

    Cost: 2**A utility evaluations, exactly one a coalition, and A (A - 1) / 2 sums over a quarter
    of them, one pair after the other. Holds: symmetry of the matrix (exactly) and of agents, null
    agent (its row and column are 0, exactly in the sense of `leave_one_out`), linearity in the
    utility, efficiency of the diagonal; off the diagonal 0 in additive games, to rounding. In a
    game of pairs I_ij is the worth of the pair. Does not hold: the matrix's sum is no gain.

    Args:
        utility: A pure function of participation weights `[A]`.
        weights: The grand coalition's participation weights, `[A]` in [0, 1], A <= 20.
        key: Not used; accepted so that it is called as estimators are.
        batch_size: How many coalitions at once; None means 256.

    Returns:
        `[A, A]`, symmetric, in the unit of the utility.

    Raises:
        ValueError: If A > 20, `weights` is not `[A]` in [0, 1], `batch_size` is less than 1, or the
            utility does not return a scalar.

    Source: Owen, "Multilinear extensions of games", Management Science 18 (1972); Grabisch &
    Roubens, "An axiomatic approach to the concept of interaction among players in cooperative
    games", International Journal of Game Theory 28 (1999).
    """
    del key
    weights = participation(weights)
    agents = weights.shape[0]
    values = coalition_values(utility, weights, batch_size=batch_size)
    matrix = jnp.diag(only_present(by_sizes(values, shapley_masses(agents)), weights))
    if agents == 1:
        return matrix
    first, second = np.triu_indices(agents, k=1)
    others, mass = _others(agents, values.dtype)

    def index(pair: jax.Array) -> jax.Array:
        without = _skipping(_skipping(others, pair[0]), pair[1])
        i, j = 1 << pair[0], 1 << pair[1]
        alone = marginal(values[without | i], values[without])
        together = marginal(values[without | i | j], values[without | j])
        return jnp.sum(mass * marginal(together, alone))

    found = jax.lax.map(index, jnp.stack([jnp.asarray(first), jnp.asarray(second)], axis=1))
    here = (weights[first] > 0) & (weights[second] > 0)
    found = jnp.where(here, found, jnp.zeros_like(found))
    return matrix.at[first, second].set(found).at[second, first].set(found)


def _others(agents: int, kind: jnp.dtype) -> tuple[jax.Array, jax.Array]:
    """Numbers of the coalitions of all but two agents, and the index's weight of each."""
    rest = agents - 2
    codes = np.arange(2**rest)
    by_size = [1 / ((rest + 1) * math.comb(rest, size)) for size in range(rest + 1)]
    mass = np.array(by_size)[np.bitwise_count(codes)]
    return jnp.asarray(codes), jnp.asarray(mass, dtype=kind)


def _skipping(codes: jax.Array, place: jax.Array) -> jax.Array:
    """Put a 0 in at a bit, the higher bits moving up: coalitions in which this agent is not."""
    low = codes & ((1 << place) - 1)
    return ((codes - low) << 1) | low
