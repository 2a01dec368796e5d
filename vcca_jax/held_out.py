"""Losses on held-out examples: scalar functions of example losses, which can say what they read.

A value loss may be any function of the parameters. One that is made here,

    V(theta) = phi(l_1(theta), ..., l_n(theta)),    grad V = sum_s dphi/dl_s grad l_s,

also names its examples, so that a pass over a training batch can take them along (``shared_pass``)
instead of running them on their own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from vcca_jax.trainer import ExampleLoss, Params


@dataclass(frozen=True, eq=False)
class HeldOutLoss:
    """phi of example losses; called, a value loss and a validation loss alike.

    Attributes:
        loss_fn: ``loss_fn(params, inputs, targets) -> [n]``.
        examples: groups of ``(inputs [n_g, ...], targets [n_g, ...])``.
        of_losses: ``of_losses([losses of each group]) -> scalar``, which JAX can differentiate.
    """

    loss_fn: ExampleLoss
    examples: tuple[tuple[Any, Any], ...]
    of_losses: Callable[[Sequence[jax.Array]], jax.Array]

    def __call__(self, params: Params, context: Any = None) -> jax.Array:
        """V at these parameters; it needs no context."""
        del context
        return self.of_losses([self.loss_fn(params, *group) for group in self.examples])


def composed(
    losses: Sequence[Callable[[Params, Any], jax.Array]],
    function: Callable[[list[jax.Array]], jax.Array],
) -> Callable[[Params, Any], jax.Array]:
    """The value loss ``function([V_1, ..., V_G])``, which names its examples where all of them do.

    They must share one ``loss_fn``, the same object.
    """
    named = [loss for loss in losses if isinstance(loss, HeldOutLoss)]
    if len(named) == len(losses) and all(loss.loss_fn is named[0].loss_fn for loss in named):

        def of_losses(groups: Sequence[jax.Array]) -> jax.Array:
            rest, told = list(groups), []
            for loss in named:
                mine, rest = rest[: len(loss.examples)], rest[len(loss.examples) :]
                told.append(loss.of_losses(mine))
            return function(told)

        examples = tuple(group for loss in named for group in loss.examples)
        return HeldOutLoss(named[0].loss_fn, examples, of_losses)

    def loss(params: Params, context: Any) -> jax.Array:
        return function([value(params, context) for value in losses])

    return loss


def mean_loss(groups: Sequence[jax.Array]) -> jax.Array:
    """The mean over one group's examples."""
    (losses,) = groups
    return jnp.mean(losses)
