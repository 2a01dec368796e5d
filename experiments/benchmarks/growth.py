"""How times grow: lines read from stored results, and their exponents."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from experiments.benchmarks.headlines import Content, chosen

Points = list[tuple[float, float]]


class Lines(NamedTuple):
    """Lines of one benchmark over one size, and the figure that shows them.

    Attributes:
        benchmark: the stem of its result file.
        figure: the stem of the image; none is drawn where it is empty.
        title: what is seen.
        across: the size, in words.
        up: what grows with it, with its unit.
        read: a label -> (size, value) pairs.
        shapes: names of the sizes, where they are sizes of different shapes; those are not joined
            by a line, and have no exponent.
    """

    benchmark: str
    figure: str
    title: str
    across: str
    up: str
    read: Callable[[Content], dict[str, Points]]
    shapes: Callable[[Content], dict[float, str]] | None = None


POINTS, FACTOR = 4, 2.0
"""An exponent is told of a line of so many sizes at least, none farther from the power law."""


def exponent(points: Points) -> float:
    """Slope of the least-squares line through the logarithms; not a number for fewer than two."""
    if len({size for size, _ in points}) < 2:
        return float("nan")
    sizes, heights = np.log(np.array(points)).T
    return float(np.polyfit(sizes, heights, 1)[0])


def told_exponent(lines: Lines, points: Points) -> float:
    """The exponent, where the points of a line say that there is one; not a number elsewhere.

    Three points, or some that go up and down, have a least-squares slope too, which says nothing,
    and so have sizes of different shapes.
    """
    slope = exponent(points)
    if lines.shapes or len({size for size, _ in points}) < POINTS:
        return float("nan")
    sizes, heights = np.log(np.array(points)).T
    apart = np.abs(heights - heights.mean() - slope * (sizes - sizes.mean())).max()
    return slope if apart <= np.log(FACTOR) else float("nan")


def _collected(triples: list[tuple[str, float, float]]) -> dict[str, Points]:
    """By label, in order of the size."""
    found: dict[str, Points] = {}
    for label, size, value in sorted(triples, key=lambda triple: triple[1]):
        found.setdefault(label, []).append((size, value))
    return found


def _forms(c: Content) -> dict[str, Points]:
    names = {"whole, pass": "whole step, one pass"}
    return _collected(
        [
            (names.get(r["candidate"], r["candidate"]), r["agents"], r["milliseconds"])
            for r in c["results"]
        ]
    )


def _credited(c: Content) -> dict[str, Points]:
    names = {"plain": "plain step", "one pass": "whole step, one pass", "stacked": "stacked"}
    return _collected(
        [
            (words, r["agents"], r[name]["milliseconds"])
            for r in c["results"]["agents"]
            for name, words in names.items()
            if name in r
        ]
    )


def _rows(c: Content) -> dict[str, Points]:
    records = chosen(c["results"], correlated=False)
    return _collected(
        [(f"{r['agents']} agents", r["rows"], r["milliseconds"]["ours"]) for r in records]
    )


def _stacks(c: Content) -> dict[str, Points]:
    names = {"ours": "ours", "vmap": "vmap of one", "BLAS and quadprog loop": "BLAS and a loop"}
    return _collected(
        [
            (words, r["agents"] * r["rows"] * r["width"] / 1e6, r["milliseconds"][name])
            for r in c["stacks"]
            for name, words in names.items()
        ]
    )


def _shapes(c: Content) -> dict[float, str]:
    return {
        r["agents"] * r["rows"] * r["width"] / 1e6: (
            f"{r['agents']} × {r['rows']}\n× {r['width'] / 1e6:g} M"
        )
        for r in c["stacks"]
    }


def _epochs(c: Content) -> dict[str, Points]:
    names = {"together": "together", "scanned": "one by one", "loop": "protocol by hand"}
    return _collected(
        [(names[r["candidate"]], r["agents"], r["milliseconds"]) for r in c["epochs"]]
    )


def _clients(c: Content) -> dict[str, Points]:
    triples = []
    for r in chosen(c["results"], participants=10, uneven=False):
        turn = r["turns"][0]
        triples.append(("ours", r["clients"], turn["milliseconds_a_round"]["whole"]))
        theirs = turn["flower"].get("an actor a core")
        if theirs:
            triples.append(("Flower", r["clients"], theirs["milliseconds_a_round"]))
    return _collected(triples)


def _settlements(c: Content) -> dict[str, Points]:
    names = {"one by one": "one by one", "by the hundred": "by the hundred", "verify": "verified"}
    return _collected(
        [
            (words, r["principals"], 1e3 / r[name]["per_cpu_second"])
            for r in chosen(c["results"], credits="mixed")
            for name, words in names.items()
        ]
    )


def _errors(c: Content) -> dict[str, Points]:
    return _collected(
        [
            (r["sampler"], r["evaluations"], r["relative_error"])
            for r in chosen(c["results"], utility="accuracy")
        ]
    )


def _scaled(c: Content) -> dict[str, Points]:
    names = ("cooperative", "plan", "profiles", "epoch", "settlement", "replay")
    return _collected(
        [(name, r["agents"], r["seconds"][name]) for r in c["results"] for name in names]
        + [("a step", r["agents"], r["step_ms"] / 1e3) for r in c["results"]]
    )


def _authors(c: Content) -> dict[str, Points]:
    best: dict[tuple[str, int], float] = {}
    names = {
        "together": "ours, together",
        "scanned": "ours, one by one",
        "inside": "the authors', one process",
        "loopback": "the authors', loopback",
    }
    for r in c["results"]:
        for kind, value in r["milliseconds"].items():
            label = names.get(kind.split(",")[0])
            if label:
                key = label, r["agents"]
                best[key] = min(value, best.get(key, value))
    return _collected([(label, agents, value) for (label, agents), value in best.items()])


AGENTS, STEP, EPOCH = "agents A", "a step, ms", "an epoch, ms"
LINES = (
    Lines(
        "traversal", "forms", "A step by the number of agents, form by form", AGENTS, STEP, _forms
    ),
    Lines("one_pass", "credit", "What credit costs a step, by agents", AGENTS, STEP, _credited),
    Lines(
        "screening",
        "screening",
        "A screened and credited step, by agents",
        AGENTS,
        STEP,
        _forms,
    ),
    Lines("cuts", "protocol", "An epoch compiled, and by hand", AGENTS, EPOCH, _epochs),
    Lines("authors", "authors", "An epoch beside the authors' own code", AGENTS, EPOCH, _authors),
    Lines("federated", "federated", "A federated round", "clients", "a round, ms", _clients),
    Lines(
        "projection",
        "projection",
        "The dual of the projection, by rows",
        "rows K",
        "all agents, ms",
        _rows,
    ),
    Lines(
        "projection",
        "stacks",
        "Projection of stacked gradients, five shapes",
        "agents A × rows K × parameters D, by their product",
        "all agents, ms",
        _stacks,
        _shapes,
    ),
    Lines(
        "samplers",
        "samplers",
        "Error of credit by coalitions evaluated (accuracy)",
        "evaluations",
        "relative error",
        _errors,
    ),
    Lines(
        "ledger",
        "ledger",
        "A settlement, by principals",
        "principals",
        "CPU time, ms",
        _settlements,
    ),
    Lines("scale", "scale", "What grows with agents of ten samples", AGENTS, "seconds", _scaled),
)
