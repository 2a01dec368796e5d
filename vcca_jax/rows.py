"""Rows that constraints speak of, as one linear operator: the M value gradients.

Screening needs three actions on rows V_1..V_M of D numbers each: all inner products with a
direction, a combination, and something done to each row in turn. Stacked rows are held at once,
O(M D) memory; a streamed row exists while it is looked at.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from vcca_jax.trainer import Params
from vcca_jax.values import ValueLoss, Values


class SharedRows(Protocol):
    """Rows whose inner products fall out of a pass that agent gradients came from too."""

    def products(
        self, dot: Callable[[Params], jax.Array], weights: Params | None
    ) -> jax.Array | None:
        """[A, M], all <g_i, W V_m>, if ``dot`` is that of the pass's own agent gradients."""
        ...

    def by_example(
        self, dot: Callable[[Params], jax.Array], weights: Params | None
    ) -> jax.Array | None:
        """[B, M], likewise of the examples' parts of them."""
        ...

    def gram(self, others: "SharedRows | None", weights: Params | None) -> jax.Array | None:
        """[M, M'], <V_m, W V'_n>, if the others are rows of the same pass."""
        ...

    def total(
        self, dot: Callable[[Params], jax.Array], weights: jax.Array, coefficients: jax.Array
    ) -> Params | None:
        """sum_i w_i g_i + sum_m c_m V_m, if ``dot`` is that of the pass's own agent gradients."""
        ...


class Rows(NamedTuple):
    """The linear operator (V_1, ..., V_M); it holds functions, so it lives inside one trace.

    Attributes:
        size: M.
        dot: ``dot(direction) -> [M]``, the inner products <V_m, direction>.
        combination: ``combination(coefficients [M]) -> params``, sum_m c_m V_m.
        each: ``each(function)``, function(V_m) for every m, stacked along a leading [M].
        shared: the pass that they share with agent gradients, if they do.
    """

    size: int
    dot: Callable[[Params], jax.Array]
    combination: Callable[[jax.Array], Params]
    each: Callable[[Callable[[Params], Any]], Any]
    shared: "SharedRows | None" = None


def stacked_rows(rows: Params) -> Rows:
    """Rows held at once: a pytree like the parameters, with a leading [M]."""
    return Rows(
        size=jax.tree.leaves(rows)[0].shape[0],
        dot=lambda direction: rows_dot(rows, direction),
        combination=lambda coefficients: rows_combination(rows, coefficients),
        each=lambda function: jax.vmap(function)(rows),
    )


def named_rows(rows: Params, named: jax.Array) -> Params:
    """Stacked rows, in which what is not finite counts as 0 where nobody speaks of the value."""

    def leaf(n: jax.Array) -> jax.Array:
        asked = named.reshape((-1,) + (1,) * (n.ndim - 1))
        return jnp.where(asked | jnp.isfinite(n), n, 0)

    return jax.tree.map(leaf, rows)


def streamed_rows(
    values: Values, params: Params, context: Any, named: jax.Array | None = None
) -> Rows:
    """The value gradients at ``params``, one at a time: O(D) memory, and one value's activations.

    ``dot`` costs a forward-mode pass a value, and looking at each row or combining them all a
    backward pass a value, every time; stacked rows cost the backward passes once. With ``named``
    [M] rows are as ``named_rows`` has them.
    """
    count = len(values.functions)
    asked = jnp.ones(count, bool) if named is None else named

    def gradient(function: ValueLoss) -> Callable[[], Params]:
        return lambda: jax.grad(function)(params, context)

    def derivative(function: ValueLoss) -> Callable[[Params], jax.Array]:
        return lambda direction: jax.jvp(lambda at: function(at, context), (params,), (direction,))[
            1
        ]

    gradients = [gradient(function) for function in values.functions]
    derivatives = [derivative(function) for function in values.functions]

    def dot(direction: Params) -> jax.Array:
        told = jax.lax.map(
            lambda index: jax.lax.switch(index, derivatives, direction), jnp.arange(count)
        )
        return named_rows(told, asked)

    def row(index: jax.Array) -> Params:
        told = jax.lax.switch(index, gradients)
        return jax.tree.map(lambda n: jnp.where(asked[index] | jnp.isfinite(n), n, 0), told)

    def combination(coefficients: jax.Array) -> Params:
        def add(index: jax.Array, total: Params) -> Params:
            return jax.tree.map(
                lambda t, n: t + coefficients[index].astype(n.dtype) * n, total, row(index)
            )

        return jax.lax.fori_loop(0, count, add, jax.tree.map(jnp.zeros_like, params))

    return Rows(
        size=count,
        dot=dot,
        combination=combination,
        each=lambda function: jax.lax.map(lambda index: function(row(index)), jnp.arange(count)),
    )


def as_rows(rows: Params | Rows) -> Rows:
    """``rows`` themselves, or a pytree with a leading [M] as stacked rows."""
    return rows if isinstance(rows, Rows) else stacked_rows(rows)


def rows_dot(rows: Params, direction: Params) -> jax.Array:
    """[M], inner products of stacked rows (leading [M]) with a direction."""

    def product(n: jax.Array, d: jax.Array) -> jax.Array:
        kept = wide(jnp.result_type(n, d))
        return jnp.matmul(n.reshape(n.shape[0], -1), d.reshape(-1), preferred_element_type=kept)

    return jax.tree.reduce(jnp.add, jax.tree.map(product, rows, direction))


def rows_gram(rows: Params) -> jax.Array:
    """[M, M], inner products of stacked rows with each other."""

    def product(n: jax.Array) -> jax.Array:
        flat = n.reshape(n.shape[0], -1)
        return jnp.matmul(flat, flat.T, preferred_element_type=wide(n.dtype))

    return jax.tree.reduce(jnp.add, jax.tree.map(product, rows))


def rows_combination(rows: Params, coefficients: jax.Array) -> Params:
    """sum_m coefficients_m rows_m."""
    return jax.tree.map(lambda n: jnp.tensordot(coefficients.astype(n.dtype), n, 1), rows)


def tree_dot(left: Params, right: Params) -> jax.Array:
    """Inner product of two pytrees of one structure, added up in float32 at least."""

    def product(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.vdot(a, b, preferred_element_type=wide(jnp.result_type(a, b)))

    return jax.tree.reduce(jnp.add, jax.tree.map(product, left, right))


def wide(dtype: Any) -> Any:
    """What sums of such numbers are kept in: a sum of hundreds outgrows the digits of bfloat16."""
    return jnp.promote_types(dtype, jnp.float32)


def weighted(tree: Params, weights: Params | None) -> Params:
    """``tree`` times a diagonal, elementwise; None is the identity.

    A leaf of the weights is a scalar (one number for the whole leaf) or has the leaf's shape.
    """
    if weights is None:
        return tree
    return jax.tree.map(lambda leaf, weight: leaf * weight.astype(leaf.dtype), tree, weights)


def scalar_weights(weights: Params | None) -> bool:
    """Whether a diagonal is one number for each leaf, or the identity."""
    return all(jnp.ndim(leaf) == 0 for leaf in jax.tree.leaves(weights))


def product_weights(left: Params | None, right: Params | None) -> Params | None:
    """The diagonal that is two diagonals one after the other."""
    if left is None or right is None:
        return right if left is None else left
    return jax.tree.map(jnp.multiply, left, right)
