"""The multilayer perceptron."""

from collections.abc import Callable, Sequence

import jax

from vcca_jax.adapters import from_linen
from vcca_jax.model import SplitModel


def mlp(
    features: int,
    hidden: Sequence[int],
    outputs: int,
    *,
    cut: int,
    activation: Callable[[jax.Array], jax.Array] = jax.nn.relu,
    dropout: float = 0.0,
) -> SplitModel:
    """A multilayer perceptron of Flax dense layers: inputs [n, features] to outputs [n, outputs].

    Cut 0: the body is the first affine map, without activation. Cut k: the body is the first k
    hidden layers with their activations and dropout. Without hidden layers the only cut is 0, and
    the head is the identity, without parameters.

    Dense layers are numbered from 0 within their part, so parameters move from one cut to another
    in their order, and the initial ones of a key differ between cuts. The noise does not.

    Args:
        features: size of an input.
        hidden: sizes of the hidden layers, each followed by the activation, then by dropout.
        outputs: size of the output, without activation.
        cut: 0 to ``len(hidden)``.
        activation: the nonlinearity.
        dropout: rate at which hidden units are dropped, where inputs are ``Keyed``.

    Raises:
        ValueError: a cut that does not exist, a size below one, or a rate outside [0, 1).

    Example:
        >>> model = mlp(4, (8,), 2, cut=1)
        >>> shapes = jax.eval_shape(model.init, jax.random.key(0))
        >>> sorted(shapes)
        ['body', 'head']
    """
    sizes = (features, *hidden, outputs)
    if min(sizes) < 1:
        raise ValueError(f"sizes (features, *hidden, outputs)={sizes} must all be at least 1")
    from vcca_jax.models import layers

    rate = layers.valid_rate(dropout)
    # Activations have a number too: parts were sequences of both before there was dropout.
    start_of_head = 2 * cut or 1

    def name(place: int) -> str:
        return f"layers_{place if place < start_of_head else place - start_of_head}"

    blocks = [
        [layers.dense(size, name(2 * i)), activation, *layers.dropout(rate, f"dropout_{i}")]
        for i, size in enumerate(hidden)
    ]
    parts = layers.divide([*blocks, [layers.dense(outputs, name(2 * len(hidden)))]], cut)
    example = jax.ShapeDtypeStruct((1, features), jax.numpy.float32)
    init = from_linen(*parts, example).init
    # Dropout layers do have names of their own, so their noise need not depend on the cut.
    return from_linen(*parts, example, one_namespace=True)._replace(init=init)
