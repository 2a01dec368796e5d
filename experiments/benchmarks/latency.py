"""How long until the first step is done, and what a program that was compiled before saves?

A process is started anew for every figure: it imports the library, makes a cooperative of 64
agents (perceptron 784-256-128-10, B = 512, four value losses of 51 rows, screen, first-order
credit), and runs an epoch of 16 steps in chunks of 8, as ``epoch_runner`` does.

cold     with an empty folder of compiled programs (``vcca_jax.compilation.keep_compiled``)
warm     with the folder that the cold process left
steady   a later epoch of the same process, by the step

    python -m experiments.benchmarks.latency [--smoke] [--out latency.json]

Predicted before measuring: import 1.5 s; cold 6 s from the call to the end of the first chunk,
four fifths of it compilation and one fifth tracing; warm a third of cold, since tracing and
lowering stay (about 1.5 s) and reading the program is quick; a steady step 15 ms, so that a cold
first chunk costs some 400 steps. One trace in each process.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from experiments.benchmarks.timing import arguments, keep

STEPS, CHUNK = 16, 8


def alone(folder: Path, smoke: bool) -> dict[str, Any]:
    """One process's figures, in seconds."""
    import jax

    import vcca_jax as vcca
    from experiments.benchmarks.traversal import problem, trainers
    from vcca_jax.compilation import keep_compiled
    from vcca_jax.epochs import as_given, epoch_runner

    keep_compiled(folder, least_seconds=0.0)
    agents, size, hidden = (4, 16, (8,)) if smoke else (64, 512, (256, 128))
    given = problem(agents, size, hidden)
    whole = trainers(given, agents, values=4, rows=max(size // 10, 1))["whole step"]
    traces = []

    def step(state: Any, batch: Any) -> Any:
        traces.append(1)
        return whole.step(state, batch)

    begun = time.perf_counter()
    state = jax.jit(whole.init)(jax.tree.map(np.asarray, given["params"]))
    jax.block_until_ready(state)
    started = time.perf_counter() - begun
    batches = jax.tree.map(lambda leaf: np.stack([leaf] * STEPS), given["batch"])
    run = epoch_runner(
        vcca.Trainer(whole.init, step), chunk=CHUNK, draw=as_given, keep=lambda info: info.credits
    )
    heard: list[float] = []
    begun = time.perf_counter()
    state, _ = run(state, None, batches, lambda *_: heard.append(time.perf_counter() - begun))
    later = []
    for _ in range(3):
        begun = time.perf_counter()
        state, _ = run(state, None, batches)
        later.append((time.perf_counter() - begun) / STEPS)
    return {
        "initial state": started,
        "first chunk": heard[0],
        "steady step": min(later),
        "traces": len(traces),
    }


def import_seconds() -> float:
    """Of the library and all that it needs, in a process of its own."""
    program = (
        "import time; t = time.perf_counter(); import vcca_jax; print(time.perf_counter() - t)"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    return float(done.stdout)


def in_process(folder: str, smoke: bool) -> dict[str, Any]:
    command = [sys.executable, "-m", __spec__.name, "--alone", folder]
    done = subprocess.run(command + ["--smoke"] * smoke, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def main() -> None:
    parser = arguments(__doc__, rounds=2)
    parser.add_argument("--alone", type=Path, help="be one of the processes, with this folder")
    options = parser.parse_args()
    if options.alone:
        print(json.dumps(alone(options.alone, options.smoke)))
        return
    results = []
    for _ in range(1 if options.smoke else options.rounds):
        with tempfile.TemporaryDirectory() as folder:
            for name in ("cold", "warm"):
                told = {"import": import_seconds(), **in_process(folder, options.smoke)}
                results.append({"candidate": name, **told})
                line = ", ".join(f"{what} {value:.3f}" for what, value in told.items())
                print(f"{name}: {line}", flush=True)
    best = {
        name: {
            what: min(each[what] for each in results if each["candidate"] == name)
            for what in results[0]
            if what != "candidate"
        }
        for name in ("cold", "warm")
    }
    keep(options.out, best=best, results=results)


if __name__ == "__main__":
    main()
