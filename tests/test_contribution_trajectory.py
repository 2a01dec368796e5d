"""Credit for a whole run: its derivatives, its segments, retraining, and closed forms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.problems import criterion, in_float64, problem
from vcca_jax import contribution
from vcca_jax.gradients import agent_gradients
from vcca_jax.utility import _segment_length, one_step_utility, training_utility
from vcca_jax.virtual_batch import VirtualBatch

AGENTS, STEPS, SLOTS, WIDTH = 4, 19, 6, 3
EMPTY = 7  # the batch without a live sample
OPTIMIZERS = {
    "momentum": optax.sgd(0.3, momentum=0.8),
    "clipped adamw": optax.chain(
        optax.clip_by_global_norm(0.2), optax.adamw(0.05, weight_decay=0.01)
    ),
}


def loss_fn(params, inputs, targets):
    """Logistic regression; feature 0 is always 0, so that its parameter has no gradient."""
    return jax.nn.softplus(-targets * (inputs @ params["w"]))


def vector_loss(mix):
    return lambda params: jax.nn.logsumexp(mix @ params["w"])


@functools.cache
def run():
    """Batches [T] in float64 (agent 3 is in none of them), initial parameters, validation loss."""
    draw = np.random.default_rng(4)
    inputs = draw.normal(size=(STEPS, SLOTS, WIDTH))
    inputs[..., 0] = 0
    batches = VirtualBatch(
        inputs=inputs,
        targets=np.sign(inputs[..., 1] + 0.8 * draw.normal(size=(STEPS, SLOTS))),
        owners=draw.integers(0, AGENTS - 1, (STEPS, SLOTS)).astype(np.int32),
        rows=np.zeros((STEPS, SLOTS), np.int32),
        mask=(draw.random((STEPS, SLOTS)) < 0.9) & (np.arange(STEPS) != EMPTY)[:, None],
        active=np.ones((STEPS, AGENTS), bool),
    )
    return batches, {"w": draw.normal(size=WIDTH)}, vector_loss(draw.normal(size=(5, WIDTH)))


def utility(name, **options):
    batches, params, validation = run()
    params = jax.tree.map(jnp.asarray, params)
    return training_utility(loss_fn, params, OPTIMIZERS[name], batches, validation, **options)


@functools.cache
def value_and_slope(name, segments=None):
    """Of a segmented run in the weights, jitted; call it under float64."""
    return jax.jit(jax.value_and_grad(utility(name, segments=segments)))


SOME = np.array([0.9, 0.4, 1.0, 0.7])


def test_segments_change_no_number():
    """19 steps as 4 segments of 5, of which the last ends with an empty batch."""
    with jax.enable_x64(True):
        expected = value_and_slope("clipped adamw", 1)(SOME)
        told = value_and_slope("clipped adamw")(SOME)
    for ours, theirs in zip(told, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-11, atol=1e-14)
    assert np.abs(told[1]).max() > 1e-2


def test_one_batch_that_is_not_stacked_and_segments_that_are_no_number_are_refused():
    batches, params, validation = run()
    one = jax.tree.map(lambda leaf: leaf[0], batches)
    made = functools.partial(training_utility, loss_fn, params, OPTIMIZERS["momentum"])
    with pytest.raises(ValueError, match=r"batches.mask has shape \(6,\); .* leaf\[None\]"):
        made(one, validation)
    with pytest.raises(ValueError, match=r"segments is 1\.5; pass a whole number"):
        made(batches, validation, segments=1.5)


def test_the_default_division_keeps_few_states_and_adds_few_batches():
    assert [_segment_length(steps, None) for steps in (1, 16, 19, 200)] == [1, 16, 5, 20]
    assert [_segment_length(200, segments) for segments in (1, 3, 200)] == [200, 67, 1]
    for steps in range(17, 1000, 7):
        length = _segment_length(steps, None)
        assert -(-steps // length) + length <= 3 * steps**0.5 + 2
        assert -steps % length <= 8
    batches, params, validation = run()
    for segments in (0, STEPS + 1):
        with pytest.raises(ValueError, match=f"segments={segments} must lie between 1 and the 19"):
            training_utility(
                loss_fn, params, OPTIMIZERS["momentum"], batches, validation, segments=segments
            )


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_the_slope_of_a_run_is_that_of_its_finite_differences(name):
    """The optimizer's own update is differentiated: momentum, moments, clipping and decay."""
    with jax.enable_x64(True):
        slope = np.asarray(value_and_slope(name)(SOME)[1])
        around = SOME + 1e-5 * np.concatenate([np.eye(AGENTS), -np.eye(AGENTS)])
        ends = np.array([value_and_slope(name)(weights)[0] for weights in around])
    differences = (ends[:AGENTS] - ends[AGENTS:]) / 2e-5
    np.testing.assert_allclose(slope, differences, rtol=1e-6, atol=1e-8)
    assert slope[3] == 0
    assert np.abs(slope[:3]).min() > 1e-4


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_slopes_are_finite_where_nobody_or_hardly_anybody_takes_part(name):
    """Roots of 0 and quotients by 0: at w = 0, for one agent alone, for the idle parameter."""
    with jax.enable_x64(True):
        for weights in (np.zeros(AGENTS), np.eye(AGENTS)[0], np.eye(AGENTS)[3], np.ones(AGENTS)):
            _, slope = value_and_slope(name)(weights)
            assert np.isfinite(slope).all()
            assert slope[3] == 0
            assert (np.asarray(slope)[:3] != 0).all()


