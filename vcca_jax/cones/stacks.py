"""Projection of a stack of materialised gradients, [A, D], each onto its own or a shared cone.

The mathematics is that of ``cones.cone_projection``; what differs is how often memory is read. At
D beyond the caches the time is that of reading rows, so there is one pass for inner products,
agent by agent and in chunks of D that stay in the cache, one batch of small dual programs, and one
pass that forms the update and measures its remaining error. A third pass is made only for agents
whose rows are so dependent that the error is above rounding. Gradients that need not be
materialised should not be: see ``gradients`` and ``solve_cone_dual``.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from vcca_jax.cones.duals import Policy, check_policy, solve_cone_duals
from vcca_jax.cones.programs import floating, row_norms, unit_caps
from vcca_jax.cones.projection import ConeProjection, cone_projection, correct
from vcca_jax.cones.solvers import free_rows, matmul

# Entries of a row that are read at a time: 16 rows of them fill half a megabyte.
CHUNK = 8192


def project_stack_onto_cones(
    g: ArrayLike,
    normals: ArrayLike,
    margins: ArrayLike = 0.0,
    mask: ArrayLike | None = None,
    *,
    prices: ArrayLike | None = None,
    policy: Policy = "drop",
) -> ConeProjection:
    """The admissible update nearest to each of A gradients, in as few passes over memory as can be.

    Equal to ``jax.vmap(cone_projection)`` to rounding, and differentiated as it (at its cost).
    Jit it, and donate g where it is not needed any more.

    Args:
        g: agent gradients [A, D].
        normals: rows [A, K, D], or [K, D] if all agents share them; masked rows may hold NaN.
        margins: a scalar, [K] or [A, K].
        mask: bool, [K] or [A, K]. Default: all.
        prices: a scalar, [K] or [A, K]. Default: all infinite.
        policy: "drop" or "least_violation".

    Returns:
        A ``ConeProjection`` with a leading [A].

    Raises:
        ValueError: if shapes do not fit, or for an unknown policy.
    """
    check_policy(policy)
    g, normals = floating(g), floating(normals)
    dtype = jnp.promote_types(g.dtype, normals.dtype)
    g, normals = g.astype(dtype), normals.astype(dtype)
    if (
        g.ndim != 2
        or normals.ndim not in (2, 3)
        or normals.shape[-1] != g.shape[1]
        or normals.shape[:-2] not in ((), g.shape[:1])
    ):
        raise ValueError(
            f"g {g.shape} and normals {normals.shape} do not fit: pass [A, D] and [A, K, D], or "
            "[K, D] shared by all."
        )
    agents, size = g.shape[0], normals.shape[-2]
    mask = jnp.ones((), bool) if mask is None else jnp.asarray(mask).astype(bool)
    mask = _per_agent("mask", mask, agents, size)
    margins = _per_agent("margins", jnp.asarray(margins, dtype), agents, size)
    if prices is not None:
        prices = _per_agent("prices", jnp.asarray(prices, dtype), agents, size)
    if agents == 0 or size == 0:
        return _by_agent(policy, g, normals, margins, mask, prices)
    return _stacked(policy, g, normals, margins, mask, prices)


def _per_agent(name: str, value: jax.Array, agents: int, size: int) -> jax.Array:
    if value.shape not in ((), (size,), (agents, size)):
        raise ValueError(
            f"{name} {value.shape} does not fit {agents} agents with {size} rows: pass a scalar, "
            f"[{size}] or [{agents}, {size}]."
        )
    return jnp.broadcast_to(value.reshape((1,) * (2 - value.ndim) + value.shape), (agents, size))


def _by_agent(
    policy: Policy,
    g: jax.Array,
    normals: jax.Array,
    margins: jax.Array,
    mask: jax.Array,
    prices: jax.Array | None,
) -> ConeProjection:
    """The readable twin, and the one that is differentiated."""

    def project(*cone: Any) -> ConeProjection:
        return cone_projection(*cone[:4], prices=cone[4], policy=policy)

    return jax.vmap(project, in_axes=(0, None if normals.ndim == 2 else 0, 0, 0, 0))(
        g, normals, margins, mask, prices
    )


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _stacked(
    policy: Policy,
    g: jax.Array,
    normals: jax.Array,
    margins: jax.Array,
    mask: jax.Array,
    prices: jax.Array | None,
) -> ConeProjection:
    dtype, shared = g.dtype, normals.ndim == 2
    limits = jnp.where(mask, margins, 0.0)
    if shared:
        normals = jnp.where(jnp.any(mask, axis=0)[:, None], normals, 0.0)
        norm, gram, products, size = _shared_products(g, normals)
        norm, gram = (
            jnp.broadcast_to(value[None], (g.shape[0], *value.shape)) for value in (norm, gram)
        )
    else:
        norm, gram, products, size = lax.map(
            lambda agent: _products(normals, g, *agent), (jnp.arange(g.shape[0]), mask)
        )
    limits = limits / norm
    caps = None
    if prices is not None:
        caps = jnp.where(mask, prices, jnp.inf)
        caps = unit_caps(caps, norm)
    solution = solve_cone_duals(
        gram, limits - products, mask, margins=limits, scale=size, prices=caps, policy=policy
    )
    kept = solution.feasible
    if policy == "least_violation":
        kept = jnp.isfinite(solution.residual)

    stack = normals[None] if shared else normals

    def finish(agent: Any) -> tuple[jax.Array, jax.Array]:
        index, *parts = agent
        return _update(g, stack, index, 0 if shared else index, *parts)

    update, multipliers = lax.map(
        finish,
        (
            jnp.arange(g.shape[0]),
            norm,
            mask,
            gram,
            limits - solution.violation,
            caps,
            solution.multipliers,
            kept,
        ),
    )
    return ConeProjection(
        update.astype(dtype),
        multipliers / norm,
        solution.feasible,
        solution.residual,
        solution.violation * norm,
    )


@_stacked.defjvp
def _stacked_jvp(policy: Policy, primals: Any, tangents: Any) -> tuple[Any, Any]:
    return jax.jvp(partial(_by_agent, policy), primals, tangents)


def _part(stack: jax.Array, index: jax.Array | int, at: Any, width: int) -> jax.Array:
    """stack[index, ..., at : at + width]: without it, a whole agent would be copied first."""
    start = (index, *(0,) * (stack.ndim - 2), at)
    return lax.dynamic_slice(stack, start, (1, *stack.shape[1:-1], width))[0]


def _products(
    normals: jax.Array, g: jax.Array, index: jax.Array, mask: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Of one agent: the rows' norms, and the inner products of unit rows, with g too, and |g|."""
    gram, along, square = _raw_products(normals, g, index, mask)
    diagonal = jnp.append(jnp.where(mask, jnp.diagonal(gram), 1.0), square)
    # Squares beyond these have lost digits to underflow, or are about to overflow.
    limits = jnp.finfo(g.dtype)
    safe = jnp.all((diagonal > float(limits.tiny) ** 0.75) & (diagonal < float(limits.max) ** 0.75))

    def plain() -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        squared = jnp.where(mask, jnp.diagonal(gram), 1.0)
        norm = jnp.sqrt(squared)
        inverse = 1.0 / norm
        return norm, gram * inverse[:, None] * inverse[None, :], along * inverse, jnp.sqrt(square)

    def scaled() -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        return _scaled_products(jnp.where(mask[:, None], normals[index], 0.0), g[index])

    return lax.cond(safe, plain, scaled)


