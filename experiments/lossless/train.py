"""Run the experiment: ``python -m experiments.lossless.train --out DIR [--smoke]``."""

import json
from collections.abc import Sequence
from pathlib import Path

from experiments.arguments import asked
from experiments.cells import collected, write_results
from experiments.expected import tell
from experiments.lossless.cells import run_task
from experiments.lossless.config import FULL, SMOKE, Config
from experiments.lossless.figures import draw_figures
from experiments.lossless.tables import write_tables
from vcca_jax.runs.records import Record

PARTS = ("finals", "curves", "differences")


def rounded(record: Record) -> Record:
    """Numbers with seven digits, which is what single precision has."""
    return {
        key: float(f"{value:.7g}") if isinstance(value, float) else value
        for key, value in record.items()
    }


def rolled(records: Sequence[Record]) -> list[Record]:
    """One record a run instead of one an epoch, with lists by epoch; see ``tables.unrolled``."""
    runs: dict[tuple[object, ...], Record] = {}
    for record in records:
        named = {key: record[key] for key in ("data", "partition", "method", "seed")}
        run = runs.setdefault(tuple(named.values()), named)
        for key in record.keys() - named.keys() - {"epoch"}:
            run.setdefault(key, []).append(record[key])
    return [dict(sorted(run.items())) for run in runs.values()]


def results_of(cells: Sequence[Record]) -> dict[str, list[Record]]:
    """All cells' records, by the name of their file."""
    found: dict[str, list[Record]] = {}
    for part in PARTS:
        records = [
            {"data": cell["data"], "partition": cell["partition"], **rounded(record)}
            for cell in cells
            for record in cell.get(part, [])
        ]
        found[part] = records if part == "finals" else rolled(records)
    found["tuning"] = [
        {"data": cell["data"], "partition": cell["partition"], **cell["tuning"]}
        for cell in cells
        if "tuning" in cell
    ]
    sizes = [
        {"data": cell["data"], "partition": cell["partition"], "seed": int(seed), "sizes": held}
        for cell in cells
        for seed, held in cell.get("sizes", {}).items()
    ]
    found["sizes"] = list({json.dumps(size): size for size in sizes}.values())
    return found


def run(config: Config, out: Path) -> None:
    """Run the cells that ``out`` does not hold yet; write results, figures and tables."""
    cells = collected(config, out, run_task)
    write_results(
        config,
        cells,
        results_of(cells),
        out,
        draw=draw_figures,
        tables=write_tables,
        spent="seconds",
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and run; compare a full run with what is expected of it."""
    config, out = asked(arguments, __doc__, FULL, SMOKE, "two small data sets, in seconds")
    run(config, out)
    if config == FULL:
        tell("lossless", out / "results")


if __name__ == "__main__":
    main()
