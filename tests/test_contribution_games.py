"""Textbook games through the public estimators: exact to 1e-6, sampled within 3 standard errors."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from tests import games
from vcca_jax import contribution

TEXTBOOK = games.textbook_games()
each_game = pytest.mark.parametrize("game", TEXTBOOK, ids=lambda game: game.name)


@functools.cache
def values_of(name):
    return games.table_of(next(game for game in TEXTBOOK if game.name == name))


@each_game
def test_closed_forms_agree_with_all_orders_of_arrival(game):
    """The closed forms themselves, against an oracle that shares no code with the package."""
    if math.factorial(game.agents) <= 5040:
        orders = games.shapley_by_orders(values_of(game.name))
        np.testing.assert_allclose(orders, game.shapley, rtol=1e-6, atol=1e-7)
    if game.banzhaf is not None:
        even = [0.5 ** (game.agents - 1)] * game.agents
        swings = games.semivalue_by_subsets(values_of(game.name), even)
        np.testing.assert_allclose(swings, game.banzhaf, rtol=1e-6, atol=1e-7)


@each_game
def test_exact_shapley(game):
    credits = jax.jit(functools.partial(contribution.exact_shapley, game.utility))(
        jnp.ones(game.agents)
    )
    np.testing.assert_allclose(credits, game.shapley, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "game", [game for game in TEXTBOOK if game.banzhaf is not None], ids=lambda game: game.name
)
def test_banzhaf(game):
    credits = jax.jit(functools.partial(contribution.banzhaf, game.utility))(jnp.ones(game.agents))
    np.testing.assert_allclose(credits, game.banzhaf, rtol=1e-6, atol=1e-6)


@functools.cache
def semivalues(agents):
    """Banzhaf's and a Beta-Shapley value of any table, compiled once a number of agents."""
    return jax.jit(
        lambda table: (
            contribution.banzhaf(games.of_table(table), jnp.ones(agents)),
            contribution.beta_shapley(games.of_table(table), jnp.ones(agents), alpha=4, beta=1),
        )
    )


@each_game
def test_other_semivalues_of_every_game(game):
    """Also of those whose Banzhaf value has no closed form, and Beta-Shapley of all."""
    agents, table = game.agents, values_of(game.name)
    found = semivalues(agents)(table.astype(np.float32))
    masses = (
        [0.5 ** (agents - 1)] * agents,
        [
            scipy.special.beta(s + 1, agents - s + 3) / scipy.special.beta(4, 1)
            for s in range(agents)
        ],
    )
    for credits, by_size in zip(found, masses, strict=True):
        expected = games.semivalue_by_subsets(table, by_size)
        np.testing.assert_allclose(credits, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["additive", "pairwise"])
def test_expansions_are_exact_in_games_of_their_order(name):
    """The extension of an additive game is linear, that of a pairwise one quadratic: in-run credit
    of order 2 is the Shapley value of both, and one node of Aumann-Shapley is.
    """
    game = next(game for game in TEXTBOOK if game.name == name)
    extended = games.multilinear(values_of(name).astype(np.float32))

    @jax.jit
    def told(weights):
        return {
            "order 2": contribution.in_run(extended, weights, order=2),
            "one node": contribution.aumann_shapley(extended, weights, nodes=1),
            "order 1": contribution.in_run(extended, weights, order=1),
            "influence": contribution.influence(extended, weights),
        }

    credits = told(jnp.ones(game.agents))
    for exact in ("order 2", "one node"):
        np.testing.assert_allclose(credits[exact], game.shapley, atol=1e-6)
    # At nobody and at everybody no pair, and every pair, is seen.
    paired = 0 if name == "additive" else game.shapley
    np.testing.assert_allclose(credits["order 1"], game.shapley - paired, atol=1e-6)
    np.testing.assert_allclose(credits["influence"], game.shapley + paired, atol=1e-6)


