"""The estimators under test: programs over a run's arrays, and samplers of the retraining game."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import vcca_jax as vcca
from experiments.fidelity.config import AGENTS, Config
from experiments.fidelity.problems import Arrays, Model, Rows, sent
from vcca_jax import contribution

Program = Callable[[Arrays], Any]

RUN, RETRAINED = "one run", "all coalitions"
SHAPLEY, LEFT_OUT = "Shapley", "leave-one-out"
ONLINE_NODES = 4

FAMILIES = {
    "retraining": "retraining, exact",
    "sampled": "retraining, sampled",
    "run": "through the run",
    "online": "online, one step",
    "baseline": "baseline",
}


def programs(model: Model, config: Config) -> dict[str, Program]:
    """Every program of a data set, each of the arrays alone; credits [A] but for the first two."""
    loss_fn, optimizer = model.loss_fn, model.optimizer

    def mean_loss(params: Any, rows: Rows) -> jax.Array:
        return loss_fn(params, rows.inputs, rows.targets).mean()

    def changed(arrays: Arrays) -> Any:
        return None if arrays.cheating is None else partial(sent, loss_fn, arrays.cheating)

    def worth(arrays: Arrays) -> contribution.Utility:
        return vcca.training_utility(
            loss_fn,
            arrays.start,
            optimizer,
            arrays.batches,
            lambda params: mean_loss(params, arrays.validation),
            changed=changed(arrays),
        )

    def retrained(arrays: Arrays) -> jax.Array:
        """Both truths' utilities of every coalition, [2**A, 2], by one retraining each."""
        both = vcca.training_utility(
            loss_fn,
            arrays.start,
            optimizer,
            arrays.batches,
            lambda params: jnp.stack(
                [mean_loss(params, arrays.validation), mean_loss(params, arrays.test)]
            ),
            changed=changed(arrays),
        )
        members = contribution.all_coalitions(AGENTS).astype(jnp.float32)
        return jax.lax.map(both, members, batch_size=config.chunk)

    def online(estimate: Callable[..., jax.Array]) -> Program:
        """The sum over the run of each step's credit, of the run that is made anyway."""

        def program(arrays: Arrays) -> jax.Array:
            cheat = changed(arrays)

            def step(carried: Any, at: tuple[jax.Array, Any]) -> tuple[Any, None]:
                (params, state, total), (t, batch) = carried, at
                gradients = vcca.agent_gradients(loss_fn, params, batch)
                if cheat is not None:
                    gradients = cheat(gradients, params, t)
                utility = vcca.one_step_utility(
                    params,
                    state,
                    gradients,
                    optimizer,
                    lambda params: mean_loss(params, arrays.validation),
                )
                credits = estimate(utility, jnp.ones(AGENTS), gradients)
                updates, state = optimizer.update(gradients.sum(), state, params)
                return (optax.apply_updates(params, updates), state, total + credits), None

            start = arrays.start, optimizer.init(arrays.start), jnp.zeros(AGENTS)
            times = jnp.arange(arrays.batches.mask.shape[0])
            return jax.lax.scan(step, start, (times, arrays.batches))[0][2]

        return program

    def of(estimator: Any, **options: Any) -> Callable[..., jax.Array]:
        return lambda utility, weights, gradients: estimator(utility, weights, **options)

    def norms(utility: Any, weights: jax.Array, gradients: Any) -> jax.Array:
        squares = [
            jnp.sum(leaf.reshape(AGENTS, -1) ** 2, axis=1)
            for leaf in jax.tree.leaves(gradients.stack())
        ]
        return jnp.sqrt(sum(squares[1:], squares[0]))

    def through(estimator: Any, **options: Any) -> Program:
        return lambda arrays: estimator(worth(arrays), jnp.ones(AGENTS), **options)

    found = {
        RUN: lambda arrays: worth(arrays)(jnp.ones(AGENTS)),
        RETRAINED: retrained,
        "influence of the run": through(vcca.influence),
        **{
            f"Aumann-Shapley of the run, {n}": through(vcca.aumann_shapley, nodes=n)
            for n in config.nodes
        },
        "online leave-one-out": online(of(vcca.leave_one_out)),
        "online influence": online(of(vcca.influence)),
        "online in-run 1": online(of(vcca.in_run, order=1)),
        "online in-run 2": online(of(vcca.in_run, order=2)),
        "online Aumann-Shapley, 4": online(of(vcca.aumann_shapley, nodes=ONLINE_NODES)),
        "gradient norm": online(norms),
    }
    if config.programs is None:
        return found
    return {name: found[name] for name in (RUN, RETRAINED, *config.programs)}


