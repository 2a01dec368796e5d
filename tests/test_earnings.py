"""What was earned is handed over once, period by period, and sums to all credit."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vcca_jax as vcca
from vcca_jax.ledger import Ledger


class Counting(NamedTuple):
    params: jax.Array
    credits: jax.Array
    carry_over: jax.Array


class Plain(NamedTuple):
    credits: jax.Array


CREDITS = np.array([[0.5, -0.25, 0.0], [1.0, 0.5, 0.0], [-0.5, 0.25, 2.0]], np.float32)


def trained(state, period):
    return state._replace(credits=state.credits + CREDITS[period], carry_over=state.carry_over + 1)


def test_all_that_is_taken_sums_to_all_credit_and_the_rest_stays_as_it_was():
    state = Counting(jnp.arange(4.0), jnp.zeros(3), jnp.zeros(()))
    taken = []
    for period in range(3):
        found, state = jax.jit(vcca.earned)(trained(state, period))
        assert found.carry_over == 1
        taken.append(found.credits)
    np.testing.assert_array_equal(taken, CREDITS)
    found, state = vcca.earned(state)
    assert not found.credits.any()
    assert not found.carry_over
    np.testing.assert_array_equal(state.params, np.arange(4.0))


def test_a_cooperates_state_is_taken_from_by_seed():
    states = Counting(jnp.zeros((2, 4)), jnp.ones((2, 3)), jnp.ones(2))
    found, after = jax.vmap(vcca.earned)(states)
    assert found.credits.shape == (2, 3)
    assert found.carry_over.shape == (2,)
    assert jax.tree.structure(after) == jax.tree.structure(states)
    assert [x.dtype for x in after] == [x.dtype for x in states]


def test_settled_period_by_period_each_is_paid_on_once(tmp_path):
    names = ("ana", "ben", "cem")
    state = Counting(jnp.zeros(1), jnp.zeros(3), jnp.zeros(()))
    rule = vcca.share_rules.per_period()
    with Ledger.open(tmp_path / "ledger", rule=rule) as ledger:
        for period in range(3):
            found, state = vcca.earned(trained(state, period))
            ledger.settle(period, dict(zip(names, found.credits.tolist(), strict=True)), 900)
        assert ledger.balances() == {"ana": 900 + 600, "ben": 300 + 100, "cem": 800}
        assert [score / 2**40 for score in ledger.scores().values()] == [1.0, 0.5, 2.0]


def test_states_that_count_no_credit_are_refused():
    found, _ = vcca.earned(Plain(jnp.ones(2)))
    assert found.carry_over == 0
    with pytest.raises(ValueError, match="state is a tuple, which counts no credits"):
        vcca.earned((1, 2))
