"""One page of all benchmarks: headline numbers, aims, growth, regressions and figures.

    python -m experiments.benchmarks.page [--against FOLDER_OR_REVISION] [--strict]

Reads ``results/*.json``, which are of the last run of each benchmark, measures nothing, and writes
``results/page.md`` and ``figures/*.png``: same results, same files. Headlines that got worse by
more than a tenth are listed there and on standard error. Without ``--against`` they are compared
with what each file held before its last run; with it, with the files of a folder, or of a revision
of this repository. The exit code is 0 all the same, with ``--strict`` 1.
"""

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.benchmarks import plots
from experiments.benchmarks.growth import FACTOR, LINES, POINTS, told_exponent
from experiments.benchmarks.headlines import (
    HEADLINES,
    WORSE,
    Headline,
    Worse,
    regressions,
    told,
    values,
)
from vcca_jax.plotting import save_figure
from vcca_jax.runs.records import write_text

HERE = Path(__file__).parent
Contents = Mapping[str, Mapping[str, Any]]


def read(folder: Path) -> dict[str, Any]:
    """The content of every result file, by its stem; what is no JSON object is passed over."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            continue
        if isinstance(content, dict):
            found[path.stem] = content
    return found


def earlier(against: str | None, contents: Contents, folder: Path) -> dict[str, dict[str, float]]:
    """Headlines to compare with, by benchmark.

    Args:
        against: a folder of result files, or a revision; None for what the files held before.
        contents: the files as they are.
        folder: theirs.

    Raises:
        ValueError: neither a folder nor a revision.
    """
    if against is None:
        return {name: dict(content.get("before", {})) for name, content in contents.items()}
    if Path(against).is_dir():
        return {name: values(name, each) for name, each in read(Path(against)).items()}
    found = {}
    for name in contents:
        command = ["git", "-C", str(folder), "show", f"{against}:./{name}.json"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            found[name] = values(name, json.loads(done.stdout))
    command = [
        "git",
        "-C",
        str(folder),
        "rev-parse",
        "--verify",
        "--quiet",
        f"{against}^{{commit}}",
    ]
    if not found and subprocess.run(command, capture_output=True, check=False).returncode:
        raise ValueError(f"--against {against!r} is neither a folder nor a revision; name one")
    return found


def compared(contents: Contents, before: Mapping[str, Mapping[str, float]]) -> list[Worse]:
    """Every headline that got worse."""
    return [
        worse
        for name, content in contents.items()
        for worse in regressions(name, before.get(name, {}), values(name, content))
    ]


def _number(value: float) -> str:
    """Three digits; whole numbers from a hundred on."""
    if value == 0 or not 0.001 <= abs(value) < 1e9:
        return f"{value:.1e}"
    return f"{value:,.0f}" if abs(value) >= 99.95 else f"{value:#.3g}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, all columns to the left: most of them are words."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _versions(content: Any) -> set[str]:
    """Peers' versions, wherever a benchmark has kept them."""
    found: set[str] = set()
    if isinstance(content, list):
        found.update(*map(_versions, content))
    elif isinstance(content, dict):
        for key, each in content.items():
            if key == "versions" and isinstance(each, dict):
                found.update(f"{name} {version}" for name, version in each.items())
            else:
                found |= _versions(each)
    return found


def _aim(headline: Headline) -> str:
    if headline.aim is None:
        return ""
    return f"at {'least' if headline.least else 'most'} {headline.aim:g}"


def headline_rows(contents: Contents) -> list[list[str]]:
    """What is told, its value, its aim, and whether that is met; in the order of ``HEADLINES``."""
    held = {name: values(name, content) for name, content in contents.items()}
    rows = []
    for headline in HEADLINES:
        value = held.get(headline.benchmark, {}).get(headline.name)
        if value is None:
            continue
        met = {True: "yes", False: "**no**", None: ""}[headline.met(value)]
        number = " ".join([_number(value), headline.unit]).strip()
        rows.append([headline.benchmark, headline.name, number, _aim(headline), met])
    return rows


def machine_rows(contents: Contents) -> list[list[str]]:
    """Every machine and set of versions, with the benchmarks that were measured there."""
    groups: dict[tuple[str, ...], list[str]] = {}
    peers = {name: _versions(content) for name, content in contents.items()}
    keys = ("cores", "processor", "device", "python", "jax")
    for name, content in contents.items():
        machine = content.get("machine", {})
        groups.setdefault(tuple(str(machine.get(key, "")) for key in keys), []).append(name)
    return [
        [*key, ", ".join(names), ", ".join(sorted(set().union(*(peers[n] for n in names))))]
        for key, names in groups.items()
    ]


def growth_rows(contents: Contents) -> list[list[str]]:
    """Exponents of every line that can be read, with its ends."""
    rows = []
    for lines in LINES:
        for label, points in _lines(lines, contents).items():
            slope = told_exponent(lines, points)
            if not math.isnan(slope):
                ends = f"{_number(points[0][0])} to {_number(points[-1][0])}"
                rows.append(
                    [lines.benchmark, f"{lines.up}: {label}", lines.across, ends, f"{slope:.2f}"]
                )
    return rows


