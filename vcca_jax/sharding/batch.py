"""A virtual batch whose samples stay on their owners' devices.

Agents are spread over the devices of a mesh, in the order of the agent axis, and each device holds
the shards of its own agents alone. A batch is laid out in blocks, one a device (or several), so
that gathering it is a local affair. What the rest of the library is handed are positions in it; the
samples behind them are read by ``sharded_loss`` only, on the device where they are.
"""

from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from vcca_jax.cooperative import Cooperative, Shards
from vcca_jax.noise import Keyed
from vcca_jax.plan import TraversalPlan
from vcca_jax.virtual_batch import VirtualBatch

AXES = ("agents", "parameters")
"""The axes of a mesh; agents are spread over both, parameters over the second."""

SPREAD = jax.P(AXES)
"""The layout of what belongs to agents or samples: the leading axis over all devices."""

REPLICATED = jax.P()
"""The layout of what every device holds."""


class Resident(NamedTuple):
    """All samples of a batch, each on its owner's device.

    Attributes:
        inputs: [B, ...], spread over the devices; an array or a pytree of arrays.
        targets: [B, ...], likewise.
    """

    inputs: Any
    targets: Any


class Located(NamedTuple):
    """Some samples of a batch, named by their positions.

    Attributes:
        resident: the batch, whole and where it is.
        positions: [n] int32.
    """

    resident: Resident
    positions: jax.Array


class ShardedBatch(VirtualBatch):
    """A virtual batch whose ``inputs`` are ``Resident``; ``targets`` are positions, [B].

    Any trainer takes it whose loss is a ``sharded_loss``. It is read whole or through ``take``.
    """

    __slots__ = ()

    def take(self, slots: jax.Array) -> tuple[Any, Any]:
        """The samples at ``slots``, by name: no sample leaves its device."""
        if isinstance(self.inputs, Keyed):
            keys = self.inputs.keys[slots]
            return Keyed(Located(self.inputs.inputs, slots), keys), self.targets[slots]
        return Located(self.inputs, slots), self.targets[slots]


def shard_cooperative(own: Cooperative, mesh: jax.sharding.Mesh) -> Cooperative:
    """Put every agent's samples on its device, and nowhere else.

    With P processes each calls it with a cooperative of its own A / P slots, all of the same
    shapes; process p has the slots from p A / P on. Samples stay in the process; what the others
    learn are names, labels' range and which slots hold a sample.

    Args:
        own: the agents of this process; with one process, all of them.
        mesh: of ``agent_mesh``.

    Returns:
        The whole cooperative, the same names and masks in every process. Inputs and targets are
        spread over the devices by agent, mask and ``active`` are NumPy arrays. To let agents join
        or leave, change ``own`` and put it again: no shape changes.

    Raises:
        ValueError: the agents do not divide evenly among the devices, or the processes' shapes
            differ.
    """
    processes, per_process = jax.process_count(), own.capacity
    agents = processes * per_process
    if agents % mesh.size:
        raise ValueError(
            f"{agents} agent slots do not divide among {mesh.size} devices; make the cooperative"
            f" with capacity={-(-agents // mesh.size) * mesh.size // processes}"
            + (" in every process" if processes > 1 else "")
        )
    if processes == 1:
        names, mask, active = own.names, own.shards.mask, own.shards.active
    else:
        _check_alike(own)
        mask, active = _from_all((own.shards.mask, own.shards.active))
        names = _all_names(own.names)
    sharding = jax.NamedSharding(mesh, SPREAD)

    def placed(array: Any) -> jax.Array:
        return jax.make_array_from_process_local_data(
            sharding, np.asarray(array), (agents, *array.shape[1:])
        )

    shards = Shards(placed(own.shards.inputs), placed(own.shards.targets), mask, active)
    return replace(own, names=names, shards=shards)


