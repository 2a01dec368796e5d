"""One data set and partition: every method tuned, trained on every seed, and measured."""

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

import vcca_jax as vcca
from experiments.cells import Say, held, slug, write_cell
from experiments.lossless import analysis, methods
from experiments.lossless.config import Config, Task, told
from experiments.lossless.methods import CENTRALIZED, DEEPER, VISITED
from experiments.lossless.problems import Problem, Rows, capacities, problems
from experiments.lossless.tuning import Settings, Tuning, tuned
from vcca_jax.runs.records import Record
from vcca_jax.trainer import Params

POOLED = "pooled"
"""The cell of centralized training and traversal, whose parameters are compared."""

DOUBLE = "pooled, double precision"
"""The cell of the same comparison, visit by visit, where rounding is 1e-16 instead of 1e-7."""


class Models:
    """A data set's model at both cuts, and the compiled programs on it."""

    def __init__(self, name: str, task: Task, features: int) -> None:
        self.name, self.task = name, task
        self.model, self.deeper = (methods.model_of(name, task, features, cut) for cut in task.cuts)
        self._programs: dict[Any, Any] = {}
        self._outputs = {
            model: jax.jit(partial(methods.outputs, model)) for model in (self.model, self.deeper)
        }
        self._starting = jax.jit(partial(methods.starting, name, self.model, self.deeper))

    def model_of(self, method: str) -> vcca.SplitModel:
        """The model at a method's cut."""
        return self.deeper if method == DEEPER else self.model

    def start(self, method: str, problem: Problem) -> Params:
        """The seed's initial parameters at a method's cut."""
        return self._starting(problem.seed)[1 if method == DEEPER else 0]

    def train(
        self, method: str, problem: Problem, settings: Settings, start: Params = None
    ) -> Params:
        """Parameters after each epoch, [E, ...], from the seed's initial ones or from others."""
        fixed = settings[1] if method in methods.FIXED else None
        if (method, fixed) not in self._programs:
            self._programs[method, fixed] = jax.jit(
                methods.program(self.model_of(method), self.task, method, fixed)
            )
        start = self.start(method, problem) if start is None else start
        run = self._programs[method, fixed]
        plan = problem.plan if method in methods.POOLED else problem.rounds
        return run(start, problem.shards, plan, methods.settings_array(settings))

    def outputs(self, method: str, params: Params, rows: Rows) -> np.ndarray:
        """Outputs [E, n, K] of rows; padded, so that few shapes are compiled."""
        inputs, count = rows.inputs, len(rows.targets)
        padding = [(0, -count % 256), *[(0, 0)] * (inputs.ndim - 1)]
        found = self._outputs[self.model_of(method)](params, np.pad(inputs, padding))
        return np.asarray(found)[:, :count]


def choose(config: Config, models: Models, method: str, problem: Problem) -> Tuning:
    """Tune a method on the tuning seed, by the validation score of the last epoch."""
    validation = problem.validation

    def score(settings: Settings) -> float:
        params = models.train(method, problem._replace(test=None), settings)
        last = jax.tree.map(lambda leaf: leaf[-1:], params)
        (outputs,) = models.outputs(method, last, validation)
        found: float = analysis.measures(outputs, validation.targets)[models.task.score]
        return found

    return tuned(methods.grid(config, models.task, method), score, config.extra)


def measured(
    models: Models, method: str, problem: Problem, params: Params
) -> tuple[list[Record], list[Record]]:
    """Test measures at the last epoch and at the one chosen on validation, and the curve."""
    assert problem.test is not None
    score = models.task.score
    on_validation = models.outputs(method, params, problem.validation)
    curve = [analysis.measures(each, problem.validation.targets)[score] for each in on_validation]
    epochs = {"last": len(curve) - 1, "chosen": int(np.argmax(curve))}
    at = np.array(list(epochs.values()))
    on_test = models.outputs(method, jax.tree.map(lambda leaf: leaf[at], params), problem.test)
    named = {"method": method, "seed": problem.seed}
    finals = [
        {
            **named,
            "at": which,
            "epoch": epochs[which] + 1,
            **analysis.measures(outputs, problem.test.targets),
        }
        for which, outputs in zip(epochs, on_test, strict=True)
    ]
    curves = [
        {**named, "epoch": epoch, "score": value} for epoch, value in enumerate(curve, start=1)
    ]
    return finals, curves


def pooled_cell(config: Config, models: Models, tuning: Tuning, seeds: Sequence[Problem]) -> Record:
    """Centralized training and traversal from the same parameters on the same batches."""
    finals, curves, differences = [], [], []
    for place, problem in enumerate(seeds):
        reference = models.train(CENTRALIZED, problem, tuning.chosen)
        answers = models.outputs(CENTRALIZED, reference, problem.validation)
        for method in methods.POOLED:
            if method == VISITED and place >= config.visited_seeds:
                continue
            params = reference
            if method != CENTRALIZED:
                params = models.train(method, problem, tuning.chosen)
                ours = models.outputs(method, params, problem.validation)
                named = {"method": method, "seed": problem.seed}
                differences += [
                    {**named, **record}
                    for record in gaps(models, problem, (params, ours), (reference, answers))
                ]
            if method != VISITED:
                told_of = measured(models, method, problem, params)
                finals += told_of[0]
                curves += told_of[1]
    return {"finals": finals, "curves": curves, "differences": differences}


