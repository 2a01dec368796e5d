"""What one profile makes of one update: the half-spaces, limits and methods behind every screen.

Everything here is in terms of inner products, for one agent and one rule, so callers ``vmap``:
``products`` <g, V_m> [M], ``gram`` <V_m, V_n> [M, M] and ``square`` |g|^2. An update is written
u = scale g + sum_m coefficients_m V_m.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from vcca_jax.cones.conic import solve_conic_program
from vcca_jax.cones.duals import Policy, check_policy, solve_cone_dual
from vcca_jax.profiles import Frozen, Limits, ValueProfiles
from vcca_jax.trainer import Params

ScreenMethod = Literal["project", "reject", "shrink"]

# Inner products are taken for wrong by this many epsilons of the lengths that they are made of.
ROUNDING = 16.0


class Rule(NamedTuple):
    """One profile, or several made one: arrays like ``ValueProfiles`` without the agent axis."""

    value: jax.Array
    sign: jax.Array
    margin: jax.Array
    mask: jax.Array
    price: jax.Array | None
    limits: Limits | None


class Verdict(NamedTuple):
    """What becomes of an update.

    Attributes:
        scale, coefficients: of u, a scalar and [M].
        feasible: bool, an admissible update exists, as far as the method looks.
        kept: bool, u is to be used; else it was dropped, and is 0.
        limited: bool, a norm, an angle or a trust region binds.
    """

    scale: jax.Array
    coefficients: jax.Array
    feasible: jax.Array
    kept: jax.Array
    limited: jax.Array


Judge = Callable[[Rule, jax.Array, jax.Array, jax.Array], Verdict]


def own_rules(profiles: ValueProfiles, active: jax.Array) -> Rule:
    """Every principal's own profile as a rule with a leading [A]; the inactive have none."""
    limits = profiles.limits
    if limits is not None:
        limits = Limits(
            max_norm=jnp.where(active, limits.max_norm, jnp.inf),
            cosine=jnp.where(active[:, None], limits.cosine, -1),
            region=limits.region,
            radius=jnp.where(active[:, None], limits.radius, jnp.inf),
        )
    return Rule(
        value=profiles.value,
        sign=profiles.sign,
        margin=profiles.margin,
        mask=profiles.mask & active[:, None],
        price=profiles.price,
        limits=limits,
    )


def intersection(rules: Rule, count: int) -> Rule:
    """The rules' [A] intersection as one rule of 2 M half-spaces: what all of them allow.

    Of half-spaces on one value and side the strictest margin counts. Those with a price are apart,
    as 2 M more after the others: what one principal sells must not become binding because another
    insists on less. Of several for sale the strictest margin counts at the highest price.
    """
    blocks = 1 if rules.price is None else 2
    side = rules.value + jnp.where(rules.sign > 0, 0, count)
    if rules.price is not None:
        side = side + jnp.where(jnp.isinf(rules.price), 0, 2 * count)
    row = side.ravel()

    def strictest(entries: jax.Array) -> jax.Array:
        stated = jnp.where(rules.mask, entries, -jnp.inf).ravel()
        return jax.ops.segment_max(stated, row, num_segments=blocks * 2 * count)

    margin = strictest(rules.margin)
    stated = jnp.isfinite(margin)
    price = None if rules.price is None else jnp.where(stated, strictest(rules.price), jnp.inf)
    limits = rules.limits
    if limits is not None:
        limits = Limits(
            max_norm=limits.max_norm.min(axis=0),
            cosine=limits.cosine.max(axis=0),
            region=limits.region.reshape(-1, count),
            radius=limits.radius.ravel(),
        )
    return Rule(
        value=jnp.tile(jnp.arange(count), blocks * 2),
        sign=jnp.tile(jnp.repeat(jnp.array([1, -1], rules.sign.dtype), count), blocks),
        margin=jnp.where(stated, margin, 0),
        mask=stated,
        price=price,
        limits=limits,
    )


def other_side(entries: jax.Array, count: int) -> jax.Array:
    """Entries of an intersection's half-spaces, each in the place of its value's other side."""
    return entries.reshape(-1, 2, count)[:, ::-1].reshape(-1)


