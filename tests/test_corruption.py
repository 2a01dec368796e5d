"""Corruptions change what they say and nothing else."""

import functools

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

KEY = jax.random.key(0)

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


@pytest.mark.parametrize("kind", [np.int64, np.uint8, bool])
def test_invented_integers_reach_both_ends(kind):
    inputs = np.random.default_rng(0).integers(0, 2, (400, 3)).astype(kind)
    made_up, targets = corruption.invent((inputs, np.zeros(400, int)), classes=2, seed=0)
    assert made_up.dtype == kind
    assert set(np.unique(made_up).tolist()) == {0, 1}
    assert abs(made_up.mean() - 0.5) < 0.1
    assert targets.shape == (400,)


def test_invented_texts_have_as_many_labels_as_the_true_ones():
    tokens = np.arange(12).reshape(3, 4)
    made_up, targets = corruption.invent((tokens, tokens % 5), classes=5, seed=0)
    assert made_up.shape == targets.shape == (3, 4)
    assert targets.max() < 5


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
        (lambda s: corruption.repeat(s, 2.5), "times is 2.5"),
        (
            lambda s: corruption.flip_labels((s[0], s[1] % 2 * 2 - 1), classes=2, seed=0),
            r"targets hold \[-1\], which are not in 0..classes - 1 = 0..1",
        ),
        (lambda s: corruption.flip_labels((s[0], s[1] + 9), classes=3, seed=0), "targets hold"),
        (lambda s: corruption.flip_labels((s[0], s[0]), classes=3, seed=0), "targets has shape"),
        (lambda s: corruption.flip_labels((s[0], s[1] / 2), classes=3, seed=0), "dtype float64"),
        (
            lambda s: corruption.add_noise((s[0].astype(np.uint8), s[1]), scale=1.0, seed=0),
            "inputs are of uint8, which cannot hold the noise",
        ),
        (lambda s: corruption.add_noise((s[0] > 0, s[1]), scale=1.0, seed=0), "inputs are of bool"),
        (lambda s: corruption.repeat(s, 0), "times is 0"),
        (lambda s: corruption.split(s, 0), "parts is 0"),
        (lambda s: corruption.replica((s[0], s[1][:1])), "equally many"),
    ],
)
def test_bad_arguments_are_named(call, says):
    with pytest.raises(ValueError, match=says):
        call(shard(3, 0))


@given(count=counts, seed=seeds, fraction=st.floats(0, 1))
def test_labels_are_flipped_within_the_group_alone(count, seed, fraction):
    own = shard(count, seed)
    group = np.random.default_rng(seed).random(count) < 0.4
    _, flipped = corruption.flip_labels(own, classes=5, fraction=fraction, within=group, seed=seed)
    wrong = flipped != own[1]
    assert not wrong[~group].any()
    assert wrong.sum() == round(fraction * group.sum())


def test_who_may_be_flipped_is_one_boolean_a_sample():
    for within in (np.ones(2, bool), np.ones(3)):
        with pytest.raises(ValueError, match="one boolean a sample"):
            corruption.flip_labels(shard(3, 0), classes=5, within=within, seed=0)


RIDERS = np.array([True, False, True, False])
STRENGTH = np.array([0.0, 2.0, -0.5, 0.0], np.float32)
WEIGHTS = np.linspace(0.5, 1, 4).astype(np.float32)


def flat(stack):
    """[A, D] in float64."""
    leaves = jax.tree.leaves(stack)
    return np.concatenate([np.asarray(x, float).reshape(len(x), -1) for x in leaves], axis=1)


def vector(tree):
    return np.concatenate([np.asarray(leaf, float).ravel() for leaf in jax.tree.leaves(tree)])


@functools.cache
def actions():
    """All actions of the honest operator and of each corruption of it, as one program."""
    params, _, validation_loss = operator()
    _, _, loss_fn, _, batches = problem(SIZES, batch_size=16)

    @jax.jit
    def run(present, norm, key):
        gradients = vcca.agent_gradients(loss_fn, params, batches[0], method="stacked")
        gradients = gradients._replace(present=gradients.present & present)
        slope = jax.grad(validation_loss)(params)
        made = {
            "honest": gradients,
            "scaled": corruption.scaled_updates(gradients, jnp.asarray(STRENGTH)),
            "random": corruption.random_updates(gradients, jnp.asarray(RIDERS), norm=norm, key=key),
            "toward": corruption.updates_toward(gradients, slope, jnp.asarray(STRENGTH)),
        }
        diagonal = jax.tree.map(jnp.square, params)
        told = {
            name: (
                each.stack(),
                each.dot(params),
                each.sum(),
                each.sum(jnp.asarray(WEIGHTS)),
                each.squared_norms(),
                each.squared_norms(diagonal),
            )
            for name, each in made.items()
        }
        return told, slope, params

    return run


