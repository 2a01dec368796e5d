"""Scores that go on over federated rounds: their shape, and those that simply add up."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vcca_jax.arguments import check_count
from vcca_jax.baselines.federated import ClientUpdates


class FederatedScore(NamedTuple):
    """A contribution score over rounds, as three pure functions.

    Attributes:
        init: `init() -> state`.
        step: `step(state, learnt) -> (state, info)` for the `ClientUpdates` of one round; the info
            is what the round told of each agent, `[A]`. Not jitted; jit, scan or vmap it.
        credits: `credits(state) -> [A]`, the score so far.
    """

    init: Callable[[], Any]
    step: Callable[[Any, ClientUpdates], tuple[Any, jax.Array]]
    credits: Callable[[Any], jax.Array]


class Accumulated(NamedTuple):
    """State of a score that is a sum over rounds.

    Attributes:
        credits: `[A]`, the sum so far; exactly 0 for an agent that never took part.
        round: scalar int32, rounds so far.
    """

    credits: jax.Array
    round: jax.Array


def accumulating(
    credit: Callable[[ClientUpdates, jax.Array], jax.Array], capacity: int
) -> FederatedScore:
    """The score that adds up what each round credits its clients with.

    Args:
        credit: `credit(learnt, round) -> [C]`, pure; padding clients are not asked about.
        capacity: A, the length of the agent axis.

    Raises:
        ValueError: If `capacity` is less than 1.
    """
    check_capacity(capacity)

    def init() -> Accumulated:
        return Accumulated(jnp.zeros(capacity), jnp.zeros((), jnp.int32))

    def step(state: Accumulated, learnt: ClientUpdates) -> tuple[Accumulated, jax.Array]:
        told = on_agent_axis(credit(learnt, state.round), learnt, capacity)
        told = told.astype(state.credits.dtype)
        return Accumulated(state.credits + told, state.round + 1), told

    return FederatedScore(init, step, lambda state: state.credits)


def present(learnt: ClientUpdates) -> jax.Array:
    """`[C]` bool, the clients that took part: all but padding."""
    return learnt.weights > 0


def on_agent_axis(values: jax.Array, learnt: ClientUpdates, capacity: int) -> jax.Array:
    """Clients' values `[C]` at their slots of the agent axis, `[A]`; 0 for who was absent.

    Raises:
        ValueError: If a client that took part has no slot. Where that is not known, under `jit`,
            nothing that is returned is a number then: no credit is lost in silence.
    """
    here, slots = present(learnt), learnt.agents
    outside = here & ((slots < 0) | (slots >= capacity))
    if not isinstance(outside, jax.core.Tracer) and np.asarray(outside).any():
        raise ValueError(
            f"capacity is {capacity}, and clients of slots {np.asarray(slots[outside]).tolist()}"
            " took part; pass the length of the agent axis"
        )
    kept = jnp.where(here, values, jnp.zeros_like(values))
    told = jnp.zeros(capacity, values.dtype).at[slots].add(kept)
    return jnp.where(outside.any(), jnp.nan, told)


def check_capacity(capacity: int) -> None:
    """``ValueError`` for an agent axis without a slot."""
    if check_count("capacity", capacity, 0) < 1:
        raise ValueError(f"capacity is {capacity}; pass the length of the agent axis, at least 1")
