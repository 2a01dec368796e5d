"""Whether a function can be called as it will be, and what is counted or drawn from can be."""

import inspect
import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp


def check_takes(
    what: str, function: Any, positional: Sequence[str], keywords: Sequence[str] = ()
) -> None:
    """Refuse what is no function, or takes other arguments.

    Args:
        what: its name in the message, as the caller writes it.
        function: what was given.
        positional: what it will be handed in order.
        keywords: what it will be handed by name.

    Raises:
        ValueError: with what it is or takes, and what it must take.
    """
    must = f"({', '.join([*positional, *(f'{each}=' for each in keywords)])})"
    if not callable(function):
        raise ValueError(
            f"{what}={function!r} is a {type(function).__name__}; give a function of {must}"
        )
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # what is not written in Python tells no signature
        return
    try:
        signature.bind(*positional, **dict.fromkeys(keywords))
    except TypeError as error:
        raise ValueError(f"{what} takes {signature}, and must take {must}") from error


def check_count(name: str, count: Any, least: int = 1) -> int:
    """Return a count as an integer, once it is known to be one and large enough.

    Raises:
        ValueError: with the name and what was given, if it is no whole number (2.0 is none, nor is
            a value that is traced: counts decide shapes), or less than ``least``.
    """
    try:
        if isinstance(count, bool):
            raise TypeError
        number = operator.index(count)
    except TypeError as error:  # what JAX raises of a traced value is one too
        raise ValueError(
            f"{name} is {count!r}; pass a whole number, at least {least}, such as {name}=16"
        ) from error
    if number < least:
        raise ValueError(f"{name} is {count}; pass at least {least}")
    return number


def check_key(key: Any, drawn: str = "the coalitions are") -> jax.Array:
    """Return the key, once it is known to be a single one.

    Args:
        key: what was given.
        drawn: what is drawn from it, and the verb.

    Raises:
        ValueError: if it is None, no key, or several.
    """
    if key is None:
        raise ValueError(f"key is None; pass a jax.random.key, {drawn} drawn from it")
    if isinstance(key, jax.Array):
        if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
            if key.shape == ():
                return key
            raise ValueError(
                f"key has shape {key.shape}; pass a single one, or use jax.vmap over several"
            )
        # As `jax.random.PRNGKey` makes them.
        if key.dtype == jnp.uint32 and key.ndim == 1:
            return key
    raise ValueError(f"key is {key!r}; pass a jax.random.key, {drawn} drawn from it")
