"""Losses on held-out examples: scalar functions of example losses, which can say what they read.

A value loss may be any function of the parameters. One that is made here,

    V(theta) = phi(l_1(theta), ..., l_n(theta)),    grad V = sum_s dphi/dl_s grad l_s,

also names its examples, so that a pass over a training batch can take them along (``shared_pass``)
instead of running them on their own.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vcca_jax.example_losses import checked_losses, example_count
from vcca_jax.one_pass.placement import same_loss
from vcca_jax.trainer import ExampleLoss, Params

DRAW = "draw"
"""Where a context holds the key by which rows are drawn; see ``refresh.redrawn``."""

Group = tuple[Any, Any]
"""``(inputs [n, ...], targets [n, ...])``."""


@dataclass(frozen=True, eq=False)
class HeldOutLoss:
    """phi of example losses; called, a value loss and a validation loss alike.

    Attributes:
        loss_fn: ``loss_fn(params, inputs, targets) -> [n]``.
        examples: groups of ``(inputs [n_g, ...], targets [n_g, ...])``.
        of_losses: ``of_losses([losses of each group]) -> scalar``, which JAX can differentiate.
        sizes: how many rows of each group are read where the context holds a draw, or None for
            all of them in any context.
    """

    loss_fn: ExampleLoss
    examples: tuple[Group, ...]
    of_losses: Callable[[Sequence[jax.Array]], jax.Array]
    sizes: tuple[int | None, ...] | None = None

    def groups(self, context: Any = None) -> tuple[Group, ...]:
        """The rows that are read in this context."""
        if self.sizes is None or not isinstance(context, Mapping) or DRAW not in context:
            return self.examples
        return tuple(
            group if size is None else _drawn(context[DRAW], group, size)
            for group, size in zip(self.examples, self.sizes, strict=True)
        )

    def __call__(self, params: Params, context: Any = None) -> jax.Array:
        """V at these parameters, on the rows of this context; without one, on all.

        Raises:
            ValueError: a ``loss_fn`` that does not return one loss an example.
        """
        return self.of_losses(
            [
                checked_losses(self.loss_fn(params, *group), example_count(group))
                for group in self.groups(context)
            ]
        )


def _drawn(key: jax.Array, group: Group, size: int) -> Group:
    count = example_count(group)
    rows = jax.random.choice(key, count, (size,), replace=False)
    inputs, targets = jax.tree.map(lambda leaf: leaf[rows], group)
    return inputs, targets


def held_examples(
    inputs: Any, targets: Any, array: Callable[[Any], Any] = jnp.asarray
) -> tuple[Group, int]:
    """A group as arrays, and how many rows it has; inputs and targets may be dicts of arrays.

    Args:
        inputs: [n, ...], an array or a pytree of arrays; a list is taken for an array.
        targets: [n, ...], likewise.
        array: makes an array of each.

    Raises:
        ValueError: no row, or arrays of unlike numbers of rows.
    """

    def made(tree: Any) -> Any:
        return jax.tree.map(array, tree, is_leaf=lambda node: isinstance(node, list))

    group = made(inputs), made(targets)
    counts = [
        sorted({np.shape(leaf)[0] if np.ndim(leaf) else 1 for leaf in jax.tree.leaves(part)})
        for part in group
    ]
    if not counts[0] or counts[0][0] == 0:
        raise ValueError("inputs holds no example; a group needs at least one held-out row")
    if len(counts[0]) > 1 or counts[0] != counts[1]:
        of_inputs, of_targets = (" or ".join(map(str, each)) for each in counts)
        raise ValueError(
            f"targets are {of_targets} and inputs {of_inputs}; give one for each, and as many rows"
            " in every array"
        )
    return group, counts[0][0]


def composed(
    losses: Sequence[Callable[[Params, Any], jax.Array]],
    function: Callable[[list[jax.Array]], jax.Array],
) -> Callable[[Params, Any], jax.Array]:
    """The value loss ``function([V_1, ..., V_G])``, which names its examples where all of them do.

    They must share one ``loss_fn``, the same object.
    """
    named = [loss for loss in losses if isinstance(loss, HeldOutLoss)]
    if len(named) == len(losses) and all(
        same_loss(loss.loss_fn, named[0].loss_fn) for loss in named
    ):

        def of_losses(groups: Sequence[jax.Array]) -> jax.Array:
            rest, told = list(groups), []
            for loss in named:
                mine, rest = rest[: len(loss.examples)], rest[len(loss.examples) :]
                told.append(loss.of_losses(mine))
            return function(told)

        examples = tuple(group for loss in named for group in loss.examples)
        sizes = tuple(size for loss in named for size in loss.sizes or (None,) * len(loss.examples))
        drawn = sizes if any(size is not None for size in sizes) else None
        return HeldOutLoss(named[0].loss_fn, examples, of_losses, drawn)

    def loss(params: Params, context: Any) -> jax.Array:
        return function([value(params, context) for value in losses])

    return loss


def mean_loss(groups: Sequence[jax.Array]) -> jax.Array:
    """The mean over one group's examples."""
    (losses,) = groups
    return jnp.mean(losses)
