"""Draw figures and write tables anew from stored results: ``python -m experiments.figures``.

Nothing is trained. Same results, same files: whoever has changed a figure or a table sees in the
difference what that changed, and nothing else.

    python -m experiments.figures                     # every experiment, in place
    python -m experiments.figures --out FOLDER lossless    # one, beside a copy of its results
"""

import argparse
import importlib
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from experiments.benchmarks import page
from experiments.pages import fill_page

HERE = Path(__file__).parent
BENCHMARKS = "benchmarks"
"""Whose page is written by a module of its own."""


def names() -> list[str]:
    """The experiments that have stored results and draw figures of them."""
    return sorted(path.parent.name for path in HERE.glob("*/figures.py") if _held(path.parent))


def _held(folder: Path) -> bool:
    return (folder / "results").is_dir()


def redraw(name: str, folder: Path) -> None:
    """Draw ``folder/figures`` and write the tables of ``folder/results`` and of its README.

    Args:
        name: of the experiment, whose functions are used.
        folder: holds ``results``; ``README.md`` is filled where it asks for tables.
    """
    results, readme = folder / "results", folder / "README.md"
    importlib.import_module(f"experiments.{name}.figures").draw_figures(results, folder / "figures")
    tables = importlib.import_module(f"experiments.{name}.tables")
    tables.write_tables(results)
    if hasattr(tables, "parts") and readme.exists():
        fill_page(readme, tables.parts(results))


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="experiments; all by default")
    parser.add_argument("--out", type=Path, help="folder to copy results to, and draw there")
    given = parser.parse_args(arguments)
    known = [*names(), BENCHMARKS]
    if unknown := sorted(set(given.names) - set(known)):
        parser.error(f"no experiment {', '.join(unknown)}; there are {', '.join(known)}")
    for name in given.names or known:
        begun = time.perf_counter()
        folder = HERE / name if given.out is None else _copied(name, given.out / name)
        if name == BENCHMARKS:
            page.main(["--results", f"{folder / 'results'}"])
        else:
            redraw(name, folder)
        print(f"{name}: {time.perf_counter() - begun:.0f} s", flush=True)


def _copied(name: str, folder: Path) -> Path:
    shutil.copytree(HERE / name / "results", folder / "results", dirs_exist_ok=True)
    shutil.copy(HERE / name / "README.md", folder / "README.md")
    return folder


if __name__ == "__main__":
    main()