def gaps(
    models: Models, problem: Problem, ours: tuple[Params, Any], theirs: tuple[Params, Any]
) -> list[Record]:
    """By epoch, how far one run's (parameters, validation outputs) are from another's."""
    of_params = analysis.apart(methods.in_order(ours[0]), methods.in_order(theirs[0]))
    of_outputs = analysis.apart([ours[1]], [theirs[1]])
    score, targets = models.task.score, problem.validation.targets
    scores = [
        analysis.measures(mine, targets)[score] - analysis.measures(other, targets)[score]
        for mine, other in zip(ours[1], theirs[1], strict=True)
    ]
    return [
        {"epoch": epoch, "parameters": first, "outputs": second, "score": third}
        for epoch, (first, second, third) in enumerate(
            zip(of_params, of_outputs, scores, strict=True), start=1
        )
    ]


def double_cell(config: Config, models: Models, tuning: Tuning, seeds: Sequence[Problem]) -> Record:
    """Traversal visit by visit against centralized training, both in double precision."""
    differences = []
    for problem in seeds[: config.visited_seeds]:
        start = models.start(CENTRALIZED, problem)
        with jax.enable_x64(True):
            start, shards, inputs = jax.tree.map(
                doubled, (start, problem.shards, problem.validation.inputs)
            )
            exact = problem._replace(
                shards=shards, validation=problem.validation._replace(inputs=inputs)
            )
            found = []
            for method in (VISITED, CENTRALIZED):
                params = models.train(method, exact, tuning.chosen, start)
                found.append((params, models.outputs(method, params, exact.validation)))
            differences += [
                {"method": methods.EXACT, "seed": problem.seed, **record}
                for record in gaps(models, problem, *found)
            ]
    return {"differences": differences}


def doubled(leaf: Any) -> np.ndarray:
    """A floating array in double precision, any other as it is."""
    array = np.asarray(leaf)
    return array.astype(np.float64) if np.issubdtype(array.dtype, np.floating) else array


def rival_cell(models: Models, method: str, tuning: Tuning, seeds: Sequence[Problem]) -> Record:
    """A rival with its choice, trained on every seed."""
    finals, curves = [], []
    for problem in seeds:
        params = models.train(method, problem, tuning.chosen)
        told_of = measured(models, method, problem, params)
        finals += told_of[0]
        curves += told_of[1]
    return {"finals": finals, "curves": curves, "tuning": {"method": method, **tuning.record()}}


def centralized_tuning(config: Config, models: Models, path: Path) -> Tuning:
    """Centralized training's choice, made once a data set: pooled rows know no partition."""
    terms = told(config, models.name)
    found = held(path, terms)
    if found is None:
        name, task = models.name, models.task
        how = task.partitions[0]
        room = capacities(config, name)[how]
        (problem,) = problems(config, name, how, [config.tuning_seed], room)
        tuning = choose(config, models, CENTRALIZED, problem)
        shown = {"terms": terms, "data": name, "partition": task.partitions[0]}
        found = {**shown, "tuning": {"method": CENTRALIZED, **tuning.record()}}
        write_cell(path, found)
    return Tuning.read(found["tuning"])


def choice(config: Config, models: Models, method: str, problem: Problem, folder: Path) -> Tuning:
    """A rival's settings on this partition, whose cells lie in ``folder``."""
    other = methods.SAME_AS.get(method)
    if other is not None:
        found = held(folder / f"{slug(other)}.json", told(config, models.name))
        if found is not None:
            return Tuning.read(found["tuning"])
    return choose(config, models, method, problem)


def run_task(config: Config, name: str, folder: Path, say: Say) -> list[Record]:
    """Every cell of a data set that ``folder`` does not hold yet; all of them, as records."""
    task, terms = config.tasks[name], told(config, name)
    models: Models | None = None
    room: dict[str, int] = {}
    own = folder / slug(name) / "centralized.json"
    paths = [own]
    for how in task.partitions:
        here = folder / slug(name) / slug(how)
        cells = {
            method: here / f"{slug(method)}.json" for method in (POOLED, DOUBLE, *config.methods)
        }
        paths += cells.values()
        missing = [method for method, path in cells.items() if held(path, terms) is None]
        if not missing:
            continue
        room = room or capacities(config, name)
        tuning_problem, *seeds = problems(config, name, how, config.all_seeds, room[how])
        models = models or Models(name, task, seeds[0].validation.inputs.shape[-1])
        for method in missing:
            begun = time.perf_counter()
            if method in (POOLED, DOUBLE):
                compared = pooled_cell if method == POOLED else double_cell
                cell = compared(config, models, centralized_tuning(config, models, own), seeds)
            else:
                tuning = choice(config, models, method, tuning_problem, here)
                cell = rival_cell(models, method, tuning, seeds)
            told_of = {
                "terms": terms,
                "data": name,
                "partition": how,
                "method": method,
                "seconds": round(time.perf_counter() - begun, 1),
                "sizes": {str(each.seed): list(each.sizes) for each in seeds},
            }
            write_cell(cells[method], {**told_of, **cell})
            say(f"{name}, {how}: {method} in {told_of['seconds']} s")
    return [found for path in paths if (found := held(path, terms)) is not None]
