"""Value gradients over time: of rows drawn anew, or kept for a few steps.

A screen that measures its value gradients on the same rows in every step learns those rows: what
it promises is about them. ``redrawn`` hands every step, or every k-th, other rows of a larger
group, so that an update is admissible to an unbiased estimate of the group's gradient, and the
errors of one draw do not add up. ``retaken`` goes the other way, for cost: it measures value
gradients in every k-th step only, and screens with what was measured in between,

    V_m(theta)  ~  V_m(theta_0) + <grad V_m(theta_0), theta - theta_0>,

with theta_0 the parameters at the last step whose number k divides. Neither recompiles: the step's
number decides inside the program, in a ``lax.scan`` as well.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vcca_jax.held_out import DRAW
from vcca_jax.rows import rows_dot
from vcca_jax.trainer import Params, Trainer
from vcca_jax.values import ValueLoss, Values


def redrawn(trainer: Trainer, key: jax.Array, *, every: int | jax.Array = 1) -> Trainer:
    """The same trainer, whose ``drawn_loss`` values read other rows every few steps.

    Step t hands the value losses a context with the key ``fold_in(key, t // every)``, from which
    each takes its rows; the state's own context stays what it is. A resumed run draws as one that
    never stopped.

    Args:
        trainer: of ``cooperate``; its context is None or a mapping.
        key: of the run.
        every: steps from one draw to the next, at least 1; it may be traced.

    Raises:
        ValueError: an ``every`` below 1; by the step, a context that is neither.
    """
    _check_every(every)

    def step(state: Any, batch: Any) -> tuple[Any, Any]:
        now = jax.random.fold_in(key, state.step // every)
        drawn = state._replace(context=_with_draw(state.context, now))
        after, info = trainer.step(drawn, batch)
        context = after.context
        if isinstance(context, Tangents):
            return after._replace(context=context._replace(context=state.context.context)), info
        return after._replace(context=state.context), info

    return Trainer(trainer.init, step)


class Tangents(NamedTuple):
    """A context that holds what value losses were when their gradients were last taken.

    Attributes:
        context: the value losses' own.
        losses: [M].
        rows: their gradients, params with a leading [M].
        params: where they were taken.
    """

    context: Any
    losses: jax.Array
    rows: Params
    params: Params


def tangent_values(values: Values) -> Values:
    """Value losses replaced by the tangents that a ``Tangents`` context holds.

    Their gradients are the ones that were taken, wherever the parameters have moved since; their
    losses, and so the changes that a step tells, are the tangents' and no measurements.

    Args:
        values: the value losses, whose names stay.
    """

    def losses(params: Params, context: Tangents) -> jax.Array:
        moved = jax.tree.map(jnp.subtract, params, context.params)
        return context.losses + rows_dot(context.rows, moved)

    def gradients(params: Params, context: Tangents) -> tuple[jax.Array, Params]:
        return losses(params, context), context.rows

    def one(place: int) -> ValueLoss:
        def loss(params: Params, context: Tangents) -> jax.Array:
            alone = jax.tree.map(lambda leaf: leaf[place][None], (context.losses, context.rows))
            return losses(params, context._replace(losses=alone[0], rows=alone[1]))[0]

        return loss

    functions = tuple(one(place) for place in range(len(values.names)))
    return Values(values.names, losses, gradients, functions)


def retaken(trainer: Trainer, values: Values, *, every: int | jax.Array) -> Trainer:
    """The trainer of ``tangent_values(values)``, whose tangents are taken anew every few steps.

    What it gives up: an update is admissible to the gradients of the step they were taken in, not
    to those where the parameters are now; the difference grows with ``every`` and with the
    distance that is moved (``experiments/benchmarks/refresh.py`` measures it). It saves the M
    backward passes of all other steps, for the memory of M gradients and a copy of the parameters.
    Under ``vmap`` it saves nothing, since both branches run.

    Args:
        trainer: ``cooperate(..., values=tangent_values(values))``.
        values: the value losses themselves.
        every: steps from one taking to the next, at least 1; it may be traced. With 1 it is the
            screen of ``values``.

    Raises:
        ValueError: an ``every`` below 1.
    """
    _check_every(every)

    def take(params: Params, context: Any) -> Tangents:
        losses, rows = values.gradients(params, context)
        return Tangents(context, losses, rows, params)

    def init(params: Params, profiles: Any, *, context: Any = None, **options: Any) -> Any:
        shapes = jax.eval_shape(values.gradients, params, context)
        losses, rows = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        return trainer.init(
            params, profiles, context=Tangents(context, losses, rows, params), **options
        )

    def step(state: Any, batch: Any) -> tuple[Any, Any]:
        context = jax.lax.cond(
            state.step % every == 0,
            lambda: take(state.params, state.context.context),
            lambda: state.context,
        )
        return trainer.step(state._replace(context=context), batch)

    return Trainer(init, step)


def _with_draw(context: Any, key: jax.Array) -> Any:
    if isinstance(context, Tangents):
        return context._replace(context=_with_draw(context.context, key))
    if context is not None and not isinstance(context, Mapping):
        raise ValueError(
            f"context is a {type(context).__name__}; redrawn(...) adds to a mapping, or to None"
        )
    return {**(context or {}), DRAW: key}


def _check_every(every: int | jax.Array) -> None:
    if isinstance(every, jax.core.Tracer):
        return
    number = np.asarray(every)
    if number.shape != () or number.dtype.kind not in "iu" or number < 1:
        raise ValueError(f"every={every!r} must be a whole number of steps, at least 1")
