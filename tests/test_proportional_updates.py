"""Which optimizers follow the gradient in proportion, against their own derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vcca_jax.proportional_updates import proportion

PARAMS = {"w": np.array([[1.0, -2.0]], np.float32), "b": np.array([0.5], np.float32)}
GRADIENT = {"w": np.array([[0.3, 0.1]], np.float32), "b": np.array([-2.0], np.float32)}
DECAY = optax.linear_schedule(0.5, 0.1, 3)

PROPORTIONAL = {
    "descent": (optax.sgd(0.1), False),
    "schedule": (optax.sgd(DECAY), False),
    "momentum": (optax.sgd(0.1, momentum=0.9), True),
    "momentum, schedule": (optax.sgd(DECAY, momentum=0.9), True),
    "weight decay": (optax.chain(optax.add_decayed_weights(0.01), optax.sgd(0.1)), True),
    "rate in the state": (optax.inject_hyperparams(optax.sgd)(learning_rate=0.2), False),
    "nothing": (optax.identity(), False),
}
OTHERS = {
    "Adam": optax.adam(0.1),
    "clipped": optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1)),
    "one leaf slower": optax.chain(
        optax.stateless(lambda g, p: {"w": 0.5 * g["w"], "b": g["b"]}), optax.sgd(0.1)
    ),
    "leaves changed about": optax.stateless(lambda g, p: {"w": g["w"], "b": g["w"][0, :1]}),
    "sign": optax.sign_sgd(0.1),
    "square": optax.stateless(lambda g, p: jax.tree.map(jnp.square, g)),
    "none at all": optax.set_to_zero(),
}


def at_second_step(optimizer):
    _, state = optimizer.update(GRADIENT, optimizer.init(PARAMS), PARAMS)
    return lambda gradient: optimizer.update(gradient, state, PARAMS)[0]


@pytest.mark.parametrize("name", PROPORTIONAL)
def test_the_factor_is_the_derivative_in_every_direction(name):
    optimizer, rest = PROPORTIONAL[name]
    update = at_second_step(optimizer)
    known = proportion(update, GRADIENT)
    assert known is not None
    assert known.rest is rest
    _, moved = jax.jvp(update, (GRADIENT,), (PARAMS,))
    for leaf, direction in zip(jax.tree.leaves(moved), jax.tree.leaves(PARAMS), strict=True):
        np.testing.assert_allclose(leaf, known.factor * direction, rtol=1e-6)
    nothing = update(jax.tree.map(np.zeros_like, GRADIENT))
    assert any(np.any(leaf) for leaf in jax.tree.leaves(nothing)) == rest


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_more_than_that_is_not_taken_for_it(name):
    assert proportion(at_second_step(OTHERS[name]), GRADIENT) is None


def test_it_is_found_within_a_trace():
    def factor(rate):
        optimizer = optax.sgd(lambda count: rate / (1 + count))
        return proportion(at_second_step(optimizer), GRADIENT).factor

    np.testing.assert_allclose(jax.jit(factor)(0.3), -0.15, rtol=1e-6)
