"""What a screen tells of what it did, and who restrained whom."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from vcca_jax.admissibility import own_rules
from vcca_jax.gradients import AgentGradients
from vcca_jax.profiles import ValueProfiles
from vcca_jax.rows import Rows, as_rows
from vcca_jax.trainer import Params


class ScreenReport(NamedTuple):
    """What a screen did to each agent's update g_i, which became g~_i.

    Only agents with a sample in the batch are screened; the others' entries are false or 0.
    Under the scope "own" an agent's constraints are its own principal's, otherwise the strictest
    of all. What is frozen is cut away first, so the flags speak of what remains.

    Attributes:
        admissible: [A] bool, the update met its constraints as it came.
        feasible: [A] bool, some admissible update could be made of it.
        dropped: [A] bool, the update became 0, because none could and the policy was to drop it.
        limited: [A] bool, a norm, an angle or a trust region binds.
        conflicts: [A, M] bool, the update violated a constraint on this value.
        coefficients: [A, M], multiples of the value gradients that were added. Under "project" the
            size is the multiplier, the price of the value; positive where it is protected, and 0
            where the constraint does not bind.
        violations: [A, M], by how much the result still violates a constraint on this value, in
            units of <u, grad V>: what was bought at a price, is left by a compromise or cannot be
            helped; rounding where the constraint is kept.
        scale: [A], the multiple of g_i that remains.
        removed_norm: [A], |g~_i - g_i|. Where an update was shrunk, cut or dropped it takes
            measured norms, and is 0 without them.
        norm: [A], |g_i|; 0 unless the screen measures norms.
        value_norms: [M], |grad V_m|.
    """

    admissible: jax.Array
    feasible: jax.Array
    dropped: jax.Array
    limited: jax.Array
    conflicts: jax.Array
    coefficients: jax.Array
    violations: jax.Array
    scale: jax.Array
    removed_norm: jax.Array
    norm: jax.Array
    value_norms: jax.Array


def untouched(gradients: AgentGradients, rows: Params | Rows) -> ScreenReport:
    """The report of a screen that found nothing to do, for one's own screens to start from."""
    agents, count = gradients.present.shape[0], as_rows(rows).size
    ones, nothing = jnp.ones(agents), jnp.zeros((agents, count))
    return ScreenReport(
        admissible=gradients.present,
        feasible=gradients.present,
        dropped=ones < 0,
        limited=ones < 0,
        conflicts=nothing > 0,
        coefficients=nothing,
        violations=nothing,
        scale=jnp.where(gradients.present, ones, 0),
        removed_norm=0 * ones,
        norm=0 * ones,
        value_norms=jnp.zeros(count),
    )


def screened_by(
    report: ScreenReport, profiles: ValueProfiles, active: jax.Array, *, scope: str = "everyone"
) -> jax.Array:
    """Who was screened by whom: [A, A], the length of what principal j put on agent i's update.

    The part of value m in what was added to g_i has the length |c_im| |grad V_m|. Under "everyone"
    it is ascribed to the active principals who state the binding side at its strictest margin, in
    equal parts; under "own" all of it to the agent's own principal. Where no half-space speaks of a
    side, an angle or a trust region has moved the update, and it is ascribed to the active
    principals who state the narrowest angle to the value or a region that counts it. Rows sum to
    sum_m |c_im| |grad V_m|.

    Raises:
        ValueError: another scope; a weighted compromise has no single constraint to ascribe to.
    """
    if scope not in ("own", "everyone"):
        raise ValueError(f"scope={scope!r} must be 'own' or 'everyone'")
    lengths = jnp.abs(report.coefficients) * report.value_norms[None, :]
    if scope == "own":
        return jnp.diag(lengths.sum(axis=1))
    count = lengths.shape[1]
    rules = own_rules(jax.tree.map(jnp.asarray, profiles), active)
    agents = jnp.arange(active.shape[0])[:, None]
    column = rules.value + jnp.where(rules.sign > 0, 0, count)
    stated = (
        jnp.full((active.shape[0], 2 * count), -jnp.inf)
        .at[agents, column]
        .max(jnp.where(rules.mask, rules.margin, -jnp.inf))
    )
    strictest = (stated == stated.max(axis=0, keepdims=True)) & jnp.isfinite(stated)
    share = strictest / jnp.maximum(strictest.sum(axis=0, keepdims=True), 1)
    if rules.limits is not None:
        angle = (rules.limits.cosine >= 0) & (
            rules.limits.cosine == rules.limits.cosine.max(axis=0, keepdims=True)
        )
        bounded = (rules.limits.radius < jnp.inf)[..., None]
        region = (rules.limits.region & bounded).any(axis=1)
        # An angle adds grad V, a region adds or takes it away.
        stating = jnp.concatenate([angle | region, region], axis=1)
        silent = ~strictest.any(axis=0, keepdims=True)
        limiting = stating / jnp.maximum(stating.sum(axis=0, keepdims=True), 1)
        share = jnp.where(silent, limiting, share)
    protecting = jnp.where(report.coefficients > 0, lengths, 0)
    return jnp.concatenate([protecting, lengths - protecting], axis=1) @ share.T
