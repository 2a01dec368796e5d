"""How fast is an epoch of traversal beside the authors' own code for Traversal Learning?

Their network (784-256-128-64-10 without activations, cut after the second layer), their optimizer
(Adadelta), their plan of virtual batches, 2048 random samples in batches of 256; all from the same
initial parameters. Theirs in two forms (``peers/traversal_learning.py``): its processes on loopback
with every sleep and every log line removed, and its functions called in one process, one node after
another. Ours is an epoch as one compiled scan: all bodies together, and visit by visit. Beside them
a plain PyTorch loop on pooled data. Parameters after an epoch are compared with ours.

    python -m experiments.benchmarks.authors [--smoke] [--out authors.json]
        --code FOLDER --torch-python PYTHON

PYTHON is an interpreter that has ``torch==2.13.0``, FOLDER a copy of the code published with
arXiv:2504.07471 (its README says MIT; commit b4a3dd2). The code published with TL++
(arXiv:2606.25627) is under a licence that forbids its use, so it is not run here.

Predicted before measuring: against the loopback 100 times and more with 4 nodes, since every step
sends 245,000 parameters and as many gradients to every node and back, pickled and compressed; in
one process 5 to 10 times with 4 nodes, 8 to 15 with 8 and 30 with 32, since a node's step pads its
activations to the whole batch and multiplies matrices of B rows; the pooled PyTorch loop within
twice ours.
"""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

import vcca_jax as vcca
from experiments.benchmarks.peers import named, peer, write
from experiments.benchmarks.timing import arguments, keep, rounds
from vcca_jax.epochs import scan_steps

FORMS = ["inside", "centralized", "loopback"]
Peers = tuple[Path, Path, list[int]]
HIDDEN, FEATURES, CLASSES, TURNS = (256, 128, 64), 784, 10, 2
CRITERION = optax.softmax_cross_entropy_with_integer_labels


def published_order(samples: int) -> np.ndarray:
    """The order of all samples: NumPy's shuffle from seed 1, the same every epoch."""
    order = np.arange(samples)
    np.random.RandomState(1).shuffle(order)
    return order


def published_plan(samples: int, agents: int, size: int) -> vcca.TraversalPlan:
    """Batches in turn of that order, each sorted; agents hold equal runs of samples."""
    batches = np.sort(published_order(samples).reshape(-1, size), axis=1)
    owners, rows = np.divmod(batches, samples // agents)
    return vcca.TraversalPlan(
        owners.astype(np.int32), rows.astype(np.int32), np.ones(batches.shape, bool)
    )


def layers_of(params: Any) -> list[tuple[Any, Any]]:
    """Kernels and biases of body and head, in turn."""
    return [
        (layer["kernel"], layer["bias"])
        for part in ("body", "head")
        for _, layer in sorted(params[part]["params"].items())
    ]


def measure(
    agents: int,
    samples: int,
    size: int,
    count: int,
    peers: tuple[Path, Path] | None,
    chosen: list[str],
) -> dict[str, Any]:
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(samples, FEATURES)).astype(np.float32)
    targets = generator.integers(0, CLASSES, samples).astype(np.int32)
    model = vcca.mlp(FEATURES, HIDDEN, CLASSES, cut=2, activation=lambda each: each)
    params = jax.jit(model.init)(jax.random.key(0))
    parts = zip(np.split(inputs, agents), np.split(targets, agents), strict=True)
    members = vcca.cooperative(list(parts))
    plan = published_plan(samples, agents, size)
    shards = jax.device_put(members.shards)
    optimizer = optax.adadelta(1.0, rho=0.9, eps=1e-6)

    def compiled(method: Any) -> Callable[[], Any]:
        trainer = vcca.split_traversal(model, CRITERION, optimizer, method=method)
        run = jax.jit(lambda state: scan_steps(trainer, state, shards, plan)[0])
        state = jax.jit(trainer.init)(params)
        return lambda: run(state).params

    calls = {"together": compiled("together"), "scanned": compiled("scanned")}
    ends = [np.asarray(each) for pair in layers_of(calls["together"]()) for each in pair]
    found: dict[str, list[float]] = {}
    apart: dict[str, float] = {}
    versions: dict[str, str] = {}
    load = []
    forms = [form for form in FORMS if form in chosen and (form != "loopback" or agents <= 8)]
    with tempfile.TemporaryDirectory() as path:
        folder = Path(path)
        held = {"inputs": inputs, "targets": targets, "order": published_order(samples)}
        write(folder, {**held, **named(layers_of(params))})
        for turn in range(TURNS if count > 2 else 1):
            load.append(os.getloadavg()[0])
            for key, seconds in rounds(calls, count).items():
                found.setdefault(key, []).append(1e3 * float(np.median(seconds)))
            if peers is None:
                continue
            code, python, several = peers
            # The loopback takes as long as all others; once will do.
            for form in [form for form in forms if turn == 0 or form != "loopback"]:
                # A node a process, of which there are more than cores, is better off with a thread.
                for threads in (1,) if form == "loopback" else several:
                    flags = ("--agents", agents, "--batch", size, "--steps", len(plan.mask))
                    flags += ("--threads", threads, "--form", form, "--code", code)
                    told = peer(python, "traversal_learning.py", folder, *flags)
                    kind = f"{form}, threads {threads}"
                    found.setdefault(kind, []).append(1e3 * float(np.median(told["seconds"])))
                    theirs = [np.load(each) for each in sorted(folder.glob("end_*.npy"))]
                    gaps = [np.abs(a - b).max() for a, b in zip(ends, theirs, strict=True)]
                    apart[kind] = float(max(gaps))
                    versions["torch"] = told["torch"]
    times = {key: float(np.median(each)) for key, each in found.items()}
    return {
        "agents": agents,
        "steps": len(plan.mask),
        "milliseconds": times,
        "times_ours": {key: each / times["together"] for key, each in times.items()},
        "parameters_apart": apart,
        "versions": versions,
        "load": load,
    }


def main() -> None:
    parser = arguments(__doc__, rounds=15)
    parser.add_argument("--code", type=Path, help="a folder that holds the authors' code")
    parser.add_argument("--torch-python", type=Path, help="an interpreter for it")
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=FORMS, help="of its code")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="of its processes")
    options = parser.parse_args()
    peers = None
    if options.code and options.torch_python:
        peers = (options.code, options.torch_python, options.threads)
    count = 2 if options.smoke else options.rounds
    samples, size = (64, 32) if options.smoke else (2048, 256)
    results = []
    for agents in (2,) if options.smoke else (4, 8, 32):
        results.append(measure(agents, samples, size, count, peers, options.forms))
        print(results[-1], flush=True)
        keep(options.out, results=results)


if __name__ == "__main__":
    main()
