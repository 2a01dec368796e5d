import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vcca_jax.values import (
    from_context,
    group_loss,
    linear_value,
    loss_gap,
    squared_distance,
    value_losses,
    weighted_sum,
    worst_group_loss,
)

PARAMS = {"w": np.array([0.5, -1.0, 2.0]), "b": np.array([[0.25]])}
LIKE = {"w": np.array([1.0, 2.0, -0.5]), "b": np.array([[-3.0]])}

numbers = st.lists(st.floats(-5, 5), min_size=2, max_size=2).map(np.array)


def quadratic(k):
    """V_k = (w_k - k)^2 + b, with a gradient that is easily written down."""
    return lambda params, context: (params["w"][k] - k) ** 2 + params["b"].sum()


def first(params, context):
    return params[0]


def second(params, context):
    return params[1]


def differences(loss, params, step=1e-5):
    """Central differences of a scalar function of an array, in float64."""
    basis = np.eye(params.size).reshape(-1, *params.shape) * step
    return np.array([(loss(params + e) - loss(params - e)) / (2 * step) for e in basis])


def test_losses_and_gradients_come_in_the_order_of_the_names():
    values = value_losses(
        {
            "squares": lambda params, context: (params["w"] ** 2).sum(),
            "probe": lambda params, context: context @ params["w"] + params["b"],
        }
    )
    assert values.names == ("squares", "probe")
    params = {"w": jnp.array([1.0, 2.0]), "b": jnp.array(0.5)}
    traces = []

    @jax.jit
    def run(params, context):
        traces.append(1)
        return values.losses(params, context), values.gradients(params, context)

    for context in (np.array([3.0, -1.0]), np.array([0.0, 4.0])):
        alone, (losses, rows) = run(params, context)
        expected = [5.0, context @ [1.0, 2.0] + 0.5]
        np.testing.assert_allclose(alone, expected, rtol=1e-6)
        np.testing.assert_allclose(losses, expected, rtol=1e-6)
        np.testing.assert_allclose(rows["w"], np.array([[2.0, 4.0], context]), rtol=1e-6)
        np.testing.assert_allclose(rows["b"], [0.0, 1.0])
    assert len(traces) == 1


def squared_error(params, inputs, targets):
    return (inputs @ params - targets) ** 2


def test_a_groups_loss_is_the_mean_over_the_group():
    inputs, targets = np.arange(6.0).reshape(3, 2), np.array([1.0, 0.0, -1.0])
    told = group_loss(squared_error, inputs, targets)(jnp.array([0.5, 0.25]), "not read")
    np.testing.assert_allclose(told, np.mean((inputs @ [0.5, 0.25] - targets) ** 2), rtol=1e-6)


def test_a_linear_value_has_its_direction_for_a_gradient():
    loss = linear_value(LIKE)
    value, gradient = jax.value_and_grad(loss)(PARAMS, None)
    assert value == pytest.approx(0.5 - 2.0 - 1.0 - 0.75)
    jax.tree.map(np.testing.assert_allclose, gradient, LIKE)


def test_a_squared_distance_grows_in_the_direction_away_from_the_reference():
    loss = squared_distance(LIKE)
    value, gradient = jax.value_and_grad(loss)(PARAMS, None)
    away = jax.tree.map(np.subtract, PARAMS, LIKE)
    assert value == pytest.approx((0.25 + 9 + 6.25 + 10.5625) / 2)
    jax.tree.map(np.testing.assert_allclose, gradient, away)
    assert not np.any(jax.tree.leaves(jax.grad(loss)(LIKE, None))[0])


@given(st.lists(st.floats(-4, 4), min_size=3, max_size=3), st.sampled_from([0.05, 0.5, 2.0]))
def test_the_worst_groups_loss_is_within_its_bounds_and_weighs_groups_by_softmax(each, temperature):
    each = np.array(each)
    losses = [lambda params, context, k=k: params[k] for k in range(3)]
    with jax.enable_x64(True):
        smooth = worst_group_loss(losses, temperature=temperature)
        told, gradient = jax.value_and_grad(smooth)(jnp.asarray(each), None)
        value = float(told)
    assert each.max() - 1e-9 <= value <= each.max() + temperature * np.log(3) + 1e-9
    exponentials = np.exp((each - each.max()) / temperature)
    np.testing.assert_allclose(gradient, exponentials / exponentials.sum(), atol=1e-9)


