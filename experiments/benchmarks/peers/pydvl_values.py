"""Values of agents by pyDVL's samplers, on a table of worths and on real retraining.

A stand-alone script for an interpreter that has ``pyDVL==0.10.0`` (with numpy 1.26.4, which it
asks for); it needs nothing of this project. ``experiments.benchmarks.credit`` writes the data,
starts it and reads the last line of its output.

    python pydvl_values.py FOLDER --rate 0.5 --budgets 50 200 --seeds 20

The utility is the benchmark's own, as a subclass of ``UtilityBase``: an index is an agent. For
accuracy it looks the worth up in ``tables_*.npy``, so that all samplers see one game; a coalition
asked for twice counts once, as with the library's cache. For time it retrains in NumPy, by hand,
the cheapest honest form in this interpreter, in one process and in joblib's. A
sampler is stopped at the first check at which another round of it might exceed the budget.
"""

import argparse
import json
import os
import time
import warnings
from pathlib import Path
from typing import Any

# One thread: the products are small, and joblib's processes would share the cores.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ["TQDM_DISABLE"] = "1"

import numpy as np
from joblib import parallel_config
from pydvl.utils.status import Status
from pydvl.valuation.dataset import Dataset
from pydvl.valuation.methods import banzhaf, gt_shapley, least_core, shapley
from pydvl.valuation.samplers import (
    AntitheticPermutationSampler,
    DeterministicUniformSampler,
    FiniteSequentialIndexIteration,
    PermutationSampler,
    RelativeTruncation,
)
from pydvl.valuation.stopping import MaxUpdates, NoStopping, StoppingCriterion
from pydvl.valuation.utility.base import UtilityBase

warnings.filterwarnings("ignore")


class Tabled(UtilityBase):
    """Worths [2**A] looked up, agent i being bit i; what was asked for is counted."""

    def __init__(self, table: np.ndarray) -> None:
        self.table = table
        self.asked: list[int] = []

    def __call__(self, sample: Any) -> float:
        code = 0 if sample is None else int(np.sum(1 << np.asarray(sample.subset, np.int64)))
        self.asked.append(code)
        return float(self.table[code])

    @property
    def distinct(self) -> int:
        return len(set(self.asked))


class Retrained(UtilityBase):
    """The worth of a coalition by gradient descent on its members' terms, by hand in NumPy."""

    def __init__(self, held: dict[str, np.ndarray], rate: float) -> None:
        names = sorted(name for name in held if name[:5] == "layer")
        self.start = [held[name] for name in names]
        self.inputs, self.targets, self.owners = held["inputs"], held["targets"], held["owners"]
        mask = held["mask"].astype(np.float32)
        self.shares = mask / mask.sum(axis=1, keepdims=True)
        self.unseen, self.labels, self.rate = held["unseen"], held["labels"], rate
        self.agents = held["members"].shape[1]
        self.count = 0

    def __call__(self, sample: Any) -> float:
        self.count += 1
        members = np.zeros(self.agents, np.float32)
        if sample is not None:
            members[np.asarray(sample.subset, np.int64)] = 1
        return self.worth(members)

    def worth(self, members: np.ndarray) -> float:
        params = [each.copy() for each in self.start]
        weights = members[self.owners] * self.shares * np.float32(self.rate)
        for inputs, targets, own in zip(self.inputs, self.targets, weights, strict=True):
            layers = self.layers(params, inputs)
            errors = self.softmax(layers.pop())
            errors[np.arange(len(targets)), targets] -= 1
            errors *= own[:, None]
            for place in range(len(params) - 2, -1, -2):
                below = errors @ params[place].T * (layers[-1] > 0) if place else errors
                params[place] -= layers.pop().T @ errors
                params[place + 1] -= errors.sum(axis=0)
                errors = below
        found = self.softmax(self.layers(params, self.unseen)[-1])
        return float(np.log(found[np.arange(len(self.labels)), self.labels]).mean())

    @staticmethod
    def layers(params: list[np.ndarray], inputs: np.ndarray) -> list[np.ndarray]:
        found = [inputs]
        for place in range(0, len(params), 2):
            found.append(found[-1] @ params[place] + params[place + 1])
            if place + 2 < len(params):
                np.maximum(found[-1], 0, out=found[-1])
        return found

    @staticmethod
    def softmax(scores: np.ndarray) -> np.ndarray:
        powers = np.exp(scores - scores.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)


class Spent(StoppingCriterion):
    """Converged once another round of the sampler might ask for more than the budget."""

    def __init__(self, utility: Tabled, budget: int, round_size: int) -> None:
        super().__init__()
        # Valuations keep a shallow copy of the utility, which shares the list of what was asked.
        self.utility, self.limit = utility, budget - round_size

    def _check(self, result: Any) -> Status:
        done = self.utility.distinct > self.limit or len(self.utility.asked) > 50_000
        return Status.Converged if done else Status.Pending

    def completion(self) -> float:
        return 0.0


