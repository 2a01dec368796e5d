"""Run the experiment: ``python -m experiments.attribution.train --out DIR [--smoke]``."""

from collections.abc import Sequence
from pathlib import Path

from experiments.arguments import asked
from experiments.attribution.analysis import results_of
from experiments.attribution.cells import run_task
from experiments.attribution.config import FULL, SMOKE, Config
from experiments.attribution.figures import draw_figures
from experiments.attribution.tables import write_tables
from experiments.cells import collected, write_results
from experiments.expected import tell


def run(config: Config, out: Path) -> None:
    """Run the cells that ``out`` does not hold yet; write results, figures and tables."""
    cells = collected(config, out, run_task)
    records = results_of(cells, config.rates)
    write_results(config, cells, records, out, draw=draw_figures, tables=write_tables)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and run; compare a full run with what is expected of it."""
    config, out = asked(arguments, __doc__, FULL, SMOKE, "tiny, in seconds")
    run(config, out)
    if config == FULL:
        tell("attribution", out / "results")


if __name__ == "__main__":
    main()
