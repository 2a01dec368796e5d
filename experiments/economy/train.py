"""Run the experiment: ``python -m experiments.economy.train --out DIR [--smoke]``."""

import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import jax
import numpy as np

from experiments.arguments import asked
from experiments.benchmarks.timing import machine
from experiments.economy import analysis
from experiments.economy.agents import CAPACITY, Scenario, World, make_world, scenarios
from experiments.economy.analysis import Outcome, Record
from experiments.economy.config import FULL, SMOKE, Config
from experiments.economy.figures import draw_figures
from experiments.economy.settling import credits_of, settle, settle_in_ledger, share_rules, totals
from experiments.economy.tables import write_tables
from experiments.economy.training import SCREENS, row_cosines, trainer
from experiments.expected import tell
from experiments.pages import say, write_records
from vcca_jax.duplicates import near_duplicates

COUNTED = ("honest", "size liar", "jittering liar")
"""Scenarios in which distinct rows are counted."""


def train(config: Config, table: dict[str, Scenario]) -> dict[str, Outcome]:
    """Train every scenario once, all seeds together, by one compiled program.

    Raises:
        RuntimeError: a scenario is of another shape, so that the program was compiled again.
    """
    program = trainer(config)
    cosines = jax.jit(partial(row_cosines, config))
    seeds = range(config.first_seed, config.first_seed + config.seeds)
    outcomes = {}
    for name, scenario in table.items():
        worlds = [make_world(config, scenario, seed) for seed in seeds]
        together = jax.tree.map(lambda *each: np.stack(each), *worlds)
        sums = program(together, np.int32(list(SCREENS).index(scenario.screen)))
        outcomes[name] = Outcome(
            together.active,
            {k: np.asarray(v) for k, v in sums._asdict().items()},
            distinct_shares(config, worlds, cosines) if name in COUNTED else None,
        )
        say(f"trained {name}")
    return outcomes


def distinct_shares(
    config: Config, worlds: Sequence[World], cosines: Callable[[World], jax.Array]
) -> np.ndarray:
    """[R, A], distinct rows over rows sent; 1 for an agent that sent none."""
    shares = np.ones((len(worlds), CAPACITY))
    for seed, world in enumerate(worlds):
        for slot, each in enumerate(np.asarray(cosines(world))):
            sent = int(world.shards.mask[slot].sum())
            if sent:
                groups = near_duplicates(each[:sent, :sent], config.row_threshold)
                shares[seed, slot] = (sent - sum(len(g) - 1 for g in groups)) / sent
    return shares


def save(outcomes: dict[str, Outcome], path: Path) -> None:
    """Keep what was trained, so that it can be settled again under other rules."""
    arrays = {}
    for name, (active, sums, distinct) in outcomes.items():
        arrays |= {f"{name}/sums/{field}": array for field, array in sums.items()}
        arrays[f"{name}/active"] = active
        if distinct is not None:
            arrays[f"{name}/distinct"] = distinct
    np.savez_compressed(path, **arrays)


def load(path: Path) -> dict[str, Outcome]:
    """Read what ``save`` wrote."""
    with np.load(path) as file:
        names = dict.fromkeys(key.split("/")[0] for key in file)
        return {
            name: Outcome(
                file[f"{name}/active"],
                {key.split("/")[2]: file[key] for key in file if key.startswith(f"{name}/sums/")},
                file.get(f"{name}/distinct"),
            )
            for name in names
        }


def check_ledger(config: Config, outcome: Outcome, folder: Path) -> int:
    """Settle seed 0 of a scenario in a ledger under every rule; return in how many it agrees."""
    credits = credits_of(
        outcome.sums["credits"][0, :, 0], outcome.sums["gain"][0], outcome.active[0], range(99)
    )
    agree = 0
    for name, rule in share_rules(config).items():
        path = folder / f"{name.replace(' ', '_')}.sqlite"
        path.unlink(missing_ok=True)
        booked = settle_in_ledger(str(path), rule, credits, config.revenue)
        paid = totals(settle(rule, credits, config.revenue))
        agree += {p: v for p, v in booked.items() if v} == {p: v for p, v in paid.items() if v}
    return agree


def write(
    config: Config, table: dict[str, Scenario], outcomes: dict[str, Outcome], out: Path
) -> Record:
    """Settle, and write ``results/`` and the ledgers into a folder; return the summary so far."""
    results, ledgers = out / "results", out / "ledgers"
    for folder in (results, ledgers):
        folder.mkdir(parents=True, exist_ok=True)
    write_records(results, "gains", analysis.gains(config, table, outcomes, say))
    write_records(results, "duplicates", analysis.duplicate_records(config, table, outcomes))
    write_records(results, "rows", analysis.row_records(table, outcomes))
    honest = outcomes["honest"]
    write_records(results, "estimators", analysis.estimator_records(config, honest))
    write_records(results, "periods", analysis.period_records(config, honest))
    write_records(results, "values", analysis.value_records(config, table, outcomes))
    write_records(results, "payouts", analysis.payout_records(config, outcomes["mixed"]))
    agree = check_ledger(config, outcomes["mixed"], ledgers)
    return {"config": config._asdict(), "ledgers_that_agree": [agree, len(share_rules(config))]}


def run(config: Config, out: Path) -> None:
    """Train (or take what ``out`` holds from before), settle, draw, and print the tables."""
    table = scenarios(config)
    kept, results = out / "trained.npz", out / "results"
    results.mkdir(parents=True, exist_ok=True)
    path = results / "summary.json"
    summary = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    begun = time.perf_counter()
    if kept.exists() and summary.get("config") == config._asdict():
        outcomes = load(kept)
        say(f"settling what {kept} holds")
    else:
        outcomes = train(config, table)
        save(outcomes, kept)
        summary = {"seconds": {"training": round(time.perf_counter() - begun, 1)}}
        summary |= {"config": config._asdict(), "machine": machine()}
        path.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    trained = time.perf_counter()
    summary |= write(config, table, outcomes, out)
    summary["seconds"]["settling"] = round(time.perf_counter() - trained, 1)
    path.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    draw_figures(results, out / "figures")
    print(write_tables(results))


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and run; compare a full run with what is expected of it."""
    config, out = asked(
        arguments, __doc__, FULL, SMOKE, "the same in seconds, to test it", parts=None
    )
    run(config, out)
    if config == FULL:
        tell("economy", out / "results")


if __name__ == "__main__":
    main()
