"""Scores over federated rounds, FedSV and DIG-FL above all: closed forms, NumPy, telescoping."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests import games
from tests.federated_credit_examples import (
    HOLES,
    accumulated,
    additive_round,
    bent,
    bent_in_numpy,
    learnt_of,
    stepper,
    table_in_numpy,
)
from tests.round_examples import LOSS, RATE, initial, members, rounds
from vcca_jax import contribution
from vcca_jax.baselines import fedavg
from vcca_jax.baselines.federated import client_updates
from vcca_jax.contribution.federated import (
    cgsv,
    dig_fl,
    fedsv,
    fixed_weight_game,
    renormalised_game,
)
from vcca_jax.rounds import Round

pytestmark = pytest.mark.slow  # many small programs to compile

SIZES = (0, 0, 3, 0, 0, 2, 0, 4, 0, 5)
UPDATES = np.random.default_rng(3).normal(size=(3, 4))
WEIGHTS = np.array([0.5, 0.2, 0.3])


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def validation(params):
    return sum((jnp.sin(leaf + 0.3) ** 2).sum() for leaf in jax.tree.leaves(params))


def scores(capacity=10):
    return {
        "fedsv": fedsv(validation, capacity),
        "fedsv_fixed": fedsv(validation, capacity, game=fixed_weight_game),
        "dig_fl": dig_fl(validation, capacity),
        "cgsv": cgsv(capacity, memory=0.8),
    }


@functools.cache
def scored_run():
    """Five rounds of two of four clients, all scores at once: final states, infos, the path."""
    given = members(SIZES, capacity=10)
    plans = rounds(given, 5, participants=2, seed=2)
    trainer = fedavg(LOSS, optax.sgd(RATE))
    kinds = scores()

    def step(carried, plan):
        state, scored = carried
        round_ = Round(given.shards, plan)
        learnt = client_updates(LOSS, optax.sgd(RATE), state.params, round_)
        moved = {name: kinds[name].step(scored[name], learnt) for name in kinds}
        state, _ = trainer.step(state, round_)
        told = {name: info for name, (_, info) in moved.items()}
        told["utility"] = -validation(state.params)
        return (state, {name: after for name, (after, _) in moved.items()}), told

    start = (trainer.init(initial()), {name: kind.init() for name, kind in kinds.items()})
    with jax.enable_x64(True):
        (_, after), told = jax.jit(lambda carried: jax.lax.scan(step, carried, plans))(start)
        told["start"] = -validation(initial())
        credits = {name: np.asarray(kinds[name].credits(after[name])) for name in kinds}
    taking_part = np.zeros((5, 10), bool)
    np.put_along_axis(taking_part, plans.agents, True, axis=1)
    return credits, jax.tree.map(np.asarray, told), taking_part


@pytest.mark.parametrize("name", ["fedsv", "fedsv_fixed"])
def test_rounds_telescope_under_partial_participation(name):
    credits, told, _ = scored_run()
    gain = told["utility"][-1] - told["start"]
    assert abs(gain) > 0.1
    np.testing.assert_allclose(credits[name].sum(), gain, rtol=1e-10)
    steps = np.diff(told["utility"], prepend=told["start"])
    np.testing.assert_allclose(told[name].sum(axis=1), steps, rtol=1e-9, atol=1e-12)


def test_who_is_absent_gets_exactly_nothing():
    credits, told, taking_part = scored_run()
    ever = taking_part.any(axis=0)
    assert set(np.flatnonzero(ever)) <= set(HOLES)
    for name in scores():
        assert (credits[name][~ever] == 0).all()
        assert (credits[name][ever] != 0).all()
        assert (told[name][~taking_part] == 0).all()
        assert (told[name][taking_part] != 0).all()


def test_a_member_that_is_never_drawn_gets_nothing():
    first = learnt_of(UPDATES, WEIGHTS, agents=[2, 7, 9])
    for name, score in scores().items():
        state, _ = accumulated(score, [first, first])
        assert score.credits(state)[5] == 0, name
        assert np.isfinite(score.credits(state)).all()


def test_a_round_without_anybody_changes_no_credit():
    first = learnt_of(UPDATES, WEIGHTS, agents=[2, 7, 9])
    empty = first._replace(
        updates=jax.tree.map(jnp.zeros_like, first.updates), weights=jnp.zeros(3)
    )
    for score in scores().values():
        before, _ = accumulated(score, [first])
        after, told = accumulated(score, [first, empty])
        np.testing.assert_allclose(score.credits(after), score.credits(before), rtol=1e-15)
        assert (told[1] == 0).all()
        blank, _ = accumulated(score, [empty])
        assert (score.credits(blank) == 0).all()


def test_who_weighs_nothing_is_as_if_it_were_not_there():
    padded = learnt_of(np.append(UPDATES, [[5.0, -4, 3, 2]], axis=0), [*WEIGHTS, 0], [2, 7, 9, 7])
    first = learnt_of(UPDATES, WEIGHTS, agents=[2, 7, 9])
    for score in scores().values():
        credits = [score.credits(accumulated(score, [one] * 2)[0]) for one in (padded, first)]
        np.testing.assert_allclose(credits[0], credits[1], rtol=1e-12, atol=1e-15)


def test_in_single_precision_an_update_of_zero_is_still_exactly_nothing():
    with jax.enable_x64(False):
        updates = np.random.default_rng(1).normal(size=(5, 6))
        updates[[1, 3]] = 0
        learnt = learnt_of(updates, agents=[2, 0, 4, 1, 3])
        score = fedsv(validation, 5, game=fixed_weight_game)
        state, _ = accumulated(score, [learnt] * 3)
        assert state.credits.dtype == jnp.float32
        np.testing.assert_array_equal(state.credits == 0, [True, True, False, False, False])


@pytest.mark.parametrize("renormalised", [True, False])
def test_fedsv_is_the_mean_over_orders(renormalised):
    score = fedsv(bent, 3, game=renormalised_game if renormalised else fixed_weight_game)
    start = np.array([0.3, -0.1, 0.2, 0.4])
    state, told = accumulated(
        score,
        [learnt_of(UPDATES, WEIGHTS), learnt_of(2 * UPDATES[::-1], WEIGHTS[::-1], start=start)],
    )
    wanted = [
        games.shapley_by_orders(
            table_in_numpy(u, w, bent_in_numpy, renormalised=renormalised, start=at)
        )
        for u, w, at in ((UPDATES, WEIGHTS, 0.0), (2 * UPDATES[::-1], WEIGHTS[::-1], start))
    ]
    np.testing.assert_allclose(told, wanted, rtol=1e-10)
    np.testing.assert_allclose(score.credits(state), np.sum(wanted, axis=0), rtol=1e-10)
    assert state.round == 2


@pytest.mark.parametrize("worths", [[0.3, 0.2, -0.1], [0.5, 0.0, 0.0], [-1.0, -2.0, 0.25]])
def test_additive_games_give_everyone_its_own(worths):
    learnt, loss = additive_round(worths, WEIGHTS)
    for score in (fedsv(loss, 3, game=fixed_weight_game), dig_fl(loss, 3)):
        state, _ = accumulated(score, [learnt, learnt])
        np.testing.assert_allclose(score.credits(state), 2 * np.array(worths), atol=1e-12)
    # The renormalised coalitions of the same round are another game altogether.
    state, _ = accumulated(fedsv(loss, 3), [learnt])
    assert abs(np.asarray(state.credits) - worths).max() > 0.05
    np.testing.assert_allclose(state.credits.sum(), sum(worths), atol=1e-12)


def test_any_estimator_stands_in_and_draws_anew_in_each_round():
    sampler = functools.partial(contribution.permutation_shapley, permutations=2)
    score = fedsv(bent, 3, estimator=sampler, key=jax.random.key(4))
    learnt = learnt_of(UPDATES, WEIGHTS)
    _, told = accumulated(score, [learnt] * 4)
    gain = bent_in_numpy(np.zeros(4)) - bent_in_numpy(WEIGHTS @ UPDATES)
    np.testing.assert_allclose(np.sum(told, axis=1), gain, rtol=1e-10)
    assert any(not np.allclose(told[0], other) for other in told[1:])
    _, again = accumulated(score, [learnt] * 4)
    np.testing.assert_array_equal(told, again)


def test_fedsv_refuses_what_cannot_be_enumerated_or_drawn():
    with pytest.raises(ValueError, match="capacity is 0"):
        fedsv(bent, 0)
    many = learnt_of(np.zeros((21, 4)))
    score = fedsv(bent, 21)
    with pytest.raises(ValueError, match="use a sampler, as permutation_shapley"):
        score.step(score.init(), many)
    sampler = functools.partial(contribution.permutation_shapley, permutations=2)
    score = fedsv(bent, 3, estimator=sampler)
    with pytest.raises(ValueError, match="key is None"):
        score.step(score.init(), learnt_of(UPDATES))


def test_dig_fl_is_the_first_order_of_the_fixed_weight_game():
    start = np.array([0.3, -0.1, 0.2, 0.4])
    learnt = learnt_of(UPDATES, WEIGHTS, start=start)
    _, (told,) = accumulated(dig_fl(bent, 3), [learnt])
    game = fixed_weight_game(learnt.params, learnt.updates, learnt.weights, bent)
    first = jax.jit(functools.partial(contribution.in_run, game, order=1))(np.ones(3))
    np.testing.assert_allclose(told, first, rtol=1e-12)
    tiny = 1e-6
    for client in range(3):
        step = tiny * WEIGHTS[client] * UPDATES[client]
        slope = (bent_in_numpy(start - step) - bent_in_numpy(start + step)) / (2 * tiny)
        assert told[client] == pytest.approx(slope, rel=1e-6)


def test_an_update_of_zero_by_score():
    """0 where weights are fixed; dilution under renormalised ones; a floor in CGSV."""
    updates = UPDATES.copy()
    updates[1] = 0
    learnt = learnt_of(updates, WEIGHTS)
    credit = {}
    for name, score in {
        "fedsv": fedsv(bent, 3),
        "fedsv_fixed": fedsv(bent, 3, game=fixed_weight_game),
        "dig_fl": dig_fl(bent, 3),
        "cgsv": cgsv(3, memory=0.5, floor=0.01),
    }.items():
        state, _ = accumulated(score, [learnt] * 12)
        credit[name] = float(score.credits(state)[1])
    assert credit["fedsv_fixed"] == credit["dig_fl"] == 0
    assert abs(credit["fedsv"]) > 0.1
    # Faded from 0.2 to the floor, and paid.
    assert 0.005 < credit["cgsv"] < 0.01


@pytest.mark.parametrize("made", [lambda: fedsv(bent, 2), lambda: dig_fl(bent, 2), lambda: cgsv(2)])
def test_a_client_without_a_slot_loses_no_credit_in_silence(made):
    learnt, score = learnt_of(UPDATES, WEIGHTS, agents=[0, 3, 1]), made()
    with pytest.raises(ValueError, match=r"capacity is 2, and clients of slots \[3\] took part"):
        score.step(score.init(), learnt)
    state, told = jax.jit(score.step)(score.init(), learnt)
    assert np.isnan(told).all()
    assert np.isnan(score.credits(state)).all()
    # Padding may name any slot.
    absent = learnt._replace(weights=jnp.asarray([0.6, 0.0, 0.4]))
    assert np.isfinite(score.credits(jax.jit(score.step)(score.init(), absent)[0])).all()


def test_scores_map_over_runs_and_keep_their_state():
    learnt = learnt_of(UPDATES, WEIGHTS, agents=[2, 7, 9])
    other = learnt_of(UPDATES[::-1], WEIGHTS, agents=[9, 2, 5])
    both = jax.tree.map(lambda *leaves: jnp.stack(leaves), learnt, other)
    for name, score in scores().items():
        start = score.init()
        twice = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), start)
        mapped, _ = jax.jit(jax.vmap(score.step))(twice, both)
        singles = [stepper(score)(start, one)[0] for one in (learnt, other)]
        shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), start)
        assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), singles[0]) == shapes, name
        for index, single in enumerate(singles):
            np.testing.assert_allclose(
                score.credits(jax.tree.map(lambda leaf, i=index: leaf[i], mapped)),
                score.credits(single),
                rtol=1e-12,
                atol=1e-15,
            )