def _lines(lines: Any, contents: Contents) -> dict[str, Any]:
    try:
        return lines.read(contents[lines.benchmark])
    except (LookupError, TypeError, ValueError, AttributeError):
        return {}


def roofline_rows(content: Mapping[str, Any]) -> list[list[str]]:
    """Every program against the machine's peaks."""
    return [
        [
            r["program"],
            _number(r["operations"] / 1e6),
            _number(r["bytes"] / 1e6),
            _number(r["intensity"]),
            _number(r["fastest_milliseconds"]),
            _number(r["gigaflops"]),
            f"{100 * r['share_of_the_peak']:.0f} %",
            f"{100 * r['share_of_the_roof']:.0f} %",
            str(r["loops_of_unknown_length"]),
        ]
        for r in content["results"]
    ]


def draw_figures(contents: Contents, folder: Path) -> dict[str, str]:
    """Every figure that there are results for, by the name of its file; what it shows."""
    drawn = {}
    for lines in LINES:
        found = _lines(lines, contents)
        if any(len(points) > 1 for points in found.values()):
            shapes = lines.shapes(contents[lines.benchmark]) if lines.shapes else None
            save_figure(plots.draw(lines, found, shapes), folder / f"{lines.figure}.png")
            drawn[lines.figure] = lines.title
    if contents.get("roofline", {}).get("results"):
        save_figure(plots.draw_roofline(contents["roofline"]), folder / "roofline.png")
        drawn["roofline"] = "How near the main programs come to the machine's roof"
    return drawn


def text_of(contents: Contents, worse: Sequence[Worse], figures: Mapping[str, str]) -> str:
    """The page."""
    rows = headline_rows(contents)
    met = sum(row[-1] == "yes" for row in rows)
    missed = sum(row[-1] == "**no**" for row in rows)
    parts = [
        "# Benchmarks",
        "Written from the result files of each benchmark's last run by"
        " `python -m experiments.benchmarks.page`; what they mean stands in the README.",
        "## Where and with what",
        table(
            ["cores", "processor", "device", "Python", "JAX", "benchmarks", "peers"],
            machine_rows(contents),
        ),
        "## Headlines",
        f"Of {met + missed} aims {met} are met and {missed} are not.",
        table(["benchmark", "what", "number", "aim", "met"], rows),
        "## Worse than before",
        "\n".join(f"- {told(each)}" for each in worse)
        or f"Nothing by more than {100 * WORSE:.0f} %.",
        "## Growth",
        "Least-squares slopes of logarithms over logarithms, of lines of"
        f" {POINTS} sizes or more, none farther from the power law than a factor of {FACTOR:g}.",
        table(["benchmark", "what", "over", "from", "exponent"], growth_rows(contents)),
    ]
    roofline = contents.get("roofline", {})
    if roofline.get("results"):
        peaks = roofline["peaks"]
        head = ["program", "Mflop", "MB", "flop/byte", "ms", "Gflop/s", "of the peak",
                "of the roof", "open loops"]  # fmt: skip
        parts += [
            "## Roofline",
            f"This machine in the same run: {_number(peaks['gigaflops'])} Gflop/s in a large"
            f" product, {_number(peaks['copy_gigabytes_a_second'])} GB/s in a large copy,"
            f" {_number(peaks['copy_within_caches_gigabytes_a_second'])} GB/s in one that stays in"
            " the caches.",
            table(head, roofline_rows(roofline)),
        ]
    named = {headline.benchmark for headline in HEADLINES}
    others = sorted(set(contents) - named)
    if others:
        parts += ["## Without headlines", ", ".join(f"`{name}.json`" for name in others)]
    parts += [
        "## Figures",
        *(f"![{words}](../figures/{name}.png)" for name, words in figures.items()),
    ]
    return "\n\n".join(parts) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page; 1 if something got worse and that is to fail."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--results", type=Path, default=HERE / "results", help="result files")
    parser.add_argument("--out", type=Path, help="page to write; by default beside the results")
    parser.add_argument("--figures", type=Path, help="folder; by default beside that of results")
    parser.add_argument("--against", help="a folder of result files, or a revision")
    parser.add_argument("--strict", action="store_true", help="exit with 1 on a regression")
    options = parser.parse_args(arguments)
    contents = read(options.results)
    try:
        before = earlier(options.against, contents, options.results)
    except ValueError as error:
        parser.error(str(error))
    worse = compared(contents, before)
    for each in worse:
        print(f"worse than before: {told(each)}", file=sys.stderr)
    figures = draw_figures(contents, options.figures or options.results.parent / "figures")
    out = options.out or options.results / "page.md"
    write_text(out, text_of(contents, worse, figures))
    print(f"{out}: {len(contents)} benchmarks, {len(worse)} headlines worse than before")
    return 1 if worse and options.strict else 0


if __name__ == "__main__":
    sys.exit(main())
