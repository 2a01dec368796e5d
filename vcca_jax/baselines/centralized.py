"""Training on pooled data: what traversal learning must equal."""

import jax
import jax.numpy as jnp
import optax

from vcca_jax.trainer import ExampleLoss, Params, Trainer, gradient_trainer, live_count
from vcca_jax.virtual_batch import VirtualBatch


def centralized(loss_fn: ExampleLoss, optimizer: optax.GradientTransformation) -> Trainer:
    """Trainer on the mean loss of the pooled batch; owners are not looked at."""

    def loss_and_gradient(params: Params, batch: VirtualBatch) -> tuple[jax.Array, Params]:
        def mean_loss(at: Params) -> jax.Array:
            losses = loss_fn(at, batch.inputs, batch.targets)
            return jnp.where(batch.mask, losses, 0).sum() / live_count(batch)

        return jax.value_and_grad(mean_loss)(params)

    return gradient_trainer(loss_and_gradient, optimizer)
