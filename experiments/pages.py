"""What experiments share: words on the way, records, tables, and a README filled with them."""

import json
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import parquet

from vcca_jax.files import replacing
from vcca_jax.runs.records import Record, write_text

Records = list[Record]


def say(text: str) -> None:
    """Print a line at once, with the time it came at."""
    print(f"{time.strftime('%H:%M:%S')}  {text}", flush=True)


def plain(value: Any) -> Any:
    """Tuples as lists, as JSON gives them back."""
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return value


NESTED = {"games", "tuning"}
"""Records that hold records of their own, or lists of several kinds: kept as JSON, all else as
Parquet, a column a field."""


def read(results: Path, name: str) -> Records:
    """The stored records of one kind."""
    if name in NESTED:
        found: Records = json.loads((results / f"{name}.json").read_text(encoding="utf-8"))
        return found
    return parquet.read_table(results / f"{name}.parquet").to_pylist()


def write_records(results: Path, name: str, records: Iterable[Record]) -> None:
    """Store the records of one kind; see ``read``."""
    if name in NESTED:
        write_lines(results / f"{name}.json", records)
    else:
        write_table(results / f"{name}.parquet", records)


def write_table(path: Path, records: Iterable[Record]) -> None:
    """A Parquet table, one record a row, replaced whole; what a record lacks is null.

    Fields may be lists. The columns are those of all records, in the order of their appearance.
    """
    rows = list(records)
    names = dict.fromkeys(name for row in rows for name in row)
    columns = pyarrow.Table.from_pydict({n: [row.get(n) for row in rows] for n in names})
    with replacing(path) as beside:
        parquet.write_table(columns, beside, compression="zstd")


def write_lines(path: Path, records: Iterable[Record]) -> None:
    """A JSON list, one record a line, replaced whole."""
    lines = ",\n".join(json.dumps(record, allow_nan=False) for record in records)
    write_text(path, f"[\n{lines}\n]\n")


def distinct(records: Iterable[Record], field: str) -> list[Any]:
    """A field's entries once each, in order."""
    return list(dict.fromkeys(record[field] for record in records))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, all columns but the first to the right."""
    rule = [" --- ", *[" ---: "] * (len(head) - 1)]
    lines = ["| " + " | ".join(head) + " |", "|" + "|".join(rule) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def write_page(path: Path, tables: Mapping[str, str]) -> str:
    """All tables under their titles as one Markdown file, replaced whole; returns its text."""
    text = "\n\n".join(f"## {title}\n\n{body}" for title, body in tables.items()) + "\n"
    write_text(path, text)
    return text


def fill_page(readme: Path, tables: Mapping[str, str]) -> None:
    """Put each table between the README's markers of its title; the rest stays as it is.

    Raises:
        ValueError: a marker names no table.
    """

    def filled(match: re.Match[str]) -> str:
        title = match[1]
        if title not in tables:
            raise ValueError(f"{readme} asks for the table {title!r}; there is none of that title")
        return f"<!-- table: {title} -->\n{tables[title]}\n<!-- end -->"

    text = readme.read_text(encoding="utf-8")
    pattern = re.compile(r"<!-- table: (.*?) -->\n.*?<!-- end -->", re.DOTALL)
    write_text(readme, pattern.sub(filled, text))
