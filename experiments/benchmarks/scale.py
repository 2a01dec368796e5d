"""What a hundred thousand agents, a hundred million parameters and data on disk cost.

Each figure is a process of its own, whose peak memory (resident, with the files it maps) is told.

agents      A = 100 to 100,000 agents of ten noisy digits each (64 features); perceptron 64-32-10,
            virtual batches of 8192, four value losses of 64 rows, every principal protecting all
            four, scope "own", influence credit: an epoch of whole steps; then one settlement of
            A credits, and the ledger's replay.
streamed    the epoch of the largest A again, from memory-mapped shards with a streamed plan.
parameters  one whole step of a perceptron of 100 million parameters, 16 samples of 4 agents and
            two value losses of 4 rows; beside it, what the model's size explains.

    python -m experiments.benchmarks.scale [--smoke] [--out scale.json]

Predicted after one trial of the largest size (37 ms a step of 4096 samples, 0.3 s a settlement)
and before all else: everything on the host linear in A (exponent 1.0 at most); a step at fixed B
grows with A, since the screen's small programs and the report are [A] long: ten times from 100 to
100,000. The epoch of 1e6 samples within 20 s. Streamed, 1.3 times the epoch at half the memory. Of
the large model 12 model-sized buffers (parameters, their update,
the gradient, two rows of value gradients, three copies for the losses of the step, and theirs):
5 GB, far below 24 GiB.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from experiments.benchmarks.timing import arguments, keep

SAMPLES, FEATURES, CLASSES, VALUES = 10, 64, 10, 4
CHUNK = 8


class Laps:
    """Seconds since the lap before, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._begun = time.perf_counter()

    def __call__(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name], self._begun = now - self._begun, now


def resident() -> dict[str, float]:
    """Gigabytes: the peak of this process, and what of it now is no mapped file."""
    status = Path("/proc/self/status")
    anonymous = 0.0
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        anonymous = int(lines["RssAnon"].split()[0]) / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return {"peak_gb": peak, "anonymous_gb": anonymous}


def digits(agents: int) -> tuple[np.ndarray, np.ndarray]:
    """[A, 10, 64] and [A, 10], bundled digits drawn again with noise."""
    from sklearn.datasets import load_digits

    held, generator = load_digits(), np.random.default_rng(0)
    picked = generator.integers(0, len(held.data), (agents, SAMPLES))
    noise = generator.standard_normal((agents, SAMPLES, FEATURES), np.float32)
    inputs = (held.data / 16).astype(np.float32)[picked] + np.float32(0.1) * noise
    return inputs, held.target[picked].astype(np.int32)


def whole_step(
    features: int, hidden: tuple[int, ...], classes: int, rows: int, values: int
) -> tuple[Any, Any, tuple[str, ...]]:
    """The model, the whole step on it, and the values' names."""
    import jax.numpy as jnp
    import optax

    import vcca_jax as vcca

    generator = np.random.default_rng(1)
    model = vcca.mlp(features, hidden, classes, cut=1)
    loss_fn = vcca.model_loss(model, optax.softmax_cross_entropy_with_integer_labels)

    def held_out() -> tuple[Any, Any]:
        inputs = generator.random((rows, features), np.float32)
        return jnp.asarray(inputs), jnp.asarray(generator.integers(0, classes, rows), jnp.int32)

    losses = vcca.value_losses(
        {f"value {m}": vcca.group_loss(loss_fn, *held_out()) for m in range(values)}
    )
    inputs, targets = held_out()
    trainer = vcca.cooperate(
        loss_fn,
        optax.sgd(0.1),
        lambda params: loss_fn(params, inputs, targets).mean(),
        losses,
        screen=vcca.screen("project", scope="own"),
        estimator=vcca.influence,
        method="linearized",
    )
    return model, trainer, losses.names


