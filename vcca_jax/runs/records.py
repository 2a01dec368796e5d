"""What a run writes down: tidy JSON lines and JSON, replaced whole, so never half-written."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vcca_jax.files import replacing

Record = dict[str, Any]


def write_text(path: Path, text: str) -> None:
    """Replace a file's content in one step."""
    with replacing(path) as beside:
        beside.write_text(text, encoding="utf-8")


def write_records(path: Path, records: Iterable[Record]) -> None:
    """Write one JSON object a line; numbers read back as they were, NaN is refused."""
    write_text(path, "".join(json.dumps(record, allow_nan=False) + "\n" for record in records))


def read_records(path: Path) -> list[Record]:
    """Read JSON lines; an absent file holds none."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_json(path: Path, content: Record) -> None:
    """Write one JSON object, indented."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")
