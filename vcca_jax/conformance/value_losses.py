"""The contract of a value loss."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vcca_jax.conformance.comparison import apart
from vcca_jax.rows import tree_dot
from vcca_jax.trainer import Params

CLOSE = 1e-5
"""Relative: rounding of single precision, not more."""


class Slope(NamedTuple):
    """What a value loss is at the parameters it was checked at.

    Attributes:
        loss: V.
        norm: |grad V|; 0 where the parameters do not move the loss, which no update can harm.
        error: by how much <grad V, d> differs from the central difference of V along the gradient's
            own direction d, over |grad V|. It tells a wrong or stopped derivative from rounding,
            which is some 1e-2 in single precision.
    """

    loss: float
    norm: float
    error: float


def check_value_loss(
    loss: Callable[[Params, Any], jax.Array],
    params: Params,
    context: Any = None,
    *,
    step: float = 1e-2,
) -> Slope:
    """Check that a function can stand for a value.

        shape       ``loss(params, context)`` is a floating-point scalar, finite
        gradient    finite at the parameters
        transforms  the same number under ``jit`` and ``vmap`` over parameters

    Args:
        loss: ``loss(params, context) -> scalar``, less of it being better.
        params: where it is checked; such as a training run will meet.
        context: what the loss is given besides.
        step: length of the step that the slope is compared over.

    Returns:
        The loss, the gradient's norm, and the slope's error.

    Raises:
        ValueError: the law that is broken, what was seen, and the remedy.
    """
    try:
        told = jax.eval_shape(loss, params, context)
    except TypeError as error:
        raise ValueError(
            f"loss could not be called as loss(params, context): {error}; a value loss takes both,"
            " also where it looks at the parameters alone"
        ) from error
    shape, dtype = getattr(told, "shape", None), getattr(told, "dtype", np.dtype(object))
    if shape != () or not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(
            f"loss returns {shape} of {dtype}; return one floating-point number: a mean over rows"
        )
    value, gradient = jax.jit(jax.value_and_grad(loss))(params, context)
    square = float(tree_dot(gradient, gradient))
    if not (np.isfinite(value) and np.isfinite(square)):
        raise ValueError(
            f"loss is {value} with a gradient of squared norm {square}; both must be finite: guard"
            " roots, logarithms and quotients with jnp.where inside and outside"
        )
    several = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), params)
    again = jax.jit(jax.vmap(loss, in_axes=(0, None)))(several, context)[0]
    if not (gap := apart(value, again)) <= CLOSE:
        raise ValueError(
            f"loss differs by {gap:.3g} of itself under vmap over parameters; make it a pure JAX"
            " function"
        )
    norm = square**0.5
    if norm == 0:
        return Slope(float(value), 0.0, 0.0)
    ends = [
        float(
            jax.jit(loss)(
                jax.tree.map(lambda p, g, s=s: p + s / norm * g, params, gradient), context
            )
        )
        for s in (step, -step)
    ]
    return Slope(float(value), norm, abs((ends[0] - ends[1]) / (2 * step) - norm) / norm)