def sharded_plan(
    plan: TraversalPlan,
    members: Cooperative,
    blocks: int,
    *,
    block_capacity: int | None = None,
) -> TraversalPlan:
    """Lay every batch of a plan out in blocks, each of the samples of A / blocks agents.

    The samples are those of the plan, each agent's in the same order. A padding slot names a live
    sample of its own block's agents, if they have any.

    Args:
        plan: of ``virtual_batches``.
        members: the cooperative, sharded or not.
        blocks: how many; the mesh's number of devices, or a multiple of it. The layout depends on
            this number alone, so a run with 8 blocks has the same one on 1, 2, 4 and 8 devices.
        block_capacity: slots of a block, C; the fewest that suffice for this plan, rounded up to
            a multiple of 8, by default. Fix it for a run, so that every epoch has one shape.

    Returns:
        A plan whose batches have ``blocks * C`` slots.

    Raises:
        ValueError: the agents do not divide evenly among the blocks, or a block overflows.
    """
    if blocks < 1 or members.capacity % blocks:
        raise ValueError(
            f"blocks={blocks} must divide the {members.capacity} agent slots; make the cooperative"
            f" with capacity={-(-members.capacity // max(blocks, 1)) * max(blocks, 1)}"
        )
    per_block = members.capacity // blocks
    steps = plan.mask.shape[0]
    step, slot = np.nonzero(plan.mask)
    owners, rows = plan.owners[step, slot], plan.rows[step, slot]
    group = step * blocks + owners // per_block
    counts = np.bincount(group, minlength=steps * blocks)
    needed = int(counts.max(initial=1))
    capacity = -(-needed // 8) * 8 if block_capacity is None else block_capacity
    if capacity < needed:
        raise ValueError(
            f"block_capacity={capacity} is too small: {needed} samples of one batch lie in one of"
            f" the {blocks} blocks; raise it to {needed} at least, or spread large agents over"
            " the agent axis"
        )
    order = np.argsort(group, kind="stable")
    within = np.arange(len(group)) - np.repeat(np.cumsum(counts) - counts, counts)
    place = group[order] * capacity + within
    stand_in = np.stack([_stand_in(members, block, per_block) for block in range(blocks)])
    flat = [np.tile(np.repeat(column, capacity), steps) for column in stand_in.T]
    mask = np.zeros(steps * blocks * capacity, bool)
    flat[0][place], flat[1][place], mask[place] = owners[order], rows[order], True
    shape = (steps, blocks * capacity)
    return TraversalPlan(
        flat[0].astype(np.int32).reshape(shape),
        flat[1].astype(np.int32).reshape(shape),
        mask.reshape(shape),
    )


def sharded_gather(shards: Shards, step: TraversalPlan, mesh: jax.sharding.Mesh) -> ShardedBatch:
    """Collect the samples that one step of a ``sharded_plan`` names, each device its own.

    Args:
        shards: of a sharded cooperative.
        step: the plan's fields without the leading T.
        mesh: of ``agent_mesh``.

    Raises:
        ValueError: the plan's batch, or the agents, do not divide among the devices.
    """
    agents, size = shards.mask.shape[0], step.mask.shape[0]
    if agents % mesh.size or size % mesh.size:
        raise ValueError(
            f"{agents} agents and {size} slots do not divide among {mesh.size} devices; lay the"
            " plan out by sharded_plan, with a multiple of the devices as blocks"
        )
    per_device = agents // mesh.size

    def local(inputs: Any, targets: Any, owners: jax.Array, rows: jax.Array) -> Resident:
        own = owners - jax.lax.axis_index(AXES) * per_device
        return Resident(*jax.tree.map(lambda leaf: leaf[own, rows], (inputs, targets)))

    gathered = jax.shard_map(local, mesh=mesh, in_specs=SPREAD, out_specs=SPREAD)
    # Known to all, or the compiler divides what is told of samples as it divides the samples.
    owners, rows, mask = jax.lax.with_sharding_constraint(
        (jnp.asarray(step.owners), jnp.asarray(step.rows), jnp.asarray(step.mask)),
        jax.NamedSharding(mesh, REPLICATED),
    )
    return ShardedBatch(
        inputs=gathered(jnp.asarray(shards.inputs), jnp.asarray(shards.targets), owners, rows),
        targets=jnp.arange(size, dtype=jnp.int32),
        owners=owners,
        rows=rows,
        mask=mask,
        active=jnp.asarray(shards.active),
    )


def _stand_in(members: Cooperative, block: int, per_block: int) -> tuple[int, int]:
    """Owner and row of a live sample of the block, or its first slot if it has none."""
    first = block * per_block
    slots = slice(first, first + per_block)
    live = (
        np.asarray(members.shards.mask[slots]) & np.asarray(members.shards.active[slots])[:, None]
    )
    owner, row = np.unravel_index(int(live.argmax()), live.shape)
    return first + int(owner), int(row)


def _from_all(tree: Any) -> Any:
    """NumPy arrays of all processes, one after the other along the leading axis."""
    gathered = multihost_utils.process_allgather(tree)
    return jax.tree.map(lambda leaf: np.asarray(leaf).reshape(-1, *leaf.shape[2:]), gathered)


def _check_alike(own: Cooperative) -> None:
    shapes = [own.shards.mask.shape, own.shards.inputs.shape[2:], own.shards.targets.shape[2:]]
    seen = _from_all(np.frombuffer(repr((shapes, own.classes)).encode().ljust(256)[:256], np.uint8))
    if (seen.reshape(-1, 256) != seen[:256]).any():
        told = [bytes(each).decode().strip() for each in seen.reshape(-1, 256)]
        raise ValueError(
            f"own has other shapes or classes in other processes: {told}; give capacity=,"
            " sample_capacity= and classes= alike everywhere"
        )


def _all_names(names: tuple[str, ...]) -> tuple[str, ...]:
    encoded = [name.encode() for name in names]
    longest = int(_from_all(np.array([max(map(len, encoded))])).max())
    width = max(longest, 1)
    table = np.stack([np.frombuffer(name.ljust(width, b"\0"), np.uint8) for name in encoded])
    everyone = _from_all(table).reshape(-1, width)
    found = tuple(bytes(row).rstrip(b"\0").decode() for row in everyone)
    taken = [name for name in found if name]
    if len(set(taken)) != len(taken):
        raise ValueError(f"names={taken} are not unique over the processes; choose others")
    return found
