"""What does computing in bfloat16 do to credit?

Digits, 16 agents with label noise from 0 to 60 %, perceptron 64-32-10, SGD, two value losses, each
principal protecting one. Two arms per seed, from the same parameters on the same batches:

    float32    everything in float32.
    bfloat16   parameters and inputs are cast inside the loss, which computes in bfloat16 and hands
               back float32 losses; parameters, agent sums, screening and credit stay float32.

Compared are the credits of a whole run (Spearman and Kendall over agents), the payouts of one
settlement (in per cent of the revenue that changes hands), and admissibility: how far the screened
update of each arm, judged by exact float32 value gradients at the arm's own parameters, crosses a
constraint, as a cosine.

    python -m experiments.benchmarks.precision [--smoke] [--out precision.json]

Predicted before measuring: ranks of credit survive (Spearman above 0.98, Kendall above 0.93), since
credit sums thousands of products whose errors of 2^-9 are independent; payouts shift by 1 to 3 per
cent. Admissibility suffers most: projection makes products exactly zero where a constraint binds,
and rounding leaves a cosine of about 1e-3 on either side, so nearly half of the binding
constraints are crossed by that little. On a CPU it is slower, not faster.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import vcca_jax as vcca
from experiments.benchmarks.timing import arguments, keep
from vcca_jax.datasets import digits
from vcca_jax.gradients import agent_gradients
from vcca_jax.model import model_loss
from vcca_jax.models import mlp
from vcca_jax.rows import rows_dot, tree_dot
from vcca_jax.trainer import ExampleLoss

AGENTS, BATCH, RATE = 16, 128, 0.3
NAMES = ("low digits", "high digits")
REVENUE = 1_000_000


def in_bfloat16(loss_fn: ExampleLoss) -> ExampleLoss:
    """The same loss, computed in bfloat16 and returned in float32."""

    def lowered(tree: Any) -> Any:
        return jax.tree.map(
            lambda x: x.astype(jnp.bfloat16) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree
        )

    def loss(params: Any, inputs: Any, targets: Any) -> jax.Array:
        return loss_fn(lowered(params), lowered(inputs), targets).astype(jnp.float32)

    return loss


def problem(seed: int) -> tuple[vcca.Cooperative, Any, Any]:
    """Members with noisy labels, and the rows of validation and of values."""
    inputs, targets = digits()
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(targets))
    held, rest = order[:600], order[600:]
    shards = []
    for agent, rows in enumerate(np.array_split(rest, AGENTS)):
        wrong = generator.random(len(rows)) < 0.6 * agent / (AGENTS - 1)
        noisy = np.where(wrong, generator.integers(0, 10, len(rows)), targets[rows])
        shards.append((inputs[rows], noisy.astype(np.int32)))
    members = vcca.cooperative(shards, classes=10)
    return (
        members,
        (inputs[held[:300]], targets[held[:300]]),
        (
            inputs[held[300:]],
            targets[held[300:]],
        ),
    )


def run(seed: int, lower: bool, epochs: int) -> tuple[np.ndarray, np.ndarray]:
    """Credits [A] of a run; cosines [T, A] of screened updates with their value gradient."""
    members, validation, held = problem(seed)
    model = mlp(64, (32,), 10, cut=1)
    exact = model_loss(model, optax.softmax_cross_entropy_with_integer_labels)
    loss_fn = in_bfloat16(exact) if lower else exact
    low = held[1] < 5

    def values_of(loss: ExampleLoss) -> vcca.Values:
        return vcca.value_losses(
            {
                name: vcca.group_loss(loss, held[0][rows], held[1][rows])
                for name, rows in zip(NAMES, (low, ~low), strict=True)
            }
        )

    values, true_values = values_of(loss_fn), values_of(exact)
    own = np.arange(AGENTS) % 2
    profiles = vcca.value_profiles(NAMES, [[vcca.protect(NAMES[m])] for m in own])
    worth = vcca.group_loss(loss_fn, *validation)
    screen = vcca.screen("project", scope="own")
    trainer = vcca.cooperate(
        loss_fn,
        optax.sgd(RATE),
        lambda params: worth(params, None),
        values,
        screen=screen,
        estimator=partial(vcca.aumann_shapley, nodes=4),
        method="linearized",
    )

    def step(state: Any, at: Any) -> Any:
        batch = vcca.gather(jax.tree.map(jnp.asarray, members.shards), at)
        _, rows = true_values.gradients(state.params, None)
        _, used = values.gradients(state.params, None)
        screened, _ = screen(agent_gradients(loss_fn, state.params, batch), used, profiles)
        stack = screened.stack()
        products = jax.vmap(lambda g: rows_dot(rows, g))(stack)[jnp.arange(AGENTS), own]
        norms = jnp.sqrt(jax.vmap(lambda g: tree_dot(g, g))(stack))
        lengths = jnp.sqrt(jax.vmap(lambda v: tree_dot(v, v))(rows))[own]
        cosines = products / jnp.maximum(norms * lengths, 1e-20)
        bound = jnp.abs(cosines) < 0.02
        after, _ = trainer.step(state, batch)
        return after, jnp.where(bound & screened.present, cosines, jnp.nan)

    plans = [vcca.virtual_batches(members, BATCH, seed=seed, epoch=e) for e in range(epochs)]
    plan = jax.tree.map(lambda *fields: jnp.concatenate(fields), *plans)
    state = trainer.init(model.init(jax.random.key(seed)), profiles)
    state, cosines = jax.jit(lambda s: jax.lax.scan(step, s, plan))(state)
    return np.asarray(state.credits, np.float64), np.asarray(cosines, np.float64)


def ranks(values: np.ndarray) -> np.ndarray:
    return values.argsort().argsort().astype(np.float64)


def kendall(left: np.ndarray, right: np.ndarray) -> float:
    first, second = np.triu_indices(len(left), 1)
    return float(
        np.mean(np.sign(left[first] - left[second]) * np.sign(right[first] - right[second]))
    )


def payouts(credits: np.ndarray) -> np.ndarray:
    shares = np.maximum(credits, 0)
    return np.array(vcca.allocate(REVENUE, (shares / shares.sum()).tolist()))


def compare(seed: int, epochs: int) -> dict[str, float]:
    (full, exact), (low, rounded) = (run(seed, lower, epochs) for lower in (False, True))
    moved = np.abs(payouts(full) - payouts(low)).sum() / 2 / REVENUE

    def crossed(cosines: np.ndarray) -> tuple[float, float]:
        held = cosines[np.isfinite(cosines)]
        return float((held < -1e-5).mean()), float(np.quantile(np.maximum(-held, 0), 0.99))

    (share, worst), (low_share, low_worst) = crossed(exact), crossed(rounded)
    return {
        "seed": seed,
        "spearman": float(np.corrcoef(ranks(full), ranks(low))[0, 1]),
        "kendall": kendall(full, low),
        "payouts_moved_percent": 100 * float(moved),
        "credit_change_percent": 100 * float(np.abs(low - full).sum() / np.abs(full).sum()),
        "crossed_float32": share,
        "crossed_bfloat16": low_share,
        "cosine_99_float32": worst,
        "cosine_99_bfloat16": low_worst,
    }


def main() -> None:
    options = arguments(__doc__).parse_args()
    seeds, epochs = ([0], 1) if options.smoke else ([0, 1, 2, 3, 4], 6)
    results = []
    for seed in seeds:
        results.append(compare(seed, epochs))
        print("  ".join(f"{k} {v:.5g}" for k, v in results[-1].items()), flush=True)
    means = {k: float(np.mean([r[k] for r in results])) for k in results[0] if k != "seed"}
    print("mean  " + "  ".join(f"{k} {v:.5g}" for k, v in means.items()))
    keep(options.out, results=results, means=means)


if __name__ == "__main__":
    main()
