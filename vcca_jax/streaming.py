"""Data larger than memory: shards on disk, and virtual batches read ahead of the device.

The simulation's other way to a batch is ``gather``, from shards that lie whole on the device. Here
they stay where they are, in memory-mapped files or in host memory; each batch's rows are read on
the host by a thread, a few batches ahead, and only they are sent to the device. The batches are
those of ``gather``, bit for bit.
"""

import json
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from vcca_jax.arguments import check_count
from vcca_jax.cooperative import Cooperative, Shard, Shards
from vcca_jax.files import replacing
from vcca_jax.plan import TraversalPlan
from vcca_jax.virtual_batch import VirtualBatch


class StoredShards(NamedTuple):
    """Agents' samples one after the other, without padding, in arrays that need not be in memory.

    Attributes:
        inputs: [N, ...], agent i's rows from ``starts[i]`` to ``starts[i + 1]``.
        targets: [N, ...], likewise.
        starts: [A + 1] int64, from 0 to N.
        active: [A] bool, members of the cooperative.
        names: one an agent.
    """

    inputs: np.ndarray
    targets: np.ndarray
    starts: np.ndarray
    active: np.ndarray
    names: tuple[str, ...]

    @property
    def sizes(self) -> np.ndarray:
        """[A] int64, live samples of each agent; an inactive one has none."""
        return np.where(self.active, np.diff(self.starts), 0)


def store_shards(
    folder: str | Path, shards: Iterable[Shard], *, sizes: Sequence[int], names: Sequence[str]
) -> StoredShards:
    """Write agents' samples to a folder, one agent at a time, and open what was written.

    Args:
        folder: made if absent; it must not hold shards yet.
        shards: one ``(inputs [n_i, ...], targets [n_i, ...])`` an agent, of like shapes and dtypes;
            an iterator, so that no more than one agent's need be in memory.
        sizes: the n_i, which must be known beforehand.
        names: one unique, non-empty name an agent.

    Raises:
        ValueError: sizes or names that do not fit, no sample, a shard of another size, shape or
            dtype than told, values that are not finite, or a folder that holds shards.
    """
    folder, names = Path(folder), tuple(names)
    if len(names) != len(sizes) or len(set(names)) != len(names) or not all(names):
        raise ValueError(f"names={names} must be unique, not empty, and one for each of sizes")
    if (folder / "shards.json").exists():
        raise ValueError(f"folder={str(folder)!r} holds shards already; choose another")
    starts = np.concatenate([[0], np.cumsum(np.asarray(sizes, np.int64))])
    if starts[-1] == 0 or min(sizes) < 0:
        raise ValueError("sizes must not be negative and must hold at least one sample")
    folder.mkdir(parents=True, exist_ok=True)
    whole: list[np.ndarray] = []
    told = 0
    for i, shard in enumerate(shards):
        parts = [np.asarray(part) for part in shard]
        if i == 0:
            whole = [
                np.lib.format.open_memmap(
                    folder / f"{what}.npy", "w+", part.dtype, (int(starts[-1]), *part.shape[1:])
                )
                for what, part in zip(("inputs", "targets"), parts, strict=True)
            ]
        for what, part, place in zip(("inputs", "targets"), parts, whole, strict=True):
            wanted = (sizes[i] if i < len(sizes) else "no", *place.shape[1:])
            if part.shape != wanted or part.dtype != place.dtype:
                raise ValueError(
                    f"shards[{i}] has {what} of shape {part.shape} and dtype {part.dtype}; they"
                    f" must be of shape {wanted} and dtype {place.dtype}"
                )
            if np.issubdtype(part.dtype, np.inexact) and not np.isfinite(part).all():
                raise ValueError(f"shards[{i}] has {what} that are NaN or infinite; drop them")
            place[starts[i] : starts[i + 1]] = part
        told = i + 1
    if told != len(sizes):
        raise ValueError(f"shards holds {told} agents and sizes {len(sizes)}; give one for each")
    for array in whole:
        array.flush()  # type: ignore[attr-defined]  # of memory maps
    # Written last: a folder without it holds nothing.
    with replacing(folder / "shards.json") as beside:
        beside.write_text(json.dumps({"starts": starts.tolist(), "names": names}))
    return open_shards(folder)


