"""Models with loops and choices, on samples that stay on their devices."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import vcca_jax as vcca
from tests.test_sharding import BLOCK, BLOCKS, CLASSES, epoch_of, initial, members, steps_of
from vcca_jax.gradients import agent_gradients
from vcca_jax.sharding.batch import shard_cooperative, sharded_gather, sharded_plan
from vcca_jax.sharding.losses import sharded_loss
from vcca_jax.sharding.mesh import agent_mesh


def recurrent(params, inputs, targets):
    """A loop that starts from zeros, and a choice of which one branch is a constant."""
    zeros = jnp.zeros((len(inputs), CLASSES))

    def turn(carried, _):
        hidden, memory = carried
        memory = jax.nn.sigmoid(hidden) * memory + jnp.tanh(inputs @ params["w"] + hidden)
        return (jnp.tanh(memory), memory), None

    (hidden, _), _ = jax.lax.scan(turn, (zeros, zeros), None, length=2)
    shift = jax.lax.cond(params["b"][0] > 0, lambda h: jnp.zeros_like(h), lambda h: h * h, hidden)
    logits = hidden + shift + params["b"][None, :]
    return optax.softmax_cross_entropy_with_integer_labels(logits, targets)


@pytest.mark.parametrize(
    ("method", "blocks"),
    [("linearized", None), ("linearized", BLOCKS), ("one_pass", None), ("scanned", None)],
)
def test_loops_and_choices_run_where_the_samples_are(method, blocks):
    mesh, own = agent_mesh(), members()
    at = steps_of(epoch_of(own))[0]
    spread = sharded_plan(epoch_of(own), own, blocks or mesh.size, block_capacity=BLOCK)
    params = initial()

    def told(loss, batch, method):
        gradients = agent_gradients(loss, params, batch, method=method)
        return gradients.sum(), gradients.dot(params)

    def over_devices(held, at):
        loss = sharded_loss(recurrent, mesh, blocks=blocks)
        return told(loss, sharded_gather(held, at, mesh), method)

    found = jax.jit(over_devices)(shard_cooperative(own, mesh).shards, steps_of(spread)[0])
    expected = told(recurrent, vcca.gather(own.shards, at), "linearized")
    for ours, theirs in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)
