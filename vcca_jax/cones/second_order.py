"""The algebra of second-order cones {(v_0, v_1): v_0 >= |v_1|}, J of them at once, each [d].

Jordan products and the scaling of Y. Nesterov and M. Todd (1997), for interior-point methods.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


def interior(vector: jax.Array) -> jax.Array:
    """vector_0^2 - |vector_1|^2 without cancellation, [J]."""
    tail = jnp.linalg.norm(vector[:, 1:], axis=1)
    return (vector[:, 0] - tail) * (vector[:, 0] + tail)


def product(left: jax.Array, right: jax.Array) -> jax.Array:
    """Jordan product of second-order cone vectors, [J, d]."""
    head = jnp.sum(left * right, axis=1, keepdims=True)
    return jnp.concatenate([head, left[:, :1] * right[:, 1:] + right[:, :1] * left[:, 1:]], axis=1)


def quotient(left: jax.Array, right: jax.Array) -> jax.Array:
    """The solution of left o result = right."""
    inside = jnp.sum(left[:, 1:] * right[:, 1:], axis=1, keepdims=True)
    head = (left[:, :1] * right[:, :1] - inside) / interior(left)[:, None]
    return jnp.concatenate([head, (right[:, 1:] - head * left[:, 1:]) / left[:, :1]], axis=1)


def longest_step(value: jax.Array, change: jax.Array) -> jax.Array:
    """The largest step that keeps value + step * change in its second-order cones."""
    square = jnp.sqrt(interior(value))[:, None]
    unit = value / square
    along = unit[:, :1] * change[:, :1] - jnp.sum(unit[:, 1:] * change[:, 1:], 1, keepdims=True)
    tail = change[:, 1:] - (along + change[:, :1]) / (unit[:, :1] + 1.0) * unit[:, 1:]
    speed = (jnp.linalg.norm(tail, axis=1) - along[:, 0]) / square[:, 0]
    return jnp.min(jnp.where(speed > 0, 1.0 / jnp.where(speed > 0, speed, 1.0), jnp.inf))


class Scaling(NamedTuple):
    """Nesterov and Todd's: W z = W^-1 s."""

    size: jax.Array  # eta [J]
    axis: jax.Array  # w [J, d], w_0^2 - |w_1|^2 = 1


def scaling_of(cone: jax.Array, dual: jax.Array) -> Scaling:
    """The scaling at a pair of points s (``cone``) and z (``dual``) inside their cones."""
    first, second = interior(cone), interior(dual)
    unit, other = cone / jnp.sqrt(first)[:, None], dual / jnp.sqrt(second)[:, None]
    half = jnp.sqrt(0.5 * (1.0 + jnp.sum(unit * other, axis=1)))[:, None]
    mirrored = jnp.concatenate([other[:, :1], -other[:, 1:]], axis=1)
    return Scaling((first / second) ** 0.25, (unit + mirrored) / (2.0 * half))


def scale(scaling: Scaling, vector: jax.Array) -> jax.Array:
    """W v, [J, d]."""
    return _reflected(scaling.axis, vector, 1.0) * scaling.size[:, None]


def unscale(scaling: Scaling, vector: jax.Array) -> jax.Array:
    """W^-1 v, [J, d]."""
    return _reflected(scaling.axis, vector, -1.0) / scaling.size[:, None]


def _reflected(axis: jax.Array, vector: jax.Array, sign: float) -> jax.Array:
    head, tail = axis[:, :1], axis[:, 1:] * sign
    inside = jnp.sum(tail * vector[:, 1:], axis=1, keepdims=True)
    top = head * vector[:, :1] + inside
    rest = vector[:, 1:] + (vector[:, :1] + inside / (1.0 + head)) * tail
    return jnp.concatenate([top, rest], axis=1)
