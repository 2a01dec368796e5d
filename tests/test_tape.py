"""Gradients told from one pass, against every example's gradient formed on its own."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.model_examples import MAKE, examples, filled, keys_of
from tests.problems import criterion, in_float64
from vcca_jax.low_rank import low_rank
from vcca_jax.model import model_loss
from vcca_jax.noise import Keyed
from vcca_jax.one_pass.tape import record

ROWS, BLOCKS = 6, (1, 3)  # directions are made of the last four
TARGETS = np.array([0, 2, 1, 1, 0, 2], np.int32)
COEFFICIENTS = [np.array([0.7]), np.array([-0.4, 1.1, 0.3])]
SPREAD = np.array([[0, 0, 0.7, 0, 0, 0], [0, 0, 0, -0.4, 1.1, 0.3]])
WEIGHTS = np.cos(np.arange(1.0 * ROWS))
GROUPS = np.array([0, 2, 1, 1, 0, 0])  # of four, the last with nobody in it


def of_model(name):
    return model_loss(MAKE[name](cut=1), criterion), filled(name, 1), examples(name)


def adapted():
    """Adapters: weights that are a product of parameters before they meet data."""
    base = MAKE["mlp"](cut=1), filled("mlp", 1)
    model = low_rank(*base, rank=2)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    generator = np.random.default_rng(4)
    params = jax.tree.map(lambda leaf: generator.normal(size=leaf.shape).astype("f"), shapes)
    return model_loss(model, criterion), params, examples("mlp")


def noisy():
    loss, params, inputs = of_model("mlp")
    return loss, params, Keyed(inputs, keys_of(3))


def tied():
    """One matrix that is used twice, and once transposed."""

    def loss(params, inputs, targets):
        hidden = jnp.tanh(jnp.tanh(inputs @ params["w"]) @ params["w"]) @ params["w"].T
        return criterion(hidden[:, :3], targets)

    return (
        loss,
        {"w": np.random.default_rng(5).normal(size=(5, 5)).astype("f") / 2},
        examples("mlp"),
    )


def looped():
    """Layers in a loop, whose parameters an operation hides; and a division by a parameter."""

    def loss(params, inputs, targets):
        def layer(hidden, w):
            return jnp.tanh(hidden @ w), None

        hidden, _ = jax.lax.scan(layer, inputs, params["layers"])
        return criterion(hidden[:, :3] / params["heat"], targets)

    layers = np.random.default_rng(6).normal(size=(3, 5, 5)).astype("f")
    return loss, {"layers": layers, "heat": np.float32(1.5)}, examples("mlp")


def positions():
    """A dense layer at seven positions of an example, of few units: pairs of positions pay."""

    def loss(params, inputs, targets):
        scores = jnp.tanh(inputs @ params["w"] + params["b"][None, None]) @ params["v"]
        return criterion(scores.mean(axis=1), targets)

    generator = np.random.default_rng(7)
    params = {"w": (40, 30), "b": (30,), "v": (30, 3)}
    params = {name: generator.normal(size=s).astype("f") / 5 for name, s in params.items()}
    return loss, params, generator.normal(size=(ROWS, 2, 40)).astype("f")


def convolved():
    """Strides, padding that is uneven, a window with holes, and channels in the second place."""

    def loss(params, inputs, targets):
        seen = jax.lax.conv_general_dilated(
            inputs,
            params["w"],
            window_strides=(2, 1),
            padding=((1, 0), (2, 1)),
            rhs_dilation=(1, 2),
            dimension_numbers=("NCHW", "HWIO", "NHWC"),
        )
        hidden = jnp.tanh(seen * params["scale"][None, None, None] + params["b"][None, None, None])
        return criterion(hidden.mean(axis=(1, 2)), targets)

    generator = np.random.default_rng(8)
    shapes = {"w": (3, 2, 2, 3), "b": (3,), "scale": (3,)}
    params = {name: generator.normal(size=s).astype("f") for name, s in shapes.items()}
    return loss, params, generator.normal(size=(ROWS, 2, 5, 4)).astype("f")


def settled():
    """Comparisons, an order and a choice of branch, made of parameters, where they meet data."""

    def loss(params, inputs, targets):
        hidden = jnp.tanh(inputs @ params["w"] + params["b"][None])
        hidden = jnp.where(params["b"][None] > 0, hidden, 0.0)
        hidden = hidden[:, jnp.argsort(params["b"])]
        branches = (lambda h: h @ params["v"], lambda h: jnp.sin(h @ params["v"]))
        scores = jax.lax.switch(jnp.argmax(params["b"]) % 2, branches, hidden)
        return criterion(scores, targets)

    generator = np.random.default_rng(9)
    shapes = {"w": (5, 4), "b": (4,), "v": (4, 3)}
    params = {name: generator.normal(size=s).astype("f") for name, s in shapes.items()}
    return loss, params, examples("mlp")


def dataless():
    """A loss that looks at parameters alone."""

    def loss(params, inputs, targets):
        del targets
        return jnp.full(len(inputs), jnp.sum(params["w"] ** 2) + params["b"][0])

    params = {"w": np.arange(6, dtype="f").reshape(2, 3), "b": np.ones(2, "f")}
    return loss, params, examples("mlp")


CASES = {
    "settled": settled,
    "dataless": dataless,
    "convolution": convolved,
    "mlp": lambda: of_model("mlp"),
    "low rank": adapted,
    "dropout": noisy,
    "tied": tied,
    "loop": looped,
    "positions": positions,
    "vgg": lambda: of_model("vgg"),
    "transformer": lambda: of_model("transformer"),
}


def weighed(params):
    """A number for each leaf."""
    leaves, structure = jax.tree.flatten(params)
    return jax.tree.unflatten(structure, [jnp.asarray(0.5 + i) for i in range(len(leaves))])


@functools.cache
def told_and_expected(name, form):
    with jax.enable_x64(True):
        loss, params, inputs = CASES[name]()
        params = in_float64(jax.tree.map(jnp.asarray, params))
        if not isinstance(inputs, Keyed):
            inputs = in_float64(jnp.asarray(inputs))
        direction = jax.tree.map(
            lambda p: jnp.cos(jnp.arange(p.size, dtype=p.dtype)).reshape(p.shape), params
        )

        @jax.jit
        def both(params, inputs):
            tape = record(loss, params, inputs, TARGETS, blocks=BLOCKS, form=form)
            coefficients = [jnp.asarray(each) for each in COEFFICIENTS]
            told = (
                tape.losses,
                tape.dot(direction),
                tape.combination(jnp.asarray(WEIGHTS)),
                tape.products(coefficients),
                tape.products(coefficients, weighed(params)),
            )
            squares = [
                tape.squares(jnp.asarray(WEIGHTS), jnp.asarray(GROUPS), 4, slice(ROWS), weights)
                for weights in (None, weighed(params))
            ]

            def gradient(row):
                alone = jax.tree.map(lambda leaf: leaf[row][None], inputs)
                return jax.grad(lambda at: loss(at, alone, jnp.asarray(TARGETS)[row][None])[0])(
                    params
                )

            return (
                (told, squares),
                loss(params, inputs, TARGETS),
                jax.vmap(gradient)(jnp.arange(ROWS)),
            )

        (told, squares), losses, gradients = jax.device_get(both(params, inputs))
        flat = np.concatenate([g.reshape(ROWS, -1) for g in jax.tree.leaves(gradients)], axis=1)
        line = np.concatenate([np.ravel(d) for d in jax.tree.leaves(jax.device_get(direction))])
        factors = zip(jax.tree.leaves(weighed(params)), jax.tree.leaves(params), strict=True)
        factor = np.concatenate([np.full(p.size, float(w)) for w, p in factors])
        mixed = flat @ (SPREAD @ flat).T, flat @ (SPREAD @ flat * factor).T
        summed = np.zeros((4, flat.shape[1]))
        np.add.at(summed, GROUPS, WEIGHTS[:, None] * flat)
        norms = np.square(summed).sum(axis=1), (np.square(summed) * factor).sum(axis=1)
        return (told, squares), ((losses, flat @ line, WEIGHTS @ flat, *mixed), norms)


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("name", "form"),
    [
        pytest.param(
            n,
            f,
            marks=[SLOW] if n in ("vgg", "transformer") or (n, f) == ("loop", "stacked") else [],
        )
        for n in CASES
        for f in ("auto", "pairs", "stacked", "directions")
        if f == "auto"
        or n in ("convolution", "positions", "tied", "loop", "vgg", "transformer")
        or (n, f) == ("settled", "stacked")
    ],
)
def test_all_actions_are_those_of_the_examples_own_gradients(name, form):
    ((losses, dots, combination, *products), squares), (expected, norms) = told_and_expected(
        name, form
    )
    np.testing.assert_allclose(losses, expected[0], rtol=1e-10)
    combined = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(combination)])
    for ours, theirs in zip((dots, combined, *products), expected[1:], strict=True):
        assert np.abs(theirs).max() > 1e-3
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-11 * np.abs(theirs).max())
    # A leaf that is used twice, or is part of a sum or a product, leaves norms to another way.
    assert (squares[0] is None) == (name in ("tied", "low rank", "dataless"))
    for ours, theirs in zip(squares, norms, strict=True):
        if ours is not None:
            assert ours[3] == 0
            np.testing.assert_allclose(ours[:3], theirs[:3], rtol=1e-9)


def test_products_of_a_wide_layer_come_from_pairs_and_form_no_gradient():
    """No array of the layer's own size occurs but the layer, for any number of directions."""
    width, rows = 300, 8

    def loss(params, inputs, targets):
        return jnp.square(jnp.tanh(inputs @ params) - targets[:, None]).sum(axis=1)

    def products(params, inputs, targets):
        tape = record(loss, params, inputs, targets, blocks=(1,) * 4)
        return tape.products([jnp.ones(1)] * 4)

    shapes = (
        jax.ShapeDtypeStruct(s, jnp.float32) for s in ((width, width), (rows, width), (rows,))
    )
    compiled = jax.jit(products).lower(*shapes).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * width * width


