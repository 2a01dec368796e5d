import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vcca_jax.fairness import (
    demographic_parity,
    equal_opportunity,
    equalized_odds,
    mean_squared_gap,
    measure_fairness,
    positive_rate,
    score_covariance,
    worst_gap,
)
from vcca_jax.values import loss_gap

ROWS = 40
generator = np.random.default_rng(1)
INPUTS = generator.normal(size=(ROWS, 3))
TARGETS = (INPUTS[:, 0] + generator.normal(size=ROWS) > 0).astype(int)
GROUPS = np.stack([np.arange(ROWS) % 4 == 0, np.arange(ROWS) % 4 == 1, np.arange(ROWS) % 4 > 1])
AGE = generator.normal(size=ROWS)
PARAMS = np.array([0.8, -0.5, 0.3])


def scores(params, inputs):
    return jnp.asarray(inputs) @ params


def soft_rates(params, condition):
    chance = 1 / (1 + np.exp(-(INPUTS @ params)))
    return np.array([chance[group & condition].mean() for group in GROUPS])


def squared(rates):
    """The mean over pairs, pair by pair."""
    pairs = [(a - b) ** 2 for i, a in enumerate(rates) for b in rates[:i]]
    return np.mean(pairs)


EVERY, POSITIVE = np.ones(ROWS, bool), TARGETS == 1
EXPECTED = {
    "demographic_parity": lambda p: squared(soft_rates(p, EVERY)),
    "equal_opportunity": lambda p: squared(soft_rates(p, POSITIVE)),
    "equalized_odds": lambda p: (
        (squared(soft_rates(p, POSITIVE)) + squared(soft_rates(p, ~POSITIVE))) / 2
    ),
    "score_covariance": lambda p: np.cov(AGE, INPUTS @ p, bias=True)[0, 1] ** 2,
    "positive_rate": lambda p: soft_rates(p, EVERY) @ GROUPS.sum(axis=1) / ROWS,
}


@functools.cache
def value(name):
    return {
        "demographic_parity": lambda: demographic_parity(scores, INPUTS, GROUPS),
        "equal_opportunity": lambda: equal_opportunity(scores, INPUTS, TARGETS, GROUPS),
        "equalized_odds": lambda: equalized_odds(scores, INPUTS, TARGETS, GROUPS),
        "score_covariance": lambda: score_covariance(scores, INPUTS, AGE),
        "positive_rate": lambda: positive_rate(scores, INPUTS),
    }[name]()


@pytest.mark.parametrize("name", EXPECTED)
def test_a_measure_is_what_numpy_computes_and_so_is_its_gradient(name):
    with jax.enable_x64(True):
        run = jax.jit(jax.value_and_grad(value(name)))
        told, gradient = run(jnp.asarray(PARAMS), None)
        np.testing.assert_allclose(told, EXPECTED[name](PARAMS), rtol=1e-10)
        steps = np.eye(3) * 1e-5
        slopes = [(EXPECTED[name](PARAMS + e) - EXPECTED[name](PARAMS - e)) / 2e-5 for e in steps]
        np.testing.assert_allclose(gradient, slopes, atol=1e-8)


def test_a_step_against_the_gradient_closes_the_gap():
    loss = value("demographic_parity")
    step = jnp.asarray(PARAMS, jnp.float32)
    closer = step - 0.1 * jax.grad(loss)(step, None)
    assert loss(closer, None) < loss(step, None)


rates = st.lists(st.floats(0, 1), min_size=2, max_size=5).map(np.array)


