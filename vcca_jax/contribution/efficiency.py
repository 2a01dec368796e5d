"""Efficiency: how much of the utility's gain the credits leave unexplained."""

import jax
import jax.numpy as jnp

from vcca_jax.contribution.coalitions import evaluate, participation
from vcca_jax.contribution.protocols import Utility


def efficiency_gap(
    utility: Utility, weights: jax.typing.ArrayLike, credits: jax.Array
) -> jax.Array:
    """Return the gain of the grand coalition that the credits do not account for.

    gap = (v(w) - v(0)) - sum_i c_i

    Positive: less was credited than gained. It is the interaction left out by leave-one-out and
    influence, the higher orders left out by in-run credit, and the quadrature error of
    Aumann-Shapley; a settlement books it to its reserve. Cost: 2 utility evaluations.

    Args:
        utility: A pure function of participation weights `[A]`.
        weights: The grand coalition's participation weights, `[A]` in [0, 1].
        credits: Credits `[A]` by any estimator.

    Returns:
        A scalar, in the unit of the utility.

    Raises:
        ValueError: If `credits` and `weights` differ in shape or `weights` is not `[A]` in [0, 1].

    Example:
        >>> import jax.numpy as jnp
        >>> float(efficiency_gap(lambda w: w.sum() ** 2, jnp.ones(2), jnp.array([1.5, 1.5])))
        1.0
    """
    weights = participation(weights)
    if jnp.shape(credits) != weights.shape:
        raise ValueError(
            f"credits has shape {jnp.shape(credits)} and weights {weights.shape}; pass the credits "
            "of the same agents"
        )
    everybody = jnp.ones(weights.shape, dtype=bool)
    values = evaluate(utility, weights, jnp.stack([~everybody, everybody]))
    return values[1] - values[0] - jnp.sum(credits)