def family(name: str) -> str:
    """The key in ``FAMILIES``."""
    if name in (SHAPLEY, LEFT_OUT, "Banzhaf"):
        return "retraining"
    if name in ("size", "gradient norm", "random"):
        return "baseline"
    if "of the run" in name:
        return "run"
    return "online" if name.startswith("online") else "sampled"


def samplers(config: Config) -> dict[str, Callable[..., contribution.Sampled]]:
    """Samplers of the retraining game at their budgets."""
    found: dict[str, Any] = {
        f"permutation, {n} orders": partial(
            contribution.permutation_shapley_with_error, permutations=n
        )
        for n in config.orders
    }
    for name, sampler in (
        ("stratified", contribution.stratified_shapley_with_error),
        ("leverage", contribution.leverage_shapley_with_error),
        ("kernel", contribution.kernel_shapley_with_error),
    ):
        found |= {f"{name}, {n}": partial(sampler, evaluations=n) for n in config.budgets}
    return found


def tabled(table: jax.Array) -> contribution.Utility:
    """The game of the worths [2**A] of all coalitions: weights are rounded to membership."""
    places = jnp.asarray(2 ** np.arange(AGENTS))
    return lambda weights: table[jnp.sum(jnp.where(weights > 0.5, places, 0))]


@cache
def _from_table(orders: tuple[int, ...], budgets: tuple[int, ...]) -> Any:
    sampled = samplers(Config(tasks={}, orders=orders, budgets=budgets))

    @jax.jit
    def run(table: jax.Array, key: jax.Array) -> Any:
        utility, everybody = tabled(table), jnp.ones(AGENTS)
        exact = {
            SHAPLEY: vcca.exact_shapley(utility, everybody),
            LEFT_OUT: vcca.leave_one_out(utility, everybody),
            "Banzhaf": vcca.banzhaf(utility, everybody),
        }
        drawn = {name: sample(utility, everybody, key=key) for name, sample in sampled.items()}
        return exact, drawn

    return run


def from_table(
    table: np.ndarray, seed: int, config: Config
) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """Credits [A] of all estimators that retrain, and how many coalitions each asked for."""
    run = _from_table(config.orders, config.budgets)
    exact, drawn = run(jnp.asarray(table, jnp.float32), jax.random.key(seed))
    credits = {**exact, **{name: each.credits for name, each in drawn.items()}}
    asked = {SHAPLEY: 2**AGENTS, LEFT_OUT: AGENTS + 1, "Banzhaf": 2**AGENTS}
    asked |= {name: int(each.evaluations) for name, each in drawn.items()}
    return {name: np.asarray(each) for name, each in credits.items()}, asked


def products(function: Program, arrays: Arrays) -> float:
    """Multiplications in the matrix products of a program, those in loops as often as they run.

    A compiler's own account counts a loop's body once; this one is the same on every machine.
    Elementwise work is left out: models of this size spend more on it than this tells.
    """
    return _products(jax.make_jaxpr(function)(arrays).jaxpr)


def _products(jaxpr: Any) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            result = equation.outvars[0].aval.shape
            total += float(np.prod(result) * np.prod([left[axis] for axis in contracted]))
            continue
        inner = [
            _products(getattr(each, "jaxpr", each))
            for parameter in equation.params.values()
            for each in (parameter if isinstance(parameter, list | tuple) else (parameter,))
            if hasattr(getattr(each, "jaxpr", each), "eqns")
        ]
        times = equation.params["length"] if equation.primitive.name == "scan" else 1
        total += times * sum(inner)
    return total
