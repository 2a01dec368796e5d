"""What does credit for a whole training run cost, and how near does it come to retraining?

Scikit-learn's digits, perceptron 64-32-10, agents of equal size whose labels are flipped to a
growing extent, SGD with momentum, the mean loss on held-out digits. Candidates run in turn, round
by round; ratios are medians over rounds, compilation is left out. Memory is the compiler's own
account of temporaries.

    python -m experiments.benchmarks.trajectory [--smoke] [--only PART] [--out trajectory.json]

Predicted before measuring. Reverse mode through a run is a Hessian-vector product a step: by its
matrix products 2.7 runs in all with every state kept, 3.7 in segments, so the aim of 2 is out of
reach and a small model on a CPU does worse. Influence and retrained leave-one-out: Pearson above
0.99; influence explains less of the removal of an eighth of the data than happens, by a quarter,
Aumann-Shapley more than happens. Retraining side by side: 3 times a loop. Aumann-Shapley with 4
nodes: Spearman above 0.95 to Shapley values, at 1/50 of 64 permutations of 16 agents, and far less
than that against the 256 coalitions of 8. First-order in-run credit: half a plain step, flat in A:
a forward-mode pass over the batch is a third of it, the validation gradient a tenth. In-run order 2
misses below 1e-3 of a run's gain under momentum, and much more under AdamW, whose first steps have
no second moments. Segments: a fifth of the memory at 200 steps.

*against_permutations* came later, after one seed of 16 agents had been seen (.93 and .94 to 64
permutations, at 1/90 and 1/61). Each estimate is held against a reference of twice as many
retrainings, stratified, whose error is kept beside it. Predicted: over three seeds, relus, Spearman
to the reference .94 at worst with 2 nodes and .95 with 4, so that the aim of .95 hangs on the seed;
64 permutations themselves .97 to it; with tanh .98 or more. Time: 1/100 and 1/55 of the estimate.

*reverse_by_size* came later too, after one try at 784-256-10 on a loaded machine (1.6 runs). What
made 4 of 2.7 in the smallest run is starting small operations. Predicted: the ratio falls with
size, 4.5 at 64-32-10, below 3 at 784-64-10 and at 2.2 from 784-256-10 on, where the first layer,
whose inputs take no cotangent, is nearly all; in segments a run more.
"""

import json
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import vcca_jax as vcca
from experiments.benchmarks import traversal
from experiments.benchmarks.timing import arguments, keep, ratio, rounds, stepper
from experiments.benchmarks.trajectory_runs import (
    HELD_OUT,
    OPTIMIZERS,
    Run,
    against_permutations,
    against_shapley,
    spearman,
    training,
)
from vcca_jax.trainer import TrainState

# The runs are also those of `limits` and `credit_runs`.
__all__ = ["HELD_OUT", "OPTIMIZERS", "Run", "main", "spearman", "training"]


SIZES = [((64, 32), 64), ((784, 64), 128), ((784, 256), 256), ((784, 256, 128), 512)]
"""Layers before the last and samples a step: from small operations to wide products."""


def megabytes(compiled: Any) -> float:
    """The compiler's account of temporaries."""
    return compiled.memory_analysis().temp_size_in_bytes / 1e6


