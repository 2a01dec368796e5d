"""What a cone program asks, and the same in units of unit rows and of the program's own size.

The solvers work on numbers near one; ``conic`` hands them a ``ConicProgram`` that is made here, and
multiplies what they find by ``ConicUnits``.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from vcca_jax.cones.solvers import matmul


class Asked(NamedTuple):
    """The arguments of ``solve_conic_program``, in full."""

    gram: jax.Array
    products: jax.Array
    squared_norm: jax.Array
    value: jax.Array
    sign: jax.Array
    margin: jax.Array
    mask: jax.Array
    prices: jax.Array
    max_norm: jax.Array
    cosines: jax.Array
    weights: jax.Array
    radii: jax.Array


class ConicProgram(NamedTuple):
    """One conic program in scaled units; n = M + 1 unit rows, the last one that of g."""

    gram: jax.Array  # C [n, n]
    target: jax.Array  # coordinates of g [n]
    rows: jax.Array  # coordinates of the half-spaces' normals [K, n]
    margins: jax.Array  # [K]
    prices: jax.Array  # [K], infinite where hard
    mask: jax.Array  # bool [K]
    cosines: jax.Array  # [M]
    angled: jax.Array  # bool [M]
    max_norm: jax.Array  # []
    capped: jax.Array  # bool []
    weights: jax.Array  # [R, M]
    radii: jax.Array  # [R]
    bounded: jax.Array  # bool [R]


class ConicPoint(NamedTuple):
    """Coordinates [n] of x, and the multipliers of its constraints."""

    coordinates: jax.Array  # [n]
    rows: jax.Array  # [K]
    angles: jax.Array  # [M]
    norm: jax.Array  # []
    regions: jax.Array  # [R]


class ConicUnits(NamedTuple):
    """What scaled quantities are multiplied by to be those asked for; constants."""

    size: jax.Array  # of u
    coordinates: jax.Array  # [n], and of the angles' multipliers
    rows: jax.Array  # [K], of multipliers
    regions: jax.Array  # [R], of multipliers


def _norms(asked: Asked) -> tuple[jax.Array, jax.Array]:
    """Those of V and g, constants, one for what vanishes; and which do not vanish, [M + 1]."""
    squares = lax.stop_gradient(jnp.append(jnp.diagonal(asked.gram), asked.squared_norm))
    present = squares >= jnp.finfo(squares.dtype).tiny
    return jnp.sqrt(jnp.where(present, squares, 1.0)), present


def payable(asked: Asked) -> tuple[Asked, jax.Array]:
    """The program without prices that rounding would hide, and the size of what is asked.

    A row at its price pushes with all of it; against an opposing copy that must hold, it moves
    nothing but digits. Prices of more than eps^(-1/2) sizes are taken for that: a row is missed by
    sqrt(eps) / 2 sizes at most where keeping it moves u by one.
    """
    norms, present = _norms(asked)
    rows = norms[asked.value]
    # No shorter is an update that meets a margin, unless its price is less.
    pulls = lax.stop_gradient(jnp.minimum(asked.margin / rows, asked.prices * rows))
    pulls = jnp.where(asked.mask & present[asked.value], pulls, 0.0)
    size = jnp.maximum(jnp.where(present, norms, 0.0)[-1], jnp.max(pulls, initial=0.0))
    most = size / rows / float(jnp.finfo(rows.dtype).eps) ** 0.5
    dear = (asked.prices > most) & (asked.prices < jnp.inf) & (size > 0)
    return asked._replace(prices=jnp.where(dear, most, asked.prices)), size


def scaled(
    asked: Asked, multipliers: jax.Array, least: jax.Array
) -> tuple[ConicProgram, ConicUnits, jax.Array]:
    """The program in units of unit rows and of the larger of |g| and the half-spaces' answer.

    The third is False where rounding hides that answer; the unit is then ``least``. Margins of
    opposing copies may exclude each other, and the Gram matrix of copies is singular only to
    rounding: multipliers of margin / eps solve the dual, and what they add up to is rounding, of
    about sqrt(eps) times their size as sqrt(lambda^T G lambda) tells it.
    """
    dtype = asked.gram.dtype
    epsilon = float(jnp.finfo(dtype).eps)
    norms, present = _norms(asked)
    gram = jnp.concatenate(
        [
            jnp.concatenate([asked.gram, asked.products[:, None]], axis=1),
            jnp.append(asked.products, asked.squared_norm)[None, :],
        ]
    )
    both = present[:, None] & present[None, :]
    gram = jnp.where(both, gram / norms[:, None] / norms[None, :], 0.0)
    rows = norms[asked.value]
    mask = asked.mask & present[asked.value]
    forces = lax.stop_gradient(jnp.where(mask, multipliers * rows, 0.0))
    pushed = jnp.zeros_like(norms[:-1]).at[asked.value].add(asked.sign * forces)
    reached = jnp.append(pushed, jnp.where(present, norms, 0.0)[-1])
    square = jnp.dot(reached, matmul(lax.stop_gradient(gram), reached))
    size = jnp.maximum(jnp.sqrt(jnp.maximum(square, 0.0)), reached[-1])
    trusted = jnp.sum(forces) * epsilon**0.375 <= jnp.maximum(size, least)
    size = jnp.where(trusted, size, least)
    size = jnp.where(size > 0, size, 1.0)

    identity = jnp.eye(norms.shape[0], dtype=dtype)
    angled = (asked.cosines >= 0) & present[:-1]
    cosines = jnp.minimum(asked.cosines, 1.0 - epsilon ** (2 / 3))
    unit = jnp.where(angled, jnp.diagonal(gram)[:-1], 1.0)  # one, with |V_q|'s derivative
    weights = asked.weights * jnp.where(present, norms, 0.0)[None, :-1]
    largest = lax.stop_gradient(jnp.max(weights, axis=1, initial=0.0))
    bounded = (asked.radii < jnp.inf) & (largest > 0)
    largest = jnp.where(bounded, largest, 1.0)
    radii = jnp.maximum(asked.radii / largest / size, epsilon ** (2 / 3))
    # Beyond this nothing binds; and infinities would meet zeros.
    far = epsilon**-0.375
    program = ConicProgram(
        gram=gram,
        target=jnp.where(present, identity[-1] * norms / size, 0.0),
        rows=jnp.where(mask[:, None], asked.sign[:, None] * identity[asked.value], 0.0),
        margins=jnp.where(mask, jnp.maximum(asked.margin / rows / size, -far), -1.0),
        prices=jnp.where(
            asked.prices < jnp.inf, jnp.where(mask, asked.prices, 0.0) * rows / size, jnp.inf
        ),
        mask=mask,
        cosines=jnp.where(angled, cosines * jnp.sqrt(unit), 0.0),
        angled=angled,
        max_norm=jnp.minimum(asked.max_norm / size, far),
        capped=asked.max_norm < jnp.inf,
        weights=jnp.where(bounded[:, None], weights / largest[:, None], 0.0),
        radii=jnp.where(bounded, jnp.minimum(radii, far), 1.0),
        bounded=bounded,
    )
    return program, ConicUnits(size, size / norms, size / rows, size / largest), trusted
