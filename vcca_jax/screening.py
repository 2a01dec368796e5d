"""Screening: agent gradients to admissible ones, with a report of what was removed and why.

Every screen has one shape, ``screen(gradients, value_gradients, profiles) -> (gradients, report)``,
and returns the operator it was given with a low-rank part added, so screens chain and no agent's
gradient need ever be formed: screening A agents against M values costs M inner products of the
operator, one [M, M] Gram matrix and A small programs.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from vcca_jax.cones import solve_cone_dual
from vcca_jax.gradients import AgentGradients, affine, agent_norms, rows_gram
from vcca_jax.trainer import Params
from vcca_jax.values import ValueProfiles

Scope = Literal["own", "everyone"]
ScreenMethod = Literal["project", "reject", "shrink"]


class ScreenReport(NamedTuple):
    """What a screen did to each agent's update.

    Only agents with a sample in the batch are screened; the others' entries are false or 0.

    Attributes:
        admissible: [A] bool, the update met its constraints as it came.
        feasible: [A] bool, some admissible update could be made of it; where false it was dropped
            whole (becomes 0).
        conflicts: [A, M] bool, the update violated a constraint on this value.
        coefficients: [A, M], multiples of the value gradients that were added. Under "project" the
            size is the multiplier, the price of the value; positive where it is protected.
        removed_norm: [A], |g~_i - g_i|. Where an update was shrunk or dropped it takes measured
            norms, and is 0 without them.
        norm: [A], |g_i|; 0 unless the screen measures norms.
    """

    admissible: jax.Array
    feasible: jax.Array
    conflicts: jax.Array
    coefficients: jax.Array
    removed_norm: jax.Array
    norm: jax.Array


Screen = Callable[[AgentGradients, Params, ValueProfiles], tuple[AgentGradients, ScreenReport]]


class _Constraints(NamedTuple):
    """What governs each agent: [A, K] arrays like ``ValueProfiles``, and their inner products."""

    value: jax.Array
    sign: jax.Array
    margin: jax.Array
    mask: jax.Array
    products: jax.Array
    gram: jax.Array


def screen(
    method: ScreenMethod = "project",
    *,
    scope: Scope = "own",
    measure_norms: bool = False,
) -> Screen:
    """Make a screen.

    With C_i the cone that governs agent i (value gradients N, margins m):

        project   g~_i = argmin_{u in C_i} |u - g_i|^2 = g_i + N^T lambda_i
        reject    g~_i = g_i if it lies in C_i, else 0
        shrink    g~_i = s g_i with the largest s in [0, 1] that is admissible

    An update for which no admissible one exists (margins that exclude each other; for shrink, no
    such s) is dropped and reported, never NaN.

    Args:
        method: one of the three.
        scope: "own" screens agent i by principal i's profile; "everyone" by the intersection of
            all active principals' profiles, and then with margins >= 0 also the sum of the
            screened updates is admissible to everyone (a negative margin is an allowance that
            every update may use up by itself). The paper's abstract does not settle which is
            meant.
        measure_norms: report the updates' norms, which takes the gradients' whole stack.

    Returns:
        A ``Screen``. Admissibility is a first-order promise about the direction handed to the
        optimizer: under plain SGD it is the update's. An agent whose update was dropped is no
        longer ``present`` in the result, so that no later screen makes it an update of value
        gradients alone.

    Raises:
        ValueError: an unknown method or scope; by the screen, profiles of another number of
            agents than the gradients.
    """
    methods = {"project": _project, "reject": _reject, "shrink": _shrink}
    if method not in methods:
        raise ValueError(f"method={method!r} must be one of {list(methods)}")
    if scope not in ("own", "everyone"):
        raise ValueError(f"scope={scope!r} must be 'own' or 'everyone'")

    def apply(
        gradients: AgentGradients, value_gradients: Params, profiles: ValueProfiles
    ) -> tuple[AgentGradients, ScreenReport]:
        rule = _governing(gradients, value_gradients, profiles, scope)
        violated = rule.mask & (rule.products < rule.margin) & gradients.present[:, None]
        admissible = gradients.present & ~violated.any(axis=1)
        scale, multipliers, feasible = methods[method](rule, violated)
        feasible = feasible & gradients.present
        scale = jnp.where(feasible, scale, 0)
        multipliers = jnp.where(feasible[:, None] & rule.mask, multipliers, 0)
        values = jax.tree.leaves(value_gradients)[0].shape[0]
        coefficients = _by_value(rule, multipliers * rule.sign, values)
        norm = agent_norms(gradients) if measure_norms else jnp.zeros_like(scale)
        added = jnp.einsum("ak,akl,al->a", multipliers, rule.gram, multipliers)
        report = ScreenReport(
            admissible=admissible,
            feasible=feasible,
            conflicts=_by_value(rule, violated.astype(jnp.int32), values) > 0,
            coefficients=coefficients,
            removed_norm=jnp.sqrt(jnp.maximum(added, 0)) + (1 - scale) * norm,
            norm=norm,
        )
        screened = affine(gradients, scale, coefficients, value_gradients)
        return screened._replace(present=feasible), report

    return apply


def _governing(
    gradients: AgentGradients, value_gradients: Params, profiles: ValueProfiles, scope: Scope
) -> _Constraints:
    """Each agent's constraints and their inner products, computed once for the M values."""
    value, sign, margin, mask = (jnp.asarray(field) for field in profiles)
    agents = gradients.active.shape[0]
    if mask.shape[0] != agents:
        raise ValueError(
            f"profiles are of {mask.shape[0]} agents and the gradients of {agents}; make them with"
            f" value_profiles(..., capacity={agents})"
        )
    mask = mask & gradients.active[:, None]
    count = jax.tree.leaves(value_gradients)[0].shape[0]
    if scope == "everyone":
        value, sign, margin, mask = _union(value, sign, margin, mask, count)
    products = jax.vmap(gradients.dot)(value_gradients).T
    gram = rows_gram(value_gradients)
    rows = jnp.arange(value.shape[0])[:, None]
    signs = sign[:, :, None] * sign[:, None, :]
    return _Constraints(
        value=value,
        sign=sign,
        margin=margin.astype(products.dtype),
        mask=mask,
        products=sign * products[rows, value],
        gram=signs * gram[value[:, :, None], value[:, None, :]],
    )


