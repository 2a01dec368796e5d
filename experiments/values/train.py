"""Run the experiment: ``python -m experiments.values.train --out DIR [--smoke]``."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.arguments import asked
from experiments.benchmarks.timing import machine
from experiments.expected import tell
from experiments.pages import say, write_records
from experiments.values import analysis
from experiments.values.analysis import Record
from experiments.values.config import FULL, SMOKE, Config
from experiments.values.figures import draw_figures
from experiments.values.settings import SETTINGS, size_of
from experiments.values.sweeps import STEPS, measured_steps
from experiments.values.tables import write_tables
from experiments.values.training import (
    COMPILE_FAST,
    SCREENS,
    Condition,
    Traced,
    conditions,
    prepared,
    program,
    switches,
)
from vcca_jax.runs.records import write_json, write_text

FILES = ("finals", "values", "epochs", "screened_by", "steps")
DRAWN = ("unscreened", "own", "everyone", "verified", "few rows", "few rows, drawn anew")
PRICED = "opportunity gap"


def run_setting(config: Config, setting: str) -> dict[str, Any]:
    """Every condition of a setting and its sweeps, as records by the name of their file."""
    begun = time.perf_counter()
    problem, size = SETTINGS[setting](config), size_of(config, setting)
    table = conditions(config.counts, config.few, problem.order)
    if config.conditions is not None:
        table = {name: table[name] for name in config.conditions}
    needed = {(each.way.method, each.way.scope) for each in table.values()}
    screens = [screen for screen in SCREENS if screen in needed]
    run = jax.jit(program(problem, size, screens), compiler_options=COMPILE_FAST)
    kept: dict[str, list[Record]] = {name: [] for name in FILES}
    everyone: Any = None

    def traced(name: str, condition: Condition, run: Any, way: Any) -> Traced:
        found = jax.tree.map(np.asarray, run(*prepared(problem, size, condition), way))
        kept["finals"] += analysis.final_records(setting, name, problem, found)
        kept["values"] += analysis.value_records(setting, name, problem, found)
        if name in DRAWN:
            kept["epochs"] += analysis.epoch_records(setting, name, problem, found)
        say(f"{setting}: {name}")
        return found

    for name, condition in table.items():
        found = traced(name, condition, run, switches(condition.way, screens))
        if name == "everyone":
            kept["screened_by"] += analysis.by_records(setting, problem, found)
            everyone = found
    if PRICED in problem.values.names and config.prices:
        priced = jax.jit(program(problem, size, SCREENS[:1]), compiler_options=COMPILE_FAST)
        for price in config.prices:
            condition = Condition(price=(PRICED, price))
            traced(f"price {price:g}", condition, priced, switches(condition.way))
    early = jax.tree.map(lambda leaf: leaf[:, size.epochs // 3], everyone.params)
    data, _ = prepared(problem, size, Condition())
    rises = measured_steps(problem, data, early, config.etas)
    kept["steps"] += analysis.step_records(setting, config.etas, rises, STEPS)
    say(f"{setting}: single steps")
    return {"seconds": round(time.perf_counter() - begun, 1), **kept}


def plain(value: Any) -> Any:
    """As JSON gives it back, with what is infinite as text."""
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return str(value) if value == float("inf") else value


def run(config: Config, out: Path) -> None:
    """Run the settings that ``out`` does not hold yet; write results, figures and tables."""
    results, told = out / "results", plain(config._asdict())
    del told["settings"]
    results.mkdir(parents=True, exist_ok=True)
    found = {}
    for setting in config.settings:
        path = out / f"{setting}.json"
        held = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if held.get("config") != told:
            held = {"config": told, "machine": machine(), **run_setting(config, setting)}
            write_text(path, json.dumps(held, allow_nan=False) + "\n")
        else:
            say(f"{setting}: kept from before")
        found[setting] = held
    for name in FILES:
        write_records(results, name, (r for each in found.values() for r in each[name]))
    summary = {
        "config": told,
        "machine": found[config.settings[0]]["machine"],
        "seconds": {setting: each["seconds"] for setting, each in found.items()},
    }
    write_json(results / "summary.json", summary)
    draw_figures(results, out / "figures")
    print(write_tables(results))


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and run; compare a full run with what is expected of it."""
    config, out = asked(arguments, __doc__, FULL, SMOKE, "the hospitals alone", parts="settings")
    run(config, out)
    if config == FULL:
        tell("values", out / "results")


if __name__ == "__main__":
    main()
