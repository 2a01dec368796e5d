"""The command line of every experiment: where to write, how large, and any field of its terms."""

import sys
import typing
from collections.abc import Sequence
from dataclasses import field, make_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

_PLAIN = (bool, int, float, str)


def _settable(kind: Any) -> bool:
    """Whether a field is a number, a text, a tuple of such, or one of these or nothing."""
    inner = typing.get_args(kind)
    if kind in _PLAIN or kind in (type(None), Ellipsis):
        return True
    return bool(inner) and typing.get_origin(kind) is not dict and all(map(_settable, inner))


def _told(document: str) -> dict[str, str]:
    """What a class says of its attributes, by name; several may share a line."""
    told: dict[str, str] = {}
    names: list[str] = []
    for line in document.partition("Attributes:")[2].splitlines():
        if line.startswith(" " * 12) and names:
            for name in names:
                told[name] += " " + line.strip()
        elif ":" in line:
            left, _, right = line.strip().partition(":")
            names = [name.strip() for name in left.split(",")]
            told |= dict.fromkeys(names, right.strip())
    return told


def asked(
    arguments: Sequence[str] | None,
    description: str | None,
    full: Any,
    smoke: Any,
    smoke_help: str,
    *,
    parts: str | None = "tasks",
) -> tuple[Any, Path]:
    """The configuration and the folder that a command line asks for.

    Every field of the configuration that is a number, a text or a tuple of such is an option of its
    type: ``--seeds 3``. What is not given is that of the full configuration, or of the smoke one.

    Args:
        arguments: words of the command line; the process's own by default.
        description: of the experiment, its module's docstring.
        full, smoke: the two configurations, named tuples of one class.
        smoke_help: what the smoke configuration is.
        parts: the field of what may be run alone (``--only``), a dict or a tuple of names.

    Raises:
        SystemExit: 2, after a message, on an option that is not there or of another type.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    default = smoke if "--smoke" in words else full
    told = _told(type(full).__doc__ or "")
    common: list[Any] = [
        ("out", Annotated[Path, tyro.conf.arg(help="Folder to write to.")]),
        (
            "smoke",
            Annotated[bool, tyro.conf.FlagCreatePairsOff, tyro.conf.arg(help=f"Run {smoke_help}.")],
            field(default=False),
        ),
    ]
    if parts:
        choices = Literal[tuple(getattr(full, parts))]  # type: ignore[valid-type]
        note = tyro.conf.arg(help="One part alone, so that several may run side by side.")
        common.append(("only", Annotated[choices | None, note], field(default=None)))
    kinds = typing.get_type_hints(type(full))
    terms = [
        (
            name,
            Annotated[kind, tyro.conf.arg(help=told.get(name, ""))],
            field(default=getattr(default, name)),
        )
        for name, kind in kinds.items()
        if name != parts and _settable(kind)
    ]
    kind = make_dataclass("Terms", [*common, *terms], kw_only=True)
    given = tyro.cli(kind, args=words, description=(description or "").splitlines()[0])
    config = default._replace(**{name: getattr(given, name) for name, *_ in terms})
    if parts and given.only is not None:
        held = getattr(full, parts)
        kept = {given.only: held[given.only]} if isinstance(held, dict) else (given.only,)
        config = config._replace(**{parts: kept})
    return config, given.out
