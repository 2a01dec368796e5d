"""The agents' data on one padded axis, and how agents join and leave it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from vcca_jax.arguments import check_count

Shard = tuple[Any, Any]


class Shards(NamedTuple):
    """The arrays of a cooperative: what a jitted function takes.

    Attributes:
        inputs: [A, S, ...], zero where there is no sample.
        targets: [A, S, ...], zero where there is no sample.
        mask: [A, S] bool, true for a live sample.
        active: [A] bool, true for an agent that is a member. An inactive agent has no live sample;
            a member may have none either.
    """

    inputs: Any
    targets: Any
    mask: Any
    active: Any


@dataclass(frozen=True, eq=False)
class Cooperative:
    """Agents with their data, padded to fixed capacities.

    The names stay on the host: only ``shards`` enters a jitted function, so its shapes, and with
    them the compiled code, are the same whoever is a member.

    Attributes:
        names: one a slot of the agent axis, "" for a free slot.
        shards: the padded arrays (NumPy; ``jax.device_put`` them once for a long run).
        classes: how many labels there are, or None where targets are no labels or it is not told.
    """

    names: tuple[str, ...]
    shards: Shards
    classes: int | None = None

    @property
    def capacity(self) -> int:
        """Slots on the agent axis, A."""
        return len(self.names)

    @property
    def sample_capacity(self) -> int:
        """Slots on the sample axis, S."""
        return int(self.shards.mask.shape[1])

    @property
    def active(self) -> np.ndarray:
        """[A] bool, slots that have a member, as ``screened_by`` wants it."""
        return np.asarray(self.shards.active)

    @property
    def sizes(self) -> np.ndarray:
        """[A] int, live samples of each agent."""
        return np.asarray(self.shards.mask).sum(axis=1)

    @property
    def members(self) -> tuple[str, ...]:
        """Names of the active agents, in the order of the axis."""
        return tuple(name for name in self.names if name)

    def named(self, numbers: Any) -> dict[str, float]:
        """[A] numbers by the members' names, such as credits; free slots are left out.

        Raises:
            ValueError: not one number a slot.
        """
        if np.shape(numbers) != (self.capacity,):
            raise ValueError(
                f"numbers has shape {np.shape(numbers)}; give one a slot, ({self.capacity},)"
            )
        told = np.asarray(numbers).tolist()
        return {name: each for name, each in zip(self.names, told, strict=True) if name}

    def index(self, name: str) -> int:
        """Slot of a member; ``ValueError`` for a stranger."""
        if not name or name not in self.names:
            raise ValueError(f"name={name!r} is no member; the members are {list(self.members)}")
        return self.names.index(name)


def cooperative(
    shards: Sequence[Shard],
    *,
    names: Sequence[str] | None = None,
    capacity: int | None = None,
    sample_capacity: int | None = None,
    classes: int | None = None,
) -> Cooperative:
    """Put the agents' data on one padded axis.

    Args:
        shards: one ``(inputs [n_i, ...], targets [n_i, ...])`` an agent; ``n_i`` may be 0.
        names: one unique, non-empty name an agent; "agent 0", "agent 1", ... by default.
        capacity: slots on the agent axis, the number of shards by default. Leave room for agents
            that will join: a join within the capacity changes no shape.
        sample_capacity: slots on the sample axis, the largest ``n_i`` by default.
        classes: where targets are labels, how many there are; then each must be an integer from 0
            to ``classes`` - 1, of this cooperative's agents and of those that join. Say it: JAX
            does not stop at a label out of range.

    Returns:
        A ``Cooperative`` whose arrays have shape [capacity, sample_capacity, ...].

    Raises:
        ValueError: no shard, one that is no pair of inputs and targets, unequal lengths, shapes or
            dtypes, an input that is not a number, a value that is not finite, a label out of range,
            names that are not unique, or a capacity that is no whole number or too small.

    Example:
        >>> import numpy as np
        >>> rows = np.zeros((2, 3), np.float32), np.array([0, 1])
        >>> members = cooperative([rows], names=["ana"], capacity=2, classes=2)
        >>> members.names, members.shards.inputs.shape
        (('ana', ''), (2, 2, 3))
    """
    for what, count in (("capacity", capacity), ("sample_capacity", sample_capacity)):
        if count is not None:
            check_count(what, count, least=0)
    if classes is not None and classes < 1:
        raise ValueError(f"classes={classes} must be at least 1, or None")
    if isinstance(shards, Mapping):
        raise ValueError(
            f"shards is a {type(shards).__name__}; give list(shards.values()), and its keys as"
            " names="
        )
    if isinstance(names, str):
        raise ValueError(f"names={names!r} is one string; give a sequence of names, one an agent")
    pairs = [_checked_shard(shard, f"shards[{i}]", classes) for i, shard in enumerate(shards)]
    if not pairs:
        raise ValueError("shards=[] holds no agent; give at least one (inputs, targets) pair")
    names = [f"agent {i}" for i in range(len(pairs))] if names is None else list(names)
    if len(names) != len(pairs):
        raise ValueError(f"names has {len(names)} entries for {len(pairs)} shards; give one each")
    if len(set(names)) != len(names) or not all(names):
        raise ValueError(f"names={names} must be unique and not empty")
    agent_slots = len(pairs) if capacity is None else capacity
    if agent_slots < len(pairs):
        raise ValueError(f"capacity={capacity} is less than the {len(pairs)} shards; raise it")
    longest = max(len(inputs) for inputs, _ in pairs)
    sample_slots = max(longest, 1) if sample_capacity is None else sample_capacity
    inputs, targets = pairs[0]
    room = Shards(
        inputs=np.zeros((agent_slots, sample_slots, *inputs.shape[1:]), inputs.dtype),
        targets=np.zeros((agent_slots, sample_slots, *targets.shape[1:]), targets.dtype),
        mask=np.zeros((agent_slots, sample_slots), bool),
        active=np.zeros(agent_slots, bool),
    )
    for slot, (name, pair) in enumerate(zip(names, pairs, strict=True)):
        _fill(room, slot, name, pair)
    return Cooperative((*names, *[""] * (agent_slots - len(names))), room, classes)


def join(members: Cooperative, name: str, shard: Shard) -> Cooperative:
    """Add an agent in the first free slot; no shape changes.

    Raises:
        ValueError: the name is taken or empty, no slot is free, or the shard does not fit, in size,
            shape, dtype or labels.
    """
    if not name or name in members.names:
        raise ValueError(f"name={name!r} is empty or already a member's; choose another")
    if "" not in members.names:
        raise ValueError(
            f"all {members.capacity} slots are taken; make the cooperative with a larger capacity="
        )
    slot = members.names.index("")
    room = Shards(*(np.array(array) for array in members.shards))
    _fill(room, slot, name, _checked_shard(shard, "shard", members.classes))
    names = tuple(name if i == slot else other for i, other in enumerate(members.names))
    return replace(members, names=names, shards=room)


def leave(members: Cooperative, name: str) -> Cooperative:
    """Remove an agent and its data; its slot is free again and no shape changes."""
    slot = members.index(name)
    arrays = [np.array(array) for array in members.shards]
    for array in arrays:
        array[slot] = 0
    names = tuple("" if i == slot else other for i, other in enumerate(members.names))
    return replace(members, names=names, shards=Shards(*arrays))


def _fill(room: Shards, slot: int, name: str, shard: Shard) -> None:
    """Write one agent's samples into its slot, in place."""
    inputs, targets = shard
    for what, array, place in (
        ("inputs", inputs, room.inputs),
        ("targets", targets, room.targets),
    ):
        if array.shape[1:] != place.shape[2:] or array.dtype != place.dtype:
            raise ValueError(
                f"{what} of {name!r} have shape {array.shape[1:]} and dtype {array.dtype} a sample,"
                f" those of the cooperative {place.shape[2:]} and {place.dtype}; make them alike"
            )
    count, capacity = len(inputs), room.mask.shape[1]
    if count > capacity:
        raise ValueError(
            f"{name!r} brings {count} samples, more than sample_capacity={capacity}; make the"
            " cooperative with a larger one"
        )
    room.inputs[slot, :count] = inputs
    room.targets[slot, :count] = targets
    room.mask[slot, :count] = True
    room.active[slot] = True