def fidelity(agents: int, steps: int, count: int) -> list[dict]:
    """Influence and Aumann-Shapley against retraining, and what they cost in runs."""
    given, weights = training(agents, steps, 64, seed=0), jnp.ones(agents)
    without = np.ones((agents // 2, agents), np.float32)
    for pair in range(agents // 2):
        without[pair, [2 * pair, 2 * pair + 1]] = 0  # an eighth of 16 agents' data
    functions = {
        "run": lambda w: given.utility()(w),
        "influence, all states": lambda w: vcca.influence(given.utility(segments=1), w),
        "influence": lambda w: vcca.influence(given.utility(), w),
        "influence, forward": lambda w: vcca.influence(given.utility(), w, mode="forward"),
        "aumann_shapley, 4 nodes": lambda w: vcca.aumann_shapley(given.utility(), w, nodes=4),
        "leave_one_out": lambda w: vcca.leave_one_out(given.utility(), w),
    }
    compiled = {n: jax.jit(f).lower(weights).compile() for n, f in functions.items()}
    credits = {n: np.asarray(c(weights), np.float64) for n, c in compiled.items()}

    def loop() -> Any:
        return [compiled["run"](1 - unit) for unit in jnp.eye(agents)]

    calls = {n: partial(c, weights) for n, c in compiled.items()} | {"a loop of runs": loop}
    seconds = rounds(calls, count)
    whole = credits["run"]
    removed = np.array([float(whole - compiled["run"](jnp.asarray(row))) for row in without])
    retrained, results = credits["leave_one_out"], []
    gain = float(whole - compiled["run"](0 * weights))
    for name in calls:
        entry = {
            "candidate": name,
            "milliseconds": 1e3 * float(np.median(seconds[name])),
            "ratio_to_run": ratio(seconds, name, "run"),
        }
        if name in compiled:
            entry["temporaries_mb"] = megabytes(compiled[name])
        if np.ndim(credits.get(name, 0.0)):
            own = credits[name]
            told = np.array([own[row == 0].sum() for row in without])
            entry |= {
                "pearson_to_retraining": float(np.corrcoef(own, retrained)[0, 1]),
                "sum_over_gain": float(own.sum() / gain),
                # The slope of what is told in what happens, over all pairs.
                "told_of_an_eighth_removed": float(told @ removed / (removed @ removed)),
                "told_of_the_best_eighth": float(told[0] / removed[0]),
            }
        results.append(entry)
    loops = ratio(seconds, "a loop of runs", "leave_one_out")
    results.append({"candidate": "loop over leave_one_out", "ratio": loops})
    return results


def in_run_cost(
    sizes: list[int], batch_size: int, hidden: tuple[int, ...], count: int
) -> list[dict]:
    """A plain step, and those that credit their agents to first order as well.

    By hand: the slope of the worth in the direction, at no step at all, and one ``dot`` with it.
    """
    results, optimizer = [], optax.sgd(0.1)
    for agents in sizes:
        given = traversal.problem(agents, batch_size, hidden)
        rows = given["batch"].inputs[: batch_size // 10], given["batch"].targets[: batch_size // 10]

        def validation(params: Any, given: Any = given, rows: Any = rows) -> jax.Array:
            return given["loss_fn"](params, *rows).mean()

        def by_hand(utility: Any, weights: Any, state: Any, gradients: Any) -> Any:
            del utility
            slope = jax.grad(
                lambda direction: (
                    -validation(
                        optax.apply_updates(
                            state.params, optimizer.update(direction, state.optimizer_state)[0]
                        )
                    )
                )
            )(jax.tree.map(jnp.zeros_like, state.params))
            return weights * gradients.dot(slope)

        def credited(estimate: Any, state: TrainState, batch: Any, given: Any = given) -> Any:
            gradients = vcca.agent_gradients(given["loss_fn"], state.params, batch)
            utility = vcca.one_step_utility(
                state.params,
                state.optimizer_state,
                gradients,
                optimizer,
                validation,
            )
            credits = estimate(utility, jnp.ones(batch.active.shape), state, gradients)
            updates, optimizer_state = optimizer.update(gradients.sum(), state.optimizer_state)
            params = optax.apply_updates(state.params, updates)
            return TrainState(params, optimizer_state, state.step + 1), credits

        plain = vcca.traversal(given["loss_fn"], optimizer)
        estimates = {
            "in_run order 1": lambda v, w, *_: vcca.in_run(v, w, order=1),
            "influence": lambda v, w, *_: vcca.influence(v, w, mode="reverse"),
            "in_run order 1 by hand": by_hand,
        }
        steps = {"plain": plain} | {
            name: vcca.Trainer(plain.init, partial(credited, estimate))
            for name, estimate in estimates.items()
        }
        calls = {n: stepper(t, given["params"], given["batch"])[0] for n, t in steps.items()}
        seconds = rounds(calls, count)
        results += [
            {
                "agents": agents,
                "estimate": name,
                "extra_over_plain": ratio(seconds, name, "plain") - 1,
            }
            for name in estimates
        ]
    return results


def in_run_residuals(agents: int, steps: int) -> list[dict]:
    """What in-run credit and one-node Aumann-Shapley leave of a run's gain, step by step."""
    given, weights, results = training(agents, steps, 64, seed=0), jnp.ones(agents), []
    estimates = {
        "in_run order 1": partial(vcca.in_run, order=1),
        "in_run order 2": partial(vcca.in_run, order=2),
        "aumann_shapley, 1 node": partial(vcca.aumann_shapley, nodes=1),
        "aumann_shapley, 4 nodes": partial(vcca.aumann_shapley, nodes=4),
    }
    for name, optimizer in OPTIMIZERS.items():

        def step(carried: Any, batch: Any, optimizer: Any = optimizer) -> Any:
            params, state = carried
            gradients = vcca.agent_gradients(given.loss_fn, params, batch)
            utility = vcca.one_step_utility(params, state, gradients, optimizer, given.validation)
            nobody, before = utility(0 * weights), -given.validation(params)
            gain = utility(weights) - nobody
            told = {n: estimate(utility, weights).sum() for n, estimate in estimates.items()}
            updates, state = optimizer.update(gradients.sum(), state, params)
            after = optax.apply_updates(params, updates), state
            return after, (gain, nobody - before, told)

        start = given.params, optimizer.init(given.params)
        run = jax.jit(lambda start, step=step: jax.lax.scan(step, start, given.batches)[1])
        gains, carried, told = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), run(start))
        total = gains.sum() + carried.sum()
        for estimate, sums in told.items():
            gaps = gains - sums
            results.append(
                {
                    "optimizer": name,
                    "estimate": estimate,
                    "gap_over_run_gain": float(gaps.sum() / total),
                    "absolute_gaps_over_run_gain": float(np.abs(gaps).sum() / total),
                    "the_same_after_20_steps": float(np.abs(gaps[20:]).sum() / total),
                    "carried_over_run_gain": float(carried.sum() / total),
                }
            )
    return results


def memory(lengths: list[int]) -> list[dict]:
    """Temporaries of one gradient of the utility, in megabytes, compiled and not run."""
    results = []
    for steps in lengths:
        given = training(16, steps, 64, seed=0)
        entry: dict[str, Any] = {"steps": steps}
        for name in OPTIMIZERS:
            for label, segments in (("all states", 1), ("segments", None)):
                program = jax.jit(jax.grad(given.utility(name, segments=segments)))
                entry[f"{name}, {label}"] = megabytes(program.lower(jnp.ones(16)).compile())
        results.append(entry)
    return results


def reverse_by_size(sizes: list[tuple[tuple[int, ...], int]], steps: int, count: int) -> list[dict]:
    """Influence of a run by reverse mode over the run itself, perceptrons on random data."""
    results = []
    for (features, *hidden), batch_size in sizes:
        generator, agents = np.random.default_rng(0), 16
        model = vcca.mlp(features, hidden, 10, cut=1)
        loss_fn = vcca.model_loss(model, optax.softmax_cross_entropy_with_integer_labels)

        def examples(*shape: int, of: int = features, draw: Any = generator) -> Any:
            inputs = jnp.asarray(draw.normal(size=(*shape, of)), jnp.float32)
            return inputs, jnp.asarray(draw.integers(0, 10, shape), jnp.int32)

        batches = vcca.VirtualBatch(
            *examples(steps, batch_size),
            owners=jnp.tile(jnp.arange(batch_size, dtype=jnp.int32) % agents, (steps, 1)),
            rows=jnp.zeros((steps, batch_size), jnp.int32),
            mask=jnp.ones((steps, batch_size), bool),
            active=jnp.ones((steps, agents), bool),
        )
        held_out = vcca.group_loss(loss_fn, *examples(batch_size))
        params = jax.jit(model.init)(jax.random.key(0))
        run = Run(loss_fn, params, batches, lambda at, held_out=held_out: held_out(at))
        everybody = jnp.ones(agents)
        programs = {
            "one run": run.utility(segments=1),
            "all states": partial(vcca.influence, run.utility(segments=1)),
            "in segments": partial(vcca.influence, run.utility()),
        }
        compiled = {
            name: jax.jit(function).lower(everybody).compile()
            for name, function in programs.items()
        }
        seconds = rounds({name: partial(f, everybody) for name, f in compiled.items()}, count)
        results.append(
            {
                "model": "-".join(map(str, (features, *hidden, 10))),
                "batch": batch_size,
                "steps": steps,
                "run_milliseconds": 1e3 * float(np.median(seconds["one run"])),
                "all_states": ratio(seconds, "all states", "one run"),
                "in_segments": ratio(seconds, "in segments", "one run"),
                "all_states_mb": megabytes(compiled["all states"]),
                "in_segments_mb": megabytes(compiled["in segments"]),
            }
        )
    return results


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--only", help="measure this part alone, keep the others of the file")
    options = parser.parse_args()
    smoke = options.smoke
    parts = {
        "fidelity": lambda: fidelity(4, 18, 1) if smoke else fidelity(16, 200, 7),
        "against_shapley": lambda: (
            against_shapley(4, 1, 2, 2, 3) if smoke else against_shapley(200, 3, 64, 8, 16)
        ),
        "against_permutations": lambda: (
            against_permutations(4, 3, 2, {"relu": [1]}, [4, 8])
            if smoke
            else against_permutations(16, 200, 64, {"relu": [2, 2, 2], "tanh": [1, 1]}, [16, 256])
        ),
        "in_run_cost": lambda: (
            in_run_cost([2], 20, (8,), 1)
            if smoke
            else in_run_cost([8, 64, 512, 2048], 512, (256, 128), 15)
        ),
        "in_run_residuals": lambda: in_run_residuals(*((2, 22) if smoke else (16, 200))),
        "reverse_by_size": lambda: (
            reverse_by_size([((8, 4), 8)], 18, 1) if smoke else reverse_by_size(SIZES, 50, 15)
        ),
        "memory": lambda: memory([4] if smoke else [200, 800]),
    }
    results: dict[str, Any] = {}
    if options.only is not None:
        if options.only not in parts:
            parser.error(f"--only {options.only!r} is no part; choose of {', '.join(parts)}")
        if options.out is not None and options.out.exists():
            results = json.loads(options.out.read_text())["results"]
        parts = {options.only: parts[options.only]}
    for name, measured in parts.items():
        results[name] = measured()
        print(name, flush=True)
        for row in results[name]:
            print(
                "  ",
                {k: round(v, 5) if isinstance(v, float) else v for k, v in row.items()},
                flush=True,
            )
    keep(options.out, results=results)


if __name__ == "__main__":
    main()
