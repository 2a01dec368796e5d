"""The dual program in scaled units: what every solver of the projection is given.

Rows are scaled to unit norm and deficits to a largest of one, so that one tolerance fits gradients
of all sizes; rows that take no part become identity rows with deficit -1, whose multiplier is zero.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from vcca_jax.cones import solvers
from vcca_jax.cones.solvers import matmul


class Program(NamedTuple):
    """One program in scaled units; see ``solvers``."""

    gram: jax.Array
    deficit: jax.Array
    caps: jax.Array | None
    rounding: jax.Array  # the size that deficits were computed at, at least one
    bounded: jax.Array  # bool: known to have a solution
    live: jax.Array  # bool: finite input
    excluded: jax.Array  # bool: two opposing rows ask for more than each other leaves


class Units(NamedTuple):
    """What takes a scaled program back."""

    multiplier: jax.Array  # [K]
    margin: jax.Array  # [K]
    impossible: jax.Array  # [K] bool: zero rows that ask for more than zero
    depth: jax.Array  # [K], what zero rows miss


def scaled_program(
    gram: jax.Array,
    deficit: jax.Array,
    mask: ArrayLike | None,
    margins: ArrayLike | None,
    scale: ArrayLike | None,
    prices: ArrayLike | None,
    lowered: bool,
) -> tuple[Program, Units]:
    """Unit rows, largest deficit one, rows that take no part cleared; ``lowered``: v* is sought."""
    dtype = jnp.promote_types(gram.dtype, deficit.dtype)
    gram, deficit = gram.astype(dtype), deficit.astype(dtype)
    size = deficit.shape[0]
    mask = row_mask(mask, size)
    caps, hard = None, mask
    if prices is not None:
        caps = jnp.where(mask, per_row("prices", prices, size, dtype), jnp.inf)
        mask = mask & ~(caps <= 0)
        hard = mask & (caps == jnp.inf)
        caps = jnp.where(mask, caps, jnp.inf)
    if margins is None:
        known = jnp.zeros((size,), dtype)
        bounded = ~jnp.any(hard)
    else:
        known = jnp.where(mask, per_row("margins", margins, size, dtype), 0.0)
        bounded = ~jnp.any(hard & ~(known <= 0))
    gram = jnp.where(mask[:, None] & mask[None, :], gram, 0.0)
    deficit = jnp.where(mask, deficit, -1.0)
    finite = jnp.all(jnp.isfinite(gram)) & jnp.all(jnp.isfinite(deficit))
    if caps is not None:
        finite = finite & ~jnp.any(jnp.isnan(caps))

    squared = jnp.diagonal(gram)
    present = mask & (squared >= jnp.finfo(dtype).tiny)
    inverse = jnp.where(present, jnp.where(present, squared, 1.0) ** -0.5, 1)
    if not lowered:
        # Any fixed scaling leaves lambda^T N as it is: its derivative is no part of the answer.
        inverse = lax.stop_gradient(inverse)
    both = present[:, None] & present[None, :]
    identity = jnp.eye(size, dtype=dtype)
    unit = jnp.where(both, gram * inverse[:, None] * inverse[None, :], identity)
    depth = jnp.where(present & finite, deficit * inverse, 0.0)
    largest = lax.stop_gradient(jnp.max(depth, initial=0.0))
    largest = jnp.where(largest > 0, largest, 1.0)
    magnitude = jnp.max(jnp.where(present, jnp.abs(known) * inverse, 0.0), initial=0.0)
    if scale is not None:
        magnitude = jnp.maximum(magnitude, jnp.abs(jnp.asarray(scale, dtype)))
    rounding = jnp.maximum(1.0, lax.stop_gradient(magnitude) / largest)
    depth = jnp.where(present & finite, depth / largest, -1.0)
    unit = jnp.where(finite, unit, identity)
    if caps is not None:
        finite_cap = present & jnp.isfinite(caps)
        highest = float(jnp.finfo(dtype).max) ** 0.25  # so that products of caps stay finite
        caps = jnp.where(finite_cap, jnp.where(finite_cap, caps, 1.0) / (largest * inverse), 1.0)
        caps = jnp.where(finite_cap, jnp.minimum(caps, highest), jnp.inf)
    vacant = mask & ~present & (deficit > 0) & finite
    impossible = vacant & hard
    if margins is not None:
        impossible = impossible & (known > 0)
    asked = jnp.where(present & hard, known * inverse, -jnp.inf)
    excluded = _excluded(*lax.stop_gradient((unit, asked, magnitude)))
    program = Program(unit, depth, caps, rounding, bounded, finite, excluded)
    units = Units(
        largest * inverse,
        jnp.where(present, largest / inverse, 0.0),
        impossible,
        jnp.where(impossible | (vacant & ~hard), deficit, 0.0),
    )
    return program, units


def verified(program: Program, multipliers: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The residual, and whether it and the distance from g are what a solution may have."""
    gram, deficit, caps, rounding, bounded, *_ = program
    epsilon = float(jnp.finfo(gram.dtype).eps)
    tolerance = 4.0 * epsilon * rounding
    residual = solvers.natural_residual(gram, deficit, multipliers, caps)
    allowed = 8.0 * tolerance * jnp.maximum(1.0, jnp.max(multipliers))
    reach = rounding
    if caps is None:
        moved = jnp.dot(deficit, multipliers)
    else:
        moved = jnp.dot(multipliers, matmul(gram, multipliers))
        reach = jnp.maximum(reach, jnp.max(jnp.where(jnp.isfinite(caps), caps, 0.0)))
    near = moved * smallest_rho(gram) <= reach**2
    most = jnp.maximum(epsilon**0.5, 8.0 * tolerance)
    small = residual <= jnp.minimum(allowed, most)
    return residual, small & (near | bounded) & ~program.excluded


