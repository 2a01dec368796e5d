"""What a loss must return, of examples or of held-out rows, asked wherever one is called."""

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


def checked_number(told: Any, what: str) -> Any:
    """What a held-out loss returned, if it is one floating-point number; its shape will do.

    Args:
        told: what it returned, or the shape and type of that.
        what: the loss's name in the message, as the caller writes it.

    Raises:
        ValueError: it is not.
    """
    if jnp.shape(told) != () or not jnp.issubdtype(jnp.result_type(told), jnp.floating):
        raise ValueError(
            f"{what} returns {jnp.shape(told)} of {jnp.result_type(told)}; return one"
            " floating-point number: a mean over rows"
        )
    return told


def example_count(examples: Any) -> int:
    """How many examples there are in a pytree of arrays with the examples on their leading axis."""
    return int(jax.tree.leaves(examples)[0].shape[0])
