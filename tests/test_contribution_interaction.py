"""The Shapley interaction index against its definition, and where it has a closed form."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import games
from vcca_jax import contribution


@functools.cache
def on_tables():
    return jax.jit(
        lambda table, weights: contribution.shapley_interactions(games.of_table(table), weights)
    )


def by_definition(table):
    agents = int(math.log2(len(table)))
    matrix = np.zeros((agents, agents))
    for i in range(agents):
        for j in range(agents):
            for code in range(len(table)):
                if i == j or code >> i & 1 or code >> j & 1:
                    continue
                size = code.bit_count()
                factor = math.factorial(size) * math.factorial(agents - size - 2)
                both, first, second = code | 1 << i | 1 << j, code | 1 << i, code | 1 << j
                change = table[both] - table[first] - table[second] + table[code]
                matrix[i, j] += factor / math.factorial(agents - 1) * change
    return matrix + np.diag(games.shapley_by_orders(table))


@pytest.mark.parametrize(
    "game",
    # The oracle goes through all orders of arrival: majority of seven has a closed form below.
    [*(game for game in games.textbook_games() if game.agents < 7), "random"],
    ids=lambda game: getattr(game, "name", game),
)
def test_it_is_the_index_of_its_definition(game):
    table = np.random.default_rng(0).normal(size=2**5) if game == "random" else games.table_of(game)
    agents = int(math.log2(len(table)))
    with jax.enable_x64(True):
        matrix = np.asarray(on_tables()(table, np.ones(agents)))
    np.testing.assert_allclose(matrix, by_definition(table), atol=1e-12)
    np.testing.assert_array_equal(matrix, matrix.T)


def test_closed_forms():
    with jax.enable_x64(True):
        index = lambda game: np.asarray(  # noqa: E731
            on_tables()(games.table_of(game), np.ones(game.agents))
        )
        additive = index(games.additive([0.3, 0.2, -0.1, 0.0, 1.0]))
        unanimity = index(games.unanimity(5, [0, 2, 4]))
        couplings = np.triu(np.random.default_rng(1).normal(size=(5, 5)), k=1)
        pairwise = index(games.pairwise(couplings))
        majority = index(games.majority(7))
    np.testing.assert_allclose(additive, np.diag([0.3, 0.2, -0.1, 0.0, 1.0]), atol=1e-15)
    # Of a unanimity game of t carriers, 1 / (t - 1) for each two of them, 1 / t on the diagonal.
    held = np.array([1.0, 0, 1, 0, 1])
    expected = np.outer(held, held) / 2
    np.fill_diagonal(expected, held / 3)
    np.testing.assert_allclose(unanimity, expected, atol=1e-15)
    both = couplings + couplings.T
    np.testing.assert_allclose(pairwise, both + np.diag(both.sum(axis=1) / 2), atol=1e-12)
    # Joining at size 2 the two complete each other, at size 3 they replace each other: C(5, 2) and
    # C(5, 3) coalitions of equal weight, which cancel.
    np.testing.assert_allclose(majority, np.eye(7) / 7, atol=1e-15)


def test_replicas_replace_each_other_and_complements_do_not():
    table = games.table_of(games.gloves(3))
    matrix = np.asarray(on_tables()(table.astype(np.float32), jnp.ones(4)))
    assert np.all(matrix[0, 1:] > 0)
    assert np.all(matrix[1:, 1:][~np.eye(3, dtype=bool)] < 0)


def test_absent_and_null_agents_are_exactly_zero():
    parts = jax.random.normal(jax.random.key(0), (5, 3)).at[3].set(0.0)
    weights = jnp.array([1.0, 0.0, 0.5, 1.0, 1.0])
    estimate = functools.partial(contribution.shapley_interactions, games.learning(parts))
    matrix = np.asarray(jax.jit(estimate)(weights))
    for agent in (1, 3):
        assert np.all(matrix[agent] == 0)
        assert np.all(matrix[:, agent] == 0)
    there = np.array([0, 2, 4])
    assert np.all(matrix[np.ix_(there, there)] != 0)
    shapley = jax.jit(functools.partial(contribution.exact_shapley, games.learning(parts)))(weights)
    np.testing.assert_array_equal(np.diag(matrix), shapley)  # the same sums, bit for bit
    chunked = jax.jit(functools.partial(estimate, batch_size=4))(weights)
    np.testing.assert_allclose(chunked, matrix, atol=1e-6)


def test_one_agent_and_too_many():
    matrix = contribution.shapley_interactions(lambda w: 3.0 * w[0] + 1.0, jnp.ones(1))
    np.testing.assert_allclose(matrix, [[3.0]])
    with pytest.raises(ValueError, match="21 agents"):
        contribution.shapley_interactions(jnp.sum, jnp.ones(21))
