"""What is really applied: the optimizer's own update, made admissible and verified.

Agents' gradients are screened before the optimizer; momentum, Adam's scaling, clipping and weight
decay then turn an admissible direction into another update. ``keep_admissible`` wraps an optimizer
so that its update is the last thing that is screened, and so that what the value losses really do
is looked at before it is applied: first order is a promise about small steps only.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from vcca_jax.admissibility import (
    Verdict,
    by_value,
    crossed,
    free_of_all,
    intersection,
    judge,
    other_side,
    own_rules,
)
from vcca_jax.profiles import ValueProfiles, check_names
from vcca_jax.rows import Rows, as_rows, tree_dot, weighted
from vcca_jax.trainer import Params
from vcca_jax.values import Values

# Corrected steps of full length that are tried before steps are shortened.
FULL_STEPS = 2
# A correction leaves an error of its own, of third order; asking for more at once covers it.
OVERSHOOT = 0.5


class Admission(NamedTuple):
    """What became of one update.

    Attributes:
        conflicts: [M] bool, values on which the optimizer's update crossed a constraint.
        coefficients: [M], multiples of the value gradients in the direction that was applied.
        scale: scalar, the multiple of the optimizer's update that remains beside them.
        removed_norm: scalar, |applied - the optimizer's|.
        norm: scalar, |the optimizer's update|.
        attempts: int32, updates whose value losses were looked at; 0 without verification.
        verified: bool, the applied update keeps every constraint as it was measured, to the
            tolerance. False without verification, and where nothing did: then nothing is applied.
    """

    conflicts: jax.Array
    coefficients: jax.Array
    scale: jax.Array
    removed_norm: jax.Array
    norm: jax.Array
    attempts: jax.Array
    verified: jax.Array


class AdmissionState(NamedTuple):
    """State of ``keep_admissible``: the wrapped optimizer's, steps so far, and the last report."""

    inner: Any
    steps: jax.Array
    report: Admission