def _union(
    value: jax.Array, sign: jax.Array, margin: jax.Array, mask: jax.Array, count: int
) -> tuple[jax.Array, ...]:
    """All principals' constraints as one profile of 2 M rows: the strictest margin of each."""
    row = (value + jnp.where(sign > 0, 0, count)).ravel()
    lowest = jnp.where(mask, margin, -jnp.inf).ravel()
    strictest = jax.ops.segment_max(lowest, row, num_segments=2 * count)
    stated = jnp.isfinite(strictest)
    agents = value.shape[0]

    def repeated(profile: jax.Array) -> jax.Array:
        return jnp.broadcast_to(profile, (agents, 2 * count))

    return (
        repeated(jnp.tile(jnp.arange(count), 2)),
        repeated(jnp.repeat(jnp.array([1.0, -1.0], sign.dtype), count)),
        repeated(jnp.where(stated, strictest, 0)),
        repeated(stated),
    )


def _project(rule: _Constraints, violated: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    del violated
    solution = jax.vmap(
        lambda gram, products, margin, mask: solve_cone_dual(
            gram, margin - products, mask, margins=margin
        )
    )(rule.gram, rule.products, rule.margin, rule.mask)
    return jnp.ones(rule.mask.shape[0]), solution.multipliers, solution.feasible


def _reject(rule: _Constraints, violated: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    admissible = ~violated.any(axis=1)
    return jnp.ones(admissible.shape), jnp.zeros(rule.products.shape), admissible


def _shrink(rule: _Constraints, violated: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    # Scaling by s turns a product a into s a. A violated row with m <= 0 has a < m <= 0 and asks
    # s <= m / a; a met row with m > 0 asks s >= m / a; a violated row with m > 0 cannot be met.
    ratio = rule.margin / jnp.where(rule.products == 0, 1, rule.products)
    positive = rule.mask & (rule.margin > 0)
    most = jnp.min(jnp.where(violated & ~positive, ratio, 1), axis=1)
    least = jnp.max(jnp.where(positive & ~violated, ratio, 0), axis=1)
    feasible = ~(violated & positive).any(axis=1) & (least <= most)
    return most, jnp.zeros(rule.products.shape), feasible


def _by_value(rule: _Constraints, entries: jax.Array, count: int) -> jax.Array:
    """[A, K] entries of constraints summed into [A, M] of the values they speak of."""
    rows = jnp.arange(entries.shape[0])[:, None]
    return jnp.zeros((entries.shape[0], count), entries.dtype).at[rows, rule.value].add(entries)
