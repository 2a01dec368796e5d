"""The least core against an independent solver, and where it has a closed form."""

import clarabel
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from tests import games
from vcca_jax import contribution


def members_of(agents):
    return (np.arange(2**agents)[:, None] >> np.arange(agents)) & 1 == 1


def deficits(table, credits):
    """Of all proper, non-empty coalitions."""
    return (table - table[0] - members_of(len(credits)) @ credits)[1:-1]


def by_cone_solver(table):
    """The smallest deficit, then the least norm, both by an interior point method in float64."""
    agents = int(np.log2(len(table)))
    inside, gains = members_of(agents)[1:-1].astype(float), (table - table[0])[1:-1]
    settings = clarabel.DefaultSettings()
    settings.verbose = False
    settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = 1e-11

    def solve(squares, slopes, rows, bounds, total_row):
        matrix = sparse.csc_matrix(np.vstack([total_row, rows]))
        right = np.append(table[-1] - table[0], bounds)
        cones = [clarabel.ZeroConeT(1), clarabel.NonnegativeConeT(len(bounds))]
        solver = clarabel.DefaultSolver(
            sparse.csc_matrix(squares), slopes, matrix, right, cones, settings
        )
        return np.array(solver.solve().x)

    wide = np.column_stack([-inside, -np.ones(len(inside))])
    first = solve(
        np.zeros((agents + 1, agents + 1)),
        np.append(np.zeros(agents), 1.0),
        wide,
        -gains,
        np.append(np.ones(agents), 0.0)[None, :],
    )
    deficit = first[-1]
    second = solve(
        np.eye(agents), np.zeros(agents), -inside, deficit + 1e-7 - gains, np.ones((1, agents))
    )
    return deficit, second


@given(seed=st.integers(0, 2**16))
def test_it_is_the_least_deficit_and_the_least_norm(seed):
    table = np.random.default_rng(seed).normal(size=2**4)
    result = contribution.least_core(table)
    deficit, credits = by_cone_solver(table)
    assert abs(result.deficit - deficit) < 2e-6
    np.testing.assert_allclose(result.credits, credits, atol=2e-4)
    np.testing.assert_allclose(result.credits.sum(), table[-1] - table[0], atol=1e-12)
    assert abs(np.max(deficits(table, result.credits)) - result.deficit) < 1e-12


@pytest.mark.parametrize("game", games.textbook_games(), ids=lambda game: game.name)
def test_textbook_games(game):
    table = games.table_of(game)
    result = contribution.least_core(table)
    np.testing.assert_allclose(result.credits.sum(), table[-1] - table[0], atol=1e-9)
    # No worse for its unhappiest coalition than any semivalue that sums to the gain.
    assert result.deficit <= np.max(deficits(table, game.shapley)) + 1e-6
    expected = {
        "gloves": -0.0,  # whoever has the scarce glove takes all: the core is one point
        "majority": 1 - 4 / 7,  # four equals of seven win and hold 4/7
        "additive": 0.0,
        "apex": 3 / 7,  # the apex gets 3/7, the others 1/7 each
    }
    if game.name in expected:
        assert abs(result.deficit - expected[game.name]) < 1e-6
    points = {
        "gloves": [1.0, 0, 0, 0, 0],
        "majority": [1 / 7] * 7,
        "additive": [0.3, 0.2, -0.1, 0.0],
        "apex": [3 / 7, 1 / 7, 1 / 7, 1 / 7, 1 / 7],
    }
    if game.name in points:
        np.testing.assert_allclose(result.credits, points[game.name], atol=3e-6)


def test_symmetric_agents_share_alike_though_the_core_is_wide():
    result = contribution.least_core(games.table_of(games.unanimity(4, [0, 2])))
    assert result.deficit <= 1e-6
    np.testing.assert_allclose(result.credits[[0, 1]], result.credits[[2, 3]], atol=1e-7)


def test_sampled_coalitions_bound_the_deficit_of_those():
    game = games.apex(5)
    utility = game.utility
    rows = jnp.concatenate(
        [
            jnp.zeros((1, 5), bool),
            jnp.ones((1, 5), bool),
            jax.random.bernoulli(jax.random.key(0), shape=(12, 5)),
        ]
    )
    values = contribution.evaluate(utility, jnp.ones(5), rows)
    result = contribution.least_core(values, coalitions=rows)
    inside = np.asarray(rows)
    proper = inside.any(axis=1) & ~inside.all(axis=1)
    found = (np.asarray(values) - inside @ result.credits)[proper]
    assert abs(found.max() - result.deficit) < 1e-9
    np.testing.assert_allclose(result.credits.sum(), 1.0, atol=1e-9)
    # Fewer coalitions, fewer complaints.
    assert result.deficit <= contribution.least_core(games.table_of(game)).deficit + 1e-6
    repeated = contribution.least_core(
        np.concatenate([values, values]), coalitions=np.concatenate([inside, inside])
    )
    np.testing.assert_allclose(repeated.credits, result.credits, atol=1e-6)


def test_absent_agents_get_nothing_and_change_nothing():
    table = np.random.default_rng(3).normal(size=2**3)
    wide = table[(np.arange(2**5) & 1) | (np.arange(2**5) >> 1 & 6)]
    alone = contribution.least_core(table)
    padded = contribution.least_core(wide, weights=[1.0, 0.0, 1.0, 0.5, 0.0])
    np.testing.assert_allclose(padded.credits[[0, 2, 3]], alone.credits, atol=1e-6)
    assert np.all(padded.credits[[1, 4]] == 0)
    assert abs(padded.deficit - alone.deficit) < 1e-6


def test_scale_and_origin_do_not_matter():
    table = np.random.default_rng(4).normal(size=2**4)
    result = contribution.least_core(table)
    for scale in (1e-12, 1e-6, 1e6):
        other = contribution.least_core(scale * table + 3 * scale)
        np.testing.assert_allclose(other.credits / scale, result.credits, atol=1e-5)
        np.testing.assert_allclose(other.deficit / scale, result.deficit, atol=1e-5)


@pytest.mark.parametrize("scale", [1e-4, 1e-8, 1e-20, 1e20])
def test_small_utilities_are_divided_as_large_ones(scale):
    """A solver's tolerances know no unit: credits of one step are of the order of 1e-6."""
    worths = np.array([0.0, 1, 2, 4, 1, 3, 3, 7])
    result = contribution.least_core(scale * worths)
    np.testing.assert_allclose(result.credits / scale, [2, 3, 2], atol=1e-5)
    assert contribution.least_core(0 * worths).credits.tolist() == [0, 0, 0]


def test_one_agent_alone():
    result = contribution.least_core([2.0, 5.0])
    assert result.credits.tolist() == [3.0]
    assert result.deficit == -np.inf


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"values has 6 entries, not 2\*\*A"):
        contribution.least_core(np.zeros(6))
    with pytest.raises(ValueError, match="one finite utility a coalition"):
        contribution.least_core([0.0, np.nan])
    with pytest.raises(ValueError, match=r"coalitions has shape \(2, 3\)"):
        contribution.least_core(np.zeros(4), coalitions=np.zeros((2, 3)))
    with pytest.raises(ValueError, match="lacks the empty or the grand coalition"):
        contribution.least_core(np.zeros(2), coalitions=[[True, True], [True, False]])
    for weights in ([0.0, 0.0], [1.0, np.nan], [1.0, -1.0], [1.0]):
        with pytest.raises(ValueError, match=r"weights is .* in \[0, 1\] and one above 0"):
            contribution.least_core(np.zeros(4), weights=weights)
