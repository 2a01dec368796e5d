import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.problems import EPOCHS, shards
from vcca_jax.cooperative import cooperative, leave
from vcca_jax.plan_stream import permuted, stream_plan


def keys_of(seed):
    return np.random.default_rng(seed).integers(0, 2**64, 8, np.uint64)


def live(steps):
    return [pair for s in steps for pair in zip(s.owners[s.mask], s.rows[s.mask], strict=True)]


@given(**EPOCHS)
def test_an_epoch_holds_every_live_sample_exactly_once(sizes, batch_size, epoch, extra):
    members = cooperative(shards(sizes))
    needed = -(-sum(sizes) // batch_size)
    steps = list(stream_plan(members.sizes, batch_size, seed=0, epoch=epoch, steps=needed + extra))
    assert len(steps) == needed + extra
    expected = [(i, row) for i, size in enumerate(sizes) for row in range(size)]
    assert sorted(live(steps)) == expected
    for step in steps:
        assert step.owners.dtype == step.rows.dtype == np.int32
        assert step.owners.shape == (batch_size,)
        # Padding names live samples too, and stands last.
        assert members.shards.mask[step.owners, step.rows].all()
        np.testing.assert_array_equal(step.mask, np.sort(step.mask)[::-1])


@given(order=st.sampled_from(["random", "ascending"]), epoch=st.integers(0, 5))
def test_an_agents_samples_stand_together(order, epoch):
    orders = []
    for step in stream_plan((9, 4, 7, 2), 8, seed=1, epoch=epoch, visiting_order=order):
        owners = [int(owner) for owner, _ in itertools.groupby(step.owners[step.mask])]
        assert len(owners) == len(set(owners))
        orders.append(owners == sorted(owners))
    assert order == "random" or all(orders)


@given(count=st.integers(1, 5000), seed=st.integers(0, 2**32))
def test_numbers_are_permuted_whatever_their_count(count, seed):
    images = permuted(np.arange(count), count, keys_of(seed))
    np.testing.assert_array_equal(np.sort(images), np.arange(count))


@pytest.mark.parametrize("count", [2**8, 2**40 + 1, 2**62])
def test_far_numbers_are_permuted_without_the_near_ones(count):
    near, far = np.arange(100), np.arange(count - 100, count)
    images = permuted(np.concatenate([near, far]), count, keys_of(3))
    assert len(set(images.tolist())) == 200
    assert images.min() >= 0
    assert images.max() < count


def test_any_step_is_planned_from_its_number_alone():
    whole = list(stream_plan((30, 0, 11), 4, seed=5, epoch=2))
    for start in (0, 3, 9):
        rest = stream_plan((30, 0, 11), 4, seed=5, epoch=2, start=start)
        for one, other in zip(whole[start:], rest, strict=True):
            for left, right in zip(one, other, strict=True):
                np.testing.assert_array_equal(left, right)
    others = [
        live(stream_plan((30, 0, 11), 4, **draw))
        for draw in ({"seed": 5, "epoch": 2}, {"seed": 5, "epoch": 3}, {"seed": 6, "epoch": 2})
    ]
    assert others[0] == live(whole)
    assert others[0] != others[1] != others[2] != others[0]


def test_where_a_sample_comes_and_what_follows_it_is_even():
    """Chi-square of 2,000 draws: the place of one sample, and how far off the next one comes."""
    count, draws, bins = 240, 2000, 20
    pair = np.array([5, 6])
    images = np.array([permuted(pair, count, keys_of(seed)) for seed in range(draws)])
    for seen in (images[:, 0], (images[:, 1] - images[:, 0]) % count):
        counts = np.bincount(seen * bins // count, minlength=bins)
        square = ((counts - draws / bins) ** 2 / (draws / bins)).sum()
        # Mean bins - 1, variance twice that; within five standard deviations.
        assert abs(square - (bins - 1)) < 5 * np.sqrt(2 * (bins - 1))


def test_neighbours_are_torn_apart():
    """Of consecutive numbers few stay consecutive: about one pair, as in a uniform shuffle."""
    gaps = Counter()
    for seed in range(200):
        gaps.update(np.diff(permuted(np.arange(1000), 1000, keys_of(seed))).tolist())
    assert 100 < gaps[1] < 320


def test_members_who_left_are_not_drawn():
    members = leave(cooperative(shards()), "agent 0")
    assert 0 not in {owner for owner, _ in live(stream_plan(members.sizes, 4, seed=0, epoch=0))}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"steps": 1}, "at least 6"),
        ({"seed": -1}, "seed=-1"),
        ({"start": -1}, "start=-1"),
        ({"start": 7}, "start=7 lies beyond the epoch's 6 steps"),
        ({"sizes": (2.7, 3.9)}, "sizes of dtype float64"),
        ({"visiting_order": "sideways"}, "sideways"),
        ({"sizes": (0, 0)}, "no live sample"),
        ({"sizes": (3, -1)}, "0 or more"),
        ({"sizes": 3}, "sizes of shape"),
    ],
)
def test_bad_input_is_refused_by_name(options, words):
    given_ = {"sizes": (11, 0, 1, 6, 3), "batch_size": 4, "seed": 0, "epoch": 0, **options}
    with pytest.raises(ValueError, match=words):
        stream_plan(given_.pop("sizes"), given_.pop("batch_size"), **given_)
