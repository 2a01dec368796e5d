"""Probes: what a linear reader can tell from the model's features, as a value.

A purpose limit such as "the body must not get better at telling a patient's sex" is ``forbid`` of
the loss of a linear probe (Alain and Bengio, arXiv:1610.01644) for that attribute on the body's
output. The probe is a head of a forbidden task: it is fitted anew between steps, and since its
weights come from the value losses' context, a new fit recompiles nothing.

    features = probe_features(model_body)
    fit = probe_fit(features, half_of_rows, their_labels)
    loss = probe_loss(features, other_rows, their_labels, "sex told")
    context = {"sex told": fit(params)}

Fit on other rows than are measured: what the probe memorises is not what the body tells. The
probe is held still while the step is screened, so a step is kept from helping *this* probe.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vcca_jax.trainer import Params
from vcca_jax.values import ValueLoss, from_context

Features = Callable[[Params, Any], jax.Array]
"""``features(params, inputs [n, ...]) -> [n, d]``, a constant column included."""


def probe_features(body: Callable[[Params, Any], Any]) -> Features:
    """The body's activations as rows of numbers, and a constant column for the probe's offset.

    Args:
        body: ``body(params, inputs [n, ...]) -> activations [n, ...]``, of all parameters.
    """

    def features(params: Params, inputs: Any) -> jax.Array:
        activations = body(params, inputs)
        rows = activations.reshape(activations.shape[0], -1)
        return jnp.concatenate([rows, jnp.ones((rows.shape[0], 1), rows.dtype)], axis=1)

    return features


def fit_linear_probe(
    features: jax.Array,
    labels: jax.Array,
    *,
    mask: jax.Array | None = None,
    ridge: float = 1e-2,
    iterations: int = 12,
) -> jax.Array:
    """Ridge-penalised logistic regression by Newton's method, in a fixed number of iterations.

    Minimises mean_s [log(1 + exp(x_s w)) - y_s x_s w] + ridge/2 |w|^2, which has one minimum
    whatever the rows are. A step that would raise it is halved, at most eight times. For features
    of about unit size 12 iterations reach it to rounding; rows that are nearly separable under a
    small ridge need more.

    Args:
        features: [n, d], a constant column included.
        labels: [n] in [0, 1].
        mask: bool [n], false for rows that do not count; all count by default.
        ridge: penalty, > 0.
        iterations: Newton steps from w = 0.

    Returns:
        w [d]. Safe under jit, vmap and differentiation.

    Raises:
        ValueError: a ridge or number of iterations that is not above zero.
    """
    _check_fit(ridge, iterations)
    features, labels, counts = _counted(features, labels, mask)
    rows = jnp.maximum(counts.sum(), 1)
    identity = ridge * jnp.eye(features.shape[1], dtype=features.dtype)

    def objective(weights: jax.Array) -> jax.Array:
        logits = features @ weights
        losses = jax.nn.softplus(logits) - labels * logits
        return (counts * losses).sum() / rows + ridge / 2 * (weights**2).sum()

    def direction(weights: jax.Array) -> jax.Array:
        chance = jax.nn.sigmoid(features @ weights)
        gradient = features.T @ (counts * (chance - labels)) / rows + ridge * weights
        curvature = (counts * chance * (1 - chance))[:, None] * features
        return jnp.linalg.solve(features.T @ curvature / rows + identity, gradient)

    return _newton(objective, direction, jnp.zeros(features.shape[1], features.dtype), iterations)


def fit_softmax_probe(
    features: jax.Array,
    labels: jax.Array,
    classes: int,
    *,
    mask: jax.Array | None = None,
    ridge: float = 1e-2,
    iterations: int = 12,
) -> jax.Array:
    """Ridge-penalised multinomial regression, fitted as ``fit_linear_probe`` is.

    Minimises mean_s [logsumexp(x_s W) - (x_s W)_{y_s}] + ridge/2 |W|^2. One Newton step solves a
    system of d C unknowns, so d C of some hundreds is as far as it should go.

    Args:
        features: [n, d], a constant column included.
        labels: int [n] in 0..C-1.
        classes: C.
        mask, ridge, iterations: see ``fit_linear_probe``.

    Returns:
        W [d, C], whose C columns sum to 0.

    Raises:
        ValueError: fewer than two classes; see ``fit_linear_probe``.
    """
    _check_fit(ridge, iterations)
    if classes < 2:
        raise ValueError(f"classes={classes} must be at least 2")
    size = features.shape[1]
    features, labels, counts = _counted(features, labels, mask)
    weight = counts / jnp.maximum(counts.sum(), 1)
    targets = jax.nn.one_hot(labels, classes, dtype=features.dtype)
    identity = ridge * jnp.eye(size * classes, dtype=features.dtype)

    def objective(flat: jax.Array) -> jax.Array:
        logits = features @ flat.reshape(size, classes)
        losses = jax.nn.logsumexp(logits, axis=1) - (targets * logits).sum(axis=1)
        return (weight * losses).sum() + ridge / 2 * (flat**2).sum()

    def direction(flat: jax.Array) -> jax.Array:
        chance = jax.nn.softmax(features @ flat.reshape(size, classes), axis=1)
        gradient = features.T @ (weight[:, None] * (chance - targets))
        spread = chance[:, :, None] * (
            jnp.eye(classes, dtype=chance.dtype)[None] - chance[:, None, :]
        )
        weighted = weight[:, None] * features
        curvature = jnp.einsum("si,sj,sab->iajb", weighted, features, spread)
        curvature = curvature.reshape(size * classes, size * classes)
        return jnp.linalg.solve(curvature + identity, gradient.ravel() + ridge * flat)

    start = jnp.zeros(size * classes, features.dtype)
    return _newton(objective, direction, start, iterations).reshape(size, classes)


def probe_fit(
    features: Features,
    inputs: Any,
    labels: Any,
    *,
    classes: int | None = None,
    ridge: float = 1e-2,
    iterations: int = 12,
) -> Callable[[Params], jax.Array]:
    """``fit(params) -> weights``, the probe refitted on the features of given rows.

    Args:
        features: see ``probe_features``.
        inputs: [n, ...], the rows that fit the probe.
        labels: [n]; 0 or 1, or with ``classes`` 0..C-1.
        classes: C of a softmax probe; None for a binary attribute.
        ridge, iterations: see ``fit_linear_probe``.

    Returns:
        A function whose weights are [d], or with ``classes`` [d, C]; safe under jit and vmap.

    Raises:
        ValueError: no row, or labels out of range.
    """
    _check_fit(ridge, iterations)
    labels = _checked_labels(inputs, labels, 2 if classes is None else classes)

    def fit(params: Params) -> jax.Array:
        rows = features(params, inputs)
        if classes is None:
            told = jnp.asarray(labels, rows.dtype)
            return fit_linear_probe(rows, told, ridge=ridge, iterations=iterations)
        told = jnp.asarray(labels)
        return fit_softmax_probe(rows, told, classes, ridge=ridge, iterations=iterations)

    return fit


def probe_loss(features: Features, inputs: Any, labels: Any, name: str) -> ValueLoss:
    """V = mean cross-entropy, in nats, of the probe ``context[name]`` on given rows.

    With weights w [d] the labels are 0 or 1 and V = mean_s [log(1 + exp(x_s w)) - y_s x_s w]; with
    W [d, C] they are 0..C-1 and V = mean_s [logsumexp(x_s W) - (x_s W)_{y_s}]. To speak of one
    class only, give its rows alone. As smooth as the features; the weights are constants of the
    step, so its gradient is zero on what the features do not depend on, such as the head.

    Args:
        features: the same that the probe is fitted on.
        inputs: [n, ...], rows that the fit does not see.
        labels: [n].
        name: of the weights in the context.

    Raises:
        ValueError: no row, or labels that are no counting numbers; when called, a context without
            the weights, or weights of another size or of too few classes.
    """
    labels = _checked_labels(inputs, labels, None)
    most = int(labels.max())

    def loss(params: Params, context: Any) -> jax.Array:
        rows, weights = features(params, inputs), from_context(context, name)
        classes = 2 if weights.ndim == 1 else weights.shape[-1]
        if weights.ndim not in (1, 2) or weights.shape[0] != rows.shape[1] or most >= classes:
            raise ValueError(
                f"context[{name!r}] has the shape {weights.shape}, but the features are"
                f" {rows.shape[1]} and the labels reach {most}; fit it on the same features"
            )
        logits = rows @ weights
        if weights.ndim == 1:
            told = jnp.asarray(labels, logits.dtype)
            return optax.sigmoid_binary_cross_entropy(logits, told).mean()
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    return loss


def _counted(
    features: jax.Array, labels: jax.Array, mask: jax.Array | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Features, labels and how often a row counts; where that is not at all NaN may stand."""
    if mask is None:
        return features, labels, jnp.ones(features.shape[0], features.dtype)
    features, labels = jnp.where(mask[:, None], features, 0), jnp.where(mask, labels, 0)
    return features, labels, mask.astype(features.dtype)


