"""What every benchmark has to say: its headline numbers, read from what it kept, and their aims.

A benchmark that is not named here is still listed on the page (``page``), without numbers. A number
whose place in the file is missing, since a part or a peer was not measured, is left out alone.
"""

from collections.abc import Callable, Iterable, Mapping
from statistics import median
from typing import Any, NamedTuple

Content = Mapping[str, Any]
WORSE = 0.10
"""By how much a headline may get worse before it is called a regression."""


class Headline(NamedTuple):
    """One number of one benchmark.

    Attributes:
        benchmark: the stem of its result file.
        name: what is told, in words.
        read: the number, of the file's content.
        aim: what it is to be at most, or at least.
        least: whether more is better.
        unit: nothing for a ratio.
        watched: whether a change for the worse is a regression; not for rounding errors, which
            differ by their nature, and where the aim is the only limit.
    """

    benchmark: str
    name: str
    read: Callable[[Content], float]
    aim: float | None = None
    least: bool = False
    unit: str = ""
    watched: bool = True

    def met(self, value: float) -> bool | None:
        """Whether the aim is met; None without one."""
        if self.aim is None:
            return None
        return value >= self.aim if self.least else value <= self.aim


class Worse(NamedTuple):
    """A headline that got worse, and by which share."""

    headline: Headline
    before: float
    now: float
    share: float


def chosen(records: Iterable[Content], **fields: Any) -> list[Content]:
    """The records with these fields."""
    return [r for r in records if all(r.get(key) == each for key, each in fields.items())]


def one(records: Iterable[Content], **fields: Any) -> Content:
    """The last record with these fields.

    Raises:
        LookupError: there is none.
    """
    found = chosen(records, **fields)
    if not found:
        raise LookupError(f"no record with {fields}")
    return found[-1]


def most(records: Iterable[Content], field: str, **fields: Any) -> Content:
    """The record with these fields whose one field is largest."""
    found = chosen(records, **fields)
    if not found:
        raise LookupError(f"no record with {fields}")
    return max(found, key=lambda record: record[field])


def _traversal(candidate: str, field: str = "ratio") -> Callable[[Content], float]:
    return lambda c: most(c["results"], "agents", candidate=candidate)[field]


def _whole(model: str, batch: int, held: int, form: str = "one pass") -> Callable[[Content], float]:
    def read(c: Content) -> float:
        return one(c["results"]["models"], model=model, batch=batch, held_out=held)[form]["ratio"]

    return read


def _by_agents(c: Content, field: str) -> float:
    first, *_, last = c["results"]["agents"]
    return last["one pass"][field] / first["one pass"][field]


def _flower(field: str, **job: Any) -> Callable[[Content], float]:
    def read(c: Content) -> float:
        turns = one(c["results"], **job)["turns"]
        settings = turns[0]["flower"]
        # The best that the peer can do is what ours is compared with.
        return min(median(turn["flower"][name][field] for turn in turns) for name in settings)

    return read


def _rivals(c: Content, model: str, word: str) -> float:
    times = one(c["results"]["evaluations"], model=model)["times_ours"]
    return min(each for name, each in times.items() if word in name)


def _over_ours(peer: str) -> Callable[[Content], float]:
    """The least of a peer's times over ours, from 64 agents and 16 rows on."""

    def read(c: Content) -> float:
        large = [r for r in c["results"] if r["agents"] >= 64 and r["rows"] >= 16]
        return min(r["ratio_to_ours"][peer] for r in large)

    return read


def _pearson(activation: str) -> Callable[[Content], float]:
    def read(c: Content) -> float:
        runs = chosen(c["results"]["runs"], activation=activation)
        return min(run["at everybody"]["pearson"] for run in runs)

    return read


def _residual(activation: str) -> Callable[[Content], float]:
    def read(c: Content) -> float:
        runs = chosen(c["results"]["runs"], activation=activation)
        return max(run["residuals"]["in_run order 2"] for run in runs)

    return read


