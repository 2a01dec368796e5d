import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx
from hypothesis import given
from hypothesis import strategies as st

from tests.problems import CLASSES, FEATURES, batches, criterion, relative_difference, shards
from vcca_jax.adapters import from_linen, from_nnx
from vcca_jax.cooperative import cooperative
from vcca_jax.gradients import agent_gradients
from vcca_jax.model import model_loss
from vcca_jax.noise import Keyed
from vcca_jax.traversal import split_traversal

KINDS = pytest.mark.parametrize("kind", ["linen", "nnx"])


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


@KINDS
def test_modules_train_on_plain_dicts(kind):
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


def test_the_two_parts_are_initialised_apart():
    example = jax.ShapeDtypeStruct((1, 4), jnp.float32)
    for model in (
        from_linen(linen.Dense(4), linen.Dense(4), example),
        from_nnx(*2 * [lambda rngs: nnx.Linear(4, 4, rngs=rngs)]),
    ):
        params = model.init(jax.random.key(0))
        assert relative_difference(params["body"], params["head"]) > 0.1


@KINDS
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


# What holds more than parameters.


class Counter(linen.Module):
    @linen.compact
    def __call__(self, inputs):
        self.variable("cache", "seen", lambda: jnp.zeros(()))
        return inputs


@pytest.mark.parametrize(
    ("layer", "kind"),
    [
        (linen.BatchNorm(use_running_average=True), "batch_stats"),
        (linen.BatchNorm(use_running_average=False), "batch_stats"),
        (Counter(), "cache"),
    ],
    ids=["average", "batch", "cache"],
)
def test_linen_modules_with_other_state_are_refused(layer, kind):
    example = jax.ShapeDtypeStruct((2, FEATURES), jnp.float32)
    for part, modules in (
        ("body", (linen.Sequential([linen.Dense(4), layer]), linen.Dense(CLASSES))),
        ("head", (linen.Dense(4), linen.Sequential([layer, linen.Dense(CLASSES)]))),
    ):
        model = from_linen(*modules, example)
        with pytest.raises(ValueError, match=rf"{part} holds \['{kind}'\] besides .*GroupNorm"):
            jax.eval_shape(model.init, jax.random.key(0))


class Cached(nnx.Module):
    def __init__(self, rngs):
        self.seen = nnx.Cache(jnp.zeros(()))


@pytest.mark.parametrize(
    ("extra", "kind"),
    [(lambda rngs: nnx.BatchNorm(4, rngs=rngs), "BatchStat"), (Cached, "Cache")],
    ids=["batch norm", "cache"],
)
def test_nnx_modules_with_other_state_are_refused(extra, kind):
    with pytest.raises(ValueError, match=rf"body holds \['{kind}'\] besides .*GroupNorm"):
        from_nnx(lambda rngs: Body(rngs, extra(rngs)), nnx_head)
    with pytest.raises(ValueError, match=rf"head holds \['{kind}'\] besides .*GroupNorm"):
        from_nnx(Body, lambda rngs: nnx.Sequential(nnx_head(rngs), extra(rngs)))


# Noise. Both parts scale their input and drop some of it, so that every mask can be seen.

RATE, EXAMPLES, WIDTH = 0.25, 256, 16


class LinenNoisy(linen.Module):
    @linen.compact
    def __call__(self, inputs):
        scale = self.param("scale", linen.initializers.ones, (WIDTH,))
        quiet = not self.has_rng("dropout")
        return linen.Dropout(RATE, deterministic=quiet)(inputs * scale[None])


class NnxNoisy(nnx.Module):
    def __init__(self, rngs):
        self.scale = nnx.Param(jnp.ones(WIDTH))
        self.dropout = nnx.Dropout(RATE, rngs=rngs)

    def __call__(self, inputs):
        return self.dropout(inputs * self.scale[None])


@functools.cache
def noisy(kind):
    if kind == "linen":
        example = jax.ShapeDtypeStruct((1, WIDTH), jnp.float32)
        return from_linen(LinenNoisy(), LinenNoisy(), example)
    return from_nnx(NnxNoisy, NnxNoisy)


@functools.cache
def run(kind):
    """Outputs of body, head and whole on ``Keyed`` inputs, and their derivatives."""
    model = noisy(kind)
    params = {"body": jnp.ones(WIDTH), "head": jnp.ones(WIDTH)}
    params = jax.tree.unflatten(
        jax.tree.structure(jax.eval_shape(model.init, jax.random.key(0))), jax.tree.leaves(params)
    )

    def every(keyed):
        def outputs(params):
            return model.apply(params, keyed)

        def loss(params):
            return outputs(params).sum()

        value, tangent_map = jax.linearize(outputs, params)
        return {
            "body": model.body(params["body"], keyed),
            "head": model.head(params["head"], keyed),
            "whole": value,
            "tangent": tangent_map(jax.tree.map(lambda leaf: 3 * leaf, params)),
            "gradient": jax.tree.leaves(jax.grad(loss)(params)),
        }

    return params, jax.jit(every)


