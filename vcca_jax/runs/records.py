"""What a run writes down: tidy JSON lines and JSON, replaced whole, so never half-written."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, NoReturn

from vcca_jax.files import replacing
from vcca_jax.runs.errors import RunError

Record = dict[str, Any]

_NUMBER: Final = (int, float)
FIELDS: Final[Mapping[str, Mapping[str, Any]]] = {
    "metrics": {
        "epoch": int,
        "trainer": str,
        "seed": int,
        "train_loss": (*_NUMBER, type(None)),
        "validation_loss": _NUMBER,
        "validation_auc": _NUMBER,
        "value_losses": dict,
        "fresh_value_losses": dict,
    },
    "agents": {
        "epoch": int,
        "seed": int,
        "agent": str,
        "samples": int,
        "steps": int,
        "admissible_steps": int,
        "dropped_steps": int,
        "conflicts": dict,
        "removed": _NUMBER,
        "credit": _NUMBER,
    },
    "game": {
        "epoch": int,
        "seed": int,
        "gain": _NUMBER,
        "carry_over": _NUMBER,
        "residual": _NUMBER,
    },
}
"""What each record of a run's files holds, by the file's name without its ending."""


def write_text(path: Path, text: str) -> None:
    """Replace a file's content in one step."""
    with replacing(path) as beside:
        beside.write_text(text, encoding="utf-8")


def write_records(path: Path, records: Iterable[Record]) -> str:
    """Write one JSON object a line; numbers read back as they were, NaN is refused.

    Returns:
        What ``digest`` says of them.
    """
    text = _lines(records)
    write_text(path, text)
    return _sha256(text)


def digest(records: Iterable[Record]) -> str:
    """SHA-256 of records as ``write_records`` writes them, in hexadecimal."""
    return _sha256(_lines(records))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _lines(records: Iterable[Record]) -> str:
    return "".join(json.dumps(record, allow_nan=False) + "\n" for record in records)


def read_records(path: Path) -> list[Record]:
    """Read JSON lines; an absent file holds none.

    Raises:
        RunError: a line is no record, or lacks what records of this file hold (see ``FIELDS``).
    """
    if not path.exists():
        return []
    fields = FIELDS.get(path.stem, {})
    records = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            record = json.loads(line, parse_constant=_refuse)
        except ValueError:
            record = None
        wrong = faults(record, fields)
        if wrong:
            raise RunError(
                f"{path} is damaged at line {number} ({wrong}); restore the file from a copy, or"
                " remove the folder to start anew"
            )
        records.append(record)
    return records


def write_json(path: Path, content: Record) -> None:
    """Write one JSON object, indented."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def faults(content: Any, fields: Mapping[str, Any]) -> str:
    """What keeps parsed JSON from being an object with these fields, in words, or ""."""
    if not isinstance(content, dict):
        return "it is no JSON object"
    for name, kind in fields.items():
        if name not in content:
            return f"it lacks {name!r}"
        if not isinstance(content[name], kind):
            return f"{name!r} is {content[name]!r}"
    return ""


def _refuse(constant: str) -> NoReturn:
    """Python reads NaN and Infinity, which are no JSON and which no run writes."""
    raise ValueError(constant)