@given(rates, st.sampled_from([0.02, 0.1, 0.5]))
def test_spreads_are_zero_at_parity_and_bounded_by_the_hard_gap(each, temperature):
    with jax.enable_x64(True):
        smooth = float(worst_gap(temperature)(jnp.asarray(each)))
        mean = float(mean_squared_gap(jnp.asarray(each)))
        level = jnp.full(len(each), each[0])
        assert worst_gap(temperature)(level) == pytest.approx(0, abs=1e-12)
        assert mean_squared_gap(level) == pytest.approx(0, abs=1e-12)
    hard = each.max() - each.min()
    assert hard - 2 * temperature * np.log(len(each)) - 1e-12 <= smooth <= hard + 1e-12
    assert smooth >= -1e-12
    assert mean == pytest.approx(squared(each), abs=1e-12)
    assert mean <= hard**2 + 1e-12


@given(st.floats(0, 1), st.floats(0, 1))
def test_for_two_groups_the_worst_gap_has_a_closed_form(a, b):
    with jax.enable_x64(True):
        told = float(worst_gap(0.1)(jnp.array([a, b])))
    assert told == pytest.approx(0.2 * np.log(np.cosh((a - b) / 0.2)), abs=1e-12)


def test_for_two_groups_both_spreads_point_the_same_way():
    """So that with a margin of 0 they are the same half-space of updates."""
    with jax.enable_x64(True):
        group = GROUPS[0]
        rows = [
            jax.grad(demographic_parity(scores, INPUTS, group, spread=spread))(PARAMS, None)
            for spread in (mean_squared_gap, worst_gap(0.1))
        ]
        unit = [row / jnp.linalg.norm(row) for row in rows]
        np.testing.assert_allclose(unit[0], unit[1], atol=1e-12)


def test_a_group_alone_is_a_group_and_the_rest():
    group = GROUPS[0]
    alone = demographic_parity(scores, INPUTS, group)(PARAMS, None)
    both = demographic_parity(scores, INPUTS, np.stack([group, ~group]))(PARAMS, None)
    assert alone == both
    signed = loss_gap(positive_rate(scores, INPUTS[group]), positive_rate(scores, INPUTS[~group]))
    assert signed(PARAMS, None) ** 2 == pytest.approx(float(alone), rel=1e-4)


def test_rows_of_no_group_do_not_count():
    some = GROUPS[:2]
    told = demographic_parity(scores, INPUTS, some)(PARAMS, None)
    chance = 1 / (1 + np.exp(-(INPUTS @ PARAMS)))
    gap = chance[some[0]].mean() - chance[some[1]].mean()
    assert told == pytest.approx(gap**2, rel=1e-4)


def counted(decided, targets, masks):
    """The report by plain counting."""

    def rate(among):
        return decided[among].mean() if among.any() else np.nan

    selection = [rate(m) for m in masks]
    true = [rate(m & (targets == 1)) for m in masks]
    false = [rate(m & (targets == 0)) for m in masks]

    def gap(rates):
        known = [r for r in rates if not np.isnan(r)]
        return max(known) - min(known) if known else np.nan

    gaps = [g for g in (gap(true), gap(false)) if not np.isnan(g)]
    return selection, true, false, gap(selection), gap(true), max(gaps, default=np.nan)


measure = jax.jit(measure_fairness)


@given(st.integers(0, 2**32 - 1))
def test_the_hard_rates_are_counted(seed):
    random = np.random.default_rng(seed)
    values, targets = random.normal(size=12).astype(np.float32), random.integers(0, 2, 12)
    masks = random.random((3, 12)) < 0.4
    for told, expected in zip(
        measure(values, targets, masks), counted(values > 0, targets, masks), strict=True
    ):
        np.testing.assert_allclose(told, expected, rtol=1e-6)


def test_the_hard_rates_of_a_group_and_the_rest_and_of_another_threshold():
    values, group = np.asarray(INPUTS @ PARAMS, np.float32), GROUPS[0]
    told = measure_fairness(values, TARGETS, group, threshold=0.5)
    expected = counted(values > 0.5, TARGETS, np.stack([group, ~group]))
    for here, there in zip(told, expected, strict=True):
        np.testing.assert_allclose(here, there, rtol=1e-6)