def forms_of(loss, params, inputs, **options):
    """How the sites hold their gradients, with half of the rows held out in four blocks."""
    told = []
    rows = inputs.shape[0]

    def pass_(params, inputs, targets):
        told.append(record(loss, params, inputs, targets, blocks=(rows // 8,) * 4, **options).forms)
        return targets

    targets = jax.ShapeDtypeStruct((rows,), jnp.int32)
    jax.eval_shape(pass_, params, inputs, targets)
    return told[-1]


def shapes(**sizes):
    return {name: jax.ShapeDtypeStruct(size, jnp.float32) for name, size in sizes.items()}


def test_the_form_of_a_layer_follows_from_its_shapes():
    """A wide layer, one at many positions, a bias, a table of many words, one met twice."""

    def wide(params, inputs, targets):
        return criterion(inputs @ params["w"], targets)

    def embedded(params, words, targets):
        return criterion(params["table"][words].mean(axis=1) + params["b"][None], targets)

    def twice(params, inputs, targets):
        return criterion(jnp.tanh(inputs @ params["w"]) @ params["w"], targets)

    many = shapes(w=(500, 500))
    assert forms_of(wide, many, jax.ShapeDtypeStruct((64, 500), jnp.float32)) == ("pairs",)
    assert (
        forms_of(twice, many, jax.ShapeDtypeStruct((64, 500), jnp.float32)) == ("directions",) * 2
    )
    words = jax.ShapeDtypeStruct((64, 30), jnp.int32)
    table = shapes(table=(5000, 8), b=(8,))
    assert forms_of(embedded, table, words) == ("directions", "stacked")
    loss, params, inputs = convolved()
    seen = jax.ShapeDtypeStruct((64, inputs.shape[1], 20, 20), jnp.float32)
    assert set(forms_of(loss, params, seen)) == {"stacked"}
    # Without a view it is an operation like any other, and its window small beside its outputs.
    assert set(forms_of(loss, params, seen, views={}, form="directions")) == {"directions"}


def test_bad_blocks_and_forms_are_refused():
    loss, params, inputs = of_model("mlp")
    for options, match in (
        ({"blocks": (4, 3)}, r"blocks=\(4, 3\)"),
        ({"blocks": (0,)}, r"blocks=\(0,\)"),
        ({"form": "dense"}, "form='dense'"),
    ):
        with pytest.raises(ValueError, match=match):
            record(loss, params, inputs, TARGETS, **options)
    tape = record(loss, params, inputs, TARGETS, blocks=BLOCKS)
    with pytest.raises(ValueError, match=r"coefficients are of \[2, 2\] rows"):
        tape.products([jnp.ones(2), jnp.ones(2)])
