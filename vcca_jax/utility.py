"""Utilities of participation weights: what an agent's contribution is measured on.

A utility is a pure function ``utility(w) -> scalar`` of w in [0, 1]^A, here the negative loss on
validation data, in the unit of the loss. Coalitions have fixed weights: leaving an agent out drops
its terms and renormalises nothing, so an agent whose update is zero is worth exactly 0.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from vcca_jax.admission import informed_update
from vcca_jax.arguments import check_count
from vcca_jax.contribution import Utility
from vcca_jax.gradients import AgentGradients, Method, agent_gradients, checked_weights
from vcca_jax.operators import affine, example_products, inner_products
from vcca_jax.profiles import ValueProfiles, check_names
from vcca_jax.proportional_updates import Proportion, proportion
from vcca_jax.rows import Rows, as_rows
from vcca_jax.screening import Screen
from vcca_jax.singularities import finite_derivatives
from vcca_jax.trainer import ExampleLoss, Params, where_live
from vcca_jax.values import Values
from vcca_jax.virtual_batch import VirtualBatch

SHORT_RUN = 16
"""Steps up to which a run is not divided: the states of all of them are kept."""


@dataclass(frozen=True, eq=False)
class OneStepUtility:
    """The worth of one step as a function of the participation weights, and its first order.

    Attributes:
        worth: ``worth(w) -> scalar``, v(w); calling the utility is the same.
        first_order: ``first_order(w) -> [A]``, see ``contribution.first_order``.
        examples: ``examples(w, owners) -> [B] or None``, what each sample of the batch brings to
            its owner's first-order credit; None where that is not told by inner products.
        proportion: whether the optimizer's update is proportional to the gradient; see there.
    """

    worth: Callable[[jax.Array], jax.Array]
    first_order: Callable[[jax.Array], jax.Array]
    examples: Callable[[jax.Array, jax.Array], jax.Array | None]
    proportion: Proportion | None

    def __call__(self, weights: jax.Array) -> jax.Array:
        """v(w)."""
        return self.worth(weights)


def one_step_utility(
    params: Params,
    optimizer_state: Any,
    gradients: AgentGradients,
    optimizer: optax.GradientTransformation,
    validation_loss: Callable[[Params], jax.Array],
    *,
    screen: Screen | None = None,
    value_gradients: Params | Rows | None = None,
    profiles: ValueProfiles | None = None,
    context: Any = None,
    validation_row: Rows | None = None,
) -> OneStepUtility:
    """The worth of one step: v(w) = -L_val(theta (+) opt(sum_i w_i g~_i)).

    The optimizer's own update is applied, from its own state, so any optax optimizer is valued
    as it is. With momentum v(0) is the worth of what it carries over, which no agent of this step
    earned. Derivatives in w are those of the optimizer's update; where it takes a root of 0 or
    divides by 0, as Adam does where a parameter never had a gradient and clipping does where nobody
    takes part, the result counts as constant, so that they stay finite.

    Where the screen sits:
        outside (``screen=None``): ``gradients`` have been screened once, and the coalition weighs
            the results. This is the paper's order, screened first and credited second.
        inside (``screen`` given): the coalition is screened anew. The terms w_i g_i are screened
            against the profiles of the principals with w_i > 0, so that under scope "everyone" a
            principal who is left out no longer restrains the others.

    Args:
        params: theta.
        optimizer_state: the optimizer's, before the step.
        gradients: screened ones, or with ``screen`` the unscreened.
        optimizer: any optax optimizer.
        validation_loss: ``validation_loss(params) -> scalar``.
        screen: puts the screen inside; then ``value_gradients`` and ``profiles`` are needed.
        value_gradients: ``Rows``, or params with a leading [M]; an optimizer wrapped by
            ``keep_admissible`` is given them, the profiles and the context too, and judges every
            coalition's update by what all active principals allow.
        profiles: the principals'.
        context: of the value losses.
        validation_row: the gradient of ``validation_loss`` at theta as one row, where it is known
            already, as from a ``shared_pass``.

    Raises:
        ValueError: a screen without value gradients or profiles.
    """
    if screen is not None and (value_gradients is None or profiles is None):
        raise ValueError("screen is given without value_gradients= and profiles=; give all three")

    update = finite_derivatives(
        informed_update(
            optimizer,
            value_gradients=value_gradients,
            profiles=profiles,
            active=gradients.active,
            context=context,
        )
    )

    def direction(weights: jax.Array) -> Params:
        if screen is None or profiles is None:
            return gradients.sum(weights)
        coalition = _weighted(gradients, weights, value_gradients)
        screened, _ = screen(coalition, value_gradients, profiles)
        return screened.sum()

    def applied(direction: Params) -> Params:
        return update(direction, optimizer_state, params)[0]

    def worth(weights: jax.Array) -> jax.Array:
        return -validation_loss(optax.apply_updates(params, applied(direction(weights))))

    # Read once: it is asked for by first-order credit, and by whoever wants to know the rest.
    known = proportion(applied, params)

    def row() -> Rows:
        if validation_row is not None:
            return validation_row
        gradient = jax.grad(validation_loss)(params)
        return as_rows(jax.tree.map(lambda leaf: leaf[None], gradient))

    def first_order(weights: jax.Array) -> jax.Array:
        checked_weights(weights, gradients.active.shape[0])
        slope = row()
        if screen is not None:
            # The screen bends what a coalition's direction is.
            expanded = jax.grad(lambda w: slope.dot(applied(direction(w)))[0])
            return -weights * expanded(weights)
        if known is not None:
            along = inner_products(gradients, slope)[0][:, 0]
            return -known.factor.astype(along.dtype) * weights * along
        _, back = jax.vjp(applied, direction(weights))
        return -weights * gradients.dot(back(slope.combination(jnp.ones(1)))[0])

    def examples(weights: jax.Array, owners: jax.Array) -> jax.Array | None:
        if known is None or screen is not None:
            return None
        brought = example_products(gradients, row(), owners)
        if brought is None:
            return None
        return -known.factor.astype(brought.dtype) * weights[owners] * brought[:, 0]

    return OneStepUtility(worth, first_order, examples, known)


def training_utility(
    loss_fn: ExampleLoss,
    params: Params,
    optimizer: optax.GradientTransformation,
    batches: VirtualBatch,
    validation_loss: Callable[[Params], jax.Array],
    *,
    screen: Screen | None = None,
    values: Values | None = None,
    profiles: ValueProfiles | None = None,
    context: Any = None,
    method: Method = "linearized",
    segments: int | None = None,
    changed: Callable[[AgentGradients, Params, jax.Array], AgentGradients] | None = None,
) -> Utility:
    """The worth of a whole run: v(w) = -L_val(theta_T(w)), theta_T(w) the weighted training scan.

    At w in {0, 1}^A this is retraining without the agents left out, from the same initial
    parameters on the same virtual batches. A screen sits inside: each step's coalition is screened
    anew, as retraining would. A batch without a live sample changes nothing.

    Derivatives in w go through every step and through the optimizer's own update (momentum, Adam's
    moments, clipping, weight decay), with roots of 0 held constant as in ``one_step_utility``: they
    stay finite at w = 0, for an agent in no batch, and for a parameter without a gradient.

    Memory: evaluated, and in forward mode, one state at a time. In reverse mode (``influence``,
    ``aumann_shapley``, ``in_run``) the run is divided into S segments of L steps: S states at their
    starts are kept, and the L steps of one segment at a time are run again, so that S + L states
    are held instead of T, for one more forward run. The numbers are the same to rounding.

    Args:
        loss_fn: per-example loss.
        params: initial parameters.
        optimizer: any optax optimizer, initialised here.
        batches: the run's T batches, every field with a leading [T].
        validation_loss: ``validation_loss(params) -> scalar``.
        screen: optional; then ``values`` and ``profiles`` are needed.
        values: the value losses; given without a screen they serve an optimizer that is wrapped by
            ``keep_admissible``.
        profiles: the principals'.
        context: of the value losses, constant over the run.
        method: form of the agent gradients.
        segments: S, 1..T; 1 keeps every state, the fastest where memory allows. By default about
            sqrt(T), and 1 for a run of at most 16 steps. Where L does not divide T, the last
            segment ends with empty batches.
        changed: ``changed(gradients, params, t) -> gradients``, what the agents send at step t
            (scalar int32, counted from 0) in place of (g_1, ..., g_A), such as a corruption of
            updates: theta_{t+1} = theta_t (+) opt(sum_i w_i h_i), h = changed(g, theta_t, t). Fold
            t into a key, or every step draws the same. It comes before the screen.

    Raises:
        ValueError: a screen without values or profiles, profiles of other values, no batch or
            one that is not stacked, or ``segments`` outside 1..T; by the utility, weights that are
            not [A].
    """
    if screen is not None and (values is None or profiles is None):
        raise ValueError("screen is given without values= and profiles=; give all three")
    if values is not None and profiles is not None:
        check_names(profiles, values.names)
    if jnp.ndim(batches.mask) != 2:
        raise ValueError(
            f"batches.mask has shape {jnp.shape(batches.mask)}; give T batches stacked, [T, B], and"
            " one alone by jax.tree.map(lambda leaf: leaf[None], batch)"
        )
    steps = batches.mask.shape[0]
    if steps < 1:
        raise ValueError("batches hold no step; give one virtual batch at least")
    length = _segment_length(steps, segments)
    batches = jax.tree.map(jnp.asarray, batches)

    def utility(weights: jax.Array) -> jax.Array:
        def step(carried: tuple[Params, Any], t: jax.Array) -> tuple[tuple[Params, Any], None]:
            at, state = carried
            # Batches are indexed, not scanned over: what is scanned over in the forward run is
            # kept a second time for the backward one.
            batch = jax.tree.map(lambda leaf: leaf[jnp.minimum(t, steps - 1)], batches)
            batch = batch._replace(mask=batch.mask & (t < steps))
            gradients = agent_gradients(loss_fn, at, batch, method=method)
            if changed is not None:
                gradients = changed(gradients, at, t.astype(jnp.int32))
            rows = None if values is None else values.gradients(at, context)[1]
            if screen is None or rows is None or profiles is None:
                direction = gradients.sum(weights)
            else:
                screened, _ = screen(_weighted(gradients, weights, rows), rows, profiles)
                direction = screened.sum()
            update = finite_derivatives(
                informed_update(
                    optimizer,
                    value_gradients=rows,
                    profiles=profiles,
                    active=gradients.active,
                    context=context,
                )
            )
            updates, fresh = update(direction, state, at)
            return where_live(batch, (optax.apply_updates(at, updates), fresh), carried), None

        start = (params, optimizer.init(params))
        if length == steps:
            (final, _), _ = jax.lax.scan(step, start, jnp.arange(steps))
        else:
            times = jnp.arange(-(-steps // length) * length).reshape(-1, length)
            # Nothing outside the scan could be merged with the second run of a segment.
            segment = jax.checkpoint(partial(jax.lax.scan, step), prevent_cse=False)
            (final, _), _ = jax.lax.scan(segment, start, times)
        return -validation_loss(final)

    return utility


def _segment_length(steps: int, segments: int | None) -> int:
    """L: by default between sqrt(T) and twice that, with the fewest empty batches at the end."""
    if segments is None:
        root = math.isqrt(steps - 1) + 1
        lengths = [steps] if steps <= SHORT_RUN else range(root, 2 * root + 1)
        return min(lengths, key=lambda length: (-steps % length, length))
    if not 1 <= check_count("segments", segments, 0) <= steps:
        raise ValueError(
            f"segments={segments} must lie between 1 and the {steps} steps of batches; leave it out"
            " for about the square root of them"
        )
    return -(-steps // segments)


def _weighted(gradients: AgentGradients, weights: jax.Array, rows: Params | Rows) -> AgentGradients:
    """The coalition's terms w_i g_i, with the members who are left out neither seen nor heard."""
    nothing = jnp.zeros((weights.shape[0], as_rows(rows).size), weights.dtype)
    inside = weights > 0
    return affine(gradients, weights, nothing, rows)._replace(
        present=gradients.present & inside, active=gradients.active & inside
    )
