"""Checks of what is known only after tracing, by JAX's own checkify."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import checkify

from vcca_jax.rounds import Round
from vcca_jax.trainer import Trainer
from vcca_jax.virtual_batch import VirtualBatch


def checked(trainer: Trainer) -> Trainer:
    """The same trainer, with errors for what would otherwise go wrong silently.

    Its step reports an owner outside the agent axis (JAX would clamp it to another agent), a live
    sample of an agent that is no member, and a state or info that is not finite (from data, from
    labels out of range, or from too large a learning rate). Functionalise it to see the errors:

        step = jax.jit(checkify.checkify(checked(trainer).step))
        error, (state, info) = step(state, batch)
        error.throw()

    It works through ``jit`` and ``scan``, and costs a pass over the state. ``vmap`` goes outside:
    ``jax.vmap(checkify.checkify(step))``. The trainer's own step is left alone: checks that are
    inside it, of a loss for instance, must be functionalised there.
    """
    inner = _opaque(trainer.step)

    def step(state: Any, batch: VirtualBatch | Round) -> tuple[Any, Any]:
        if isinstance(batch, Round):
            owners, active = jnp.asarray(batch.plan.agents), jnp.asarray(batch.shards.active)
            live = jnp.asarray(batch.mask).any(axis=(1, 2))
        else:
            owners, active, live = batch.owners, batch.active, batch.mask
        capacity = active.shape[0]
        inside = (owners >= 0) & (owners < capacity)
        checkify.check(
            (inside | ~live).all(),
            "a live sample's owner is {owner}, outside the {capacity} slots of the agent axis;"
            " plan the batch for this cooperative",
            owner=owners[jnp.argmax(~inside & live)],
            capacity=jnp.asarray(capacity),
        )
        member = active[jnp.clip(owners, 0, capacity - 1)]
        checkify.check(
            (member | ~live).all(),
            "batch holds a live sample of an agent that is not active; plan the batch anew after an"
            " agent leaves",
        )
        after, info = inner(state, batch)
        for what, tree in (("state", after), ("info", info)):
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
                if jnp.issubdtype(leaf.dtype, jnp.floating):
                    checkify.check(
                        jnp.isfinite(leaf).all(),
                        f"{what}{jax.tree_util.keystr(path)} is not finite after the step; look for"
                        " NaN in the data, labels out of range, or too large a learning rate",
                    )
        return after, info

    return Trainer(trainer.init, step)


def _opaque(step: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """The step as one operation, which checkify does not look into.

    It would refuse the loops over agents in the cone solvers, of which it could tell nothing.
    """
    run = jax.custom_batching.custom_vmap(step)

    @run.def_vmap
    def vectorized(size: int, batched: Sequence[Any], state: Any, batch: Any) -> tuple[Any, Any]:
        axes = jax.tree.map(lambda mapped: 0 if mapped else None, tuple(batched))
        told = jax.vmap(step, in_axes=axes, axis_size=size)(state, batch)
        return told, jax.tree.map(lambda _: True, told)

    return run
