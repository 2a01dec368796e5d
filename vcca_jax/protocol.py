"""What agents and orchestrator do in one traversal, and every message that passes between them.

A step of traversal learning (arXiv:2504.07471; our reading) has four kinds of messages that carry
numbers, and two that carry names:

    down   body parameters   to each visited agent
    down   sample indices    which of its rows an agent is asked for
    up     activations       of those rows, where the body ends
    up     targets           of those rows: the orchestrator computes the loss
    down   cut gradients     of the batch's loss in those activations
    up     body gradient     the agent's part, already divided by the size of the whole batch

The orchestrator's work is a function of activations and targets alone (``orchestrate``), and an
agent's of its own rows (``body_gradient``); a raw input is an argument of the agent's functions and
of no other, and ``boundary.check_boundary`` refuses a body that would hand it on as it is.

That is a separation of roles and no guarantee of privacy. The orchestrator sees the targets, and
activations that may be inverted: at an embedding layer by looking the rows up in its table, at a
dense layer of at least as many units as features by solving for the input. An agent's body gradient
tells more the fewer samples it sums: of a dense first layer with one sample, the weight gradient
divided by the bias gradient *is* the input.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vcca_jax.example_losses import checked_losses
from vcca_jax.model import SplitModel
from vcca_jax.noise import Keyed
from vcca_jax.trainer import Params, live_count
from vcca_jax.virtual_batch import VirtualBatch, Visits, visits

Criterion = Callable[[Any, Any], jax.Array]
"""``criterion(outputs [B, ...], targets [B, ...]) -> [B]``."""


class Messages(NamedTuple):
    """All that crosses between the agents and the orchestrator in one step.

    Attributes:
        visits: who is asked for which samples, V visits of P slots.
        body_parameters: down, the same to each visited agent.
        activations: up, [B, ...], zero in padding slots; slot s comes from its owner.
        targets: up, [B, ...].
        cut_gradients: down, like the activations.
        body_gradients: up, like the body's parameters with a leading [V].
    """

    visits: Visits
    body_parameters: Params
    activations: Any
    targets: Any
    cut_gradients: Any
    body_gradients: Params


def orchestrate(
    model: SplitModel,
    criterion: Criterion,
    head_params: Params,
    activations: Any,
    batch: VirtualBatch,
) -> tuple[jax.Array, Params, Any]:
    """The orchestrator's work: the head forward and backward on the assembled activations.

    Args:
        model: its head is used.
        criterion: the per-example loss.
        head_params: the head's parameters.
        activations: [B, ...], assembled.
        batch: targets and mask are read, and the samples' keys, which follow from the plan; never
            the inputs.

    Returns:
        The mean loss over live samples, its gradient in the head's parameters, and the cut
        gradients, like the activations and zero in padding slots.

    Raises:
        ValueError: a criterion that does not return one loss an example.
    """
    keys = batch.inputs.keys if isinstance(batch.inputs, Keyed) else None

    def loss(params: Params, assembled: Any) -> jax.Array:
        given = assembled if keys is None else Keyed(assembled, keys)
        told = criterion(model.head(params, given), batch.targets)
        losses = checked_losses(told, batch.mask.shape[0], "criterion")
        return jnp.where(batch.mask, losses, 0).sum() / live_count(batch)

    value, (head_gradient, cut_gradients) = jax.value_and_grad(loss, argnums=(0, 1))(
        head_params, activations
    )
    return value, head_gradient, cut_gradients


def body_gradient(
    model: SplitModel, body_params: Params, inputs: Any, mask: jax.Array, cut_gradients: Any
) -> Params:
    """An agent's work on the way back: its samples' cut gradients pulled through its body.

    Args:
        model: its body is used.
        body_params: as they came down.
        inputs: [P, ...], the agent's own rows.
        mask: [P] bool, false for padding.
        cut_gradients: [P, ...].
    """
    _, pull = jax.vjp(lambda at: model.body(at, inputs), body_params)
    return pull(jax.tree.map(lambda leaf: jnp.where(_beside(mask, leaf), leaf, 0), cut_gradients))[
        0
    ]


def assembled_activations(
    model: SplitModel, body_params: Params, batch: VirtualBatch, plan: Visits
) -> Any:
    """[B, ...], filled visit by visit; a slot that nobody fills stays zero."""
    size = batch.mask.shape[0]

    def forward(assembled: Any, each: Visits) -> tuple[Any, None]:
        # A padding entry is sent to a slot that does not exist, and the write is dropped.
        slots = jnp.where(each.mask, each.slots, size)
        activations = model.body(body_params, batch.take(each.slots)[0])
        return jax.tree.map(
            lambda room, part: room.at[slots].set(part, mode="drop"), assembled, activations
        ), None

    shapes = jax.eval_shape(model.body, body_params, batch.inputs)
    empty = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return jax.lax.scan(forward, empty, plan)[0]


def visit_gradient(
    model: SplitModel, body_params: Params, batch: VirtualBatch, cut_gradients: Any
) -> Callable[[Visits], Params]:
    """``gradient(visit)``: the body gradient that one visit brings."""

    def gradient(each: Visits) -> Params:
        inputs, _ = batch.take(each.slots)
        own = jax.tree.map(lambda leaf: leaf[each.slots], cut_gradients)
        return body_gradient(model, body_params, inputs, each.mask, own)

    return gradient


def exchange(
    model: SplitModel,
    criterion: Criterion,
    params: Params,
    batch: VirtualBatch,
    *,
    samples_per_visit: int | None = None,
) -> Messages:
    """One traversal, told as its messages; ``traverse`` keeps their sums alone.

    With ``samples_per_visit`` at least the most samples that an agent has in the batch, a visit is
    an agent. It holds V body gradients at once.
    """
    plan = visits(batch, samples_per_visit)
    activations = assembled_activations(model, params["body"], batch, plan)
    _, _, cut_gradients = orchestrate(model, criterion, params["head"], activations, batch)
    gradient = visit_gradient(model, params["body"], batch, cut_gradients)
    return Messages(
        visits=plan,
        body_parameters=params["body"],
        activations=activations,
        targets=batch.targets,
        cut_gradients=cut_gradients,
        body_gradients=jax.lax.map(gradient, plan),
    )


def _beside(mask: jax.Array, leaf: jax.Array) -> jax.Array:
    """``mask`` [P] with trailing axes of length one, to stand beside ``leaf`` [P, ...]."""
    return mask.reshape(mask.shape + (1,) * (leaf.ndim - 1))