@given(numbers)
def test_a_gap_is_signed_or_smooth(pair):
    signed, smooth = loss_gap(first, second), loss_gap(first, second, smoothing=0.1)
    gap = pair[0] - pair[1]
    with jax.enable_x64(True):
        assert float(signed(jnp.asarray(pair), None)) == gap
        value = float(smooth(jnp.asarray(pair), None))
        gradient = np.asarray(jax.grad(smooth)(jnp.asarray(pair), None))
        swapped = float(loss_gap(second, first, smoothing=0.1)(jnp.asarray(pair), None))
    assert abs(gap) - 0.1 - 1e-12 <= value <= abs(gap)
    assert value == pytest.approx(np.hypot(gap, 0.1) - 0.1, abs=1e-12)
    assert value == pytest.approx(swapped)
    slope = gap / np.hypot(gap, 0.1)
    np.testing.assert_allclose(gradient, [slope, -slope], atol=1e-12)


def test_a_smooth_gap_keeps_its_digits_near_zero():
    """A gap far below the smoothing: size - smoothing would be all rounding in float32."""
    value = loss_gap(first, second, smoothing=1.0)(jnp.array([1e-5, 0.0]), None)
    assert value == pytest.approx(0.5e-10, rel=1e-4)


def test_a_weighted_sum_composes_with_the_others():
    loss = weighted_sum([quadratic(0), loss_gap(quadratic(2), quadratic(1))], [2.0, -0.5])
    value, gradient = jax.value_and_grad(loss)(PARAMS, None)
    assert value == pytest.approx(2 * (0.25 + 0.25) - 0.5 * (0.25 - 4.25))
    np.testing.assert_allclose(gradient["w"], [2.0, -0.5 * 2 * -2 * -1, 0.0], atol=1e-6)
    np.testing.assert_allclose(gradient["b"], [[2.0]])


@pytest.mark.parametrize(
    "loss",
    [
        worst_group_loss([quadratic(0), quadratic(1), quadratic(2)], temperature=0.7),
        loss_gap(quadratic(0), quadratic(1)),
        loss_gap(quadratic(0), quadratic(1), smoothing=0.3),
        weighted_sum([quadratic(0), quadratic(2)], [0.3, -2.0]),
        squared_distance(LIKE),
        linear_value(LIKE),
    ],
)
def test_gradients_are_those_of_finite_differences_also_under_jit_and_vmap(loss):
    with jax.enable_x64(True):

        def of_w(w):
            return loss({"w": w, "b": jnp.asarray(PARAMS["b"])}, None)

        several = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3)))
        exact = jax.jit(jax.vmap(jax.grad(of_w)))(several)
        plain = jax.jit(of_w)
        for w, gradient in zip(np.asarray(several), exact, strict=True):
            np.testing.assert_allclose(gradient, differences(plain, w), atol=1e-8)


def test_a_value_reads_its_context_by_name():
    assert from_context({"probe": 3}, "probe") == 3
    with pytest.raises(ValueError, match=r"context=\['probes'\] has no 'probe'"):
        from_context({"probes": 3}, "probe")
    with pytest.raises(ValueError, match="context=NoneType has no 'probe'"):
        from_context(None, "probe")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: value_losses({}), "losses={}"),
        (lambda: group_loss(None, np.zeros((0, 2)), np.zeros(0)), "inputs holds no example"),
        (lambda: group_loss(None, np.zeros((3, 2)), np.zeros(2)), "targets are 2 and inputs 3"),
        (lambda: linear_value({"w": np.zeros(2)}), "direction is zero"),
        (lambda: linear_value({"w": np.array([1, np.nan])}), "direction holds .* not finite"),
        (lambda: linear_value(LIKE)({"w": np.zeros(3)}, None), "direction has the shapes"),
        (lambda: linear_value(np.ones(1))(np.zeros(3), None), "direction has the shapes"),
        (lambda: squared_distance({"w": np.array([np.inf])}), "reference holds .* not finite"),
        (lambda: squared_distance(np.ones(1))(np.zeros(3), None), "reference has the shapes"),
        (lambda: worst_group_loss([], temperature=1.0), r"losses=\[\] is empty"),
        (lambda: worst_group_loss([first], temperature=0.0), "temperature=0.0"),
        (lambda: worst_group_loss([first], temperature=np.nan), "temperature=nan"),
        (lambda: loss_gap(first, second, smoothing=0.0), "smoothing=0.0"),
        (lambda: weighted_sum([], []), r"losses=\[\] is empty"),
        (lambda: weighted_sum([first], [1.0, 2.0]), "weights=.* 1 finite"),
        (lambda: weighted_sum([first], [np.inf]), "weights=.* 1 finite"),
    ],
)
def test_bad_input_is_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda params: 0.0, r"losses\['mine'\] takes \(params\), and must take"),
        (lambda params, context: jnp.zeros(3), r"losses\['mine'\] returns \(3,\) of float32"),
        (lambda params, context: jnp.int32(3), "one floating-point number"),
    ],
)
def test_what_is_no_value_loss_is_named(loss, message):
    def measured():
        values = value_losses({"mine": loss})
        return values.losses(jnp.ones(2), None), values.gradients(jnp.ones(2), None)

    with pytest.raises(ValueError, match=message):
        measured()
