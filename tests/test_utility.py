"""Utilities against NumPy float64, on the problem of ``tests.screens``."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.screens import (
    AGENTS,
    VALUES,
    WIDTH,
    case,
    flatten,
    gradients_of,
    linear_loss,
    twin,
    unflatten,
)
from vcca_jax import corruption
from vcca_jax.contribution import exact_shapley, influence, leave_one_out
from vcca_jax.gradients import agent_gradients
from vcca_jax.screening import screen
from vcca_jax.utility import one_step_utility, training_utility
from vcca_jax.values import Values, value_losses

GENERATOR = np.random.default_rng(17)
MIXES = GENERATOR.standard_normal((VALUES + 1, 6, WIDTH))  # of the value losses, and validation
BEFORE = GENERATOR.standard_normal(WIDTH)  # the update of the step before, for optimizers' memory
RATE = 0.1
OPTIMIZERS = {
    "sgd": optax.sgd(RATE),
    "momentum": optax.sgd(RATE, momentum=0.9),
    "adam": optax.adam(RATE),
}


def vector(params):
    return jnp.concatenate([params["a"].ravel(), params["b"]])


def loss_of(mix):
    return lambda params, context=None: jax.nn.logsumexp(mix @ vector(params))


validation_loss = loss_of(MIXES[-1])


def validation_by_hand(theta):
    return np.log(np.exp(MIXES[-1] @ theta).sum())


def step_by_hand(name, theta, update):
    """One step of each optimizer whose only step so far was on ``BEFORE``."""
    if name == "sgd":
        return theta - RATE * update
    if name == "momentum":
        return theta - RATE * (update + 0.9 * BEFORE)
    first = 0.9 * 0.1 * BEFORE + 0.1 * update
    second = 0.999 * 0.001 * BEFORE**2 + 0.001 * update**2
    corrected = first / (1 - 0.9**2), second / (1 - 0.999**2)
    return theta - RATE * corrected[0] / (np.sqrt(corrected[1]) + 1e-8)


def after_one_step(optimizer, params):
    before = unflatten(BEFORE.astype(params["b"].dtype))
    return optimizer.update(before, optimizer.init(params), params)[1]


@functools.cache
def jitted(name, scope=None, *, inside=False):
    """Value and gradient in w of a one-step utility; a scope means that there is a screen."""
    optimizer, apply = OPTIMIZERS[name], screen("project", scope=scope) if scope else None

    @jax.jit
    def run(given, weights):
        gradients = agent_gradients(linear_loss, given.params, given.batch)
        options = {"value_gradients": given.rows, "profiles": given.profiles}
        if apply and not inside:
            gradients, _ = apply(gradients, given.rows, given.profiles)
        utility = one_step_utility(
            given.params,
            after_one_step(optimizer, given.params),
            gradients,
            optimizer,
            validation_loss,
            **({"screen": apply, **options} if inside else {}),
        )
        return jax.value_and_grad(utility)(weights)

    return run


def coalitions(seed):
    rng = np.random.default_rng(seed)
    return [np.ones(AGENTS), np.zeros(AGENTS), rng.random(AGENTS), rng.integers(0, 2, AGENTS) * 1.0]


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_one_step_equals_the_computation_by_hand(name):
    with jax.enable_x64(True):
        for seed in range(4):
            given = case(seed)
            stack, _ = gradients_of(given.batch)
            for weights in coalitions(seed):
                theta = step_by_hand(name, flatten(given.params), weights @ stack)
                told, _ = jitted(name)(given, weights)
                np.testing.assert_allclose(told, -validation_by_hand(theta), rtol=1e-12)


def test_without_memory_nobody_is_worth_nothing_and_with_it_the_carry_over():
    with jax.enable_x64(True):
        given = case(0)
        before = -validation_by_hand(flatten(given.params))
        for name in OPTIMIZERS:
            nobody, _ = jitted(name)(given, np.zeros(AGENTS))
            moved = abs(float(nobody) - before) > 1e-3
            assert moved == (name != "sgd")


@pytest.mark.parametrize(
    "wrap",
    [lambda adam: adam, lambda adam: optax.apply_if_finite(adam, 3)],
    ids=["plain", "conditional"],
)
def test_the_slope_of_a_fresh_optimizer_is_finite_and_that_of_its_closed_form(wrap):
    """Adam's first step is -rate g / (|g| + eps), with slope -rate eps / (|g| + eps)^2, at g = 0
    too: for nobody, and for a parameter without a gradient. A root of 0 in it has no slope itself.
    """
    epsilon, idle = 0.1, 2
    optimizer = wrap(optax.adam(RATE, eps=epsilon))
    given = case(5)
    batch = given.batch._replace(
        inputs=given.batch.inputs * (np.arange(WIDTH) != idle),
        mask=np.ones_like(given.batch.mask),
    )

    @jax.jit
    def slope(params, batch, weights):
        gradients = agent_gradients(linear_loss, params, batch)
        utility = one_step_utility(
            params, optimizer.init(params), gradients, optimizer, validation_loss
        )
        return jax.grad(utility)(weights)

    with jax.enable_x64(True):
        stack, _ = gradients_of(batch)
        for weights in coalitions(5):
            update = weights @ stack
            theta = flatten(given.params) - RATE * update / (np.abs(update) + epsilon)
            powers = np.exp(MIXES[-1] @ theta)
            uphill = powers @ MIXES[-1] / powers.sum()
            expected = stack @ (RATE * epsilon / (np.abs(update) + epsilon) ** 2 * uphill)
            # optax corrects Adam's bias in float32.
            np.testing.assert_allclose(slope(given.params, batch, weights), expected, rtol=1e-5)
            assert (expected != 0).sum() >= 3


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_an_agent_without_an_update_is_worth_exactly_nothing(name):
    """Weights are fixed: leaving an agent out drops its terms and renormalises nothing."""
    given = case(1, dtype=np.float32)
    owners = np.array([0, 1, 2, 4, 0, 1, 2, 4, 4])  # agent 3 has no sample
    inputs = given.batch.inputs * (owners != 0)[:, None]  # agent 0 has no gradient
    batch = given.batch._replace(inputs=inputs, owners=owners, mask=np.ones_like(given.batch.mask))

    @jax.jit
    def credits(params, batch):
        utility = one_step_utility(
            params,
            after_one_step(OPTIMIZERS[name], params),
            agent_gradients(linear_loss, params, batch),
            OPTIMIZERS[name],
            validation_loss,
        )
        # One coalition at a time: in a batch the last rows may round unlike the others.
        return [
            estimate(utility, jnp.ones(AGENTS), batch_size=1)
            for estimate in (leave_one_out, exact_shapley)
        ]

    idle = np.array([True, False, False, True, False])
    for told in credits(given.params, batch):
        assert (np.asarray(told)[idle] == 0).all()
        assert (np.asarray(told)[~idle] != 0).all()


def screened_by_hand(given, scope, weights):
    """The coalition's terms, screened against the profiles of those who are in it."""
    stack, present = gradients_of(given.batch)
    inside = weights > 0
    return twin(
        "project",
        scope,
        weights[:, None] * stack,
        present & inside,
        given.batch.active & inside,
        flatten(given.rows),
        given.profiles,
    ).stack


