"""ComFedSV: the Shapley value of a run whose unseen coalitions are filled in by low rank."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vcca_jax.baselines.federated import ClientUpdates
from vcca_jax.contribution.coalitions import MAX_ENUMERATED_AGENTS, coalition_values, members_of
from vcca_jax.contribution.federated.completion import complete
from vcca_jax.contribution.federated.games import RoundGame, ValidationLoss, renormalised_game
from vcca_jax.contribution.federated.score import (
    FederatedScore,
    check_capacity,
    on_agent_axis,
    present,
)
from vcca_jax.contribution.semivalues import exact_shapley


class UtilityMatrix(NamedTuple):
    """State of `comfedsv`: what each round told of the coalitions of the N members.

    Attributes:
        values: U, `[T, 2**N]`, the gain of round t with coalition S alone; 0 where not observed.
            Bit i of a column's number stands for member i, in the order of `members`.
        observed: `[T, 2**N]` bool: coalitions inside the round's participants.
        round: scalar int32, rounds so far.
    """

    values: jax.Array
    observed: jax.Array
    round: jax.Array


def comfedsv(
    validation_loss: ValidationLoss,
    capacity: int,
    *,
    rounds: int,
    rank: int,
    key: jax.Array,
    members: Sequence[int] | None = None,
    game: RoundGame = renormalised_game,
    regularisation: float = 0.1,
    sweeps: int = 100,
) -> FederatedScore:
    """Credit every member with its Shapley value in all rounds, as if it had been in each of them.

    U_tS = U(theta_t + mean of D_k over S) - U(theta_t),   observed where S lies inside I_t
    U ~ W H^T by `complete`,   s_i = Shapley value of the game  S -> sum_t w_t . h_S

    FedSV credits an absent agent with 0, so that two with the same data may be paid differently for
    the rounds that they were drawn for. Here the rounds of the one fill in what is not known of the
    other.

    As published, U being minus the validation loss. The mean is weighted as the round is
    (`weighting="uniform"` gives the paper's plain mean); the regularisation is relative to the size
    of the observed gains (see `complete`), and all coalitions are enumerated: the paper's sampling
    of orders for many clients is not offered. The first round must have every member, so that each
    coalition was seen once. That suffices for rank 1 only: the column of everybody is observed in
    full rounds alone, and rank r takes r of them to be pinned down; beyond that it is a guess, and
    with little regularisation a wild one. Measured over 16 runs of 8 rounds, five clients, two of
    them alike, three a round but for the first: the two alike were apart by 8 % of all credit under
    FedSV on average, here by 2 % at rank 1 and 4 % at rank 2 (by 6 % and 9 % with 1e-3 for the
    regularisation's 0.1).

    Cost: 2**C utility evaluations a round, T x 2**N memory, and the completion when asked for the
    credits. Holds approximately, as far as the completion does: efficiency with respect to
    sum_t w_t . h_N (which need not be the run's gain), symmetry across sampling patterns. Does not
    hold: additivity over rounds (a later round changes what an earlier one is thought to have
    been), an update of zero gets 0 and split-invariance (see `renormalised_game`).

    Args:
        validation_loss: `validation_loss(params) -> scalar`.
        capacity: A, the length of the agent axis.
        rounds: T, the most rounds; a further one is dropped.
        rank: r, of the completion.
        key: a `jax.random.key`, for the completion's start.
        members: the N slots that take part, each once, N <= 20; all by default. Others are credited
            with 0, and their updates are left out of every coalition.
        game: turns a round into a utility of its clients.
        regularisation: of the completion.
        sweeps: of the completion.

    Returns:
        A `FederatedScore` with state `UtilityMatrix`; the info is the gain of each agent alone in
        this round, U_t{i}, `[A]`, 0 for the absent. `credits` raises a `ValueError` if the first
        round was without a member (when its state is known, that is outside of `jit`).

    Raises:
        ValueError: If `capacity` or `rounds` is less than 1, or `members` are not distinct slots,
            or too many of them.

    Source: Fan, Fang, Zhou, Pei, Friedlander, Liu & Zhang, "Improving fairness for data valuation
    in horizontal federated learning", arXiv:2109.09046.
    """
    check_capacity(capacity)
    slots = np.arange(capacity) if members is None else np.array(members, dtype=np.int64)
    _check_members(slots, capacity)
    if rounds < 1:
        raise ValueError(f"rounds is {rounds}; pass the number of rounds, at least 1")
    count = len(slots)
    # Who is no member has no bit.
    bits = np.zeros(capacity, np.int32)
    bits[slots] = 2 ** np.arange(count)

    def init() -> UtilityMatrix:
        shape = (rounds, 2**count)
        return UtilityMatrix(jnp.zeros(shape), jnp.zeros(shape, bool), jnp.zeros((), jnp.int32))

    def step(state: UtilityMatrix, learnt: ClientUpdates) -> tuple[UtilityMatrix, jax.Array]:
        bit = jnp.asarray(bits).at[learnt.agents].get(mode="fill", fill_value=0)
        taking_part = present(learnt) & (bit > 0)
        utility = game(learnt.params, learnt.updates, learnt.weights, validation_loss)
        values = coalition_values(utility, taking_part.astype(learnt.weights.dtype))
        clients = learnt.weights.shape[0]
        bit = jnp.where(taking_part, bit, 0)
        inside = members_of(jnp.arange(2**clients), clients)
        # Coalitions that differ in padding clients alone share a column and a value.
        columns = jnp.where(inside, bit[None, :], 0).sum(axis=1)
        gains = (values - values[0]).astype(state.values.dtype)
        row = jnp.zeros(2**count, gains.dtype).at[columns].set(gains)
        seen = jnp.zeros(2**count, bool).at[columns].set(True)
        alone = on_agent_axis(row[bit], learnt, capacity)
        after = UtilityMatrix(
            state.values.at[state.round].set(row),
            state.observed.at[state.round].set(seen),
            state.round + 1,
        )
        return after, alone

    def credits(state: UtilityMatrix) -> jax.Array:
        _check_first_round(state.observed, slots)
        completed = complete(
            state.values,
            state.observed,
            rank=rank,
            key=key,
            regularisation=regularisation,
            sweeps=sweeps,
        )
        table = completed.values.sum(axis=0)
        place = jnp.asarray(2 ** np.arange(count))
        everybody = jnp.ones(count, table.dtype)
        value = exact_shapley(lambda w: table[jnp.where(w > 0, place, 0).sum()], everybody)
        return jnp.zeros(capacity, value.dtype).at[slots].set(value)

    return FederatedScore(init, step, credits)


def _check_members(slots: np.ndarray, capacity: int) -> None:
    if not 1 <= len(slots) <= MAX_ENUMERATED_AGENTS:
        raise ValueError(
            f"members has {len(slots)} slots; all their coalitions are enumerated, so name between"
            f" 1 and {MAX_ENUMERATED_AGENTS}"
        )
    if len(np.unique(slots)) != len(slots) or slots.min() < 0 or slots.max() >= capacity:
        raise ValueError(f"members={slots.tolist()} must be distinct slots in 0..{capacity - 1}")


def _check_first_round(observed: jax.Array, slots: np.ndarray) -> None:
    if isinstance(observed, jax.core.Tracer):
        return
    alone = np.asarray(observed)[0, 2 ** np.arange(len(slots))]
    if not alone.all():
        raise ValueError(
            f"the first round is without members {slots[~alone].tolist()}; begin with a round of"
            " everybody, so that each coalition was seen once, or leave them out of members"
        )
