"""Semivalues of any measure of sizes: closed forms, oracles, and the sampler's honesty."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import games
from vcca_jax import contribution
from vcca_jax.contribution import beta_sizes, binomial_sizes, semivalue, semivalue_sampled
from vcca_jax.contribution.size_measures import sizes_for

MEASURES = {
    "shapley": beta_sizes(1.0, 1.0),
    "beta": beta_sizes(4.0, 1.5),
    "banzhaf": binomial_sizes(0.5),
    "weighted": binomial_sizes(0.8),
    "last": lambda agents: np.eye(agents)[-1],
    "own": lambda agents: np.arange(1, agents + 1) ** 2 / np.sum(np.arange(1, agents + 1) ** 2),
}
NAMED = {
    "shapley": contribution.exact_shapley,
    "beta": functools.partial(contribution.beta_shapley, alpha=4.0, beta=1.5),
    "banzhaf": contribution.banzhaf,
    "last": contribution.leave_one_out,
}
TABLE = np.random.default_rng(0).normal(size=2**6)


def by_oracle(table, measure):
    agents = int(np.log2(len(table)))
    counts = [np.prod(np.arange(s + 1, agents)) for s in range(agents)]
    counts = [c / np.prod(np.arange(1, agents - s)) for s, c in enumerate(counts)]
    masses = [q / c for q, c in zip(measure(agents), counts, strict=True)]
    return games.semivalue_by_subsets(table, masses)


@pytest.mark.parametrize("name", sorted(MEASURES))
def test_the_exact_form_is_the_sum_over_subsets_and_that_of_its_name(name):
    with jax.enable_x64(True):
        credit = jax.jit(
            lambda table: semivalue(games.of_table(table), jnp.ones(6), by_size=MEASURES[name])
        )
        credits = np.asarray(credit(TABLE))
        np.testing.assert_allclose(credits, by_oracle(TABLE, MEASURES[name]), atol=1e-12)
        if name in NAMED:
            named = jax.jit(lambda table: NAMED[name](games.of_table(table), jnp.ones(6)))(TABLE)
            np.testing.assert_allclose(credits, named, atol=1e-12)


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_textbook_games_under_the_weighted_banzhaf_value(probability):
    """Joined by each other with p: of t carriers all t - 1, of gloves some right one."""
    p = probability
    with jax.enable_x64(True):
        estimate = functools.partial(semivalue, by_size=binomial_sizes(p))
        carriers = estimate(games.unanimity(6, [0, 2, 5]).utility, jnp.ones(6))
        gloves = estimate(games.gloves(3).utility, jnp.ones(4))
        additive = games.additive([0.3, 0.2, -0.1, 0.0])
        np.testing.assert_allclose(estimate(additive.utility, jnp.ones(4)), additive.shapley)
    np.testing.assert_allclose(carriers, np.array([1, 0, 1, 0, 0, 1]) * p**2, atol=1e-12)
    right = p * (1 - p) ** 2
    np.testing.assert_allclose(gloves, [1 - (1 - p) ** 3, right, right, right], atol=1e-12)


@pytest.mark.parametrize("made", [beta_sizes(16.0, 1.0), beta_sizes(0.1, 0.7), binomial_sizes(0.1)])
def test_measures_are_probabilities_for_any_number_of_agents(made):
    """Long products of integers neither overflow nor round: hundreds of agents are no trouble."""
    for agents in (1, 2, 7, 400):
        sizes = sizes_for(made, agents)
        assert abs(sizes.sum() - 1) < 1e-12
    # From one agent fewer: the measure of all sizes that remain when a stranger is left out.
    large, small = sizes_for(made, 9), sizes_for(made, 8)
    places = np.arange(8)
    np.testing.assert_allclose(
        large[:-1] * (8 - places) / 8 + large[1:] * (places + 1) / 8, small, rtol=1e-12
    )


@functools.cache
def repeated(name, samples):
    estimate = functools.partial(
        contribution.semivalue_sampled_with_error, by_size=MEASURES[name], samples=samples
    )
    return jax.jit(
        lambda table, weights, keys: jax.lax.map(
            lambda key: estimate(games.of_table(table), weights, key=key), keys
        )
    )


@pytest.mark.parametrize("name", sorted(MEASURES))
def test_the_sampled_form_is_unbiased_and_its_error_an_upper_one(name):
    keys = jax.random.split(jax.random.key(2), 1500)
    with jax.enable_x64(True):
        told = jax.tree.map(np.asarray, repeated(name, 8)(TABLE, jnp.ones(6), keys))
    error = told.credits - by_oracle(TABLE, MEASURES[name])
    spread = np.std(error, axis=0, ddof=1)
    assert np.all(np.abs(error.mean(axis=0)) <= 4 * spread / np.sqrt(len(keys)) + 1e-12)
    claimed = np.sqrt(np.mean(told.standard_error**2, axis=0))
    assert np.all(claimed >= 0.97 * spread)
    assert np.all(claimed <= 1.7 * spread + 1e-12)
    assert np.all(told.evaluations == 8 * 7)


def test_of_many_samples_the_error_is_told_nearly():
    """A measure in eighths of six sizes; in sixty-fourths its steps hardly count."""
    keys = jax.random.split(jax.random.key(4), 600)
    with jax.enable_x64(True):
        told = jax.tree.map(np.asarray, repeated("own", 64)(TABLE, jnp.ones(6), keys))
    claimed = np.sqrt(np.mean(told.standard_error**2, axis=0))
    ratio = claimed / np.std(told.credits, axis=0, ddof=1)
    assert np.all((ratio > 0.92) & (ratio < 1.2))


def test_absent_agents_change_nobodys_credit_in_expectation_and_get_nothing():
    weights = jnp.array([1.0, 0.0, 1.0, 1.0, 0.0, 1.0])
    seen = TABLE[[sum(1 << [0, 2, 3, 5][i] for i in range(4) if c >> i & 1) for c in range(16)]]
    keys = jax.random.split(jax.random.key(3), 1500)
    with jax.enable_x64(True):
        told = np.asarray(repeated("beta", 8)(TABLE, weights, keys).credits)
    assert np.all(told[:, [1, 4]] == 0)
    error = told[:, [0, 2, 3, 5]] - by_oracle(seen, MEASURES["beta"])
    limit = 4 * np.std(error, axis=0) / np.sqrt(len(keys))
    assert np.all(np.abs(error.mean(axis=0)) <= limit)


def test_many_agents_of_a_symmetric_game_get_its_closed_form():
    """Sixty agents, three times what could be enumerated: v = sqrt(|S|)."""
    sizes = sizes_for(MEASURES["beta"], 60)
    worth = sizes @ np.diff(np.sqrt(np.arange(61)))
    told = jax.jit(
        lambda key: contribution.semivalue_sampled_with_error(
            lambda w: jnp.sqrt(jnp.sum(w)),
            jnp.ones(60),
            by_size=MEASURES["beta"],
            samples=400,
            key=key,
        )
    )(jax.random.key(0))
    # What every agent gets depends on the size alone, whose draws are spread evenly.
    assert np.ptp(told.credits) < 1e-5
    assert abs(told.credits[0] - worth) < 3 * told.standard_error[0]
    assert told.standard_error[0] < 0.02 * worth


def test_sizes_of_no_probability_are_never_joined():
    table = TABLE.copy()
    for code in range(64):
        if code.bit_count() not in (2, 3):
            table[code] = np.nan
    only = [0.0, 0.0, 1.0, 0.0, 0.0, 0.0]
    estimate = jax.jit(
        lambda key: semivalue_sampled(
            games.of_table(table), jnp.ones(6), by_size=only, samples=300, key=key
        )
    )
    assert np.isfinite(estimate(jax.random.key(0))).all()


@pytest.mark.parametrize(
    ("by_size", "words"),
    [
        ([0.5, 0.5], r"by_size has shape \(2,\) for 3 agents; give the probability"),
        ([0.5, 0.6, 0.1], "sums to 1.2"),
        ([1.5, -0.5, 0.0], "not all >= 0"),
        ([np.nan, 0.5, 0.5], "sums to nan"),
        (lambda agents: np.ones(2) / 2, "for 3 agents"),
    ],
)
def test_what_is_no_measure_of_sizes_is_refused(by_size, words):
    for estimate in (semivalue, functools.partial(semivalue_sampled, samples=4)):
        with pytest.raises(ValueError, match=words):
            estimate(jnp.sum, jnp.ones(3), by_size=by_size, key=jax.random.key(0))


def test_bad_arguments_are_named():
    for call, words in (
        (lambda: beta_sizes(0.0, 1.0), "alpha is 0.0"),
        (lambda: beta_sizes(1.0, float("inf")), "beta is inf"),
        (lambda: binomial_sizes(1.5), "probability is 1.5"),
        (lambda: binomial_sizes(float("nan")), "probability is nan"),
        (
            lambda: contribution.semivalue_sampled_with_error(
                jnp.sum, jnp.ones(3), by_size=MEASURES["beta"], samples=1, key=jax.random.key(0)
            ),
            "samples is 1; a standard error needs at least 2",
        ),
    ):
        with pytest.raises(ValueError, match=words):
            call()
    with pytest.raises(ValueError, match="by_size is traced"):
        jax.jit(lambda sizes: semivalue(jnp.sum, jnp.ones(3), by_size=sizes))(jnp.ones(3) / 3)
