"""Truncated permutations: what they save, what they give up, and that batches change nothing."""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import games
from tests.estimators import VARIANTS
from vcca_jax import contribution

KEY = jax.random.key(1)
AIRPORT = games.airport([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 0.9, 1.0])
with_error = functools.partial(contribution.permutation_shapley_with_error, key=KEY)


def by_hand(table, permutations, antithetic, truncation):
    """Credits, and evaluations, one order after another and without any of the package's code."""
    agents = int(np.log2(len(table)))
    total, asked, everybody = np.zeros(agents), 2, table[-1]
    for number in range(permutations // 2 if antithetic else permutations):
        position = np.asarray(jax.random.permutation(jax.random.fold_in(KEY, number), agents))
        for places in [position, agents - 1 - position] if antithetic else [position]:
            left, code = table[0], 0
            for length, agent in enumerate(np.argsort(places), start=1):
                code |= 1 << agent
                asked += length < agents
                total[agent] += table[code] - left
                left = table[code]
                cut = abs(everybody - left) <= truncation * abs(everybody - table[0])
                if cut and length < agents - 1:
                    break
    return total / permutations, asked


@functools.cache
def compiled(batch_size, antithetic):
    """For any table of five agents and any tolerance."""
    return jax.jit(
        lambda table, truncation: with_error(
            games.of_table(table),
            jnp.ones(5),
            permutations=8,
            antithetic=antithetic,
            truncation=truncation,
            batch_size=batch_size,
        )
    )


@pytest.mark.parametrize("antithetic", [False, True])
@pytest.mark.parametrize("batch_size", [None, 1, 2, 3, 8])
def test_it_is_the_sequential_rule_whatever_the_batch(batch_size, antithetic):
    """Each order by itself: credits, and evaluations too."""
    table = np.random.default_rng(5).uniform(size=2**5).astype(np.float32)
    table[-1] = 0.9
    counts = []
    for truncation in (0.0, 0.1, 0.4, 0.8):
        credits, asked = by_hand(table, 8, antithetic, truncation)
        found = compiled(batch_size, antithetic)(table, truncation)
        np.testing.assert_allclose(found.credits, credits, atol=1e-6)
        assert found.evaluations == asked
        counts.append(asked)
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] < counts[1] < counts[0] == 8 * 4 + 2


