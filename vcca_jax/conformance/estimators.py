"""The contract of a contribution estimator, and the axioms it happens to keep."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vcca_jax.arguments import check_takes
from vcca_jax.conformance.comparison import apart
from vcca_jax.contribution import Estimator, efficiency_gap

CLOSE = 1e-4
"""Relative to the largest credit: rounding of single precision, not more."""


class Axioms(NamedTuple):
    """What an estimator keeps, measured on the example; each is 0 where it holds.

    Every number is over the gain v(1) - v(0) of the example, so that 0.01 is a cent in the euro.

    Attributes:
        efficiency: |gain - sum of the credits|.
        null_player: |credit| of an agent that adds nothing to any coalition.
        symmetry: |difference| of the credits of two agents that are interchangeable.
        additivity: largest |credit - worth| in an additive game.
        splitting: |change| of an agent's credit where it takes part as two halves.
    """

    efficiency: float
    null_player: float
    symmetry: float
    additivity: float
    splitting: float


# Agents 0 and 1 are alike, agent 3 adds nothing, agent 4 gets what makes the sum no round number.
_PARTS = np.array([[0.6, 0.1], [0.6, 0.1], [0.1, 0.5], [0.0, 0.0], [0.25, 0.3]], np.float32)
_WORTH = np.array([0.4, 0.1, -0.2, 0.0, 0.3], np.float32)
_AGENTS = len(_PARTS)


_PURE = "make it a pure JAX function: no state, no randomness but key, no Python branch on arrays"

_UNTRACEABLE = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.NonConcreteBooleanIndexError,
)
"""What JAX raises where a function asks for the value of what is traced."""


def _learning(parts: Any) -> Any:
    """v(w) = sum_d log(1 + (w P)_d): smooth, concave, so that later agents add less."""
    return lambda weights: jnp.log1p(weights @ parts).sum()


def check_estimator(estimator: Estimator, *, key: jax.Array | None = None) -> Axioms:
    """Check that an estimator can take the place of any other, and measure its axioms.

    What is asked of all, on a smooth game of five agents, v(w) = sum_d log(1 + sum_i w_i P_id):

        shape       credits [A] of the weights' type, finite, in one array
        absence     exactly 0 for an agent of weight 0, even where the utility's slope is infinite
        purity      the same credits for the same arguments, called a second time
        transforms  the same credits under ``jit`` and, for several utilities at once, ``vmap``

    Args:
        estimator: ``estimator(utility, weights, *, key=None) -> [A]``; bind other options with
            ``functools.partial``. It must take seven agents.
        key: handed on; samplers need one.

    Returns:
        The axioms' violations; an estimator is free to break them, if it says so. Samplers are
        symmetric in expectation only.

    Raises:
        ValueError: the law that is broken, what was seen, and the remedy.
    """
    check_takes("estimator", estimator, ["utility", "weights"], ["key"])
    weights = jnp.ones(_AGENTS)
    parts = jnp.asarray(_PARTS)

    def credited(parts: jax.Array, weights: jax.Array) -> jax.Array:
        return estimator(_learning(parts), weights, key=key)

    told = credited(parts, weights)
    if not isinstance(told, jax.Array | np.ndarray):
        raise ValueError(
            f"estimator returned a {type(told).__name__}; return one array, credits [A] (of a"
            " Sampled its credits)"
        )
    if jnp.shape(told) != (_AGENTS,) or told.dtype != weights.dtype:
        raise ValueError(
            f"estimator returned {jnp.shape(told)} of {jnp.result_type(told)} for weights of"
            f" ({_AGENTS},) {weights.dtype}; return one credit an agent, of the weights' type"
        )
    if not np.isfinite(told).all():
        raise ValueError(f"estimator returned {told}; credits must be finite in a smooth game")
    several = jax.vmap(credited, in_axes=(0, None))
    for how, called in (
        ("when called a second time", credited),
        ("under jit", jax.jit(credited)),
        ("under vmap over utilities", lambda p, w: jax.jit(several)(jnp.stack([p, 2 * p]), w)[0]),
    ):
        try:
            again = called(parts, weights)
        except _UNTRACEABLE as error:
            raise ValueError(f"estimator fails {how}; {_PURE}") from error
        if not (gap := apart(told, again)) <= CLOSE:
            raise ValueError(
                f"estimator's credits differ by {gap:.3g} of the largest {how}; {_PURE}"
            )
    _check_absence(estimator, key)
    gain = float(_learning(parts)(weights) - _learning(parts)(0 * weights))
    halves = jnp.concatenate([parts[:4], parts[4:] / 2, parts[4:] / 2])
    split = jax.jit(credited)(halves, jnp.ones(_AGENTS + 1))
    additive = jax.jit(lambda w: estimator(lambda w: w @ jnp.asarray(_WORTH), w, key=key))(weights)
    return Axioms(
        efficiency=abs(float(efficiency_gap(_learning(parts), weights, told))) / gain,
        null_player=abs(float(told[3])) / gain,
        symmetry=abs(float(told[0] - told[1])) / gain,
        additivity=float(np.abs(additive - _WORTH).max() / _WORTH.sum()),
        splitting=abs(float(split[4] + split[5] - told[4])) / gain,
    )


def _check_absence(estimator: Estimator, key: jax.Array | None) -> None:
    gone = 1
    weights = jnp.ones(_AGENTS).at[gone].set(0.0)

    def poisoned(w: jax.Array) -> jax.Array:
        # The slope of the square root at 0 is infinite: 0 times it would not be a number.
        return _learning(jnp.asarray(_PARTS))(w) + jnp.sqrt(w[gone])

    credits = jax.jit(lambda w: estimator(poisoned, w, key=key))(weights)
    if not (credits[gone] == 0 and np.isfinite(credits).all()):
        raise ValueError(
            f"estimator returned {credits} where agent {gone} has weight 0; an absent agent gets"
            " exactly 0 and spoils nobody's credit: hold its weight constant, for instance by"
            " jnp.where(weights > 0, ..., 0) around values, and around what is differentiated"
        )
