"""The credit matrix: what each agent contributes to each beneficiary."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from vcca_jax.contribution.coalitions import participation
from vcca_jax.contribution.protocols import Estimator, Sampled

Utilities = Callable[[jax.Array], jax.Array]
"""A pure function of participation weights that returns one utility a beneficiary, `[U]`.

For `first_order` it has an attribute of that name besides, `first_order(w) -> [U, A]`.
"""


def credit_matrix(
    estimator: Estimator,
    utilities: Utilities,
    weights: jax.typing.ArrayLike,
    *,
    key: jax.Array | None = None,
) -> jax.Array:
    """Credit every agent for every beneficiary.

    C_ui = the estimator's credit of agent i in the game of utility u

    A beneficiary is whoever has a utility of its own: a principal with its own validation data, a
    customer, a validation example. A row is what the estimator says of that utility alone, and
    where the estimator is linear in the utility, any weighted sum of rows is the credit for the
    weighted sum of utilities: pay by `prices @ matrix`.

    Cost: utilities are asked for all at once. An estimator that evaluates coalitions runs each
    coalition once, however many beneficiaries there are; one that differentiates runs each once
    forward and once a beneficiary backward. An estimator that samples draws the same coalitions
    for all of them.

    Args:
        estimator: Any, called as `estimator(utility, weights, key=key)`.
        utilities: A pure function of participation weights `[A]` to utilities `[U]`.
        weights: The grand coalition's participation weights, `[A]` in [0, 1].
        key: For estimators that sample.

    Returns:
        Credits `[U, A]`, each row in the unit of its utility.

    Raises:
        ValueError: If `utilities` does not return one axis; of `first_order`, if they do not know
            their first-order credits; or whatever the estimator raises.
    """
    weights = participation(weights)
    shape = jax.eval_shape(utilities, weights).shape
    if len(shape) != 1:
        raise ValueError(
            f"utilities returned shape {shape}; it must return one utility a beneficiary, shape [U]"
        )

    # What does not depend on the beneficiary is not batched over: coalitions are run once.
    def row(beneficiary: jax.Array) -> jax.Array:
        return estimator(_Row(utilities, beneficiary), weights, key=key)

    return jax.vmap(row)(jnp.arange(shape[0]))


@dataclass(frozen=True, eq=False)
class _Row:
    """One beneficiary's utility."""

    utilities: Utilities
    beneficiary: jax.Array

    def __call__(self, weights: jax.Array) -> jax.Array:
        return self.utilities(weights)[self.beneficiary]

    def first_order(self, weights: jax.Array) -> jax.Array:
        """Its own, `[A]`: `contribution.first_order` takes what has none for a game without
        parameters and follows it after the step, which is another credit."""
        expanded = getattr(self.utilities, "first_order", None)
        if expanded is None:
            raise ValueError(
                "utilities have no first_order(weights) -> [U, A], from which first_order could"
                " credit; stack what it says of each one-step utility,"
                " jnp.stack([first_order(each, weights) for each in ...]), or use influence"
            )
        return jnp.asarray(expanded(weights))[self.beneficiary]


def with_validation_error(
    estimator: Estimator,
    utilities: Utilities,
    weights: jax.typing.ArrayLike,
    *,
    key: jax.Array | None = None,
) -> Sampled:
    """Credit for a mean over validation examples, with the error of having drawn just these.

    With one utility an example, an estimator that is linear in the utility credits agent i with
    the mean over examples of C_ui, so another draw of validation data would have given another
    mean of such terms. Their standard error, sd_u(C_ui) / sqrt(U), is how far the credit may be
    from that of the population that the examples were drawn from. It says nothing of other seeds,
    and nothing of an estimator's own sampling.

    Args:
        estimator: Any that is linear in the utility: see its docstring.
        utilities: One utility a validation example, `[U]`, U >= 2: minus the loss, say.
        weights: The grand coalition's participation weights, `[A]` in [0, 1].
        key: For estimators that sample.

    Returns:
        Credits `[A]`, standard errors `[A]` and the number of validation examples, as
        `evaluations`.

    Raises:
        ValueError: If there are fewer than two examples, or as `credit_matrix`.
    """
    matrix = credit_matrix(estimator, utilities, weights, key=key)
    examples = matrix.shape[0]
    if examples < 2:
        raise ValueError(f"utilities returned {examples} example; an error needs at least two")
    return Sampled(
        credits=matrix.mean(axis=0),
        standard_error=jnp.std(matrix, axis=0, ddof=1) / examples**0.5,
        evaluations=jnp.asarray(examples, jnp.int32),
    )
