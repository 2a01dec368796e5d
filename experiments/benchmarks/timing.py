"""Timing side by side: every candidate once a round, so a busy machine slows all alike."""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax


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


def keep(path: Path | None, **content: Any) -> None:
    """Write what was measured, with the machine it was measured on, if a path is given."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"machine": machine(), **content}, indent=2) + "\n")
