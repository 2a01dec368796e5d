"""What estimators that sample have in common: checked draws, and the error of their mean."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from vcca_jax.arguments import check_count, check_key
from vcca_jax.contribution.coalitions import evaluate, only_present
from vcca_jax.contribution.protocols import Sampled, Utility


def check_draws(name: str, count: int, key: jax.Array | None, antithetic: bool) -> jax.Array:
    """Return the key, once it is known to be there and `count` (called `name`) to be possible.

    Raises:
        ValueError: If `key` is None or no key, or `count` is no whole number, less than 1, or odd
            with `antithetic`.
    """
    key = check_key(key)
    check_count(name, count)
    if antithetic and count % 2:
        raise ValueError(f"{name} is {count}; antithetic ones come in pairs: pass an even number")
    return key


def turned_values(
    utility: Utility,
    weights: jax.Array,
    member: Callable[[jax.Array, jax.Array], jax.Array],
    samples: int,
    batch_size: int | None,
) -> jax.Array:
    """Values of every sample's coalition with one agent turned, and with nobody, `[M, A + 1]`.

    Args:
        utility: A pure function of participation weights `[A]`.
        weights: The grand coalition's participation weights, `[A]`.
        member: Who belongs, booleans `[A]`, in a sample of this number when the agent that is
            marked, in booleans `[A]`, is turned; of the last column nobody is.
        samples: M.
        batch_size: How many coalitions at once; None means 256.
    """
    agents = weights.shape[0]

    def of_row(row: jax.Array) -> jax.Array:
        sample, turned = jnp.divmod(row, agents + 1)
        return member(sample, jnp.arange(agents) == turned)

    rows = jnp.arange(samples * (agents + 1))
    values = evaluate(utility, weights, rows, of_row, batch_size=batch_size)
    return values.reshape((samples, agents + 1))


def sampled(
    marginals: jax.Array, weights: jax.Array, *, draw_size: int, evaluations: int | jax.Array
) -> Sampled:
    """Mean and standard error of marginal contributions `[n, A]`.

    Args:
        marginals: One row a sampled order or coalition.
        weights: The grand coalition's participation weights, `[A]`.
        draw_size: How many neighbouring rows make one independent draw.
        evaluations: How often the utility was asked for.
    """
    agents = weights.shape[0]
    draws = marginals.reshape((-1, draw_size, agents)).mean(axis=1)
    error = jnp.std(draws, axis=0, ddof=1) / math.sqrt(draws.shape[0])
    return Sampled(
        credits=only_present(jnp.mean(marginals, axis=0), weights),
        standard_error=only_present(error, weights),
        evaluations=jnp.asarray(evaluations, dtype=jnp.int32),
    )


def check_evaluations(evaluations: int, least: int, key: jax.Array | None) -> jax.Array:
    """Return the key, once it is known to be there and the budget to suffice.

    Raises:
        ValueError: If `key` is None or no key, or `evaluations` is no whole number or less than
            `least`.
    """
    key = check_key(key)
    check_count("evaluations", evaluations, least=0)
    if evaluations < least:
        raise ValueError(
            f"evaluations is {evaluations}; pass at least {least} for this many agents, or use "
            "permutation_shapley"
        )
    return key


def among_present(credits: jax.Array, weights: jax.Array) -> jax.Array:
    """Give what agents of weight 0 hold to the others, evenly, so that sums over agents stay.

    Args:
        credits: `[..., A]`.
        weights: The grand coalition's participation weights, `[A]`.
    """
    present = (weights > 0).astype(credits.dtype)
    stray = jnp.expand_dims(credits @ (1 - present), -1) / jnp.maximum(jnp.sum(present), 1)
    given = jnp.broadcast_to(stray, credits.shape)
    return jnp.where(jnp.broadcast_to(weights > 0, credits.shape), credits + given, 0.0)