def test_without_equal_values_a_tolerance_of_zero_is_no_truncation():
    table = np.random.default_rng(6).normal(size=2**6).astype(np.float32)
    estimate = functools.partial(
        with_error, games.of_table(table), jnp.ones(6), permutations=20, antithetic=True
    )
    plain, truncated = jax.jit(estimate)(), jax.jit(functools.partial(estimate, truncation=0))()
    for found, expected in zip(truncated, plain, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
    assert plain.evaluations == 20 * 5 + 2


@pytest.mark.parametrize("batch_size", [1, 4, None])
def test_a_saturating_game_costs_less_and_what_is_counted_is_what_ran(batch_size):
    """A monotone game loses nothing at a tolerance of 0: once the largest has landed, all is
    built."""
    seen = collections.Counter()

    def utility(w):
        jax.debug.callback(lambda w: seen.update([tuple(np.asarray(w).tolist())]), w)
        return AIRPORT.utility(w)

    estimate = functools.partial(with_error, weights=jnp.ones(9), permutations=40)
    plain = jax.jit(functools.partial(estimate, AIRPORT.utility))()
    found = jax.jit(functools.partial(estimate, utility, truncation=0.0, batch_size=batch_size))()
    jax.block_until_ready(found)
    jax.effects_barrier()
    np.testing.assert_allclose(found.credits, plain.credits, atol=1e-6)
    np.testing.assert_allclose(found.standard_error, plain.standard_error, atol=1e-6)
    # The largest lands fifth of nine on average.
    assert found.evaluations < 0.7 * plain.evaluations
    ran = sum(seen.values())
    if batch_size is None:  # all orders at once: as many turns as the longest has
        assert ran > found.evaluations
    else:  # what is beyond are the first turn and slots without an order at the end
        assert found.evaluations <= ran <= found.evaluations + 9 * max(2, batch_size)
        assert ran < plain.evaluations


@pytest.mark.parametrize("truncation", [0.15, 0.3, 0.6])
def test_what_is_cut_is_given_to_nobody_up_to_the_tolerance(truncation):
    """Efficiency is lost to late comers, by no more than the tolerance."""
    estimate = jax.jit(
        functools.partial(with_error, AIRPORT.utility, jnp.ones(9), permutations=400)
    )
    cut = jax.jit(
        functools.partial(
            with_error, AIRPORT.utility, jnp.ones(9), permutations=400, truncation=truncation
        )
    )()
    gap = contribution.efficiency_gap(AIRPORT.utility, jnp.ones(9), cut.credits)
    assert 0 < gap <= truncation
    lost = np.asarray(estimate().credits - cut.credits)
    # Nobody gains in a monotone game; only the largest adds to nearly everything.
    assert np.all(lost >= -1e-6)
    assert np.argmax(lost) == 8
    assert gap == pytest.approx(lost.sum(), abs=1e-5)


def test_a_game_that_passes_its_own_end_is_misjudged():
    """The first alone is worth what all are; the second adds 5 to it, the third takes them."""

    def utility(w):
        first, second, third = games.inside(w)
        return jnp.where(first, 1.0 + jnp.where(second, jnp.where(third, 0.0, 5.0), 0.0), 0.0)

    estimate = functools.partial(
        contribution.permutation_shapley, utility, jnp.ones(3), permutations=600, key=KEY
    )
    whole, cut = jax.jit(estimate)(), jax.jit(functools.partial(estimate, truncation=0.01))()
    assert np.all(np.abs(np.asarray(whole - cut))[1:] > 0.5)


def test_scaling_the_utility_scales_the_credits():
    """The tolerance is relative."""
    table = np.random.default_rng(7).uniform(size=2**5).astype(np.float32)
    once = compiled(None, False)(table, 0.4)
    often = compiled(None, False)(-8 * table, 0.4)
    np.testing.assert_allclose(often.credits, -8 * once.credits, rtol=1e-6, atol=1e-6)
    assert often.evaluations == once.evaluations < 8 * 4 + 2


def test_vmap_counts_for_each_by_itself():
    tables = np.random.default_rng(8).uniform(size=(3, 2**5)).astype(np.float32)
    together = jax.vmap(compiled(2, True), in_axes=(0, None))(tables, 0.4)
    for row, table in enumerate(tables):
        alone = compiled(2, True)(table, 0.4)
        np.testing.assert_allclose(together.credits[row], alone.credits, atol=1e-6)
        assert together.evaluations[row] == alone.evaluations
    assert len(set(together.evaluations.tolist())) > 1


@pytest.mark.parametrize("agents", [1, 2, 3])
def test_few_agents(agents):
    """Of two, the last is never cut; of three, the middle one ends an order."""
    utility = games.unanimity(agents, [0]).utility
    found = with_error(utility, jnp.ones(agents), permutations=4, truncation=0.5)
    np.testing.assert_allclose(found.credits, [1.0] + [0.0] * (agents - 1), atol=1e-6)
    if agents < 3:
        assert found.evaluations == 4 * (agents - 1) + 2
    else:
        assert 6 <= found.evaluations < 10


def test_double_precision_and_a_null_agent_first_or_last():
    with jax.enable_x64(True):
        table = np.random.default_rng(9).uniform(size=2**5)
        table = table[np.arange(2**5) & ~2]
        found = jax.tree.map(np.asarray, compiled(3, True)(table, 0.1))
        credits, asked = by_hand(table, 8, True, 0.1)
        np.testing.assert_allclose(found.credits, credits, atol=1e-14)
    assert found.credits.dtype == np.float64
    assert found.evaluations == asked
    assert found.credits[1] == found.standard_error[1] == 0


@pytest.mark.parametrize("truncation", [-0.1, 1.0, float("nan")])
def test_a_tolerance_out_of_range_is_named(truncation):
    with pytest.raises(ValueError, match=r"truncation is .*; pass a share"):
        with_error(jnp.sum, jnp.ones(3), permutations=4, truncation=truncation)


def test_the_variant_among_the_laws_does_truncate():
    """Or else its laws would say nothing."""
    (variant,) = VARIANTS.values()
    options = {**variant.estimate.keywords, "truncation": None}
    differ = 0
    for seed in range(8):
        parts = jnp.asarray(np.random.default_rng(seed).normal(0.1, 0.4, (5, 3)), jnp.float32)
        both = (variant.estimate, functools.partial(contribution.permutation_shapley, **options))
        cut, whole = (estimate(games.learning(parts), jnp.ones(5)) for estimate in both)
        differ += bool(np.any(np.abs(np.asarray(cut - whole)) > 1e-3))
    assert differ >= 4
