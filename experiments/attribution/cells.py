"""One partition and seed: every substrate trained, credited and retrained on all coalitions."""

from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.attribution.config import Config, told
from experiments.attribution.problems import Game, at_rate, game, largest, noise_of
from experiments.attribution.substrates import Substrate, mean_loss, substrates
from experiments.cells import Say, kept, slug
from experiments.fidelity.cells import rounded
from experiments.fidelity.estimators import products
from experiments.fidelity.problems import Model, pool
from vcca_jax.runs.records import Record


class Compiled:
    """A data set's programs, compiled when first asked for: all its games have the same shapes."""

    def __init__(self, config: Config, name: str) -> None:
        self.config, self.name = config, name
        self.substrates: list[Substrate] = substrates(config, name)
        self._compiled: dict[str, Any] = {}

    @cached_property
    def room(self) -> int:
        """Rows that every agent has room for."""
        return largest(self.config, self.name)

    def game(self, how: str, seed: int) -> Game:
        """One cell's arrays."""
        return game(self.config, self.name, how, seed, self.room)

    def model(self, rate: Any) -> Model:
        """What is trained, at a rate."""
        task = self.config.tasks[self.name]
        return at_rate(task, pool(task, 0).train.inputs.shape[1], rate)

    def _jitted(self, key: str, function: Callable[..., Any]) -> Any:
        return self._compiled.setdefault(key, jax.jit(function))

    def losses(self, substrate: Substrate, played: Game) -> np.ndarray:
        """Validation losses at all rates tried."""

        def at(rate: jax.Array, played: Game) -> jax.Array:
            model = self.model(rate)
            return mean_loss(model, substrate.run(model, played), played.arrays.validation)

        program = self._jitted(f"{substrate.name} losses", jax.vmap(at, in_axes=(0, None)))
        return np.asarray(program(jnp.asarray(self.config.rates), played))

    def found(self, substrate: Substrate, rate: float, played: Game) -> Any:
        """All credits and all retraining tables."""

        def everything(rate: jax.Array, played: Game) -> Any:
            model = self.model(rate)
            return {
                field: {name: f(model, played) for name, f in getattr(substrate, field).items()}
                for field in ("credits", "retrained")
            }

        program = self._jitted(f"{substrate.name} found", everything)
        return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), program(rate, played))

    def costs(self, substrate: Substrate, played: Game) -> dict[str, float]:
        """Training runs by matrix products of each estimator, the training itself included."""
        key = f"{substrate.name} costs"
        if key not in self._compiled:
            model = self.model(0.1)
            one = products(lambda played: substrate.run(model, played), played)  # type: ignore[arg-type]
            self._compiled[key] = {
                name: products(lambda played, f=f: f(model, played), played) / one  # type: ignore
                # What goes through the run leaves no trained parameters behind.
                + (1.0 if "of the run" in name else 0.0)
                for name, f in substrate.credits.items()
            }
        costs: dict[str, float] = self._compiled[key]
        return costs


def best_rates(compiled: Compiled, how: str) -> Record:
    """Under "tuned", every substrate's rate of least validation loss in the tuning seed."""
    played = compiled.game(how, compiled.config.tuning_seed)
    tuned: Record = {}
    for substrate in compiled.substrates:
        losses = compiled.losses(substrate, played)
        finite = np.where(np.isfinite(losses), losses, np.inf)
        rate = compiled.config.rates[int(np.argmin(finite))]
        tuned[substrate.name] = {"rate": rate, "losses": rounded(losses)}
    return {"tuned": tuned}


def measured(compiled: Compiled, how: str, seed: int, tuned: Record) -> Record:
    """Every substrate's credits and worths of one cell."""
    played = compiled.game(how, seed)
    found: Record = {}
    for substrate in compiled.substrates:
        told = compiled.found(substrate, tuned[substrate.name]["rate"], played)
        found[substrate.name] = {
            "rate": tuned[substrate.name]["rate"],
            "events": substrate.events,
            "credits": {name: rounded(each) for name, each in told["credits"].items()},
            "runs": {n: round(c, 2) for n, c in compiled.costs(substrate, played).items()},
            "worths": {
                rule: {"validation": rounded(table[:, 0]), "test": rounded(table[:, 1])}
                for rule, table in told["retrained"].items()
            },
        }
    return {
        "noise": rounded(noise_of(seed)),
        "sizes": [int(size) for size in np.asarray(played.shards.mask).sum(axis=1)],
        "substrates": found,
    }


def run_task(config: Config, name: str, folder: Path, say: Say) -> list[Record]:
    """Tune, then measure the cells of a data set; finished ones are kept."""
    compiled = Compiled(config, name)
    found, terms = [], told(config, name)

    def cell(how: str, seed: int | None, title: str, make: Callable[[], Record]) -> Record:
        path = folder / f"{slug(name)}_{slug(how)}_{'tuning' if seed is None else seed}.json"
        named = {"data": name, "partition": how, "seed": seed}
        return kept(path, terms, named, make, say, f"{name}, {how}, {title}")

    for how in config.partitions:
        tuning = cell(how, None, "tuning", partial(best_rates, compiled, how))
        found.append(tuning)
        found += [
            cell(how, seed, f"seed {seed}", partial(measured, compiled, how, seed, tuning["tuned"]))
            for seed in range(config.seeds)
        ]
    return found
