import gc
import logging
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


def test_the_programs_logger_keeps_its_level(tmp_path):
    logger = logging.getLogger("absl")
    before = logger.level
    try:
        logger.setLevel(logging.INFO)
        with checkpoints(tmp_path):
            assert logger.level == logging.INFO
    finally:
        logger.setLevel(before)


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


def test_the_latest_is_complete_though_it_is_written_behind_the_callers_back(tmp_path):
    with checkpoints(tmp_path) as store:
        for number in (1, 2):
            store.save(number, {"w": jnp.ones(3_000_000)}, {"number": number})
            assert store.latest == number
            assert (tmp_path / str(number)).is_dir()
        store.save(3, {"w": jnp.ones(3_000_000)}, {"number": 3})
        assert store.note(3) == {"number": 3}


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


@pytest.mark.parametrize("like", [{"s": (), "o": ((), None)}, {"o": ((),)}, {"o": None}])
def test_what_differs_in_nothing_but_empty_places_does_not_fit(tmp_path, like):
    """An optimizer's empty states are places too; only which kind of nothing is free."""
    with checkpoints(tmp_path) as store:
        store.save(4, {"w": jnp.ones(2), "o": (optax.EmptyState(), None)}, {})
        with pytest.raises(ValueError, match=r"does not fit: \['.'\].* (empty|absent)"):
            store.restore(4, {"w": jnp.zeros(2), **like})
        tree, _ = store.restore(4, {"w": jnp.zeros(2), "o": ((), None)})
        np.testing.assert_array_equal(tree["w"], [1.0, 1.0])


def test_a_number_that_would_not_be_kept_is_refused(tmp_path):
    with checkpoints(tmp_path) as store:
        with pytest.raises(ValueError, match=r"number=-1 would not be kept.*give 0 or more"):
            store.save(-1, {"w": jnp.ones(2)}, {})
        store.save(5, {"w": jnp.ones(2)}, {})
        with pytest.raises(ValueError, match=r"number=1 would not be kept.*give 5 or more"):
            store.save(1, {"w": jnp.ones(2)}, {})
        store.save(5, {"w": jnp.zeros(2)}, {})
        assert store.latest == 5


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


def test_what_was_saved_may_be_donated_and_overwritten_at_once(tmp_path):
    """The save is still under way when its buffers are given to the next state, several times."""
    step = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf + 1, tree), donate_argnums=0)
    tree = {"w": jnp.zeros(1_000_000), "v": jnp.zeros((10, 1000))}
    host = np.zeros(1_000_000, np.float32)
    with checkpoints(tmp_path) as store:
        for number in range(1, 4):
            tree = step(tree)
            host[:] = number
            store.save(number, {**tree, "host": host}, {"number": number})
            for _ in range(2):
                tree = step(tree)
            host[:] = -1
            jax.block_until_ready(tree)
            restored, note = store.restore(number, {**tree, "host": host})
            assert note == {"number": number}
            for name, expected in (("w", 3 * number - 2), ("v", 3 * number - 2), ("host", number)):
                np.testing.assert_array_equal(
                    restored[name], np.full_like(restored[name], expected)
                )


def test_a_save_that_cannot_begin_says_so(tmp_path):
    with checkpoints(tmp_path / "here") as store:
        store.save(1, {"w": jnp.ones(2)}, {})
        store.wait()
        store.wait()  # nothing is under way
        shutil.rmtree(tmp_path / "here")
        (tmp_path / "here").write_text("in the way")
        with pytest.raises(OSError, match="here"):
            store.save(2, {"w": jnp.ones(2)}, {})
    gc.collect()


@pytest.mark.parametrize(
    ("devices", "spec"), [(8, jax.P("agents")), (4, jax.P(None, "agents")), (2, jax.P()), (1, None)]
)
def test_arrays_go_back_onto_another_layout_bit_for_bit(tmp_path, devices, spec):
    values = np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32)
    eight = jax.NamedSharding(jax.make_mesh((8,), ("agents",)), jax.P("agents"))
    tree = {"w": jax.device_put(values, eight), "key": jax.random.split(jax.random.key(2), 8)}
    tree["key"] = jax.device_put(tree["key"], eight)
    if spec is None:
        wanted = jax.sharding.SingleDeviceSharding(jax.devices()[3])
        keys_wanted = wanted
    else:
        mesh = jax.make_mesh((devices,), ("agents",), devices=jax.devices()[:devices])
        wanted = jax.NamedSharding(mesh, spec)
        keys_wanted = jax.NamedSharding(mesh, jax.P("agents"))
    like = {
        "w": jax.ShapeDtypeStruct((8, 4), jnp.float32, sharding=wanted),
        "key": jax.ShapeDtypeStruct((8,), tree["key"].dtype, sharding=keys_wanted),
    }
    with checkpoints(tmp_path) as store:
        store.save(1, tree, {})
        described, _ = store.restore(1, like)
        arrays = jax.tree.map(lambda leaf, to: jax.device_put(leaf, to.sharding), tree, like)
        of_arrays, _ = store.restore(1, arrays)
    for restored in (described, of_arrays):
        assert restored["w"].sharding == wanted
        assert restored["w"].sharding.device_set == wanted.device_set
        assert restored["key"].sharding.is_equivalent_to(keys_wanted, 1)
        np.testing.assert_array_equal(restored["w"], values)
        assert raw(restored["key"]) == raw(tree["key"])


def test_reading_alone_removes_nothing_and_saves_nothing(tmp_path):
    with checkpoints(tmp_path) as store:
        store.save(1, {"w": jnp.ones(2)}, {"epoch": 1})
    under_way = tmp_path / "2.orbax-checkpoint-tmp"
    shutil.copytree(tmp_path / "1", under_way)
    before = sorted(tmp_path.rglob("*"))
    with checkpoints(tmp_path, read_only=True) as store:
        assert store.latest == 1
        assert store.note(1) == {"epoch": 1}
        with pytest.raises(ValueError, match="opened with read_only=True"):
            store.save(2, {"w": jnp.ones(2)}, {})
    assert sorted(tmp_path.rglob("*")) == before
