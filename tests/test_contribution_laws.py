"""The axioms, for every public estimator whose docstring claims them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.compiling import optimized
from tests.estimators import ESTIMATORS, VARIANTS, those
from tests.games import learning, multilinear, of_table
from vcca_jax import contribution
from vcca_jax.contribution.coalitions import marginal

LAWFUL = ESTIMATORS | VARIANTS
each = pytest.mark.parametrize("name", sorted(LAWFUL))
AGENTS, SIZE = 5, 3
seeds = st.integers(0, 2**16)


@functools.cache
def on_learning(name, **options):
    """Credits in the learning game, compiled once for all parts and weights of one shape."""
    estimate = functools.partial(LAWFUL[name].estimate, **options)
    return optimized(lambda parts, weights: estimate(learning(parts), weights))


@functools.cache
def on_tables(name):
    """Credits in a game of random values; its multilinear extension for those that need slopes."""
    claims = LAWFUL[name]
    game = multilinear if claims.differentiates else of_table
    return jax.jit(lambda table, weights: claims.estimate(game(table), weights))


def drawn_parts(seed, agents=AGENTS):
    return jnp.asarray(np.random.default_rng(seed).normal(0.1, 0.4, (agents, SIZE)), jnp.float32)


def drawn_weights(seed):
    """Some absent, some in part, at least one present."""
    draw = np.random.default_rng(seed + 1)
    weights = draw.choice([0.0, 0.3, 1.0, 1.0], size=AGENTS)
    weights[draw.integers(AGENTS)] = 1.0
    return jnp.asarray(weights, jnp.float32)


@pytest.mark.parametrize("name", those(LAWFUL, efficient=True))
@given(seed=seeds)
def test_efficiency(name, seed):
    parts, weights = drawn_parts(seed), drawn_weights(seed)
    credits = on_learning(name)(parts, weights)
    utility = learning(parts)
    gain = utility(weights) - utility(jnp.zeros(AGENTS))
    scale = jnp.sum(jnp.abs(credits)) + 1
    assert abs(jnp.sum(credits) - gain) <= 5e-6 * scale
    assert abs(contribution.efficiency_gap(utility, weights, credits)) <= 5e-6 * scale


@pytest.mark.parametrize(
    "name", sorted(set(those(LAWFUL, efficient=False)) - {"in_run"} - set(VARIANTS))
)
def test_what_claims_no_efficiency_has_none(name):
    """Or else the table of axioms would be wrong."""
    parts = drawn_parts(0)
    credits = on_learning(name)(parts, jnp.ones(AGENTS))
    gap = contribution.efficiency_gap(learning(parts), jnp.ones(AGENTS), credits)
    utility = learning(parts)
    gain = utility(jnp.ones(AGENTS)) - utility(jnp.zeros(AGENTS))
    np.testing.assert_allclose(gap, gain - jnp.sum(credits), atol=1e-6)
    assert abs(gap) > 1e-2 * abs(gain)


@pytest.mark.parametrize("name", those(LAWFUL, sampled=False))
@given(seed=seeds)
def test_symmetry(name, seed):
    """Equal parts and equal weights earn equally, wherever they stand."""
    parts, weights = drawn_parts(seed), drawn_weights(seed).at[jnp.array([1, 4])].set(1.0)
    parts = parts.at[4].set(parts[1])
    credits = on_learning(name)(parts, weights)
    scale = np.max(np.abs(credits)) + 1
    np.testing.assert_allclose(credits[1], credits[4], atol=2e-6 * scale)


@pytest.mark.parametrize("name", those(LAWFUL, sampled=True))
def test_symmetry_in_expectation(name):
    parts = drawn_parts(3)
    parts = parts.at[4].set(parts[1])
    estimate = LAWFUL[name].estimate
    keys = jax.random.split(jax.random.key(0), 200)
    credits = jax.jit(
        lambda keys: jax.lax.map(
            lambda key: estimate(learning(parts), jnp.ones(AGENTS), key=key), keys
        )
    )(keys)
    difference = np.asarray(credits[:, 1] - credits[:, 4])
    assert np.std(difference) > 0
    assert abs(np.mean(difference)) <= 3 * np.std(difference) / np.sqrt(len(difference))


@each
@given(seed=seeds)
def test_null_agent_gets_exactly_zero(name, seed):
    """An update of zero, and a weight of zero: bit for bit, not to rounding."""
    null = seed % AGENTS
    parts, weights = drawn_parts(seed), drawn_weights(seed)
    credits = np.asarray(on_learning(name)(parts.at[null].set(0.0), weights.at[null].set(1.0)))
    assert credits[null] == 0
    credits = np.asarray(on_learning(name)(parts, weights.at[null].set(0.0)))
    assert credits[null] == 0


@each
@pytest.mark.parametrize(("agents", "batch_size"), [(3, None), (5, None), (6, 3)])
def test_null_agent_among_matrix_products_gets_exactly_zero(name, agents, batch_size):
    """A network's utility, whole and in chunks: equal rows must round equally.

    The mean's last product fuses with a difference after it, and a smaller last chunk rounds
    otherwise: either left 1e-8 to an agent who did nothing.
    """
    keys = jax.random.split(jax.random.key(agents), 4)
    start = jax.random.normal(keys[0], (33, 7)) / 6
    parts = 0.1 * jax.random.normal(keys[1], (agents, 33, 7)).at[2].set(0.0)
    inputs = jax.random.normal(keys[2], (50, 33))
    labels = jax.nn.one_hot(jax.random.randint(keys[3], (50,), 0, 7), 7)

    def utility(w):
        scores = jnp.tanh(inputs @ (start + jnp.tensordot(w, parts, axes=1)))
        return jnp.mean(jnp.sum(labels * jax.nn.log_softmax(scores), axis=1))

    options = {"batch_size": batch_size or 1} if LAWFUL[name].chunked else {}
    estimate = functools.partial(LAWFUL[name].estimate, utility, **options)
    credits = np.asarray(optimized(estimate)(jnp.ones(agents)))
    assert credits[2] == 0
    assert np.count_nonzero(credits) == agents - 1


@pytest.mark.parametrize("name", those(LAWFUL, linear=True))
@given(seed=seeds, factor=st.floats(-2, 2))
def test_linearity(name, seed, factor):
    first, second = np.random.default_rng(seed).normal(size=(2, 2**AGENTS)).astype(np.float32)
    weights = jnp.ones(AGENTS)
    credits = on_tables(name)
    together = credits(first + np.float32(factor) * second, weights)
    apart = credits(first, weights) + factor * credits(second, weights)
    np.testing.assert_allclose(together, apart, atol=2e-5)


def test_the_marginal_is_exact_and_differentiates_as_a_difference():
    joined, left = jnp.array([1.0, 2.0, jnp.inf]), jnp.array([1.0, 0.5, jnp.inf])
    np.testing.assert_array_equal(marginal(joined, left), [0.0, 1.5, 0.0])
    for derivative in (jax.jacfwd, jax.jacrev):
        slopes = derivative(marginal, argnums=(0, 1))(joined, left)
        np.testing.assert_array_equal(slopes[0], np.eye(3))
        np.testing.assert_array_equal(slopes[1], -np.eye(3))


def split(parts, shares):
    """Agent 0 enters as several, whose parts sum to its own."""
    shares = jnp.asarray(shares, parts.dtype)
    return jnp.concatenate([shares[:, None] * parts[:1], parts[1:]])


@pytest.mark.parametrize("name", those(LAWFUL, split_invariant=True))
@given(seed=seeds, shares=st.lists(st.floats(0.05, 1), min_size=4, max_size=4))
def test_split_invariance(name, seed, shares):
    """Sybils: parts that sum to one agent's earn what it earned, and nobody else loses."""
    shares = np.asarray(shares) / np.sum(shares)
    parts, others = drawn_parts(seed), drawn_weights(seed)[1:]
    whole = on_learning(name)(parts, jnp.concatenate([jnp.ones(1), others]))
    sybils = on_learning(name)(split(parts, shares), jnp.concatenate([jnp.ones(4), others]))
    scale = np.max(np.abs(whole)) + 0.1
    np.testing.assert_allclose(jnp.sum(sybils[:4]), whole[0], atol=1e-5 * scale)
    np.testing.assert_allclose(sybils[4:], whole[1:], atol=1e-5 * scale)
    # Each sybil earns its share; so does one agent that takes part in part.
    np.testing.assert_allclose(sybils[:4], shares * whole[0], atol=1e-5 * scale)


@pytest.mark.parametrize("name", those(LAWFUL, split_invariant=False, sampled=False))
def test_what_claims_no_split_invariance_has_none(name):
    parts = 1.5 * drawn_parts(1)
    whole = on_learning(name)(parts, jnp.ones(AGENTS))
    sybils = on_learning(name)(split(parts, [0.25] * 4), jnp.ones(AGENTS + 3))
    assert abs(jnp.sum(sybils[:4]) - whole[0]) > 1e-3 * abs(whole[0])
