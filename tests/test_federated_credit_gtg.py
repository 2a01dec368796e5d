"""GTG-Shapley: raw means, truncation, the guided orders, and what it asked for."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import games
from tests.federated_credit_examples import (
    HOLES,
    accumulated,
    additive_round,
    bent,
    learnt_of,
)
from vcca_jax import contribution
from vcca_jax.contribution.federated import (
    fedsv,
    fixed_weight_game,
    gtg_shapley,
    renormalised_game,
)
from vcca_jax.contribution.federated.gtg import _guided_orders

pytestmark = pytest.mark.slow  # many small programs to compile

KEY = jax.random.key(0)
TABLE = np.random.default_rng(0).normal(size=2**5)
EXACT = games.shapley_by_orders(TABLE)
TO_THE_END = {"round_tolerance": 0.0, "order_tolerance": 0.0, "change": 0.0}


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@functools.cache
def table_game():
    return jax.jit(games.of_table(TABLE))


@functools.cache
def additive():
    learnt, loss = additive_round([0.3, 0.2, -0.1])
    return jax.jit(fixed_weight_game(learnt.params, learnt.updates, learnt.weights, loss))


def test_mixed_signs_are_not_normalised_away():
    """The sign-split normalisation makes (0.24, 0.16, -0.08) of it, which sums to 0.32."""
    guided = gtg_shapley(additive(), np.ones(3), key=KEY)
    np.testing.assert_allclose(guided.credits, [0.3, 0.2, -0.1], atol=1e-12)
    assert guided.credits.sum() == pytest.approx(0.4, abs=1e-12)
    assert guided.evaluations <= 8


def test_an_additive_game_settles_as_soon_as_it_may():
    guided = gtg_shapley(additive(), np.ones(3), key=KEY, least=10, most=1000)
    assert guided.converged
    # The first whole sweep of 3 with more than 10 orders.
    assert guided.orders == 12
    # Never before there are as many means as the window asks for.
    assert gtg_shapley(additive(), np.ones(3), key=KEY, least=1, most=1000).orders == 12
    assert gtg_shapley(additive(), np.ones(3), key=KEY, least=1, window=2, most=1000).orders == 6


def test_many_orders_come_near_the_exact_value():
    guided = gtg_shapley(table_game(), np.ones(5), key=KEY, most=600, **TO_THE_END)
    assert not guided.converged
    assert guided.orders == 600
    # All coalitions were asked for, each once.
    assert guided.evaluations == 2**5
    assert abs(guided.credits - EXACT).max() < 0.12
    few = gtg_shapley(table_game(), np.ones(5), key=KEY, most=30, **TO_THE_END)
    assert abs(guided.credits - EXACT).max() < abs(few.credits - EXACT).max()
    np.testing.assert_allclose(guided.credits.sum(), TABLE[-1] - TABLE[0], rtol=1e-12)


def test_it_is_unbiased_without_truncation():
    """Fifty runs of one sweep, against their own spread."""
    runs = np.array(
        [
            gtg_shapley(
                table_game(), np.ones(5), key=jax.random.fold_in(KEY, run), most=1, **TO_THE_END
            ).credits
            for run in range(50)
        ]
    )
    error = runs.std(axis=0, ddof=1) / np.sqrt(len(runs))
    assert (abs(runs.mean(axis=0) - EXACT) < 3.5 * error).all()


def test_keys_decide_the_orders():
    same = [gtg_shapley(table_game(), np.ones(5), key=KEY, most=5, **TO_THE_END) for _ in range(2)]
    other = gtg_shapley(table_game(), np.ones(5), key=jax.random.key(9), most=5, **TO_THE_END)
    np.testing.assert_array_equal(same[0].credits, same[1].credits)
    assert not np.allclose(same[0].credits, other.credits)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_each_leads_one_order_of_a_sweep(count):
    orders = _guided_orders(KEY, count)
    np.testing.assert_array_equal(np.sort(orders, axis=1), np.tile(np.arange(count), (count, 1)))
    np.testing.assert_array_equal(orders[:, 0], np.arange(count))
    many = np.stack([_guided_orders(jax.random.fold_in(KEY, m), 3) for m in range(60)])
    # Those that follow come in either order.
    assert 0.3 < (many[:, 0, 1] == 1).mean() < 0.7


def test_a_round_without_a_gain_is_passed_over():
    learnt, loss = additive_round([0.3, 0.2, -0.4])
    game = jax.jit(fixed_weight_game(learnt.params, learnt.updates, learnt.weights, loss))
    guided = gtg_shapley(game, np.ones(3), key=KEY, round_tolerance=0.2)
    assert (guided.credits == 0).all()
    assert guided.evaluations == 2
    assert guided.orders == 0
    np.testing.assert_allclose(
        gtg_shapley(game, np.ones(3), key=KEY).credits, [0.3, 0.2, -0.4], atol=1e-12
    )


def test_orders_are_cut_short_once_little_is_left():
    """v({}) = 0 and v(S) = 1 - 0.5**|S|: near the whole from the fourth of eight on."""

    @jax.jit
    def saturating(w):
        return 1 - 0.5 ** w.sum()

    gain = 1 - 0.5**8
    asked = {}
    for tolerance in (0.0, 0.1):
        guided = gtg_shapley(
            saturating, np.ones(8), key=KEY, order_tolerance=tolerance, change=0, most=40
        )
        asked[tolerance] = guided.evaluations
        assert guided.orders == 40
        assert abs(guided.credits.sum() - gain) <= tolerance + 1e-12
    # 0.5**4 < 0.1: what comes after the fourth of an order is given up.
    assert guided.credits.sum() == pytest.approx(1 - 0.5**4, abs=1e-12)
    assert asked[0.1] < 0.75 * asked[0.0]


def test_slots_with_holes():
    """Players {2, 5, 7, 9} of capacity 10, of one of whom the update is zero."""
    updates = np.random.default_rng(2).normal(size=(4, 4))
    updates[1] = 0
    learnt = learnt_of(updates, agents=HOLES)
    weights = np.zeros(10)
    weights[list(HOLES)] = 1
    seats = jnp.array(HOLES)
    for kind, game in (("fixed", fixed_weight_game), ("renormalised", renormalised_game)):
        clients = game(learnt.params, learnt.updates, learnt.weights, bent)
        guided = gtg_shapley(jax.jit(lambda w, v=clients: v(w[seats])), weights, key=KEY)
        assert (np.delete(guided.credits, HOLES) == 0).all()
        assert (guided.credits[[2, 7, 9]] != 0).all()
        # Exactly null under fixed weights, never so under renormalised ones.
        assert (guided.credits[5] == 0) == (kind == "fixed")
        whole = np.asarray(contribution.evaluate(clients, jnp.ones(4), jnp.eye(4) < 2))
        nobody = np.asarray(contribution.evaluate(clients, jnp.ones(4), jnp.eye(4) > 2))
        np.testing.assert_allclose(guided.credits.sum(), whole[0] - nobody[0], atol=1e-3)


def test_over_rounds_it_is_an_estimator_of_fedsv():
    rounds = [learnt_of(np.random.default_rng(seed).normal(size=(3, 4))) for seed in (2, 3)]
    score = fedsv(
        bent, 3, key=KEY, estimator=lambda *given, key: gtg_shapley(*given, key=key).credits
    )
    state, told = score.init(), []
    for learnt in rounds:
        state, credits = score.step(state, learnt)
        told.append(np.asarray(credits))
    exact, wanted = accumulated(fedsv(bent, 3), rounds)
    np.testing.assert_allclose(np.sum(told, axis=1), np.sum(wanted, axis=1), atol=1e-3)
    np.testing.assert_allclose(state.credits.sum(), exact.credits.sum(), atol=2e-3)


def test_of_nobody_or_one_there_is_little_to_ask():
    game = table_game()
    nobody = gtg_shapley(game, np.zeros(5), key=KEY)
    assert (nobody.credits == 0).all()
    assert nobody.evaluations == 0
    one = gtg_shapley(game, np.array([0, 0, 1.0, 0, 0]), key=KEY, **TO_THE_END)
    np.testing.assert_allclose(one.credits, [0, 0, TABLE[4] - TABLE[0], 0, 0])
    assert one.evaluations == 2


@pytest.mark.parametrize("code", [31, 0, 6])
@pytest.mark.parametrize("worth", [np.nan, -np.inf])
def test_a_utility_that_is_not_finite_is_refused_with_its_coalition(code, worth):
    """A comparison with NaN is false: the round would be walked to no end but credits of 0."""
    table = TABLE.copy()
    table[code] = worth
    game = jax.jit(lambda w: jnp.asarray(table)[jnp.sum((w > 0.5) * 2 ** jnp.arange(5))])
    members = [agent for agent in range(5) if code >> agent & 1]
    with pytest.raises(ValueError, match=f"coalition of agents {members}".replace("[", r"\[")):
        gtg_shapley(game, np.ones(5), key=KEY, **TO_THE_END)


def test_by_default_it_ends_where_all_coalitions_would_be_cheaper():
    assert gtg_shapley(table_game(), np.ones(5), key=KEY, **TO_THE_END).orders == 30


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"round_tolerance": -1}, "round_tolerance is -1"),
        ({"order_tolerance": -1}, "order_tolerance is -1"),
        ({"change": float("nan")}, "change is nan"),
        ({"window": 1}, "window is 1"),
        ({"least": 0}, "least is 0"),
        ({"most": 0}, "most is 0"),
        ({"window": 2.5}, "window is 2.5"),
        ({"key": None}, "key is None; .* the orders are"),
    ],
)
def test_it_refuses_its_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        gtg_shapley(table_game(), np.ones(5), **({"key": KEY} | options))
