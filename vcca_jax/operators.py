"""Agent gradients changed and still matrix-free: scaled, cut to parts, with rows added.

Every screen gives h_i = sum_p k_p (s_pi g_i + sum_m c_pim V_m), where k_p keeps a part of the
parameters (all of them unless something is frozen): a projection adds multiples of value
gradients, a rejection scales by 0 or 1, a frozen part is cut away.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from vcca_jax.gradients import AgentGradients, checked_weights
from vcca_jax.rows import Rows, as_rows, product_weights, weighted
from vcca_jax.trainer import Params


def inner_products(
    gradients: AgentGradients, rows: Rows, weights: Params | None = None
) -> tuple[jax.Array, jax.Array]:
    """<g_i, V_m> [A, M] and <V_m, V_n> [M, M], in the inner product of a diagonal ``weights``.

    Rows that share a pass with the gradients, or with those beneath an ``affine`` change of them,
    are not looked at one by one.
    """
    products = _shared_products(gradients, rows, weights)
    gram = None if rows.shared is None else rows.shared.gram(rows.shared, weights)
    if products is not None and gram is not None:
        return products, gram

    def of_row(row: Params) -> tuple[jax.Array, jax.Array]:
        direction = weighted(row, weights)
        return gradients.dot(direction), rows.dot(direction)

    products, gram = rows.each(of_row)
    return products.T, gram


def example_products(
    gradients: AgentGradients, rows: Rows, owners: jax.Array, weights: Params | None = None
) -> jax.Array | None:
    """[B, M], what each example of the batch brings to <g_i, V_m> of its owner.

    Of changed gradients the examples' own part, scaled; what a screen added belongs to no example.

    Returns:
        None where the rows share no pass with the gradients.
    """
    if rows.shared is None:
        return None
    if not isinstance(gradients.dot, AffineDot):
        return rows.shared.by_example(gradients.dot, weights)
    total = jnp.zeros((owners.shape[0], rows.size))
    for scale, _, part in gradients.dot.in_parts():
        beneath = example_products(
            gradients.dot.gradients, rows, owners, product_weights(weights, part)
        )
        if beneath is None:
            return None
        total += scale[owners][:, None] * beneath
    return total


def _shared_products(
    gradients: AgentGradients, rows: Rows, weights: Params | None
) -> jax.Array | None:
    """[A, M], <g_i, V_m> from a shared pass, through any number of ``affine`` changes."""
    if rows.shared is None:
        return None
    if not isinstance(gradients.dot, AffineDot):
        return rows.shared.products(gradients.dot, weights)
    added, total = gradients.dot.rows.shared, jnp.zeros(())
    for scale, coefficients, part in gradients.dot.in_parts():
        metric = product_weights(weights, part)
        beneath = _shared_products(gradients.dot.gradients, rows, metric)
        cross = None if added is None else added.gram(rows.shared, metric)
        if beneath is None or cross is None:
            return None
        total = total + scale[:, None] * beneath + coefficients @ cross
    return total


@dataclass(frozen=True, eq=False)
class AffineDot:
    """The ``dot`` of ``affine``, which tells what it is made of.

    Attributes:
        gradients: beneath.
        rows: that are added.
        scale: [P, A].
        coefficients: [P, A, M].
        parts: P diagonals of zeros and ones, or None for everything.
    """

    gradients: AgentGradients
    rows: Rows
    scale: jax.Array
    coefficients: jax.Array
    parts: Sequence[Params | None]

    def in_parts(self) -> Iterator[tuple[jax.Array, jax.Array, Params | None]]:
        """Scale [A], coefficients [A, M] and diagonal of each part."""
        for p, part in enumerate(self.parts):
            yield self.scale[p], self.coefficients[p], part

    def __call__(self, direction: Params) -> jax.Array:
        """[A], <h_i, direction>."""
        return _total(
            scale * self.gradients.dot(weighted(direction, part))
            + coefficients @ self.rows.dot(weighted(direction, part))
            for scale, coefficients, part in self.in_parts()
        )


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

    def total(weights: jax.Array | None = None) -> Params:
        agents = scale.shape[1]
        weights = jnp.ones_like(scale[0]) if weights is None else checked_weights(weights, agents)
        return _total(
            weighted(
                _sum(gradients, weights * scale[p], rows, (weights[None, :] @ coefficients[p])[0]),
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

    dot = AffineDot(gradients, rows, scale, coefficients, parts)
    return gradients._replace(dot=dot, sum=total, stack=stack, squared_norms=squared_norms)


def _sum(
    gradients: AgentGradients, weights: jax.Array, rows: Rows, coefficients: jax.Array
) -> Params:
    """sum_i w_i g_i + sum_m c_m V_m."""
    if rows.shared is not None:
        together = rows.shared.total(gradients.dot, weights, coefficients)
        if together is not None:
            return together
    return jax.tree.map(jnp.add, gradients.sum(weights), rows.combination(coefficients))


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
