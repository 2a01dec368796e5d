"""What a step knows at its parameters, and what it looks at beyond them: apart, or in one pass."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from vcca_jax.example_losses import checked_number
from vcca_jax.gradients import AgentGradients, Method, agent_gradients
from vcca_jax.held_out import HeldOutLoss
from vcca_jax.one_pass.shared_pass import AUTOMATIC, OnePass, losses_at, shared_pass, take
from vcca_jax.rows import Rows, named_rows, streamed_rows
from vcca_jax.step_forms import cheapest_form, form_costs
from vcca_jax.trainer import ExampleLoss, Params
from vcca_jax.values import Values
from vcca_jax.virtual_batch import VirtualBatch

StepMethod = Method | OnePass | Literal["auto"]
"""A form of the agent gradients, with its options perhaps, or the cheapest by shapes."""


class StepGradients(NamedTuple):
    """What is known at theta.

    Attributes:
        gradients: (g_1, ..., g_A), unscreened.
        value_losses: [M].
        rows: the M value gradients; ``Rows``, or params with a leading [M].
        validation_row: the validation loss's gradient as one row, if it came along.
        validation_loss: scalar at theta, if it came along.
    """

    gradients: AgentGradients
    value_losses: jax.Array
    rows: Params | Rows
    validation_row: Rows | None = None
    validation_loss: jax.Array | None = None


class Worth(NamedTuple):
    """Validation losses before the step, after what the optimizer does alone, and after the step.

    ``values`` [M] are the value losses after it.
    """

    before: jax.Array
    nobody: jax.Array
    everybody: jax.Array
    values: jax.Array


class Losses(NamedTuple):
    """The losses of a cooperative, bound once for all steps."""

    loss_fn: ExampleLoss
    validation: Callable[[Params], jax.Array]
    values: Values


def passes(method: StepMethod) -> bool:
    """Whether a form takes held-out examples along."""
    return isinstance(method, OnePass) or method == "one_pass"


def step_gradients(
    losses: Losses,
    params: Params,
    batch: VirtualBatch,
    context: Any,
    *,
    method: StepMethod,
    stream_values: bool,
    follow_validation: bool,
    named: jax.Array,
) -> StepGradients:
    """Agents' and value gradients at the parameters.

    Args:
        losses: the cooperative's.
        params: theta.
        batch: the step's.
        context: of the value losses.
        method: form of the agent gradients; "auto" leaves it to ``step_forms``.
        stream_values: never hold the M value gradients at once.
        follow_validation: the validation gradient will be asked for.
        named: [M], the values that some profile speaks of. Where the slope of another is not
            finite, such as that of a length at 0, it counts as 0: nobody asked for it, and 0 times
            it would be no number.

    Raises:
        ValueError: a validation loss that is not one floating-point number; what the forms refuse
            (``gradients``).
    """
    loss_fn, validation, values = losses
    _check_validation(validation, params)
    if method == "auto":
        held_out = [*values.functions, _valued(validation)]
        costs = form_costs(loss_fn, params, batch, held_out, context, apart=stream_values)
        method = cheapest_form(costs)
    if not passes(method) or stream_values:
        gradients = agent_gradients(
            loss_fn, params, batch, method="one_pass" if isinstance(method, OnePass) else method
        )
        if stream_values:
            told = values.losses(params, context)
            return StepGradients(gradients, told, streamed_rows(values, params, context, named))
        told, rows = values.gradients(params, context)
        return StepGradients(gradients, told, named_rows(rows, named))
    options = method if isinstance(method, OnePass) else AUTOMATIC
    along = follow_validation or isinstance(validation, HeldOutLoss)
    taken = [*values.functions, *([_valued(validation)] if along else [])]
    asked = jnp.concatenate([named, jnp.ones(len(taken) - len(named), bool)])
    seen = shared_pass(loss_fn, params, batch, taken, context, options=options, named=asked)
    count = len(values.functions)
    return StepGradients(
        seen.gradients,
        seen.losses[:count],
        take(seen.rows, range(count)),
        take(seen.rows, [count]) if along else None,
        seen.losses[count] if along else None,
    )


def step_worth(
    losses: Losses,
    known: StepGradients,
    params: Params,
    drifted: Params | None,
    moved: Params,
    context: Any,
) -> Worth:
    """The losses around a step; equal parameters are worth exactly the same, however rounded.

    Args:
        losses: the cooperative's.
        known: at ``params``.
        params: before the step.
        drifted: after what the optimizer does with a gradient of zero; None where that is nothing.
        moved: after the step.
        context: of the value losses.
    """
    loss_fn, validation, values = losses
    if known.validation_loss is None:
        nothing = params if drifted is None else drifted
        before, nobody, everybody = jax.vmap(validation)(
            jax.tree.map(lambda *leaves: jnp.stack(leaves), params, nothing, moved)
        )
        nobody = jnp.where(_equal(nothing, params), before, nobody)
        return Worth(before, nobody, everybody, values.losses(moved, context))
    before = known.validation_loss
    after = losses_at(loss_fn, moved, [*values.functions, _valued(validation)], context)
    # The pass and a plain evaluation round differently: a step that is none must show as none.
    stays = _equal(moved, params)
    nobody = before
    if drifted is not None:
        nobody = jnp.where(_equal(drifted, params), before, validation(drifted))
    return Worth(
        before,
        nobody,
        jnp.where(stays, before, after[-1]),
        jnp.where(stays, known.value_losses, after[:-1]),
    )


def _valued(validation: Callable[[Params], jax.Array]) -> Callable[[Params, Any], jax.Array]:
    """A validation loss, called as value losses are."""
    if isinstance(validation, HeldOutLoss):
        # Worth is measured on all rows, whatever is drawn for the values.
        return validation if validation.sizes is None else replace(validation, sizes=None)
    return lambda params, context: validation(params)


def _check_validation(validation: Callable[[Params], jax.Array], params: Params) -> None:
    if isinstance(validation, HeldOutLoss):
        return  # a number by what it is made of
    checked_number(jax.eval_shape(validation, params), "validation_loss")


def _equal(left: Params, right: Params) -> jax.Array:
    same = jax.tree.map(lambda x, y: (x == y).all(), left, right)
    return jax.tree.reduce(jnp.logical_and, same)