def test_sharp_scores_bring_the_soft_measure_to_the_hard_one():
    sharp = demographic_parity(
        lambda params, inputs: 1e6 * scores(params, inputs), INPUTS, GROUPS[0]
    )(PARAMS, None)
    hard = measure(INPUTS @ PARAMS, TARGETS, GROUPS[0]).demographic_parity
    assert hard > 0.1
    assert sharp == pytest.approx(float(hard) ** 2, rel=1e-4)


def test_a_score_that_is_no_number_leaves_its_groups_and_the_gaps_unknown():
    values = np.asarray(INPUTS @ PARAMS, np.float32)
    here = np.flatnonzero(GROUPS[0] & (TARGETS == 1))[0]
    values[here] = np.nan
    told = measure(values, TARGETS, GROUPS[0])
    whole = measure(np.nan_to_num(values), TARGETS, GROUPS[0])
    assert np.isnan(told.selection_rate).tolist() == [True, False]
    assert np.isnan([told.demographic_parity, told.equal_opportunity, told.equalized_odds]).all()
    np.testing.assert_array_equal(told.false_positive_rate, whole.false_positive_rate)
    # A row of no group is nobody's.
    apart = GROUPS & (np.arange(ROWS) != here)
    rates, expected = (
        measure(values, TARGETS, apart),
        measure(np.nan_to_num(values), TARGETS, apart),
    )
    np.testing.assert_array_equal(rates.equalized_odds, expected.equalized_odds)


NOBODY, NEGATIVE = np.zeros((2, ROWS), bool), np.stack([~POSITIVE, EVERY])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: positive_rate(scores, INPUTS[:0]), "inputs holds no example"),
        (lambda: demographic_parity(scores, INPUTS, NOBODY), r"groups\[0\] holds no row"),
        (lambda: demographic_parity(scores, INPUTS, EVERY), r"groups\[1\] holds no row"),
        (lambda: demographic_parity(scores, INPUTS, GROUPS[:1]), "groups have the shape .* G >= 2"),
        (lambda: demographic_parity(scores, INPUTS, GROUPS[:, :5]), "groups have the shape"),
        (lambda: demographic_parity(scores, INPUTS, TARGETS), "groups are of int64"),
        (
            lambda: equal_opportunity(scores, INPUTS, TARGETS, NEGATIVE),
            r"groups\[0\] holds no row with target 1",
        ),
        (
            lambda: equalized_odds(scores, INPUTS, TARGETS, np.stack([POSITIVE, EVERY])),
            r"groups\[0\] holds no row with target 0",
        ),
        (lambda: equal_opportunity(scores, INPUTS, TARGETS * 2, GROUPS), "targets of the shape"),
        (lambda: equal_opportunity(scores, INPUTS, TARGETS[:3], GROUPS), "targets of the shape"),
        (lambda: score_covariance(scores, INPUTS, AGE[:3]), "attribute has the shape"),
        (lambda: score_covariance(scores, INPUTS, AGE * np.nan), "attribute has the shape"),
        (lambda: score_covariance(scores, INPUTS, AGE * 0), "attribute is the same"),
        (lambda: worst_gap(0.0), "temperature=0.0"),
        (lambda: measure(AGE, TARGETS, TARGETS), "groups are of int"),
        (lambda: measure(AGE, TARGETS, GROUPS[:1]), "groups have the shape .* G >= 2"),
        (lambda: measure(AGE, TARGETS, GROUPS[:, :5]), "groups have the shape"),
        (lambda: measure(AGE, TARGETS[:1], GROUPS), r"targets \(1,\); give one of each a row"),
        (lambda: measure(AGE[:, None], TARGETS, GROUPS), "scores have the shape"),
        (
            lambda: positive_rate(lambda p, x: scores(p, x)[:, None], INPUTS)(PARAMS, None),
            r"score_fn returns the shape \(40, 1\); return logits \[40\]",
        ),
    ],
)
def test_bad_input_is_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()
