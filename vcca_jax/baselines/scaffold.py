"""SCAFFOLD: federated learning whose clients correct for how their data differs.

Source: Karimireddy et al. 2019, arXiv:1910.06378, Algorithm 1 with option II. Each client i keeps a
control variate c_i, an estimate of its own gradient, and the server keeps their mean c. From x, the
server's model, a client of the round takes K_i local steps

    y <- y - eta_l (g_i(y) - c_i + c)

and renews its control variate, c_i+ = c_i - c + (x - y_i) / (K_i eta_l). The server then moves

    x <- x + eta_g sum_{i in S} w_i (y_i - x),      c <- c + sum_{i in S} p_i (c_i+ - c_i),

where p_i is i's share among all N members with data (1/N in the paper) and w_i its share among the
clients S of the round. The correction takes away the pull of each client towards its own optimum,
so that several local steps still lead to the optimum of the whole.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from vcca_jax.baselines.federated import FederatedInfo, round_info
from vcca_jax.baselines.local_training import (
    Weighting,
    check_clients_at_once,
    check_weighting,
    client_weights,
    differences,
    mean_loss_and_gradient,
    norms,
    sum_over_clients,
    train_side_by_side,
    weighted_sum,
)
from vcca_jax.cooperative import Shards
from vcca_jax.rounds import Client, Round
from vcca_jax.trainer import ExampleLoss, Params, Trainer, strong, where_live
from vcca_jax.virtual_batch import VirtualBatch


class ScaffoldState(NamedTuple):
    """State of SCAFFOLD.

    Attributes:
        params: the server's model, x.
        control: the server's control variate c, like the parameters.
        controls: the agents' c_i, like the parameters with a leading [A].
        step: scalar int32, rounds with a live sample so far.
    """

    params: Params
    control: Params
    controls: Any
    step: jax.Array


def scaffold(
    loss_fn: ExampleLoss,
    local_rate: float,
    *,
    capacity: int,
    global_rate: float = 1.0,
    weighting: Weighting = "uniform",
    clients_at_once: int | None = None,
) -> Trainer:
    """Trainer by SCAFFOLD, with plain SGD at the clients; its step takes a ``Round``.

    All control variates start at zero. A client without a live sample, or one that is not in the
    round, keeps its own; a round without a live sample changes nothing. When members leave, call
    ``without_leavers`` before the next round: a slot's control variate is its agent's own.

    Args:
        loss_fn: per-example loss.
        local_rate: eta_l.
        capacity: A, slots on the cooperative's agent axis.
        global_rate: eta_g.
        weighting: "uniform" as in the paper, where the goal is the mean of the clients' mean
            losses; "samples" for the mean over all samples, where both w and p go by samples.
        clients_at_once: clients trained side by side, all by default. It bounds the memory of
            training; the C new control variates are held besides, and A of them in the state.

    Raises:
        ValueError: a rate that is not positive, a capacity or ``clients_at_once`` below 1, or an
            unknown weighting; by the step, a capacity that is not the round's.
    """
    for name, rate in (("local_rate", local_rate), ("global_rate", global_rate)):
        if not isinstance(rate, jax.core.Tracer) and not rate > 0:
            raise ValueError(f"{name}={rate} must be positive")
    if capacity < 1:
        raise ValueError(f"capacity={capacity} must be at least 1")
    check_weighting(weighting)
    check_clients_at_once(clients_at_once)
    optimizer = optax.sgd(local_rate)
    loss_and_gradient = mean_loss_and_gradient(loss_fn)

    def init(params: Params) -> ScaffoldState:
        params = strong(params)
        return ScaffoldState(
            params=params,
            control=jax.tree.map(jnp.zeros_like, params),
            controls=jax.tree.map(lambda p: jnp.zeros((capacity, *p.shape), p.dtype), params),
            step=jnp.zeros((), jnp.int32),
        )

    def step(state: ScaffoldState, round_: Round) -> tuple[ScaffoldState, FederatedInfo]:
        slots_there = round_.shards.mask.shape[0]
        if slots_there != capacity:
            raise ValueError(
                f"capacity={capacity} is not the cooperative's {slots_there}; make them alike"
            )

        def corrected(params: Params, batch: VirtualBatch) -> tuple[jax.Array, Params]:
            loss, gradient = loss_and_gradient(params, batch)
            owner = batch.owners[0]
            return loss, jax.tree.map(
                lambda g, c, own: g - own[owner] + c, gradient, state.control, state.controls
            )

        def train(group: tuple[Client, jax.Array]) -> tuple[tuple[Params, Params], Any]:
            clients, shares = group
            trained, losses = train_side_by_side(
                corrected, optimizer, state.params, round_, clients
            )
            learnt = differences(trained, state.params)
            travelled = jax.vmap(lambda client: jnp.maximum(client.steps, 1) * local_rate)(clients)

            def renewal(control: jax.Array, moved: jax.Array) -> jax.Array:
                distance = travelled.astype(moved.dtype).reshape(-1, *(1 for _ in control.shape))
                return -control[None] - moved / distance

            renewals = jax.tree.map(renewal, state.control, learnt)
            renewed = jax.tree.map(
                lambda own, change: own[clients.agent] + change, state.controls, renewals
            )
            totals = (weighted_sum(shares, learnt), weighted_sum(shares, renewals))
            return totals, (losses, norms(learnt, shares.shape[0]), renewed)

        weights = client_weights(round_, weighting)
        (change, renewals), (losses, drift, renewed) = sum_over_clients(
            train, (round_.clients, weights), clients_at_once
        )
        share = _share_of_members(round_, weighting)
        after = (
            jax.tree.map(
                lambda p, moved: p + jnp.asarray(global_rate, p.dtype) * moved, state.params, change
            ),
            jax.tree.map(
                lambda c, change: c + share.astype(c.dtype) * change, state.control, renewals
            ),
            state.step + 1,
        )
        params, control, count = where_live(
            round_, after, (state.params, state.control, state.step)
        )
        # A padding client is sent to a slot that does not exist, and the write is dropped.
        slots = jnp.where(round_.sizes > 0, round_.plan.agents, capacity)
        controls = jax.tree.map(
            lambda kept, new: kept.at[slots].set(new, mode="drop"), state.controls, renewed
        )
        info = round_info(round_, losses, drift, weights)
        return ScaffoldState(params, control, controls, count), info

    return Trainer(init, step)


def without_leavers(
    state: ScaffoldState, shards: Shards, *, weighting: Weighting = "uniform"
) -> ScaffoldState:
    """The state after members left: their control variates are forgotten.

    Slots without a member have c_i = 0 again, and c is once more the mean of the members' own,
    sum_i p_i c_i, as it is after every round while nobody joins or leaves. Call it after a
    ``leave`` and before another agent takes the slot. A join needs no call; one would count the
    newcomer's c_i = 0 into the mean.

    Args:
        state: of ``scaffold``.
        shards: of the cooperative as it is now.
        weighting: the trainer's.
    """
    held = jnp.asarray(shards.mask).sum(axis=1) * jnp.asarray(shards.active)
    sizes = held.astype(jnp.result_type(float))
    parts = sizes if weighting == "samples" else jnp.sign(sizes)
    shares = parts / jnp.maximum(parts.sum(), 1)

    def forget(leaf: jax.Array) -> jax.Array:
        active = jnp.asarray(shards.active).reshape(-1, *(1 for _ in leaf.shape[1:]))
        return jnp.where(active, leaf, 0)

    controls = jax.tree.map(forget, state.controls)
    return state._replace(control=weighted_sum(shares, controls), controls=controls)


def _share_of_members(round_: Round, weighting: Weighting) -> jax.Array:
    """The round's clients among all members with data: |S|/N, or their share of the samples."""
    held = jnp.asarray(round_.shards.mask).sum(axis=1) * jnp.asarray(round_.shards.active)
    if weighting == "samples":
        here, all_members = round_.sizes.sum(), held.sum()
    else:
        here, all_members = (round_.sizes > 0).sum(), (held > 0).sum()
    return here.astype(jnp.result_type(float)) / jnp.maximum(all_members, 1)