def valuations(agents: int, utility: Tabled, budget: int, seed: int) -> dict[str, Any]:
    """Samplers at their own defaults."""
    order = Spent(utility, budget, agents)
    truncation = RelativeTruncation(0.01, burn_in_fraction=0.4)
    quiet = {"seed": seed, "progress": False}
    return {
        "permutation": shapley.ShapleyValuation(utility, PermutationSampler(seed=seed), order),
        "antithetic": shapley.ShapleyValuation(
            utility, AntitheticPermutationSampler(seed=seed), order
        ),
        "truncated": shapley.ShapleyValuation(
            utility, PermutationSampler(truncation, seed=seed), order
        ),
        "stratified": shapley.StratifiedShapleyValuation(
            utility, Spent(utility, budget, 2), seed=seed
        ),
        "group testing": gt_shapley.GroupTestingShapleyValuation(
            utility, n_samples=budget, epsilon=0.1, **quiet
        ),
        "banzhaf": banzhaf.MSRBanzhafValuation(utility, Spent(utility, budget, 1), seed=seed),
        "least core": least_core.MonteCarloLeastCoreValuation(utility, n_samples=budget, **quiet),
    }


def valued(fit: Any, data: Dataset, agents: int) -> list[float]:
    """The values in the agents' order."""
    result = fit.fit(data).result
    found = np.zeros(agents)
    found[np.asarray(result.indices)] = result.values
    return found.tolist()


def accuracy(tables: dict[str, np.ndarray], budgets: list[int], seeds: int) -> list[dict[str, Any]]:
    """Every sampler's values on every table, by budget and seed."""
    results = []
    for name, table in tables.items():
        agents = int(np.log2(len(table)))
        data = Dataset(np.arange(agents, dtype=float)[:, None], np.zeros(agents))
        for budget in budgets:
            for kind in valuations(agents, Tabled(table), budget, 0):
                values, asked, calls, failed = [], [], [], ""
                for seed in range(seeds):
                    utility = Tabled(table)
                    try:
                        fit = valuations(agents, utility, budget, seed)[kind]
                        values.append(valued(fit, data, agents))
                    except Exception as error:
                        failed = f"{type(error).__name__}: {error}"[:200]
                        break
                    asked.append(utility.distinct)
                    calls.append(len(utility.asked))
                entry = {"utility": name, "sampler": kind, "budget": budget, "failed": failed}
                results.append({**entry, "values": values, "distinct": asked, "calls": calls})
    return results


def exact(table: np.ndarray) -> dict[str, Any]:
    """The exact Shapley value by all coalitions: what it asks for."""
    agents, utility = int(np.log2(len(table))), Tabled(table)
    data = Dataset(np.arange(agents, dtype=float)[:, None], np.zeros(agents))
    sampler = DeterministicUniformSampler(index_iteration=FiniteSequentialIndexIteration)
    begun = time.perf_counter()
    values = valued(shapley.ShapleyValuation(utility, sampler, NoStopping()), data, agents)
    seconds = time.perf_counter() - begun
    counts = {"calls": len(utility.asked), "distinct": utility.distinct}
    return {"values": values, "seconds": seconds, **counts}


def times(utility: Retrained, members: np.ndarray, orders: int) -> dict[str, float]:
    """Milliseconds a worth: by itself, and through the library, in one process and in two."""
    data = Dataset(np.arange(utility.agents, dtype=float)[:, None], np.zeros(utility.agents))
    rows = members.astype(np.float32)
    for row in rows[:4]:
        utility.worth(row)
    begun = time.perf_counter()
    for row in rows:
        utility.worth(row)
    found = {"NumPy alone": 1e3 * (time.perf_counter() - begun) / len(rows)}
    for jobs in (1, 2):
        with parallel_config(backend="loky", n_jobs=jobs):
            for count in (2, orders):  # the first starts processes
                sampler = PermutationSampler(seed=0)
                fit = shapley.ShapleyValuation(utility, sampler, MaxUpdates(count))
                begun = time.perf_counter()
                fit.fit(data)
                seconds = time.perf_counter() - begun
        # The empty coalition's worth is asked for once an order as well.
        found[f"pyDVL, {jobs}"] = 1e3 * seconds / (orders * (utility.agents + 1))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--budgets", type=int, nargs="*", default=[])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--orders", type=int, default=20, help="permutations to be timed")
    options = parser.parse_args()
    held = {path.stem: np.load(path) for path in options.folder.glob("*.npy")}
    tables = {n[7:]: held.pop(n) for n in sorted(held) if n[:7] == "tables_"}
    utility = Retrained(held, options.rate)
    from importlib.metadata import version

    told = {
        "worths": [utility.worth(row.astype(np.float32)) for row in held["members"]],
        "times": times(utility, held["members"], options.orders),
        "versions": {name: version(name) for name in ("pydvl", "numpy", "joblib")},
    }
    if options.budgets:
        told["accuracy"] = accuracy(tables, options.budgets, options.seeds)
        told["exact"] = exact(next(iter(tables.values())))
    print(json.dumps(told))


if __name__ == "__main__":
    main()