def test_security_council():
    """Fifteen agents, 32768 coalitions, against the published indices."""
    game = games.security_council()
    utility, everybody = game.utility, jnp.ones(15)
    shapley = jax.jit(functools.partial(contribution.exact_shapley, utility))(everybody)
    banzhaf = jax.jit(functools.partial(contribution.banzhaf, utility))(everybody)
    np.testing.assert_allclose(shapley, game.shapley, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(banzhaf, game.banzhaf, rtol=1e-5, atol=1e-6)


@each_game
def test_aumann_shapley_of_the_multilinear_extension_is_shapley(game):
    table = jnp.asarray(values_of(game.name), dtype=jnp.float32)
    estimate = jax.jit(
        lambda weights: contribution.aumann_shapley(
            games.multilinear(table), weights, nodes=math.ceil(game.agents / 2)
        )
    )
    np.testing.assert_allclose(estimate(jnp.ones(game.agents)), game.shapley, rtol=1e-6, atol=1e-6)


@each_game
def test_leave_one_out_is_the_marginal_to_the_grand_coalition(game):
    table = values_of(game.name)
    last = len(table) - 1
    marginals = [table[last] - table[last ^ 1 << agent] for agent in range(game.agents)]
    credits = contribution.leave_one_out(game.utility, jnp.ones(game.agents))
    np.testing.assert_allclose(credits, marginals, atol=1e-6)


@functools.cache
def sampler(name, antithetic):
    """A sampled estimator of any table of seven agents, compiled once for all games."""
    estimate = {
        "permutation": functools.partial(
            contribution.permutation_shapley_with_error, permutations=400
        ),
        "multilinear": functools.partial(contribution.multilinear_shapley_with_error, samples=400),
    }[name]
    return jax.jit(
        lambda table, weights: estimate(
            games.of_table(table), weights, antithetic=antithetic, key=jax.random.key(3)
        )
    )


@each_game
@pytest.mark.parametrize("antithetic", [False, True])
@pytest.mark.parametrize("name", ["permutation", "multilinear"])
def test_sampled_shapley_lies_within_three_standard_errors(game, name, antithetic):
    table = values_of(game.name)[np.arange(2**7) % 2**game.agents].astype(np.float32)
    weights = (jnp.arange(7) < game.agents).astype(jnp.float32)
    sampled = jax.tree.map(np.asarray, sampler(name, antithetic)(table, weights))
    error = np.abs(sampled.credits[: game.agents] - game.shapley)
    assert np.all(error <= 3 * sampled.standard_error[: game.agents] + 1e-6)
    # Contributions in [-1, 1], 200 draws or more: a claim of a larger error would be idle.
    assert np.all(sampled.standard_error <= 0.5 / math.sqrt(199))
    assert np.all(sampled.credits[game.agents :] == 0)
    assert np.all(sampled.standard_error[game.agents :] == 0)


@pytest.mark.parametrize("name", ["permutation", "multilinear"])
def test_the_standard_error_is_the_spread_of_repeated_estimates(name):
    size = {"permutation": "permutations", "multilinear": "samples"}[name]
    table = np.random.default_rng(3).normal(size=2**4).astype(np.float32)
    estimate = functools.partial(
        getattr(contribution, f"{name}_shapley_with_error"),
        games.of_table(table),
        jnp.ones(4),
        **{size: 32},
    )
    keys = jax.random.split(jax.random.key(0), 400)
    sampled = jax.jit(lambda keys: jax.lax.map(lambda key: estimate(key=key), keys))(keys)
    spread = np.std(sampled.credits, axis=0, ddof=1)
    claimed = np.sqrt(np.mean(np.square(sampled.standard_error), axis=0))
    # 400 repetitions know a spread to 3.5 %; multilinear claims an upper estimate.
    assert np.all(spread <= 1.12 * claimed)
    if name == "permutation":
        assert np.all(spread >= 0.88 * claimed)
    bias = np.abs(np.mean(sampled.credits, axis=0) - games.shapley_by_orders(table))
    assert np.all(bias <= 4 * spread / math.sqrt(400))


@pytest.mark.parametrize("name", ["permutation", "multilinear"])
def test_antithetic_draws_are_exact_on_pairwise_games(name):
    """Whoever does not come before comes after: each pair gives half of every edge."""
    game = next(game for game in TEXTBOOK if game.name == "pairwise")
    size = {"permutation": "permutations", "multilinear": "samples"}[name]
    estimate = functools.partial(
        getattr(contribution, f"{name}_shapley_with_error"),
        game.utility,
        jnp.ones(4),
        **{size: 8},
        key=jax.random.key(0),
    )
    paired = jax.jit(functools.partial(estimate, antithetic=True))()
    np.testing.assert_allclose(paired.credits, game.shapley, atol=1e-6)
    np.testing.assert_allclose(paired.standard_error, 0.0, atol=1e-6)
    assert np.all(np.asarray(jax.jit(estimate)().standard_error) > 0.01)


@pytest.mark.parametrize(("alpha", "beta"), [(1, 1), (16, 1), (1, 4), (0.5, 2.5)])
def test_beta_shapley_weighs_sizes_by_the_beta_function(alpha, beta):
    table = np.random.default_rng(0).normal(size=2**5)
    by_size = [
        scipy.special.beta(size + beta, 4 - size + alpha) / scipy.special.beta(alpha, beta)
        for size in range(5)
    ]
    utility = games.of_table(table.astype(np.float32))
    estimate = functools.partial(contribution.beta_shapley, utility, alpha=alpha, beta=beta)
    credits = jax.jit(estimate)(jnp.ones(5))
    expected = games.semivalue_by_subsets(table, by_size)
    np.testing.assert_allclose(credits, expected, rtol=1e-5, atol=1e-6)


def test_any_game_in_double_precision():
    table = np.random.default_rng(1).normal(size=2**6)
    coalitional, smooth = games.of_table(table), games.multilinear(table)
    with jax.enable_x64(True):
        shapley, beta, diagonal = jax.jit(
            lambda weights: (
                contribution.exact_shapley(coalitional, weights),
                contribution.beta_shapley(coalitional, weights, alpha=1, beta=1),
                contribution.aumann_shapley(smooth, weights, nodes=3),
            )
        )(jnp.ones(6))
    expected = games.shapley_by_orders(table)
    for credits in (shapley, diagonal, beta):
        np.testing.assert_allclose(credits, expected, rtol=1e-12, atol=1e-12)


def test_padding_changes_no_semivalue():
    """All three families are consistent: absent agents leave the others' values alone."""
    table = np.random.default_rng(2).normal(size=2**4).astype(np.float32)
    small = games.of_table(table)
    present = np.array([1, 2, 4, 6])

    def padded(w):
        return small(w[present])

    weights = jnp.zeros(7).at[present].set(1.0)
    for estimate in (
        contribution.exact_shapley,
        contribution.banzhaf,
        functools.partial(contribution.beta_shapley, alpha=4, beta=1),
    ):
        wide = jax.jit(functools.partial(estimate, padded))(weights)
        narrow = jax.jit(functools.partial(estimate, small))(jnp.ones(4))
        np.testing.assert_allclose(wide[present], narrow, rtol=1e-5, atol=1e-6)
        assert np.all(np.asarray(wide)[[0, 3, 5]] == 0)
