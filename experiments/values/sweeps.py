"""One step at a time: how far a protected loss rises, against the learning rate."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import vcca_jax as vcca
from experiments.values.problems import Data, Problem
from experiments.values.settings import profiles_of, stated_signs
from experiments.values.training import COMPILE_FAST, TOLERANCE
from vcca_jax.trainer import Params

STEPS = ("unscreened", "everyone", "verified")


def single_steps(problem: Problem) -> Callable[[Data, Params, Any, Any], jax.Array]:
    """``steps(data, params, profiles, etas) -> [R, T, N, 3]``, seeds leading in data and params.

    From the same parameters a step of every learning rate is taken with each of the first epoch's
    T batches, in the three ways of ``STEPS``; the number is the largest unwanted change of a value
    loss that somebody states, in the loss's unit, and negative where none was.
    """
    values, signs = problem.values, stated_signs(problem)
    screen = vcca.screen("project", scope="everyone")

    def steps(data: Data, params: Params, profiles: Any, etas: Any) -> jax.Array:
        context = {"rows": data.rows, "probes": problem.fit(params, data.fits)}
        before, rows = values.gradients(params, context)

        def rise(updates: Params) -> jax.Array:
            change = values.losses(optax.apply_updates(params, updates), context) - before
            return jnp.where(signs == 0, -jnp.inf, signs * change).max()

        def of_batch(at: vcca.TraversalPlan) -> jax.Array:
            batch = vcca.gather(data.shards, at)
            gradients = vcca.agent_gradients(problem.loss_fn, params, batch, method="stacked")
            screened, _ = screen(gradients, rows, profiles)
            plain, changed = gradients.sum(), screened.sum()

            def of_rate(eta: jax.Array) -> jax.Array:
                kept = vcca.keep_admissible(
                    optax.sgd(eta), values, learning_rate=lambda count: eta, tolerance=TOLERANCE
                )
                applied, _ = kept.update(
                    changed,
                    kept.init(params),
                    params,
                    value_gradients=rows,
                    profiles=profiles,
                    active=batch.active,
                    context=context,
                )
                scaled = [
                    jax.tree.map(lambda leaf: -eta * leaf, direction)
                    for direction in (plain, changed)
                ]
                return jnp.stack([rise(updates) for updates in (*scaled, applied)])

            return jax.lax.map(of_rate, etas)

        return jax.lax.map(of_batch, jax.tree.map(lambda leaf: leaf[0], data.plan))

    return jax.vmap(steps, in_axes=(0, 0, None, None))


def measured_steps(
    problem: Problem, data: Data, params: Params, etas: tuple[float, ...]
) -> np.ndarray:
    """[R, T, N, 3], ``single_steps`` in double precision."""
    with jax.enable_x64(True):

        def double(leaf: Any) -> Any:
            leaf = np.asarray(leaf)
            return leaf.astype(np.float64) if leaf.dtype == np.float32 else leaf

        profiles = profiles_of(problem)
        arguments = jax.tree.map(double, (data, params, profiles))
        run = jax.jit(single_steps(problem), compiler_options=COMPILE_FAST)
        found = run(*arguments, np.asarray(etas, np.float64))
        return np.asarray(found)


def slope(etas: np.ndarray, rises: np.ndarray) -> float:
    """Least-squares slope of log rise against log eta; NaN where fewer than two are positive."""
    positive = rises > 0
    if positive.sum() < 2:
        return float("nan")
    return float(np.polyfit(np.log(etas[positive]), np.log(rises[positive]), 1)[0])
