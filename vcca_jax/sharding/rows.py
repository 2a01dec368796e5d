"""The rows of a pass on the devices that hold them: a ``placement`` over a mesh.

What runs on a device's own rows runs in ``jax.shard_map``, without a collective. What crosses
between devices is written here and nowhere else: sums over parts, one number a row, and held-out
rows, which every process is given anyway.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp

from vcca_jax.one_pass.placement import Segment
from vcca_jax.sharding.batch import AXES, REPLICATED, SPREAD


@dataclass(frozen=True)
class SpreadRows:
    """Segments that are each spread over the devices of a mesh: a part has its share of all.

    Attributes:
        mesh: of ``agent_mesh``.
        blocks: of ``sharded_loss``: how many parts, run one by one and added in their order; None
            for one a device, added as the hardware does.
        sizes: rows in each segment, over all parts.
    """

    mesh: jax.sharding.Mesh
    blocks: int | None
    sizes: tuple[int, ...]

    def __post_init__(self) -> None:
        if any(size % self.parts for size in self.sizes):
            raise ValueError(
                f"segments of {list(self.sizes)} rows do not divide into {self.parts} parts; lay"
                " the batch out by sharded_plan with as many blocks, or a multiple of the devices,"
                " and held-out rows by spread_loss with the same mesh and blocks"
            )

    @property
    def parts(self) -> int:
        """How many."""
        return self.blocks or self.mesh.size

    def join(self, segments: Sequence[Segment]) -> list[Any]:
        """The leaves of all segments, [parts, R / parts, ...]: laid out where they are."""
        here = self.parts // self.mesh.size

        def local(segments: list[list[Any]]) -> list[Any]:
            split = [
                [leaf.reshape(here, -1, *leaf.shape[1:]) for leaf in leaves] for leaves in segments
            ]
            return [jnp.concatenate(leaves, axis=1) for leaves in zip(*split, strict=True)]

        leaves = [[jnp.asarray(leaf) for leaf in jax.tree.leaves(each)] for each in segments]
        return jax.shard_map(local, mesh=self.mesh, in_specs=SPREAD, out_specs=SPREAD)(leaves)

    def example(self, leaf: Any) -> jax.ShapeDtypeStruct:
        """Of [parts, R / parts, ...]."""
        return jax.ShapeDtypeStruct(leaf.shape[2:], leaf.dtype)

    def each(self, function: Callable[[Any, Any], Any], parts: Any, shared: Any) -> Any:
        """``function(part, shared)`` where the part is; nothing is sent."""

        def local(parts: Any, shared: Any) -> Any:
            if self.blocks is not None:
                return jax.lax.map(lambda part: function(part, shared), parts)
            told = function(jax.tree.map(lambda leaf: leaf[0], parts), shared)
            return jax.tree.map(lambda leaf: leaf[None], told)

        # Types that vary by device are not checked: the operations of a traced program are bound
        # one by one, without what would make an operand vary as the others do.
        run = jax.shard_map(
            local,
            mesh=self.mesh,
            in_specs=(SPREAD, REPLICATED),
            out_specs=SPREAD,
            check_vma=False,
        )
        return run(parts, shared)

    def total(self, parts: Any) -> Any:
        """The sum over parts: in the order of the blocks, or of the hardware."""
        if self.blocks is None:
            return jax.tree.map(lambda leaf: leaf.sum(axis=0), parts)
        # Fenced, so that the additions round alike whatever the compiler would fuse them with.
        fence = jax.lax.optimization_barrier
        known = fence(self._known(parts))
        return fence(jax.tree.map(lambda leaf: reduce(jnp.add, list(leaf)), known))

    def everyone(self, parts: Any) -> Any:
        """[n, ...] of [parts, n / parts, ...], known to all."""
        return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), self._known(parts))

    def deal(self, numbers: jax.Array, rows: slice) -> jax.Array:
        """[parts, r / parts, ...] of [r, ...], of which every device takes its own."""
        ends = list(itertools.accumulate(self._within(rows)))[:-1]
        here = self.parts // self.mesh.size

        def local(numbers: jax.Array) -> jax.Array:
            pieces = [
                piece.reshape(self.parts, -1, *piece.shape[1:])
                for piece in jnp.split(numbers, ends)
            ]
            first = jax.lax.axis_index(AXES) * here
            return jax.lax.dynamic_slice_in_dim(jnp.concatenate(pieces, axis=1), first, here)

        return jax.shard_map(local, mesh=self.mesh, in_specs=REPLICATED, out_specs=SPREAD)(numbers)

    def collect(self, parts: jax.Array, rows: slice) -> jax.Array:
        """[r, ...] of [parts, r / parts, ...], known to all."""
        ends = list(itertools.accumulate(size // self.parts for size in self._within(rows)))[:-1]

        def local(parts: jax.Array) -> jax.Array:
            pieces = jnp.split(parts, ends, axis=1)
            return jnp.concatenate([piece.reshape(-1, *piece.shape[2:]) for piece in pieces])

        # In a program of each device's own, or the compiler divides these few numbers again.
        run = jax.shard_map(local, mesh=self.mesh, in_specs=REPLICATED, out_specs=REPLICATED)
        return self._known(run(parts))

    def within(self, rows: slice) -> slice:
        """A part's own rows of those."""
        start, stop, _ = rows.indices(sum(self.sizes))
        return slice(start // self.parts, stop // self.parts)

    def deal_groups(self, groups: jax.Array, count: int, rows: slice) -> tuple[jax.Array, int]:
        """Groups are spread as agents are: as many in each part, in order."""
        if count % self.parts:
            raise ValueError(f"{count} groups do not divide into {self.parts} parts, as agents do")
        own = count // self.parts
        first = own * jnp.arange(self.parts, dtype=groups.dtype)
        return self.deal(groups, rows) - first[:, None], own

    def collect_groups(self, parts: jax.Array) -> jax.Array:
        """[count] of [parts, count / parts]."""
        return self.everyone(parts)

    def _within(self, rows: slice) -> list[int]:
        """The sizes of the segments that a slice takes."""
        start, stop, _ = rows.indices(sum(self.sizes))
        ends = list(itertools.accumulate(self.sizes))
        taken = [
            size
            for size, end in zip(self.sizes, ends, strict=True)
            if start <= end - size and end <= stop
        ]
        assert sum(taken) == stop - start, "rows are read by whole segments"
        return taken

    def _known(self, tree: Any) -> Any:
        return jax.lax.with_sharding_constraint(tree, jax.NamedSharding(self.mesh, REPLICATED))
