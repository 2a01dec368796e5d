"""Fairness of a binary classifier on held-out rows, as value losses and as measurements.

A decision rule is fair in one of the usual senses if some rate is the same for every group:

    demographic parity   P(decided 1 | group)
    equal opportunity    P(decided 1 | group, target 1)
    equalized odds       both P(decided 1 | group, target 1) and P(decided 1 | group, target 0)

(Dwork et al., arXiv:1104.3913; Hardt, Price and Srebro, arXiv:1610.02413.) A hard rate is a step
function of the parameters, without a gradient, so the value losses take a group's mean predicted
probability r_g = mean_{s in g} sigmoid(score_s) for it and measure how far the r_g lie apart. That
is a surrogate: probabilities may agree where decisions do not, so report ``measure_fairness`` with
it. For a sharper one give a score function that is multiplied by a constant.

Where all groups agree, a measure of distance has no gradient and demands nothing. A principal that
wants two groups' rates to stay where they are can say so to first order with
``preserve("gap")``, the value being ``loss_gap(positive_rate(...), positive_rate(...))``.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vcca_jax.trainer import Params
from vcca_jax.values import ValueLoss

Scores = Callable[[Params, Any], jax.Array]
"""``scores(params, inputs [n, ...]) -> logits [n]``; a score above 0 decides for 1."""

Spread = Callable[[jax.Array], jax.Array]
"""``spread(rates [G]) -> scalar``, 0 where all are equal and positive elsewhere."""


def mean_squared_gap(rates: jax.Array) -> jax.Array:
    """The mean over all pairs of groups of (r_g - r_h)^2, in squares of a probability.

    For two groups it is their squared gap. Smooth everywhere.
    """
    groups = rates.shape[0]
    return ((rates - rates.mean()) ** 2).sum() * 2 / (groups - 1)


def worst_gap(temperature: float) -> Spread:
    """max_g r_g - min_g r_g, smoothed: the gap between the two groups that lie furthest apart.

    temperature [log mean_g exp(r_g / temperature) + log mean_g exp(-r_g / temperature)], which is
    0 where all rates agree, smooth everywhere, and below the hard gap by at most
    2 temperature log G. In the unit of a probability.

    Raises:
        ValueError: a temperature that is not above zero and finite.
    """
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature={temperature} must be a finite number above zero")

    def spread(rates: jax.Array) -> jax.Array:
        scaled = rates / temperature
        both = jax.nn.logsumexp(scaled) + jax.nn.logsumexp(-scaled)
        return temperature * (both - 2 * math.log(rates.shape[0]))

    return spread


def positive_rate(score_fn: Scores, inputs: Any) -> ValueLoss:
    """V = mean_s sigmoid(score_s): how often the rows are decided for 1, softly. In [0, 1].

    Raises:
        ValueError: there is no row; when called, scores that are not one a row.
    """
    rows = len(inputs)
    if rows == 0:
        raise ValueError("inputs holds no example; a rate needs at least one held-out row")

    def loss(params: Params, context: Any) -> jax.Array:
        del context
        return jax.nn.sigmoid(_scores(score_fn, params, inputs, rows)).mean()

    return loss


def demographic_parity(
    score_fn: Scores, inputs: Any, groups: Any, *, spread: Spread = mean_squared_gap
) -> ValueLoss:
    """V = spread of r_g = mean_{s in g} sigmoid(score_s) over the groups.

    Args:
        score_fn: the model's logits for the decision 1.
        inputs: [n, ...] held-out rows.
        groups: bool [n], a group and the rest; or [G, n], one mask a group. Rows in no group do
            not count, and groups may overlap.
        spread: how far the rates lie apart; ``mean_squared_gap`` or ``worst_gap(temperature)``.

    Raises:
        ValueError: fewer than two groups, a group without a row, or a mask of another length;
            when called, scores that are not one a row.
    """
    return _spread_of_rates(score_fn, inputs, [_masks(groups, len(inputs))], spread)


def equal_opportunity(
    score_fn: Scores, inputs: Any, targets: Any, groups: Any, *, spread: Spread = mean_squared_gap
) -> ValueLoss:
    """V = spread over the groups of the mean probability of 1 among rows whose target is 1.

    Args:
        score_fn, inputs, groups, spread: see ``demographic_parity``.
        targets: [n] in {0, 1}.

    Raises:
        ValueError: a group without a row of target 1; see ``demographic_parity``.
    """
    masks = _masks(groups, len(inputs))
    return _spread_of_rates(score_fn, inputs, [_with_target(masks, targets, 1)], spread)


def equalized_odds(
    score_fn: Scores, inputs: Any, targets: Any, groups: Any, *, spread: Spread = mean_squared_gap
) -> ValueLoss:
    """V = half the sum, over both targets, of the spread of the mean probability of 1.

    Args:
        score_fn, inputs, groups, spread: see ``demographic_parity``.
        targets: [n] in {0, 1}.

    Raises:
        ValueError: a group without a row of either target; see ``demographic_parity``.
    """
    masks = _masks(groups, len(inputs))
    both = [_with_target(masks, targets, target) for target in (0, 1)]
    return _spread_of_rates(score_fn, inputs, both, spread)


def score_covariance(score_fn: Scores, inputs: Any, attribute: Any) -> ValueLoss:
    """V = [(1/n) sum_s (z_s - mean z) score_s]^2, the squared covariance with an attribute.

    The measure of Zafar et al. (arXiv:1507.05259), squared so that it is smooth. It asks for no
    groups: the attribute may be any number, such as an age. Zero covariance is less than
    independence. In squares of a logit times the attribute's unit.

    Args:
        score_fn, inputs: see ``demographic_parity``.
        attribute: [n] finite numbers, not all the same.

    Raises:
        ValueError: an attribute of another length, not finite, or the same everywhere; when
            called, scores that are not one a row.
    """
    told, rows = np.asarray(attribute, np.float64), len(inputs)
    if told.shape != (rows,) or not np.isfinite(told).all():
        raise ValueError(f"attribute has the shape {told.shape}; give {rows} finite numbers")
    if rows == 0 or (told == told[0]).all():
        raise ValueError("attribute is the same everywhere; it must distinguish some rows")
    deviation = told - told.mean()

    def loss(params: Params, context: Any) -> jax.Array:
        del context
        scores = _scores(score_fn, params, inputs, rows)
        return (jnp.asarray(deviation, scores.dtype) @ scores / rows) ** 2

    return loss


class FairnessReport(NamedTuple):
    """Hard rates of decisions by group, and the largest gap between any two groups.

    A rate is NaN for a group without such rows, and the gaps are over the other groups. It is NaN
    too for a group with a row whose score is NaN, and then so are the gaps: nothing is decided.

    Attributes:
        selection_rate: [G], decided for 1.
        true_positive_rate: [G], of rows with target 1.
        false_positive_rate: [G], of rows with target 0.
        demographic_parity: scalar, the largest gap in selection rates.
        equal_opportunity: scalar, in true positive rates.
        equalized_odds: scalar, the larger of the gaps in true and in false positive rates.
    """

    selection_rate: jax.Array
    true_positive_rate: jax.Array
    false_positive_rate: jax.Array
    demographic_parity: jax.Array
    equal_opportunity: jax.Array
    equalized_odds: jax.Array


def measure_fairness(
    scores: jax.Array, targets: jax.Array, groups: jax.Array, *, threshold: float = 0.0
) -> FairnessReport:
    """Count decisions by group. For reports: it has no gradient.

    Args:
        scores: [n].
        targets: [n] in {0, 1}.
        groups: bool [n], a group and the rest; or [G, n].
        threshold: a score above it decides for 1.

    Returns:
        The report; safe under jit and vmap.

    Raises:
        ValueError: scores or targets that are not [n], groups that are not boolean masks of n rows,
            or fewer than two of them.
    """
    scores, targets = jnp.asarray(scores), jnp.asarray(targets)
    if scores.ndim != 1 or targets.shape != scores.shape:
        raise ValueError(
            f"scores have the shape {scores.shape} and targets {targets.shape}; give one of each a"
            " row, [n]"
        )
    masks = _stacked(jnp.asarray(groups), scores.shape[0])
    decided, positive, unknown = scores > threshold, targets == 1, jnp.isnan(scores)

    def rate(among: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The rates [G], and whether one of them is not known."""
        count = among.sum(axis=1)
        chosen = (among & decided[None]).sum(axis=1)
        lost = (among & unknown[None]).any(axis=1)
        told = jnp.where(count > 0, chosen / jnp.maximum(count, 1), jnp.nan)
        return jnp.where(lost, jnp.nan, told), lost.any()

    def gap(rates: jax.Array, lost: jax.Array) -> jax.Array:
        return jnp.where(lost, jnp.nan, jnp.nanmax(rates) - jnp.nanmin(rates))

    selection = rate(masks)
    true, false = rate(masks & positive[None]), rate(masks & ~positive[None])
    odds = jnp.where(true[1] | false[1], jnp.nan, jnp.fmax(gap(*true), gap(*false)))
    return FairnessReport(selection[0], true[0], false[0], gap(*selection), gap(*true), odds)


