"""The optimizer's metric against what the optimizer does."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.screens import case, flatten, gradients_of, linear_loss, unflatten
from vcca_jax.constraints import protect
from vcca_jax.gradients import agent_gradients
from vcca_jax.metric import adam_metric
from vcca_jax.profiles import value_profiles
from vcca_jax.screening import screen

STEPS = 4


@pytest.mark.parametrize(
    ("optimizer", "options"),
    [
        (optax.adam(1.0, b1=0.8, b2=0.9, eps=1e-3), {"b1": 0.8, "b2": 0.9, "eps": 1e-3}),
        (
            optax.chain(optax.clip(1e9), optax.adamw(1.0, eps_root=1e-4, weight_decay=0.0)),
            {"eps_root": 1e-4},
        ),
    ],
)
def test_a_gradients_own_part_of_adams_direction_is_the_metric_times_it(optimizer, options):
    """What Adam does with g, less what it would do with the same second moment and g = 0."""
    metric = adam_metric(**options)
    with jax.enable_x64(True):
        params = unflatten(np.zeros(10))
        state = optimizer.init(params)
        rng = np.random.default_rng(0)
        for _ in range(STEPS):
            gradient = unflatten(rng.standard_normal(10))
            diagonal = metric(state, gradient)
            updates, after = optimizer.update(gradient, state, params)
            adam = next(
                leaf
                for leaf in jax.tree.leaves(
                    state, is_leaf=lambda x: isinstance(x, optax.ScaleByAdamState)
                )
                if isinstance(leaf, optax.ScaleByAdamState)
            )
            # Adam's direction is linear in the first moment once the second is known.
            b1 = options.get("b1", 0.9)
            carried = flatten(adam.mu) * b1 / (1 - b1)
            wanted = flatten(diagonal) * (flatten(gradient) + carried)
            np.testing.assert_allclose(-flatten(updates), wanted, rtol=1e-10)
            state = after


@jax.jit
def screened_sum(this, profiles, metric):
    gradients = agent_gradients(linear_loss, this.params, this.batch)
    return screen(scope="everyone")(gradients, this.rows, profiles, metric=metric)[0].sum()


def test_in_the_metric_the_preconditioned_sum_is_admissible():
    """Screened as they are, the parts are admissible and Adam's direction is not."""
    crossed = {"metric": 0, "plain": 0}
    with jax.enable_x64(True):
        for seed in range(10):
            this = case(seed)
            rows = flatten(this.rows)
            profiles = value_profiles(
                ["V0", "V1", "V2", "V3"], [[protect("V0"), protect("V1")]] * 5
            )
            diagonal = np.random.default_rng(seed).uniform(0.05, 5.0, 10)
            for name, metric in (("metric", diagonal), ("plain", np.ones(10))):
                direction = diagonal * flatten(screened_sum(this, profiles, unflatten(metric)))
                crossed[name] += (rows[:2] @ direction < -1e-9).any()
            assert gradients_of(this.batch)[1].any()
    assert crossed["metric"] == 0 < crossed["plain"]


@pytest.mark.parametrize("optimizer", [optax.adam(0.1), optax.adamw(0.1), optax.adam(1e-3)])
def test_an_optimizer_of_these_arguments_is_accepted(optimizer):
    adam_metric(optimizer=optimizer)


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.adamax(0.1),
        optax.yogi(0.1),
        optax.nadam(0.1),
        optax.adam(0.1, b1=0.8),
        optax.adam(0.1, eps=1e-2),
        optax.chain(optax.clip(0.1), optax.adam(0.1)),
    ],
    ids=["adamax", "yogi", "nadam", "b1", "eps", "clipped"],
)
def test_an_optimizer_that_keeps_adams_state_and_steps_otherwise_is_told_apart(optimizer):
    with pytest.raises(ValueError, match="optimizer does not step as Adam"):
        adam_metric(optimizer=optimizer)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"b1": 1.0}, r"b1=1.0 must lie in \[0, 1\)"),
        ({"b2": 2.0}, "b2=2.0"),
        ({"b2": float("nan")}, "b2=nan"),
        ({"eps": -1e-8}, "eps=-1e-08"),
        ({"eps_root": float("inf")}, "eps_root=inf"),
        ({"optimizer": optax.sgd(0.1)}, "holds 0 states of scale_by_adam"),
    ],
)
def test_bad_arguments_are_named(options, says):
    with pytest.raises(ValueError, match=says):
        adam_metric(**options)


def test_a_state_without_adam_is_refused():
    params = {"a": jnp.zeros(2)}
    with pytest.raises(ValueError, match="holds 0 states of scale_by_adam"):
        adam_metric()(optax.sgd(0.1).init(params), params)