def told(present=(True,) * 4, norm=0.3, seed=0):
    return actions()(jnp.asarray(present), jnp.float32(norm), jax.random.key(seed))


@pytest.mark.parametrize("name", ["scaled", "random", "toward"])
def test_every_action_of_a_corruption_is_that_of_its_stack(name):
    found, _, params = told()
    stack, dots, total, weighed, squares, diagonal = found[name]
    each, line = flat(stack), vector(params)
    np.testing.assert_allclose(dots, each @ line, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(vector(total), each.sum(axis=0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(vector(weighed), WEIGHTS @ each, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(squares, (each**2).sum(axis=1), rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(diagonal, (each**2) @ line**2, rtol=1e-4, atol=1e-7)


def test_scaled_updates_are_scaled():
    found, _, _ = told()
    honest, scaled = (flat(found[name][0]) for name in ("honest", "scaled"))
    np.testing.assert_allclose(scaled, STRENGTH[:, None] * honest, rtol=1e-6)
    assert not scaled[0].any()


def test_random_riders_have_the_stated_norm_and_a_direction_of_their_own():
    first, again, other = (flat(told(seed=s)[0]["random"][0]) for s in (0, 0, 1))
    honest = flat(told()[0]["honest"][0])
    np.testing.assert_array_equal(first, again)
    np.testing.assert_allclose(np.linalg.norm(first[RIDERS], axis=1), 0.3, rtol=1e-5)
    np.testing.assert_array_equal(first[~RIDERS], honest[~RIDERS].astype(np.float32))
    others = np.concatenate([honest, other[RIDERS], first[[2]]])
    cosines = first[0] @ others.T / (0.3 * np.linalg.norm(others, axis=1))
    # In D dimensions cosines of independent directions are about 1 / sqrt(D).
    assert np.abs(cosines).max() < 5 / np.sqrt(first.shape[1])


def test_a_whole_number_is_as_good_a_norm():
    params, _, _ = operator()
    _, _, loss_fn, _, batches = problem(SIZES, batch_size=16)
    gradients = vcca.agent_gradients(loss_fn, params, batches[0], method="stacked")

    def told(norm):
        made = corruption.random_updates(gradients, jnp.asarray(RIDERS), norm=norm, key=KEY)
        return made.dot(params), made.squared_norms(), made.sum()

    for left, right in zip(jax.tree.leaves(told(1)), jax.tree.leaves(told(1.0)), strict=True):
        np.testing.assert_array_equal(left, right)


def test_a_random_riders_credit_is_nothing_on_average():
    dots = np.array([np.asarray(told(seed=s)[0]["random"][1])[0] for s in range(60)])
    size = 0.3 * np.linalg.norm(vector(told()[2])) / np.sqrt(len(vector(told()[2])))
    assert np.std(dots) == pytest.approx(size, rel=0.3)
    assert abs(np.mean(dots)) < 4 * size / np.sqrt(60)


def test_a_value_breaker_raises_the_value_it_pushes_against():
    """To first order by eta s |d|^2, beside what the gradients do."""
    found, slope, _ = told()
    line = vector(slope)
    honest, pushed = (flat(found[name][0]) for name in ("honest", "toward"))
    np.testing.assert_allclose(
        (honest - pushed) @ line, STRENGTH * (line @ line), rtol=1e-4, atol=1e-6
    )
    assert line @ line > 1e-3


def test_who_is_not_visited_sends_nothing():
    absent = (True, False, False, True)
    found, _, _ = told(present=absent)
    honest = flat(found["honest"][0])
    for name in ("random", "toward"):
        sent = flat(found[name][0])
        np.testing.assert_array_equal(sent[[1, 2]], honest[[1, 2]])


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda g: corruption.random_updates(g, jnp.ones(3, bool), norm=1.0, key=KEY), "riders"),
        (lambda g: corruption.random_updates(g, jnp.ones(4), norm=1.0, key=KEY), "dtype float32"),
        (
            lambda g: corruption.random_updates(g, jnp.ones(4, bool), norm=jnp.ones(2), key=KEY),
            "norm has shape",
        ),
        (lambda g: corruption.updates_toward(g, None, jnp.ones(5)), "strength has shape"),
    ],
)
def test_bad_arguments_of_updates_are_named(call, says):
    _, gradients, _ = operator()
    with pytest.raises(ValueError, match=says):
        call(gradients)


def test_a_scale_of_another_cooperative_is_refused():
    _, gradients, _ = operator()
    with pytest.raises(ValueError, match="scale has shape"):
        corruption.scaled_updates(gradients, jnp.ones(gradients.active.shape[0] + 1))
