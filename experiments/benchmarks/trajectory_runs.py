"""The runs that whole-run credit is measured on, and Shapley values of retraining them."""

import os
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import vcca_jax as vcca
from experiments.benchmarks.timing import ratio, rounds
from vcca_jax.corruption import flip_labels
from vcca_jax.datasets import digits

CLASSES, HELD_OUT = 10, 400
OPTIMIZERS = {
    "momentum": optax.sgd(0.05, momentum=0.9),
    "adamw": optax.adamw(3e-3, weight_decay=1e-3),
}


class Run(NamedTuple):
    """A training run to be valued: per-example loss, start, batches [T] and validation loss."""

    loss_fn: Any
    params: Any
    batches: vcca.VirtualBatch
    validation: Any

    def utility(self, name: str = "momentum", **options: Any) -> Any:
        return vcca.training_utility(
            self.loss_fn, self.params, OPTIMIZERS[name], self.batches, self.validation, **options
        )


def training(
    agents: int, steps: int, batch_size: int, *, seed: int, activation: Any = jax.nn.relu
) -> Run:
    """Agent i has a share i / A of 60 % of its labels flipped."""
    inputs, targets = digits()
    order = np.random.default_rng(seed).permutation(len(targets))
    inputs, targets = inputs[order], targets[order]
    shards = vcca.partition.iid(inputs[HELD_OUT:], targets[HELD_OUT:], agents=agents, seed=seed)
    shards = [
        flip_labels(shard, classes=CLASSES, fraction=0.6 * i / agents, seed=seed + i)
        for i, shard in enumerate(shards)
    ]
    members = vcca.cooperative(shards)
    epochs: list[vcca.TraversalPlan] = []
    planned = 0
    while planned < steps:
        epochs.append(vcca.virtual_batches(members, batch_size, seed=seed, epoch=len(epochs)))
        planned += len(epochs[-1].mask)
    plan = jax.tree.map(lambda *parts: np.concatenate(parts)[:steps], *epochs)
    model = vcca.mlp(inputs.shape[1], (32,), CLASSES, cut=1, activation=activation)
    loss_fn = vcca.model_loss(model, optax.softmax_cross_entropy_with_integer_labels)
    held = jnp.asarray(inputs[:HELD_OUT]), jnp.asarray(targets[:HELD_OUT])
    return Run(
        loss_fn,
        jax.jit(model.init)(jax.random.key(seed)),
        jax.jit(jax.vmap(partial(vcca.gather, members.shards)))(plan),
        lambda params: loss_fn(params, *held).mean(),
    )


def spearman(left: np.ndarray, right: np.ndarray) -> float:
    """The correlation of ranks, of numbers without ties."""
    ranks = [np.argsort(np.argsort(each)) for each in (left, right)]
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def against_shapley(steps: int, seeds: int, permutations: int, few: int, many: int) -> list[dict]:
    """Aumann-Shapley against all coalitions of a few agents, and permutations of many."""
    results = []
    for agents, seed in [(few, seed) for seed in range(seeds)] + [(many, 0)]:
        weights, utility = jnp.ones(agents), training(agents, steps, 64, seed=seed).utility()
        slow = "exact" if agents == few else f"{permutations} permutations"
        functions = {
            "2 nodes": partial(vcca.aumann_shapley, utility, nodes=2),
            "4 nodes": partial(vcca.aumann_shapley, utility, nodes=4),
            slow: partial(vcca.exact_shapley, utility)
            if agents == few
            else partial(
                vcca.permutation_shapley,
                utility,
                key=jax.random.key(0),
                permutations=permutations,
                antithetic=True,
            ),
        }
        calls = {n: partial(jax.jit(f), weights) for n, f in functions.items()}
        credits = {n: np.asarray(call(), np.float64) for n, call in calls.items()}
        seconds = rounds(calls, 2)
        gain = float(credits[slow].sum())
        results += [
            {
                "agents": agents,
                "seed": seed,
                "reference": slow,
                "candidate": name,
                "spearman": spearman(own, credits[slow]),
                "pearson": float(np.corrcoef(own, credits[slow])[0, 1]),
                "efficiency_gap_over_gain": 1 - float(own.sum()) / gain,
                "times_faster": ratio(seconds, slow, name),
            }
            for name, own in credits.items()
        ]
    return results


def against_permutations(
    agents: int, steps: int, permutations: int, counts: dict[str, list[int]], sizes: list[int]
) -> list[dict]:
    """Aumann-Shapley beside the permutation estimate, both against a better one of retraining.

    Args:
        counts: by activation, the rounds of timing of every seed.
        sizes: how many retrainings go side by side; the fastest at the first run is taken.
    """
    weights, results = jnp.ones(agents), []
    retrainings, fastest = permutations * (agents - 1) + 2, 0
    slow = f"{permutations} permutations"
    for activation, rounds_of_seed in counts.items():
        for seed, count in enumerate(rounds_of_seed):
            run = training(agents, steps, 64, seed=seed, activation=getattr(jax.nn, activation))
            utility = run.utility(segments=1)

            def estimate(w: jax.Array, size: int, utility: Any = utility) -> Any:
                return vcca.contribution.permutation_shapley_with_error(
                    utility, w, key=jax.random.key(1), permutations=permutations, batch_size=size
                )

            if not fastest:
                tried = {
                    str(s): partial(jax.jit(partial(estimate, size=s)), weights) for s in sizes
                }
                took = rounds(tried, 1)
                fastest = int(min(took, key=lambda size: took[size][0]))
            functions = {
                "2 nodes": partial(vcca.aumann_shapley, utility, nodes=2),
                "4 nodes": partial(vcca.aumann_shapley, utility, nodes=4),
                "2 nodes at once": partial(vcca.aumann_shapley, utility, nodes=2, batch_size=2),
                "4 nodes at once": partial(vcca.aumann_shapley, utility, nodes=4, batch_size=4),
                slow: partial(estimate, size=fastest),
            }
            found: dict[str, Any] = {}

            def call(name: str, compiled: Any, found: dict[str, Any] = found) -> Any:
                found[name] = compiled(weights)
                return found[name]

            seconds = rounds({n: partial(call, n, jax.jit(f)) for n, f in functions.items()}, count)
            # Drawn with another key than the estimate, so that their errors are independent.
            truth = jax.jit(
                lambda w, utility=utility: vcca.contribution.stratified_shapley_with_error(
                    utility, w, key=jax.random.key(2), evaluations=2 * retrainings
                )
            )(weights)
            shapley = np.asarray(truth.credits, np.float64)
            told = np.asarray(found[slow].credits, np.float64)
            gain = float(told.sum())
            common = {
                "agents": agents,
                "seed": seed,
                "activation": activation,
                "retrainings": retrainings,
                "side_by_side": fastest,
                "estimate_error_over_spread": float(found[slow].standard_error.mean() / told.std()),
                "reference_error_over_spread": float(truth.standard_error.mean() / shapley.std()),
                "load": os.getloadavg()[0],
            }
            for name, each in found.items():
                own = told if name == slow else np.asarray(each, np.float64)
                results.append(
                    common
                    | {
                        "candidate": name,
                        "milliseconds": 1e3 * float(np.median(seconds[name])),
                        "spearman_to_reference": spearman(own, shapley),
                        "spearman_to_estimate": spearman(own, told),
                        "pearson_to_reference": float(np.corrcoef(own, shapley)[0, 1]),
                        "efficiency_gap_over_gain": 1 - float(own.sum()) / gain,
                        "times_faster": ratio(seconds, slow, name),
                    }
                )
                print("  ", results[-1], flush=True)
    return results
