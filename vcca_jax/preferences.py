"""Preferences: values that are learned from a principal's choices between two things.

A principal who cannot write a value down can still say which of two outcomes is better. The
Bradley-Terry model (Bradley and Terry, 1952) turns such choices into weights of a reward w . f:

    P(a is chosen over b) = sigmoid(w . (f_a - f_b))

``fit_bradley_terry`` estimates w from pairs of feature vectors. ``preference_loss`` says how far
the model's outputs fall short of what those weights would choose; ``choice_loss`` needs no weights
and asks the model's own scores to explain the choices. Either is a value loss, so a principal may
protect it: no step may make the model disagree more.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vcca_jax.probes import fit_linear_probe
from vcca_jax.trainer import Params
from vcca_jax.values import ValueLoss, from_context


class Preference(NamedTuple):
    """What a principal's choices tell.

    Attributes:
        weights: [d], reward w . f in log-odds: one more unit makes a choice e times as likely.
        standard_errors: [d], of the weights.
        log_loss: scalar, mean negative log likelihood of the choices, in nats; log 2 = 0.693 is
            no better than a coin.
    """

    weights: jax.Array
    standard_errors: jax.Array
    log_loss: jax.Array


def fit_bradley_terry(
    features_a: jax.Array,
    features_b: jax.Array,
    choices: jax.Array,
    *,
    mask: jax.Array | None = None,
    ridge: float = 1e-2,
    iterations: int = 12,
) -> Preference:
    """Fit the weights of a reward to a principal's pairwise choices.

    Minimises (1/n) sum_s [log(1 + exp(w . z_s)) - y_s w . z_s] + ridge/2 |w|^2 with
    z_s = f_a - f_b, a logistic regression without intercept (there is no favour for being named
    first), by Newton's method. Ridge n is the precision of a normal prior around w = 0, and the
    standard errors are those of the posterior's normal approximation: square roots of the diagonal
    of [sum_s p_s (1 - p_s) z_s z_s^T + n ridge I]^-1. As the ridge goes to 0 they become the usual
    ones of maximum likelihood.

    - Ties: a choice of 1/2 is half a win for each.
    - Inconsistent choices (a over b, later b over a) are allowed: they draw w towards 0 and count
      as information that the two are near to each other.
    - Separable choices, all explained by some w, have no maximum likelihood: w grows like the
      logarithm of 1 / ridge, and only its direction should be read.
    - What no pair distinguishes gets weight 0, with the prior's standard error. Options without
      features are one-hot rows: w is then a strength each, and the ridge makes them sum to 0.

    Args:
        features_a: [n, d].
        features_b: [n, d].
        choices: [n] in [0, 1]: 1 where a was chosen, 0 where b, 1/2 for a tie.
        mask: bool [n], false for padding, so that principals with different numbers of pairs can
            be mapped over; all count by default.
        ridge: penalty, > 0, in the unit of a mean choice.
        iterations: Newton steps from w = 0; see ``fit_linear_probe``.

    Returns:
        The preference; safe under jit, and under vmap over principals.

    Raises:
        ValueError: shapes that do not belong together; choices outside [0, 1] where they are
            known before tracing; a ridge or number of iterations that is not above zero.
    """
    features_a, features_b, choices = map(jnp.asarray, (features_a, features_b, choices))
    shape, count = features_a.shape, choices.shape
    if len(shape) != 2 or shape != jnp.shape(features_b) or count != shape[:1]:
        raise ValueError(
            f"features_a {shape}, features_b {jnp.shape(features_b)} and choices {count} must be"
            " [n, d], [n, d] and [n]"
        )
    _check_choices("choices", choices, mask)
    dtype = jnp.result_type(features_a, features_b, jnp.float32)
    difference = features_a.astype(dtype) - features_b.astype(dtype)
    choices = choices.astype(dtype)
    counts = jnp.ones(shape[0], dtype)
    if mask is not None:
        mask = jnp.asarray(mask, bool)
        difference = jnp.where(mask[:, None], difference, 0)
        choices = jnp.where(mask, choices, 0)
        counts = mask.astype(difference.dtype)
    pairs = jnp.maximum(counts.sum(), 1)
    weights = fit_linear_probe(difference, choices, mask=mask, ridge=ridge, iterations=iterations)
    logits = difference @ weights
    chance = jax.nn.sigmoid(logits)
    information = difference.T @ ((counts * chance * (1 - chance))[:, None] * difference)
    information = information + pairs * ridge * jnp.eye(shape[1], dtype=difference.dtype)
    return Preference(
        weights=weights,
        standard_errors=jnp.sqrt(jnp.diagonal(jnp.linalg.inv(information))),
        log_loss=(counts * (jax.nn.softplus(logits) - choices * logits)).sum() / pairs,
    )


def preference_loss(
    logits_fn: Callable[[Params, Any], jax.Array], inputs: Any, options: Any, name: str
) -> ValueLoss:
    """V = mean_s [max_k r_sk - sum_k p_sk r_sk], the reward that the model's outputs give away.

    p_s = softmax(logits_s) is the model's distribution over K options on reference input s, and
    r_sk = w . f_sk the reward that the preference w = ``context[name]`` gives option k. It is 0
    if the model always takes an option that the principal likes best, and its gradient is that of
    minus the expected reward: the first term does not depend on the parameters. In log-odds of a
    choice, smooth wherever the logits are. The weights come from the context, so that a preference
    fitted anew recompiles nothing.

    Args:
        logits_fn: ``logits_fn(params, inputs) -> [n, K]``.
        inputs: [n, ...] reference inputs.
        options: [K, d], features of the options, or [n, K, d] where they differ by input.
        name: of the weights [d] in the context.

    Raises:
        ValueError: no input, or options of another shape or not finite; when called, a context
            without the weights, or logits or weights of another shape.
    """
    rows = len(inputs)
    features = np.asarray(options)
    if rows == 0:
        raise ValueError("inputs holds no example; a preference needs at least one")
    if features.ndim not in (2, 3) or (features.ndim == 3 and features.shape[0] != rows):
        raise ValueError(f"options have the shape {features.shape}; give [K, d] or [{rows}, K, d]")
    if not np.isfinite(features).all():
        raise ValueError("options hold a number that is not finite; remove or replace it")
    expected = (rows, features.shape[-2])

    def loss(params: Params, context: Any) -> jax.Array:
        logits, told = logits_fn(params, inputs), from_context(context, name)
        weights = jnp.asarray(told.weights if isinstance(told, Preference) else told)
        if logits.shape != expected or weights.shape != features.shape[-1:]:
            raise ValueError(
                f"logits_fn returns the shape {logits.shape} and context[{name!r}] has"
                f" {weights.shape}; the options want {expected} and {features.shape[-1:]}"
            )
        rewards = jnp.asarray(features, weights.dtype) @ weights
        rewards = jnp.broadcast_to(rewards, expected)
        taken = (jax.nn.softmax(logits, axis=1) * rewards).sum(axis=1)
        return (rewards.max(axis=1) - taken).mean()

    return loss


def choice_loss(
    score_fn: Callable[[Params, Any], jax.Array], inputs_a: Any, inputs_b: Any, chosen: Any
) -> ValueLoss:
    """V = mean_s [log(1 + exp(d_s)) - y_s d_s] with d_s = score(a_s) - score(b_s).

    The Bradley-Terry negative log likelihood, in nats, of a principal's choices under the model's
    own scores, as a reward model is trained (Christiano et al., arXiv:1706.03741). As smooth as
    the scores. Ties and inconsistent choices are as in ``fit_bradley_terry``; choices that the
    model can explain wholly have no minimum, which is harmless for a value that is only watched.

    Args:
        score_fn: ``score_fn(params, inputs) -> [n]``.
        inputs_a: [n, ...].
        inputs_b: [n, ...].
        chosen: [n] in [0, 1]: 1 where a was chosen, 0 where b, 1/2 for a tie.

    Raises:
        ValueError: no pair, numbers that differ, or choices outside [0, 1]; when called, scores
            that are not one a row.
    """
    pairs = len(inputs_a)
    if pairs == 0:
        raise ValueError("inputs_a holds no example; give at least one pair")
    if len(inputs_b) != pairs or np.shape(chosen) != (pairs,):
        raise ValueError(
            f"inputs_a, inputs_b and chosen are {pairs}, {len(inputs_b)} and {np.shape(chosen)};"
            " give one of each for every pair"
        )
    _check_choices("chosen", chosen)
    told = np.asarray(chosen)

    def loss(params: Params, context: Any) -> jax.Array:
        del context
        better, worse = score_fn(params, inputs_a), score_fn(params, inputs_b)
        if better.shape != (pairs,) or worse.shape != (pairs,):
            raise ValueError(
                f"score_fn returns the shapes {better.shape} and {worse.shape}; return [{pairs}]"
            )
        gap = better - worse
        return (jax.nn.softplus(gap) - jnp.asarray(told, gap.dtype) * gap).mean()

    return loss


def _check_choices(name: str, choices: Any, mask: Any = None) -> None:
    if isinstance(choices, jax.core.Tracer) or isinstance(mask, jax.core.Tracer):
        return
    told = np.asarray(choices) if mask is None else np.asarray(choices)[np.asarray(mask)]
    if not ((told >= 0) & (told <= 1)).all():
        raise ValueError(f"{name} must be within [0, 1]; got {told.min()} to {told.max()}")
