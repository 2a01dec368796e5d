"""Corruptions change what they say and nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import vcca_jax as vcca
from tests.problems import problem
from vcca_jax import corruption

SIZES = (4, 3, 6, 3)

counts = st.integers(1, 40)
seeds = st.integers(0, 2**31 - 1)


def shard(count: int, seed: int, classes: int = 5):
    generator = np.random.default_rng(seed)
    inputs = generator.normal(size=(count, 3)).astype(np.float32)
    return inputs, generator.integers(0, classes, count).astype(np.int32)


def operator():
    """Parameters, the gradients of four agents, and a validation loss."""
    _, _, loss_fn, params, batches = problem(SIZES, batch_size=16)
    gradients = vcca.agent_gradients(loss_fn, params, batches[0])
    held_out = shard(20, 9, classes=3)
    inputs = np.random.default_rng(8).normal(size=(20, 5)).astype(np.float32)
    loss = vcca.group_loss(loss_fn, inputs, held_out[1])
    return params, gradients, lambda at: loss(at, None)


@given(count=counts, seed=seeds, fraction=st.floats(0, 1), classes=st.integers(2, 7))
def test_flipped_labels_are_wrong_and_as_many_as_asked(count, seed, fraction, classes):
    inputs, targets = shard(count, seed, classes)
    given_targets = targets.copy()
    same, flipped = corruption.flip_labels(
        (inputs, targets), classes=classes, fraction=fraction, seed=seed
    )
    assert (flipped != targets).sum() == round(fraction * count)
    assert flipped.min() >= 0
    assert flipped.max() < classes
    assert flipped.dtype == targets.dtype
    np.testing.assert_array_equal(same, inputs)
    np.testing.assert_array_equal(targets, given_targets)


def test_flips_reach_every_other_class_evenly():
    targets = np.zeros(6000, np.int32)
    _, flipped = corruption.flip_labels((targets[:, None], targets), classes=4, seed=0)
    np.testing.assert_allclose(
        np.bincount(flipped, minlength=4) / 6000, [0, 1 / 3, 1 / 3, 1 / 3], atol=0.03
    )


@given(count=counts, seed=seeds)
def test_corruptions_repeat_from_their_seed(count, seed):
    own = shard(count, seed)
    for corrupt in (
        lambda s: corruption.flip_labels(own, classes=5, fraction=0.5, seed=s),
        lambda s: corruption.add_noise(own, scale=1.0, seed=s),
        lambda s: corruption.invent(own, classes=5, seed=s),
    ):
        for left, right in zip(corrupt(seed), corrupt(seed), strict=True):
            np.testing.assert_array_equal(left, right)


def test_noise_has_the_stated_spread_and_leaves_labels_alone():
    own = shard(5000, 1)
    noisy, targets = corruption.add_noise(own, scale=0.3, seed=2)
    assert np.std(noisy - own[0]) == pytest.approx(0.3, rel=0.03)
    assert noisy.dtype == own[0].dtype
    np.testing.assert_array_equal(targets, own[1])
    np.testing.assert_array_equal(corruption.add_noise(own, scale=0, seed=2)[0], own[0])


def test_invented_data_lies_in_range_and_tells_nothing_of_the_shard():
    own = shard(4000, 3)
    inputs, targets = corruption.invent(own, classes=5, seed=4)
    assert own[0].min() <= inputs.min()
    assert inputs.max() <= own[0].max()
    assert (targets == own[1]).mean() == pytest.approx(0.2, abs=0.03)
    assert abs(np.corrcoef(inputs.ravel(), own[0].ravel())[0, 1]) < 0.05


@given(count=counts, times=st.integers(1, 4), parts=st.integers(1, 6), seed=seeds)
def test_repeats_and_splits_hold_the_same_samples(count, times, parts, seed):
    inputs, targets = own = shard(count, seed)
    repeated = corruption.repeat(own, times)
    np.testing.assert_array_equal(repeated[0].reshape(times, count, 3), np.stack([inputs] * times))
    np.testing.assert_array_equal(repeated[1][:count], targets)
    split = corruption.split(own, parts)
    assert {len(part[1]) for part in split} <= {count // parts, -(-count // parts)}
    for row in range(count):
        part = split[row % parts]
        np.testing.assert_array_equal(part[0][row // parts], inputs[row])
        assert part[1][row // parts] == targets[row]


def test_a_replica_is_equal_and_apart():
    own = shard(4, 0)
    copied = corruption.replica(own)
    for left, right in zip(copied, own, strict=True):
        np.testing.assert_array_equal(left, right)
        assert not np.shares_memory(left, right)


def test_scaled_updates_scale_all_three_actions():
    params, gradients, _ = operator()
    agents = gradients.active.shape[0]
    scale = jnp.linspace(-1, 2, agents).at[0].set(0)
    scaled = corruption.scaled_updates(gradients, scale)
    stack = jax.tree.map(
        lambda g: np.asarray(scale).reshape((-1,) + (1,) * (g.ndim - 1)) * np.asarray(g),
        gradients.stack(),
    )
    weights = jnp.linspace(0.5, 1, agents)
    for got, want in zip(jax.tree.leaves(scaled.stack()), jax.tree.leaves(stack), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6)
        assert not np.asarray(got[0]).any()
    for got, want in zip(jax.tree.leaves(scaled.sum(weights)), jax.tree.leaves(stack), strict=True):
        np.testing.assert_allclose(got, np.tensordot(weights, want, 1), rtol=1e-4, atol=1e-6)
    for got, want in zip(jax.tree.leaves(scaled.sum()), jax.tree.leaves(stack), strict=True):
        np.testing.assert_allclose(got, want.sum(axis=0), rtol=1e-4, atol=1e-6)
    dots = sum(
        np.tensordot(g.reshape(agents, -1), np.asarray(p).ravel(), 1)
        for g, p in zip(jax.tree.leaves(stack), jax.tree.leaves(params), strict=True)
    )
    np.testing.assert_allclose(scaled.dot(params), dots, rtol=1e-4, atol=1e-6)


def test_a_zero_update_is_worth_exactly_nothing():
    params, gradients, validation_loss = operator()
    scaled = corruption.scaled_updates(gradients, jnp.ones(len(SIZES)).at[1].set(0))
    sgd = optax.sgd(0.5)
    utility = vcca.one_step_utility(params, sgd.init(params), scaled, sgd, validation_loss)
    credits = np.asarray(jax.jit(lambda w: vcca.aumann_shapley(utility, w))(jnp.ones(len(SIZES))))
    assert credits[1] == 0
    assert (np.abs(np.delete(credits, 1)) > 1e-6).all()


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda s: corruption.flip_labels(s, classes=1, seed=0), "classes=1"),
        (lambda s: corruption.flip_labels(s, classes=3, fraction=1.5, seed=0), "fraction=1.5"),
        (lambda s: corruption.add_noise(s, scale=-1.0, seed=0), "scale=-1.0"),
        (lambda s: corruption.add_noise(s, scale=float("nan"), seed=0), "scale=nan"),
        (lambda s: corruption.invent(s, classes=0, seed=0), "classes=0"),
        (lambda s: corruption.repeat(s, 0), "times=0"),
        (lambda s: corruption.split(s, 0), "parts=0"),
        (lambda s: corruption.replica((s[0], s[1][:1])), "equally many"),
    ],
)
def test_bad_arguments_are_named(call, says):
    with pytest.raises(ValueError, match=says):
        call(shard(3, 0))


def test_a_scale_of_another_cooperative_is_refused():
    _, gradients, _ = operator()
    with pytest.raises(ValueError, match="scale has shape"):
        corruption.scaled_updates(gradients, jnp.ones(gradients.active.shape[0] + 1))
