"""What cheats do to their data and to their updates, for experiments and tests on robustness.

Corruptions of data are host functions in NumPy on one shard ``(inputs [n, ...], targets [n])``, as
``vcca_jax.partition`` deals them out, repeatable from their seed; they return new arrays and leave
the given ones alone. ``scaled_updates`` corrupts the updates themselves and runs under jit.
"""

import jax
import jax.numpy as jnp
import numpy as np

from vcca_jax.cooperative import Shard
from vcca_jax.gradients import AgentGradients


def flip_labels(shard: Shard, *, classes: int, fraction: float = 1.0, seed: int) -> Shard:
    """Give some samples a wrong label, drawn evenly from the other classes.

    Args:
        shard: inputs [n, ...] and integer targets [n] in 0..classes - 1.
        classes: how many there are, at least 2.
        fraction: of the samples whose label is flipped; their count is round(fraction n).
        seed: of the draw.

    Raises:
        ValueError: fewer than two classes, or a fraction outside [0, 1].
    """
    inputs, targets = _arrays(shard)
    if classes < 2:
        raise ValueError(f"classes={classes} leaves no other label; give at least 2")
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction={fraction} must lie in [0, 1]")
    generator = np.random.default_rng(seed)
    rows = generator.permutation(len(targets))[: round(fraction * len(targets))]
    flipped = targets.copy()
    # A shift by 1..classes-1 reaches every other class once, and never the same one.
    shifts = generator.integers(1, classes, len(rows))
    flipped[rows] = (targets[rows] + shifts) % classes
    return inputs.copy(), flipped.astype(targets.dtype)


def add_noise(shard: Shard, *, scale: float, seed: int) -> Shard:
    """Add independent Gaussian noise of standard deviation ``scale`` to the inputs.

    Raises:
        ValueError: a scale that is negative or not finite.
    """
    inputs, targets = _arrays(shard)
    if not (np.isfinite(scale) and scale >= 0):
        raise ValueError(f"scale={scale} must be finite and not negative")
    noise = np.random.default_rng(seed).normal(0.0, scale, inputs.shape)
    return (inputs + noise).astype(inputs.dtype), targets.copy()


def invent(shard: Shard, *, classes: int, seed: int) -> Shard:
    """Replace a shard by made-up data of its size: what a free rider sends who has none.

    Inputs are drawn evenly between the least and the greatest of the shard's own, labels evenly
    from all classes.

    Raises:
        ValueError: fewer than one class.
    """
    inputs, targets = _arrays(shard)
    if classes < 1:
        raise ValueError(f"classes={classes} must be at least 1")
    generator = np.random.default_rng(seed)
    low, high = (inputs.min(), inputs.max()) if inputs.size else (0, 0)
    made_up = generator.uniform(low, high, inputs.shape).astype(inputs.dtype)
    return made_up, generator.integers(0, classes, len(targets)).astype(targets.dtype)


def repeat(shard: Shard, times: int) -> Shard:
    """Send every sample several times: the way to claim more samples than one has.

    The whole shard is repeated, so the first n rows are the true ones.

    Raises:
        ValueError: ``times`` below one.
    """
    if times < 1:
        raise ValueError(f"times={times} must be at least 1")
    inputs, targets = _arrays(shard)
    return np.concatenate([inputs] * times), np.concatenate([targets] * times)


def replica(shard: Shard) -> Shard:
    """Copy another's samples, to bring them as one's own."""
    inputs, targets = _arrays(shard)
    return inputs.copy(), targets.copy()


def split(shard: Shard, parts: int) -> list[Shard]:
    """Divide one owner's samples among several identities (sybils).

    Row r goes to part ``r % parts``, where it is row ``r // parts``: sizes differ by at most one.

    Raises:
        ValueError: fewer than one part.
    """
    if parts < 1:
        raise ValueError(f"parts={parts} must be at least 1")
    inputs, targets = _arrays(shard)
    return [(inputs[j::parts].copy(), targets[j::parts].copy()) for j in range(parts)]


def scaled_updates(gradients: AgentGradients, scale: jax.Array) -> AgentGradients:
    """The operator h_i = s_i g_i: agents who send something other than their gradient.

    s_i = 0 is a free rider's zero update, s_i < 0 a reversed one, s_i > 1 an inflated one. It adds
    nothing to the cost of the operator beneath, and all but ``losses`` follow the scale.

    Args:
        gradients: (g_1, ..., g_A).
        scale: s, [A].

    Raises:
        ValueError: a scale that is not [A].
    """
    if scale.shape != gradients.active.shape:
        raise ValueError(
            f"scale has shape {scale.shape}; give one factor an agent, {gradients.active.shape}"
        )

    def stack() -> object:
        return jax.tree.map(
            lambda g: g * scale.reshape((-1,) + (1,) * (g.ndim - 1)).astype(g.dtype),
            gradients.stack(),
        )

    def total(weights: jax.Array | None = None) -> object:
        weights = jnp.ones_like(scale) if weights is None else weights
        return gradients.sum(weights * scale)

    return gradients._replace(
        dot=lambda direction: scale * gradients.dot(direction), sum=total, stack=stack
    )


def _arrays(shard: Shard) -> tuple[np.ndarray, np.ndarray]:
    inputs, targets = (np.asarray(part) for part in shard)
    if inputs.ndim == 0 or targets.ndim == 0 or len(inputs) != len(targets):
        raise ValueError(
            f"shard has inputs of shape {inputs.shape} and targets of shape {targets.shape};"
            " the leading axes must be the samples, equally many"
        )
    return inputs, targets