def _scaled_products(
    normals: jax.Array, g: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """The same from unit rows, for gradients of any size."""
    norm = row_norms(normals)
    rows = normals / norm[:, None]
    return norm, matmul(rows, rows.T), matmul(rows, g), jnp.linalg.norm(g)


def _shared_products(
    g: jax.Array, normals: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    norm, gram, _, _ = _scaled_products(normals, g[0])
    rows = normals / norm[:, None]
    return norm, gram, matmul(g, rows.T), jnp.linalg.norm(g, axis=1)


def _raw_products(
    normals: jax.Array, g: jax.Array, index: jax.Array, mask: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    width = g.shape[1]

    def of(rows: jax.Array, part: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        rows = jnp.where(mask[:, None], rows, 0.0)
        return matmul(rows, rows.T), matmul(rows, part), matmul(part, part)

    def add(step: jax.Array, sums: Any) -> Any:
        at = step * CHUNK
        parts = of(_part(normals, index, at, CHUNK), _part(g, index, at, CHUNK))
        return jax.tree.map(jnp.add, sums, parts)

    whole = width // CHUNK
    done, rest = whole * CHUNK, width % CHUNK
    start = of(_part(normals, index, done, rest), _part(g, index, done, rest))
    return lax.fori_loop(0, whole, add, start)


def _update(
    g: jax.Array,
    normals: jax.Array,
    index: jax.Array,
    cone: jax.Array | int,
    norm: jax.Array,
    mask: jax.Array,
    gram: jax.Array,
    limits: jax.Array,
    caps: jax.Array | None,
    multipliers: jax.Array,
    kept: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """g + N^T lambda of one agent, corrected where that matters."""
    width = g.shape[1]
    inverse = 1.0 / norm
    coefficients = multipliers * inverse

    def of(rows: jax.Array, part: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        rows = jnp.where(mask[:, None], rows, 0.0)
        new = part + matmul(coefficients, rows)
        return new, matmul(rows, new), matmul(new, new)

    def add(step: jax.Array, state: Any) -> Any:
        update, along, square = state
        at = step * CHUNK
        new, more, part = of(_part(normals, cone, at, CHUNK), _part(g, index, at, CHUNK))
        return lax.dynamic_update_slice(update, new, (at,)), along + more, square + part

    def moved() -> tuple[jax.Array, jax.Array]:
        whole = width // CHUNK
        done, rest = whole * CHUNK, width % CHUNK
        tail, along, square = of(_part(normals, cone, done, rest), _part(g, index, done, rest))
        begun = lax.dynamic_update_slice(jnp.zeros((width,), g.dtype), tail, (done,))
        update, along, square = lax.fori_loop(0, whole, add, (begun, along, square))
        missing = limits - along * inverse
        free = free_rows(multipliers, -missing, caps)
        epsilon = float(jnp.finfo(g.dtype).eps)
        enough = 0.5 * epsilon * (jnp.sqrt(square) + jnp.max(jnp.abs(limits)))
        largest = jnp.max(jnp.where(free, jnp.abs(missing), 0.0))

        def corrected() -> tuple[jax.Array, jax.Array]:
            rows = jnp.where(mask[:, None], normals[cone] * inverse[:, None], 0.0)
            change, drift = correct(gram, rows, limits, caps, update, multipliers, kept)
            return update + drift, jnp.clip(multipliers + change, 0.0, caps)

        # A square that overflowed must not hide an error.
        fine = (largest <= enough) & jnp.isfinite(square)
        return lax.cond(fine, lambda: (update, multipliers), corrected)

    still = (jnp.zeros((width,), g.dtype), multipliers)
    return lax.cond(
        kept,
        lambda: lax.cond(jnp.any(multipliers > 0), moved, lambda: (g[index], multipliers)),
        lambda: still,
    )
