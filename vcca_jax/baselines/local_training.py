"""What the methods that train at their clients share: a client's steps, weights, and sums."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from vcca_jax.example_losses import checked_losses
from vcca_jax.rounds import Client, Round, Slots
from vcca_jax.trainer import ExampleLoss, Params, live_count, where_live
from vcca_jax.virtual_batch import VirtualBatch

Weighting = Literal["samples", "uniform"]

LossAndGradient = Callable[[Params, VirtualBatch], tuple[jax.Array, Params]]
"""The mean loss over a batch's live samples, and its gradient."""


def mean_loss_and_gradient(loss_fn: ExampleLoss) -> LossAndGradient:
    """Mean of a per-example loss over a batch's live samples, with its gradient.

    When called, it refuses a loss that is not one number an example, as a ``ValueError``.
    """

    def mean_loss(params: Params, batch: VirtualBatch) -> jax.Array:
        told = loss_fn(params, batch.inputs, batch.targets)
        losses = checked_losses(told, batch.mask.shape[0])
        return jnp.where(batch.mask, losses, 0).sum() / live_count(batch)

    return jax.value_and_grad(mean_loss)


def local_step(
    loss_and_gradient: LossAndGradient, optimizer: optax.GradientTransformation, round_: Round
) -> Callable[[Any, jax.Array, Slots], tuple[Any, jax.Array]]:
    """One local step of one client; without a live sample it changes nothing.

    Returns:
        ``step((params, optimizer_state), agent, slots [b]) -> (the same, loss)``, with the loss
        summed over the batch's live samples, before the step.
    """

    def step(
        carried: tuple[Params, Any], agent: jax.Array, slots: Slots
    ) -> tuple[tuple[Params, Any], jax.Array]:
        params, memory = carried
        batch = round_.local_batch(agent, slots)
        loss, gradient = loss_and_gradient(params, batch)
        updates, fresh = optimizer.update(gradient, memory, params)
        moved = (optax.apply_updates(params, updates), fresh)
        return where_live(batch, moved, carried), loss * batch.mask.sum()

    return step


def over_local_steps(
    step: Callable[[Any, Slots], tuple[Any, jax.Array]], carried: Any, slots: Slots
) -> tuple[Any, jax.Array]:
    """Scan over local steps, [L, ...], and skip those without a live sample.

    Padding then costs next to nothing: a round of small clients takes as many steps as the largest
    of them needs, though L has room for the largest of all.

    Args:
        step: ``step(carried, slots) -> (carried, losses)``; without a live sample it must change
            nothing and lose 0.
        carried: what the first step is given.
        slots: with a leading [L].

    Returns:
        What the last step leaves, and the losses summed over steps.
    """

    def each(carried: Any, now: Slots) -> tuple[Any, jax.Array]:
        losses = jax.eval_shape(step, carried, now)[1]

        def skip(carried: Any, now: Slots) -> tuple[Any, jax.Array]:
            return carried, jnp.zeros(losses.shape, losses.dtype)

        return jax.lax.cond(now.mask.any(), step, skip, carried, now)

    after, losses = jax.lax.scan(each, carried, slots)
    return after, losses.sum(axis=0)


def train_side_by_side(
    loss_and_gradient: LossAndGradient,
    optimizer: optax.GradientTransformation,
    params: Params,
    round_: Round,
    clients: Client,
) -> tuple[Params, jax.Array]:
    """All local steps of C clients from the same parameters, each with a fresh optimizer.

    Args:
        loss_and_gradient: of a local batch, a virtual batch with one owner.
        optimizer: a client's.
        params: where each starts.
        round_: holds the data.
        clients: some of the round's, with a leading [C].

    Returns:
        The clients' parameters, with a leading [C], and [C] losses, each summed over the client's
        live slots.
    """
    one = local_step(loss_and_gradient, optimizer, round_)

    def step(carried: Any, slots: Slots) -> tuple[Any, jax.Array]:
        return jax.vmap(one)(carried, clients.agent, slots)

    start = copies((params, optimizer.init(params)), clients.agent.shape[0])
    (trained, _), losses = over_local_steps(step, start, steps_first(clients.slots))
    return trained, losses


