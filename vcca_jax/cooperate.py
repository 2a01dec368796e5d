"""The whole step: traverse, screen, update, credit."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax

from vcca_jax import screening
from vcca_jax.admission import informed_update
from vcca_jax.arguments import check_takes
from vcca_jax.contribution import Estimator, aumann_shapley, first_order
from vcca_jax.gradients import AgentGradients, Method
from vcca_jax.metric import Metric
from vcca_jax.one_pass.shared_pass import AUTOMATIC, OnePass
from vcca_jax.profiles import ValueProfiles, check_agents, check_names, named_values
from vcca_jax.screening import Screen, ScreenReport
from vcca_jax.step_gradients import (
    Losses,
    StepMethod,
    passes,
    step_gradients,
    step_worth,
)
from vcca_jax.trainer import ExampleLoss, Params, Trainer, strong, where_live
from vcca_jax.utility import OneStepUtility, one_step_utility
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
        example_credits: [B], each sample's part of its owner's credit, or None where it was not
            asked for. What the screen added to an owner's update is in its credit and in no
            sample's.
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
    example_credits: jax.Array | None = None


def cooperate(
    loss_fn: ExampleLoss,
    optimizer: optax.GradientTransformation,
    validation_loss: Callable[[Params], jax.Array],
    values: Values,
    *,
    screen: Screen | None = None,
    screen_inside: bool = False,
    estimator: Estimator | None = None,
    method: StepMethod = "auto",
    metric: Metric | None = None,
    stream_values: bool = False,
    credit_examples: bool = False,
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
        method: form of the agent gradients. "one_pass", or ``OnePass`` with its options, takes the
            examples of value losses and of the validation loss that name them (``group_loss``)
            along with the batch: one forward and one backward pass for all of the step. "auto"
            takes the cheapest by shapes that fits into memory (``form_costs``). All give the same
            numbers to rounding.
        metric: screens in the metric of the optimizer, such as ``adam_metric()``; it takes one
            more backward pass.
        stream_values: never hold the M value gradients at once; see ``streamed_rows``. In one pass
            they are not held anyway, where their losses name their examples.
        credit_examples: tell each sample's part of the credit too. It takes the one-pass form, the
            estimator ``first_order``, a screen outside and an optimizer whose update is
            proportional to the gradient; elsewhere, give ``by_example(batch)`` to the step, which
            makes every sample an agent.

    Raises:
        ValueError: an argument that is not a stage, such as a stage's name; ``credit_examples``
            without what it needs; by ``init`` and the step, profiles of other values than these; by
            the step, something that is not a batch, an optimizer that is not of that kind, an
            estimator that does not return one credit an agent, or a screen without a
            ``ScreenReport``.
    """
    _check_stages(loss_fn, optimizer, validation_loss, values)
    _check_options(screen, estimator, metric, method, stream_values)
    if credit_examples and method == "auto":
        method = "one_pass"
    if credit_examples and (
        not passes(method) or estimator is not first_order or screen_inside or stream_values
    ):
        raise ValueError(
            "credit_examples=True takes method='one_pass', estimator=first_order, screen_inside="
            "False and stream_values=False; or make every sample an agent with by_example(batch)"
        )
    losses = Losses(loss_fn, validation_loss, values)
    screen = screening.screen("project", scope="own") if screen is None else screen
    estimator = partial(aumann_shapley, nodes=4) if estimator is None else estimator

    def init(
        params: Params,
        profiles: ValueProfiles,
        *,
        context: Any = None,
        key: jax.Array | None = None,
    ) -> CooperateState:
        check_names(profiles, values.names)
        params = strong(params)
        return CooperateState(
            params=params,
            optimizer_state=strong(optimizer.init(params)),
            profiles=strong(profiles),
            context=strong(context),
            credits=jnp.zeros(profiles.mask.shape[0]),
            carry_over=jnp.zeros(()),
            key=jax.random.key(0) if key is None else strong(key),
            step=jnp.zeros((), jnp.int32),
        )

    def step(state: CooperateState, batch: VirtualBatch) -> tuple[CooperateState, CooperateInfo]:
        if not hasattr(batch, "owners") or not hasattr(batch, "inputs"):
            raise ValueError(
                f"batch is a {type(batch).__name__}; make one of a plan's step with"
                " gather(members.shards, step)"
            )
        params = state.params
        check_names(state.profiles, values.names)
        check_agents(state.profiles, batch.active.shape[0])
        known = step_gradients(
            losses,
            params,
            batch,
            state.context,
            method=method,
            stream_values=stream_values,
            follow_validation=estimator is first_order,
            named=named_values(state.profiles, batch.active, len(values.names)),
        )
        gradients, rows = known.gradients, known.rows
        screen_now = screen
        if metric is not None:
            diagonal = metric(state.optimizer_state, gradients.sum())
            if callable(diagonal):
                raise ValueError("metric returned a function; call what makes one: adam_metric()")
            screen_now = partial(screen, metric=diagonal)
        screened, report = _answer(screen_now(gradients, rows, state.profiles))
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
            validation_row=known.validation_row,
        )
        credits = estimator(utility, weights, key=jax.random.fold_in(state.key, state.step))
        if jnp.shape(credits) != weights.shape:
            raise ValueError(
                f"estimator returned {jnp.shape(credits)} for {weights.shape[0]} agents; return one"
                " credit an agent (vcca_jax.conformance.check_estimator tells what else is asked)"
            )
        moved = optax.apply_updates(params, updates)
        drifted = None
        if utility.proportion is None or utility.proportion.rest:
            idle, _ = update(jax.tree.map(jnp.zeros_like, updates), state.optimizer_state, params)
            drifted = optax.apply_updates(params, idle)
        worth = step_worth(losses, known, params, drifted, moved, state.context)
        gain = worth.nobody - worth.everybody
        info = CooperateInfo(
            loss=gradients.losses.sum(),
            value_losses=known.value_losses,
            value_changes=worth.values - known.value_losses,
            report=report,
            present=gradients.present,
            credits=credits,
            gain=gain,
            carry_over=worth.before - worth.nobody,
            residual=gain - credits.sum(),
            example_credits=_sample_credits(utility, weights, batch) if credit_examples else None,
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


def _check_stages(loss_fn: Any, optimizer: Any, validation_loss: Any, values: Any) -> None:
    """Refuse what cannot be a stage while its name is known, not deep inside a trace."""
    check_takes("loss_fn", loss_fn, ("params", "inputs", "targets"))
    if not callable(getattr(optimizer, "update", None)):
        raise ValueError(
            f"optimizer={optimizer!r} is not an optax optimizer; give one, as optax.sgd(0.1)"
        )
    check_takes("validation_loss", validation_loss, ("params",))
    if not isinstance(values, Values):
        raise ValueError(
            f"values is a {type(values).__name__}; name the losses with value_losses({{...}})"
        )


def _check_options(
    screen: Any, estimator: Any, metric: Any, method: Any, stream_values: bool
) -> None:
    """The same for the stages that have a default."""
    if screen is not None:
        measured = () if metric is None else ("metric",)
        check_takes("screen", screen, ("gradients", "value_gradients", "profiles"), measured)
    if estimator is not None:
        check_takes("estimator", estimator, ("utility", "weights"), ("key",))
    if metric is not None:
        check_takes("metric", metric, ("optimizer_state", "gradient"))
    if not isinstance(method, OnePass) and method not in ("auto", *get_args(Method)):
        raise ValueError(
            f"method={method!r} must be 'auto', one of {sorted(get_args(Method))}, or OnePass(...)"
        )
    if isinstance(method, OnePass) and method != AUTOMATIC and stream_values:
        raise ValueError(
            f"method={method!r} has options that stream_values=True does not follow; leave out one"
            " of the two"
        )


def _answer(told: Any) -> tuple[AgentGradients, ScreenReport]:
    """What a screen returned, if it is what screens return."""
    if type(told) is not tuple or len(told) != 2 or not isinstance(told[1], ScreenReport):
        kinds = told if type(told) is tuple else (told,)
        raise ValueError(
            f"screen returns {', '.join(type(each).__name__ for each in kinds)}; return (gradients,"
            " ScreenReport), for instance untouched(gradients, value_gradients)"
        )
    return told


def _sample_credits(utility: OneStepUtility, weights: jax.Array, batch: VirtualBatch) -> jax.Array:
    told = utility.examples(weights, batch.owners)
    if told is None:
        raise ValueError(
            "credit_examples=True, but the optimizer's update is not proportional to the gradient,"
            " or the screen is not one that adds value gradients; make every sample an agent with"
            " by_example(batch) instead"
        )
    return jnp.where(batch.mask, told, 0)