def keys_of(seed, count=EXAMPLES):
    return jax.random.split(jax.random.key(seed), count)


ONES = np.ones((EXAMPLES, WIDTH), np.float32)


@KINDS
def test_plain_inputs_are_deterministic(kind):
    params, _ = run(kind)
    inputs = np.arange(2 * WIDTH, dtype=np.float32).reshape(2, WIDTH)
    model = noisy(kind)
    for _ in range(2):
        np.testing.assert_array_equal(model.apply(params, inputs), inputs)
        np.testing.assert_array_equal(jax.jit(model.apply)(params, inputs), inputs)


@KINDS
def test_dropout_keeps_the_mean_and_the_rate(kind):
    drawn = run(kind)[1](Keyed(ONES, keys_of(0)))
    for part in ("body", "head"):
        units = np.asarray(drawn[part])
        np.testing.assert_allclose(np.unique(units), [0, 1 / (1 - RATE)], rtol=1e-6)
        # Four standard deviations of the share of a binomial; and so no unit is always dropped.
        assert abs((units == 0).mean() - RATE) < 4 * np.sqrt(RATE * (1 - RATE) / units.size)
        assert abs(units.mean() - 1) < 4 * np.sqrt(RATE / (1 - RATE) / units.size)
        share = (units == 0).mean(axis=0)
        assert (abs(share - RATE) < 4.5 * np.sqrt(RATE * (1 - RATE) / EXAMPLES)).all()


@KINDS
def test_body_and_head_and_examples_draw_apart(kind):
    drawn = run(kind)[1](Keyed(ONES, keys_of(0)))
    body, head = (np.asarray(drawn[part]) == 0 for part in ("body", "head"))
    # Independent masks agree on a share of r^2 + (1 - r)^2.
    agree = RATE**2 + (1 - RATE) ** 2
    bound = 4.5 * np.sqrt(agree * (1 - agree) / body.size)
    for left, right in ((body, head), (body, np.roll(body, 1, axis=0))):
        assert abs((left == right).mean() - agree) < bound
    np.testing.assert_allclose(drawn["whole"], drawn["body"] * drawn["head"], rtol=1e-6)
    again = run(kind)[1](Keyed(ONES, keys_of(1)))
    assert abs((np.asarray(again["body"] == 0) == body).mean() - agree) < bound


@KINDS
@given(seed=st.integers(0, 2**31), share=st.floats(0, 1))
def test_an_examples_noise_depends_on_its_key_alone(kind, seed, share):
    generator = np.random.default_rng(seed)
    inputs = generator.normal(size=(EXAMPLES, WIDTH)).astype("f")
    order, kept = generator.permutation(EXAMPLES), generator.random(EXAMPLES) < share
    keys, every = keys_of(0), run(kind)[1]
    first = every(Keyed(inputs, keys))
    moved = every(Keyed(inputs[order], keys[order]))
    among = np.where(kept[:, None], inputs, 5).astype("f")
    mixed = every(Keyed(among, jnp.where(kept, keys, keys_of(seed + 1))))
    for part in ("body", "head", "whole"):
        np.testing.assert_array_equal(moved[part], np.asarray(first[part])[order])
        np.testing.assert_array_equal(np.asarray(mixed[part])[kept], np.asarray(first[part])[kept])


@KINDS
def test_derivatives_see_the_noise_that_was_drawn(kind):
    drawn = run(kind)[1](Keyed(ONES, keys_of(0)))
    # The whole is linear in either part's scale, and both scales are one.
    np.testing.assert_allclose(drawn["tangent"], 6 * drawn["whole"], rtol=1e-6)
    for gradient in drawn["gradient"]:
        np.testing.assert_allclose(gradient, drawn["whole"].sum(axis=0), rtol=1e-5)


@KINDS
def test_keyed_inputs_go_through_vmap(kind):
    params, every = run(kind)
    keys = jnp.stack([keys_of(0), keys_of(1)])
    both = jax.jit(jax.vmap(lambda k: noisy(kind).apply(params, Keyed(ONES, k))))(keys)
    for one, each in zip(keys, both, strict=True):
        np.testing.assert_array_equal(each, every(Keyed(ONES, one))["whole"])


def test_every_named_stream_is_given_apart():
    class Streams(linen.Module):
        @linen.compact
        def __call__(self, inputs):
            names = ("dropout", "noise")
            if not self.has_rng("noise"):
                return jnp.zeros((1, 2))
            return jnp.stack([jax.random.uniform(self.make_rng(n)) for n in names])[None]

    example = jax.ShapeDtypeStruct((1, 2), jnp.float32)
    model = from_linen(Streams(), Streams(), example, noise=("dropout", "noise"))
    keyed = Keyed(jnp.zeros((3, 2)), keys_of(0, 3))
    drawn = jnp.concatenate([model.body({}, keyed), model.head({}, keyed)], axis=1)
    assert len(np.unique(drawn)) == 12
    silent = from_linen(Streams(), Streams(), example)
    np.testing.assert_array_equal(silent.body({}, keyed), 0)


