import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

from tests.problems import CLASSES, FEATURES, batches, criterion, relative_difference, shards
from vcca_jax.cooperative import cooperative
from vcca_jax.gradients import agent_gradients
from vcca_jax.model import from_linen, from_nnx, mlp, model_loss
from vcca_jax.traversal import split_traversal

HIDDEN = (7, 4)


def dense_layers(params):
    """Kernels and biases in the order in which an input meets them."""
    parts = [params[part].get("params", {}) for part in ("body", "head")]
    return [part[name] for part in parts for name in sorted(part)]


def at_cut(model, layers):
    """The parameters of a cut that hold the given layers."""
    params, rest = model.init(jax.random.key(0)), iter(layers)
    return {
        part: {
            kind: {name: next(rest) for name in sorted(named)}
            for kind, named in params[part].items()
        }
        for part in ("body", "head")
    }


@pytest.mark.parametrize("cut", [0, 1, 2])
def test_a_perceptron_is_the_same_function_at_every_cut(cut):
    rng = np.random.default_rng(0)
    sizes = (FEATURES, *HIDDEN, CLASSES)
    layers = [
        {"kernel": rng.standard_normal((i, o)), "bias": rng.standard_normal(o)}
        for i, o in itertools.pairwise(sizes)
    ]
    inputs = rng.standard_normal((6, FEATURES))
    expected = inputs
    for number, layer in enumerate(layers):
        expected = expected @ layer["kernel"] + layer["bias"]
        expected = np.tanh(expected) if number < len(HIDDEN) else expected

    model = mlp(FEATURES, HIDDEN, CLASSES, cut=cut, activation=jnp.tanh)
    params = at_cut(model, layers)
    shapes = [layer["kernel"].shape for layer in dense_layers(params)]
    assert shapes == list(itertools.pairwise(sizes))
    np.testing.assert_allclose(model.apply(params, inputs), expected, rtol=1e-5, atol=1e-5)
    width = (FEATURES, *HIDDEN)[cut]
    assert model.body(params["body"], inputs).shape == (6, width)


def test_a_perceptron_of_no_hidden_layer_is_linear():
    model = mlp(FEATURES, (), CLASSES, cut=0)
    params = model.init(jax.random.key(0))
    (layer,) = dense_layers(params)
    inputs = np.eye(FEATURES, dtype=np.float32)
    np.testing.assert_allclose(
        model.apply(params, inputs), layer["kernel"] + layer["bias"][None], rtol=1e-6
    )


@pytest.mark.parametrize("cut", [-1, 3])
def test_a_cut_that_does_not_exist_is_refused(cut):
    with pytest.raises(ValueError, match=f"cut={cut} does not exist; choose 0 to 2"):
        mlp(FEATURES, HIDDEN, CLASSES, cut=cut)


@pytest.mark.parametrize("sizes", [(0, (3,), 2), (3, (0,), 2), (3, (3,), 0)])
def test_a_layer_of_no_size_is_refused(sizes):
    with pytest.raises(ValueError, match="must all be at least 1"):
        mlp(*sizes, cut=0)


class Body(nnx.Module):
    def __init__(self, rngs, *extra):
        self.layers = nnx.List([nnx.Linear(FEATURES, 4, rngs=rngs), *extra])

    def __call__(self, inputs):
        for layer in self.layers:
            inputs = layer(inputs)
        return jnp.tanh(inputs)


def nnx_head(rngs):
    return nnx.Linear(4, CLASSES, rngs=rngs)


@functools.cache
def adapted(kind):
    if kind == "linen":
        body = linen.Sequential([linen.Dense(4), jnp.tanh])
        example = jax.ShapeDtypeStruct((1, FEATURES), jnp.float32)
        return from_linen(body, linen.Dense(CLASSES), example)
    return from_nnx(Body, nnx_head)


def is_plain(tree):
    if isinstance(tree, dict):
        return all(is_plain(branch) for branch in tree.values())
    return isinstance(tree, jax.Array)


