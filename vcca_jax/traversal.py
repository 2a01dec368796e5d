"""Traversal learning: visit the agents, assemble their activations, send the gradients back.

Source: Traversal Learning, arXiv:2504.07471. A virtual batch is drawn across agents; each visited
agent runs the body on its own samples and hands over activations; the orchestrator assembles them,
runs the head forward and backward, and returns to each agent the gradient of its activations; each
agent completes the backward pass through the body. The agents' parts are summed, so the result is
the gradient of the pooled batch, at every cut (our reading; see ``gradients``).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from vcca_jax.gradients import Method, agent_gradients
from vcca_jax.model import SplitModel
from vcca_jax.trainer import ExampleLoss, Params, Trainer, gradient_trainer, live_count
from vcca_jax.virtual_batch import VirtualBatch, Visits, visits

Criterion = Callable[[Any, Any], jax.Array]


def traverse(
    model: SplitModel,
    criterion: Criterion,
    params: Params,
    batch: VirtualBatch,
    *,
    samples_per_visit: int | None = None,
) -> tuple[jax.Array, Params]:
    """One traversal, as a scan over the visited agents there and back.

    Args:
        model: body and head.
        criterion: ``criterion(outputs [B, ...], targets [B]) -> [B]``.
        params: ``{"body": ..., "head": ...}``.
        batch: B samples of A agents. Only a visit reads ``batch.inputs``, and only the visited
            agent's rows of it; the orchestrator reads activations and targets.
        samples_per_visit: most samples one visit carries; see ``visits``.

    Returns:
        The mean loss over live samples, and its gradient in the parameters. Both equal those of
        the pooled batch up to the order of summation.
    """
    plan = visits(batch, samples_per_visit)

    def body(body_params: Params, each: Visits) -> Any:
        return model.body(body_params, batch.inputs[each.slots])

    # There: each visit fills its slots of the assembled activations. A padding entry is sent to a
    # slot that does not exist, and the write is dropped.
    size = batch.mask.shape[0]
    shape = jax.eval_shape(model.body, params["body"], batch.inputs)

    def forward(assembled: Any, each: Visits) -> tuple[Any, None]:
        slots = jnp.where(each.mask, each.slots, size)
        activations = body(params["body"], each)
        return assembled.at[slots].set(activations, mode="drop"), None

    activations, _ = jax.lax.scan(forward, jnp.zeros(shape.shape, shape.dtype), plan)

    def head_loss(head_params: Params, assembled: Any) -> jax.Array:
        losses = criterion(model.head(head_params, assembled), batch.targets)
        return jnp.where(batch.mask, losses, 0).sum() / live_count(batch)

    loss, (head_gradient, cotangents) = jax.value_and_grad(head_loss, argnums=(0, 1))(
        params["head"], activations
    )

    # Back: each visit runs its body again and pulls its cotangents through it.
    def backward(carried: Params, each: Visits) -> tuple[Params, None]:
        mask = each.mask.reshape(each.mask.shape + (1,) * (cotangents.ndim - 1))
        _, pull = jax.vjp(lambda at: body(at, each), params["body"])
        part = pull(jnp.where(mask, cotangents[each.slots], 0))[0]
        return jax.tree.map(jnp.add, carried, part), None

    zeros = jax.tree.map(jnp.zeros_like, params["body"])
    body_gradient, _ = jax.lax.scan(backward, zeros, plan)
    return loss, {"body": body_gradient, "head": head_gradient}


def split_traversal(
    model: SplitModel,
    criterion: Criterion,
    optimizer: optax.GradientTransformation,
    *,
    samples_per_visit: int | None = None,
) -> Trainer:
    """Trainer that follows the protocol step by step, through ``traverse``."""

    def loss_and_gradient(params: Params, batch: VirtualBatch) -> tuple[jax.Array, Params]:
        return traverse(model, criterion, params, batch, samples_per_visit=samples_per_visit)

    return gradient_trainer(loss_and_gradient, optimizer)


def traversal(
    loss_fn: ExampleLoss,
    optimizer: optax.GradientTransformation,
    *,
    method: Method = "linearized",
) -> Trainer:
    """Trainer on the summed agent gradients: the numbers of ``split_traversal`` for any loss.

    Args:
        loss_fn: per-example loss.
        optimizer: any optax optimizer.
        method: form of the agent gradients; "linearized" costs what a centralized step costs.
    """

    def loss_and_gradient(params: Params, batch: VirtualBatch) -> tuple[jax.Array, Params]:
        gradients = agent_gradients(loss_fn, params, batch, method=method)
        return gradients.losses.sum(), gradients.sum()

    return gradient_trainer(loss_and_gradient, optimizer)
