"""Retraining without some agents in PyTorch, as a loop over coalitions and side by side.

A stand-alone script for an interpreter that has ``torch==2.13.0``; it needs nothing of this
project. ``experiments.benchmarks.credit`` writes the data, starts it and reads the last line of its
output.

    python pytorch.py FOLDER --rate 0.5 --seconds 2

A worth is that of ``credit``: a perceptron with relus is trained by plain gradient descent on the
members' terms of every virtual batch, divided by all the batch's samples, and the negative mean
cross entropy on unseen rows is what it is worth. Four forms of it, each under one thread and under
all of them, for models of this size are often quicker on one: a loop with ``autograd``, one with
gradients by hand and no graph, all coalitions of a chunk side by side by ``torch.func.vmap``, and a
loop whose step is compiled (left out where there is no compiler).
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

CHUNKS = (64, 256)

Params = list[torch.Tensor]


def read(folder: Path) -> tuple[dict[str, torch.Tensor], Params]:
    """The arrays of the folder, and the initial kernels and biases in turn."""
    held = {path.stem: torch.from_numpy(np.load(path)) for path in folder.glob("*.npy")}
    start = [held.pop(name) for name in sorted(name for name in held if name[:5] == "layer")]
    for name in ("targets", "owners", "labels"):
        held[name] = held[name].long()
    return held, start


def outputs(params: Params, inputs: torch.Tensor) -> torch.Tensor:
    for place in range(0, len(params), 2):
        inputs = inputs @ params[place] + params[place + 1]
        if place + 2 < len(params):
            inputs = torch.relu(inputs)
    return inputs


def losses(params: Params, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(outputs(params, inputs), targets, reduction="none")


class Worth:
    """The four forms, on one folder."""

    def __init__(self, held: dict[str, torch.Tensor], start: Params, rate: float) -> None:
        self.held, self.start, self.rate = held, start, rate
        self.steps = list(zip(held["inputs"], held["targets"], strict=True))
        # A member's terms are divided by all the samples of the batch.
        mask = held["mask"].float()
        self.shares = mask / mask.sum(dim=1, keepdim=True)
        self.compiled: Any = None

    def judged(self, params: Params) -> torch.Tensor:
        with torch.no_grad():
            return -losses(params, self.held["unseen"], self.held["labels"]).mean()

    def weights(self, members: torch.Tensor) -> torch.Tensor:
        """[T, B], of every sample's loss."""
        return members.float()[self.held["owners"]] * self.shares

    def loop(self, members: torch.Tensor) -> torch.Tensor:
        params = [each.clone().requires_grad_() for each in self.start]
        for (inputs, targets), own in zip(self.steps, self.weights(members), strict=True):
            slopes = torch.autograd.grad((losses(params, inputs, targets) * own).sum(), params)
            with torch.no_grad():
                for each, slope in zip(params, slopes, strict=True):
                    each -= self.rate * slope
        return self.judged(params)

    @torch.no_grad()
    def by_hand(self, members: torch.Tensor) -> torch.Tensor:
        params = [each.clone() for each in self.start]
        for (inputs, targets), own in zip(self.steps, self.weights(members), strict=True):
            layers = [inputs]
            for place in range(0, len(params), 2):
                layers.append(torch.addmm(params[place + 1], layers[-1], params[place]))
                if place + 2 < len(params):
                    layers[-1].relu_()
            errors = torch.softmax(layers.pop(), dim=1)
            errors[torch.arange(len(targets)), targets] -= 1
            errors *= own[:, None] * self.rate
            for place in range(len(params) - 2, -1, -2):
                below = errors @ params[place].T * (layers[-1] > 0) if place else None
                params[place].addmm_(layers.pop().T, errors, alpha=-1)
                params[place + 1] -= errors.sum(dim=0)
                if below is not None:
                    errors = below
        return self.judged(params)

    def stepped(
        self, params: Params, inputs: torch.Tensor, targets: torch.Tensor, own: torch.Tensor
    ) -> Params:
        def loss(at: Params) -> torch.Tensor:
            return (losses(at, inputs, targets) * own).sum()

        slopes = torch.func.grad(loss)(params)
        return [each - self.rate * slope for each, slope in zip(params, slopes, strict=True)]

    def side_by_side(self, members: torch.Tensor) -> torch.Tensor:
        def one(own: torch.Tensor) -> torch.Tensor:
            params = self.start
            for (inputs, targets), row in zip(self.steps, own, strict=True):
                params = self.stepped(params, inputs, targets, row)
            return -losses(params, self.held["unseen"], self.held["labels"]).mean()

        own = members.float()[:, self.held["owners"]] * self.shares
        with torch.no_grad():
            return torch.func.vmap(one)(own)

    def with_compiled_step(self, members: torch.Tensor) -> torch.Tensor:
        if self.compiled is None:
            self.compiled = torch.compile(self.stepped)
        params = self.start
        for (inputs, targets), own in zip(self.steps, self.weights(members), strict=True):
            params = self.compiled(params, inputs, targets, own)
        return self.judged(params)


def timed(call: Callable[[], Any], seconds: float) -> tuple[float, float]:
    """Seconds of the first call, and the median of as many as fit in the time, three at least."""
    begun = time.perf_counter()
    call()
    first = time.perf_counter() - begun
    found: list[float] = []
    while len(found) < 3 or sum(found) < seconds:
        begun = time.perf_counter()
        call()
        found.append(time.perf_counter() - begun)
    return first, statistics.median(found)


def measured(worth: Worth, members: torch.Tensor, seconds: float) -> list[dict[str, Any]]:
    """Milliseconds a worth, of every form, chunk and number of threads."""
    few = members[: min(8, len(members))]
    forms: list[tuple[str, int, Callable[[], Any]]] = [
        ("a loop", len(few), lambda: [worth.loop(row) for row in few]),
        ("a loop, by hand", len(few), lambda: [worth.by_hand(row) for row in few]),
        ("a loop, compiled step", len(few), lambda: [worth.with_compiled_step(row) for row in few]),
    ]
    for chunk in CHUNKS:
        repeated = members[torch.arange(chunk) % len(members)]
        forms.append(
            (f"side by side, {chunk}", chunk, lambda rows=repeated: worth.side_by_side(rows))
        )
    results = []
    for threads in sorted({1, torch.get_num_threads()}):
        torch.set_num_threads(threads)
        for name, count, call in forms:
            try:
                first, median = timed(call, seconds)
            except Exception as error:  # no C++ compiler, say: the others stand
                results.append({"form": name, "threads": threads, "failed": str(error)[:200]})
                continue
            entry = {"form": name, "threads": threads, "milliseconds": 1e3 * median / count}
            results.append({**entry, "first_call_seconds": first})
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each form")
    options = parser.parse_args()
    held, start = read(options.folder)
    worth, members = Worth(held, start, options.rate), held["members"]
    worths = {
        "a loop": [float(worth.loop(row)) for row in members],
        "by hand": [float(worth.by_hand(row)) for row in members],
        "side by side": worth.side_by_side(members).tolist(),
    }
    times = measured(worth, members, options.seconds)
    print(json.dumps({"times": times, "worths": worths, "versions": {"torch": torch.__version__}}))


if __name__ == "__main__":
    main()
