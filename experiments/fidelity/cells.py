"""One scenario and seed: all coalitions retrained, every estimator run and timed."""

import time
import zlib
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.cells import Say, kept, slug
from experiments.fidelity.config import AGENTS, Config, told
from experiments.fidelity.estimators import (
    RETRAINED,
    RUN,
    Program,
    from_table,
    products,
    programs,
)
from experiments.fidelity.problems import Arrays, Game, axiom_games, game, model_of, pool
from vcca_jax.runs.records import Record

AXIOM_TASKS = ("digits", "digits, Adam")
REPEATED_RUNS = 5


class Compiled:
    """A data set's programs, compiled when first asked for.

    All its games have the same shapes, and there are two kinds of them: those in which everyone
    sends its gradient, and those in which some cheat.
    """

    def __init__(self, name: str, config: Config) -> None:
        self.name, self.config, self.task = name, config, config.tasks[name]
        features = pool(self.task, 0).train.inputs.shape[1]
        self.model = model_of(self.task, features)
        self.programs: dict[str, Program] = programs(self.model, config)
        self.products: dict[bool, dict[str, float]] = {False: {}, True: {}}
        self._compiled: dict[tuple[str, bool], Any] = {}

    def __call__(self, name: str, arrays: Arrays) -> tuple[np.ndarray, float]:
        """The result, and the seconds it took without compilation."""
        kind = arrays.cheating is not None
        if (name, kind) not in self._compiled:
            function = self.programs[name]
            self.products[kind][name] = products(function, arrays)
            self._compiled[name, kind] = jax.jit(function).lower(arrays).compile()
        begun = time.perf_counter()
        found = jax.block_until_ready(self._compiled[name, kind](arrays))
        return np.asarray(found, np.float64), time.perf_counter() - begun


def rounded(numbers: Any) -> Any:
    """Nine digits, which single precision needs at most; None for what is not finite."""
    if np.ndim(numbers):
        return [rounded(each) for each in numbers]
    return float(f"{numbers:.9g}") if np.isfinite(numbers) else None


def drawn(name: str, scenario: str, seed: int) -> np.ndarray:
    """Scores that say nothing, others in every game."""
    words = zlib.crc32(f"{name}, {scenario}".encode())
    return np.random.default_rng((seed, words)).normal(size=AGENTS)


def valued(compiled: Compiled, played: Game, scenario: str, seed: int) -> Record:
    """Every coalition's worth and every estimator's credits, of one game."""
    seconds: dict[str, list[float]] = {}
    credits: dict[str, np.ndarray] = {}
    table, spent = compiled(RETRAINED, played.arrays)
    seconds[RETRAINED] = [spent]
    seconds[RUN] = [compiled(RUN, played.arrays)[1] for _ in range(REPEATED_RUNS)]
    for name in compiled.programs:
        if name not in (RUN, RETRAINED):
            credits[name], spent = compiled(name, played.arrays)
            seconds[name] = [spent]
    sampled, asked = from_table(table[:, 0], seed, compiled.config)
    credits = {**sampled, **credits, "size": np.asarray(played.sizes, float)}
    credits["random"] = drawn(compiled.name, scenario, seed)
    return {
        "sizes": list(played.sizes),
        "bad": None if played.bad is None else list(played.bad),
        "validation": rounded(table[:, 0]),
        "test": rounded(table[:, 1]),
        "credits": {name: rounded(each) for name, each in credits.items()},
        "asked": asked,
        "seconds": {name: rounded(np.median(each)) for name, each in seconds.items()},
        "products": dict(compiled.products[played.arrays.cheating is not None]),
    }


def run_task(config: Config, name: str, folder: Path, say: Say) -> list[Record]:
    """The cells of a data set, those with the axioms' games after them; finished ones are kept."""
    compiled: list[Compiled] = []

    def program() -> Compiled:
        if not compiled:
            compiled.append(Compiled(name, config))
        return compiled[0]

    def one(scenario: str, seed: int) -> Record:
        own = program()
        if scenario != "axioms":
            return valued(own, game(own.task, own.model, scenario, seed), scenario, seed)
        games = axiom_games(own.task, own.model, seed)
        whole, split = (valued(own, each, scenario, seed) for each in games)
        return {**whole, "split_credits": split["credits"]}

    wanted = [(scenario, seed) for seed in range(config.seeds) for scenario in config.scenarios]
    if name in AXIOM_TASKS:
        wanted += [("axioms", seed) for seed in range(config.axiom_seeds)]
    terms = told(config, name)
    return [
        kept(
            folder / f"{slug(name)}_{slug(scenario)}_{seed}.json",
            terms,
            {"data": name, "scenario": scenario, "seed": seed},
            partial(one, scenario, seed),
            say,
            f"{name}, {scenario}, seed {seed}",
        )
        for scenario, seed in wanted
    ]
