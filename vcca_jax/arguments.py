"""Whether a function can be called as it will be, asked before it is."""

import inspect
from collections.abc import Sequence
from typing import Any


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
