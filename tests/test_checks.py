import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental import checkify

import vcca_jax as vcca
from tests.problems import problem
from vcca_jax.baselines import fedavg
from vcca_jax.checks import checked
from vcca_jax.rounds import Round, local_batches
from vcca_jax.traversal import traversal


@pytest.fixture(scope="module")
def case():
    _, _, loss_fn, params, steps = problem()
    plain = traversal(loss_fn, optax.sgd(0.1))
    trainer = checked(plain)
    return plain, jax.jit(checkify.checkify(trainer.step)), trainer.init(params), steps[0]


def test_a_good_step_is_left_as_it_is(case):
    plain, step, state, batch = case
    error, (after, info) = step(state, batch)
    error.throw()
    expected, expected_info = jax.jit(plain.step)(state, batch)
    for ours, theirs in zip(
        jax.tree.leaves((after, info)), jax.tree.leaves((expected, expected_info)), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda b: b._replace(owners=b.owners.at[0].set(5)), "owner is 5, outside the 5 slots"),
        (lambda b: b._replace(owners=b.owners.at[0].set(-1)), "owner is -1, outside the 5 slots"),
        (lambda b: b._replace(active=jnp.zeros_like(b.active)), "not active"),
        (lambda b: b._replace(inputs=b.inputs.at[0, 0].set(jnp.nan)), "not finite"),
        (lambda b: b._replace(targets=b.targets.at[0].set(99)), "not finite"),
    ],
    ids=["beyond", "negative", "left", "nan", "label"],
)
def test_what_would_go_wrong_silently_is_an_error(case, spoil, words):
    _, step, state, batch = case
    error, _ = step(state, spoil(batch))
    with pytest.raises(checkify.JaxRuntimeError, match=words):
        error.throw()


@pytest.fixture(scope="module")
def case_of_a_whole_step():
    """Screened by projection, whose solver loops over agents."""
    _, _, loss_fn, params, steps = problem()
    inputs, targets = steps[0].inputs, steps[0].targets
    values = vcca.value_losses({"first": vcca.group_loss(loss_fn, inputs[:2], targets[:2])})
    validation = vcca.group_loss(loss_fn, inputs[2:], targets[2:])
    plain = vcca.cooperate(loss_fn, optax.sgd(0.1), validation, values, estimator=vcca.first_order)
    profiles = vcca.value_profiles(values.names, [[vcca.protect("first")]] * 5)
    return plain, checked(plain), plain.init(params, profiles), steps


def test_a_whole_step_is_checked_and_left_as_it_is(case_of_a_whole_step):
    plain, trainer, state, steps = case_of_a_whole_step
    step = jax.jit(checkify.checkify(trainer.step))
    error, (after, info) = step(state, steps[0])
    error.throw()
    expected = jax.jit(plain.step)(state, steps[0])
    for ours, theirs in zip(
        jax.tree.leaves((after.params, info.credits)),
        jax.tree.leaves((expected[0].params, expected[1].credits)),
        strict=True,
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-8)
    error, _ = step(state, steps[0]._replace(owners=steps[0].owners.at[0].set(7)))
    with pytest.raises(checkify.JaxRuntimeError, match="owner is 7, outside"):
        error.throw()


def test_a_whole_step_is_checked_under_scan_and_inside_vmap(case_of_a_whole_step):
    _, trainer, state, steps = case_of_a_whole_step
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *steps[:2])
    scanned = checkify.checkify(lambda state, steps: jax.lax.scan(trainer.step, state, steps))
    two = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), state)
    error, _ = jax.jit(jax.vmap(scanned, in_axes=(0, None)))(two, stacked)
    error.throw()
    spoilt = stacked._replace(inputs=stacked.inputs.at[1, 0].set(jnp.nan))
    error, _ = jax.jit(scanned)(state, spoilt)
    with pytest.raises(checkify.JaxRuntimeError, match="not finite"):
        error.throw()


def test_padding_may_hold_anything(case):
    _, step, state, batch = case
    dead = batch._replace(
        mask=batch.mask.at[0].set(False),
        owners=batch.owners.at[0].set(77),
        targets=batch.targets.at[0].set(99),
    )
    error, _ = step(state, dead)
    error.throw()


@pytest.fixture(scope="module")
def case_of_rounds():
    members, _, loss_fn, params, _ = problem()
    trainer = checked(fedavg(loss_fn, optax.sgd(0.1)))
    round_ = Round(members.shards, local_batches(members, 4, seed=0, epoch=0))
    round_ = jax.tree.map(jnp.asarray, round_)
    return jax.jit(checkify.checkify(trainer.step)), trainer.init(params), round_


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda s, p: (s, p._replace(agents=p.agents.at[0].set(5))), "outside the 5 slots"),
        (lambda s, p: (s._replace(active=jnp.zeros_like(s.active)), p), "not active"),
        (lambda s, p: (s._replace(inputs=s.inputs.at[0].set(jnp.nan)), p), "not finite"),
        (lambda s, p: (s._replace(targets=s.targets.at[3].set(99)), p), "not finite"),
    ],
    ids=["beyond", "left", "nan", "label"],
)
def test_rounds_are_checked_too(case_of_rounds, spoil, words):
    step, state, round_ = case_of_rounds
    error, (after, _) = step(state, round_)
    error.throw()
    assert after.step == 1
    error, _ = step(state, Round(*spoil(round_.shards, round_.plan)))
    with pytest.raises(checkify.JaxRuntimeError, match=words):
        error.throw()
