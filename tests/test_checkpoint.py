import gc
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from orbax.checkpoint import v1 as ocp

from vcca_jax.checkpoint import checkpoints
from vcca_jax.cooperate import CooperateState
from vcca_jax.profiles import ValueProfiles


def state(seed=0):
    """A state of every kind of leaf that a run has, with values that no rounding survives."""
    rng = np.random.default_rng(seed)
    params = {
        "body": {"w": jnp.asarray(rng.standard_normal((3, 2)), jnp.float32)},
        "head": {"b": jnp.asarray(rng.standard_normal(4) * 1e-40, jnp.float32)},
        "half": jnp.asarray(rng.standard_normal(5), jnp.bfloat16),
    }
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.1))
    return CooperateState(
        params=params,
        optimizer_state=optimizer.update(params, optimizer.init(params), params)[1],
        profiles=ValueProfiles(
            jnp.zeros((2, 1), jnp.int32),
            jnp.ones((2, 1)),
            jnp.zeros((2, 1)),
            jnp.ones((2, 1), bool),
        ),
        context=None,
        credits=jnp.array([jnp.nan, -0.0, jnp.inf]),
        carry_over=jnp.float32(1e-30),
        key=jax.random.key(seed, impl="rbg"),
        step=jnp.int32(seed),
    )


def raw(leaf):
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return str(jax.random.key_impl(leaf)), np.asarray(jax.random.key_data(leaf)).tobytes()
    return leaf.dtype, leaf.shape, np.asarray(leaf).tobytes()


def assert_same_bits(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for one, other in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert raw(one) == raw(other)


def test_a_tree_comes_back_bit_for_bit_with_its_types_and_its_note(tmp_path):
    saved = {"run": state(7), "keys": jax.random.split(jax.random.key(1), 3)}
    note = {"epoch": 3, "text": "é", "nested": {"list": [1, 2.5, None, True]}}
    with checkpoints(tmp_path) as store:
        store.save(3, saved, note)
    like = {"run": state(0), "keys": jax.random.split(jax.random.key(0), 3)}
    with checkpoints(tmp_path) as store:
        assert store.latest == 3
        restored, told = store.restore(3, like)
    assert_same_bits(restored, saved)
    assert isinstance(restored["run"], CooperateState)
    assert told == note
    # And the run goes on with the same draws.
    draws = [jax.random.normal(tree["run"].key, (2,)) for tree in (restored, saved)]
    np.testing.assert_array_equal(*draws)


def test_the_last_two_are_kept_and_a_number_may_be_written_again(tmp_path):
    with checkpoints(tmp_path / "made" / "here") as store:
        assert store.latest is None
        for number in (1, 2, 10):
            store.save(number, {"w": jnp.full(2, float(number))}, {"number": number})
            assert store.latest == number
        store.save(10, {"w": jnp.full(2, -1.0)}, {"number": "again"})
    assert sorted(each.name for each in (tmp_path / "made" / "here").iterdir()) == ["10", "2"]
    with checkpoints(tmp_path / "made" / "here") as store:
        for number, value, note in ((2, 2.0, 2), (10, -1.0, "again")):
            tree, told = store.restore(number, {"w": jnp.zeros(2)})
            np.testing.assert_array_equal(tree["w"], [value, value])
            assert told == {"number": note}


def test_what_a_killed_save_leaves_behind_is_passed_over(tmp_path):
    with checkpoints(tmp_path) as store:
        store.save(1, {"w": jnp.ones(2)}, {})
    broken = tmp_path / "7.orbax-checkpoint-tmp"
    shutil.copytree(tmp_path / "1", broken)
    shutil.rmtree(broken / "state")
    with checkpoints(tmp_path) as store:
        assert store.latest == 1
        tree, _ = store.restore(1, {"w": jnp.zeros(2)})
        np.testing.assert_array_equal(tree["w"], [1.0, 1.0])
        store.save(2, {"w": jnp.zeros(2)}, {})
        assert store.latest == 2
    assert sorted(each.name for each in tmp_path.iterdir()) == ["1", "2"]


@pytest.mark.parametrize(
    "like",
    [
        {"w": jnp.zeros(3), "b": jnp.zeros(1)},
        {"w": jnp.zeros((2, 1)), "b": jnp.zeros(1)},
        {"w": jnp.zeros(2)},
        {"w": jnp.zeros(2), "b": jnp.zeros(1), "more": jnp.zeros(1)},
        {"v": jnp.zeros(2), "b": jnp.zeros(1)},
        {"w": jnp.zeros(2, jnp.int32), "b": jnp.zeros(1)},
        [jnp.zeros(2), jnp.zeros(1)],
    ],
    ids=["longer", "rank", "fewer", "more", "renamed", "dtype", "list"],
)
def test_what_does_not_fit_is_refused(tmp_path, like):
    with checkpoints(tmp_path) as store:
        store.save(4, {"w": jnp.ones(2), "b": jnp.ones(1)}, {})
        with pytest.raises(ValueError, match=r"checkpoint 4 in .* does not fit"):
            store.restore(4, like)
        # The checkpoint is as good as before.
        tree, _ = store.restore(4, {"w": jnp.zeros(2), "b": jnp.zeros(1)})
        np.testing.assert_array_equal(tree["w"], [1.0, 1.0])
    gc.collect()


def test_a_store_is_closed_whatever_happens(tmp_path):
    def stopped_run():
        with checkpoints(tmp_path) as store:
            store.save(1, {"w": jnp.ones(2)}, {})
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        stopped_run()
    with checkpoints(tmp_path) as store:
        assert store.latest == 1


def test_a_strangers_checkpoint_and_a_missing_one_are_refused(tmp_path):
    with ocp.training.Checkpointer(tmp_path) as foreign:
        foreign.save(5, {"w": jnp.ones(2)})
    with checkpoints(tmp_path) as store:
        for call in (store.note, lambda number: store.restore(number, {"w": jnp.zeros(2)})):
            with pytest.raises(ValueError, match="not written by this module"):
                call(5)
            with pytest.raises(ValueError, match="number=9 is no checkpoint"):
                call(9)
