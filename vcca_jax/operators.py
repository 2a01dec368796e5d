"""Agent gradients changed and still matrix-free: scaled, cut to parts, with rows added.

Every screen gives h_i = sum_p k_p (s_pi g_i + sum_m c_pim V_m), where k_p keeps a part of the
parameters (all of them unless something is frozen): a projection adds multiples of value
gradients, a rejection scales by 0 or 1, a frozen part is cut away.
"""

from typing import Any

import jax
import jax.numpy as jnp

from vcca_jax.gradients import AgentGradients
from vcca_jax.rows import Rows, as_rows, product_weights, weighted
from vcca_jax.trainer import Params


def inner_products(
    gradients: AgentGradients, rows: Rows, weights: Params | None = None
) -> tuple[jax.Array, jax.Array]:
    """<g_i, V_m> [A, M] and <V_m, V_n> [M, M], in the inner product of a diagonal ``weights``."""

    def of_row(row: Params) -> tuple[jax.Array, jax.Array]:
        direction = weighted(row, weights)
        return gradients.dot(direction), rows.dot(direction)

    products, gram = rows.each(of_row)
    return products.T, gram


def affine(
    gradients: AgentGradients,
    scale: jax.Array,
    coefficients: jax.Array,
    rows: Params | Rows,
    *,
    kept: Params | None = None,
) -> AgentGradients:
    """The operator h_i = scale_i g_i + sum_m coefficients_im V_m, or a sum of such parts.

    It costs the operator beneath and a product of rank M more, once for each part.

    Args:
        gradients: (g_1, ..., g_A).
        scale: [A], or [P, A] for P parts.
        coefficients: [A, M], or [P, A, M].
        rows: ``Rows``, or params with a leading [M].
        kept: with P parts, a pytree like the parameters with [P] in each leaf: 1 where the part
            keeps the leaf, 0 where it leaves it out. None keeps everything.

    Returns:
        The operator, with what is known of the agents unchanged.
    """
    rows = as_rows(rows)
    if scale.ndim == 1:
        scale, coefficients = scale[None], coefficients[None]
    parts = [
        None if kept is None else jax.tree.map(lambda leaf, p=p: leaf[p], kept)
        for p in range(scale.shape[0])
    ]

    def dot(direction: Params) -> jax.Array:
        return _total(
            scale[p] * gradients.dot(weighted(direction, part))
            + coefficients[p] @ rows.dot(weighted(direction, part))
            for p, part in enumerate(parts)
        )

    def total(weights: jax.Array | None = None) -> Params:
        weights = jnp.ones_like(scale[0]) if weights is None else weights
        return _total(
            weighted(
                jax.tree.map(
                    jnp.add,
                    gradients.sum(weights * scale[p]),
                    rows.combination((weights[None, :] @ coefficients[p])[0]),
                ),
                part,
            )
            for p, part in enumerate(parts)
        )

    def stack() -> Params:
        beneath, added = gradients.stack(), rows.each(lambda row: row)

        def leaf(g: jax.Array, n: jax.Array, p: int) -> jax.Array:
            factor = scale[p].reshape((-1,) + (1,) * (g.ndim - 1)).astype(g.dtype)
            return g * factor + jnp.tensordot(coefficients[p].astype(n.dtype), n, 1)

        return _total(
            weighted(jax.tree.map(lambda g, n, p=p: leaf(g, n, p), beneath, added), part)
            for p, part in enumerate(parts)
        )

    def squared_norms(weights: Params | None = None) -> jax.Array:
        # The cross terms of two parts live where both keep something.
        return _total(
            _cross(gradients, rows, product_weights(weights, product_weights(left, right)))(
                scale[p], coefficients[p], scale[q], coefficients[q]
            )
            for p, left in enumerate(parts)
            for q, right in enumerate(parts)
        )

    return gradients._replace(dot=dot, sum=total, stack=stack, squared_norms=squared_norms)


def _cross(gradients: AgentGradients, rows: Rows, weights: Params | None) -> Any:
    """<s g_i + c V, t g_i + d V> for every agent, in the inner product of ``weights``."""
    products, gram = inner_products(gradients, rows, weights)
    squares = gradients.squared_norms(weights)

    def product(s: jax.Array, c: jax.Array, t: jax.Array, d: jax.Array) -> jax.Array:
        mixed = ((s[:, None] * d + t[:, None] * c) * products).sum(axis=1)
        return s * t * squares + mixed + jnp.einsum("am,mn,an->a", c, gram, d)

    return product


def _total(terms: Any) -> Any:
    """The sum of pytrees."""
    first, *others = terms
    for term in others:
        first = jax.tree.map(jnp.add, first, term)
    return first