@pytest.mark.parametrize("scope", ["own", "everyone"])
def test_inside_screens_each_coalition_anew(scope):
    with jax.enable_x64(True):
        for seed, margins in itertools.product(range(3), ("zero", "negative", "mixed")):
            given = case(seed, margins)
            for weights in coalitions(seed):
                update = screened_by_hand(given, scope, weights).sum(axis=0)
                theta = step_by_hand("sgd", flatten(given.params), update)
                told, _ = jitted("sgd", scope, inside=True)(given, weights)
                np.testing.assert_allclose(told, -validation_by_hand(theta), rtol=1e-11)


def test_outside_weighs_what_was_screened_once():
    with jax.enable_x64(True):
        given = case(2)
        stack = screened_by_hand(given, "everyone", np.ones(AGENTS))
        for weights in coalitions(2):
            theta = step_by_hand("adam", flatten(given.params), weights @ stack)
            told, _ = jitted("adam", "everyone")(given, weights)
            np.testing.assert_allclose(told, -validation_by_hand(theta), rtol=1e-11)


def test_inside_and_outside_coincide_where_projection_is_homogeneous_and_differ_elsewhere():
    """P(w g) = w P(g) on a cone whose apex is 0; a principal who leaves changes everyone's cone."""
    with jax.enable_x64(True):
        changed = []
        for seed in range(4):
            given = case(seed, "zero")
            for weights in coalitions(seed):
                inside, _ = jitted("sgd", "own", inside=True)(given, weights)
                screened = screened_by_hand(given, "own", np.ones(AGENTS))
                outside = step_by_hand("sgd", flatten(given.params), weights @ screened)
                np.testing.assert_allclose(inside, -validation_by_hand(outside), rtol=1e-11)
                inside, _ = jitted("sgd", "everyone", inside=True)(given, weights)
                screened = screened_by_hand(given, "everyone", np.ones(AGENTS))
                outside = step_by_hand("sgd", flatten(given.params), weights @ screened)
                changed.append(abs(float(inside) + validation_by_hand(outside)) > 1e-4)
        assert any(changed)
        # All of them, and none of them, are the same coalition in both games.
        assert not any(changed[0::4])
        assert not any(changed[1::4])


