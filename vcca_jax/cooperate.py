"""The whole step: traverse, screen, update, credit."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from vcca_jax import screening
from vcca_jax.admission import informed_update
from vcca_jax.contribution import Estimator, aumann_shapley
from vcca_jax.gradients import Method, agent_gradients
from vcca_jax.metric import Metric
from vcca_jax.profiles import ValueProfiles
from vcca_jax.rows import Rows, streamed_rows
from vcca_jax.screening import Screen, ScreenReport
from vcca_jax.trainer import ExampleLoss, Params, Trainer, where_live
from vcca_jax.utility import one_step_utility
from vcca_jax.values import Values
from vcca_jax.virtual_batch import VirtualBatch


class CooperateState(NamedTuple):
    """What the next step needs.

    Everything that may change between steps without recompiling is here: replace ``context`` to
    refit a probe, ``profiles`` when a principal's values change.

    Attributes:
        params: the shared model's parameters.
        optimizer_state: the optimizer's.
        profiles: the principals' value profiles.
        context: of the value losses.
        credits: [A], each agent's credit accumulated over all steps, in the utility's unit.
        carry_over: scalar, accumulated worth of the optimizer's memory, credited to nobody.
        key: for estimators that sample; step t uses ``fold_in(key, t)``.
        step: scalar int32, batches with a live sample so far.
    """

    params: Params
    optimizer_state: Any
    profiles: ValueProfiles
    context: Any
    credits: jax.Array
    carry_over: jax.Array
    key: jax.Array
    step: jax.Array


class CooperateInfo(NamedTuple):
    """What a reader wants of one step; all zero for a batch without a live sample.

    Attributes:
        loss: scalar, mean training loss of the batch before the step.
        value_losses: [M], before the step.
        value_changes: [M], what the step really did to them, in the same context.
        report: of the screen.
        present: [A] bool, agents with a sample in the batch.
        credits: [A], this step's. With the screen outside, exactly 0 for an agent that was absent
            or dropped; inside, a coalition may admit what was dropped, and under scope "everyone"
            an estimator that evaluates coalitions credits an absent principal's restraint too.
        gain: scalar, v(1) - v(0), the worth of what the agents brought.
        carry_over: scalar, v(0) - v(nothing done), the worth of the optimizer's memory.
        residual: scalar, gain - sum of credits: what the estimator leaves unassigned.
    """

    loss: jax.Array
    value_losses: jax.Array
    value_changes: jax.Array
    report: ScreenReport
    present: jax.Array
    credits: jax.Array
    gain: jax.Array
    carry_over: jax.Array
    residual: jax.Array


def cooperate(
    loss_fn: ExampleLoss,
    optimizer: optax.GradientTransformation,
    validation_loss: Callable[[Params], jax.Array],
    values: Values,
    *,
    screen: Screen | None = None,
    screen_inside: bool = False,
    estimator: Estimator | None = None,
    method: Method = "linearized",
    metric: Metric | None = None,
    stream_values: bool = False,
) -> Trainer:
    """Trainer of a value-constrained cooperative.

    A step traverses the virtual batch (g_i), screens it (g~_i), updates on sum_i g~_i, and credits
    each agent with its marginal contribution to the step's utility, online. ``init(params,
    profiles, *, context=None, key=None)`` makes a ``CooperateState``.

    Args:
        loss_fn: per-example loss.
        optimizer: any optax optimizer. Admissibility is promised for the direction it is given:
            with plain SGD that is the update's own direction. Wrapped by ``keep_admissible`` it is
            promised for what is applied, and verified.
        validation_loss: ``validation_loss(params) -> scalar``, on data that no agent trains on;
            the utility is its negative.
        values: the value losses.
        screen: ``screening.screen("project", scope="own")`` by default.
        screen_inside: credit in the game where each coalition is screened anew; see
            ``one_step_utility``.
        estimator: ``estimator(utility, weights, key=key) -> [A]``; ``aumann_shapley`` with 4
            nodes by default, which suffice for the short way of one step.
        method: form of the agent gradients.
        metric: screens in the metric of the optimizer, such as ``adam_metric()``; it takes one
            more backward pass.
        stream_values: never hold the M value gradients at once; see ``streamed_rows``.
    """
    screen = screening.screen("project", scope="own") if screen is None else screen
    estimator = partial(aumann_shapley, nodes=4) if estimator is None else estimator

    def init(
        params: Params,
        profiles: ValueProfiles,
        *,
        context: Any = None,
        key: jax.Array | None = None,
    ) -> CooperateState:
        return CooperateState(
            params=params,
            optimizer_state=optimizer.init(params),
            profiles=jax.tree.map(jnp.asarray, profiles),
            context=context,
            credits=jnp.zeros(profiles.mask.shape[0]),
            carry_over=jnp.zeros(()),
            key=jax.random.key(0) if key is None else key,
            step=jnp.zeros((), jnp.int32),
        )

    def step(state: CooperateState, batch: VirtualBatch) -> tuple[CooperateState, CooperateInfo]:
        params = state.params
        gradients = agent_gradients(loss_fn, params, batch, method=method)
        if stream_values:
            value_losses = values.losses(params, state.context)
            rows: Params | Rows = streamed_rows(values, params, state.context)
        else:
            value_losses, rows = values.gradients(params, state.context)
        screen_now = screen
        if metric is not None:
            diagonal = metric(state.optimizer_state, gradients.sum())
            screen_now = partial(screen, metric=diagonal)
        screened, report = screen_now(gradients, rows, state.profiles)
        update = informed_update(
            optimizer,
            value_gradients=rows,
            profiles=state.profiles,
            active=batch.active,
            context=state.context,
        )
        # Outside, whose term is nothing needs no valuing: its credit is 0 by construction.
        members = batch.active if screen_inside else screened.present
        weights = members.astype(state.credits.dtype)
        # Weighed as the grand coalition is, so that the compiler finds one backward pass, not two.
        updates, optimizer_state = update(
            screened.sum(None if screen_inside else weights), state.optimizer_state, params
        )

        utility = one_step_utility(
            params,
            state.optimizer_state,
            gradients if screen_inside else screened,
            optimizer,
            validation_loss,
            screen=screen_now if screen_inside else None,
            value_gradients=rows,
            profiles=state.profiles,
            context=state.context,
        )
        credits = estimator(utility, weights, key=jax.random.fold_in(state.key, state.step))
        moved = optax.apply_updates(params, updates)
        idle, _ = update(jax.tree.map(jnp.zeros_like, updates), state.optimizer_state, params)
        drifted = optax.apply_updates(params, idle)
        before, nobody, everybody = jax.vmap(validation_loss)(
            jax.tree.map(lambda *leaves: jnp.stack(leaves), params, drifted, moved)
        )
        # Equal parameters are worth exactly the same, however the losses were rounded.
        nobody = jnp.where(_equal(drifted, params), before, nobody)
        gain = nobody - everybody
        info = CooperateInfo(
            loss=gradients.losses.sum(),
            value_losses=value_losses,
            value_changes=values.losses(moved, state.context) - value_losses,
            report=report,
            present=gradients.present,
            credits=credits,
            gain=gain,
            carry_over=before - nobody,
            residual=gain - credits.sum(),
        )
        info = where_live(batch, info, jax.tree.map(jnp.zeros_like, info))
        after = state._replace(
            params=moved,
            optimizer_state=optimizer_state,
            credits=state.credits + info.credits,
            carry_over=state.carry_over + info.carry_over,
            step=state.step + 1,
        )
        return where_live(batch, after, state), info

    return Trainer(init, step)


def _equal(left: Params, right: Params) -> jax.Array:
    same = jax.tree.map(lambda x, y: (x == y).all(), left, right)
    return jax.tree.reduce(jnp.logical_and, same)
