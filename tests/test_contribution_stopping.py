"""Batches until the standard error is small enough: pooling, stopping, honesty."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import games
from vcca_jax import contribution

SAMPLERS = {
    "permutation": functools.partial(contribution.permutation_shapley_with_error, permutations=12),
    "stratified": functools.partial(contribution.stratified_shapley_with_error, evaluations=20),
    "banzhaf": functools.partial(contribution.banzhaf_sampled_with_error, samples=30),
}
WEIGHTS = np.array([1.0, 1.0, 0.0, 1.0, 1.0])
TABLE = np.random.default_rng(0).normal(size=2**5)


@functools.cache
def stopped(name, relative=False, most=40, least=1):
    """For any tolerance and key, compiled once."""
    return jax.jit(
        lambda tolerance, key: contribution.until_precise(
            SAMPLERS[name],
            games.of_table(TABLE),
            WEIGHTS,
            key=key,
            tolerance=tolerance,
            most=most,
            least=least,
            relative=relative,
        )
    )


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_it_pools_the_batches_it_drew(name):
    key = jax.random.key(1)
    with jax.enable_x64(True):
        result = jax.tree.map(np.asarray, stopped(name, most=3, least=3)(1e-9, key))
        batch = jax.jit(lambda key: SAMPLERS[name](games.of_table(TABLE), WEIGHTS, key=key))
        parts = [batch(jax.random.fold_in(key, number)) for number in range(3)]
    assert result.batches == 3
    assert not result.reached
    np.testing.assert_allclose(
        result.sampled.credits, np.mean([part.credits for part in parts], axis=0), atol=1e-12
    )
    within = np.mean([np.square(part.standard_error) for part in parts], axis=0)
    between = np.var([part.credits for part in parts], axis=0, ddof=1)
    expected = np.sqrt(np.maximum(within, between) / 3)
    np.testing.assert_allclose(result.sampled.standard_error, expected, atol=1e-12)
    assert result.sampled.evaluations == sum(int(part.evaluations) for part in parts)
    assert result.sampled.credits[2] == result.sampled.standard_error[2] == 0


def test_a_smaller_tolerance_costs_more_and_the_first_precise_batch_is_the_last():
    key = jax.random.key(0)
    estimate = functools.partial(SAMPLERS["permutation"], games.of_table(TABLE), WEIGHTS)
    with jax.enable_x64(True):
        keys = jax.vmap(lambda number: jax.random.fold_in(key, number))(jnp.arange(40))
        batches = jax.jit(lambda keys: jax.lax.map(lambda key: estimate(key=key), keys))(keys)
        number = np.arange(1, 41)[:, None]
        within = np.cumsum(np.square(batches.standard_error), axis=0) / number
        between = np.array(
            [np.var(batches.credits[:n], axis=0, ddof=int(n > 1)) for n in number[:, 0]]
        )
        errors = np.max(np.sqrt(np.maximum(within, between) / number), axis=1)
        drawn = []
        for tolerance in (0.2, 0.1, 0.07, 1e-4):
            result = jax.tree.map(np.asarray, stopped("permutation")(tolerance, key))
            precise = np.flatnonzero(errors <= tolerance)
            assert result.reached == bool(len(precise))
            assert result.batches == (precise[0] + 1 if len(precise) else 40)
            assert result.sampled.evaluations == result.batches * batches.evaluations[0]
            drawn.append(int(result.batches))
    assert drawn == sorted(drawn)
    assert len(set(drawn)) >= 3
    assert drawn[-1] == 40


def test_relative_tolerance_is_a_part_of_the_spread_of_those_present():
    with jax.enable_x64(True):
        result = jax.tree.map(
            np.asarray, stopped("permutation", relative=True)(0.1, jax.random.key(0))
        )
        there = result.sampled.credits[WEIGHTS > 0]
        limit = 0.1 * (there.max() - there.min())
        assert result.reached
        assert result.sampled.standard_error.max() <= limit
        absolute = stopped("permutation")(limit, jax.random.key(0))
    assert abs(int(absolute.batches) - int(result.batches)) <= 2


def test_reported_errors_are_honest_though_stopping_looked_at_them():
    """Over 300 keys: coverage near the normal's, at most a few percent lost to stopping."""
    seen = TABLE[np.arange(2**5) & ~(1 << 2)]
    truth = games.shapley_by_orders(seen)
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(3), 300)
        run = jax.jit(lambda keys: jax.lax.map(lambda key: stopped("permutation")(0.12, key), keys))
        result = jax.tree.map(np.asarray, run(keys))
    assert np.all(result.reached)
    assert np.ptp(result.batches) > 0
    there = WEIGHTS > 0
    ratio = np.abs(result.sampled.credits - truth)[:, there]
    claimed = result.sampled.standard_error[:, there]
    assert 0.6 <= np.mean(ratio <= claimed) <= 0.76
    assert 0.9 <= np.mean(ratio <= 2 * claimed) <= 0.98


