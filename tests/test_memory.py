"""Memory by the compiler's own account: what may not grow with the number of agents."""

import jax
import jax.numpy as jnp
import optax
import pytest

import vcca_jax as vcca

BATCH, FEATURES, CLASSES, VALUES = 128, 64, 10, 4
MODEL = vcca.mlp(FEATURES, (256,), CLASSES, cut=1)
LOSS = vcca.model_loss(MODEL, optax.softmax_cross_entropy_with_integer_labels)
PARAMS = jax.eval_shape(MODEL.init, jax.random.key(0))


def described(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def batch_of(agents):
    return vcca.VirtualBatch(
        inputs=described(BATCH, FEATURES),
        targets=described(BATCH, dtype=jnp.int32),
        owners=described(BATCH, dtype=jnp.int32),
        rows=described(BATCH, dtype=jnp.int32),
        mask=described(BATCH, dtype=bool),
        active=described(agents, dtype=bool),
    )


def actions(method, params, batch, rows, weights):
    """All that a screened and credited step asks of an operator: M products and a weighted sum."""
    gradients = vcca.agent_gradients(LOSS, params, batch, method=method)
    _, products = jax.lax.scan(lambda _, row: (None, gradients.dot(row)), None, rows)
    return products, gradients.sum(weights)


def temporaries(method, agents):
    rows = jax.tree.map(lambda leaf: described(VALUES, *leaf.shape), PARAMS)
    program = jax.jit(actions, static_argnums=0)
    compiled = program.lower(method, PARAMS, batch_of(agents), rows, described(agents)).compile()
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("method", ["linearized", "one_pass", "scanned"])
def test_temporaries_do_not_grow_with_the_number_of_agents(method):
    few, many = (temporaries(method, agents) for agents in (8, 4096))
    assert many <= 1.1 * few


def test_the_account_would_show_a_stack_of_gradients():
    assert temporaries("stacked", 256) > 10 * temporaries("linearized", 256)
