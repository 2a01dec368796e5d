"""What a utility, an estimator and a sampled estimate look like."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax

Utility = Callable[[jax.Array], jax.Array]
"""A pure JAX function of participation weights: `utility(w) -> scalar`, w in [0, 1]^A.

A coalition S of a grand coalition `weights` is `weights` with the entries outside S set to 0: fixed
weights, so that leaving an agent out drops its term and renormalises nothing.
"""


class Estimator(Protocol):
    """A map from a utility and the grand coalition's participation weights to credits `[A]`.

    Options beside `key` are keyword-only; bind those without a default with `functools.partial`.
    Deterministic estimators accept `key` and ignore it, so that all are called alike.
    """

    def __call__(
        self, utility: Utility, weights: jax.Array, *, key: jax.Array | None = None
    ) -> jax.Array:
        """Return the credit of every agent, shape `[A]`; 0 where the weight is 0."""
        ...


class Sampled(NamedTuple):
    """A sampled estimate with what is known of its error.

    Attributes:
        credits: The estimate, `[A]`, in the unit of the utility.
        standard_error: The standard error of each credit, `[A]`, same unit; 0 for absent agents.
        evaluations: How often the utility was asked for, a scalar integer (batches padded to equal
            sizes may run a few rows more).
    """

    credits: jax.Array
    standard_error: jax.Array
    evaluations: jax.Array


class Enumerated(Sampled):
    """A `Sampled` for which every coalition was evaluated: its errors are 0 and not merely seen so.

    Which one a sampler returns is decided by its budget, before anything is drawn.
    """

    __slots__ = ()