def test_vmap_stops_each_by_itself():
    tolerances = np.array([0.5, 0.12])
    with jax.enable_x64(True):
        together = jax.vmap(stopped("permutation"), in_axes=(0, None))(
            tolerances, jax.random.key(0)
        )
        alone = [stopped("permutation")(tolerance, jax.random.key(0)) for tolerance in tolerances]
    assert together.batches.tolist() == [int(one.batches) for one in alone]
    np.testing.assert_allclose(
        together.sampled.credits, [one.sampled.credits for one in alone], atol=1e-12
    )


@pytest.mark.parametrize("permutations", [2, 4])
def test_draws_that_happen_to_coincide_are_not_taken_for_certainty(permutations):
    """Of gloves, two orders tell the same in half of all batches: no error is seen, and one is."""
    gloves = lambda w: jnp.minimum(w[0] + w[1], w[2])  # noqa: E731
    batch = functools.partial(
        contribution.permutation_shapley_with_error, permutations=permutations
    )
    keys = jax.random.split(jax.random.key(1), 100)
    alone = jax.jit(jax.vmap(lambda key: batch(gloves, jnp.ones(3), key=key)))(keys)
    assert (alone.standard_error.max(axis=1) == 0).any()
    pooled = jax.jit(
        jax.vmap(
            lambda key: contribution.until_precise(
                batch, gloves, jnp.ones(3), key=key, tolerance=0.01, most=30
            )
        )
    )(keys)
    assert not pooled.reached.any()
    assert pooled.batches.min() == 30


def test_a_short_budget_is_all_drawn_and_what_returns_no_error_is_refused():
    with jax.enable_x64(True):  # as all that share the cached programs' arrays
        pooled = stopped("permutation", most=4, least=None)(10.0, jax.random.key(0))
        assert pooled.batches == 4
        assert pooled.reached
        assert stopped("permutation", least=None)(10.0, jax.random.key(0)).batches == 8
    with pytest.raises(ValueError, match=r"returned a .*; pass one that returns Sampled"):
        contribution.until_precise(
            functools.partial(contribution.permutation_shapley, permutations=4),
            jnp.sum,
            jnp.ones(3),
            key=jax.random.key(0),
            tolerance=0.1,
            most=4,
        )


@pytest.mark.parametrize("name", ["stratified", "kernel", "leverage"])
def test_an_exact_sampler_stops_at_once(name):
    """All coalitions in a batch: no error, one batch, in float32 too."""
    result = contribution.until_precise(
        functools.partial(getattr(contribution, f"{name}_shapley_with_error"), evaluations=32),
        games.of_table(TABLE.astype(np.float32)),
        jnp.ones(5),
        key=jax.random.key(0),
        tolerance=1e-5,
        most=9,
    )
    assert result.batches == 1
    assert result.reached


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"key": None}, "key is None"),
        ({"tolerance": 0.0}, r"tolerance is 0.0; pass a positive"),
        ({"tolerance": float("nan")}, r"tolerance is nan; pass a positive"),
        ({"most": 0}, r"most is 0; pass at least 1"),
        ({"most": 2.5}, r"most is 2.5; pass a whole number"),
        ({"least": 5}, r"least is 5 and most is 4"),
        ({"key": 3}, "key is 3"),
    ],
)
def test_bad_input_is_named(options, words):
    given = {"key": jax.random.key(0), "tolerance": 0.1, "most": 4} | options
    with pytest.raises(ValueError, match=words):
        contribution.until_precise(SAMPLERS["permutation"], jnp.sum, jnp.ones(3), **given)
