"""The part of ``credit`` that attributes a run: ours and dattri's against retraining."""

import functools
import itertools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import vcca_jax as vcca
from experiments.benchmarks.peers import named, peer, write
from experiments.benchmarks.timing import rounds
from experiments.benchmarks.trajectory import HELD_OUT, OPTIMIZERS, Run, spearman, training
from vcca_jax.datasets import digits

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
}
DAMPING, CHECKPOINTS = 1e-2, 10


def outputs(
    layers: list[tuple[jax.Array, jax.Array]], inputs: jax.Array, activation: str = "relu"
) -> jax.Array:
    for kernel, bias in layers[:-1]:
        inputs = ACTIVATIONS[activation](inputs @ kernel + bias[None, :])
    kernel, bias = layers[-1]
    return inputs @ kernel + bias[None, :]


def compiled(function: Callable[..., Any], *operands: Any) -> tuple[Any, float]:
    """The compiled function and the seconds it took."""
    begun = time.perf_counter()
    found = jax.jit(function).lower(*operands).compile()
    return found, time.perf_counter() - begun


def held_out(seed: int) -> dict[str, np.ndarray]:
    """The rows that ``training`` validates on."""
    inputs, targets = digits()
    order = np.random.default_rng(seed).permutation(len(targets))[:HELD_OUT]
    return {"unseen": inputs[order], "labels": targets[order]}


def twin(run: Run, seed: int, activation: str) -> Run:
    """The run of a perceptron with this activation, from the same parameters."""
    if activation == "relu":
        return run
    model = vcca.mlp(64, (32,), 10, cut=1, activation=ACTIVATIONS[activation])
    loss_fn = vcca.model_loss(model, optax.softmax_cross_entropy_with_integer_labels)
    held = held_out(seed)
    rows = jnp.asarray(held["unseen"]), jnp.asarray(held["labels"])
    return run._replace(loss_fn=loss_fn, validation=lambda params: loss_fn(params, *rows).mean())


def layers_of(params: Any) -> list[tuple[jax.Array, jax.Array]]:
    """Kernels and biases of a perceptron, in order."""
    biases_and_kernels = jax.tree.leaves(params)
    return list(zip(biases_and_kernels[1::2], biases_and_kernels[::2], strict=True))


def trained(run: Run, every: int) -> tuple[Any, Any]:
    """The final parameters, and those before every so many steps."""
    optimizer = OPTIMIZERS["momentum"]

    def step(carried: Any, batch: vcca.VirtualBatch) -> tuple[Any, Any]:
        params, state = carried
        updates, state = optimizer.update(
            vcca.agent_gradients(run.loss_fn, params, batch).sum(), state, params
        )
        return (optax.apply_updates(params, updates), state), params

    start = run.params, optimizer.init(run.params)
    (final, _), path = jax.jit(lambda s: jax.lax.scan(step, s, run.batches))(start)
    return final, jax.tree.map(lambda leaf: leaf[every // 2 :: every], path)


def ours(
    run: Run, agents: int, final: Any, whole: vcca.VirtualBatch, activation: str
) -> dict[str, Any]:
    """Our candidates, each a function of the weights."""
    utility, optimizer = run.utility(), OPTIMIZERS["momentum"]

    def functions(curvature: Any, weights: jax.Array) -> jax.Array:
        del weights
        found = vcca.influence_functions(
            run.loss_fn,
            final,
            whole,
            run.validation,
            damping=DAMPING,
            curvature=curvature,
            outputs=lambda params, inputs: outputs(layers_of(params), inputs, activation),
            criterion=optax.softmax_cross_entropy_with_integer_labels,
        )
        return found.credits

    def online(weights: jax.Array) -> jax.Array:
        def step(carried: Any, batch: vcca.VirtualBatch) -> tuple[Any, None]:
            params, state, total = carried
            gradients = vcca.agent_gradients(run.loss_fn, params, batch)
            value = vcca.one_step_utility(params, state, gradients, optimizer, run.validation)
            updates, state = optimizer.update(gradients.sum(), state, params)
            total = total + vcca.in_run(value, weights, order=1)
            return (optax.apply_updates(params, updates), state, total), None

        start = run.params, optimizer.init(run.params), jnp.zeros(agents)
        return jax.lax.scan(step, start, run.batches)[0][2]

    return {
        "leave-one-out, retrained": lambda w: vcca.leave_one_out(utility, w),
        "influence functions, Hessian": functools.partial(functions, "hessian"),
        "influence functions, Gauss-Newton": functools.partial(functions, "gauss_newton"),
        "influence of the run": lambda w: vcca.influence(utility, w),
        "Aumann-Shapley of the run, 4": lambda w: vcca.aumann_shapley(utility, w, nodes=4),
        "in-run, online": online,
    }


def attribution(agents: int, steps: int, seeds: int, torch: Path | None) -> list[dict[str, Any]]:
    """Correlations to retraining without an agent, and seconds, by activation and seed."""
    results = []
    for activation, seed in itertools.product(ACTIVATIONS, range(seeds)):
        run = twin(training(agents, steps, 64, seed=seed), seed, activation)
        every = max(steps // CHECKPOINTS, 1)
        final, path = trained(run, every)
        mask = np.asarray(run.batches.mask)
        # The first epoch holds every row once.
        epoch = int(np.argmax(mask.sum(axis=1) < mask.shape[1])) + 1
        whole = jax.tree.map(lambda leaf, epoch=epoch: leaf[:epoch], run.batches)
        weights, calls, first, credits = jnp.ones(agents), {}, {}, {}
        for name, function in ours(run, agents, final, whole, activation).items():
            call, first[name] = compiled(function, weights)
            calls[name] = functools.partial(call, weights)
            credits[name] = np.asarray(calls[name](), np.float64)
        seconds = {name: float(np.median(s)) for name, s in rounds(calls, 3).items()}
        told: dict[str, Any] = {}
        if torch is not None:
            with tempfile.TemporaryDirectory() as name:
                folder, live = Path(name), np.asarray(whole.mask).ravel()
                rows = {
                    key: np.asarray(getattr(whole, key)).reshape(len(live), -1)[live]
                    for key in ("inputs", "targets", "owners")
                }
                places = range(len(jax.tree.leaves(path)[0]))
                kept = [jax.tree.map(lambda leaf, k=k: leaf[k], path) for k in places]
                checkpoints = [named(layers_of(p), f"check_{k:02d}") for k, p in enumerate(kept)]
                held = held_out(seed)
                write(folder, {**rows, **held, **named(layers_of(final))})
                for each in checkpoints:
                    write(folder, each)
                flags = ("--damping", DAMPING, "--activation", activation)
                told = peer(torch, "dattri_scores.py", folder, *flags)
        for name, entry in told.get("scores", {}).items():
            if "failed" in entry:
                results.append(
                    {
                        "activation": activation,
                        "seed": seed,
                        "candidate": f"dattri, {name}",
                        **entry,
                    }
                )
                continue
            credits[f"dattri, {name}"] = np.array(entry["credits"])
            seconds[f"dattri, {name}"] = entry["seconds"]
        truth = credits["leave-one-out, retrained"]
        results += [
            {
                "activation": activation,
                "seed": seed,
                "candidate": name,
                "seconds": seconds[name],
                "compile_seconds": first.get(name),
                "pearson": float(np.corrcoef(own, truth)[0, 1]),
                "spearman": spearman(own, truth),
                "sum_over_truth": float(own.sum() / truth.sum()),
            }
            for name, own in credits.items()
        ]
    return results
