"""SplitFed: split learning whose clients work side by side.

Source: Thapa et al. 2020, arXiv:2004.12088. In both versions each client of a round trains a body
of its own from the common one, and the bodies are averaged, weighted by samples, when the round is
over. They differ at the server:

    v1   keeps a copy of the head for each client, and averages the copies too. What is computed is
         federated averaging of the whole model; what differs is who computes it.
    v2   keeps one head and serves the clients one after another: at each local step it takes the
         clients' activations in the plan's order, and steps the head after each.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from vcca_jax.baselines.federated import (
    FederatedInfo,
    FederatedState,
    federated_trainer,
    round_info,
)
from vcca_jax.baselines.local_training import (
    client_weights,
    copies,
    differences,
    norms,
    over_local_steps,
    steps_first,
    weighted_sum,
)
from vcca_jax.baselines.split_learning import part_by_part, split_loss_and_gradient
from vcca_jax.model import SplitModel
from vcca_jax.protocol import Criterion, orchestrate
from vcca_jax.rounds import Round, Slots
from vcca_jax.trainer import Params, Trainer, strong, where_live
from vcca_jax.virtual_batch import VirtualBatch


def splitfed_v1(
    model: SplitModel,
    criterion: Criterion,
    optimizer: optax.GradientTransformation,
    *,
    clients_at_once: int | None = None,
) -> Trainer:
    """Trainer by SplitFed v1; its step takes a ``Round``, its state is a ``FederatedState``.

    Every optimizer state starts anew each round, as in ``fedavg``, whose model it equals up to the
    order of summation, at every cut, for optimizers that treat each entry by itself.

    Args:
        model: body and head; activations must be floating.
        criterion: ``criterion(outputs [b, ...], targets [b, ...]) -> [b]``.
        optimizer: of either part on its own; see ``part_by_part``.
        clients_at_once: clients trained side by side, all by default; see ``federated``.

    Raises:
        ValueError: ``clients_at_once`` below 1.
    """
    return federated_trainer(
        split_loss_and_gradient(model, criterion),
        part_by_part(optimizer),
        optax.sgd(1.0),
        clients_at_once=clients_at_once,
    )


def splitfed_v2(
    model: SplitModel, criterion: Criterion, optimizer: optax.GradientTransformation
) -> Trainer:
    """Trainer by SplitFed v2; its step takes a ``Round``, its state is a ``FederatedState``.

    The bodies' optimizer states start anew each round, as in ``fedavg``. The head's lives at the
    server: it is carried over clients, local steps and rounds, as ``server_state``. In a local
    step all bodies run forward, the server takes the clients in turn, and all bodies run backward;
    a client without a live sample in it is passed over. A round without one changes nothing. The
    round's C bodies are held at once. In the info, ``drift`` is that of the bodies.

    Args:
        model: body and head; activations must be floating.
        criterion: ``criterion(outputs [b, ...], targets [b, ...]) -> [b]``.
        optimizer: of either part on its own.
    """

    def init(params: Params) -> FederatedState:
        params = strong(params)
        memory = strong(optimizer.init(params["head"]))
        return FederatedState(params, memory, jnp.zeros((), jnp.int32))

    def serve(
        at_server: tuple[Params, Any], sent: tuple[Any, VirtualBatch]
    ) -> tuple[tuple[Params, Any], tuple[Any, jax.Array]]:
        """The server's work for one client: forward, backward, and a step of the head."""
        head, memory = at_server
        activations, batch = sent
        loss, gradient, cut_gradients = orchestrate(model, criterion, head, activations, batch)
        updates, fresh = optimizer.update(gradient, memory, head)
        moved = (optax.apply_updates(head, updates), fresh)
        return where_live(batch, moved, at_server), (cut_gradients, loss * batch.mask.sum())

    def move_body(
        body: Params, memory: Any, gradient: Params, batch: VirtualBatch
    ) -> tuple[Params, Any]:
        updates, fresh = optimizer.update(gradient, memory, body)
        return where_live(batch, (optax.apply_updates(body, updates), fresh), (body, memory))

    def step(state: FederatedState, round_: Round) -> tuple[FederatedState, FederatedInfo]:
        agents = jnp.asarray(round_.plan.agents)

        def local_step(carried: Any, slots: Slots) -> tuple[Any, jax.Array]:
            (bodies, memories), at_server = carried
            batches = jax.vmap(round_.local_batch)(agents, slots)
            activations, pull = jax.vjp(lambda at: jax.vmap(model.body)(at, batches.inputs), bodies)
            # Inputs stay at the clients; of them the server knows the keys alone.
            at_server, (cut_gradients, losses) = jax.lax.scan(
                serve, at_server, (activations, batches)
            )
            gradients = pull(cut_gradients)[0]
            at_clients = jax.vmap(move_body)(bodies, memories, gradients, batches)
            return (at_clients, at_server), losses

        weights = client_weights(round_, "samples")
        common = (state.params["body"], optimizer.init(state.params["body"]))
        start = (copies(common, agents.shape[0]), (state.params["head"], state.server_state))
        ((bodies, _), (head, memory)), losses = over_local_steps(
            local_step, start, steps_first(round_.clients.slots)
        )
        learnt = differences(bodies, state.params["body"])
        body = jax.tree.map(jnp.add, state.params["body"], weighted_sum(weights, learnt))
        after = FederatedState({"body": body, "head": head}, memory, state.step + 1)
        drift = norms(learnt, agents.shape[0])
        return where_live(round_, after, state), round_info(round_, losses, drift, weights)

    return Trainer(init, step)