def keep_admissible(
    optimizer: optax.GradientTransformation,
    values: Values,
    *,
    learning_rate: optax.ScalarOrSchedule = 1.0,
    verify: bool = True,
    attempts: int = 12,
    tolerance: float = 1e-6,
) -> optax.GradientTransformationExtraArgs:
    """The optimizer with its update projected on what all active principals allow, and verified.

    With the optimizer's update Delta = -eta d, the applied one is -eta u, u the nearest direction
    to d with sign_k <u, grad V_k> >= margin_k for every half-space of every active profile, within
    all limits, and zero where anybody freezes the parameters. That is first order. With ``verify``
    the value losses are then measured at the new parameters, and a constraint that they break,

        sign (V(theta - eta u) - V(theta)) > -eta margin + tolerance max(1, |V|),

    is answered by a second-order correction: what V does beyond first order is added to the margin
    and d is projected again, at full length twice and then at half, a quarter, ... of it. A
    positive margin asks less of a shortened step, in proportion. If no attempt passes, nothing is
    applied: parameters stay, the optimizer's memory moves on. So over a whole run no protected
    loss rises in a step beyond the tolerance, whatever the optimizer.

    A protected value at its minimum, such as a gap that is closed, has no slope for the projection
    to hold on to, and every step raises it: then little or nothing is applied any more. Give such a
    value slack, by a margin below zero.

    The projection is differentiable; lengths and corrections count as constants. Half-spaces with
    a price are weighed in the projection and not verified. With one active principal's rate or
    margin that others exclude, the least violation is taken.

    Args:
        optimizer: any optax optimizer.
        values: the value losses.
        learning_rate: eta, which turns margins and norms, stated per unit of learning rate, into
            those of an update; a number or an optax schedule. It does not change the step.
        verify: whether to measure; else the first-order projection is applied.
        attempts: how many updates are measured at most; each costs one forward pass of every value
            loss.
        tolerance: see above; float32 losses round at about 1e-7.

    Returns:
        An optimizer whose ``update`` needs the keywords ``profiles`` and ``active`` [A] and takes
        ``value_gradients`` (or computes them), ``context``; ``cooperate``, ``one_step_utility``
        and ``training_utility`` give them. Its state's ``report`` is an ``Admission``.

    Raises:
        ValueError: attempts below one, a tolerance that is not above zero, or a learning rate that
            is a number below zero or not finite.
    """
    known = not callable(learning_rate) and not isinstance(learning_rate, jax.core.Tracer)
    if known and not 0 <= float(learning_rate) < math.inf:
        raise ValueError(f"learning_rate={learning_rate} must be a finite number, 0 at least")
    if attempts < 1:
        raise ValueError(f"attempts={attempts} must be at least 1")
    if not tolerance > 0:
        raise ValueError(f"tolerance={tolerance} must be above zero; float32 losses need 1e-6")
    inner = optax.with_extra_args_support(optimizer)
    decide = judge("project", "least_violation")

    def init(params: Params) -> AdmissionState:
        count = len(values.names)
        # Every field is an array of its own: one memory cannot be donated twice.
        report = Admission(
            conflicts=jnp.zeros(count, bool),
            coefficients=jnp.zeros(count),
            scale=jnp.zeros(()),
            removed_norm=jnp.zeros(()),
            norm=jnp.zeros(()),
            attempts=jnp.zeros((), jnp.int32),
            verified=jnp.zeros((), bool),
        )
        return AdmissionState(inner.init(params), jnp.zeros((), jnp.int32), report)

    def update(
        gradient: Params,
        state: AdmissionState,
        params: Params | None = None,
        *,
        profiles: ValueProfiles,
        active: jax.Array,
        value_gradients: Params | Rows | None = None,
        context: Any = None,
        **extra: Any,
    ) -> tuple[Params, AdmissionState]:
        if params is None:
            raise ValueError("params=None, but values are measured on them; pass the parameters")
        check_names(profiles, values.names)
        wished, inner_state = inner.update(gradient, state.inner, params, **extra)
        eta = learning_rate(state.steps) if callable(learning_rate) else learning_rate
        if value_gradients is None:
            value_gradients = values.gradients(params, context)[1]
        rows = as_rows(value_gradients)
        profiles = jax.tree.map(jnp.asarray, profiles)
        rule = intersection(own_rules(profiles, active), rows.size)
        kept = None if profiles.frozen is None else free_of_all(profiles.frozen, active)
        direction = weighted(jax.tree.map(lambda leaf: leaf / -eta, wished), kept)
        products, square = rows.dot(direction), tree_dot(direction, direction)
        gram = rows.each(lambda row: rows.dot(weighted(row, kept)))

        def asked(length: jax.Array) -> jax.Array:
            return jnp.where(rule.margin > 0, length * rule.margin, rule.margin)

        def project(products: jax.Array, square: jax.Array, trial: _Trial) -> Verdict:
            margin, remainder = asked(trial.length), trial.remainder[rule.value]
            # Two sides of one value must leave room between them, or there is none at all.
            room = -(margin + other_side(margin, rows.size))
            both = other_side(rule.mask, rows.size)
            room = jnp.where(both, jnp.maximum(room, 0), jnp.inf)
            spare = jnp.minimum(OVERSHOOT * jnp.abs(remainder), room / 2)
            corrected = rule._replace(margin=margin + rule.sign * remainder + spare)
            return decide(corrected, trial.length * products, gram, trial.length**2 * square)

        def step(wished: Params, verdict: Verdict, length: jax.Array) -> Params:
            added = rows.combination(verdict.coefficients)
            whole = jax.tree.map(
                lambda leaf, more: (verdict.scale * length * leaf - eta * more).astype(leaf.dtype),
                wished,
                added,
            )
            return weighted(whole, kept)

        trial = _Trial(
            length=jnp.ones((), products.dtype),
            remainder=jnp.zeros_like(products),
            accepted=jnp.asarray(not verify),
            tried=jnp.zeros((), jnp.int32),
        )
        if verify:
            # A search has no useful derivative: what it finds is a constant.
            fixed = jax.lax.stop_gradient((wished, products, square))
            now = values.losses(params, context)
            slack = tolerance * jnp.maximum(1, jnp.abs(now))
            hard = rule.mask if rule.price is None else rule.mask & jnp.isinf(rule.price)

            def look(trial: _Trial) -> _Trial:
                verdict = project(fixed[1], fixed[2], trial)
                there = optax.apply_updates(params, step(fixed[0], verdict, trial.length))
                change = values.losses(there, context) - now
                most = slack[rule.value] - eta * asked(trial.length)
                kept_all = (~hard | (rule.sign * change[rule.value] <= most)).all()
                first_order = verdict.scale * trial.length * fixed[1] + verdict.coefficients @ gram
                beyond = change / eta + first_order
                beyond = jnp.where(jnp.isfinite(beyond), beyond, 0)
                length = jnp.where(trial.tried + 1 < FULL_STEPS, trial.length, trial.length / 2)
                remainder = beyond * (length / trial.length) ** 2
                after = _Trial(
                    length=jnp.where(kept_all, trial.length, length),
                    remainder=jnp.where(kept_all, trial.remainder, remainder),
                    accepted=kept_all,
                    tried=trial.tried + 1,
                )
                return _like(trial, after)

            trial = jax.lax.while_loop(
                lambda trial: ~trial.accepted & (trial.tried < attempts), look, trial
            )
        verdict = project(products, square, trial)
        applied = jax.tree.map(
            lambda leaf: jnp.where(trial.accepted, leaf, 0), step(wished, verdict, trial.length)
        )
        report = Admission(
            conflicts=by_value(rule, crossed(rule, products, gram, square), rows.size),
            coefficients=jnp.where(trial.accepted, verdict.coefficients, 0),
            scale=jnp.where(trial.accepted, verdict.scale * trial.length, 0),
            removed_norm=optax.tree.norm(optax.tree.sub(applied, wished)),
            norm=optax.tree.norm(wished),
            attempts=trial.tried,
            verified=trial.accepted & verify,
        )
        return applied, AdmissionState(inner_state, state.steps + 1, _like(state.report, report))

    return optax.GradientTransformationExtraArgs(init, update)


def informed_update(
    optimizer: optax.GradientTransformation,
    *,
    value_gradients: Params | Rows | None,
    profiles: ValueProfiles | None,
    active: jax.Array,
    context: Any,
) -> Callable[[Params, Any, Params], tuple[Params, Any]]:
    """``update(gradient, state, params)`` that knows what ``keep_admissible`` asks for.

    Optimizers that do not ask are not told; see ``keep_admissible`` for the keywords.
    """
    return partial(
        optax.with_extra_args_support(optimizer).update,
        value_gradients=value_gradients,
        profiles=profiles,
        active=active,
        context=context,
    )


def _like(old: Any, new: Any) -> Any:
    """``new`` in the types of ``old``: margins, losses and products may each be of another."""
    return jax.tree.map(lambda before, after: after.astype(before.dtype), old, new)


class _Trial(NamedTuple):
    length: jax.Array  # the optimizer's update is tried at this multiple
    remainder: jax.Array  # [M], what the losses do beyond first order, per learning rate
    accepted: jax.Array
    tried: jax.Array
