"""CGSV: how well every client's direction agrees with everybody's, as a running reputation."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from vcca_jax.baselines.federated import ClientUpdates
from vcca_jax.baselines.local_training import norms, weighted_sum
from vcca_jax.contribution.federated.score import (
    FederatedScore,
    check_capacity,
    on_agent_axis,
    present,
)
from vcca_jax.rows import tree_dot


class Reputation(NamedTuple):
    """State of `cgsv`.

    Attributes:
        reputation: `[A]`, r, summing to 1 over who took part so far (before that 0).
        seen: `[A]` bool, who took part in some round.
    """

    reputation: jax.Array
    seen: jax.Array


def cgsv(capacity: int, *, memory: float = 0.95, floor: float = 1e-3) -> FederatedScore:
    """Rate every agent by the cosine of its update and the reputation-weighted aggregate.

    u_i = D_i / |D_i|,   u = sum_i r_i u_i,   psi_i = cos(u_i, u)
    r_i <- max( alpha r_i + (1 - alpha) psi_i, floor ),   then   r <- r / sum_j r_j

    psi_i is the paper's proxy of the Shapley value of the game nu(S) = cos(u_S, u). Unlike the
    other scores it needs no validation data, and it is not in the unit of any utility: it says who
    goes where most go, right or wrong, and nothing of how far.

    As published: every round's updates are normalised (their common length Gamma cancels from every
    cosine and is left out), a reputation starts at the client's share of the samples, and negative
    ones are lifted to the floor. Our reading where the paper has everybody take part: an agent
    starts in its first round, at its weight in it, and who is absent keeps its reputation but for
    the division; the cosine with an update of zero is 0.

    Cost: three passes over the updates a round, no utility evaluation. Holds: symmetry for agents
    seen in the same rounds, an agent never seen has 0. Does not hold: efficiency (the sum is 1,
    whatever was gained), additivity over rounds (moving average, floor, division), a zero for an
    update of zero (its psi is 0, but its reputation fades only as alpha^t and stops at the floor:
    IT IS PAID FOR NOTHING), strong monotonicity (a client may do more good and be rated less, as
    its direction is rarer), and split-invariance: WHO SPLITS IN TWO IS RATED ALMOST TWICE, as
    each half has the full cosine.

    Args:
        capacity: A, the length of the agent axis.
        memory: alpha, in [0, 1]; 0.95 in the paper.
        floor: the least reputation before the division, > 0.

    Returns:
        A `FederatedScore` with state `Reputation`; the info is the round's psi, `[A]`.

    Raises:
        ValueError: If `capacity` is less than 1, `memory` is outside [0, 1], or `floor` is not
            positive.

    Source: Xu, Lyu, Ma, Miao, Foo & Low, "Gradient driven rewards to guarantee fairness in
    collaborative machine learning", NeurIPS (2021).
    """
    check_capacity(capacity)
    if not 0 <= memory <= 1:
        raise ValueError(f"memory is {memory}; pass a number in [0, 1]")
    if not floor > 0:
        raise ValueError(f"floor is {floor}; pass a positive number, or reputations may all be 0")

    def init() -> Reputation:
        return Reputation(jnp.zeros(capacity), jnp.zeros(capacity, bool))

    def step(state: Reputation, learnt: ClientUpdates) -> tuple[Reputation, jax.Array]:
        kind = state.reputation.dtype
        here = jnp.zeros(capacity, bool).at[learnt.agents].max(present(learnt))
        share = on_agent_axis(learnt.weights.astype(kind), learnt, capacity)
        before = jnp.where(state.seen, state.reputation, share)
        cosines = agreement(learnt, before[learnt.agents]).astype(kind)
        told = on_agent_axis(cosines, learnt, capacity)
        after = jnp.where(here, memory * before + (1 - memory) * told, before)
        seen = state.seen | here
        after = jnp.where(seen, jnp.maximum(after, floor), 0)
        # Nobody is seen before the first round with a live sample.
        total = after.sum()
        return Reputation(after / jnp.where(total > 0, total, 1), seen), told

    return FederatedScore(init, step, lambda state: state.reputation)


def agreement(learnt: ClientUpdates, reputations: jax.Array) -> jax.Array:
    """psi_i, `[C]`: the cosines of the updates and their aggregate; 0 where either is zero."""
    count = learnt.weights.shape[0]
    lengths = norms(learnt.updates, count)
    pull = jnp.where(present(learnt), reputations, 0)
    aggregate = weighted_sum(_quotient(pull, lengths), learnt.updates)
    along = jax.vmap(tree_dot, in_axes=(0, None))(learnt.updates, aggregate)
    # Divided one after the other: the product of two small lengths may be none.
    return _quotient(
        _quotient(along, lengths), jnp.full(count, jnp.sqrt(tree_dot(aggregate, aggregate)))
    )


def reward_fractions(reputations: jax.Array, *, altruism: float = 1.0) -> jax.Array:
    """The part of the aggregated update that each agent is handed, CGSV's reward in kind.

    q_i = tanh(beta r_i) / max_j tanh(beta r_j)

    Agent i then downloads the top q_i of the aggregate's entries, layer by layer, by size.

    Args:
        reputations: r, `[A]`, none negative.
        altruism: beta > 0; the larger, the more alike the rewards.

    Returns:
        q, `[A]` in [0, 1]; all 0 if no reputation is positive.

    Raises:
        ValueError: If `altruism` is not positive.
    """
    if not altruism > 0:
        raise ValueError(f"altruism is {altruism}; pass a positive number")
    grown = jnp.tanh(altruism * reputations)
    return _quotient(grown, jnp.full(grown.shape, jnp.max(grown)))


def _quotient(top: jax.Array, bottom: jax.Array) -> jax.Array:
    """top / bottom, and 0 where the bottom is 0."""
    return jnp.where(bottom > 0, top / jnp.where(bottom > 0, bottom, 1), 0)
