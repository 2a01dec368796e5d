"""A small cooperative with values at stake, for the tests of the whole step."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.problems import CLASSES, FEATURES, criterion, problem, shards, tanh_mlp
from vcca_jax.constraints import forbid, protect
from vcca_jax.cooperative import cooperative
from vcca_jax.model import model_loss
from vcca_jax.profiles import value_profiles
from vcca_jax.values import group_loss, value_losses

CAPACITY, RATE = 6, 0.1
NAMES = ("women", "men", "probe")
STATED = [
    [protect("women"), protect("men")],
    [protect("men")],
    [forbid("probe")],
    [protect("women"), forbid("probe", -0.01)],
    [protect("women", 0.2), forbid("women", 0.2)],  # exclude each other
]


def profiles_of(stated):
    return value_profiles(NAMES, stated, capacity=CAPACITY, constraints=2)


def held_out(size, seed):
    rng = np.random.default_rng(seed)
    inputs = rng.standard_normal((size, FEATURES)).astype(np.float32)
    return inputs, rng.integers(0, CLASSES, size).astype(np.int32)


MODEL = tanh_mlp()
LOSS = model_loss(MODEL, criterion)
INPUTS = held_out(6, 3)[0]


def probe_loss(params, context):
    """How well a linear probe, the context, reads a secret off the body's activations."""
    secret = jnp.asarray(INPUTS[:, 0])
    return ((MODEL.body(params["body"], INPUTS) @ context - secret) ** 2).mean()


PARAMS = jax.tree.map(np.asarray, problem()[3])
VALUES = value_losses(
    {
        "women": group_loss(LOSS, *held_out(3, 1)),
        "men": group_loss(LOSS, *held_out(4, 2)),
        "probe": probe_loss,
    }
)
CONTEXT = np.linspace(-1, 1, 7).astype(np.float32)


def validation_loss(params):
    return LOSS(params, *held_out(8, 4)).mean()


def members_and_params():
    """In float64 under ``jax.enable_x64(True)``, else in float32."""
    inputs_and_targets = [(in_default(inputs), targets) for inputs, targets in shards()]
    params = jax.tree.map(jnp.asarray, jax.tree.map(in_default, PARAMS))
    return cooperative(inputs_and_targets, capacity=CAPACITY), params


def in_default(array):
    return np.asarray(array, jnp.result_type(float))
