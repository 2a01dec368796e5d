"""Agents' scores by dattri's attributors, on parameters that were trained elsewhere.

A stand-alone script for an interpreter that has ``dattri==0.3.0`` and ``torch==2.13.0``; it needs
nothing of this project. ``experiments.benchmarks.credit`` writes the data, starts it and reads the
last line of its output.

    python dattri_scores.py FOLDER --damping 0.01

The target is the mean loss on all unseen rows, given as a single test point, the cheapest form: one
system is solved instead of one a row. An agent's score is the sum over its rows, divided by the
number of all rows. Every attributor is run twice and the second time is told.
"""

import argparse
import json
import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Before the imports, which read it.
os.environ["TQDM_DISABLE"] = "1"

import numpy as np
import torch
from dattri.algorithm import influence_function
from dattri.algorithm.tracin import TracInAttributor
from dattri.task import AttributionTask
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

warnings.filterwarnings("ignore")

State = dict[str, torch.Tensor]

ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh}


def states(held: dict[str, np.ndarray], prefix: str) -> State:
    """Kernels and biases in turn as the state of linear layers, activations between."""
    flat = [torch.from_numpy(held[name]) for name in sorted(held) if name.startswith(prefix)]
    found = {}
    for place in range(0, len(flat), 2):
        found[f"{place}.weight"] = flat[place].T.contiguous()
        found[f"{place}.bias"] = flat[place + 1]
    return found


def perceptron(state: State, activation: str) -> nn.Sequential:
    weights = [each for name, each in state.items() if name.endswith("weight")]
    layers: list[nn.Module] = []
    for weight in weights:
        layers += [nn.Linear(weight.shape[1], weight.shape[0]), ACTIVATIONS[activation]()]
    model = nn.Sequential(*layers[:-1])
    model.load_state_dict(state)
    return model.eval()


def attributors(
    held: dict[str, np.ndarray], damping: float, activation: str
) -> dict[str, Callable[[], tuple[Any, bool]]]:
    """Each makes an attributor, and says whether it is to be given the training rows first."""
    final = states(held, "layer")
    names = sorted({name.rsplit("_", 1)[0] for name in held if name.startswith("check")})
    checkpoints = [states(held, name) for name in names]
    features = held["inputs"].shape[1]

    def loss(params: State, data: Any) -> torch.Tensor:
        inputs, targets = data
        found = torch.func.functional_call(model, params, (inputs.reshape(-1, features),))
        return nn.functional.cross_entropy(found, targets.reshape(-1))

    model = perceptron(final, activation)

    def task(given: Any) -> AttributionTask:
        # The very model of the loss, for some attributors look into its layers.
        return AttributionTask(loss, model, given)

    def along(given: list[State], normalized: bool) -> tuple[Any, bool]:
        found = TracInAttributor(task(given), torch.ones(len(given)), normalized_grad=normalized)
        # Unless it is taken away, a projection to 512 numbers costs time and accuracy.
        found.projector_kwargs = None
        return found, False

    solvers = influence_function
    options = {"regularization": damping}
    return {
        "explicit Hessian": lambda: (solvers.IFAttributorExplicit(task(final), **options), True),
        "conjugate gradients, 10": lambda: (solvers.IFAttributorCG(task(final), **options), True),
        "conjugate gradients, 100": lambda: (
            solvers.IFAttributorCG(task(final), max_iter=100, **options),
            True,
        ),
        "Arnoldi": lambda: (solvers.IFAttributorArnoldi(task(final), **options), True),
        "DataInf": lambda: (solvers.IFAttributorDataInf(task(final), **options), True),
        "EK-FAC": lambda: (solvers.IFAttributorEKFAC(task(final), damping=damping), True),
        "TracIn, 10 checkpoints": lambda: along(checkpoints, False),
        "gradient product at the end": lambda: along([final], False),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--damping", type=float, default=0.01)
    parser.add_argument("--activation", choices=ACTIVATIONS, default="relu")
    options = parser.parse_args()
    held = {path.stem: np.load(path) for path in options.folder.glob("*.npy")}
    owners = held["owners"].ravel().astype(int)
    agents, rows = owners.max() + 1, len(owners)
    inputs = torch.from_numpy(held["inputs"])
    train = TensorDataset(inputs, torch.from_numpy(held["targets"]).ravel().long())
    unseen = torch.from_numpy(held["unseen"])[None], torch.from_numpy(held["labels"]).long()[None]
    training = DataLoader(train, batch_size=rows)
    target = DataLoader(TensorDataset(*unseen), batch_size=1)
    found: dict[str, Any] = {}
    for name, make in attributors(held, options.damping, options.activation).items():
        try:
            for _ in range(2):
                begun = time.perf_counter()
                attributor, cached = make()
                if cached:
                    attributor.cache(training)
                scores = attributor.attribute(training, target)
                seconds = time.perf_counter() - begun
        except Exception as error:
            found[name] = {"failed": f"{type(error).__name__}: {error}"[:200]}
            continue
        if not torch.isfinite(scores).all():
            found[name] = {"failed": "scores that are not finite", "seconds": seconds}
            continue
        each = scores.detach().numpy().reshape(rows, -1).sum(axis=1)
        credits = np.bincount(owners, weights=each, minlength=agents) / rows
        found[name] = {"credits": credits.tolist(), "seconds": seconds}
    from importlib.metadata import version

    versions = {name: version(name) for name in ("dattri", "torch")}
    print(json.dumps({"scores": found, "versions": versions}))


if __name__ == "__main__":
    main()