def steps_first(slots: Slots) -> Slots:
    """[C, L, b] slots as [L, C, b]."""
    return jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), slots)


def copies(tree: Any, count: int) -> Any:
    """``tree`` with a leading [count] in every leaf."""
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (count, *jnp.shape(leaf))), tree)


def differences(many: Params, one: Params) -> Params:
    """[C, ...] parameters less those that they started from."""
    return jax.tree.map(lambda left, right: left - right[None], many, one)


def norms(stack: Params, count: int) -> jax.Array:
    """[count] Euclidean norms of a pytree with a leading [count]; 0 of one without leaves."""
    squares = [(leaf**2).sum(tuple(range(1, leaf.ndim))) for leaf in jax.tree.leaves(stack)]
    return jnp.sqrt(sum(squares, jnp.zeros(count)))


def weighted_sum(weights: jax.Array, stack: Params) -> Params:
    """sum_k w_k of a pytree with a leading [C].

    Products and a sum, not a matrix product: those are cut to fewer digits on some devices.
    """

    def total(leaf: jax.Array) -> jax.Array:
        each = weights.astype(leaf.dtype).reshape(-1, *(1 for _ in leaf.shape[1:]))
        return (each * leaf).sum(axis=0)

    return jax.tree.map(total, stack)


def client_weights(round_: Round, weighting: Weighting) -> jax.Array:
    """[C], each client's share in an average: of the samples, or of the clients that have any.

    Sums to 1; a client without a live sample has 0, and all have in a round without one.
    """
    sizes = round_.sizes.astype(jnp.result_type(float))
    parts = sizes if weighting == "samples" else jnp.sign(sizes)
    return parts / jnp.maximum(parts.sum(), 1)


def check_weighting(weighting: str) -> None:
    """``ValueError`` for a weighting that does not exist."""
    if weighting not in ("samples", "uniform"):
        raise ValueError(f"weighting={weighting!r} must be 'samples' or 'uniform'")


def check_clients_at_once(clients_at_once: int | None) -> None:
    """``ValueError`` for a number of clients below one."""
    if clients_at_once is not None and clients_at_once < 1:
        raise ValueError(f"clients_at_once={clients_at_once} must be at least 1, or None for all")


def sum_over_clients(
    train: Callable[[Any], tuple[Any, Any]], clients: Any, clients_at_once: int | None = None
) -> tuple[Any, Any]:
    """Sum what groups of clients bring, and stack what each client tells.

    Args:
        train: ``train(group) -> (total, told)``, for clients with a leading [K].
        clients: any pytree with a leading [C].
        clients_at_once: K, all by default. With fewer, the totals are accumulated group by group,
            so that no more than K clients' parameters are held at once.

    Returns:
        The sum of the totals, and ``told`` with a leading [C].
    """
    count = jax.tree.leaves(clients)[0].shape[0]
    width = count if clients_at_once is None else min(clients_at_once, count)
    groups, rest = divmod(count, width)
    if groups == 1 and rest == 0:
        return train(clients)

    def accumulate(carried: Any, group: Any) -> tuple[Any, Any]:
        total, told = train(group)
        return jax.tree.map(jnp.add, carried, total), told

    grouped = jax.tree.map(
        lambda leaf: leaf[: groups * width].reshape(groups, width, *leaf.shape[1:]), clients
    )
    shapes, _ = jax.eval_shape(train, jax.tree.map(lambda leaf: leaf[0], grouped))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    total, told = jax.lax.scan(accumulate, zeros, grouped)
    told = jax.tree.map(lambda leaf: leaf.reshape(groups * width, *leaf.shape[2:]), told)
    if rest == 0:
        return total, told
    total, last = accumulate(total, jax.tree.map(lambda leaf: leaf[groups * width :], clients))
    return total, jax.tree.map(lambda *parts: jnp.concatenate(parts), told, last)