def _checked_shard(
    shard: Shard, argument: str, classes: int | None
) -> tuple[np.ndarray, np.ndarray]:
    # A list of two rows would be taken for a pair, and the second row for the targets.
    if not isinstance(shard, tuple | list) or len(shard) != 2:
        shape = "" if np.ndim(shard) == 0 else f" of shape {np.shape(shard)}"
        raise ValueError(
            f"{argument} is a {type(shard).__name__}{shape}; give a pair (inputs [n, ...], targets"
            " [n, ...])"
        )
    inputs, targets = (np.asarray(part) for part in shard)
    if inputs.ndim == 0 or targets.ndim == 0 or len(inputs) != len(targets):
        raise ValueError(
            f"{argument} has inputs of shape {inputs.shape} and targets of shape {targets.shape};"
            " the leading axes must be the samples, equally many"
        )
    for what, array in (("inputs", inputs), ("targets", targets)):
        if array.dtype.kind not in "biufcV":  # V: what ml_dtypes adds, such as bfloat16
            raise ValueError(
                f"{argument} has {what} of dtype {array.dtype}, and JAX takes numbers alone;"
                " encode them, labels as integers from 0"
            )
        if np.issubdtype(array.dtype, np.inexact) and not np.isfinite(array).all():
            bad = int((~np.isfinite(array)).sum())
            raise ValueError(
                f"{argument} has {bad} {what} that are NaN or infinite; impute or drop them first"
            )
    if classes is not None:
        if not np.issubdtype(targets.dtype, np.integer):
            raise ValueError(
                f"{argument} has targets of dtype {targets.dtype}, but classes={classes} makes them"
                " labels; convert them to integers, or leave classes out"
            )
        outside = targets[(targets < 0) | (targets >= classes)]
        if outside.size:
            raise ValueError(
                f"{argument} has {outside.size} labels outside 0..{classes - 1}, such as"
                f" {outside.flat[0]}; relabel or drop them, or raise classes={classes}"
            )
    return inputs, targets