def _retrained(c: Content) -> float:
    """The most that side by side gains over a loop, over model sizes."""
    best = [
        max(each for name, each in r["loop_over"].items() if name.startswith("side by side"))
        for r in c["results"]["retraining"]
    ]
    return max(best)


def _least_faster(c: Content) -> float:
    found = chosen(c["results"]["against_shapley"], agents=8, candidate="2 nodes")
    return median(each["times_faster"] for each in found)


def _permutations(field: str) -> Callable[[Content], float]:
    def read(c: Content) -> float:
        found = chosen(c["results"]["against_permutations"], candidate="2 nodes")
        return min(each[field] for each in found)

    return read


def _extra(c: Content) -> float:
    found = chosen(c["results"]["in_run_cost"], estimate="in_run order 1 by hand")
    return max(each["extra_over_plain"] for each in found)


def _ledger(credits: str) -> Callable[[Content], float]:
    def read(c: Content) -> float:
        record = most(c["results"], "principals", credits=credits)
        return record["by the hundred"]["per_cpu_second"]

    return read


def _share(program: str) -> Callable[[Content], float]:
    return lambda c: one(c["results"], program=program)["share_of_the_roof"]


def _beside(c: Content, word: str, agents: int) -> float:
    times = one(c["results"], agents=agents)["times_ours"]
    return min(each for name, each in times.items() if name.startswith(word))


def _in_run(field: str, model: str, batch: int) -> Callable[[Content], float]:
    def read(c: Content) -> float:
        record = one(c["results"], model=model, batch=batch)
        return record[field] if field in record else record["ratio"][field]

    return read


