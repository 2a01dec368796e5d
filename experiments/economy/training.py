"""One program that trains a world and credits every step with every estimator."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import vcca_jax as vcca
from experiments.economy.agents import CLASSES, PROTECTED, World
from experiments.economy.config import ESTIMATORS, Config
from vcca_jax.contribution import Utility
from vcca_jax.corruption import scaled_updates
from vcca_jax.duplicates import update_cosines
from vcca_jax.gradients import AgentGradients, from_stack
from vcca_jax.plan import TraversalPlan
from vcca_jax.rows import rows_gram
from vcca_jax.screening import Screen, ScreenReport
from vcca_jax.trainer import Params, where_live


class PeriodSums(NamedTuple):
    """What one period leaves behind, of one seed.

    Attributes:
        credits: [E, A], summed over the period's steps, one row an estimator.
        gain, audit_gain: scalars, fall of the validation and of the audit loss.
        gram: [A, A], inner products of the agents' unscreened updates, each summed over the period.
        steps: [A] int, steps in which the agent had a sample.
        dropped, conflicts: [A] int, of them, those whose update was dropped, or ran against the
            value as it came.
        validation_loss, audit_loss, protected_loss: scalars, after the period.
        test_accuracy: scalar, after the period.
    """

    credits: jax.Array
    gain: jax.Array
    audit_gain: jax.Array
    gram: jax.Array
    steps: jax.Array
    dropped: jax.Array
    conflicts: jax.Array
    validation_loss: jax.Array
    audit_loss: jax.Array
    protected_loss: jax.Array
    test_accuracy: jax.Array


def model_of(config: Config) -> vcca.SplitModel:
    """64 inputs, one hidden layer, 10 classes."""
    return vcca.mlp(64, (config.hidden,), CLASSES, cut=1)


SCREENS: dict[str, Screen] = {
    "own": vcca.screen("project", scope="own"),
    "everyone": vcca.screen("project", scope="everyone"),
    "reject": vcca.screen("reject", scope="everyone"),
}


def screened_by(
    choice: jax.Array, gradients: AgentGradients, rows: Params, profiles: vcca.ValueProfiles
) -> tuple[AgentGradients, ScreenReport]:
    """Screen by the chosen one of ``SCREENS``: one program holds them all."""

    def branch(screen: Screen) -> Any:
        def apply(_: None) -> tuple[Params, jax.Array, ScreenReport]:
            screened, report = screen(gradients, rows, profiles)
            return screened.stack(), screened.present, report

        return apply

    stack, present, report = jax.lax.switch(choice, [branch(s) for s in SCREENS.values()], None)
    return from_stack(stack, gradients.losses, present, gradients.active), report


def credit_all(
    config: Config, utility: Utility, audit: Utility, weights: jax.Array, key: jax.Array
) -> jax.Array:
    """[E, A], the step's credits under every estimator, in the order of ``ESTIMATORS``."""
    nodes = partial(vcca.aumann_shapley, nodes=4)
    rows = {
        "aumann_shapley": nodes(utility, weights),
        "influence": vcca.influence(utility, weights),
        "in_run order 1": vcca.in_run(utility, weights, order=1),
        "in_run order 2": vcca.in_run(utility, weights, order=2),
        "leave_one_out": vcca.leave_one_out(utility, weights),
        "permutation_shapley": vcca.permutation_shapley(
            utility, weights, permutations=config.permutations, antithetic=True, key=key
        ),
        "aumann_shapley on audit rows": nodes(audit, weights),
    }
    return jnp.stack([rows[name] for name in ESTIMATORS])


