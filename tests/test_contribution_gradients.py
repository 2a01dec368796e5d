"""Estimators that differentiate: modes that agree, Taylor games, quadrature, optimizers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.games import learning
from vcca_jax import contribution

AGENTS = 5


def quadratic(linear, interactions):
    return lambda w: 0.7 + jnp.vdot(linear, w) + 0.5 * jnp.vdot(w, interactions @ w)


@jax.jit
def on_quadratic(linear, interactions, weights):
    utility = quadratic(linear, interactions)
    return (
        contribution.in_run(utility, weights, order=2),
        contribution.exact_shapley(utility, weights),
        contribution.aumann_shapley(utility, weights, nodes=1),
        contribution.efficiency_gap(
            utility, weights, contribution.in_run(utility, weights, order=2)
        ),
        contribution.in_run(utility, weights, order=1),
        contribution.in_run(lambda w: jnp.vdot(linear, w), weights, order=2),
    )


@given(seed=st.integers(0, 2**16))
def test_second_order_in_run_is_the_shapley_value_of_a_quadratic_game(seed):
    """So it sums to the gain exactly; the first order is that of the linearised game."""
    draw = np.random.default_rng(seed)
    linear = draw.normal(size=AGENTS).astype(np.float32)
    square = draw.normal(size=(AGENTS, AGENTS)).astype(np.float32)
    interactions = square + square.T
    weights = draw.choice([0.0, 0.5, 1.0], size=AGENTS).astype(np.float32)
    second, shapley, diagonal, gap, first, linearised = on_quadratic(linear, interactions, weights)
    expected = weights * (linear + 0.5 * interactions @ weights)
    for credits in (second, shapley, diagonal):
        np.testing.assert_allclose(credits, expected, atol=1e-5)
    np.testing.assert_allclose(gap, 0.0, atol=1e-5)
    np.testing.assert_allclose(first, weights * linear, atol=1e-6)
    np.testing.assert_allclose(first, linearised, atol=1e-6)


def test_second_order_in_run_sums_to_the_drop_of_a_quadratic_validation_loss():
    """In double precision to rounding: a linear model's squared loss after one step."""
    draw = np.random.default_rng(0)
    inputs, targets = draw.normal(size=(40, 6)), draw.normal(size=40)
    start, parts = draw.normal(size=6), 0.1 * draw.normal(size=(AGENTS, 6))

    def utility(w):
        return -jnp.mean((inputs @ (start + w @ parts) - targets) ** 2)

    with jax.enable_x64(True):
        weights = jnp.ones(AGENTS)
        credits = contribution.in_run(utility, weights)
        gap = contribution.efficiency_gap(utility, weights, credits)
    slope = -2 * inputs.T @ (inputs @ start - targets) / 40
    hessian = -2 * inputs.T @ inputs / 40
    by_hand = parts @ slope + 0.5 * parts @ hessian @ parts.sum(axis=0)
    np.testing.assert_allclose(credits, by_hand, rtol=1e-12)
    assert abs(float(gap)) < 1e-14


@functools.cache
def influences():
    def both(parts, weights):
        utility = learning(parts)
        return (
            contribution.influence(utility, weights),
            contribution.influence(utility, weights, mode="forward"),
            contribution.influence(utility, weights, mode="forward", batch_size=2),
            contribution.leave_one_out(utility, weights),
        )

    return jax.jit(both)


@given(seed=st.integers(0, 2**16))
def test_influence_is_equal_in_both_modes(seed):
    draw = np.random.default_rng(seed)
    parts = draw.normal(size=(AGENTS, 3)).astype(np.float32)
    weights = draw.choice([0.0, 0.5, 1.0], size=AGENTS).astype(np.float32)
    reverse, forward, chunked, _ = influences()(parts, weights)
    scale = np.max(np.abs(reverse)) + 1
    np.testing.assert_allclose(forward, reverse, atol=3e-6 * scale)
    np.testing.assert_allclose(chunked, forward, atol=3e-6 * scale)


def test_influence_is_leave_one_out_to_first_order():
    """Ten times smaller parts, a hundred times smaller difference; weights in part included."""
    weights = np.array([1.0, 0.5, 1.0, 0.0, 1.0], np.float32)
    parts = np.random.default_rng(2).normal(size=(AGENTS, 3))
    with jax.enable_x64(True):
        differences = []
        for scale in (0.1, 0.01):
            slope, _, _, dropped = influences()(scale * parts, weights.astype(np.float64))
            assert np.max(np.abs(slope)) > 0.1 * scale
            differences.append(np.max(np.abs(slope - dropped)))
    assert 70 < differences[0] / differences[1] < 140


@pytest.mark.parametrize("degree", [1, 2, 3, 6])
def test_quadrature_is_exact_to_twice_the_nodes(degree):
    nodes = (degree + 1) // 2
    worths = np.array([0.5, 1.0, -0.3, 0.2])
    with jax.enable_x64(True):
        credits = contribution.aumann_shapley(
            lambda w: jnp.vdot(worths, w) ** degree, jnp.ones(4), nodes=nodes
        )
    np.testing.assert_allclose(credits, worths * worths.sum() ** (degree - 1), rtol=1e-12)