@pytest.mark.parametrize("scope", ["own", "everyone"])
def test_the_derivative_through_the_screen_equals_finite_differences(scope):
    with jax.enable_x64(True):
        value_and_slope = jitted("sgd", scope, inside=True)
        for seed, margins in itertools.product(range(4), ("zero", "negative")):
            given = case(seed, margins)
            weights = np.random.default_rng(seed).uniform(0.2, 0.9, AGENTS)
            _, slope = value_and_slope(given, weights)
            for i, unit in enumerate(1e-5 * np.eye(AGENTS)):
                ends = [value_and_slope(given, weights + sign * unit)[0] for sign in (1, -1)]
                np.testing.assert_allclose(slope[i], (ends[0] - ends[1]) / 2e-5, atol=1e-8)
        assert np.abs(slope).max() > 1e-3


def curved_loss(params, inputs, targets):
    """Its gradients change as the parameters do."""
    return jax.nn.softplus(linear_loss(params, inputs, targets))


def train_by_hand(batches, profiles, theta, weights, scope):
    """Momentum SGD, step by step, on the agents that are in."""
    memory = np.zeros(WIDTH)
    for batch in batches:
        if not batch.mask.any():
            continue
        slopes = 1 / (1 + np.exp(-(batch.inputs @ theta)))
        stack, present = gradients_of(batch._replace(inputs=slopes[:, None] * batch.inputs))
        inside = weights > 0
        stack = weights[:, None] * stack
        if scope:
            powers = np.exp(MIXES[:VALUES] @ theta)
            shares = powers / powers.sum(axis=1, keepdims=True)
            rows = np.einsum("mk,mkd->md", shares, MIXES[:VALUES])
            active = batch.active & inside
            stack = twin("project", scope, stack, present & inside, active, rows, profiles).stack
        memory = 0.9 * memory + stack.sum(axis=0)
        theta = theta - RATE * memory
    return -validation_by_hand(theta)


@pytest.mark.parametrize("scope", [None, "everyone"])
def test_a_run_equals_retraining_without_the_agents_left_out(scope):
    with jax.enable_x64(True):
        cases = [case(seed) for seed in range(4)]
        batches = [each.batch for each in cases]
        batches[2] = batches[2]._replace(mask=np.zeros_like(batches[2].mask))
        profiles = case(0, "negative").profiles
        run = jax.jit(
            training_utility(
                curved_loss,
                cases[0].params,
                OPTIMIZERS["momentum"],
                jax.tree.map(lambda *leaves: np.stack(leaves), *batches),
                validation_loss,
                screen=screen("project", scope=scope) if scope else None,
                values=value_losses({f"V{m}": loss_of(MIXES[m]) for m in range(VALUES)}),
                profiles=profiles,
            )
        )
        rng = np.random.default_rng(3)
        several = [np.ones(AGENTS), np.zeros(AGENTS), *rng.integers(0, 2, (6, AGENTS)) * 1.0]
        told = [run(weights) for weights in several]
        theta = flatten(cases[0].params)
        expected = [train_by_hand(batches, profiles, theta, each, scope) for each in several]
        np.testing.assert_allclose(told, expected, rtol=1e-11)
        assert len(set(np.round(told, 6))) > 4


