"""Shapley values by regression on pairs of coalitions: KernelSHAP and leverage scores."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import games
from vcca_jax import contribution

BOTH = {
    "kernel": contribution.kernel_shapley_with_error,
    "leverage": contribution.leverage_shapley_with_error,
}
each = pytest.mark.parametrize("name", sorted(BOTH))


@functools.cache
def on_seven(name, evaluations, present=7):
    """On any table of seven agents, over keys, compiled once for all games."""
    weights = (np.arange(7) < present).astype(float)
    estimate = functools.partial(BOTH[name], evaluations=evaluations)
    return jax.jit(
        lambda table, keys: jax.lax.map(
            lambda key: estimate(games.of_table(table), weights, key=key), keys
        )
    )


def graded():
    members = (np.arange(2**7)[:, None] >> np.arange(7)) & 1
    rough = np.random.default_rng(0).normal(0, 0.1, 2**7)
    return np.sqrt(members @ np.linspace(0, 1, 7)) + rough


@each
@pytest.mark.slow
@pytest.mark.parametrize("game", games.textbook_games(), ids=lambda game: game.name)
def test_textbook_games_lie_within_the_standard_errors(name, game):
    table = games.table_of(game)[np.arange(2**7) % 2**game.agents]
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(3), 1)
        sampled = jax.tree.map(
            lambda part: np.asarray(part)[0], on_seven(name, 80, game.agents)(table, keys)
        )
    error = np.abs(sampled.credits[: game.agents] - game.shapley)
    # 4 of them: some forty independent numbers a method are looked at.
    assert np.all(error <= 4 * sampled.standard_error[: game.agents] + 1e-6)
    assert np.all(sampled.standard_error <= 0.1)
    assert np.all(sampled.credits[game.agents :] == 0)
    assert np.all(sampled.standard_error[game.agents :] == 0)
    np.testing.assert_allclose(np.sum(sampled.credits), table[-1] - table[0], atol=1e-12)


@each
def test_the_standard_errors_are_honest(name):
    table = graded()
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(0), 400)
        sampled = jax.tree.map(np.asarray, on_seven(name, 80)(table, keys))
    error = sampled.credits - games.shapley_by_orders(table)
    spread = np.std(error, axis=0, ddof=1)
    assert np.all(np.abs(spread / np.sqrt(np.mean(sampled.standard_error**2, axis=0)) - 1) <= 0.25)
    assert 0.6 <= np.mean(np.abs(error) <= sampled.standard_error) <= 0.78
    assert 0.91 <= np.mean(np.abs(error) <= 2 * sampled.standard_error) <= 0.985
    # The bias is there, and far below the spread.
    assert np.all(np.abs(np.mean(error, axis=0)) <= 0.3 * spread)


@each
@pytest.mark.parametrize("agents", [1, 2, 3, 5, 6])
def test_all_coalitions_give_the_exact_value(name, agents):
    table = np.random.default_rng(agents).normal(size=2**agents)
    estimate = functools.partial(
        BOTH[name], games.of_table(table), evaluations=2**agents + 6, key=jax.random.key(0)
    )
    with jax.enable_x64(True):
        sampled = jax.jit(estimate)(jnp.ones(agents))
    np.testing.assert_allclose(sampled.credits, games.shapley_by_orders(table), atol=1e-12)
    np.testing.assert_allclose(sampled.standard_error, 0.0, atol=1e-9)
    assert sampled.evaluations == 2**agents


@pytest.mark.slow
def test_it_is_the_weighted_least_squares_solution_of_the_coalitions_drawn():
    """Against NumPy, on the coalitions that the utility was asked for: enumerated sizes enter with
    the kernel's weight, drawn ones evenly, together with the kernel's weight of their sizes."""
    asked = []

    def utility(w):
        jax.debug.callback(lambda w: asked.append(np.asarray(w)), w)
        return jnp.sum(w * jnp.arange(8.0)) ** 2 / 100 + jnp.prod(w[:3])

    with jax.enable_x64(True):
        credits = contribution.kernel_shapley(
            utility, jnp.ones(8), evaluations=40, key=jax.random.key(5)
        )
        jax.effects_barrier()
    rows = np.array(asked)
    assert len(rows) == 40
    sizes = rows.sum(axis=1)
    assert np.sum(sizes == 1) == np.sum(sizes == 7) == 8
    kernel = {size: 1 / (size * (8 - size)) for size in range(1, 8)}
    drawn = (sizes > 1) & (sizes < 7)
    mass = np.where(drawn, sum(kernel[s] for s in range(2, 7)) / drawn.sum(), kernel[1] / 8)
    inner = (sizes > 0) & (sizes < 8)
    values = np.array([(r @ np.arange(8)) ** 2 / 100 + np.prod(r[:3]) for r in rows])
    z, y, mass = rows[inner], values[inner], mass[inner]
    gain = 28**2 / 100 + 1
    system = np.block([[z.T @ (mass[:, None] * z), np.ones((8, 1))], [np.ones((1, 8)), 0.0]])
    expected = np.linalg.solve(system, np.append(z.T @ (mass * y), gain))[:8]
    np.testing.assert_allclose(credits, expected, atol=1e-10)


@pytest.mark.slow
def test_leverage_draws_no_pair_twice_and_all_sizes_alike():
    asked = []

    def utility(w):
        jax.debug.callback(lambda w: asked.append(tuple(np.asarray(w).tolist())), w)
        return jnp.sum(w)

    contribution.leverage_shapley(utility, jnp.ones(8), evaluations=82, key=jax.random.key(0))
    jax.effects_barrier()
    assert len(asked) == len(set(asked)) == 82
    counts = np.bincount(np.sum(asked, axis=1).astype(int), minlength=9)
    assert counts.tolist() == [1, 8, 13, 13, 12, 13, 13, 8, 1]


@each
def test_bad_budgets_are_named(name):
    least = {"kernel": 12, "leverage": 14}[name]
    estimate = functools.partial(BOTH[name], jnp.sum, jnp.ones(5), key=jax.random.key(0))
    with pytest.raises(ValueError, match=f"evaluations is {least - 1}; pass at least {least}"):
        estimate(evaluations=least - 1)
    assert estimate(evaluations=least).evaluations == least


@pytest.mark.slow
def test_pairs_of_the_largest_kernel_are_enumerated_first():
    """Of six agents, at 30 evaluations sizes 1 and 5 only; at 60 sizes 2 and 4 too."""
    counted = {}
    for evaluations in (30, 60):
        asked = []

        def utility(w, asked=asked):
            jax.debug.callback(lambda w: asked.append(np.asarray(w)), w)
            return jnp.sum(w)

        contribution.kernel_shapley(
            utility, jnp.ones(6), evaluations=evaluations, key=jax.random.key(0)
        )
        jax.effects_barrier()
        rows = np.array(asked)
        counted[evaluations] = {
            size: len(np.unique(rows[rows.sum(axis=1) == size], axis=0)) for size in (1, 2)
        }
    assert counted[30][1] == 6
    assert counted[30][2] < 15
    assert counted[60] == {1: 6, 2: math.comb(6, 2)}