def _newton(
    objective: Callable[[jax.Array], jax.Array],
    direction: Callable[[jax.Array], jax.Array],
    start: jax.Array,
    iterations: int,
) -> jax.Array:
    """Newton's method with steps 1, 1/2, ... 1/256: the longest that does not raise the objective.

    Far out on a nearly flat slope the full step overshoots and may go back and forth for ever.
    """
    steps = 0.5 ** jnp.arange(9, dtype=start.dtype)
    rounding = 8 * jnp.finfo(start.dtype).eps

    def iterate(_: int, weights: jax.Array) -> jax.Array:
        before, towards = objective(weights), direction(weights)
        after = jax.vmap(lambda step: objective(weights - step * towards))(steps)
        good = after <= before + rounding * jnp.abs(before)
        chosen = jnp.where(good.any(), jnp.argmax(good), len(steps) - 1)
        return weights - steps[chosen] * towards

    return jax.lax.fori_loop(0, iterations, iterate, start)


def _check_fit(ridge: float, iterations: int) -> None:
    if not ridge > 0:
        raise ValueError(f"ridge={ridge} must be above zero; it keeps the minimum unique")
    if iterations < 1:
        raise ValueError(f"iterations={iterations} must be at least 1")


def _checked_labels(inputs: Any, labels: Any, classes: int | None) -> np.ndarray:
    """Labels [n] as int32, one for each input and below the number of classes."""
    told = np.asarray(labels)
    if len(inputs) == 0:
        raise ValueError("inputs holds no example; a probe needs at least one held-out row")
    if told.shape != (len(inputs),):
        raise ValueError(f"labels have the shape {told.shape}; give one for each input")
    if (told != np.floor(told)).any() or told.min() < 0:
        raise ValueError(f"labels={np.unique(told)[:5]} must be counting numbers from 0")
    if classes is not None and told.max() >= classes:
        raise ValueError(f"labels reach {told.max()}, but there are {classes} classes")
    return told.astype(np.int32)
