"""What a per-example loss must return, asked wherever one is called."""

from typing import Any

import jax
import jax.numpy as jnp


def checked_losses(losses: Any, count: int, what: str = "loss_fn") -> jax.Array:
    """The losses, if they are one an example; others would be broadcast, and trained on wrongly.

    Args:
        losses: what a per-example loss returned.
        count: of how many examples.
        what: the loss's name in the message, as the caller writes it.

    Raises:
        ValueError: their shape is not [count].
    """
    if jnp.shape(losses) != (count,):
        raise ValueError(
            f"{what} returned shape {jnp.shape(losses)} for {count} examples; it must return one"
            f" loss an example, shape {(count,)}, and leave the mean to the caller"
        )
    return losses


def example_count(examples: Any) -> int:
    """How many examples there are in a pytree of arrays with the examples on their leading axis."""
    return int(jax.tree.leaves(examples)[0].shape[0])