def free_of_all(frozen: Frozen, active: jax.Array) -> Params:
    """1 on the leaves that no active principal freezes, 0 on the others: a scalar for each."""
    return jax.tree.map(lambda leaf: 1.0 - (leaf[frozen.pattern] & active).any(), frozen.leaves)


def gaps(rule: Rule, products: jax.Array) -> jax.Array:
    """[K], by how much an update with these products with the values crosses each half-space."""
    margin = rule.margin.astype(products.dtype)
    return jnp.where(rule.mask, margin - rule.sign * products[rule.value], -jnp.inf)


def crossed(rule: Rule, products: jax.Array, gram: jax.Array, square: jax.Array) -> jax.Array:
    """[K] bool, the half-spaces that an update crosses by more than its products were rounded by.

    An update that a screen left on a border must pass the next screen. Where |g| was not measured
    (``square`` is 0) only the margin's own rounding is allowed for.
    """
    slack = _rounding(products, gram, square)[rule.value]
    margin = jnp.abs(rule.margin).astype(products.dtype)
    return gaps(rule, products) > slack + ROUNDING * _epsilon(products) * margin


def _epsilon(products: jax.Array) -> float:
    return float(jnp.finfo(products.dtype).eps)


def _rounding(products: jax.Array, gram: jax.Array, square: jax.Array) -> jax.Array:
    """[M], the size of what products <g, V_m> lose, as |g| |V_m| tells it."""
    norm = jnp.sqrt(jnp.maximum(square, 0))
    return ROUNDING * _epsilon(products) * norm * _value_norms(gram)


def by_value(rule: Rule, entries: jax.Array, count: int) -> jax.Array:
    """[K] entries of half-spaces as [M] of the values they speak of: the largest of each."""
    lowest = -jnp.inf if jnp.issubdtype(entries.dtype, jnp.floating) else False
    return jnp.full(count, lowest, entries.dtype).at[rule.value].max(entries)


def beyond_limits(rule: Rule, products: jax.Array, gram: jax.Array, square: jax.Array) -> jax.Array:
    """Bool: an update with these inner products is outside the norm, an angle or a region."""
    if rule.limits is None:
        return jnp.asarray(False)
    limits, norm = rule.limits, jnp.sqrt(jnp.maximum(square, 0))
    relative = 1.0 + ROUNDING * _epsilon(products)
    far = _lengths(limits, products) > limits.radius * relative
    long = norm > limits.max_norm * relative
    return long | ~_within_angles(limits, products, gram, square) | far.any()


def _within_angles(
    limits: Limits, products: jax.Array, gram: jax.Array, square: jax.Array
) -> jax.Array:
    """Bool: the update keeps every angle, up to rounding."""
    cone = limits.cosine * jnp.sqrt(jnp.maximum(square, 0)) * _value_norms(gram)
    inside = products >= cone - _rounding(products, gram, square)
    return (inside | (limits.cosine < 0)).all()


def judge(method: ScreenMethod, policy: Policy) -> Judge:
    """The method as ``judge(rule, products, gram, square) -> Verdict``.

    Raises:
        ValueError: an unknown method or policy.
    """
    methods: dict[str, Judge] = {
        "project": partial(_project, policy=policy),
        "reject": _reject,
        "shrink": _shrink,
    }
    if method not in methods:
        raise ValueError(f"method={method!r} must be one of {list(methods)}")
    check_policy(policy)
    return methods[method]


