"""What does first-order credit of every sample cost over a plain step, beside GhostSuite's engine?

In-run data Shapley of order 1 is an inner product of every sample's gradient with the validation
gradient. GhostSuite's engine finds it in one pass over batch and held-out rows, as ours does. Each
side's step with credit is measured over that side's own plain step, on the same arrays, perceptrons
from the same parameters: what is compared is what credit adds, not PyTorch with XLA. Ours by agent
(64 of them) and by sample; theirs by sample, in each of its modes, and with products in float32
instead of the bfloat16 that it casts to. The turns of both sides take turns.

    python -m experiments.benchmarks.in_run [--smoke] [--out in_run.json]
        --ghostsuite FOLDER --torch-python PYTHON

PYTHON is an interpreter that has ``torch==2.13.0`` and ``transformers==4.54.1``, FOLDER a copy of
GhostSuite (commit b1a3524); without them ours is measured alone.

Predicted before measuring: ours 1.1 to 1.3, as in *The whole step in one pass*, and the same by
sample as by agent; theirs 1.6 to 2.5 on the perceptron, where hooks, a second computation of every
weight gradient by einsum and products in bfloat16, which a CPU may emulate, meet a step of a
millisecond or two; 1.5 on the transformer, far from the 1.08 published for wide language models on
an accelerator, since nothing here is wide. With weights aside a tenth less.
"""

import os
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import vcca_jax as vcca
from experiments.benchmarks.one_pass import Setting
from experiments.benchmarks.peers import named, peer, write
from experiments.benchmarks.timing import arguments, keep, ratio, rounds, stepper

Peers = tuple[Path, Path, list[int]]
TURNS = 3


def by_sample(given: Setting, optimizer: optax.GradientTransformation) -> vcca.Trainer:
    """Traversal with first-order credit of every sample of the batch, and nothing else."""

    def init(params: Any) -> Any:
        return params, optimizer.init(params)

    def step(state: Any, batch: vcca.VirtualBatch) -> tuple[Any, Any]:
        params, memory = state
        seen = vcca.shared_pass(given.loss_fn, params, batch, [given.validation])
        utility = vcca.one_step_utility(
            params,
            memory,
            seen.gradients,
            optimizer,
            given.validation,
            validation_row=seen.rows,
        )
        weights = jnp.ones(batch.active.shape)
        updates, memory = optimizer.update(seen.gradients.sum(weights), memory, params)
        credits = utility.examples(weights, batch.owners)
        return (optax.apply_updates(params, updates), memory), credits

    return vcca.Trainer(init, step)


def arrays(given: Setting) -> dict[str, Any]:
    """What the peer's script reads: the batch, the held-out rows and a perceptron's parameters."""
    (unseen, labels), *_ = given.validation.examples
    held = {
        "inputs": given.batch.inputs,
        "targets": given.batch.targets,
        "unseen": unseen,
        "labels": labels,
    }
    if not jnp.issubdtype(given.batch.inputs.dtype, jnp.integer):
        layers = [
            (layer["kernel"], layer["bias"])
            for part in ("body", "head")
            for _, layer in sorted(given.params[part]["params"].items())
        ]
        held |= named(layers)
    return held


def measure(
    name: str, batch_size: int, rows: int, smoke: bool, count: int, peers: Peers | None
) -> dict[str, Any]:
    given = Setting(name, batch_size, 4 if smoke else 64, rows, smoke)
    descent = optax.sgd(0.1, momentum=0.9)
    trainers = {
        "plain": vcca.centralized(given.loss_fn, descent),
        "by agent": given.in_run(descent),
        "by sample": by_sample(given, descent),
    }
    calls = {key: stepper(each, given.params, given.batch)[0] for key, each in trainers.items()}
    start = trainers["by sample"].init(given.params)
    credits = np.asarray(jax.jit(trainers["by sample"].step)(start, given.batch)[1])
    ratios: dict[str, list[float]] = {}
    milliseconds: dict[str, list[float]] = {}
    told: dict[str, Any] = {}
    load = []
    with tempfile.TemporaryDirectory() as path:
        folder = Path(path)
        write(folder, arrays(given))
        for _ in range(1 if smoke else TURNS):
            load.append(os.getloadavg()[0])
            seconds = rounds(calls, count)
            for key in calls:
                ratios.setdefault(key, []).append(ratio(seconds, key, "plain"))
                milliseconds.setdefault(key, []).append(1e3 * float(np.median(seconds[key])))
            if peers is None:
                continue
            python, ghostsuite, several = peers
            for threads in several:
                flags = ("--ghostsuite", ghostsuite, "--threads", threads, "--rounds", count)
                told = peer(python, "ghost.py", folder, *flags, "--width", 8 if smoke else 64)
                for key, each in told["ratio"].items():
                    kind = f"GhostSuite, {key}, threads {threads}"
                    ratios.setdefault(kind, []).append(each)
                    milliseconds.setdefault(kind, []).append(told["milliseconds"][key])
    result: dict[str, Any] = {
        "model": name,
        "batch": batch_size,
        "held_out": rows,
        "ratio": {key: float(np.median(each)) for key, each in ratios.items()},
        "milliseconds": {key: float(np.median(each)) for key, each in milliseconds.items()},
        "load": load,
    }
    theirs = [each for key, each in result["ratio"].items() if "ghost" in key]
    if theirs:
        result["their_best"] = min(theirs)
        result["failed"], result["versions"] = told["failed"], told["versions"]
        if name == "perceptron":
            result["pearson_of_credits"] = {
                key: float(np.corrcoef(credits, each)[0, 1])
                for key, each in told["products"].items()
            }
    return result


def main() -> None:
    parser = arguments(__doc__, rounds=15)
    parser.add_argument("--ghostsuite", type=Path, help="a folder that holds GhostSuite")
    parser.add_argument("--torch-python", type=Path, help="an interpreter for it")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="of its processes")
    options = parser.parse_args()
    peers = None
    if options.ghostsuite and options.torch_python:
        peers = (options.torch_python, options.ghostsuite, options.threads)
    sizes = [("perceptron", 128, 6), ("perceptron", 512, 25), ("transformer", 64, 3)]
    if options.smoke:
        sizes = [("perceptron", 16, 2)]
    count = 2 if options.smoke else options.rounds
    results = []
    for name, batch_size, rows in sizes:
        results.append(measure(name, batch_size, rows, options.smoke, count, peers))
        print(results[-1], flush=True)
        keep(options.out, results=results)


if __name__ == "__main__":
    main()