@pytest.mark.parametrize("kind", ["linen", "nnx"])
def test_adapted_modules_train_on_plain_dicts(kind):
    model = adapted(kind)
    params = jax.jit(model.init)(jax.random.key(2))
    assert is_plain(params)
    assert sorted(leaf.shape for leaf in jax.tree.leaves(params)) == [(3,), (4,), (4, 3), (5, 4)]
    other = model.init(jax.random.key(3))
    assert relative_difference(other, params) > 0.1
    assert jax.tree.structure(other) == jax.tree.structure(params)

    trainer = split_traversal(model, criterion, optax.sgd(0.3))
    steps = batches(cooperative(shards()))
    step, state = jax.jit(trainer.step), trainer.init(params)
    losses = []
    for _ in range(8):
        for batch in steps:
            state, info = step(state, batch)
            losses.append(float(info.loss))
    assert np.mean(losses[-3:]) < 0.9 * np.mean(losses[:3])
    assert jax.tree.structure(state.params) == jax.tree.structure(params)


def test_the_two_parts_are_drawn_apart():
    example = jax.ShapeDtypeStruct((1, 4), jnp.float32)
    for model in (
        from_linen(linen.Dense(4), linen.Dense(4), example),
        from_nnx(*2 * [lambda rngs: nnx.Linear(4, 4, rngs=rngs)]),
    ):
        params = model.init(jax.random.key(0))
        assert relative_difference(params["body"], params["head"]) > 0.1


@pytest.mark.parametrize("kind", ["linen", "nnx"])
def test_a_loss_is_the_examples_own_whatever_else_is_in_the_batch(kind):
    model = adapted(kind)
    loss_fn = model_loss(model, criterion)
    params = model.init(jax.random.key(2))
    batch = batches(cooperative(shards()))[0]
    whole = loss_fn(params, batch.inputs, batch.targets)
    assert whole.shape == batch.targets.shape
    # An example alone among zeros, and the sum of the agents' gradients against the pooled one.
    for s in (0, 5):
        inputs = jnp.zeros_like(batch.inputs).at[s].set(batch.inputs[s])
        np.testing.assert_allclose(loss_fn(params, inputs, batch.targets)[s], whole[s], rtol=1e-6)
    told = agent_gradients(loss_fn, params, batch).sum()
    pooled = jax.grad(lambda p: loss_fn(p, batch.inputs, batch.targets).mean())(params)
    assert relative_difference(told, pooled) < 1e-6


@pytest.mark.parametrize(
    ("extra", "kinds"),
    [
        (lambda rngs: nnx.BatchNorm(4, rngs=rngs), "BatchStat"),
        (lambda rngs: nnx.Dropout(0.5, rngs=rngs), "RngCount"),
    ],
    ids=["batch norm", "dropout"],
)
def test_nnx_modules_with_other_state_are_refused(extra, kinds):
    with pytest.raises(ValueError, match=f"body holds .*{kinds}.* besides parameters"):
        from_nnx(lambda rngs: Body(rngs, extra(rngs)), nnx_head)
    with pytest.raises(ValueError, match=f"head holds .*{kinds}.* besides parameters"):
        from_nnx(Body, lambda rngs: nnx.Sequential(nnx_head(rngs), extra(rngs)))


@pytest.mark.parametrize("average", [True, False])
def test_linen_modules_with_other_state_are_refused(average):
    norm = linen.BatchNorm(use_running_average=average)
    example = jax.ShapeDtypeStruct((2, FEATURES), jnp.float32)
    for part, modules in (
        ("body", (linen.Sequential([linen.Dense(4), norm]), linen.Dense(CLASSES))),
        ("head", (linen.Dense(4), linen.Sequential([norm, linen.Dense(CLASSES)]))),
    ):
        model = from_linen(*modules, example)
        with pytest.raises(ValueError, match=rf"{part} holds \['batch_stats'\] besides"):
            model.init(jax.random.key(0))