def train_world(config: Config, world: World, choice: jax.Array) -> PeriodSums:
    """Train one world through all its periods; every field of the result gets a leading [P].

    Args:
        config: sizes and terms.
        world: the agents' data, batches and profiles.
        choice: scalar, which of ``SCREENS``, by position.
    """
    model = model_of(config)
    loss_fn = vcca.model_loss(model, optax.softmax_cross_entropy_with_integer_labels)
    optimizer = optax.sgd(config.learning_rate)
    values = vcca.value_losses({PROTECTED: vcca.group_loss(loss_fn, *world.protected)})
    losses = {
        name: partial(vcca.group_loss(loss_fn, *getattr(world, name)), context=None)
        for name in ("validation", "audit", "protected")
    }
    key = jax.random.fold_in(jax.random.key(0), world.seed)
    first = model.init(jax.random.fold_in(key, 0))

    def step(
        carried: tuple[Params, Params, jax.Array], at: tuple[TraversalPlan, jax.Array]
    ) -> tuple[Any, Any]:
        params, sums, count = carried
        plan, active = at
        batch = vcca.gather(world.shards._replace(active=active), plan)
        honest = vcca.agent_gradients(loss_fn, params, batch, method="stacked")
        gradients = scaled_updates(honest, world.scale)
        _, rows = values.gradients(params, None)
        screened, report = screened_by(choice, gradients, rows, world.profiles)
        utility, audit = (
            vcca.one_step_utility(params, optimizer.init(params), screened, optimizer, losses[name])
            for name in ("validation", "audit")
        )
        weights = screened.present.astype(jnp.float32)
        credits = credit_all(config, utility, audit, weights, jax.random.fold_in(key, count + 1))
        moved = optax.apply_updates(
            params, optimizer.update(screened.sum(), optimizer.init(params), params)[0]
        )
        told = {
            "credits": credits,
            "gain": losses["validation"](params) - losses["validation"](moved),
            "audit_gain": losses["audit"](params) - losses["audit"](moved),
            "steps": gradients.present.astype(jnp.int32),
            "dropped": (gradients.present & ~report.feasible).astype(jnp.int32),
            "conflicts": report.conflicts[:, 0].astype(jnp.int32),
        }
        told = where_live(batch, told, jax.tree.map(jnp.zeros_like, told))
        summed = jax.tree.map(jnp.add, sums, gradients.stack())
        after = where_live(batch, (moved, summed), (params, sums))
        return (*after, count + 1), told

    def period(
        carried: tuple[Params, jax.Array], at: tuple[TraversalPlan, jax.Array]
    ) -> tuple[tuple[Params, jax.Array], PeriodSums]:
        params, count = carried
        plan, active = at
        nothing = jax.tree.map(lambda p: jnp.zeros((active.shape[0], *p.shape), p.dtype), params)
        repeated = jnp.broadcast_to(active, (plan.mask.shape[0], *active.shape))
        (params, sums, count), told = jax.lax.scan(step, (params, nothing, count), (plan, repeated))
        inputs, targets = world.test
        return (params, count), PeriodSums(
            **jax.tree.map(lambda each: each.sum(axis=0), told),
            gram=rows_gram(sums),
            validation_loss=losses["validation"](params),
            audit_loss=losses["audit"](params),
            protected_loss=losses["protected"](params),
            test_accuracy=(model.apply(params, inputs).argmax(axis=1) == targets).mean(),
        )

    start = (first, jnp.zeros((), jnp.int32))
    return jax.lax.scan(period, start, (world.plan, world.active))[1]


def row_cosines(config: Config, world: World) -> jax.Array:
    """[A, S, S], for every agent the cosines between its rows' gradients, before training.

    Traversal shows each row's gradient (activations and what is sent back to them), so rows that
    are sent twice can be seen without seeing an input.
    """
    model = model_of(config)
    loss_fn = vcca.model_loss(model, optax.softmax_cross_entropy_with_integer_labels)
    params = model.init(jax.random.fold_in(jax.random.fold_in(jax.random.key(0), world.seed), 0))

    def of_agent(shard: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        inputs, targets, mask = shard
        gradient = jax.vmap(
            lambda x, y: jax.grad(lambda p: loss_fn(p, x[None], y[None])[0])(params)
        )
        rows = gradient(inputs, targets)
        return update_cosines((rows_gram(rows) * mask[:, None] * mask[None, :])[None])

    return jax.lax.map(of_agent, (world.shards.inputs, world.shards.targets, world.shards.mask))


def trainer(config: Config) -> Any:
    """``train_world`` over the seeds of one scenario: mapped, then compiled once.

    A second trace raises: some scenario would be of another shape than the first.
    """
    model_of(config)  # imports its layers' library now, which while tracing would void the cache
    traces = 0

    def traced(world: World, choice: jax.Array) -> PeriodSums:
        nonlocal traces
        traces += 1
        if traces > 1:
            raise RuntimeError("a scenario changed a shape: the program would be compiled again")
        return train_world(config, world, choice)

    return jax.jit(jax.vmap(traced, in_axes=(0, None)))
