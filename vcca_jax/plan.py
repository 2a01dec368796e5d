"""The epoch's virtual batches and the order in which agents are visited (host, NumPy)."""

from typing import Literal, NamedTuple

import numpy as np

from vcca_jax.arguments import check_count
from vcca_jax.cooperative import Cooperative

VisitingOrder = Literal["random", "ascending"]


class TraversalPlan(NamedTuple):
    """Which samples make up each of an epoch's T virtual batches of B slots.

    A batch is laid out in visiting order: the samples of one agent stand together, and the agents
    follow each other as they are visited. Indexing every field at t gives one step's plan.

    Attributes:
        owners: [T, B] int32, the agent that holds each sample.
        rows: [T, B] int32, the sample's row in its owner's shard.
        mask: [T, B] bool, false for a padding slot; such a slot names some live sample, so that
            a model is never run on made-up data.
    """

    owners: np.ndarray
    rows: np.ndarray
    mask: np.ndarray


def virtual_batches(
    cooperative: Cooperative,
    batch_size: int,
    *,
    seed: int,
    epoch: int,
    steps: int | None = None,
    visiting_order: VisitingOrder = "random",
) -> TraversalPlan:
    """Plan one epoch: all live samples shuffled together, each exactly once.

    The draw depends on ``(seed, epoch)`` and on the members' sizes alone, so any epoch can be
    planned without the ones before it.

    Args:
        cooperative: the agents and their data.
        batch_size: B, samples in a virtual batch; the last one may hold fewer.
        seed: of the run, >= 0.
        epoch: counted from 0.
        steps: T; the fewest that hold every sample by default. A larger number adds empty batches
            at the end, which a trainer passes over: fix it to keep one shape while agents come
            and go.
        visiting_order: "random" draws one anew for each batch; "ascending" follows the axis.

    Raises:
        ValueError: shards in place of the cooperative, a size below one, no live sample, or too few
            steps.

    Example:
        >>> import numpy as np
        >>> from vcca_jax import cooperative
        >>> members = cooperative([(np.zeros((n, 1)), np.zeros(n)) for n in (3, 0, 2)])
        >>> plan = virtual_batches(members, 2, seed=0, epoch=0)
        >>> plan.owners.shape, int(plan.mask.sum())
        ((3, 2), 5)
    """
    check_layout(batch_size, visiting_order)
    if seed < 0 or epoch < 0:
        raise ValueError(f"seed={seed} and epoch={epoch} must not be negative")
    if not hasattr(cooperative, "shards"):
        kind = type(cooperative).__name__
        raise ValueError(f"cooperative is a {kind}; give the whole Cooperative, not its shards")
    owners, rows = np.nonzero(cooperative.shards.mask & cooperative.shards.active[:, None])
    count = len(owners)
    if count == 0:
        raise ValueError("the cooperative has no live sample; let an agent with data join")
    steps = steps_for(count, batch_size, steps)
    generator = np.random.default_rng((seed, epoch))
    order = generator.permutation(count)
    # Padding repeats the first sample, masked.
    slots = np.concatenate([order, np.full(steps * batch_size - count, order[0])])
    mask = np.arange(steps * batch_size) < count
    plan = TraversalPlan(
        owners=owners[slots].astype(np.int32).reshape(steps, batch_size),
        rows=rows[slots].astype(np.int32).reshape(steps, batch_size),
        mask=mask.reshape(steps, batch_size),
    )
    layout = np.stack(
        [
            visiting_layout(owners, mask, generator, visiting_order)
            for owners, mask in zip(plan.owners, plan.mask, strict=True)
        ]
    )
    return TraversalPlan(*(np.take_along_axis(field, layout, axis=1) for field in plan))


def check_layout(batch_size: int, visiting_order: str) -> None:
    """Refuse a batch of no whole number of slots and an unknown order, as a ``ValueError``."""
    if not isinstance(batch_size, int | np.integer) or batch_size < 1:
        raise ValueError(f"batch_size={batch_size!r} must be a whole number, at least 1")
    if visiting_order not in ("random", "ascending"):
        raise ValueError(f"visiting_order={visiting_order!r} must be 'random' or 'ascending'")


def steps_for(count: int, batch_size: int, steps: int | None) -> int:
    """T: the steps asked for, or the fewest that hold ``count`` samples.

    Raises:
        ValueError: too few steps, or no whole number of them.
    """
    if steps is not None:
        check_count("steps", steps, least=0)
    needed = -(-count // batch_size)
    if steps is None:
        return needed
    if steps < needed:
        raise ValueError(f"steps={steps} cannot hold {count} samples; give at least {needed}")
    return steps


def visiting_layout(
    owners: np.ndarray,
    mask: np.ndarray,
    generator: np.random.Generator,
    visiting_order: VisitingOrder,
) -> np.ndarray:
    """Positions that put one batch in visiting order, padding last."""
    visited, place = np.unique(owners, return_inverse=True)
    rank = np.arange(len(visited))
    if visiting_order == "random":
        rank = generator.permutation(rank)
    return np.lexsort((rank[place], ~mask))
