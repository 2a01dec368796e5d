"""The same work in other frameworks, each a script for an environment of its own."""

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

LIMIT = 580
"""Seconds that one run of a peer may take."""


def write(folder: Path, arrays: Mapping[str, Any]) -> None:
    """The arrays that a script reads, one file each."""
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", np.asarray(array))


def named(layers: Any, prefix: str = "layer") -> dict[str, np.ndarray]:
    """Kernels and biases in turn, under names that sort in their order."""
    flat = [each for pair in layers for each in pair]
    return {f"{prefix}_{place:02d}": np.asarray(each) for place, each in enumerate(flat)}


def peer(python: Path, script: str, folder: Path, *flags: object) -> dict[str, Any]:
    """Run a peer's script; the last line it prints."""
    path = Path(__file__).parent / script
    command = [str(each) for each in (python, path, folder, *flags)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False)
    if done.returncode:
        raise RuntimeError(f"command={command} failed; it said:\n{done.stderr[-4000:]}")
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told
