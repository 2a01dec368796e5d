"""What an experiment's results are expected to be, each number with its tolerance.

``experiments/NAME/expected.toml`` holds them. A full run is compared at its end, and

    python -m experiments.expected [--results FOLDER] [NAME ...]

compares the results that are kept, or those of one folder; it exits with 1 where a number is off.
"""

import argparse
import math
import statistics
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from experiments.pages import read

HERE = Path(__file__).parent

STATISTICS: dict[str, Callable[[Sequence[float]], float]] = {
    "mean": statistics.fmean,
    "median": statistics.median,
    "least": min,
    "greatest": max,
}


def names() -> list[str]:
    """The experiments that say what they expect."""
    return sorted(path.parent.name for path in HERE.glob("*/expected.toml"))


def numbers(results: Path, expected: dict[str, Any]) -> list[float]:
    """The entries of a field in the records that match; nothing that is null or not finite.

    Where a field holds lists, their last entries.
    """
    where = expected.get("where", {})
    found = []
    for record in read(results, expected["table"]):
        value = record[expected["field"]]
        if all(record[key] == wanted for key, wanted in where.items()):
            value = value[-1] if isinstance(value, list) else value
            if value is not None and math.isfinite(value):
                found.append(float(value))
    return found


def deviations(name: str, results: Path) -> list[str]:
    """A line for every number of an experiment that is not as expected.

    Raises:
        ValueError: the experiment says nothing of what it expects.
    """
    path = HERE / name / "expected.toml"
    if not path.exists():
        raise ValueError(f"experiment {name!r} has no expected.toml; choose of {names()}")
    off = []
    for each in tomllib.loads(path.read_text(encoding="utf-8"))["expected"]:
        found = numbers(results, each)
        value = STATISTICS[each["statistic"]](found) if found else math.nan
        if not abs(value - each["value"]) <= each["tolerance"]:
            off.append(
                f"{name}: {each['what']}: {value:.4g}, expected {each['value']:g}"
                f" ± {each['tolerance']:g}"
            )
    return off


def tell(name: str, results: Path) -> bool:
    """Print how an experiment's results compare; whether all are as expected."""
    off = deviations(name, results)
    print("\n".join(off) if off else f"{name}: every number is as expected", flush=True)
    return not off


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare, and exit with 1 where a number is off."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="all by default")
    parser.add_argument("--results", type=Path, help="folder of results; the kept ones by default")
    given = parser.parse_args(arguments)
    chosen = given.names or names()
    told = [tell(name, given.results or HERE / name / "results") for name in chosen]
    if not all(told):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
