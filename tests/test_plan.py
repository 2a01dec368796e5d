import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.problems import EPOCHS, shards
from vcca_jax.cooperative import cooperative, leave
from vcca_jax.plan import virtual_batches


def live(plan):
    return list(zip(plan.owners[plan.mask], plan.rows[plan.mask], strict=True))


@given(**EPOCHS)
def test_an_epoch_holds_every_live_sample_exactly_once(sizes, batch_size, epoch, extra):
    members = cooperative(shards(sizes))
    needed = -(-sum(sizes) // batch_size)
    plan = virtual_batches(members, batch_size, seed=0, epoch=epoch, steps=needed + extra)
    assert plan.mask.shape == (needed + extra, batch_size)
    expected = [(i, row) for i, size in enumerate(sizes) for row in range(size)]
    assert sorted(live(plan)) == expected
    # Padding names live samples too, and only the last filled batch has any.
    assert members.shards.mask[plan.owners, plan.rows].all()
    assert plan.mask[: needed - 1].all()


@given(order=st.sampled_from(["random", "ascending"]), epoch=st.integers(0, 5))
def test_an_agents_samples_stand_together(order, epoch):
    members = cooperative(shards((9, 4, 7, 2)))
    plan = virtual_batches(members, 8, seed=1, epoch=epoch, visiting_order=order)
    for owners, mask in zip(plan.owners, plan.mask, strict=True):
        runs = [o for i, o in enumerate(owners[mask]) if i == 0 or owners[i - 1] != o]
        assert len(runs) == len(set(runs))
        if order == "ascending":
            assert runs == sorted(runs)
        np.testing.assert_array_equal(mask, np.sort(mask)[::-1])


def test_visiting_order_moves_samples_within_their_batch_only():
    members = cooperative(shards((9, 4, 7, 2)))
    plans = [
        virtual_batches(members, 8, seed=1, epoch=0, visiting_order=order)
        for order in ("random", "ascending")
    ]
    assert not np.array_equal(plans[0].owners, plans[1].owners)
    for t in range(3):
        contents = [
            sorted(zip(p.owners[t][p.mask[t]], p.rows[t][p.mask[t]], strict=True)) for p in plans
        ]
        assert contents[0] == contents[1]


def test_epochs_reshuffle_and_repeat_from_their_number():
    members = cooperative(shards((9, 4, 7, 2)))
    plans = [virtual_batches(members, 22, seed=1, epoch=e) for e in (0, 1, 1)]
    np.testing.assert_array_equal(plans[1].rows, plans[2].rows)
    assert not np.array_equal(plans[0].rows, plans[1].rows)


def test_members_who_left_are_not_drawn():
    members = leave(cooperative(shards()), "agent 0")
    assert 0 not in virtual_batches(members, 4, seed=0, epoch=0).owners


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": 4, "steps": 1}, "at least 6"),
        ({"batch_size": 4, "steps": 7.0}, "steps is 7.0"),
        ({"batch_size": 4, "seed": -1}, "seed=-1"),
        ({"batch_size": 4, "visiting_order": "sideways"}, "sideways"),
    ],
)
def test_bad_input_is_refused_by_name(options, words):
    members = cooperative(shards())
    with pytest.raises(ValueError, match=words):
        virtual_batches(members, **{"seed": 0, "epoch": 0, **options})


def test_shards_in_place_of_the_cooperative_are_refused():
    with pytest.raises(ValueError, match="cooperative is a Shards; give the whole Cooperative"):
        virtual_batches(cooperative(shards()).shards, 4, seed=0, epoch=0)


def test_a_cooperative_without_samples_is_refused():
    with pytest.raises(ValueError, match="no live sample"):
        virtual_batches(cooperative(shards((0, 0))), 4, seed=0, epoch=0)
