import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vcca_jax.values import (
    Constraint,
    forbid,
    group_loss,
    protect,
    value_losses,
    value_profiles,
)

NAMES = ("women", "men", "old", "probe")

constraint = st.builds(
    lambda make, name, margin: make(name, margin),
    st.sampled_from([protect, forbid]),
    st.sampled_from(NAMES),
    st.floats(-2, 2, width=32),
)
profile = st.lists(constraint, max_size=4, unique_by=lambda c: (c.kind, c.value))


def as_lists(profiles):
    """The constraints back from the arrays."""
    kinds = {1.0: "protect", -1.0: "forbid"}
    return [
        [
            Constraint(kinds[float(s)], NAMES[v], float(m))
            for v, s, m, live in zip(*each, strict=True)
            if live
        ]
        for each in zip(*profiles, strict=True)
    ]


@given(st.lists(profile, min_size=1, max_size=4), st.integers(0, 2), st.integers(0, 2))
def test_profiles_are_written_whole_and_padding_says_nothing(stated, agents, slots):
    capacity, width = len(stated) + agents, max(1, *map(len, stated), 0) + slots
    arrays = value_profiles(NAMES, stated, capacity=capacity, constraints=width)
    assert as_lists(arrays) == [*stated, *[[]] * agents]
    for field, kind in zip(arrays, (np.int32, np.float32, np.float32, bool), strict=True):
        assert field.shape == (capacity, width)
        assert field.dtype == kind
        assert not field[~arrays.mask].any()
    assert (np.abs(arrays.sign) == arrays.mask).all()


def test_capacities_are_by_default_what_is_needed():
    arrays = value_profiles(NAMES, [[], [protect("old"), forbid("old", 0.5)], [forbid("probe")]])
    np.testing.assert_array_equal(arrays.value, [[0, 0], [2, 2], [3, 0]])
    np.testing.assert_array_equal(arrays.sign, [[0, 0], [1, -1], [-1, 0]])
    np.testing.assert_array_equal(arrays.margin, [[0, 0], [0, 0.5], [0, 0]])
    np.testing.assert_array_equal(arrays.mask, [[0, 0], [1, 1], [1, 0]])
    assert value_profiles(NAMES, [[], []]).mask.shape == (2, 1)


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


def test_a_groups_loss_is_the_mean_over_the_group():
    def loss_fn(params, inputs, targets):
        return (inputs @ params - targets) ** 2

    inputs, targets = np.arange(6.0).reshape(3, 2), np.array([1.0, 0.0, -1.0])
    told = group_loss(loss_fn, inputs, targets)(jnp.array([0.5, 0.25]), "not read")
    np.testing.assert_allclose(told, np.mean((inputs @ [0.5, 0.25] - targets) ** 2), rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: protect("old", float("nan")), "margin=nan"),
        (lambda: forbid("old", float("inf")), "margin=inf"),
        (lambda: value_losses({}), "losses={}"),
        (lambda: group_loss(None, np.zeros((0, 2)), np.zeros(0)), "inputs holds no example"),
        (
            lambda: value_profiles(NAMES, [[], [protect("young")]]),
            r"profiles\[1\] names the value 'young'.*women",
        ),
        (
            lambda: value_profiles(NAMES, [[forbid("old"), protect("old"), forbid("old", 1.0)]]),
            r"profiles\[0\] states forbid\('old'\) twice",
        ),
        (
            lambda: value_profiles(NAMES, [[Constraint("prevent", "old", 0.0)]]),
            r"profiles\[0\] holds the kind 'prevent'",
        ),
        (lambda: value_profiles(NAMES, [[], []], capacity=1), "capacity=1 .* 2 profiles"),
        (lambda: value_profiles(NAMES, [], capacity=0), "capacity=0"),
        (
            lambda: value_profiles(NAMES, [[protect("old"), protect("men")]], constraints=1),
            "constraints=1 .* 2",
        ),
        (lambda: value_profiles(NAMES, [[]], constraints=0), "constraints=0"),
    ],
)
def test_bad_input_is_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()