def open_shards(folder: str | Path) -> StoredShards:
    """Open the shards of a folder, memory-mapped: no sample is read before it is asked for.

    Raises:
        ValueError: the folder holds no shards, or some that were not written to the end.
    """
    folder = Path(folder)
    if not (folder / "shards.json").exists():
        raise ValueError(f"folder={str(folder)!r} holds no shards; write them with store_shards")
    told = json.loads((folder / "shards.json").read_text(encoding="utf-8"))
    arrays = [np.load(folder / f"{what}.npy", mmap_mode="r") for what in ("inputs", "targets")]
    starts, names = np.asarray(told["starts"], np.int64), tuple(told["names"])
    active = np.ones(len(names), bool)
    return StoredShards(arrays[0], arrays[1], starts, active, names)


def read_batch(source: StoredShards | Shards, step: TraversalPlan) -> VirtualBatch:
    """Read on the host what ``gather`` collects on the device, as NumPy arrays.

    Args:
        source: shards on disk, or the padded ones of a cooperative (whose arrays may be
            memory-mapped too).
        step: of a plan, with fields [B]; or several of them stacked, [k, B], for a batch whose
            fields all have that leading [k].

    Raises:
        ValueError: a cooperative in place of its shards.
    """
    check_source(source)
    owners, rows = np.asarray(step.owners), np.asarray(step.rows)
    if isinstance(source, StoredShards):
        place: Any = source.starts[owners] + rows
    else:
        place = (owners, rows)
    active = np.asarray(source.active)
    return VirtualBatch(
        inputs=np.asarray(source.inputs[place]),
        targets=np.asarray(source.targets[place]),
        owners=owners,
        rows=rows,
        mask=np.asarray(step.mask),
        active=np.broadcast_to(active, (*owners.shape[:-1], *active.shape)),
    )


def stream_batches(
    source: StoredShards | Shards,
    steps: Iterable[TraversalPlan] | TraversalPlan,
    *,
    prefetch: int = 2,
    device: Any = None,
) -> Iterator[VirtualBatch]:
    """The virtual batches of a plan, read and sent to the device by a thread running ahead.

    Each equals ``gather(shards, step)`` bit for bit. While one is used, at most ``prefetch`` more
    are in memory. Whatever the thread meets (a file that is gone, a plan that raises) is raised
    here, at the batch where it happened; a stream that is closed early stops its thread.

    Args:
        source: shards on disk, or padded ones in host memory.
        steps: a plan [T, B], or any iterable of its steps, such as ``stream_plan`` gives.
        prefetch: batches read ahead, at least 1.
        device: a device or a sharding to send them to; the default device if None.

    Raises:
        ValueError: a prefetch below 1 or that is no whole number, or a cooperative in place of its
            shards.
    """
    check_source(source)
    if prefetch < 1:
        raise ValueError(f"prefetch={prefetch} must be at least 1")
    check_count("prefetch", prefetch)
    return _streamed(source, steps_of(steps), prefetch, device)


def check_source(source: Any) -> None:
    """Refuse a cooperative, whose names stay on the host, where its arrays are asked for.

    Raises:
        ValueError: it is one.
    """
    if isinstance(source, Cooperative):
        raise ValueError("source is a Cooperative; give its arrays, members.shards")


def steps_of(steps: Any) -> Iterator[Any]:
    """The steps of a plan or of stacked batches, one by one; of an iterable, its items."""
    if not hasattr(steps, "_fields"):
        return iter(steps)
    return (jax.tree.map(lambda leaf, t=t: leaf[t], steps) for t in range(len(steps.mask)))


def _streamed(
    source: StoredShards | Shards, steps: Iterator[TraversalPlan], prefetch: int, device: Any
) -> Iterator[VirtualBatch]:
    def following() -> VirtualBatch | None:
        step = next(steps, None)
        return None if step is None else jax.device_put(read_batch(source, step), device)

    # One thread, so that the steps are taken in their order.
    pool = ThreadPoolExecutor(1, thread_name_prefix="vcca_jax-stream")
    try:
        ahead = deque(pool.submit(following) for _ in range(prefetch))
        while (batch := ahead.popleft().result()) is not None:
            ahead.append(pool.submit(following))
            yield batch
    finally:
        pool.shutdown(cancel_futures=True)
