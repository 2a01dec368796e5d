"""What a split model must keep to, and how a breach is named."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.problems import FEATURES, problem, tanh_mlp
from vcca_jax.boundary import check_boundary
from vcca_jax.model import SplitModel
from vcca_jax.models import mlp, transformer, vgg

INPUTS = np.random.default_rng(0).normal(size=(4, FEATURES)).astype(np.float32)
PARAMS = {"body": {"w": jnp.eye(FEATURES) * 2}, "head": {"v": jnp.ones((FEATURES, 2))}}


def drawn(model):
    """Parameters from NumPy: what is checked is the same, and nothing is compiled to draw them."""
    generator = np.random.default_rng(3)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return jax.tree.map(lambda leaf: generator.normal(size=leaf.shape).astype("f"), shapes)


def split(body, head=lambda p, h: h @ p["v"]):
    return SplitModel(lambda key: PARAMS, body, head)


@pytest.mark.parametrize(
    "model",
    [
        *(tanh_mlp(cut) for cut in (0, 1, 2)),
        mlp(FEATURES, (), 3, cut=0),
    ],
)
def test_perceptrons_pass_at_every_cut(model):
    check_boundary(model, drawn(model), INPUTS)


@pytest.mark.parametrize("cut", [0, 1, 2, 3])
def test_a_convolutional_model_passes_at_every_cut(cut):
    model = vgg((8, 8, 1), 3, cut=cut, channels=(2, 3), hidden=4)
    images = np.random.default_rng(1).normal(size=(3, 8, 8, 1)).astype(np.float32)
    check_boundary(model, drawn(model), images)


@pytest.mark.parametrize("cut", [0, 1])
def test_a_transformer_passes_though_its_padding_shows(cut):
    model = transformer(11, 6, 2, cut=cut, width=8, heads=2, blocks=1)
    tokens = np.random.default_rng(2).integers(0, 11, (3, 6)).astype(np.int32)
    check_boundary(model, drawn(model), tokens)


@pytest.mark.parametrize(
    "body",
    [
        lambda p, x: x,
        lambda p, x: x[:, ::-1].reshape(len(x), -1, 1)[..., 0],
        lambda p, x: (x - 3.0) / 2.0,
        lambda p, x: jax.nn.relu(jax.jit(jnp.exp)(x)),
        lambda p, x: jnp.concatenate([x @ p["w"], x[:, :1]], axis=1)[:, 1:],
        lambda p, x: jax.lax.map(lambda row: row * 2, x),
        lambda p, x: jnp.where(x > 0, x, x @ p["w"]),
        lambda p, x: jnp.zeros((len(x), 9)).at[:, :5].set(x).at[:, 5:].set((x @ p["w"])[:, :4]),
        lambda p, x: x.at[:, 1:].set((x @ p["w"])[:, 1:]),
        lambda p, x: (
            jnp.zeros((4, 5)).at[:, ::2].add(x[:, ::2]).at[:, 1::2].add((x @ p["w"])[:, :2])
        ),
        lambda p, x: jax.lax.dynamic_update_slice(x @ p["w"], x[:, :1], (0, 0)),
    ],
    ids=[
        *("as it is", "moved", "scaled", "function", "joined", "mapped", "selected"),
        *("written", "written over", "added", "inserted"),
    ],
)
def test_a_body_that_hands_inputs_on_is_refused(body):
    with pytest.raises(ValueError, match="raw inputs"):
        check_boundary(split(body), PARAMS, INPUTS)


def test_the_activation_that_is_raw_is_named():
    body = lambda p, x: {"hidden": x @ p["w"], "extra": x[:, :1]}  # noqa: E731
    with pytest.raises(ValueError, match=r"activations\['extra'\]"):
        check_boundary(split(body, lambda p, h: h["hidden"] @ p["v"]), PARAMS, INPUTS)


@pytest.mark.parametrize(
    "model",
    [
        split(lambda p, x: (h := x @ p["w"]) / h.std(axis=0, keepdims=True)),
        split(lambda p, x: x @ p["w"], lambda p, h: (h - h.mean(0, keepdims=True)) @ p["v"]),
    ],
    ids=["body", "head"],
)
def test_a_model_that_mixes_examples_is_refused(model):
    with pytest.raises(ValueError, match="another example"):
        check_boundary(model, PARAMS, INPUTS)


def test_layer_normalisation_is_an_examples_own():
    body = lambda p, x: (h := x @ p["w"]) / h.std(axis=1, keepdims=True)  # noqa: E731
    check_boundary(split(body), PARAMS, INPUTS)


def test_inputs_added_to_what_is_learned_are_no_longer_raw():
    body = lambda p, x: (x @ p["w"]).at[:, jnp.array([0, 2])].add(x[:, :2])  # noqa: E731
    check_boundary(split(body), PARAMS, INPUTS)


def test_equal_examples_tell_nothing_and_are_refused():
    """Of equal rows batch normalisation changes nothing when one is put in the other's place."""
    model = split(lambda p, x: (h := x @ p["w"]) - h.mean(axis=0, keepdims=True))
    with pytest.raises(ValueError, match="equal first and last example of 4; give two that differ"):
        check_boundary(model, PARAMS, np.ones_like(INPUTS))


def test_too_few_examples_are_refused():
    _, model, _, params, _ = problem()
    with pytest.raises(ValueError, match=r"\(1, 5\)"):
        check_boundary(model, params, INPUTS[:1])
