"""On a machine with an accelerator: the step runs there, and tells what the CPU tells."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import vcca_jax as vcca
from vcca_jax.plan import TraversalPlan
from vcca_jax.sharding.batch import shard_cooperative, sharded_gather, sharded_plan
from vcca_jax.sharding.losses import sharded_loss, spread_loss
from vcca_jax.sharding.mesh import agent_mesh, sharded

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(jax.default_backend() == "cpu", reason="JAX has no accelerator here"),
]
AGENTS, FEATURES, CLASSES = 8, 20, 4


def loss_fn(params, inputs, targets):
    hidden = jnp.tanh(inputs @ params["in"])
    return optax.softmax_cross_entropy_with_integer_labels(hidden @ params["out"], targets)


def shard(seed):
    generator = np.random.default_rng(seed)
    inputs = generator.normal(size=(30, FEATURES)).astype(np.float32)
    return inputs, generator.integers(0, CLASSES, 30, dtype=np.int32)


def run(device):
    """Credits and parameters of an epoch on one device."""
    generator = np.random.default_rng(0)
    params = {
        "in": jnp.asarray(generator.normal(size=(FEATURES, 16)) / 4, jnp.float32),
        "out": jnp.asarray(generator.normal(size=(16, CLASSES)) / 4, jnp.float32),
    }
    mesh = agent_mesh([device])
    members = shard_cooperative(vcca.cooperative([shard(i) for i in range(AGENTS)]), mesh)
    group = spread_loss(loss_fn, *shard(90), mesh)
    values = vcca.value_losses({"group": group})
    worth = spread_loss(loss_fn, *shard(91), mesh)
    trainer = vcca.cooperate(
        sharded_loss(loss_fn, mesh), optax.sgd(0.1), partial(worth, context=None), values
    )
    profiles = vcca.value_profiles(values.names, [[vcca.protect("group")]] * AGENTS)
    trainer = sharded(trainer, mesh)
    step = jax.jit(lambda s, held, at: trainer.step(s, sharded_gather(held, at, mesh)))
    with jax.default_matmul_precision("highest"):
        state = jax.jit(trainer.init)(params, profiles)
        plan = sharded_plan(vcca.virtual_batches(members, 60, seed=0, epoch=0), members, 1)
        for at in zip(*plan, strict=True):
            state, _ = step(state, members.shards, TraversalPlan(*at))
    return jax.device_get((state.credits, state.params))


def test_the_accelerator_tells_what_the_cpu_tells():
    (credits, params), (expected, expected_params) = (
        run(jax.devices()[0]),
        run(jax.devices("cpu")[0]),
    )
    np.testing.assert_allclose(credits, expected, rtol=1e-4, atol=1e-6)
    for name, leaf in expected_params.items():
        np.testing.assert_allclose(params[name], leaf, rtol=1e-4, atol=1e-6)