def _excluded(unit: jax.Array, asked: jax.Array, magnitude: jax.Array) -> jax.Array:
    """Whether opposing copies exclude each other: m_k + m_l > 0 where N_k = -N_l, unit rows.

    Told by the margins alone, where they are above rounding at the size of g. The residual is
    measured against the largest deficit, which <g, N_k> may make any number of times larger than
    what the margins lack.
    """
    small = 8.0 * float(jnp.finfo(unit.dtype).eps)
    together = asked[:, None] + asked[None, :]
    return jnp.any((together > small * magnitude) & (unit <= -1.0 + small))


def smallest_rho(gram: jax.Array) -> float:
    """An answer farther away than 1 / sqrt(threshold) largest deficits is as good as none."""
    return float(jnp.finfo(gram.dtype).eps) ** 0.75


def floating(value: ArrayLike) -> jax.Array:
    """An array of at least single precision."""
    array = jnp.asarray(value)
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))


def row_norms(normals: jax.Array) -> jax.Array:
    """|N_k| [K] of rows [K, D] of any size, whose squares might vanish; one for zero rows."""
    peak = lax.stop_gradient(jnp.max(jnp.abs(normals), axis=1, initial=0.0))
    safe = jnp.where(peak > 0, peak, 1.0)
    squares = jnp.sum((normals / safe[:, None]) ** 2, axis=1)
    return safe * jnp.sqrt(jnp.where(peak > 0, squares, 1.0))


def unit_caps(prices: jax.Array, norms: jax.Array) -> jax.Array:
    """Prices [K] as bounds on the multipliers of unit rows; infinite ones stay so.

    They are replaced before they are multiplied: the derivative would be 0 times infinity.
    """
    stated = prices != jnp.inf
    return jnp.where(stated, jnp.maximum(jnp.where(stated, prices, 1.0) * norms, 0.0), jnp.inf)


def row_mask(mask: ArrayLike | None, size: int) -> jax.Array:
    """The mask as bool [size]; all rows without one."""
    if mask is None:
        return jnp.ones((size,), bool)
    mask = jnp.asarray(mask)
    if mask.shape != (size,):
        raise ValueError(f"mask {mask.shape} does not fit {size} rows: pass bool [{size}].")
    return mask.astype(bool)


def per_row(name: str, value: ArrayLike, size: int, dtype: jnp.dtype) -> jax.Array:
    """A scalar or [size] as [size]."""
    array = jnp.asarray(value, dtype)
    if array.ndim > 1 or (array.ndim == 1 and array.shape[0] != size):
        raise ValueError(f"{name} {array.shape} do not fit {size} rows: pass a scalar or [{size}].")
    return jnp.broadcast_to(array, (size,))
