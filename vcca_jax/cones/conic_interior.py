"""A primal-dual interior point for conic programs: one agent, from inner products alone.

For what the undamped steps of ``conic_newton`` leave, in its scaled units; its answer is theirs to
polish. It needs no point to start from, and finds the apex x = 0 as well as any other. The steps
are those of Y. Nesterov and M. Todd (1997), predicted and corrected as by S. Mehrotra (1992). With

    |x| <= t,   t <= T,   <x, e_q> >= c_q t

for the ball and all angles together, these share one second-order cone, and the program has 1 + R
of them, in M + 2 unknowns (x, t).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from vcca_jax.cones import solvers
from vcca_jax.cones.conic_newton import Point, Program
from vcca_jax.cones.solvers import matmul

INTERIOR_STEPS = 40
# How far it looks for a solution: multiples of the larger of |g| and of its projection onto the
# half-spaces.
REACH = 32.0


class _Interior(NamedTuple):
    point: jax.Array  # (x, t) [n + 1]
    slack: jax.Array  # of the linear rows [L]
    multipliers: jax.Array  # [L]
    excess: jax.Array  # xi [L]
    cone: jax.Array  # points of the second-order cones [J, n + 1]
    dual: jax.Array  # [J, n + 1]
    gap: jax.Array
    step: jax.Array
    done: jax.Array


def _interior_of(vector: jax.Array) -> jax.Array:
    """vector_0^2 - |vector_1|^2 without cancellation, [J]."""
    tail = jnp.linalg.norm(vector[:, 1:], axis=1)
    return (vector[:, 0] - tail) * (vector[:, 0] + tail)


def _product(left: jax.Array, right: jax.Array) -> jax.Array:
    """Jordan product of second-order cone vectors, [J, d]."""
    head = jnp.sum(left * right, axis=1, keepdims=True)
    return jnp.concatenate([head, left[:, :1] * right[:, 1:] + right[:, :1] * left[:, 1:]], axis=1)


def _quotient(left: jax.Array, right: jax.Array) -> jax.Array:
    """The solution of left o result = right."""
    inside = jnp.sum(left[:, 1:] * right[:, 1:], axis=1, keepdims=True)
    head = (left[:, :1] * right[:, :1] - inside) / _interior_of(left)[:, None]
    return jnp.concatenate([head, (right[:, 1:] - head * left[:, 1:]) / left[:, :1]], axis=1)


def _longest_linear(value: jax.Array, change: jax.Array) -> jax.Array:
    falling = change < 0
    return jnp.min(jnp.where(falling, value / jnp.where(falling, -change, 1.0), jnp.inf))


def _longest_cone(value: jax.Array, change: jax.Array) -> jax.Array:
    """The largest step that keeps value + step * change in its second-order cones."""
    square = jnp.sqrt(_interior_of(value))[:, None]
    unit = value / square
    along = unit[:, :1] * change[:, :1] - jnp.sum(unit[:, 1:] * change[:, 1:], 1, keepdims=True)
    tail = change[:, 1:] - (along + change[:, :1]) / (unit[:, :1] + 1.0) * unit[:, 1:]
    speed = (jnp.linalg.norm(tail, axis=1) - along[:, 0]) / square[:, 0]
    return jnp.min(jnp.where(speed > 0, 1.0 / jnp.where(speed > 0, speed, 1.0), jnp.inf))


class _Scaling(NamedTuple):
    """Nesterov and Todd's: W z = W^-1 s."""

    size: jax.Array  # eta [J]
    axis: jax.Array  # w [J, d], w_0^2 - |w_1|^2 = 1


def _scaling(cone: jax.Array, dual: jax.Array) -> _Scaling:
    first, second = _interior_of(cone), _interior_of(dual)
    unit, other = cone / jnp.sqrt(first)[:, None], dual / jnp.sqrt(second)[:, None]
    half = jnp.sqrt(0.5 * (1.0 + jnp.sum(unit * other, axis=1)))[:, None]
    mirrored = jnp.concatenate([other[:, :1], -other[:, 1:]], axis=1)
    return _Scaling((first / second) ** 0.25, (unit + mirrored) / (2.0 * half))


def _scale(scaling: _Scaling, vector: jax.Array, inverse: bool = False) -> jax.Array:
    size, axis = scaling.size[:, None], scaling.axis
    head, tail = axis[:, :1], axis[:, 1:] * (-1.0 if inverse else 1.0)
    inside = jnp.sum(tail * vector[:, 1:], axis=1, keepdims=True)
    top = head * vector[:, :1] + inside
    rest = vector[:, 1:] + (vector[:, :1] + inside / (1.0 + head)) * tail
    result = jnp.concatenate([top, rest], axis=1)
    return result / size if inverse else result * size


