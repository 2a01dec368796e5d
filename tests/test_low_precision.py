"""Numbers of few digits: what is added up over hundreds of samples is kept in more."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vcca_jax.constraints import protect
from vcca_jax.contribution import first_order
from vcca_jax.cooperate import cooperate
from vcca_jax.gradients import agent_gradients
from vcca_jax.one_pass.tape import record
from vcca_jax.profiles import value_profiles
from vcca_jax.rows import rows_dot, rows_gram, tree_dot
from vcca_jax.values import group_loss, value_losses
from vcca_jax.virtual_batch import VirtualBatch

SAMPLES, WIDTH, RATE = 4096, 4, 0.01
FORMS = ["one_pass", "linearized", "scanned", "stacked"]


def loss_fn(params, inputs, targets):
    """In the parameters' own precision, as whoever computes in bfloat16 has it."""
    kind = params["w"].dtype
    return (inputs.astype(kind) @ params["w"] - targets.astype(kind)) ** 2


def given(kind):
    """One agent with thousands of samples, a value and validation rows."""
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(SAMPLES + 64, WIDTH)).astype(np.float32)
    targets = inputs @ np.linspace(-1, 1, WIDTH, dtype=np.float32) + 1
    batch = VirtualBatch(
        inputs=jnp.asarray(inputs[:SAMPLES]),
        targets=jnp.asarray(targets[:SAMPLES]),
        owners=jnp.zeros(SAMPLES, jnp.int32),
        rows=jnp.arange(SAMPLES, dtype=jnp.int32),
        mask=jnp.ones(SAMPLES, bool),
        active=jnp.ones(1, bool),
    )
    held_out = [
        group_loss(loss_fn, inputs[rows], -targets[rows])
        for rows in (slice(SAMPLES, SAMPLES + 32), slice(SAMPLES + 32, None))
    ]
    params = {"w": jnp.linspace(0.1, 0.4, WIDTH).astype(kind)}
    return params, batch, held_out


@pytest.mark.parametrize("form", ["pairs", "stacked", "directions"])
def test_few_digits_in_weights_and_many_in_activations(form):
    """A site's gradients are kept as wide as what they are made of, whatever its weights are."""
    generator = np.random.default_rng(1)
    inputs = jnp.asarray(generator.normal(size=(4, 6, 5)), jnp.float32)
    targets, coefficients = jnp.arange(4.0), [jnp.asarray([1.0, -0.5])]

    def loss(params, inputs, targets):
        return (jnp.tanh(inputs @ params["w"]).mean(1) @ params["v"] - targets) ** 2

    w = jnp.asarray(generator.normal(size=(5, 3)), jnp.bfloat16)
    params = {"w": w, "v": jnp.ones(3, jnp.float32)}

    def told(params):
        tape = record(loss, params, inputs, targets, blocks=(2,), form=form)
        return tape.products(coefficients), tape.combination(jnp.ones(4))

    few, total = jax.jit(told)(params)
    many, expected = jax.jit(told)(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params))
    np.testing.assert_allclose(few, many, rtol=0.02, atol=0.02 * np.abs(many).max())
    assert total["w"].dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float32(total["w"]), expected["w"], rtol=0.02, atol=0.02)


@pytest.mark.parametrize("method", FORMS)
def test_sums_over_an_agents_samples_do_not_stagnate(method):
    told = []
    for kind in (jnp.float32, jnp.bfloat16):
        params, batch, _ = given(kind)

        @jax.jit
        def asked(params, batch):
            gradients = agent_gradients(loss_fn, params, batch, method=method)
            return gradients.losses, gradients.dot(params), gradients.squared_norms()

        told.append(asked(params, batch))
    for exact, rough in zip(*told, strict=True):
        assert rough.dtype == jnp.float32
        np.testing.assert_allclose(rough, exact, rtol=0.03)


@pytest.mark.parametrize("method", FORMS)
def test_a_screened_step_keeps_its_word_in_bfloat16(method):
    """To its digits: the value that is protected may move by a cosine of a few thousandths."""
    changes, credits = [], []
    for kind in (jnp.float32, jnp.bfloat16):
        params, batch, (group, validation) = given(kind)
        values = value_losses({"group": group})
        trainer = cooperate(
            loss_fn, optax.sgd(RATE), validation, values, estimator=first_order, method=method
        )
        profiles = value_profiles(values.names, [[protect("group")]])
        state, info = jax.jit(trainer.step)(trainer.init(params, profiles), batch)
        assert bool(info.report.conflicts.all())
        moved = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), (params, state.params))
        before, after = (float(group(at)) for at in moved)
        changes.append(after - before)
        credits.append(float(info.credits[0]))
    assert changes[0] <= 1e-3
    # Unscreened the step raises the value by far more.
    free = agent_gradients(loss_fn, *given(jnp.float32)[:2]).sum()
    params = given(jnp.float32)[0]
    unscreened = float(group(jax.tree.map(lambda p, g: p - RATE * g, params, free)) - group(params))
    assert changes[1] <= 0.05 * unscreened
    np.testing.assert_allclose(credits[1], credits[0], rtol=0.1, atol=0.02)


def test_inner_products_are_kept_wide():
    ones = {"a": jnp.ones((1, 3000), jnp.bfloat16)}
    line = jax.tree.map(lambda leaf: leaf[0], ones)
    for product in (tree_dot(line, line), rows_dot(ones, line)[0], rows_gram(ones)[0, 0]):
        assert product.dtype == jnp.float32
        assert product == 3000
    with jax.enable_x64(True):
        assert tree_dot(jnp.ones(2), jnp.ones(2)).dtype == jnp.float64
