"""Federated learning: clients train copies of the model, the server averages what they learnt.

One round from theta_t: each client k of the round runs its own optimizer over its local batches
from theta_t to theta_k, and the server takes one step of its optimizer on the pseudo-gradient

    Delta = theta_t - sum_k w_k theta_k,        sum_k w_k = 1,

with w_k the client's share of the samples (McMahan et al. 2017, arXiv:1602.05629) or equal. With a
server optimizer of rate 1 and no memory this is ``fedavg``. Clients keep nothing from one round to
the next: their optimizers' states, and schedules with them, start anew in each.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from vcca_jax.baselines.local_training import (
    LossAndGradient,
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
from vcca_jax.rounds import Client, Round
from vcca_jax.trainer import ExampleLoss, Params, Trainer, strong, where_live
from vcca_jax.virtual_batch import VirtualBatch


class FederatedState(NamedTuple):
    """State of the federated trainers.

    Attributes:
        params: the server's model, theta_t.
        server_state: what the server's optimizer remembers.
        step: scalar int32, rounds with a live sample so far.
    """

    params: Params
    server_state: Any
    step: jax.Array


class FederatedInfo(NamedTuple):
    """What a round tells.

    Attributes:
        loss: scalar, mean over the round's live slots of the losses met in local training, each
            before the local step that it led to and without a proximal term.
        drift: [C], Euclidean norms |theta_k - theta_t| of what each client learnt.
        weights: [C], the shares w_k in the average; 0 for a padding client, all 0 in a round
            without a live sample.
    """

    loss: jax.Array
    drift: jax.Array
    weights: jax.Array


class ClientUpdates(NamedTuple):
    """What each client of a round learnt by itself: what credit for a round is made of.

    Attributes:
        params: theta_t, the server's model before the round.
        updates: params with a leading [C], D_k = theta_k - theta_t; 0 for a padding client.
        weights: [C], the shares w_k in the average; 0 for a padding client, all 0 in a round
            without a live sample.
        agents: [C] int32, the clients' slots on the agent axis; a padding client names a
            participant again.
    """

    params: Params
    updates: Params
    weights: jax.Array
    agents: jax.Array

    def average(self) -> Params:
        """sum_k w_k D_k, the pseudo-gradient's negative: ``fedavg`` moves by it."""
        return weighted_sum(self.weights, self.updates)


def federated(
    loss_fn: ExampleLoss,
    client_optimizer: optax.GradientTransformation,
    server_optimizer: optax.GradientTransformation,
    *,
    proximal: float = 0.0,
    weighting: Weighting = "samples",
    clients_at_once: int | None = None,
) -> Trainer:
    """Trainer of rounds with any optimizer at the clients and any at the server.

    The general scheme of Reddi et al. 2020, arXiv:2003.00295, Algorithm 1. Its step takes a
    ``Round``. A local step without a live sample changes nothing, a client without one has weight
    0, and a round without one leaves the whole state as it is.

    Args:
        loss_fn: per-example loss.
        client_optimizer: minimizes a client's mean loss; its state starts anew each round.
        server_optimizer: steps along the pseudo-gradient; its state is carried over rounds.
        proximal: mu >= 0; the clients minimize their loss plus mu/2 |theta - theta_t|^2.
        weighting: "samples" weighs a client by its live samples, "uniform" all alike.
        clients_at_once: clients trained side by side, all by default. Fewer bound the memory to
            that many copies of the model and of the optimizer's state, one after another in time.

    Raises:
        ValueError: a negative ``proximal``, an unknown weighting, or ``clients_at_once`` below 1.
    """
    return federated_trainer(
        mean_loss_and_gradient(loss_fn),
        client_optimizer,
        server_optimizer,
        proximal=proximal,
        weighting=weighting,
        clients_at_once=clients_at_once,
    )


def fedavg(
    loss_fn: ExampleLoss,
    client_optimizer: optax.GradientTransformation,
    *,
    weighting: Weighting = "samples",
    clients_at_once: int | None = None,
) -> Trainer:
    """Federated averaging (McMahan et al. 2017, arXiv:1602.05629): theta_{t+1} = sum w_k theta_k.

    With one full-batch local step of SGD it is a centralized full-batch step. See ``federated``
    for the arguments.
    """
    return federated(
        loss_fn,
        client_optimizer,
        optax.sgd(1.0),
        weighting=weighting,
        clients_at_once=clients_at_once,
    )


