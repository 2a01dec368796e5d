"""The near-duplicate report finds copies, and copies alone."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vcca_jax.duplicates import near_duplicates, update_cosines

seeds = st.integers(0, 2**31 - 1)


def grams(updates) -> np.ndarray:
    """[R, A, A] of updates [R, A, D]."""
    return np.einsum("rad,rbd->rab", updates, updates).astype(np.float32)


def oracle(updates, centred) -> np.ndarray:
    """The definition, pair by pair, in float64."""
    agents = updates.shape[1]
    sums, counts = np.zeros((2, agents, agents))
    for each in updates:
        part = np.flatnonzero((each != 0).any(axis=1))
        left = each - each[part].mean(axis=0) if centred and len(part) else each
        for i in part:
            for j in part:
                lengths = np.linalg.norm(left[i]) * np.linalg.norm(left[j])
                sums[i, j] += left[i] @ left[j] / lengths
                counts[i, j] += 1
    return sums / np.maximum(counts, 1)


@given(seed=seeds, centred=st.booleans(), agents=st.integers(3, 6))
def test_cosines_are_those_of_the_definition(seed, centred, agents):
    generator = np.random.default_rng(seed)
    updates = generator.normal(size=(4, agents, 9)) + 2 * generator.normal(size=(4, 1, 9))
    updates[1, 0] = 0  # took no part in a round
    got = update_cosines(grams(updates), centred=centred)
    np.testing.assert_allclose(got, oracle(updates, centred), atol=2e-3)


def test_a_copy_is_found_under_a_strong_common_direction():
    generator = np.random.default_rng(0)
    updates = generator.normal(size=(6, 8, 400)) + 10 * generator.normal(size=(6, 1, 400))
    updates[:, 7] = updates[:, 2] + 0.1 * generator.normal(size=(6, 400))
    plain = np.asarray(update_cosines(grams(updates), centred=False))
    assert near_duplicates(plain, 0.9) == [tuple(range(8))]  # all alike, so nothing is told
    centred = np.asarray(update_cosines(grams(updates)))
    assert near_duplicates(centred, 0.9) == [(2, 7)]
    others = centred[~np.eye(8, dtype=bool)].reshape(8, 7)
    assert np.sort(others.ravel())[-3] < 0.2


def test_independent_updates_have_the_stated_expectation():
    updates = np.random.default_rng(1).normal(size=(400, 5, 50))
    cosines = np.asarray(update_cosines(grams(updates)))
    np.testing.assert_allclose(cosines[~np.eye(5, dtype=bool)], -1 / 4, atol=0.03)


def test_agents_without_updates_resemble_nobody():
    updates = np.random.default_rng(2).normal(size=(3, 4, 20))
    updates[:, :2] = 0
    cosines = np.asarray(update_cosines(grams(updates)))
    assert not cosines[:2].any()
    np.testing.assert_allclose(np.diagonal(cosines), [0, 0, 1, 1], rtol=1e-6)
    assert not np.asarray(update_cosines(grams(updates * 0))).any()


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_an_update_that_is_not_finite_hides_nobody(broken):
    """Agent 4 copies agent 0; agent 2 sends what breaks every sum it is part of."""
    updates = np.random.default_rng(5).normal(size=(4, 6, 40))
    updates[:, 4] = updates[:, 0]
    without = np.asarray(update_cosines(grams(updates * (np.arange(6) != 2)[:, None])))
    spoilt = updates.copy()
    spoilt[:, 2, 3] = broken
    cosines = np.asarray(update_cosines(grams(spoilt)))
    others = np.array([0, 1, 3, 4, 5])
    np.testing.assert_array_equal(cosines[np.ix_(others, others)], without[np.ix_(others, others)])
    assert np.isnan(cosines[2]).all()
    assert np.isnan(cosines[:, 2]).all()
    assert near_duplicates(cosines, 0.9) == [(0, 4)]
    # In one round alone, and the others tell; an agent cannot leave the report by breaking a round.
    spoilt = updates.copy()
    spoilt[1, 4, 0] = broken
    once = np.asarray(update_cosines(grams(spoilt)))
    assert np.isfinite(once).all()
    assert near_duplicates(once, 0.9) == [(0, 4)]


def test_scale_and_order_do_not_matter():
    generator = np.random.default_rng(3)
    updates = generator.normal(size=(3, 5, 30))
    order = generator.permutation(5)
    straight = np.asarray(update_cosines(grams(updates)))
    shuffled = np.asarray(update_cosines(grams(updates[:, order])))
    np.testing.assert_allclose(shuffled, straight[np.ix_(order, order)], atol=1e-5)
    np.testing.assert_allclose(update_cosines(grams(3 * updates)), straight, atol=1e-5)


def test_jit_and_vmap_give_the_same():
    updates = np.random.default_rng(4).normal(size=(2, 3, 4, 10))
    each = np.stack([grams(u) for u in updates])
    mapped = jax.jit(jax.vmap(update_cosines))(each)
    np.testing.assert_allclose(mapped[1], update_cosines(each[1]), atol=1e-6)


def test_links_chain_into_groups():
    cosines = np.eye(6)
    for i, j in ((0, 3), (3, 5), (1, 4)):
        cosines[i, j] = cosines[j, i] = 0.95
    assert near_duplicates(cosines, 0.9) == [(0, 3, 5), (1, 4)]
    assert near_duplicates(cosines, 0.96) == []


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: update_cosines(np.eye(3)), "grams has shape"),
        (lambda: near_duplicates(np.ones((2, 3)), 0.5), "cosines has shape"),
        (lambda: near_duplicates(np.eye(2), 1.0), "threshold=1.0"),
    ],
)
def test_bad_arguments_are_named(call, says):
    with pytest.raises(ValueError, match=says):
        call()