class Twice(nnx.Module):
    """Two dropout layers, and a stream of its own that is drawn from twice."""

    def __init__(self, rngs):
        self.rngs = rngs
        self.layers = nnx.List([nnx.Dropout(0.5, rngs=rngs, deterministic=True) for _ in "ab"])
        self.deterministic = False

    def __call__(self, inputs):
        if self.deterministic:
            return inputs
        own = [jax.random.uniform(self.rngs.dropout(), inputs.shape) for _ in "ab"]
        return jnp.concatenate([layer(inputs) for layer in self.layers] + own, axis=1)


def test_every_draw_of_an_nnx_module_is_another_and_none_is_of_how_it_was_made():
    keyed = Keyed(jnp.ones((2, 32)), keys_of(0, 2))
    plain, drawn = [], []
    for seed in (0, 1):
        model = from_nnx(*2 * [lambda rngs, seed=seed: Twice(nnx.Rngs(seed, dropout=seed))])
        assert jax.tree.leaves(model.init(jax.random.key(0))) == []
        plain.append(model.body({}, keyed.inputs))
        drawn.append(np.asarray(model.body({}, keyed)).reshape(2, 4, 32))
    np.testing.assert_array_equal(plain, np.ones((2, 2, 32)))
    np.testing.assert_array_equal(*drawn)
    for row in drawn[0]:
        assert len(np.unique(row, axis=0)) == 4


@pytest.mark.parametrize("cell", [nnx.LSTMCell, nnx.GRUCell])
def test_a_recurrent_nnx_module_takes_a_key_for_its_zeros_and_is_deterministic(cell):
    def make_head(rngs):
        return nnx.Sequential(lambda hidden: hidden[:, -1], nnx.Linear(3, 2, rngs=rngs))

    model = from_nnx(lambda rngs: nnx.RNN(cell(4, 3, rngs=rngs)), make_head)
    params, inputs = model.init(jax.random.key(1)), jnp.ones((2, 5, 4))
    plain = jax.jit(model.apply)(params, inputs)
    np.testing.assert_allclose(model.apply(params, Keyed(inputs, keys_of(0, 2))), plain, rtol=1e-6)


def test_a_recurrent_nnx_module_whose_carry_is_drawn_is_refused():
    class Drawn(nnx.LSTMCell):
        def initialize_carry(self, input_shape, rngs=None, carry_init=None):
            return super().initialize_carry(input_shape, rngs, nnx.initializers.normal())

    model = from_nnx(lambda rngs: nnx.RNN(Drawn(4, 3, rngs=rngs)), nnx_head)
    with pytest.raises(ValueError, match=r"draws noise on plain inputs.*initial_carry="):
        model.body(model.init(jax.random.key(1))["body"], jnp.ones((2, 5, 4)))


def test_an_nnx_module_that_draws_on_plain_inputs_is_refused():
    class Heedless(Twice):
        def __call__(self, inputs):
            return inputs + jax.random.uniform(self.rngs.dropout(), inputs.shape)

    model = from_nnx(Heedless, Heedless)
    for run in (model.body, jax.jit(model.head)):
        with pytest.raises(ValueError, match="draws noise on plain inputs"):
            run({}, jnp.ones((2, 3)))


# One namespace.


class Named(linen.Module):
    names: tuple

    @linen.compact
    def __call__(self, inputs):
        for name in self.names:
            inputs = linen.Dense(WIDTH, use_bias=False, name=name)(inputs)
            quiet = not self.has_rng("dropout")
            inputs = linen.Dropout(RATE, deterministic=quiet, name=f"{name}_dropout")(inputs)
        return inputs


def test_in_one_namespace_a_layer_is_the_same_on_either_side_of_the_cut():
    example = jax.ShapeDtypeStruct((1, WIDTH), jnp.float32)
    keyed, made = Keyed(jnp.ones((3, WIDTH)), keys_of(0, 3)), []
    for body, head in ((("a",), ("b", "c")), (("a", "b"), ("c",))):
        model = from_linen(Named(body), Named(head), example, one_namespace=True)
        params = model.init(jax.random.key(0))
        layers = {**params["body"]["params"], **params["head"]["params"]}
        made.append((layers, model.apply(params, keyed)))
    jax.tree.map(np.testing.assert_array_equal, *made)
    kernels = [layer["kernel"] for layer in made[0][0].values()]
    assert relative_difference(kernels[0], kernels[1]) > 0.1


def test_a_promise_of_one_namespace_is_held_to():
    example = jax.ShapeDtypeStruct((1, WIDTH), jnp.float32)
    model = from_linen(Named(("a", "b")), Named(("b", "c")), example, one_namespace=True)
    with pytest.raises(ValueError, match=r"body and head both name layers \['b'\]"):
        model.init(jax.random.key(0))
