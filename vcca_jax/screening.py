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

from vcca_jax.admissibility import (
    Judge,
    Rule,
    ScreenMethod,
    Verdict,
    beyond_limits,
    by_value,
    crossed,
    free_of_all,
    gaps,
    intersection,
    judge,
    own_rules,
)
from vcca_jax.cones.duals import Policy
from vcca_jax.gradients import AgentGradients
from vcca_jax.operators import affine, inner_products
from vcca_jax.profiles import ValueProfiles, check_agents
from vcca_jax.rows import Rows, as_rows, product_weights, tree_dot, weighted
from vcca_jax.screen_report import ScreenReport
from vcca_jax.trainer import Params

Scope = Literal["own", "everyone", "weighted"]
Screen = Callable[..., tuple[AgentGradients, ScreenReport]]
"""``screen(gradients, value_gradients, profiles)``; ours take ``metric=`` besides."""


class _Geometry(NamedTuple):
    """Inner products in each of the P parts of the parameters that some profile leaves free."""

    kept: Params | None  # [P] in each leaf, 1 where the part keeps it; None: P = 1, everything
    pattern: jax.Array  # [A], the part that a principal leaves free
    say: jax.Array  # [A], the principals' weights, sum 1
    share: jax.Array  # [P, A], how much of g_i each part holds before anything else is decided
    products: jax.Array  # [P, A, M]
    gram: jax.Array  # [P, M, M]
    squares: jax.Array  # [P, A]; zeros unless measured


def screen(
    method: ScreenMethod = "project",
    *,
    scope: Scope = "own",
    policy: Policy = "drop",
    measure_norms: bool = False,
) -> Screen:
    """Make a screen.

    With C_i the set of updates that governs agent i (value gradients N, margins m, limits):

        project   g~_i = argmin_{u in C_i} |u - g_i|^2
        reject    g~_i = g_i if it lies in C_i, else 0
        shrink    g~_i = s g_i with the largest s in [0, 1] that is admissible

    A frozen part is cut away first, under every method. A constraint with a price can be bought by
    projection only; ``reject`` and ``shrink`` do not insist on it.

    Args:
        method: one of the three.
        scope: "own" screens agent i by principal i's profile; "everyone" by the intersection of
            all active principals' profiles, and then with margins >= 0 also the sum of the
            screened updates is admissible to everyone (a negative margin is an allowance that
            every update may use up by itself, and so are a norm and a radius). "weighted" is a
            compromise: g~_i = sum_j w_j g~_ij / sum_j w_j, with g~_ij what principal j alone would
            make of g_i and w_j ``ValueProfiles.weight``; it takes A^2 small programs, and is
            admissible to a principal only as far as the others' weight is small. The paper's
            abstract does not settle which is meant.
        policy: what projection makes of an update for which no admissible one exists (margins that
            exclude each other): "drop" it, or take the "least_violation": the nearest update of
            those whose summed squared violation of the half-spaces, in units of length, is least.
            The other methods drop it, and so does projection where limits are stated.
        measure_norms: report the updates' norms, which takes one more backward pass over the
            batch, agent by agent. Limits, "reject" and "shrink" measure them anyway.

    Returns:
        A ``Screen``. Admissibility is a first-order promise about the direction handed to the
        optimizer: under plain SGD it is the update's. With ``metric=``, a positive diagonal P like
        the parameters, the screen works on P g_i instead: rows, products and norms are those of
        the inner product a^T P b, so sum_i P g~_i is what is admissible. An agent whose update was
        dropped is no longer ``present`` in the result, so that no later screen makes it an update
        of value gradients alone. An update is never NaN where its input was finite.

    Raises:
        ValueError: an unknown method, scope or policy; by the screen, profiles of another number
            of agents than the gradients.
    """
    decide = judge(method, policy)
    if scope not in ("own", "everyone", "weighted"):
        raise ValueError(f"scope={scope!r} must be 'own', 'everyone' or 'weighted'")

    def apply(
        gradients: AgentGradients,
        value_gradients: Params | Rows,
        profiles: ValueProfiles,
        *,
        metric: Params | None = None,
    ) -> tuple[AgentGradients, ScreenReport]:
        rows, active, present = as_rows(value_gradients), gradients.active, gradients.present
        profiles = jax.tree.map(jnp.asarray, profiles)
        agents = active.shape[0]
        check_agents(profiles, agents)
        rules = own_rules(profiles, active)
        together = intersection(rules, rows.size)
        # Without norms nobody can tell a crossing from rounding, and these take all or nothing.
        measured = measure_norms or method != "project" or profiles.limits is not None
        space = _geometry(gradients, rows, profiles, scope, metric, measured)
        slots = _present_slots(gradients)
        verdict = _judged_in(slots, decide, rules, together, space, scope)
        stays = verdict.kept & present
        scale = jnp.where(stays[None, :], verdict.scale, 0)
        coefficients = jnp.where(stays[None, :, None], verdict.coefficients, 0)
        screened = affine(gradients, scale, coefficients, rows, kept=space.kept)

        before = _Held(
            products=jnp.einsum("pa,pam->am", space.share, space.products),
            gram=jnp.einsum("pa,pmn->amn", space.share, space.gram),
            square=(space.share * space.squares).sum(axis=0),
        )
        after = jnp.einsum("pa,pam->am", scale, space.products) + jnp.einsum(
            "pam,pmn->an", coefficients, space.gram
        )
        met = jax.vmap(_standing, in_axes=(0 if scope == "own" else None, 0, 0))(
            rules if scope == "own" else together, before, after
        )
        if space.kept is None:
            squares, value_squares = space.squares[0], jnp.diagonal(space.gram[0])
        else:
            squares = gradients.squared_norms(metric) if measured else before.square
            value_squares = rows.each(lambda row: tree_dot(row, weighted(row, metric)))
        norm = jnp.sqrt(jnp.maximum(squares, 0))
        if scope == "weighted" and space.kept is not None:
            removed = _removed_from_mixture(
                gradients, rows, metric, space.kept, scale, coefficients, norm
            )
        else:
            removed = _removed(before, scale.sum(axis=0), coefficients.sum(axis=0), norm)
        report = ScreenReport(
            admissible=met.admissible & present,
            feasible=verdict.feasible & present,
            dropped=~verdict.kept & present,
            limited=verdict.limited & present,
            conflicts=met.conflicts & present[:, None],
            coefficients=coefficients.sum(axis=0),
            violations=jnp.where(present[:, None], met.violations, 0),
            scale=scale.sum(axis=0),
            removed_norm=removed,
            norm=norm,
            value_norms=jnp.sqrt(jnp.maximum(value_squares, 0)),
        )
        return screened._replace(present=stays), report

    return apply