def test_segments_bound_the_memory_of_reverse_mode():
    """By the compiler's account; the run itself is longer than that of the other tests."""
    batches, params, validation = run()
    longer = jax.tree.map(lambda leaf: np.concatenate([leaf] * 20), batches)

    def temporaries(segments):
        slope = jax.grad(
            training_utility(
                loss_fn, params, OPTIMIZERS["momentum"], longer, validation, segments=segments
            )
        )
        compiled = jax.jit(slope).lower(jnp.ones(AGENTS)).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporaries(None) < temporaries(1) / 3


@functools.cache
def estimates():
    """Those that the slope alone does not give."""
    forward = functools.partial(contribution.influence, mode="forward", batch_size=2)
    diagonal = functools.partial(contribution.aumann_shapley, nodes=6)
    return jax.jit(
        lambda weights: tuple(each(utility("momentum"), weights) for each in (forward, diagonal))
    )


def test_a_runs_influence_is_the_same_forward_and_in_reverse():
    with jax.enable_x64(True):
        forward, _ = estimates()(SOME)
        _, slope = value_and_slope("momentum")(SOME)
    np.testing.assert_allclose(forward, SOME * np.asarray(slope), rtol=1e-10, atol=1e-14)


def test_a_runs_aumann_shapley_credit_sums_to_its_gain_as_nodes_grow():
    with jax.enable_x64(True):
        ends = [value_and_slope("momentum")(scale * np.ones(AGENTS)) for scale in (0.0, 0.5, 1.0)]
        _, credits = estimates()(np.ones(AGENTS))
    gain = float(ends[2][0]) - float(ends[0][0])
    one_node, six_nodes = (gain - np.asarray(each).sum() for each in (ends[1][1], credits))
    assert abs(one_node) > 1e-3
    assert abs(six_nodes) < 1e-2 * abs(one_node)


def test_auto_goes_forward_for_few_agents_alone():
    """A loop of unknown length has no reverse mode, so the modes can be told apart."""

    def looped(w):
        return jax.lax.while_loop(lambda s: s[0] < 3, lambda s: (s[0] + 1, s[1] * s[1]), (0, w))[1]

    credits = contribution.influence(lambda w: looped(w).sum(), jnp.ones(2))
    np.testing.assert_allclose(credits, 8.0)
    with pytest.raises(ValueError, match="Reverse-mode"):
        contribution.influence(lambda w: looped(w).sum(), jnp.ones(3))


