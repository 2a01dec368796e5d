"""Split learning: clients train one after another, each with the server's head.

Source: Gupta and Raskar 2018, arXiv:1810.06060; Vepakomma et al. 2018, arXiv:1812.00564, in its
vanilla form, where targets go up with the activations. In a round the clients take turns in the
plan's order: each runs its own local batches through the body, the server runs the head forward and
backward, both step their parameters, and the client hands the body on to the next. There is one
body and one head all along, and nothing is averaged, so the model leans towards the last clients.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from vcca_jax.baselines.local_training import LossAndGradient, local_step, over_local_steps
from vcca_jax.model import SplitModel
from vcca_jax.protocol import Criterion
from vcca_jax.rounds import Client, Round
from vcca_jax.trainer import Params, Trainer, strong, where_live
from vcca_jax.traversal import traverse


class SplitLearningState(NamedTuple):
    """State of split learning.

    Attributes:
        params: ``{"body": ..., "head": ...}``.
        optimizer_state: of both parts, by their names; handed on from client to client with the
            body, kept with the head, and carried over rounds.
        step: scalar int32, rounds with a live sample so far.
    """

    params: Params
    optimizer_state: Any
    step: jax.Array


class SplitLearningInfo(NamedTuple):
    """What a round tells.

    Attributes:
        loss: scalar, mean over the round's live slots of the losses met in training, each before
            the local step that it led to.
    """

    loss: jax.Array


def split_learning(
    model: SplitModel, criterion: Criterion, optimizer: optax.GradientTransformation
) -> Trainer:
    """Trainer by sequential split learning; its step takes a ``Round``.

    A padding client and a local step without a live sample change nothing, and a round without
    one leaves the whole state as it is. With one client it is local training on its batches.

    Args:
        model: body and head; activations must be floating.
        criterion: ``criterion(outputs [b, ...], targets [b, ...]) -> [b]``.
        optimizer: of either part on its own; see ``part_by_part``.
    """
    loss_and_gradient = split_loss_and_gradient(model, criterion)
    each_part = part_by_part(optimizer)

    def init(params: Params) -> SplitLearningState:
        params = strong(params)
        memory = strong(each_part.init(params))
        return SplitLearningState(params, memory, jnp.zeros((), jnp.int32))

    def step(
        state: SplitLearningState, round_: Round
    ) -> tuple[SplitLearningState, SplitLearningInfo]:
        one = local_step(loss_and_gradient, each_part, round_)

        def turn(handed: Any, client: Client) -> tuple[Any, jax.Array]:
            return over_local_steps(
                lambda carried, slots: one(carried, client.agent, slots), handed, client.slots
            )

        start = (state.params, state.optimizer_state)
        (params, memory), losses = jax.lax.scan(turn, start, round_.clients)
        after = SplitLearningState(params, memory, state.step + 1)
        info = SplitLearningInfo(losses.sum() / jnp.maximum(round_.mask.sum(), 1))
        return where_live(round_, after, state), info

    return Trainer(init, step)


def split_loss_and_gradient(model: SplitModel, criterion: Criterion) -> LossAndGradient:
    """The gradient of the whole model's mean loss, by what passes between client and server.

    A client's local batch is a virtual batch with one owner, so its step is a traversal of one
    agent: up go activations and targets, down come the cut gradients.
    """
    return partial(traverse, model, criterion, method="together")


def part_by_part(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """The same optimizer for each part of a split model, on its own.

    Body and head belong to different parties, so neither can know, say, the other's gradient norm.
    For optimizers that treat every entry by itself (SGD, momentum, Adam) it makes no difference.
    """

    def init(params: Params) -> Params:
        return {part: optimizer.init(params[part]) for part in params}

    def update(
        updates: Params, state: Params, params: Params | None = None
    ) -> tuple[Params, Params]:
        stepped = {
            part: optimizer.update(updates[part], state[part], params and params[part])
            for part in updates
        }
        return {part: moved for part, (moved, _) in stepped.items()}, {
            part: memory for part, (_, memory) in stepped.items()
        }

    return optax.GradientTransformation(init, update)