class _Held(NamedTuple):
    """Each agent's own inner products, in the part that is left to it, as it came."""

    products: jax.Array  # [A, M]
    gram: jax.Array  # [A, M, M]
    square: jax.Array  # [A]


class _Standing(NamedTuple):
    """How an update stands towards a rule, before and after."""

    admissible: jax.Array
    conflicts: jax.Array  # [M]
    violations: jax.Array  # [M]


def _standing(rule: Rule, before: _Held, after: jax.Array) -> _Standing:
    count = after.shape[0]
    against = crossed(rule, *before)
    beyond = beyond_limits(rule, *before)
    return _Standing(
        admissible=~against.any() & ~beyond,
        conflicts=by_value(rule, against, count),
        violations=jnp.maximum(by_value(rule, gaps(rule, after), count), 0),
    )


def _geometry(
    gradients: AgentGradients,
    rows: Rows,
    profiles: ValueProfiles,
    scope: Scope,
    metric: Params | None,
    measured: bool,
) -> _Geometry:
    """Inner products in every part that some profile leaves free; all of it if none is frozen."""
    active = gradients.active
    agents = active.shape[0]
    say = active if profiles.weight is None else active * profiles.weight
    say = say / jnp.maximum(say.sum(), jnp.finfo(jnp.float32).tiny)
    if profiles.frozen is None:
        kept, parts, pattern = None, [None], jnp.zeros(agents, jnp.int32)
    else:
        pattern = profiles.frozen.pattern
        if scope == "everyone":
            kept = jax.tree.map(lambda leaf: leaf[None], free_of_all(profiles.frozen, active))
            pattern = jnp.zeros_like(pattern)
        else:
            kept = jax.tree.map(lambda leaf: 1.0 - leaf, profiles.frozen.leaves)
        count = jax.tree.leaves(kept)[0].shape[0]
        parts = [jax.tree.map(lambda leaf, p=p: leaf[p], kept) for p in range(count)]
    weights = [product_weights(part, metric) for part in parts]
    pairs = [inner_products(gradients, rows, each) for each in weights]
    products = jnp.stack([product for product, _ in pairs])
    chosen = (pattern[None, :] == jnp.arange(len(parts))[:, None]).astype(products.dtype)
    heard = jnp.broadcast_to((chosen @ say.astype(products.dtype))[:, None], chosen.shape)
    return _Geometry(
        kept=kept,
        pattern=pattern,
        say=say.astype(products.dtype),
        share=heard if scope == "weighted" else chosen,
        products=products,
        gram=jnp.stack([gram for _, gram in pairs]),
        squares=jnp.stack([gradients.squared_norms(each) for each in weights])
        if measured
        else jnp.zeros(products.shape[:2], products.dtype),
    )


