"""One new stage of every kind, written outside the package and run together."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import vcca_jax as vcca
from tests.problems import batches, criterion, shards, tanh_mlp
from vcca_jax.share_rules import ShareRule

CAP, STEPS = 0.05, 4
MODEL = tanh_mlp()
LOSS = vcca.model_loss(MODEL, criterion)
PARAMS = jax.jit(MODEL.init)(jax.random.key(1))


def size_of_head(params, context):
    """A value loss: the head must not outgrow what the context allows."""
    squares = [jnp.sum(leaf**2) for leaf in jax.tree.leaves(params["head"])]
    return jnp.maximum(sum(squares) - context, 0.0)


def between(name, least, most):
    """A constraint: the value falls by at least this much per step, and by no more than that."""
    return [vcca.protect(name, least), vcca.forbid(name, -most)]


def capped(limit):
    """A screen: no agent moves the parameters by more than the limit."""

    def apply(gradients, value_gradients, profiles):
        norm = vcca.agent_norms(gradients)
        scale = jnp.minimum(1.0, limit / jnp.maximum(norm, 1e-12))
        report = vcca.untouched(gradients, value_gradients)
        report = report._replace(scale=scale, removed_norm=(1 - scale) * norm, norm=norm)
        return vcca.affine(gradients, scale, report.coefficients, value_gradients), report

    return apply


def in_turn(*screens):
    """A screen made of several; the last one reports."""

    def apply(gradients, value_gradients, profiles):
        for screen in screens:
            gradients, report = screen(gradients, value_gradients, profiles)
        return gradients, report

    return apply


def alone(utility, weights, *, key=None):
    """An estimator: what each agent would have brought by itself."""
    nobody = jnp.zeros_like(weights)
    own = jax.vmap(utility)(jnp.diag(weights))
    return jnp.where(weights > 0, own - utility(nobody), 0.0)


def winner_takes_all():
    """A share rule: everything to whoever brought most, if that was anything."""

    def shares(credits, standings):
        best = max(credits, key=lambda party: (credits[party], party))
        return {best: 1} if credits[best] > 0 else {}

    return ShareRule({"rule": "winner_takes_all"}, shares)


def averaged(trainer, decay=0.9):
    """A trainer: another one, and the running average of its parameters beside it."""

    def init(params, *args, **options):
        return trainer.init(params, *args, **options), params

    def step(state, batch):
        inner, info = trainer.step(state[0], batch)
        mix = lambda old, new: decay * old + (1 - decay) * new  # noqa: E731
        return (inner, jax.tree.map(mix, state[1], inner.params)), info

    return vcca.Trainer(init, step)


@pytest.mark.parametrize(
    "stage", [size_of_head, between, capped, in_turn, alone, winner_takes_all, averaged]
)
def test_each_takes_under_fifteen_lines(stage):
    assert len(inspect.getsource(stage).splitlines()) < 15


def test_a_constraint_of_ones_own_is_made_of_those_there_are():
    gradient, normal = jnp.array([3.0, 1.0]), jnp.array([[1.0, 0.0], [-1.0, 0.0]])
    profiles = vcca.value_profiles(["V"], [between("V", 0.5, 2.0)])
    update, _ = vcca.project_onto_cone(gradient, normal, profiles.margin[0])
    np.testing.assert_allclose(update, [2.0, 1.0], rtol=1e-6)


def test_they_run_together(tmp_path):
    members = vcca.cooperative(shards())
    validation = tuple(np.concatenate(part) for part in zip(*shards(), strict=True))
    values = vcca.value_losses({"size": size_of_head})
    profiles = vcca.value_profiles(["size"], [[vcca.protect("size")]] * members.capacity)
    trainer = averaged(
        vcca.cooperate(
            LOSS,
            optax.sgd(0.5),
            lambda params: LOSS(params, *validation).mean(),
            values,
            screen=in_turn(vcca.screen("project"), capped(CAP)),
            estimator=alone,
        )
    )
    allowed = values.losses(PARAMS, jnp.zeros(()))[0]
    state = trainer.init(PARAMS, profiles, context=0.9 * allowed)
    steps = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(batches(members) * 2)[:STEPS])
    (state, average), infos = jax.jit(
        lambda state, steps: jax.lax.scan(trainer.step, state, steps)
    )(state, steps)

    assert state.step == STEPS
    # The value loss is quadratic, so a projected step of length eta CAP raises it by its square.
    rise = np.append(infos.value_losses[1:, 0], values.losses(state.params, state.context)[0])
    assert (rise - infos.value_losses[:, 0] < (0.5 * CAP * members.capacity) ** 2 + 1e-6).all()
    assert (infos.report.norm[~infos.report.admissible & infos.present] > CAP).all()
    assert infos.report.removed_norm.max() > 0
    moved = [
        np.linalg.norm(np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(difference)]))
        for difference in (
            jax.tree.map(jnp.subtract, state.params, PARAMS),
            jax.tree.map(jnp.subtract, average, PARAMS),
        )
    ]
    assert 0 < moved[1] < moved[0] < STEPS * 0.5 * CAP * members.capacity
    assert (np.asarray(infos.credits)[~np.asarray(infos.present)] == 0).all()

    credits = dict(zip(members.names, state.credits.tolist(), strict=True))
    with vcca.Ledger.open(tmp_path / "ledger.sqlite", rule=winner_takes_all()) as ledger:
        ledger.settle(0, credits, 1001)
        best = max(credits, key=credits.get)
        assert credits[best] > 0
        assert {name: paid for name, paid in ledger.balances().items() if paid} == {best: 1001}
        ledger.verify()