def cooperative_of(agents: int, size: int, folder: Path | None) -> dict[str, Any]:
    """An epoch and a settlement, of shards in memory or, given a folder, on disk."""
    import jax

    import vcca_jax as vcca
    from vcca_jax.epochs import epoch_runner
    from vcca_jax.plan_stream import stream_plan
    from vcca_jax.streaming import open_shards, store_shards

    laps = Laps()
    source: Any
    if folder is None:
        shards = list(zip(*digits(agents), strict=True))
        laps("data")
        members = vcca.cooperative(shards, classes=CLASSES)
        names, source = members.members, jax.device_put(members.shards)
        laps("cooperative")
        plan: Any = vcca.virtual_batches(members, size, seed=0, epoch=0)
        sizes, steps = members.sizes, len(plan.mask)
        laps("plan")
    else:
        if not (folder / "shards.json").exists():
            names = [f"agent {i}" for i in range(agents)]
            dealt = zip(*digits(agents), strict=True)
            store_shards(folder, dealt, sizes=[SAMPLES] * agents, names=names)
            return {}
        source = open_shards(folder)
        names = source.names
        laps("cooperative")
        sizes, steps = source.sizes, -(-agents * SAMPLES // size)
    model, trainer, values = whole_step(FEATURES, (32,), CLASSES, 64, VALUES)
    profiles = vcca.value_profiles(values, [[vcca.protect(name) for name in values]] * agents)
    laps("profiles")
    params = jax.jit(model.init)(jax.random.key(0))
    state = jax.jit(trainer.init)(params, profiles)
    run = epoch_runner(
        trainer, chunk=min(CHUNK, steps), keep=lambda info: info.gain, streamed=folder is not None
    )
    # One chunk alone first, to compile; its state is thrown away.
    first = vcca.TraversalPlan(*(np.zeros((1, size), kind) for kind in (np.int32, np.int32, bool)))
    state, _ = run(state, source, first)
    laps("compilation")
    epochs = []
    for epoch in range(max(1, 16 // steps)):  # short ones again and again, for the fastest
        if folder is not None or epoch:
            plan = stream_plan(sizes, size, seed=0, epoch=epoch)
        begun = time.perf_counter()
        state, gains = run(state, source, plan)
        jax.block_until_ready(state)
        epochs.append(time.perf_counter() - begun)
    laps("all epochs")
    laps.seconds["epoch"] = min(epochs)
    computed = -(-steps // min(CHUNK, steps)) * min(CHUNK, steps)
    told: dict[str, Any] = {"agents": agents, "steps": steps}
    if folder is None:
        with (
            tempfile.TemporaryDirectory() as kept,
            vcca.Ledger.open(Path(kept) / "ledger.sqlite", principals=names) as ledger,
        ):
            laps("ledger")
            credits = dict(zip(names, np.asarray(state.credits).tolist(), strict=True))
            ledger.settle(1, credits, 10**9, gain=float(gains.sum()))
            laps("settlement")
            ledger.verify()
            laps("replay")
    return {**told, **resident(), "seconds": laps.seconds, "step_ms": 1e3 * min(epochs) / computed}


def parameters_of(features: int, hidden: tuple[int, ...], classes: int) -> dict[str, Any]:
    """One whole step of a large model."""
    import jax
    import jax.numpy as jnp

    import vcca_jax as vcca

    agents, size = 4, 16
    model, trainer, values = whole_step(features, hidden, classes, 4, 2)
    profiles = vcca.value_profiles(values, [[vcca.protect(name) for name in values]] * agents)
    params = jax.jit(model.init)(jax.random.key(0))
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    state = jax.jit(trainer.init, donate_argnums=0)(params, profiles)
    del params
    batch = vcca.VirtualBatch(
        inputs=jnp.ones((size, features)),
        targets=jnp.zeros(size, jnp.int32),
        owners=jnp.arange(size, dtype=jnp.int32) % agents,
        rows=jnp.zeros(size, jnp.int32),
        mask=jnp.ones(size, bool),
        active=jnp.ones(agents, bool),
    )
    laps = Laps()
    step = jax.jit(trainer.step, donate_argnums=0).lower(state, batch).compile()
    laps("compilation")
    account = step.memory_analysis()
    before = resident()["peak_gb"]
    state, _ = step(state, batch)
    jax.block_until_ready(state)
    laps("first step")
    state, _ = step(state, batch)
    jax.block_until_ready(state)
    laps("second step")
    return {
        "parameters": count,
        "model_gb": 4 * count / 1e9,
        "peak_before_gb": before,
        "temporaries_in_models": account.temp_size_in_bytes / (4 * count),
        "seconds": laps.seconds,
        **resident(),
    }


def growth(results: list[dict[str, Any]]) -> dict[str, float]:
    """Exponent in A of every time, from the smallest to the largest."""
    few, many = results[0], results[-1]
    span = np.log(many["agents"] / few["agents"])
    pairs = {
        **{what: (few["seconds"][what], many["seconds"][what]) for what in few["seconds"]},
        "step": (few["step_ms"], many["step_ms"]),
    }
    return {what: float(np.log(late / early) / span) for what, (early, late) in pairs.items()}


def in_process(*job: object) -> dict[str, Any]:
    command = [sys.executable, "-m", __spec__.name, "--job", *map(str, job)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


def job(kind: str, *rest: str) -> dict[str, Any]:
    if kind == "parameters":
        features, hidden, classes = map(int, rest)
        return parameters_of(features, (hidden,), classes)
    folder = Path(rest[2]) if kind == "streamed" else None
    return cooperative_of(int(rest[0]), int(rest[1]), folder)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--job", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        print(json.dumps(job(*options.job)))
        return
    sizes, size = ([4, 16], 32) if options.smoke else ([100, 1000, 10_000, 100_000], 8192)
    results = []
    for agents in sizes:
        results.append(in_process("agents", agents, size))
        print(json.dumps(results[-1]), flush=True)
    exponents = growth(results)
    print("exponents in A:", {what: round(value, 2) for what, value in exponents.items()})
    with tempfile.TemporaryDirectory() as folder:
        in_process("streamed", sizes[-1], size, folder)  # writes the shards
        streamed = in_process("streamed", sizes[-1], size, folder)
    print("streamed:", json.dumps(streamed), flush=True)
    shape = (8, 8, 4) if options.smoke else (4096, 16_384, 2048)
    large = in_process("parameters", *shape)
    print("parameters:", json.dumps(large))
    keep(options.out, exponents=exponents, results=results, streamed=streamed, parameters=large)


if __name__ == "__main__":
    main()
