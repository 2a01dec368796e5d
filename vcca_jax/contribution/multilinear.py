"""Multilinear (Owen) Shapley: random coalitions of every density."""

import jax
import jax.numpy as jnp

from vcca_jax.arguments import check_count
from vcca_jax.contribution.coalitions import marginal, only_present, participation
from vcca_jax.contribution.protocols import Sampled, Utility
from vcca_jax.contribution.sampling import check_draws, sampled, turned_values


def multilinear_shapley(
    utility: Utility,
    weights: jax.typing.ArrayLike,
    *,
    samples: int,
    key: jax.Array | None = None,
    antithetic: bool = False,
    batch_size: int | None = None,
) -> jax.Array:
    """Estimate every agent's Shapley value through the multilinear extension of the game.

    c_i = int_0^1 E[ v(S + i) - v(S - i) ] dq,  each agent in S with probability q

    Sample m of M takes q at random in the m-th of M equal parts of [0, 1] and one coalition S, and
    asks for v(S) and, agent by agent, for v of S with that agent's membership turned.

    Cost: M (A + 1) utility evaluations. Holds: null agent (exactly 0, in the sense of
    `leave_one_out`), linearity in the utility for a fixed key; symmetry and efficiency in
    expectation. Unbiased. Does not hold: split-invariance.

    Args:
        utility: A pure function of participation weights `[A]`.
        weights: The grand coalition's participation weights, `[A]` in [0, 1].
        samples: M, how many coalitions S, at least 1.
        key: A `jax.random.key`; required.
        antithetic: Follow each S by its complement, whose density is 1 - q; M must then be even.
        batch_size: How many coalitions at once; None means 256.

    Returns:
        Credits `[A]`, in the unit of the utility.

    Raises:
        ValueError: If `key` is None, `samples` is less than 1 (or odd with `antithetic`), `weights`
            is not `[A]` in [0, 1], `batch_size` is less than 1, or the utility does not return a
            scalar.

    Source: Owen, "Multilinear extensions of games", Management Science 18 (1972); Okhrati & Lipani,
    "A multilinear sampling algorithm to estimate Shapley values", arXiv:2010.12082.
    """
    weights = participation(weights)
    marginals = _marginals(utility, weights, key, samples, antithetic, batch_size)
    return only_present(jnp.mean(marginals, axis=0), weights)


def multilinear_shapley_with_error(
    utility: Utility,
    weights: jax.typing.ArrayLike,
    *,
    samples: int,
    key: jax.Array | None = None,
    antithetic: bool = False,
    batch_size: int | None = None,
) -> Sampled:
    """Estimate Shapley values as `multilinear_shapley` does, with their standard errors.

    s_i = standard deviation over draws / sqrt(number of draws), where a draw is one coalition, or a
    pair with `antithetic`. The densities are spread evenly, which only lowers the true error: s_i
    is an upper estimate.

    Args:
        utility: A pure function of participation weights `[A]`.
        weights: The grand coalition's participation weights, `[A]` in [0, 1].
        samples: How many coalitions; at least 2 (4 with `antithetic`), or no error is known.
        key: A `jax.random.key`; required.
        antithetic: Follow each coalition by its complement.
        batch_size: How many coalitions at once; None means 256.

    Returns:
        `Sampled(credits, standard_error, evaluations)`; the credits are those of
        `multilinear_shapley` with the same arguments.

    Raises:
        ValueError: As `multilinear_shapley`, and if there are fewer than two draws.
    """
    weights = participation(weights)
    coalitions = 2 if antithetic else 1
    check_count("samples", samples)
    if samples < 2 * coalitions:
        raise ValueError(f"samples is {samples}; a standard error needs at least {2 * coalitions}")
    marginals = _marginals(utility, weights, key, samples, antithetic, batch_size)
    asked = samples * (weights.shape[0] + 1)
    return sampled(marginals, weights, draw_size=coalitions, evaluations=asked)


def _marginals(
    utility: Utility,
    weights: jax.Array,
    key: jax.Array | None,
    samples: int,
    antithetic: bool,
    batch_size: int | None,
) -> jax.Array:
    """Marginal contribution of every agent to every sampled coalition, `[M, A]`."""
    key = check_draws("samples", samples, key, antithetic)
    agents = weights.shape[0]
    inside = _coalitions(key, agents, samples, antithetic)

    def member(sample: jax.Array, turned: jax.Array) -> jax.Array:
        return inside[sample] ^ turned

    values = turned_values(utility, weights, member, samples, batch_size)
    gains = marginal(jnp.broadcast_to(values[:, agents:], inside.shape), values[:, :agents])
    return jnp.where(inside, gains, -gains)


def _coalitions(key: jax.Array, agents: int, samples: int, antithetic: bool) -> jax.Array:
    """Members of every sampled coalition, booleans `[M, A]`."""
    count = samples // 2 if antithetic else samples

    def draw(index: jax.Array) -> jax.Array:
        for_density, for_members = jax.random.split(jax.random.fold_in(key, index))
        density = (index + jax.random.uniform(for_density)) / count
        return jax.random.uniform(for_members, (agents,)) < density

    inside = jax.vmap(draw)(jnp.arange(count))
    if antithetic:
        return jnp.stack([inside, ~inside], axis=1).reshape((samples, agents))
    return inside
