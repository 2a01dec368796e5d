"""The shape that every way of training shares, and the step of the plain ones."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from vcca_jax.virtual_batch import VirtualBatch

Params = Any
"""A pytree of arrays."""

ExampleLoss = Callable[[Params, Any, Any], jax.Array]
"""``loss(params, inputs [B, ...], targets [B, ...]) -> [B]``, one loss an example."""


class Trainer(NamedTuple):
    """A way of training, as two pure functions.

    Attributes:
        init: ``init(params, ...) -> state``; the state is what the next step needs.
        step: ``step(state, batch) -> (state, info)``; the info is what a reader wants. It is not
            jitted; callers jit, scan or vmap it.
    """

    init: Callable[..., Any]
    step: Callable[[Any, VirtualBatch], tuple[Any, Any]]


class TrainState(NamedTuple):
    """State of the plain trainers.

    Attributes:
        params: the model's parameters.
        optimizer_state: the optimizer's.
        step: scalar int32, batches with a live sample so far.
    """

    params: Params
    optimizer_state: Any
    step: jax.Array


class TrainInfo(NamedTuple):
    """What a plain step tells.

    Attributes:
        loss: scalar, mean loss over the batch's live samples, before the update.
    """

    loss: jax.Array


def gradient_trainer(
    loss_and_gradient: Callable[[Params, VirtualBatch], tuple[jax.Array, Params]],
    optimizer: optax.GradientTransformation,
) -> Trainer:
    """The trainer that follows one gradient a batch.

    A batch without a live sample changes nothing, the optimizer's memory included.
    """

    def init(params: Params) -> TrainState:
        return TrainState(params, optimizer.init(params), jnp.zeros((), jnp.int32))

    def step(state: TrainState, batch: VirtualBatch) -> tuple[TrainState, TrainInfo]:
        loss, gradient = loss_and_gradient(state.params, batch)
        updates, optimizer_state = optimizer.update(gradient, state.optimizer_state, state.params)
        moved = TrainState(
            optax.apply_updates(state.params, updates), optimizer_state, state.step + 1
        )
        return where_live(batch, moved, state), TrainInfo(loss)

    return Trainer(init, step)


def where_live(batch: VirtualBatch, new: Any, old: Any) -> Any:
    """``new`` if the batch holds a live sample, else ``old``, leaf by leaf."""
    live = batch.mask.any()

    return jax.tree.map(lambda fresh, stale: jnp.where(live, fresh, stale), new, old)


def live_count(batch: VirtualBatch) -> jax.Array:
    """Live samples of a batch, at least 1 so that it may divide; the B of every 1/B."""
    return jnp.maximum(batch.mask.sum(), 1)