def _present_slots(gradients: AgentGradients) -> jax.Array | None:
    """[Q] slots that may hold an agent of this batch, A for none; None where all A may."""
    agents, most = gradients.active.shape[0], gradients.most_present
    if most is None or most >= agents:
        return None
    return jnp.nonzero(gradients.present, size=most, fill_value=agents)[0]


def _judged_in(
    slots: jax.Array | None,
    decide: Judge,
    rules: Rule,
    together: Rule,
    space: _Geometry,
    scope: Scope,
) -> Verdict:
    """``_judged`` for the agents in ``slots`` [Q] alone; the others' verdicts are 0.

    So the work follows the samples in the batch, not the agents that there are.
    """
    if slots is None:
        return _judged(decide, rules, together, space, scope)
    # Slots beyond the last agent read that one's, and what is found for them is dropped.
    here = space._replace(
        products=space.products[:, slots],
        squares=space.squares[:, slots],
        share=space.share[:, slots],
    )
    if scope == "own":
        rules = jax.tree.map(lambda leaf: leaf[slots], rules)
        here = here._replace(pattern=space.pattern[slots])
    agents = space.share.shape[1]

    def spread(leaf: jax.Array, axis: int) -> jax.Array:
        shape = (*leaf.shape[:axis], agents, *leaf.shape[axis + 1 :])
        place = (*(slice(None),) * axis, slots)
        return jnp.zeros(shape, leaf.dtype).at[place].set(leaf, mode="drop")

    return Verdict(*map(spread, _judged(decide, rules, together, here, scope), (1, 1, 0, 0, 0)))


def _judged(decide: Judge, rules: Rule, together: Rule, space: _Geometry, scope: Scope) -> Verdict:
    """The verdicts on A agents, with scale [P, A] and coefficients [P, A, M]."""
    agents = jnp.arange(space.pattern.shape[0])
    if scope == "everyone":
        verdict = jax.vmap(decide, in_axes=(None, 0, None, 0))(
            together, space.products[0], space.gram[0], space.squares[0]
        )
    elif scope == "own":
        verdict = jax.vmap(decide)(
            rules,
            space.products[space.pattern, agents],
            space.gram[space.pattern],
            space.squares[space.pattern, agents],
        )
    else:
        return _compromise(decide, rules, space)
    return verdict._replace(
        scale=space.share * verdict.scale[None, :],
        coefficients=space.share[:, :, None] * verdict.coefficients[None],
    )


def _compromise(decide: Judge, rules: Rule, space: _Geometry) -> Verdict:
    """Every agent judged by every principal, and the results weighed."""

    def by_principal(rule: Rule, pattern: jax.Array) -> Verdict:
        return jax.vmap(decide, in_axes=(None, 0, None, 0))(
            rule, space.products[pattern], space.gram[pattern], space.squares[pattern]
        )

    verdicts = jax.vmap(by_principal)(rules, space.pattern)  # leading [J, A]
    heard = space.say > 0
    count = space.share.shape[0]
    chosen = space.say[None, :] * (space.pattern[None, :] == jnp.arange(count)[:, None])
    return Verdict(
        scale=chosen @ verdicts.scale,
        coefficients=jnp.einsum("pj,jam->pam", chosen, verdicts.coefficients),
        feasible=(verdicts.feasible | ~heard[:, None]).all(axis=0),
        kept=(verdicts.kept & heard[:, None]).any(axis=0),
        limited=(verdicts.limited & heard[:, None]).any(axis=0),
    )


def _removed(
    before: _Held, scale: jax.Array, coefficients: jax.Array, norm: jax.Array
) -> jax.Array:
    """[A], |g~_i - g_i| where each agent's result lies in one part."""
    added = jnp.einsum("am,amn,an->a", coefficients, before.gram, coefficients)
    # Without norms (0 here) only what was added is known.
    along = (coefficients * before.products).sum(axis=1)
    mixed = jnp.where(norm > 0, 2 * (scale - 1) * along, 0)
    cut = jnp.square(norm) - before.square
    shrunk = jnp.square(1 - scale) * before.square
    return jnp.sqrt(jnp.maximum(added + mixed + shrunk + cut, 0))


def _removed_from_mixture(
    gradients: AgentGradients,
    rows: Rows,
    metric: Params | None,
    kept: Params,
    scale: jax.Array,
    coefficients: jax.Array,
    norm: jax.Array,
) -> jax.Array:
    """[A], |g~_i - g_i| where a result may mix parts: the norm of the difference itself."""
    difference = affine(
        gradients,
        jnp.concatenate([scale, -jnp.ones_like(scale[:1])]),
        jnp.concatenate([coefficients, jnp.zeros_like(coefficients[:1])]),
        rows,
        kept=jax.tree.map(lambda leaf: jnp.append(leaf, 1.0), kept),
    )
    squares = jnp.maximum(difference.squared_norms(metric), 0)
    return jnp.where(norm > 0, jnp.sqrt(squares), 0)
