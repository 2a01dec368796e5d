"""A per-example loss of another shape is refused wherever one is taken, not broadcast."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import vcca_jax as vcca
from vcca_jax.gradients import agent_gradients
from vcca_jax.model import SplitModel, model_loss
from vcca_jax.sharding.mesh import agent_mesh

MEMBERS = vcca.cooperative([(np.ones((3, 2), "f"), np.zeros(3, "f")) for _ in range(2)])
BATCH = vcca.gather(
    MEMBERS.shards, jax.tree.map(lambda f: f[0], vcca.virtual_batches(MEMBERS, 4, seed=0, epoch=0))
)
MODEL = SplitModel(None, lambda p, x: x @ p, lambda p, h: h @ p)
PARAMS = {"body": jnp.ones((2, 2)), "head": jnp.ones((2, 1))}
WRONG = {
    "column": lambda o, t: (o - t[:, None]) ** 2,
    "square": lambda o, t: (o - t[None]) ** 2,
    "mean": lambda o, t: ((o[:, 0] - t) ** 2).mean(),
}
"""[n, 1], [n, n] and a scalar; all of them went through a mean without a word."""


def right(outputs, targets):
    return (outputs[:, 0] - targets) ** 2


def taken_by(loss, criterion):
    """Whatever takes a per-example loss, by name."""
    sgd = optax.sgd(0.1)
    trainers = {
        "traversal": vcca.traversal(loss, sgd),
        "one pass": vcca.traversal(loss, sgd, method="one_pass"),
        "centralized": vcca.centralized(loss, sgd),
        "split": vcca.split_traversal(MODEL, criterion, sgd),
        "together": vcca.split_traversal(MODEL, criterion, sgd, method="together"),
    }
    calls = {
        name: lambda each=each: each.step(each.init(PARAMS), BATCH)
        for name, each in trainers.items()
    }
    calls["scanned"] = lambda: agent_gradients(loss, PARAMS, BATCH, method="scanned").sum()
    calls["costs"] = lambda: vcca.form_costs(loss, PARAMS, BATCH)
    calls["group"] = lambda: vcca.group_loss(loss, np.ones((3, 2), "f"), np.zeros(3, "f"))(PARAMS)
    spread = vcca.spread_loss(loss, np.ones((16, 2), "f"), np.zeros(16, "f"), agent_mesh())
    calls["spread"] = lambda: spread(PARAMS)
    return calls


@pytest.mark.parametrize("shape", WRONG)
@pytest.mark.parametrize("taker", taken_by(None, None))
def test_a_loss_of_another_shape_is_refused(taker, shape):
    criterion = WRONG[shape]
    with pytest.raises(ValueError, match=r"(loss_fn|criterion) returned shape .* one loss an ex"):
        taken_by(model_loss(MODEL, criterion), criterion)[taker]()


@pytest.mark.parametrize("taker", taken_by(None, None))
def test_one_loss_an_example_is_taken(taker):
    taken_by(model_loss(MODEL, right), right)[taker]()


@pytest.mark.parametrize("method", ["auto", "linearized"])
def test_a_validation_loss_that_is_no_number_is_named(method):
    loss = model_loss(MODEL, right)
    values = vcca.value_losses({"group": vcca.group_loss(loss, np.ones((3, 2), "f"), np.zeros(3))})
    trainer = vcca.cooperate(
        loss,
        optax.sgd(0.1),
        lambda params: loss(params, BATCH.inputs, BATCH.targets),
        values,
        method=method,
    )
    state = trainer.init(PARAMS, vcca.value_profiles(values.names, [[vcca.protect("group")]] * 2))
    with pytest.raises(ValueError, match=r"validation_loss returns \(4,\).*one floating-point"):
        trainer.step(state, BATCH)


def test_held_out_rows_are_counted_by_their_arrays():
    """Inputs of two arrays are not two rows."""

    def loss(params, inputs, targets):
        return (inputs["a"] @ params + inputs["b"] - targets) ** 2

    inputs = {"a": np.arange(15, dtype="f").reshape(5, 3), "b": np.ones(5, "f")}
    targets, params = np.arange(5, dtype="f"), jnp.ones(3)
    expected = float(loss(params, inputs, targets).mean())
    made = [
        vcca.group_loss(loss, inputs, targets),
        vcca.drawn_loss(loss, inputs, targets, size=2),
        vcca.spread_loss(loss, inputs, targets, agent_mesh()),
    ]
    for held_out in made:
        np.testing.assert_allclose(held_out(params), expected, rtol=1e-6)
    for make in (vcca.group_loss, lambda *g: vcca.spread_loss(*g, agent_mesh())):
        with pytest.raises(ValueError, match="targets are 2 and inputs 5"):
            make(loss, inputs, targets[:2])
        with pytest.raises(ValueError, match="inputs 4 or 5"):
            make(loss, {**inputs, "b": inputs["b"][:4]}, targets)
