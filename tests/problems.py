"""Small cooperatives and models that several tests share."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

from vcca_jax.cooperative import cooperative
from vcca_jax.model import model_loss
from vcca_jax.models import mlp
from vcca_jax.plan import virtual_batches
from vcca_jax.virtual_batch import VirtualBatch, gather

FEATURES, CLASSES = 5, 3
SIZES = (11, 0, 1, 6, 3)

EPOCHS = {
    "sizes": st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(any),
    "batch_size": st.integers(1, 12),
    "epoch": st.integers(0, 3),
    "extra": st.integers(0, 2),
}
"""What an epoch's plan is tried on: agents' rows, slots, number, and steps beyond the fewest."""


def criterion(outputs, targets):
    """Cross-entropy of each example."""
    return -jnp.take_along_axis(jax.nn.log_softmax(outputs), targets[:, None], axis=1)[:, 0]


def shards(sizes=SIZES, *, seed=0, one_class=2):
    """Uneven agents, one of them empty, one with samples of a single class."""
    generator = np.random.default_rng(seed)
    made = []
    for i, size in enumerate(sizes):
        inputs = generator.normal(size=(size, FEATURES)).astype(np.float32)
        targets = generator.integers(0, CLASSES, size).astype(np.int32)
        made.append((inputs, np.full_like(targets, 1) if i == one_class else targets))
    return made


def tanh_mlp(cut=1):
    return mlp(FEATURES, (7, 4), CLASSES, cut=cut, activation=jnp.tanh)


def batches(members, batch_size=8, *, seed=3, epoch=0, **options) -> list[VirtualBatch]:
    plan = virtual_batches(members, batch_size, seed=seed, epoch=epoch, **options)
    steps = [jax.tree.map(lambda f, t=t: f[t], plan) for t in range(len(plan.mask))]
    return [jitted_gather(members.shards, step) for step in steps]


jitted_gather = jax.jit(gather)


@functools.cache
def problem(sizes=SIZES, *, cut=1, batch_size=8):
    """Members, model, per-example loss, initial parameters and the first epoch's batches."""
    members = cooperative(shards(sizes))
    model = tanh_mlp(cut)
    loss_fn = model_loss(model, criterion)
    params = jax.jit(model.init)(jax.random.key(1))
    return members, model, loss_fn, params, batches(members, batch_size)


def in_float64(tree):
    """Floating leaves in float64; call it under ``jax.enable_x64(True)``."""
    return jax.tree.map(
        lambda leaf: (
            jnp.asarray(leaf, jnp.float64) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf
        ),
        tree,
    )


def relative_difference(left, right) -> float:
    """|left - right| / |right| over all leaves."""
    flat = [
        np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)])
        for tree in (left, right)
    ]
    return float(np.linalg.norm(flat[0] - flat[1]) / np.linalg.norm(flat[1]))