def fedprox(
    loss_fn: ExampleLoss,
    client_optimizer: optax.GradientTransformation,
    *,
    proximal: float,
    weighting: Weighting = "samples",
    clients_at_once: int | None = None,
) -> Trainer:
    """FedProx (Li et al. 2018, arXiv:1812.06127): ``fedavg`` with a proximal term at the clients.

    Its gradient mu (theta - theta_t) pulls a client back to where the round began; mu = 0 is
    ``fedavg``. See ``federated`` for the arguments.
    """
    return federated(
        loss_fn,
        client_optimizer,
        optax.sgd(1.0),
        proximal=proximal,
        weighting=weighting,
        clients_at_once=clients_at_once,
    )


def fedadam(
    loss_fn: ExampleLoss,
    client_optimizer: optax.GradientTransformation,
    server_learning_rate: optax.ScalarOrSchedule,
    *,
    b1: float = 0.9,
    b2: float = 0.99,
    adaptivity: float = 1e-3,
    weighting: Weighting = "samples",
    clients_at_once: int | None = None,
) -> Trainer:
    """FedAdam (Reddi et al. 2020, arXiv:2003.00295, Algorithm 2): Adam at the server.

    See ``adam_without_bias_correction`` for the server's step, and ``federated`` for the other
    arguments.

    Args:
        loss_fn: per-example loss.
        client_optimizer: at the clients; plain SGD in the paper.
        server_learning_rate: eta, a number or a schedule over rounds.
        b1: decay of the first moment.
        b2: decay of the second moment.
        adaptivity: tau > 0, added to the root of the second moment.
        weighting: of the clients.
        clients_at_once: clients trained side by side.

    Raises:
        ValueError: a decay outside [0, 1), or an adaptivity that is not positive.
    """
    return federated(
        loss_fn,
        client_optimizer,
        optax.chain(
            adam_without_bias_correction(b1, b2, adaptivity),
            optax.scale_by_learning_rate(server_learning_rate),
        ),
        weighting=weighting,
        clients_at_once=clients_at_once,
    )


def federated_trainer(
    loss_and_gradient: LossAndGradient,
    client_optimizer: optax.GradientTransformation,
    server_optimizer: optax.GradientTransformation,
    *,
    proximal: float = 0.0,
    weighting: Weighting = "samples",
    clients_at_once: int | None = None,
) -> Trainer:
    """``federated`` for clients that come by their gradients in their own way.

    Args:
        loss_and_gradient: of a local batch, which is a virtual batch with one owner.
        client_optimizer: see ``federated``, as for the others.
        server_optimizer: ditto.
        proximal: ditto.
        weighting: ditto.
        clients_at_once: ditto.
    """
    check_weighting(weighting)
    check_clients_at_once(clients_at_once)
    _check_proximal(proximal)

    def init(params: Params) -> FederatedState:
        params = strong(params)
        memory = strong(server_optimizer.init(params))
        return FederatedState(params, memory, jnp.zeros((), jnp.int32))

    def step(state: FederatedState, round_: Round) -> tuple[FederatedState, FederatedInfo]:
        local = _proximal(loss_and_gradient, proximal, state.params)

        def train(group: tuple[Client, jax.Array]) -> tuple[Params, tuple[jax.Array, jax.Array]]:
            clients, shares = group
            trained, losses = train_side_by_side(
                local, client_optimizer, state.params, round_, clients
            )
            learnt = differences(trained, state.params)
            return weighted_sum(shares, learnt), (losses, norms(learnt, shares.shape[0]))

        weights = client_weights(round_, weighting)
        change, (losses, drift) = sum_over_clients(
            train, (round_.clients, weights), clients_at_once
        )
        after = server_step(server_optimizer, state, change)
        return where_live(round_, after, state), round_info(round_, losses, drift, weights)

    return Trainer(init, step)