def test_the_efficiency_gap_is_the_quadrature_error():
    """Of the exponential, closed form e - 1, it falls with the nodes; credit keeps its form."""
    worths = np.array([1.5, 0.5, 1.0])

    def utility(w):
        return jnp.exp(jnp.vdot(worths, w))

    gaps = []
    with jax.enable_x64(True):
        for nodes in (1, 2, 4, 8):
            credits = contribution.aumann_shapley(utility, jnp.ones(3), nodes=nodes)
            gap = contribution.efficiency_gap(utility, jnp.ones(3), credits)
            np.testing.assert_allclose(gap, np.exp(3) - 1 - np.sum(credits), atol=1e-12)
            gaps.append(abs(float(gap)))
    assert gaps[0] > 10 * gaps[1] > 100 * gaps[2] > 1000 * gaps[3]
    assert gaps[3] < 1e-11
    np.testing.assert_allclose(credits, worths / 3 * (np.exp(3) - 1), rtol=1e-12)


def test_influence_misses_saturation_and_aumann_shapley_does_not():
    """v = 1 - exp(-sum): at the end of the diagonal hardly a slope is left."""
    worths = np.array([1.0, 2.0, 3.0], np.float32)

    def utility(w):
        return 1 - jnp.exp(-jnp.vdot(worths, w))

    weights = jnp.ones(3)
    gain = 1 - np.exp(-6.0)
    np.testing.assert_allclose(
        contribution.aumann_shapley(utility, weights), worths / 6 * gain, rtol=1e-5
    )
    np.testing.assert_allclose(
        contribution.influence(utility, weights), worths * np.exp(-6.0), rtol=1e-5
    )


@pytest.mark.parametrize("name", ["sgd", "momentum", "adam"])
def test_the_optimizer_inside_the_utility_is_differentiated(name):
    """In-run credit is the slope of the optimizer's own update at its own state."""
    optimizer = {
        "sgd": optax.sgd(0.1),
        "momentum": optax.sgd(0.1, momentum=0.9),
        "adam": optax.adam(0.1),
    }[name]
    draw = np.random.default_rng(5)
    params, target = draw.normal(size=(2, 4))
    gradients = draw.normal(size=(3, 4))
    with jax.enable_x64(True):
        params, gradients = jnp.asarray(params), jnp.asarray(gradients)
        state = optimizer.init(params)
        for _ in range(2):  # so that momenta and second moments are not zero
            _, state = optimizer.update(jnp.ones(4), state, params)

        def utility(w):
            updates, _ = optimizer.update(w @ gradients, state, params)
            return -jnp.sum((params + updates - target) ** 2)

        weights = jnp.ones(3)
        credits = contribution.in_run(utility, weights, order=1)
        diagonal = contribution.aumann_shapley(utility, weights, nodes=16)
        gap = contribution.efficiency_gap(utility, weights, diagonal)
        step = 1e-5
        slopes = [(utility(step * row) - utility(-step * row)) / (2 * step) for row in np.eye(3)]
        plain = 0.2 * gradients @ (params - target)
    np.testing.assert_allclose(credits, slopes, rtol=1e-6, atol=1e-9)
    assert abs(float(gap)) < 1e-6
    if name == "sgd":
        np.testing.assert_allclose(credits, plain, rtol=1e-9)
    else:
        # Assuming plain gradient descent would have given another answer.
        assert np.max(np.abs(credits - plain)) > 0.05 * np.max(np.abs(plain))


@pytest.mark.parametrize("mode", ["auto", "forward", "reverse"])
@pytest.mark.parametrize("agents", [2, 3])
def test_an_infinite_slope_at_an_absent_agent_spoils_nobodys_credit(mode, agents):
    """A tangent of 0 times the slope of the root at 0 is not a number."""
    weights = jnp.ones(agents).at[1].set(0.0)
    estimate = functools.partial(contribution.influence, mode=mode)
    credits = jax.jit(lambda w: estimate(lambda w: jnp.log1p(w.sum()) + jnp.sqrt(w[1]), w))(weights)
    np.testing.assert_allclose(credits, weights / (1 + weights.sum()), rtol=1e-6)


def test_a_slope_that_is_truly_lost_stays_lost_in_forward_mode():
    """Where the utility jumps as the absent one comes in, what is beside is another game."""

    def jumps(w):
        return jnp.where(w[1] > 0, 5.0 * w[0], w[0]) + jnp.sqrt(w[1])

    credits = contribution.influence(jumps, jnp.array([1.0, 0.0, 1.0]), mode="forward")
    assert np.isnan(credits[0])
    assert credits[1] == 0


@pytest.mark.parametrize(
    "estimator",
    [
        contribution.influence,
        functools.partial(contribution.influence, mode="forward"),
        contribution.in_run,
        contribution.aumann_shapley,
        contribution.first_order,
    ],
)
@pytest.mark.parametrize("agents", [2, 3])
def test_what_has_no_derivative_is_refused_in_words(estimator, agents):
    for utility, words in (
        (lambda w: 2 * w, r"utility returned shape \(.,\); it must return a scalar"),
        (lambda w: w.sum()[None], r"utility returned shape \(1,\)"),
        (lambda w: (w > 0).sum(), "utility returned int32, which has no derivative"),
        (lambda w: w[0] > 0, "utility returned bool, which has no derivative"),
    ):
        with pytest.raises(ValueError, match=words):
            estimator(utility, jnp.ones(agents))
