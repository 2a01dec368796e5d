"""The shape that every way of training shares, and the step of the plain ones."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from vcca_jax.rounds import Round
from vcca_jax.virtual_batch import VirtualBatch

Params = Any
"""A pytree of arrays."""

ExampleLoss = Callable[[Params, Any, Any], jax.Array]
"""``loss(params, inputs [B, ...], targets [B, ...]) -> [B]``, one loss an example."""


class Trainer(NamedTuple):
    """A way of training, as two pure functions.

    Attributes:
        init: ``init(params, ...) -> state``; the state is what the next step needs, its leaves
            arrays of ``strong`` types and none of them in two places, so that a step compiles once
            and may take the state's memory.
        step: ``step(state, batch) -> (state, info)``; the info is what a reader wants. It is not
            jitted; callers jit, scan or vmap it. The batch is a ``VirtualBatch``, or a ``Round``
            for those that train at their clients.
    """

    init: Callable[..., Any]
    step: Callable[[Any, Any], tuple[Any, Any]]


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
        params = strong(params)
        memory = strong(optimizer.init(params))  # a copy: it may be the parameters themselves
        return TrainState(params, memory, jnp.zeros((), jnp.int32))

    def step(state: TrainState, batch: VirtualBatch) -> tuple[TrainState, TrainInfo]:
        loss, gradient = loss_and_gradient(state.params, batch)
        updates, optimizer_state = optimizer.update(gradient, state.optimizer_state, state.params)
        moved = TrainState(
            optax.apply_updates(state.params, updates), optimizer_state, state.step + 1
        )
        return where_live(batch, moved, state), TrainInfo(loss)

    return Trainer(init, step)


def noisy(trainer: Trainer, key: jax.Array) -> Trainer:
    """The same trainer, with the model's stochastic layers switched on.

    Step t hands the trainer ``batch.keyed(fold_in(key, t))``, so that a layer such as dropout
    draws from a key of its own for each step and sample (see ``noise``). Every trainer whose state
    counts its steps in ``step`` can be wrapped, and all of them draw the same noise for the same
    batch: with it too, traversal learning equals centralized training.

    Args:
        trainer: of a model that takes ``Keyed`` inputs, as those of ``vcca_jax.models`` do.
        key: of the run, a threefry key, as ``jax.random.key`` makes it by default.

    Raises:
        ValueError: a key of another kind: the others draw by batch when they are vectorized, so a
            sample's noise would depend on its neighbours.
    """
    kind = str(jax.random.key_impl(key))
    if "threefry" not in kind:
        raise ValueError(
            f"key is of kind {kind}, which draws by batch under vmap; make it with"
            " jax.random.key(seed, impl='threefry2x32')"
        )

    def step(state: Any, batch: Any) -> tuple[Any, Any]:
        return trainer.step(state, batch.keyed(jax.random.fold_in(key, state.step)))

    return Trainer(trainer.init, step)


def strong(tree: Any) -> Any:
    """The tree with every leaf a new array that keeps its dtype as its own, for states.

    ``jnp.asarray(0.0)`` and Python's numbers have weak types, which yield to the dtype of whatever
    they meet. A step makes them strong, so that a state begun with them compiles it a second time
    and fits no ``lax.scan``. The arrays are copies: a state may be donated to a step, and what it
    was begun with must survive that, for another trainer to be begun with it.
    """

    def leaf(given: Any) -> jax.Array:
        array = jnp.asarray(given)
        return jnp.array(array, dtype=array.dtype, copy=True)

    return jax.tree.map(leaf, tree)


def where_live(batch: VirtualBatch | Round, new: Any, old: Any) -> Any:
    """``new`` if the batch, or the round, holds a live sample, else ``old``, leaf by leaf."""
    live = batch.mask.any()

    return jax.tree.map(lambda fresh, stale: jnp.where(live, fresh, stale), new, old)


def sample_shares(batch: VirtualBatch) -> jax.Array:
    """[B], what each sample's gradient counts for in the batch's: 1/B, and 0 for padding."""
    return jnp.where(batch.mask, 1 / live_count(batch), 0)


def live_count(batch: VirtualBatch) -> jax.Array:
    """Live samples of a batch, at least 1 so that it may divide; the B of every 1/B."""
    return jnp.maximum(batch.mask.sum(), 1)
