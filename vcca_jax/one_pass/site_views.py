"""Operations seen as products of matrices: what lets a site's gradients be taken apart.

A dense layer and a convolution are [positions, inputs] @ [inputs, outputs] for one example; then
its gradient is H^T D, of the activations' rows H and the cotangents' columns D, and inner products
of gradients can be had without either's being formed.
"""

import itertools
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class MatrixView(NamedTuple):
    """One example's operation as a product of matrices.

    Attributes:
        positions, inputs, outputs: sizes of [positions, inputs] @ [inputs, outputs].
        rows: brings activations to [positions, inputs].
        columns: brings outputs to [positions, outputs].
        matrix: brings weights to [inputs, outputs], a reordering of their entries.
    """

    positions: int
    inputs: int
    outputs: int
    rows: Callable[[jax.Array], jax.Array]
    columns: Callable[[jax.Array], jax.Array]
    matrix: Callable[[jax.Array], jax.Array]


ViewRule = Callable[[Any, Any, Any], MatrixView | None]
"""``rule(parameters, activations, weights)``: of the operation's static parameters and the abstract
arrays of its first and second operand, the view, or None where there is none."""


def product_view(
    parameters: Mapping[str, Any], activations: Any, weights: Any
) -> MatrixView | None:
    """Of ``dot_general`` with weights on the right, such as a dense layer's."""
    (contracted, over), (batch, _) = parameters["dimension_numbers"]
    if batch:
        return None
    free = [axis for axis in range(activations.ndim) if axis not in contracted]
    kept = [axis for axis in range(weights.ndim) if axis not in over]
    positions = math.prod(activations.shape[axis] for axis in free)
    inputs = math.prod(activations.shape[axis] for axis in contracted)
    outputs = math.prod(weights.shape[axis] for axis in kept)
    return MatrixView(
        positions,
        inputs,
        outputs,
        rows=lambda h: jnp.transpose(h, (*free, *contracted)).reshape(positions, inputs),
        columns=lambda d: d.reshape(positions, outputs),
        matrix=lambda w: jnp.transpose(w, (*over, *kept)).reshape(inputs, outputs),
    )


def convolution_view(
    parameters: Mapping[str, Any], activations: Any, weights: Any
) -> MatrixView | None:
    """Of ``conv_general_dilated`` in any number of dimensions, not grouped and not transposed."""
    numbers, padding = parameters["dimension_numbers"], parameters["padding"]
    grouped = parameters["feature_group_count"] != 1 or parameters["batch_group_count"] != 1
    transposed = any(step != 1 for step in parameters["lhs_dilation"])
    cut = any(side < 0 for sides in padding for side in sides)
    if grouped or transposed or cut or activations.shape[numbers.lhs_spec[0]] != 1:
        return None
    strides, dilation = parameters["window_strides"], parameters["rhs_dilation"]
    out_axis, in_axis, *window_axes = numbers.rhs_spec
    window = [weights.shape[axis] for axis in window_axes]
    sizes = [
        (activations.shape[axis] + sum(sides) - step * (width - 1) - 1) // stride + 1
        for axis, sides, step, width, stride in zip(
            numbers.lhs_spec[2:], padding, dilation, window, strides, strict=True
        )
    ]
    positions, outputs = math.prod(sizes), weights.shape[out_axis]
    inputs = math.prod(window) * weights.shape[in_axis]

    def rows(h: jax.Array) -> jax.Array:
        """What every position sees, by slices: one strided copy for each place in the window."""
        batch, feature, *spatial = numbers.lhs_spec
        image = jnp.transpose(h, (batch, *spatial, feature))[0]
        image = jnp.pad(image, (*padding, (0, 0)))
        seen = []
        for offset in itertools.product(*map(range, window)):
            first = [at * step for at, step in zip(offset, dilation, strict=True)]
            last = [
                begin + stride * (size - 1) + 1
                for begin, stride, size in zip(first, strides, sizes, strict=True)
            ]
            places = (*map(slice, first, last, strides), slice(None))
            seen.append(image[places].reshape(positions, -1))
        return jnp.concatenate(seen, axis=1)

    def columns(d: jax.Array) -> jax.Array:
        batch, feature, *spatial = numbers.out_spec
        return jnp.transpose(d, (batch, *spatial, feature)).reshape(positions, outputs)

    def matrix(w: jax.Array) -> jax.Array:
        return jnp.transpose(w, (*window_axes, in_axis, out_axis)).reshape(inputs, outputs)

    return MatrixView(positions, inputs, outputs, rows, columns, matrix)


VIEWS: Mapping[str, ViewRule] = MappingProxyType(
    {"dot_general": product_view, "conv_general_dilated": convolution_view}
)
"""The rules by the name of the operation; ``{**VIEWS, "name": rule}`` has one's own beside them."""