SENT_SCALE = np.array([1.0, 0.0, -0.5, 1.0, 1.0])  # agent 1 sends nothing
SENT_PUSH = np.array([0.0, 0.0, 0.3, 0.0, 0.7])  # along the parameters, more at each step


def sent_updates(gradients, params, t):
    """h_i = s_i g_i - (1 + t) c_i theta."""
    scaled = corruption.scaled_updates(gradients, jnp.asarray(SENT_SCALE))
    return corruption.updates_toward(scaled, params, (1 + t) * jnp.asarray(SENT_PUSH))


@functools.cache
def changed_run(segments):
    batches = jax.tree.map(
        lambda *leaves: np.stack(leaves), *(case(seed).batch for seed in range(5))
    )

    @jax.jit
    def run(weights):
        utility = training_utility(
            curved_loss,
            case(0).params,
            OPTIMIZERS["momentum"],
            batches,
            validation_loss,
            segments=segments,
            changed=sent_updates,
        )
        return utility(weights), influence(utility, weights), leave_one_out(utility, weights)

    return run


@pytest.mark.parametrize("segments", [1, 2])
def test_a_run_on_changed_gradients_equals_the_loop_by_hand(segments):
    """Two segments of three steps for five batches: steps are counted over the whole run."""
    with jax.enable_x64(True):
        batches = [case(seed).batch for seed in range(5)]

        def by_hand(weights):
            theta, memory = flatten(case(0).params), np.zeros(WIDTH)
            for t, batch in enumerate(batches):
                slopes = 1 / (1 + np.exp(-(batch.inputs @ theta)))
                stack, present = gradients_of(batch._replace(inputs=slopes[:, None] * batch.inputs))
                pushes = (1 + t) * SENT_PUSH * present
                stack = SENT_SCALE[:, None] * stack - pushes[:, None] * theta
                memory = 0.9 * memory + weights @ stack
                theta = theta - RATE * memory
            return -validation_by_hand(theta)

        for weights in coalitions(6):
            told, credits, removed = changed_run(segments)(weights)
            np.testing.assert_allclose(told, by_hand(weights), rtol=1e-11)
            steps = 1e-5 * np.eye(AGENTS)
            rises = [by_hand(weights + each) - by_hand(weights - each) for each in steps]
            differences = np.array(rises) / 2e-5
            np.testing.assert_allclose(credits, weights * differences, rtol=1e-6, atol=1e-7)
            assert credits[1] == 0
            assert removed[1] == 0
            assert (np.abs(removed) > 1e-4).sum() == (weights[[0, 2, 4]] > 0).sum()


def test_a_screen_without_what_it_needs_is_refused():
    given = case(0, dtype=np.float32)
    gradients = agent_gradients(linear_loss, given.params, given.batch)
    rest = (OPTIMIZERS["sgd"], validation_loss)
    for missing in (
        {},
        {"value_gradients": given.rows},
        {"profiles": given.profiles},
    ):
        with pytest.raises(ValueError, match="value_gradients= and profiles="):
            one_step_utility(given.params, (), gradients, *rest, screen=screen(), **missing)
    values = Values((), None, None, ())
    for missing in ({}, {"values": values}, {"profiles": given.profiles}):
        with pytest.raises(ValueError, match="values= and profiles="):
            training_utility(
                linear_loss,
                given.params,
                OPTIMIZERS["sgd"],
                given.batch,
                validation_loss,
                screen=screen(),
                **missing,
            )
