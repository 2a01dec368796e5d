"""Lossless: traversal learning equals centralized training."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.problems import (
    CLASSES,
    FEATURES,
    batches,
    criterion,
    in_float64,
    problem,
    relative_difference,
    shards,
    tanh_mlp,
)
from vcca_jax.baselines.centralized import centralized
from vcca_jax.cooperative import cooperative, join, leave
from vcca_jax.traversal import split_traversal, traversal, traverse
from vcca_jax.virtual_batch import gather

OPTIMIZERS = {
    "sgd": lambda: optax.sgd(0.1),
    "momentum": lambda: optax.sgd(0.05, momentum=0.9, nesterov=True),
    "adam": lambda: optax.adam(0.01),
    "clipped": lambda: optax.chain(optax.clip_by_global_norm(0.3), optax.adamw(0.01)),
}


def train(trainer, params, steps):
    step = jax.jit(trainer.step)
    state = trainer.init(params)
    losses = []
    for batch in steps:
        state, info = step(state, batch)
        losses.append(float(info.loss))
    return state, losses


@pytest.mark.parametrize("cut", [0, 1, 2])
def test_one_traversal_equals_the_pooled_gradient_at_every_cut(cut):
    _, model, loss_fn, params, steps = problem(cut=cut)
    for batch in steps:
        live = np.flatnonzero(batch.mask)
        pooled = lambda p: loss_fn(p, batch.inputs[live], batch.targets[live]).mean()  # noqa: B023, E731
        expected_loss, expected = jax.value_and_grad(pooled)(params)
        loss, gradient = jax.jit(lambda p, b: traverse(model, criterion, p, b))(params, batch)
        np.testing.assert_allclose(loss, expected_loss, rtol=1e-6)
        assert relative_difference(gradient, expected) < 1e-6


@pytest.mark.parametrize("cut", [0, 1, 2])
def test_one_traversal_in_float64(cut):
    with jax.enable_x64(True):
        _, model, loss_fn, params, steps = problem(cut=cut)
        params, batch = in_float64(params), in_float64(steps[-1])
        live = np.flatnonzero(batch.mask)
        expected = jax.grad(lambda p: loss_fn(p, batch.inputs[live], batch.targets[live]).mean())(
            params
        )
        _, gradient = jax.jit(lambda p, b: traverse(model, criterion, p, b))(params, batch)
        assert relative_difference(gradient, expected) < 1e-12


@pytest.mark.parametrize("name", list(OPTIMIZERS))
@pytest.mark.parametrize("method", ["split", "linearized", "scanned", "stacked"])
def test_two_hundred_steps_equal_centralized_in_float64(name, method):
    with jax.enable_x64(True):
        members, model, loss_fn, params, _ = problem()
        params = in_float64(params)
        steps = [in_float64(b) for e in range(70) for b in batches(members, epoch=e)][:200]
        optimizer = OPTIMIZERS[name]()
        ours = (
            split_traversal(model, criterion, optimizer)
            if method == "split"
            else traversal(loss_fn, optimizer, method=method)
        )
        state, losses = train(ours, params, steps)
        expected, expected_losses = train(centralized(loss_fn, optimizer), params, steps)
        assert relative_difference(state.params, expected.params) < 1e-12
        np.testing.assert_allclose(losses, expected_losses, rtol=1e-10)


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_two_hundred_steps_equal_centralized_in_float32(name):
    members, model, loss_fn, params, _ = problem()
    steps = [b for e in range(70) for b in batches(members, epoch=e)][:200]
    optimizer = OPTIMIZERS[name]()
    state, _ = train(split_traversal(model, criterion, optimizer), params, steps)
    expected, _ = train(centralized(loss_fn, optimizer), params, steps)
    # Rounding grows along a trajectory; Adam divides small gradients by small numbers.
    assert relative_difference(state.params, expected.params) < 1e-4


def test_equals_a_twin_in_numpy():
    """Momentum SGD on softmax regression, written without JAX, over the pooled data."""
    with jax.enable_x64(True):
        members = cooperative(shards())
        linear = tanh_mlp()._replace(
            init=lambda key: {
                "body": {"w": jnp.ones((FEATURES, FEATURES)) / 3},
                "head": {"v": jnp.ones((FEATURES, CLASSES)) * jnp.arange(3.0)[None] / 5},
            },
            body=lambda p, x: x @ p["w"],
            head=lambda p, h: h @ p["v"],
        )
        steps = [in_float64(b) for e in range(4) for b in batches(members, epoch=e)]
        optimizer = optax.sgd(0.05, momentum=0.9)
        params = linear.init(None)
        state, _ = train(split_traversal(linear, criterion, optimizer), params, steps)

        w, v = np.array(params["body"]["w"]), np.array(params["head"]["v"])
        memory_w, memory_v = np.zeros_like(w), np.zeros_like(v)
        for batch in steps:
            live = np.array(batch.mask)
            x, y = np.array(batch.inputs)[live], np.array(batch.targets)[live]
            hidden = x @ w
            scores = np.exp(hidden @ v)
            error = (scores / scores.sum(1, keepdims=True) - np.eye(CLASSES)[y]) / len(x)
            gradient_w, gradient_v = x.T @ (error @ v.T), hidden.T @ error
            memory_w, memory_v = 0.9 * memory_w + gradient_w, 0.9 * memory_v + gradient_v
            w, v = w - 0.05 * memory_w, v - 0.05 * memory_v
        np.testing.assert_allclose(state.params["body"]["w"], w, rtol=1e-11)
        np.testing.assert_allclose(state.params["head"]["v"], v, rtol=1e-11)


def test_visiting_order_changes_nothing_beyond_rounding():
    with jax.enable_x64(True):
        members, model, _, params, _ = problem()
        params = in_float64(params)
        trainer = split_traversal(model, criterion, optax.adam(0.01))
        finals = [
            train(trainer, params, [in_float64(b) for b in batches(members, visiting_order=order)])
            for order in ("random", "ascending")
        ]
        assert relative_difference(finals[0][0].params, finals[1][0].params) < 1e-12


def test_an_empty_batch_changes_nothing_at_all():
    members, model, loss_fn, params, _ = problem()
    steps = batches(members, steps=5)
    assert not steps[-1].mask.any()
    for trainer in (
        split_traversal(model, criterion, optax.adam(0.01)),
        traversal(loss_fn, optax.adam(0.01)),
    ):
        long, _ = train(trainer, params, steps)
        short, _ = train(trainer, params, steps[:3])
        for left, right in zip(jax.tree.leaves(long), jax.tree.leaves(short), strict=True):
            np.testing.assert_array_equal(left, right)
        assert long.step == 3


def test_agents_join_leave_and_go_empty_without_a_new_trace():
    parts = shards()
    members = cooperative(parts, capacity=6)
    without = leave(members, "agent 3")
    cooperatives_over_time = [
        members,
        without,
        join(without, "newcomer", parts[3]),
        join(without, "empty", (parts[3][0][:0], parts[3][1][:0])),
    ]
    model = tanh_mlp()
    trainer = split_traversal(model, criterion, optax.adam(0.01))
    traces = []

    @jax.jit
    def epoch(state, shards, plan):
        traces.append(1)
        return jax.lax.scan(lambda s, step: trainer.step(s, gather(shards, step)), state, plan)

    from vcca_jax.plan import virtual_batches

    state = trainer.init(problem()[3])
    for number, now in enumerate(cooperatives_over_time):
        plan = virtual_batches(now, 8, seed=0, epoch=number, steps=3)
        state, _ = epoch(state, now.shards, plan)
    assert len(traces) == 1
    assert state.step == 3 + 2 + 3 + 2