def client_updates(
    loss_fn: ExampleLoss,
    client_optimizer: optax.GradientTransformation,
    params: Params,
    round_: Round,
    *,
    proximal: float = 0.0,
    weighting: Weighting = "samples",
) -> ClientUpdates:
    """The clients' half of a round, with each one's update kept instead of summed.

    The updates are those that ``federated`` sums. Whoever wants both credit and training runs this
    and then ``server_step`` on their ``average()``: together they are the trainer's step, in a
    round with a live sample. All C copies of the model are held at once.

    Args:
        loss_fn: per-example loss.
        client_optimizer: see ``federated``.
        params: theta_t.
        round_: who takes part, on which samples.
        proximal: see ``federated``.
        weighting: see ``federated``.

    Raises:
        ValueError: a negative ``proximal`` or an unknown weighting.
    """
    check_weighting(weighting)
    _check_proximal(proximal)
    local = _proximal(mean_loss_and_gradient(loss_fn), proximal, params)
    clients = round_.clients
    trained, _ = train_side_by_side(local, client_optimizer, params, round_, clients)
    return ClientUpdates(
        params=params,
        updates=differences(trained, params),
        weights=client_weights(round_, weighting),
        agents=jnp.asarray(clients.agent),
    )


def server_step(
    server_optimizer: optax.GradientTransformation, state: FederatedState, change: Params
) -> FederatedState:
    """The server's half of a round: a step of its optimizer along ``change`` = sum_k w_k D_k."""
    updates, server_state = server_optimizer.update(
        jax.tree.map(jnp.negative, change), state.server_state, state.params
    )
    return FederatedState(optax.apply_updates(state.params, updates), server_state, state.step + 1)


def _check_proximal(proximal: float) -> None:
    if not isinstance(proximal, jax.core.Tracer) and not proximal >= 0:
        raise ValueError(f"proximal={proximal} must not be negative")


def _proximal(
    loss_and_gradient: LossAndGradient, proximal: float, centre: Params
) -> LossAndGradient:
    """The same loss, and the gradient of it plus proximal/2 |theta - centre|^2."""

    def with_term(params: Params, batch: VirtualBatch) -> tuple[jax.Array, Params]:
        loss, gradient = loss_and_gradient(params, batch)
        return loss, jax.tree.map(
            lambda g, here, there: g + proximal * (here - there), gradient, params, centre
        )

    absent = not isinstance(proximal, jax.core.Tracer) and proximal == 0
    return loss_and_gradient if absent else with_term


def round_info(
    round_: Round, losses: jax.Array, drift: jax.Array, weights: jax.Array
) -> FederatedInfo:
    """The info of a round from its clients' summed losses, drifts and weights, each [C]."""
    return FederatedInfo(losses.sum() / jnp.maximum(round_.mask.sum(), 1), drift, weights)


def adam_without_bias_correction(
    b1: float, b2: float, adaptivity: float
) -> optax.GradientTransformation:
    """Scale updates as the server of FedAdam does.

        m_t = b1 m_{t-1} + (1 - b1) Delta_t,            m_{-1} = 0
        v_t = b2 v_{t-1} + (1 - b2) Delta_t^2,          v_{-1} = tau^2
        u_t = m_t / (sqrt(v_t) + tau)

    Unlike ``optax.scale_by_adam`` it does not divide the moments by 1 - b^t: the paper has no such
    correction, and starts v at tau^2 or above (here: at tau^2).
    """
    for name, decay in (("b1", b1), ("b2", b2)):
        if not 0 <= decay < 1:
            raise ValueError(f"{name}={decay} must be in [0, 1)")
    if not adaptivity > 0:
        raise ValueError(f"adaptivity={adaptivity} must be positive")

    def init(params: Params) -> tuple[Params, Params]:
        first = jax.tree.map(jnp.zeros_like, params)
        return first, jax.tree.map(lambda leaf: jnp.full_like(leaf, adaptivity**2), params)

    def update(
        updates: Params, state: tuple[Params, Params], params: Params | None = None
    ) -> tuple[Params, tuple[Params, Params]]:
        first = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state[0], updates)
        second = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g**2, state[1], updates)
        scaled = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + adaptivity), first, second)
        return scaled, (first, second)

    return optax.GradientTransformation(init, update)
