import gc
import threading
import time

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.problems import jitted_gather, shards
from vcca_jax.cooperative import cooperative, leave
from vcca_jax.plan import virtual_batches
from vcca_jax.plan_stream import stream_plan
from vcca_jax.streaming import open_shards, read_batch, store_shards, stream_batches

SIZES = (11, 0, 1, 6, 3)


def names(count):
    return [f"agent {i}" for i in range(count)]


def stored(folder, sizes=SIZES):
    return store_shards(folder, iter(shards(sizes)), sizes=sizes, names=names(len(sizes)))


def assert_equal_batches(one, other):
    for left, right in zip(one, other, strict=True):
        left, right = np.asarray(left), np.asarray(right)
        assert (left.dtype, left.shape) == (right.dtype, right.shape)
        assert left.tobytes() == right.tobytes()


@given(epoch=st.integers(0, 4), prefetch=st.integers(1, 6), batch_size=st.sampled_from([4, 8]))
def test_streamed_batches_are_gathered_ones_bit_for_bit(
    tmp_path_factory, epoch, prefetch, batch_size
):
    members = cooperative(shards(SIZES))
    plan = virtual_batches(members, batch_size, seed=2, epoch=epoch, steps=6)
    on_disk = stored(tmp_path_factory.mktemp("shards"))
    assert isinstance(on_disk.inputs, np.memmap)
    for source in (on_disk, members.shards):
        streamed = list(stream_batches(source, plan, prefetch=prefetch))
        assert len(streamed) == 6
        for t, batch in enumerate(streamed):
            step = jax.tree.map(lambda field, t=t: field[t], plan)
            assert_equal_batches(batch, jitted_gather(members.shards, step))
            assert isinstance(batch.inputs, jax.Array)


def test_padded_shards_may_be_memory_mapped_too(tmp_path):
    members = cooperative(shards(SIZES))
    np.save(tmp_path / "inputs.npy", members.shards.inputs)
    mapped = members.shards._replace(inputs=np.load(tmp_path / "inputs.npy", mmap_mode="r"))
    step = next(stream_plan(members.sizes, 8, seed=0, epoch=0))
    assert_equal_batches(next(stream_batches(mapped, [step])), jitted_gather(members.shards, step))


def test_steps_may_be_stacked():
    members = cooperative(shards(SIZES))
    plan = virtual_batches(members, 4, seed=2, epoch=0)
    whole = read_batch(members.shards, plan)
    for t in range(len(plan.mask)):
        step = jax.tree.map(lambda field, t=t: field[t], plan)
        assert_equal_batches(
            jax.tree.map(lambda field, t=t: field[t], whole), read_batch(members.shards, step)
        )


def test_an_agent_that_left_has_no_samples_to_plan(tmp_path):
    on_disk = stored(tmp_path)
    members = leave(cooperative(shards(SIZES)), "agent 3")
    gone = on_disk._replace(active=members.shards.active)
    np.testing.assert_array_equal(gone.sizes, members.sizes)
    step = next(stream_plan(gone.sizes, 8, seed=0, epoch=0))
    assert_equal_batches(next(stream_batches(gone, [step])), jitted_gather(members.shards, step))


def streams():
    return [t for t in threading.enumerate() if t.name.startswith("vcca_jax-stream")]


def test_no_more_is_read_than_asked_ahead_and_a_closed_stream_stops(tmp_path):
    on_disk, taken = stored(tmp_path), []

    def watched():
        for step in stream_plan(on_disk.sizes, 4, seed=0, epoch=0, steps=100):
            taken.append(step)
            yield step

    stream = stream_batches(on_disk, watched(), prefetch=3)
    assert not taken  # nothing is read before it is asked for
    for used in range(1, 5):
        next(stream)
        while len(taken) < used + 3:  # as much is read ahead, ...
            time.sleep(0.001)
        time.sleep(0.02)
        assert len(taken) == used + 3  # ... and no more
    stream.close()
    gc.collect()
    assert not streams()
    assert len(taken) <= 4 + 3


def test_what_the_thread_meets_is_raised_where_it_happened(tmp_path):
    on_disk = stored(tmp_path)

    def broken():
        yield from stream_plan(on_disk.sizes, 11, seed=0, epoch=0)
        raise OSError("the disk is gone")

    stream = stream_batches(on_disk, broken())
    assert [next(stream).mask.sum() for _ in range(2)] == [11, 10]
    with pytest.raises(OSError, match="disk is gone"):
        next(stream)
    assert not streams()


def test_shards_on_disk_are_written_whole_or_not_at_all(tmp_path):
    on_disk = stored(tmp_path / "whole")
    again = open_shards(tmp_path / "whole")
    assert again.names == tuple(names(5))
    np.testing.assert_array_equal(again.sizes, SIZES)
    for i, (inputs, targets) in enumerate(shards(SIZES)):
        own = slice(on_disk.starts[i], on_disk.starts[i + 1])
        np.testing.assert_array_equal(again.inputs[own], inputs)
        np.testing.assert_array_equal(again.targets[own], targets)
    with pytest.raises(ValueError, match="holds shards already"):
        stored(tmp_path / "whole")

    def stopped():
        yield from shards(SIZES)[:2]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store_shards(tmp_path / "half", stopped(), sizes=SIZES, names=names(5))
    with pytest.raises(ValueError, match="holds no shards"):
        open_shards(tmp_path / "half")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sizes": (11, 0, 1, 6)}, "one for each of sizes"),
        ({"names": ["a", "a", "b", "c", "d"]}, "unique"),
        ({"sizes": (11, 0, 1, 6, 4)}, r"shards\[4\] has inputs"),
        ({"sizes": (0, 0, 0, 0, 0)}, "at least one sample"),
        ({"shards": shards(SIZES)[:3]}, "holds 3 agents"),
        ({"shards": [*shards(SIZES), *shards((2,))]}, r"shards\[5\]"),
        ({"shards": [(x * np.nan, y) for x, y in shards(SIZES)]}, "NaN"),
        (
            {
                "shards": [
                    (x, y.astype(np.int64) if i else y) for i, (x, y) in enumerate(shards(SIZES))
                ]
            },
            "dtype int64",
        ),
    ],
)
def test_bad_shards_are_refused_by_name(tmp_path, change, words):
    given_ = {"shards": shards(SIZES), "sizes": SIZES, "names": names(5), **change}
    with pytest.raises(ValueError, match=words):
        store_shards(tmp_path, given_["shards"], sizes=given_["sizes"], names=given_["names"])
    with pytest.raises(ValueError, match="holds no shards"):
        open_shards(tmp_path)


def test_something_is_read_ahead():
    members = cooperative(shards(SIZES))
    with pytest.raises(ValueError, match="prefetch=0"):
        stream_batches(members.shards, [], prefetch=0)
    with pytest.raises(ValueError, match=r"prefetch is 2\.5"):
        stream_batches(members.shards, [], prefetch=2.5)


def test_a_cooperative_in_place_of_its_shards_is_refused():
    members = cooperative(shards(SIZES))
    plan = virtual_batches(members, 4, seed=0, epoch=0)
    for read in (lambda: stream_batches(members, plan), lambda: read_batch(members, plan)):
        with pytest.raises(ValueError, match=r"source is a Cooperative.*members\.shards"):
            read()
