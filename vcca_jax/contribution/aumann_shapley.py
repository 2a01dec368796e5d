"""Aumann-Shapley: the slope of every agent, averaged from nobody to everybody."""

import jax
import jax.numpy as jnp
import numpy as np

from vcca_jax.arguments import check_count
from vcca_jax.contribution.coalitions import (
    chunked_map,
    only_present,
    participation,
    scalar_of,
)
from vcca_jax.contribution.protocols import Utility


def aumann_shapley(
    utility: Utility,
    weights: jax.typing.ArrayLike,
    *,
    key: jax.Array | None = None,
    nodes: int = 8,
    batch_size: int = 1,
) -> jax.Array:
    """Credit every agent with its slope of the utility along the diagonal from 0 to w.

    c_i = w_i int_0^1 dv/dw_i (s w) ds

    The integral is taken by Gauss-Legendre quadrature, exact for a utility that is a polynomial of
    degree <= 2 `nodes` along the diagonal. `efficiency_gap` reports the quadrature error of the
    sum: book it, do not spread it.

    Cost: `nodes` gradients of the utility, for any A. Holds: efficiency up to quadrature error,
    symmetry, null agent (exactly 0), linearity in the utility, and split-invariance: where the
    utility depends on the sum of the agents' parts, an agent that enters as k agents, whose parts
    sum to its own, earns the same in total. On the multilinear extension of a game it is the
    Shapley value of the game. A step function, such as a vote, has slope 0 almost everywhere: use
    its multilinear extension. A utility with kinks along the diagonal needs more nodes.

    Args:
        utility: A pure differentiable function of participation weights `[A]`.
        weights: The grand coalition's participation weights, `[A]` in [0, 1].
        key: Not used; accepted so that all estimators are called alike.
        nodes: How many quadrature nodes, at least 1.
        batch_size: How many nodes at once; 1 keeps the memory at that of a single gradient.

    Returns:
        Credits `[A]`, in the unit of the utility.

    Raises:
        ValueError: If `nodes` or `batch_size` is no whole number or less than 1, `weights` is not
            `[A]` in [0, 1], or the utility does not return a floating-point scalar.

    Source: Aumann & Shapley, Values of Non-Atomic Games, Princeton University Press (1974).
    """
    del key
    weights = participation(weights)
    scales, shares = diagonal_rule(nodes, weights.dtype)
    gradient = jax.grad(scalar_of(utility))
    slopes = chunked_map(lambda scale: gradient(scale * weights), scales, batch_size=batch_size)
    average = jnp.sum(shares[:, None] * slopes, axis=0)
    return only_present(weights * average, weights)


def diagonal_rule(nodes: int, dtype: jax.typing.DTypeLike) -> tuple[jax.Array, jax.Array]:
    """Gauss-Legendre on [0, 1]: where along the diagonal to look, and with what mass, each [n]."""
    points, masses = np.polynomial.legendre.leggauss(check_count("nodes", nodes))
    return jnp.asarray((points + 1) / 2, dtype=dtype), jnp.asarray(masses / 2, dtype=dtype)
