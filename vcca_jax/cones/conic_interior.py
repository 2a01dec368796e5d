"""A primal-dual interior point for conic programs: one agent, from inner products alone.

For what the undamped steps of ``conic_newton`` leave, in its scaled units; its answer is theirs to
polish. It needs no point to start from, and finds the apex x = 0 as well as any other. The steps
are those of Y. Nesterov and M. Todd (1997), predicted and corrected as by S. Mehrotra (1992). With

    |x| <= t,   t <= T,   <x, e_q> >= c_q t

for the ball and all angles together, these share one second-order cone, and the program has 1 + R
of them, in M + 2 unknowns (x, t).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from vcca_jax.cones import solvers
from vcca_jax.cones.conic_programs import ConicPoint, ConicProgram
from vcca_jax.cones.second_order import (
    Scaling,
    interior,
    longest_step,
    product,
    quotient,
    scale,
    scaling_of,
    unscale,
)
from vcca_jax.cones.solvers import matmul

CONIC_INTERIOR_STEPS = 40
# How far it looks for a solution: multiples of the larger of |g| and of its projection onto the
# half-spaces.
REACH = 32.0


class _Form(NamedTuple):
    """The program in z = (x, t), in coordinates in which the inner product is the usual one.

    minimise 1/2 z^T H z - goal^T z + prices^T xi subject to rows z + xi >= limits and
    maps_j z + offsets_j in the second-order cone; H is one for x and zero for t.
    """

    goal: jax.Array  # [n + 1]
    hessian: jax.Array  # H [n + 1, n + 1]
    rows: jax.Array  # [L, n + 1]
    limits: jax.Array  # [L]
    prices: jax.Array  # [L], one where hard
    soft: jax.Array  # bool [L], rows that have a price
    mask: jax.Array  # bool [L]
    maps: jax.Array  # [J, n + 1, n + 1]
    offsets: jax.Array  # [J, n + 1]


class _Iterate(NamedTuple):
    """A point with its slacks and multipliers, or a change of one."""

    point: jax.Array  # (x, t) [n + 1]
    slack: jax.Array  # of the linear rows [L]
    multipliers: jax.Array  # [L]
    excess: jax.Array  # xi [L]
    cone: jax.Array  # points of the second-order cones [J, n + 1]
    dual: jax.Array  # [J, n + 1]


class _State(NamedTuple):
    at: _Iterate
    gap: jax.Array
    step: jax.Array
    done: jax.Array


_Direction = Callable[[jax.Array, jax.Array, jax.Array], _Iterate]


def conic_interior_point(program: ConicProgram, skip: jax.Array) -> ConicPoint:
    """A point close to a solution: that of the last step that was finite."""
    dtype = program.gram.dtype
    # At rounding's size.
    ridge = solvers.smallest_ridge(dtype) * program.gram.shape[0] ** 0.5
    form = _standard_form(program, ridge)
    ones, unit = jnp.ones_like(form.limits), _first_axis(form.maps)
    value = jnp.where(form.soft, jnp.minimum(1.0, 0.5 * form.prices), 1.0)
    first = _Iterate(jnp.zeros_like(form.goal), ones, value, ones, unit, unit)
    start = _State(first, _gap(form, first).astype(dtype), jnp.asarray(0), skip)
    state = lax.while_loop(
        lambda state: ~state.done & (state.step < CONIC_INTERIOR_STEPS),
        lambda state: _moved(form, ridge, state),
        start,
    )
    return _recovered(program, form, state.at)


def _standard_form(program: ConicProgram, ridge: float) -> _Form:
    dtype = program.gram.dtype
    size, values = program.gram.shape[0], program.cosines.shape[0]
    identity = jnp.eye(size + 1, dtype=dtype)
    basis = lax.linalg.cholesky(
        program.gram + ridge * jnp.eye(size, dtype=dtype), symmetrize_input=False
    )
    prices = jnp.concatenate([program.prices, jnp.full((values + 1,), jnp.inf, dtype)])
    mask = jnp.concatenate([program.mask, program.angled, jnp.ones((1,), bool)])
    rows = jnp.concatenate(
        [
            jnp.pad(matmul(program.rows, basis), ((0, 0), (0, 1))),
            jnp.concatenate([basis[:-1], -program.cosines[:, None]], axis=1),
            jnp.append(jnp.zeros((size,), dtype), -1.0)[None, :],
        ]
    )
    # A bound on |x| in place of a missing ball keeps the sizes of all slacks comparable.
    most = jnp.minimum(program.max_norm, REACH)
    limits = jnp.concatenate(
        [jnp.maximum(program.margins, -REACH), jnp.zeros((values,), dtype), -most[None]]
    )
    soft = mask & jnp.isfinite(prices)
    # Second-order cones: (t, x), then (rho_r, W_r E x).
    ball = jnp.concatenate([identity[size:], identity[:size]])[None]
    inside = _bounding(program)[:, :, None] * basis[None, :-1]
    radii = jnp.where(program.bounded, jnp.minimum(program.radii, REACH), 1.0)
    maps = jnp.concatenate([ball, jnp.pad(inside, ((0, 0), (1, 1), (0, 1)))])
    return _Form(
        goal=jnp.append(matmul(program.target, basis), 0.0),
        hessian=jnp.diag(jnp.append(jnp.ones((size,), dtype), 0.0)),
        rows=jnp.where(mask[:, None], rows, 0.0),
        limits=jnp.where(mask, limits, -1.0),
        prices=jnp.where(soft, prices, 1.0),
        soft=soft,
        mask=mask,
        maps=maps,
        offsets=jnp.append(0.0, radii).astype(dtype)[:, None] * _first_axis(maps),
    )


def _bounding(program: ConicProgram) -> jax.Array:
    """The weights of the trust regions that there are, [R, M]."""
    return jnp.where(program.bounded[:, None], program.weights, 0.0)


def _first_axis(maps: jax.Array) -> jax.Array:
    """The unit element of every second-order cone, [J, n + 1]."""
    return jnp.zeros(maps.shape[:2], maps.dtype).at[:, 0].set(1.0)


def _gap(form: _Form, at: _Iterate) -> jax.Array:
    """How far complementary pairs are from zero, on average."""
    spare = form.prices - at.multipliers
    soft = jnp.sum(jnp.where(form.soft, at.excess * spare, 0.0))
    degree = form.limits.shape[0] + form.maps.shape[0] + jnp.sum(form.soft)
    return (jnp.dot(at.slack, at.multipliers) + soft + jnp.sum(at.cone * at.dual)) / degree


def _longest_linear(value: jax.Array, change: jax.Array) -> jax.Array:
    falling = change < 0
    return jnp.min(jnp.where(falling, value / jnp.where(falling, -change, 1.0), jnp.inf))


def _longest(form: _Form, at: _Iterate, change: _Iterate) -> jax.Array:
    """The largest step along a change that keeps everything in its cone."""
    soft, spare = form.soft, form.prices - at.multipliers
    steps = [
        _longest_linear(at.slack, change.slack),
        _longest_linear(at.multipliers, change.multipliers),
        _longest_linear(jnp.where(soft, at.excess, 1.0), change.excess),
        _longest_linear(jnp.where(soft, spare, 1.0), jnp.where(soft, -change.multipliers, 0.0)),
        longest_step(at.cone, change.cone),
        longest_step(at.dual, change.dual),
    ]
    return jnp.min(jnp.stack(steps))


def _newton(form: _Form, ridge: float, at: _Iterate, scaling: Scaling) -> _Direction:
    """Newton's equations at an iterate, reduced to z and factored once for both steps.

    Returns:
        ``direction(row_target, soft_target, cone_target)``, the change that brings the products of
        complementary pairs to these targets and all other conditions to zero.
    """
    soft, rows, maps = form.soft, form.rows, form.maps
    slack, value, excess = at.slack, at.multipliers, at.excess
    spare = form.prices - value
    size = form.goal.shape[0]
    flat = maps.reshape(-1, size)
    dual_error = (
        matmul(form.hessian, at.point)
        - form.goal
        - matmul(value, rows)
        - matmul(at.dual.reshape(-1), flat)
    )
    row_error = matmul(rows, at.point) + jnp.where(soft, excess, 0.0) - slack - form.limits
    cone_error = matmul(flat, at.point).reshape(at.cone.shape) + form.offsets - at.cone
    scaled = scale(scaling, at.dual)
    flexible = jnp.where(soft, excess / jnp.where(soft, spare, 1.0), 0.0)
    stiffness = 1.0 / (slack / value + flexible)
    mirrored = jnp.concatenate([scaling.axis[:, :1], -scaling.axis[:, 1:]], axis=1)
    seen = jnp.einsum("jd,jdn->jn", mirrored, maps) / scaling.size[:, None]
    tails = (maps[:, 1:] / scaling.size[:, None, None]).reshape(-1, size)
    heads = maps[:, 0] / scaling.size[:, None]
    matrix = (
        form.hessian
        + matmul(rows.T * stiffness[None, :], rows)
        + 2.0 * matmul(seen.T, seen)
        + matmul(tails.T, tails)
        - matmul(heads.T, heads)
    )
    weight = jnp.sqrt(jnp.maximum(jnp.diagonal(matrix), float(jnp.finfo(matrix.dtype).eps)))
    matrix = matrix / weight[:, None] / weight[None, :]
    solve = solvers.restricted_solver(matrix, jnp.ones((size,), bool), ridge)

    def unscaled(vector: jax.Array) -> jax.Array:
        return unscale(scaling, unscale(scaling, vector))

    def direction(row: jax.Array, price: jax.Array, cone: jax.Array) -> _Iterate:
        spread = jnp.where(soft, price / jnp.where(soft, spare, 1.0), 0.0)
        row_right = -row_error - spread + row / value
        cone_right = unscale(scaling, quotient(scaled, cone)) - unscaled(cone_error)
        right = (
            -dual_error + matmul(stiffness * row_right, rows) + matmul(cone_right.reshape(-1), flat)
        ) / weight
        moved = solve(right)
        moved = (moved + solve(right - matmul(matrix, moved))) / weight
        change = stiffness * (row_right - matmul(rows, moved))
        push = matmul(flat, moved).reshape(at.cone.shape)
        return _Iterate(
            point=moved,
            slack=(row - slack * change) / value,
            multipliers=change,
            excess=jnp.where(soft, spread + flexible * change, 0.0),
            cone=push + cone_error,
            dual=cone_right - unscaled(push),
        )

    return direction


def _moved(form: _Form, ridge: float, state: _State) -> _State:
    """One step: predicted towards no gap at all, corrected towards the gap that seems in reach."""
    at = state.at
    spare = form.prices - at.multipliers
    scaling = scaling_of(at.cone, at.dual)
    direction = _newton(form, ridge, at, scaling)
    scaled = scale(scaling, at.dual)
    square = product(scaled, scaled)
    affine = direction(-at.slack * at.multipliers, -at.excess * spare, -square)
    reach = jnp.minimum(1.0, _longest(form, at, affine))
    target = (1.0 - reach) ** 3 * state.gap
    second = product(
        unscale(scaling, affine.cone),
        scale(scaling, affine.dual),
    )
    change = direction(
        target - at.slack * at.multipliers - affine.slack * affine.multipliers,
        target - at.excess * spare + affine.excess * affine.multipliers,
        target * _first_axis(form.maps) - square - second,
    )
    reach = jnp.minimum(1.0, 0.99 * _longest(form, at, change))
    new = jax.tree.map(lambda old, step: old + reach * step, at, change)
    gap = _gap(form, new)
    usable = (
        jnp.isfinite(gap)
        & jnp.all(jnp.isfinite(new.point))
        & (jnp.min(interior(new.cone)) > 0)
        & (jnp.min(interior(new.dual)) > 0)
        & jnp.all((new.slack > 0) & (new.multipliers > 0))
    )
    done = ~usable | (gap <= 4.0 * float(jnp.finfo(gap.dtype).eps))
    new, gap = jax.tree.map(
        lambda new, old: jnp.where(usable, new, old), (new, gap), (at, state.gap)
    )
    return _State(new, gap, state.step + 1, done)


def _recovered(program: ConicProgram, form: _Form, at: _Iterate) -> ConicPoint:
    """Coordinates from multipliers: x (1 + pull / |x|) is a combination of rows."""
    first, values = program.margins.shape[0], program.cosines.shape[0]
    used = jnp.where(form.mask, at.multipliers, 0.0)
    length = jnp.linalg.norm(at.point[:-1])
    drawn = jnp.sum(_bounding(program) * at.dual[1:, 1:-1], axis=0)
    force = (
        program.target
        + matmul(used[:first], program.rows)
        + jnp.append(used[first : first + values] + drawn, 0.0)
    )
    return ConicPoint(
        force * (length / (length + at.dual[0, 0])),
        used[:first],
        used[first : first + values],
        jnp.where(program.capped, at.multipliers[-1], 0.0),
        jnp.where(program.bounded, at.dual[1:, 0], 0.0),
    )