def _project(
    rule: Rule, products: jax.Array, gram: jax.Array, square: jax.Array, *, policy: Policy
) -> Verdict:
    """The nearest admissible update."""
    margin = rule.margin.astype(products.dtype)
    if rule.limits is not None:
        found = solve_conic_program(
            gram,
            products,
            square,
            rule.value,
            rule.sign,
            margin,
            rule.mask,
            prices=rule.price,
            max_norm=rule.limits.max_norm,
            cosines=rule.limits.cosine,
            weights=rule.limits.region,
            radii=rule.limits.radius,
        )
        return Verdict(
            scale=found.scale,
            coefficients=found.coefficients,
            feasible=found.feasible,
            kept=found.feasible,
            limited=found.feasible & ~found.stands,
        )
    signs = rule.sign[:, None] * rule.sign[None, :]
    solution = solve_cone_dual(
        signs * gram[rule.value[:, None], rule.value[None, :]],
        margin - rule.sign * products[rule.value],
        rule.mask,
        margins=margin,
        prices=rule.price,
        policy=policy,
    )
    multipliers = jnp.where(rule.mask, solution.multipliers, 0) * rule.sign
    kept = solution.feasible | (policy == "least_violation")
    coefficients = jnp.zeros_like(products).at[rule.value].add(multipliers.astype(products.dtype))
    return Verdict(
        jnp.where(kept, 1.0, 0.0).astype(products.dtype),
        jnp.where(kept, coefficients, 0),
        solution.feasible,
        kept,
        jnp.asarray(False),
    )


def _reject(rule: Rule, products: jax.Array, gram: jax.Array, square: jax.Array) -> Verdict:
    """All of the update or nothing."""
    hard = jnp.isinf(rule.price) if rule.price is not None else True
    against = (crossed(rule, products, gram, square) & hard).any()
    beyond = beyond_limits(rule, products, gram, square)
    return _scaled(jnp.asarray(1.0), ~against & ~beyond, beyond, products)


def _shrink(rule: Rule, products: jax.Array, gram: jax.Array, square: jax.Array) -> Verdict:
    """As much of the update as is admissible."""
    # Scaling by s turns a product a into s a. A violated row with m <= 0 has a < m <= 0 and asks
    # s <= m / a; a met row with m > 0 asks s >= m / a; a violated row with m > 0 cannot be met.
    margin, signed = rule.margin.astype(products.dtype), rule.sign * products[rule.value]
    mask = rule.mask if rule.price is None else rule.mask & jnp.isinf(rule.price)
    violated, positive = mask & crossed(rule, products, gram, square), mask & (margin > 0)
    # A border that rounding has crossed asks for no more than all of the update.
    ratio = jnp.minimum(margin / jnp.where(signed == 0, 1, signed), 1)
    most = jnp.min(jnp.where(violated & ~positive, ratio, 1), initial=1.0)
    least = jnp.max(jnp.where(positive & ~violated, ratio, 0), initial=0.0)
    limit = _longest(rule, products, gram, square)
    feasible = ~(violated & positive).any() & (least <= jnp.minimum(most, limit))
    return _scaled(jnp.minimum(most, limit), feasible, limit < most, products)


def _scaled(
    scale: jax.Array, feasible: jax.Array, limited: jax.Array, products: jax.Array
) -> Verdict:
    scale = jnp.where(feasible, scale, 0).astype(products.dtype)
    return Verdict(scale, jnp.zeros_like(products), feasible, feasible, limited & feasible)


def _longest(rule: Rule, products: jax.Array, gram: jax.Array, square: jax.Array) -> jax.Array:
    """The largest s in [0, 1] with s g within the limits; 0 where g is outside an angle."""
    if rule.limits is None:
        return jnp.ones((), products.dtype)
    limits, norm = rule.limits, jnp.sqrt(jnp.maximum(square, 0))
    lengths = _lengths(limits, products)
    caps = jnp.append(limits.radius, limits.max_norm) / jnp.maximum(
        jnp.append(lengths, norm), jnp.finfo(products.dtype).tiny
    )
    angles = _within_angles(limits, products, gram, square)
    return jnp.where(angles, jnp.minimum(jnp.min(caps), 1), 0)


def _value_norms(gram: jax.Array) -> jax.Array:
    """[M], of gradients that may have cancelled: rounding leaves squares below zero."""
    return jnp.sqrt(jnp.maximum(jnp.diagonal(gram), 0))


def _lengths(limits: Limits, products: jax.Array) -> jax.Array:
    """[R], root of summed squares of the products a trust region counts."""
    return jnp.sqrt(jnp.sum(jnp.where(limits.region, jnp.square(products)[None, :], 0), axis=1))