def _spread_of_rates(
    score_fn: Scores, inputs: Any, conditions: list[np.ndarray], spread: Spread
) -> ValueLoss:
    """The mean, over conditions given as masks [G, n], of the spread of the groups' soft rates."""
    rows = len(inputs)
    shares = [masks / masks.sum(axis=1, keepdims=True) for masks in conditions]

    def loss(params: Params, context: Any) -> jax.Array:
        del context
        chances = jax.nn.sigmoid(_scores(score_fn, params, inputs, rows))
        spreads = [spread(jnp.asarray(share, chances.dtype) @ chances) for share in shares]
        return jnp.stack(spreads).mean()

    return loss


def _scores(score_fn: Scores, params: Params, inputs: Any, rows: int) -> jax.Array:
    scores = score_fn(params, inputs)
    if jnp.shape(scores) != (rows,):
        raise ValueError(f"score_fn returns the shape {jnp.shape(scores)}; return logits [{rows}]")
    return scores


def _masks(groups: Any, rows: int) -> np.ndarray:
    """Group masks [G, n], checked."""
    masks = _stacked(np.asarray(groups), rows)
    empty = np.flatnonzero(~masks.any(axis=1))
    if empty.size:
        raise ValueError(f"groups[{empty[0]}] holds no row; every group needs at least one")
    return masks


def _stacked(given: Any, rows: int) -> Any:
    """Group masks [G, n] from those or from one, of NumPy or JAX; shape and type checked."""
    if given.dtype != bool:
        raise ValueError(f"groups are of {given.dtype}; give boolean masks, such as labels == 1")
    kind = np if isinstance(given, np.ndarray) else jnp
    masks = kind.stack([given, ~given]) if given.ndim == 1 else given
    if masks.ndim != 2 or masks.shape[1] != rows or masks.shape[0] < 2:
        raise ValueError(
            f"groups have the shape {given.shape}; give a mask [{rows}], or [G, {rows}] with G >= 2"
        )
    return masks


def _with_target(masks: np.ndarray, targets: Any, target: int) -> np.ndarray:
    told = np.asarray(targets)
    if told.shape != (masks.shape[1],) or not np.isin(told, (0, 1)).all():
        raise ValueError(
            f"targets of the shape {told.shape} must be {masks.shape[1]} numbers, 0 or 1"
        )
    among = masks & (told == target)[None]
    empty = np.flatnonzero(~among.any(axis=1))
    if empty.size:
        raise ValueError(
            f"groups[{empty[0]}] holds no row with target {target}; hold out more rows of it"
        )
    return among
