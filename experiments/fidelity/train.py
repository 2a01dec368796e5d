"""Run the experiment: ``python -m experiments.fidelity.train --out DIR [--smoke]``."""

from collections.abc import Sequence
from pathlib import Path

from experiments.arguments import asked
from experiments.cells import collected, write_results
from experiments.expected import tell
from experiments.fidelity.analysis import results_of
from experiments.fidelity.cells import run_task
from experiments.fidelity.config import FULL, SMOKE, Config
from experiments.fidelity.figures import draw_figures
from experiments.fidelity.tables import write_tables


def run(config: Config, out: Path) -> None:
    """Run the cells that ``out`` does not hold yet; write results, figures and tables."""
    cells = collected(config, out, run_task)
    write_results(config, cells, results_of(cells), out, draw=draw_figures, tables=write_tables)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and run; compare a full run with what is expected of it."""
    config, out = asked(arguments, __doc__, FULL, SMOKE, "bundled digits, tiny, in seconds")
    run(config, out)
    if config == FULL:
        tell("fidelity", out / "results")


if __name__ == "__main__":
    main()
