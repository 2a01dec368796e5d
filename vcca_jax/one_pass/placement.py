"""Where the rows of a pass are: in one place, or in parts that stay where they are.

A pass reads segments of examples one after the other: the batch, then each group of held-out ones.
What is done example by example is done ``each`` part on its own; beyond a part there are only
sums over parts (``total``), one number a row (``collect``), and held-out rows (``everyone``).
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from vcca_jax.trainer import ExampleLoss

Segment = tuple[Any, Any]
"""Inputs and targets, each leaf with the examples on its leading axis."""


class Placement(Protocol):
    """Rows seen whole, [R], and in parts; slices of rows begin and end with segments."""

    def join(self, segments: Sequence[Segment]) -> list[Any]:
        """The leaves of all segments, in parts."""
        ...

    def example(self, leaf: Any) -> jax.ShapeDtypeStruct:
        """The shape and type of one example, of a leaf in parts."""
        ...

    def each(self, function: Callable[[Any, Any], Any], parts: Any, shared: Any) -> Any:
        """``function(part, shared)`` on every part; the results are in parts."""
        ...

    def total(self, parts: Any) -> Any:
        """The sum over parts."""
        ...

    def everyone(self, parts: Any) -> Any:
        """The rows of all parts, part after part, in one place."""
        ...

    def deal(self, numbers: jax.Array, rows: slice) -> jax.Array:
        """[r, ...] of a slice of the rows, in parts."""
        ...

    def collect(self, parts: jax.Array, rows: slice) -> jax.Array:
        """Undo ``deal``."""
        ...

    def within(self, rows: slice) -> slice:
        """The slice of a part's own rows that a slice of the rows is."""
        ...

    def deal_groups(self, groups: jax.Array, count: int, rows: slice) -> tuple[jax.Array, int]:
        """[r] groups of ``count``, each with all its rows in one part: numbered part by part, and
        how many a part has."""
        ...

    def collect_groups(self, parts: jax.Array) -> jax.Array:
        """[count], a number a group of the parts' own."""
        ...


class _Together:
    """One place."""

    def join(self, segments: Sequence[Segment]) -> list[Any]:
        first, *others = [jax.tree.leaves(segment) for segment in segments]
        if not others:
            return first
        return [jnp.concatenate(leaves) for leaves in zip(first, *others, strict=True)]

    def example(self, leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype)

    def each(self, function: Callable[[Any, Any], Any], parts: Any, shared: Any) -> Any:
        return function(parts, shared)

    def total(self, parts: Any) -> Any:
        return parts

    def everyone(self, parts: Any) -> Any:
        return parts

    def deal(self, numbers: jax.Array, rows: slice) -> jax.Array:
        return numbers

    def collect(self, parts: jax.Array, rows: slice) -> jax.Array:
        return parts

    def within(self, rows: slice) -> slice:
        return rows

    def deal_groups(self, groups: jax.Array, count: int, rows: slice) -> tuple[jax.Array, int]:
        return groups, count

    def collect_groups(self, parts: jax.Array) -> jax.Array:
        return parts


TOGETHER: Placement = _Together()


@runtime_checkable
class PlacedLoss(Protocol):
    """A per-example loss that knows where its examples are."""

    def placed(
        self, segments: Sequence[Segment]
    ) -> tuple[ExampleLoss, Sequence[Segment], Placement]:
        """The loss of examples at hand, the segments as it takes them, and where they are."""
        ...


def placed(
    loss_fn: ExampleLoss, segments: Sequence[Segment]
) -> tuple[ExampleLoss, Sequence[Segment], Placement]:
    """Ask a loss where its examples are; in one place, if it does not know."""
    if isinstance(loss_fn, PlacedLoss):
        return loss_fn.placed(segments)
    return loss_fn, segments, TOGETHER


def same_loss(one: ExampleLoss, other: ExampleLoss) -> bool:
    """The same object, or two of one placed loss."""
    return one is other or (
        isinstance(one, PlacedLoss) and type(one) is type(other) and one == other
    )
