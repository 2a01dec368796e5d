"""Experiments of many cells: finished ones are kept, and all are put together at the end."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.benchmarks.timing import machine
from experiments.pages import plain, say, write_records
from vcca_jax.runs.records import Record, write_json, write_text

Say = Callable[[str], None]
RunTask = Callable[[Any, str, Path, Say], list[Record]]
"""``run_task(config, name, folder, say)``: the cells of a data set, as ``folder`` keeps them."""


def slug(text: str) -> str:
    """A part of a file's name."""
    return text.replace(",", "").replace(" ", "_")


def held(path: Path, terms: Any) -> Record | None:
    """A cell that was finished under the same terms."""
    if not path.exists():
        return None
    found: Record = json.loads(path.read_text(encoding="utf-8"))
    return found if found.get("terms") == terms else None


def write_cell(path: Path, cell: Record) -> None:
    """Keep a cell, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(cell, allow_nan=False) + "\n")


def kept(
    path: Path, terms: Any, named: Record, make: Callable[[], Record], say: Say, title: str
) -> Record:
    """A cell from before, or made now under its names and kept with the seconds it took."""
    cell = held(path, terms)
    if cell is None:
        begun = time.perf_counter()
        cell = {"terms": terms, **named, **make()}
        cell["took"] = round(time.perf_counter() - begun, 1)
        write_cell(path, cell)
        say(f"{title}: {cell['took']} s")
    return cell


def collected(config: Any, out: Path, run_task: RunTask) -> list[Record]:
    """The cells of all data sets; those that ``out`` does not hold yet are run."""
    cells: list[Record] = []
    for name in config.tasks:
        cells += run_task(config, name, out / "cells", say)
    return cells


def write_results(
    config: Any,
    cells: Sequence[Record],
    records: Mapping[str, Sequence[Record]],
    out: Path,
    *,
    draw: Callable[[Path, Path], None],
    tables: Callable[[Path], str],
    spent: str = "took",
) -> None:
    """Write ``results/``, a table for each kind of record, then draw figures and write tables.

    Args:
        config: of the experiment; its ``tasks`` are named tuples by the data set's name.
        cells: all of them.
        records: what is made of them, by the name of its file.
        out: folder to write to.
        draw: ``draw(results, figures)``.
        tables: ``tables(results)``, which returns what it wrote.
        spent: a cell's field of seconds, which may be absent.
    """
    results = out / "results"
    results.mkdir(parents=True, exist_ok=True)
    for name, each in records.items():
        write_records(results, name, each)
    seconds: dict[str, float] = {}
    for cell in cells:
        seconds[cell["data"]] = round(seconds.get(cell["data"], 0) + cell.get(spent, 0), 1)
    tasks = {name: task._asdict() for name, task in config.tasks.items()}
    summary = {"config": plain(config._asdict() | {"tasks": tasks}), "machine": machine()}
    write_json(results / "summary.json", {**summary, "seconds": seconds})
    draw(results, out / "figures")
    print(tables(results))