def interior_point(program: Program, skip: jax.Array) -> Point:
    """A point close to a solution: that of the last step that was finite."""
    dtype = program.gram.dtype
    epsilon = float(jnp.finfo(dtype).eps)
    size, values = program.gram.shape[0], program.cosines.shape[0]
    ridge = solvers.smallest_ridge(dtype) * size**0.5
    # Coordinates in which the inner product is the usual one. The ridge is at rounding's size.
    basis = lax.linalg.cholesky(
        program.gram + ridge * jnp.eye(size, dtype=dtype), symmetrize_input=False
    )
    goal = jnp.append(matmul(program.target, basis), 0.0)
    hard = jnp.full((values + 1,), jnp.inf, dtype)
    prices = jnp.concatenate([program.prices, hard])
    mask = jnp.concatenate([program.mask, program.angled, jnp.ones((1,), bool)])
    rows = jnp.concatenate(
        [
            jnp.pad(matmul(program.rows, basis), ((0, 0), (0, 1))),
            jnp.concatenate([basis[:-1], -program.cosines[:, None]], axis=1),
            jnp.append(jnp.zeros((size,), dtype), -1.0)[None, :],
        ]
    )
    rows = jnp.where(mask[:, None], rows, 0.0)
    # A bound on |x| in place of a missing ball keeps the sizes of all slacks comparable.
    most = jnp.minimum(program.max_norm, REACH)
    limits = jnp.concatenate(
        [jnp.maximum(program.margins, -REACH), jnp.zeros((values,), dtype), -most[None]]
    )
    limits = jnp.where(mask, limits, -1.0)
    soft = mask & jnp.isfinite(prices)
    prices = jnp.where(soft, prices, 1.0)
    # Second-order cones: (t, x), then (rho_r, W_r E x).
    identity = jnp.eye(size + 1, dtype=dtype)
    ball = jnp.concatenate([identity[size:], identity[:size]])[None]
    inside = (
        jnp.where(program.bounded[:, None], program.weights, 0.0)[:, :, None] * basis[None, :-1]
    )
    maps = jnp.concatenate([ball, jnp.pad(inside, ((0, 0), (1, 1), (0, 1)))])
    offsets = jnp.append(
        0.0, jnp.where(program.bounded, jnp.minimum(program.radii, REACH), 1.0)
    ).astype(dtype)
    unit = jnp.zeros((maps.shape[0], size + 1), dtype).at[:, 0].set(1.0)
    offsets = offsets[:, None] * unit
    flat = maps.reshape(-1, size + 1)
    hessian = jnp.diag(jnp.append(jnp.ones((size,), dtype), 0.0))
    degree = limits.shape[0] + maps.shape[0] + jnp.sum(soft)
    everything = jnp.ones((size + 1,), bool)

    def gap_of(slack: Any, multipliers: Any, excess: Any, spare: Any, cone: Any, dual: Any) -> Any:
        soft_part = jnp.sum(jnp.where(soft, excess * spare, 0.0))
        return (jnp.dot(slack, multipliers) + soft_part + jnp.sum(cone * dual)) / degree

    def unfinished(state: _Interior) -> jax.Array:
        return ~state.done & (state.step < INTERIOR_STEPS)

    def move(state: _Interior) -> _Interior:
        slack, value, excess = state.slack, state.multipliers, state.excess
        spare = prices - value
        extra = jnp.where(soft, excess, 0.0)
        dual_error = (
            matmul(hessian, state.point)
            - goal
            - matmul(value, rows)
            - matmul(state.dual.reshape(-1), flat)
        )
        row_error = matmul(rows, state.point) + extra - slack - limits
        cone_error = matmul(flat, state.point).reshape(state.cone.shape) + offsets - state.cone
        scaling = _scaling(state.cone, state.dual)
        scaled = _scale(scaling, state.dual)
        flexible = jnp.where(soft, excess / jnp.where(soft, spare, 1.0), 0.0)
        stiffness = 1.0 / (slack / value + flexible)
        mirrored = jnp.concatenate([scaling.axis[:, :1], -scaling.axis[:, 1:]], axis=1)
        seen = jnp.einsum("jd,jdn->jn", mirrored, maps) / scaling.size[:, None]
        tails = (maps[:, 1:] / scaling.size[:, None, None]).reshape(-1, size + 1)
        heads = maps[:, 0] / scaling.size[:, None]
        matrix = (
            hessian
            + matmul(rows.T * stiffness[None, :], rows)
            + 2.0 * matmul(seen.T, seen)
            + matmul(tails.T, tails)
            - matmul(heads.T, heads)
        )
        weight = jnp.sqrt(jnp.maximum(jnp.diagonal(matrix), epsilon))
        solve = solvers.restricted_solver(
            matrix / weight[:, None] / weight[None, :], everything, ridge
        )

        def direction(row_target: Any, soft_target: Any, cone_target: Any) -> Any:
            quotient = _quotient(scaled, cone_target)
            spread = jnp.where(soft, soft_target / jnp.where(soft, spare, 1.0), 0.0)
            row_right = -row_error - spread + row_target / value
            cone_right = _scale(scaling, quotient, inverse=True) - _scale(
                scaling, _scale(scaling, cone_error, inverse=True), inverse=True
            )
            right = (
                -dual_error
                + matmul(stiffness * row_right, rows)
                + matmul(cone_right.reshape(-1), flat)
            ) / weight
            moved = solve(right)
            scaled_matrix = matrix / weight[:, None] / weight[None, :]
            moved = (moved + solve(right - matmul(scaled_matrix, moved))) / weight
            change = stiffness * (row_right - matmul(rows, moved))
            slack_change = (row_target - slack * change) / value
            excess_change = jnp.where(soft, spread + flexible * change, 0.0)
            push = matmul(flat, moved).reshape(state.cone.shape)
            cone_change = push + cone_error
            dual_change = cone_right - _scale(
                scaling, _scale(scaling, push, inverse=True), inverse=True
            )
            return moved, slack_change, change, excess_change, cone_change, dual_change

        def longest(changes: Any) -> jax.Array:
            _, slack_change, change, excess_change, cone_change, dual_change = changes
            steps = [
                _longest_linear(slack, slack_change),
                _longest_linear(value, change),
                _longest_linear(jnp.where(soft, excess, 1.0), excess_change),
                _longest_linear(jnp.where(soft, spare, 1.0), jnp.where(soft, -change, 0.0)),
                _longest_cone(state.cone, cone_change),
                _longest_cone(state.dual, dual_change),
            ]
            return jnp.min(jnp.stack(steps))

        square = _product(scaled, scaled)
        affine = direction(-slack * value, -excess * spare, -square)
        reach = jnp.minimum(1.0, longest(affine))
        target = (1.0 - reach) ** 3 * state.gap
        _, slack_change, change, excess_change, cone_change, dual_change = affine
        second = _product(_scale(scaling, cone_change, inverse=True), _scale(scaling, dual_change))
        changes = direction(
            target - slack * value - slack_change * change,
            target - excess * spare + excess_change * change,
            target * unit - square - second,
        )
        reach = jnp.minimum(1.0, 0.99 * longest(changes))
        point, new_slack, new_value, new_excess, cone, dual = (
            old + reach * new
            for old, new in zip(
                (state.point, slack, value, excess, state.cone, state.dual), changes, strict=True
            )
        )
        gap = gap_of(new_slack, new_value, new_excess, prices - new_value, cone, dual)
        usable = (
            jnp.isfinite(gap)
            & jnp.all(jnp.isfinite(point))
            & (jnp.min(_interior_of(cone)) > 0)
            & (jnp.min(_interior_of(dual)) > 0)
            & jnp.all((new_slack > 0) & (new_value > 0))
        )
        new = _Interior(
            point,
            new_slack,
            new_value,
            new_excess,
            cone,
            dual,
            gap,
            state.step + 1,
            gap <= epsilon * 4.0,
        )
        kept = jax.tree.map(lambda new, old: jnp.where(usable, new, old), new, state)
        return kept._replace(step=state.step + 1, done=new.done | ~usable)

    ones = jnp.ones_like(limits)
    value = jnp.where(soft, jnp.minimum(1.0, 0.5 * prices), 1.0)
    start = _Interior(
        jnp.zeros((size + 1,), dtype),
        ones,
        value,
        ones,
        unit,
        unit,
        gap_of(ones, value, ones, prices - value, unit, unit).astype(dtype),
        jnp.asarray(0),
        skip,
    )
    state = lax.while_loop(unfinished, move, start)
    # Coordinates from multipliers: x (1 + pull / |x|) is a combination of rows.
    first = program.margins.shape[0]
    used = jnp.where(mask, state.multipliers, 0.0)
    length = jnp.linalg.norm(state.point[:-1])
    drawn = jnp.sum(
        jnp.where(program.bounded[:, None], program.weights, 0.0) * state.dual[1:, 1:-1], axis=0
    )
    force = (
        program.target
        + matmul(used[:first], program.rows)
        + jnp.append(used[first : first + values] + drawn, 0.0)
    )
    return Point(
        force * (length / (length + state.dual[0, 0])),
        used[:first],
        used[first : first + values],
        jnp.where(program.capped, state.multipliers[-1], 0.0),
        jnp.where(program.bounded, state.dual[1:, 0], 0.0),
    )
