"""In-run credit: the Shapley value of the utility's Taylor polynomial at the empty coalition."""

import jax
import jax.numpy as jnp

from vcca_jax.contribution.coalitions import only_present, participation, scalar_of
from vcca_jax.contribution.protocols import Utility


def in_run(
    utility: Utility,
    weights: jax.typing.ArrayLike,
    *,
    key: jax.Array | None = None,
    order: int = 2,
) -> jax.Array:
    """Credit every agent with the Shapley value of the utility's Taylor polynomial at w = 0.

    order 1: c_i = w_i dv/dw_i (0)
    order 2: c_i = w_i dv/dw_i (0) + 1/2 w_i (H w)_i,  H the Hessian of v at 0

    In a quadratic game every agent gets its own terms and half of each interaction, which is the
    second line. Sums to the Taylor polynomial's v(w) - v(0), not to the utility's own.

    Cost: order 1 one gradient, order 2 one gradient and one Hessian-vector product, for any A.
    Holds: symmetry, null agent (exactly 0), linearity in the utility, split-invariance where the
    utility depends on the sum of the agents' parts, and efficiency for a utility that is linear
    (order 1) or quadratic (order 2) in w; both credits are then exact.

    The derivatives go through whatever the utility contains. For a one-step utility that holds the
    optimizer's update (momentum, Adam), these are the optimizer's own derivatives at its state, and
    nothing assumes plain gradient descent. Where the update is linear in w (gradient descent, with
    momentum and weight decay too) and the validation loss quadratic, order 2 sums to v(w) - v(0)
    exactly; what the optimizer does by itself, v(0) less the worth before the step, is booked
    apart. Adam's update is steep at w = 0 where its second moments are still small (the first
    steps; slopes of 1 / epsilon where they are 0): a Taylor polynomial is of no use there, and
    `aumann_shapley` is the remedy. With one node it is as exact as order 2 in a quadratic game, for
    one gradient.

    Args:
        utility: A pure function of participation weights `[A]`, differentiable (order 2: twice).
        weights: The grand coalition's participation weights, `[A]` in [0, 1].
        key: Not used; accepted so that all estimators are called alike.
        order: 1 or 2.

    Returns:
        Credits `[A]`, in the unit of the utility.

    Raises:
        ValueError: If `order` is neither 1 nor 2, `weights` is not `[A]` in [0, 1], or the utility
            does not return a floating-point scalar.

    Source: Wang, Mittal, Song & Jia, "Data Shapley in one training run", arXiv:2406.11011, of which
    this is our reading for participation weights.
    """
    del key
    weights = participation(weights)
    if order not in (1, 2):
        raise ValueError(f"order is {order!r}; choose 1 or 2")
    gradient = jax.grad(scalar_of(utility))
    nobody = jnp.zeros_like(weights)
    if order == 1:
        slope = gradient(nobody)
    else:
        first, curvature = jax.jvp(gradient, (nobody,), (weights,))
        slope = first + 0.5 * curvature
    return only_present(weights * slope, weights)
