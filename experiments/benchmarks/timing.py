"""Timing side by side: every candidate once a round, so a busy machine slows all alike."""

import argparse
import functools
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from experiments.benchmarks.headlines import regressions, told, values
from vcca_jax.trainer import Trainer


def rounds(
    candidates: Mapping[str, Callable[[], Any]], count: int, *, repeats: int = 1
) -> dict[str, list[float]]:
    """Seconds a call, one entry a round; the first call of each (compilation) is not counted.

    Args:
        candidates: functions whose result is waited for.
        count: rounds.
        repeats: calls that one entry averages over, for short functions.
    """
    for call in candidates.values():
        jax.block_until_ready(call())
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(count):
        for name, call in candidates.items():
            begun = time.perf_counter()
            for _ in range(repeats):
                jax.block_until_ready(call())
            seconds[name].append((time.perf_counter() - begun) / repeats)
    return seconds


def ratio(seconds: Mapping[str, list[float]], name: str, reference: str) -> float:
    """Median over rounds of one candidate's time over the reference's in the same round."""
    pairs = zip(seconds[name], seconds[reference], strict=True)
    return statistics.median(ours / theirs for ours, theirs in pairs)


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    return {
        "cores": os.cpu_count(),
        "processor": platform.machine(),
        "device": jax.devices()[0].device_kind,
        "python": platform.python_version(),
        "jax": jax.__version__,
    }


def arguments(description: str, *, rounds: int | None = None) -> argparse.ArgumentParser:
    """The command line that every benchmark has; with ``rounds``, how many there are by default."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--out", type=Path, help="where to write the numbers, as JSON")
    if rounds is not None:
        parser.add_argument("--rounds", type=int, default=rounds)
    return parser


def stepper(trainer: Trainer, params: Any, batch: Any) -> tuple[Callable[[], Any], float]:
    """A jitted step with donated state that keeps its own state, as a training loop would.

    Returns:
        The step as a call without arguments, and the compiler's account of its temporaries, in
        bytes.
    """
    # Donation must not take the caller's parameters with it.
    kept = [jax.jit(trainer.init)(params)]
    step = jax.jit(trainer.step, donate_argnums=0)
    memory = step.lower(kept[0], batch).compile().memory_analysis()

    def call() -> Any:
        kept[0], info = step(kept[0], batch)
        return info, jax.tree.leaves(kept[0])[0]

    return call, memory.temp_size_in_bytes


@functools.cache
def _before(path: Path) -> dict[str, float]:
    """Headlines of the run that a file holds when it is first asked for, before one writes it."""
    try:
        return values(path.stem, json.loads(path.read_text()))
    except (OSError, ValueError):
        return {}


def keep(path: Path | None, **content: Any) -> None:
    """Write what was measured, with the machine it was measured on, if a path is given.

    What the file there has for headlines is kept beside them, as "before", and those that got worse
    are told on standard error; nothing fails.
    """
    if path is None:
        return
    before = _before(path)
    for worse in regressions(path.stem, before, values(path.stem, content)):
        print(f"worse than before: {told(worse)}", file=sys.stderr)
    kept = {"machine": machine(), **({"before": before} if before else {}), **content}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(kept, indent=2) + "\n")