H = Headline
HEADLINES: tuple[Headline, ...] = (
    H("traversal", "linearized step over centralized, most agents", _traversal("linearized"), 1.1),
    H("traversal", "its growth over agents", lambda c: c["growth"]["linearized"], 1.2),
    H("traversal", "split traversal over centralized, most agents", _traversal("split")),
    H("traversal", "growth of the whole step over agents", lambda c: c["growth"]["whole step"]),
    *(
        H("one_pass", f"whole step over plain, {model}, {held} held-out of {batch}",
          _whole(model, batch, held), aim)
        for model, batch, held, aim in (
            ("perceptron", 128, 30, 1.5), ("perceptron", 128, 60, 2.0),
            ("perceptron", 512, 125, 1.5), ("perceptron", 512, 255, 2.0),
            ("convolutional", 64, 15, 1.5), ("convolutional", 64, 30, 2.0),
            ("transformer", 64, 15, 1.5), ("transformer", 64, 30, 2.0),
        )
    ),
    H("one_pass", "whole step over its floor, the most of all models",
      lambda c: max(r["one pass"]["ratio"] / r["floor"] for r in c["results"]["models"]), 1.3),
    H("one_pass", "credit alone over plain, the most of all models",
      lambda c: max(r["credit alone"]["ratio"] for r in c["results"]["models"]), 1.35),
    H("one_pass", "stacked over one pass, 512 agents",
      lambda c: (lambda r: r["stacked"]["ratio"] / r["one pass"]["ratio"])(
          one(c["results"]["agents"], agents=512)), 10, True),
    H("one_pass", "growth over agents, time", lambda c: _by_agents(c, "ratio"), 1.1),
    H("one_pass", "growth over agents, memory", lambda c: _by_agents(c, "temporaries_mb"), 1.1),
    H("one_pass", "norms of every agent over the gradient alone, perceptron, 512 agents",
      lambda c: one(c["results"]["norms"], model="perceptron", agents=512)["one pass"]),
    H("cuts", "bodies together over centralized, the most of all cuts",
      lambda c: max(r["ratio"] for r in chosen(c["results"], candidate="together")), 1.15),
    *(
        H("cuts", f"protocol by hand over ours, an epoch, {agents} agents",
          lambda c, agents=agents: one(
              c["epochs"], agents=agents, candidate="together")["loop_over_this"], 20, True)
        for agents in (8, 64, 256)
    ),
    H("cuts", "bytes: the whole model over cut 1",
      lambda c: one(c["bytes"], cut=1)["logged_saving"], 13, True),
    *(
        H("federated", f"Flower over ours, a round, {words}", _flower("ratio_a_round", **job), 100,
          True)
        for words, job in (
            ("1000 clients", {"clients": 1000, "participants": 10, "uneven": False}),
            ("10,000 clients", {"clients": 10_000, "participants": 10}),
            ("100 participants", {"participants": 100}),
        )
    ),
    H("samplers", "relative error of stratified sampling, 200 evaluations, accuracy",
      lambda c: one(c["results"], utility="accuracy", sampler="stratified", budget=200)[
          "relative_error"], 0.12),
    *(
        H("credit", f"PyTorch's loop over ours, a worth, {model}",
          lambda c, model=model: _rivals(c, model, "PyTorch, a loop, threads"), 50, True)
        for model in ("softmax regression", "perceptron 64-32-10")
    ),
    H("credit", "PyTorch's best form over ours, softmax regression",
      lambda c: _rivals(c, "softmax regression", "PyTorch"), least=True),
    H("credit", "pyDVL over ours, a worth, softmax regression",
      lambda c: _rivals(c, "softmax regression", "pyDVL"), least=True),
    H("limits", "retraining: a loop over side by side, at best", _retrained, 3, True),
    H("limits", "influence to retraining, Pearson, relu, worst seed", _pearson("relu"), 0.99, True),
    H("limits", "influence to retraining, Pearson, tanh, worst seed", _pearson("tanh"), 0.99, True),
    H("limits", "in-run order 2, residual over the gain, relu, worst seed", _residual("relu"),
      0.001),
    H("limits", "in-run order 2, residual over the gain, tanh, worst seed", _residual("tanh"),
      0.001),
    H("trajectory", "reverse mode over one run",
      lambda c: one(c["results"]["fidelity"], candidate="influence, all states")["ratio_to_run"],
      2),
    H("trajectory", "the same, 784-256-128-10",
      lambda c: c["results"]["reverse_by_size"][-1]["all_states"], 2),
    H("trajectory", "exact Shapley over Aumann-Shapley of two nodes, 8 agents", _least_faster,
      least=True),
    H("trajectory", "64 permutations over Aumann-Shapley of two nodes, 16 agents, worst seed",
      _permutations("times_faster"), 50, True),
    H("trajectory", "its Spearman to retraining, 16 agents, worst seed",
      _permutations("spearman_to_reference"), 0.95, True),
    H("trajectory", "in-run credit by one product: extra over a plain step, at most", _extra, 0.35),
    H("projection", "nnls over ours, the least from 64 agents and 16 rows on",
      _over_ours("nnls loop"), 1, True),
    H("projection", "quadprog over ours, likewise", _over_ours("quadprog loop"), 3, True),
    H("projection", "qpax over ours, likewise", _over_ours("qpax"), 8, True),
    H("projection", "our error to float64 quadprog, at most",
      lambda c: max(r["error"]["ours"] for r in c["results"]), 1e-6, watched=False),
    H("projection", "dual's share of a stack of a million numbers, at most",
      lambda c: max(r["ratio_to_ours"]["dual"] for r in chosen(c["stacks"], width=1_000_000)),
      0.02),
    *(
        H("conic", f"Clarabel over ours, {kind}",
          lambda c, kind=kind: one(c["results"], kind=kind)["ratio_to_ours"]["clarabel loop"],
          least=True)
        for kind in ("half-spaces", "ball", "everything")
    ),
    H("screening", "screened and credited step over the reference, most agents",
      lambda c: most(c["results"], "agents", candidate="screened, credited")["ratio"], 2),
    H("screening", "its growth over agents", lambda c: c["growth"], 1.1),
    H("screening", "the same in one pass, most agents",
      lambda c: most(c["results"], "agents", candidate="in one pass")["ratio"], 2),
    H("forms", "the chosen form over the fastest, at worst", lambda c: c["worst_regret"], 1.3),
    H("forms", "cells whose fastest form was chosen",
      lambda c: c["right"] / len(c["results"]), least=True),
    H("ledger", "settlements of 1000 principals, credits of both signs", _ledger("mixed"), 1000,
      True, "a CPU second"),
    H("ledger", "settlements of 1000 principals, all are paid", _ledger("rising"), 1000, True,
      "a CPU second"),
    H("ledger", "a late settlement over an early one, the most",
      lambda c: max(r["growth_late_over_early"] for r in c["results"]), 1.1),
    H("latency", "first chunk, programs kept over none",
      lambda c: c["best"]["warm"]["first chunk"] / c["best"]["cold"]["first chunk"]),
    H("scale", "epoch of a million samples of the most agents",
      lambda c: most(c["results"], "agents")["seconds"]["epoch"], 60, unit="s"),
    H("scale", "streamed epoch over one in memory",
      lambda c: c["streamed"]["seconds"]["epoch"] / most(c["results"], "agents")["seconds"][
          "epoch"]),
    H("scale", "temporaries of a large whole step, in models",
      lambda c: c["parameters"]["temporaries_in_models"]),
    H("precision", "Spearman of bfloat16 credits to float32", lambda c: c["means"]["spearman"],
      0.99, True),
    H("roofline", "plain step, share of the roof", _share("plain step"), least=True),
    H("roofline", "whole step on one pass, share of the roof", _share("whole step, one pass"),
      least=True),
    H("roofline", "projection of a stack, share of the roof", _share("projection"), least=True),
    *(
        H("in_run", f"{words}, {model}, B = {batch}", _in_run(field, model, batch), aim)
        for model, batch in (("perceptron", 128), ("perceptron", 512), ("transformer", 64))
        for words, field, aim in (
            ("credit of every sample over plain, ours", "by sample", 1.35),
            ("the same of GhostSuite over its own plain step", "their_best", None),
        )
    ),
    *(
        H("authors", f"{words}, {agents} agents",
          lambda c, word=word, agents=agents: _beside(c, word, agents), 20, True)
        for word, words in (
            ("loopback", "the authors' processes over ours, an epoch"),
            ("inside", "the authors' functions in one process over ours"),
        )
        for agents in (4, 8, 32)
        if (word, agents) != ("loopback", 32)
    ),
)  # fmt: skip


def values(benchmark: str, content: Content) -> dict[str, float]:
    """The headline numbers of a benchmark's file, by their names; absent ones are left out."""
    found = {}
    for headline in HEADLINES:
        if headline.benchmark == benchmark:
            try:
                found[headline.name] = float(headline.read(content))
            except (LookupError, TypeError, ValueError, AttributeError):
                continue
    return found


def regressions(
    benchmark: str, before: Mapping[str, float], now: Mapping[str, float]
) -> list[Worse]:
    """Headlines of a benchmark that got worse by more than ``WORSE``."""
    found = []
    for headline in HEADLINES:
        name = headline.name
        if headline.benchmark != benchmark or not headline.watched:
            continue
        if name in before and name in now and before[name] > 0 and now[name] > 0:
            share = before[name] / now[name] if headline.least else now[name] / before[name]
            if share > 1 + WORSE:
                found.append(Worse(headline, before[name], now[name], share - 1))
    return found


def told(worse: Worse) -> str:
    """A regression in a line."""
    headline = worse.headline
    return (
        f"{headline.benchmark}: {headline.name}: {worse.before:.3g} before, {worse.now:.3g} now,"
        f" {100 * worse.share:.0f} % worse"
    )
