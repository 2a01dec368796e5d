"""Each agent's samples in a file of their own, so that a process can open its own agents' only."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import vcca_jax as vcca
from vcca_jax.datasets import digits
from vcca_jax.runs.records import write_text

AGENTS = 16
VALIDATION, VALUES = 300, 150


class HeldOut(NamedTuple):
    """Rows that no agent trains on, known to every process."""

    validation: tuple[np.ndarray, np.ndarray]
    values: tuple[np.ndarray, np.ndarray]


def prepare(folder: Path) -> None:
    """Deal scikit-learn's digits out to agents' files, unevenly by class; done once."""
    if (folder / "public.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    inputs, targets = digits()
    order = np.random.default_rng(0).permutation(len(targets))
    held, rest = order[: VALIDATION + VALUES], order[VALIDATION + VALUES :]
    shards = vcca.partition.dirichlet(inputs[rest], targets[rest], AGENTS, alpha=1.0, seed=0)
    for agent, (own_inputs, own_targets) in enumerate(shards):
        np.savez(_path(folder, agent), inputs=own_inputs, targets=own_targets)
    np.savez(folder / "held_out.npz", inputs=inputs[held], targets=targets[held])
    longest = max(len(own_targets) for _, own_targets in shards)
    write_text(folder / "public.json", json.dumps({"sample_capacity": longest}) + "\n")


def own_agents(folder: Path, process: int, processes: int) -> vcca.Cooperative:
    """This process's A / P agents, from their files alone."""
    public: dict[str, Any] = json.loads((folder / "public.json").read_text(encoding="utf-8"))
    count = AGENTS // processes
    slots = range(process * count, (process + 1) * count)
    shards = []
    for agent in slots:
        with np.load(_path(folder, agent)) as file:
            shards.append((file["inputs"], file["targets"]))
    return vcca.cooperative(
        shards,
        names=[f"agent {agent:02d}" for agent in slots],
        sample_capacity=public["sample_capacity"],
        classes=10,
    )


def held_out(folder: Path) -> HeldOut:
    """Validation rows, and the rows of the value losses."""
    with np.load(folder / "held_out.npz") as file:
        inputs, targets = file["inputs"], file["targets"]
    first = slice(VALIDATION)
    return HeldOut((inputs[first], targets[first]), (inputs[VALIDATION:], targets[VALIDATION:]))


def _path(folder: Path, agent: int) -> Path:
    return folder / f"agent_{agent:02d}.npz"