def test_leave_one_out_of_a_run_is_retraining_without_the_agent():
    """The same plan with the agent's samples taken out of it, each batch's B as it was."""
    members, model, loss, params, batches = problem()
    optimizer, rate = optax.adam(0.05), 2
    held = batches[0].inputs, batches[0].targets

    def validation(at):
        return loss(at, *held).mean()

    with jax.enable_x64(True):
        params = in_float64(params)
        stacked = in_float64(jax.tree.map(lambda *leaves: jnp.stack(leaves), *(batches * rate)))

        @jax.jit
        def step(at, state, batch, kept, count):
            slope = jax.grad(
                lambda p: (
                    jnp.where(
                        kept,
                        criterion(model.apply(p, batch.inputs), batch.targets),
                        0,
                    ).sum()
                    / count
                )
            )(at)
            updates, state = optimizer.update(slope, state, at)
            return optax.apply_updates(at, updates), state

        def retrained(absent):
            at, state = params, optimizer.init(params)
            for batch in in_float64(batches * rate):
                kept = batch.mask & (batch.owners != absent)
                at, state = step(at, state, batch, kept, float(batch.mask.sum()))
            return -float(validation(at))

        credits = jax.jit(
            lambda weights: contribution.leave_one_out(
                training_utility(loss, params, optimizer, stacked, validation), weights
            )
        )(np.ones(len(members.shards.active)))
        credits = np.asarray(credits)
        worths = [retrained(agent) for agent in range(len(credits))]
        everybody = retrained(-1)
    np.testing.assert_allclose(credits, everybody - np.array(worths), atol=1e-12)
    assert credits[1] == 0  # the agent without data
    assert np.abs(np.delete(credits, 1)).min() > 1e-4


def test_influence_through_gradient_descent_on_a_quadratic_has_a_closed_form():
    """theta' = theta - eta sum_i w_i (A_i theta - b_i), A_i = X_i^T X_i / B: linear at every step,
    so d theta_T / d w_i = -eta sum_t (1 - eta A)^(T-1-t) (A_i theta_t - b_i).
    """
    rate, steps, draw = 0.2, 20, np.random.default_rng(8)
    inputs, targets = draw.normal(size=(8, WIDTH)), draw.normal(size=8)
    owners, direction = np.arange(8) % AGENTS, draw.normal(size=WIDTH)
    own = (owners == np.arange(AGENTS)[:, None]).astype(float)
    squares = np.einsum("is,sd,se->ide", own, inputs, inputs) / 8
    linear = np.einsum("is,sd,s->id", own, inputs, targets) / 8
    theta, moved = np.ones(WIDTH), np.zeros((AGENTS, WIDTH))
    whole = np.eye(WIDTH) - rate * squares.sum(axis=0)
    for _ in range(steps):
        moved = moved @ whole - rate * (squares @ theta - linear)
        theta = whole @ theta + rate * linear.sum(axis=0)
    with jax.enable_x64(True):
        batch = VirtualBatch(inputs, targets, owners, owners, np.ones(8, bool), own.any(axis=1))
        value = training_utility(
            lambda p, x, y: 0.5 * (x @ p - y) ** 2,
            jnp.ones(WIDTH),
            optax.sgd(rate),
            jax.tree.map(lambda leaf: np.stack([leaf] * steps), batch),
            lambda p: jnp.vdot(jnp.asarray(direction), p),
        )
        credits = jax.jit(lambda w: contribution.influence(value, w))(np.ones(AGENTS))
    np.testing.assert_allclose(credits, -moved @ direction, rtol=1e-11)


def test_second_order_in_run_sums_exactly_under_momentum_and_weight_decay():
    """The update is linear in w and the validation loss quadratic. What the optimizer does by
    itself is v(0) - v(nothing): with it the credits sum to the whole change of the loss.
    """
    optimizer = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.3, momentum=0.9))
    draw = np.random.default_rng(9)
    mix, target = draw.normal(size=(5, WIDTH)), draw.normal(size=5)
    batches, params, _ = run()
    with jax.enable_x64(True):
        at = jnp.asarray(params["w"])

        def validation(p):
            return jnp.mean((jnp.asarray(mix) @ p["w"] - target) ** 2)

        @jax.jit
        def told(at, batch):
            state = optimizer.update({"w": jnp.ones(WIDTH)}, optimizer.init(at), at)[1]
            gradients = agent_gradients(loss_fn, at, batch)
            value = one_step_utility(at, state, gradients, optimizer, validation)
            ones = jnp.ones(AGENTS)
            carried = value(0 * ones) + validation(at)
            orders = [contribution.in_run(value, ones, order=order) for order in (1, 2)]
            return value(ones) + validation(at), carried, orders

        first = jax.tree.map(lambda leaf: leaf[0], batches)
        change, carried, (slopes, credits) = told({"w": at}, first)
    change, carried, first_order = float(change), float(carried), float(np.asarray(slopes).sum())
    np.testing.assert_allclose(np.asarray(credits).sum() + carried, change, rtol=1e-12)
    assert abs(carried) > 1e-2
    assert abs(first_order + carried - change) > 1e-4
