"""Coalitions of prescribed sizes, stratified Shapley and sampled Banzhaf, which reuse them all."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import games
from tests.estimators import EVERY, REUSING
from vcca_jax import contribution
from vcca_jax.contribution.coalition_sizes import (
    coalitions_of_rank,
    draw_coalitions,
    share_out,
    strata,
)

TEXTBOOK = games.textbook_games()
WITH_ERROR = {
    "stratified": functools.partial(contribution.stratified_shapley_with_error, evaluations=60),
    "banzhaf": functools.partial(contribution.banzhaf_sampled_with_error, samples=120),
    "banzhaf_antithetic": functools.partial(
        contribution.banzhaf_sampled_with_error, samples=120, antithetic=True
    ),
}
each = pytest.mark.parametrize("name", sorted(WITH_ERROR))


@functools.cache
def on_seven(name):
    """A sampler on any table of seven agents and any weights, compiled once for all games."""
    return jax.jit(
        lambda table, weights, key: WITH_ERROR[name](games.of_table(table), weights, key=key)
    )


@functools.cache
def repeated(name):
    """The same over many keys at once."""
    return jax.jit(
        lambda table, weights, keys: jax.lax.map(
            lambda key: WITH_ERROR[name](games.of_table(table), weights, key=key), keys
        )
    )


def truth(name, table):
    by_size = {
        "stratified": [1 / (7 * math.comb(6, size)) for size in range(7)],
    }.get(name, [0.5**6] * 7)
    return games.semivalue_by_subsets(table, by_size)


def padded(game):
    """A textbook game among seven agents, of which the last are absent."""
    table = games.table_of(game)[np.arange(2**7) % 2**game.agents]
    return table, (np.arange(7) < game.agents).astype(float)


def graded(agents=7, noise=0.3):
    """Worths that saturate, and noise on every coalition."""
    members = (np.arange(2**agents)[:, None] >> np.arange(agents)) & 1
    own = np.linspace(0, 1, agents)
    rough = np.random.default_rng(0).normal(0, noise, 2**agents)
    return np.sqrt(members @ own) + rough


@each
@pytest.mark.slow
@pytest.mark.parametrize("game", TEXTBOOK, ids=lambda game: game.name)
def test_textbook_games_lie_within_the_standard_errors(name, game):
    table, weights = padded(game)
    with jax.enable_x64(True):
        sampled = jax.tree.map(np.asarray, on_seven(name)(table, weights, jax.random.key(3)))
    error = np.abs(sampled.credits - truth(name, table))
    # 4 of them: some thirty independent numbers a sampler are looked at.
    assert np.all(error <= 4 * sampled.standard_error + 1e-6)
    assert np.all(sampled.standard_error <= 0.2)
    assert np.all(sampled.credits[game.agents :] == 0)
    assert np.all(sampled.standard_error[game.agents :] == 0)
    if name == "stratified":
        gain = table[-1] - table[0]
        np.testing.assert_allclose(np.sum(sampled.credits), gain, atol=1e-12)


@each
def test_it_is_unbiased_and_its_standard_errors_are_honest(name):
    """Over 400 keys, with two agents absent; without replacement in part, or the mean would lie
    three times the tolerance off where one drawn coalition forgot the others."""
    table = graded()
    weights = np.ones(7)
    weights[[2, 5]] = 0.0
    # Absent agents are null agents of the game that remains.
    seen = table[np.arange(2**7) & ~(1 << 2 | 1 << 5)]
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(0), 400)
        sampled = jax.tree.map(np.asarray, repeated(name)(table, weights, keys))
    there = weights > 0
    error = (sampled.credits - truth(name, seen))[:, there]
    claimed = sampled.standard_error[:, there]
    spread = np.std(error, axis=0, ddof=1)
    assert np.all(np.abs(np.mean(error, axis=0)) <= 4 * spread / 20)
    assert np.all(np.abs(spread / np.sqrt(np.mean(claimed**2, axis=0)) - 1) <= 0.2)
    assert 0.62 <= np.mean(np.abs(error) <= claimed) <= 0.75
    assert 0.92 <= np.mean(np.abs(error) <= 2 * claimed) <= 0.98


@pytest.mark.parametrize("evaluations", [24, 60, 126])
def test_any_fraction_of_the_coalitions_leaves_it_unbiased(evaluations):
    """Two of each size, half, all but two: the finite populations are allowed for."""
    table = graded(noise=1.0)
    estimate = functools.partial(
        contribution.stratified_shapley, games.of_table(table), evaluations=evaluations
    )
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(1), 600)
        credits = jax.jit(
            lambda keys: jax.lax.map(lambda key: estimate(jnp.ones(7), key=key), keys)
        )(keys)
    error = np.asarray(credits) - truth("stratified", table)
    assert np.all(np.std(error, axis=0) > 1e-6)
    assert np.all(np.abs(np.mean(error, axis=0)) <= 4 * np.std(error, axis=0) / math.sqrt(600))


def test_all_coalitions_give_the_exact_value():
    table = np.random.default_rng(1).normal(size=2**5)
    estimate = functools.partial(
        contribution.stratified_shapley_with_error, games.of_table(table), key=jax.random.key(0)
    )
    with jax.enable_x64(True):
        sampled = jax.jit(functools.partial(estimate, evaluations=50))(jnp.ones(5))
        sampled = jax.tree.map(np.asarray, sampled)
    np.testing.assert_allclose(sampled.credits, games.shapley_by_orders(table), atol=1e-12)
    np.testing.assert_allclose(sampled.standard_error, 0.0, atol=1e-12)
    assert sampled.evaluations == 2**5


def test_the_model_leaves_less_to_average_than_plain_means():
    """Means of v z alone, at these counts, err by 0.58 of the credits, with the model by 0.025."""
    table = graded(noise=0.02)
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(2), 400)
        credits = np.asarray(repeated("stratified")(table, np.ones(7), keys).credits)
    error = np.linalg.norm(credits - truth("stratified", table), axis=1)
    assert np.mean(error) < 0.05 * np.linalg.norm(truth("stratified", table))


@pytest.mark.parametrize("samples", [4, 6, 16])
@pytest.mark.parametrize("game", ["additive", "middle"])
def test_the_forced_pair_is_in_the_error_of_banzhafs_means(samples, game):
    """Squared errors are right on average over keys, so that pooled ones are, at any number.

    In an additive game a coalition and its complement vary against each other, in a game of the
    distance from the middle together. At 4 draws one side often has a single one: an upper bound.
    """
    utility = {
        "additive": lambda w: w @ jnp.array([1.0, 2.0, 3.0, 4.0]),
        "middle": lambda w: (jnp.sum(w) - 2) ** 2 + w[0],
    }[game]
    estimate = functools.partial(
        contribution.banzhaf_sampled_with_error, utility, jnp.ones(4), samples=samples
    )
    keys = jax.random.split(jax.random.key(1), 20000)
    told = jax.jit(jax.vmap(lambda key: estimate(key=key)))(keys)
    reported = np.sqrt(np.mean(np.square(told.standard_error), axis=0))
    ratio = reported / np.std(told.credits, axis=0)
    assert np.all(ratio > 0.975)
    if game == "additive" or samples == 16:
        assert np.all(ratio < 1.03)


def test_the_large_constant_of_a_utility_costs_no_precision():
    table = graded().astype(np.float32)
    plain = on_seven("stratified")(table, np.ones(7, np.float32), jax.random.key(0))
    lifted = on_seven("stratified")(table + 64, np.ones(7, np.float32), jax.random.key(0))
    np.testing.assert_allclose(plain.credits, lifted.credits, atol=3e-5)


@pytest.mark.parametrize("name", sorted(REUSING))
def test_linearity_for_a_fixed_key(name):
    """The law of the other estimators, for those that reuse coalitions."""
    first, second = np.random.default_rng(3).normal(size=(2, 2**5))
    with jax.enable_x64(True):
        credits = jax.jit(lambda table: EVERY[name].estimate(games.of_table(table), jnp.ones(5)))
        together = np.asarray(credits(first - 0.7 * second))
        apart = np.asarray(credits(first)) - 0.7 * np.asarray(credits(second))
    np.testing.assert_allclose(together, apart, atol=1e-12)


@pytest.mark.parametrize("name", [name for name in sorted(REUSING) if REUSING[name].efficient])
def test_efficiency_with_absent_agents_and_agents_in_part(name):
    parts = jax.random.normal(jax.random.key(4), (5, 3))
    weights = np.array([1.0, 0.0, 0.3, 1.0, 1.0])
    with jax.enable_x64(True):
        utility = games.learning(parts.astype(jnp.float64))
        credits = jax.jit(functools.partial(EVERY[name].estimate, utility))(weights)
        gap = contribution.efficiency_gap(utility, weights, credits)
    assert abs(float(gap)) < 1e-12


def test_what_claims_no_efficiency_has_none():
    parts = jax.random.normal(jax.random.key(4), (5, 3))
    utility = games.learning(parts)
    credits = EVERY["banzhaf_sampled"].estimate(utility, jnp.ones(5))
    assert abs(float(contribution.efficiency_gap(utility, jnp.ones(5), credits))) > 1e-2


@pytest.mark.parametrize("agents", [1, 4, 6])
def test_ranks_number_all_coalitions_of_a_size_in_order(agents):
    for size in range(agents + 1):
        count = math.comb(agents, size)
        members = coalitions_of_rank(jnp.arange(count), jnp.full(count, size), agents)
        codes = np.asarray(members) @ (2 ** np.arange(agents))
        assert np.all(np.sum(members, axis=1) == size)
        assert np.all(np.diff(codes) > 0)


def test_drawn_coalitions_have_their_sizes_and_are_uniform():
    """Without replacement (6 of 10, 5 of 5) and with it (1 of 20 is scarce, of 10,000 not)."""
    drawn = strata([1, 2], [5, 6], [5, 10])
    draw = jax.jit(jax.vmap(lambda key: draw_coalitions(key, 5, drawn)))
    members = np.asarray(draw(jax.random.split(jax.random.key(0), 500)))
    assert np.all(members.sum(axis=2) == [1] * 5 + [2] * 6)
    codes = members @ (2 ** np.arange(5))
    assert all(len(set(row)) == 11 for row in codes.tolist())
    # Each of the ten pairs in 6/10 of the draws, give or take four standard deviations.
    counts = np.bincount(codes[:, 5:].ravel(), minlength=32)
    pairs = [code for code in range(32) if code.bit_count() == 2]
    assert np.all(np.abs(counts[pairs] - 300) <= 4 * math.sqrt(500 * 0.24))

    many = strata([3, 20, 1], [4, 2000, 2], [4060, math.comb(30, 20), 30])
    assert np.isinf(many.totals).tolist() == [True, True, False]
    members = np.asarray(jax.jit(lambda key: draw_coalitions(key, 30, many))(jax.random.key(1)))
    assert members.sum(axis=1).tolist() == [3] * 4 + [20] * 2000 + [1] * 2
    share = members[4:2004].mean(axis=0)
    assert np.all(np.abs(share - 2 / 3) <= 4 * math.sqrt(2 / 9 / 2000))


def test_a_budget_is_shared_out_within_bounds():
    assert share_out(10, [1.0, 1.0], [100, 100], least=2) == [5, 5]
    assert share_out(10, [3.0, 1.0, 1.0], [3, 100, 100], least=2) == [3, 4, 3]
    assert share_out(9, [5.0, 1.0], [100, 100], least=4) == [5, 4]
    assert share_out(1000, [1.0, 2.0], [7, 3], least=2) == [7, 3]
    assert share_out(5, [], [], least=2) == []


def test_two_samples_are_enough_for_both_means():
    """Even where chance would put an agent into all coalitions, or none."""
    estimate = functools.partial(
        contribution.banzhaf_sampled, lambda w: w[0] + 2 * w[1], jnp.ones(3), samples=2
    )
    credits = jax.jit(jax.vmap(lambda key: estimate(key=key)))(
        jax.random.split(jax.random.key(0), 32)
    )
    np.testing.assert_array_equal(np.isin(np.abs(credits), [1, 3]), True)


def test_bad_budgets_are_named():
    estimate = functools.partial(
        contribution.stratified_shapley, jnp.sum, jnp.ones(5), key=jax.random.key(0)
    )
    with pytest.raises(ValueError, match=r"evaluations is 15; pass at least 16"):
        estimate(evaluations=15)
    banzhaf = functools.partial(jnp.sum, axis=0)
    for bad, words in ((1, "both means"), (0, "at least 1")):
        with pytest.raises(ValueError, match=f"samples is {bad}; pass at least .*{words}|at least"):
            contribution.banzhaf_sampled(banzhaf, jnp.ones(3), samples=bad, key=jax.random.key(0))
    with pytest.raises(ValueError, match=r"samples is 3; pass at least 4, a standard error"):
        contribution.banzhaf_sampled_with_error(
            banzhaf, jnp.ones(3), samples=3, key=jax.random.key(0)
        )
