import numpy as np
import pytest

from tests.problems import shards
from vcca_jax.cooperative import cooperative, join, leave


def test_padding_is_masked_and_data_is_kept():
    parts = shards()
    members = cooperative(parts, capacity=7)
    assert members.shards.inputs.shape == (7, 11, 5)
    np.testing.assert_array_equal(members.sizes, [11, 0, 1, 6, 3, 0, 0])
    np.testing.assert_array_equal(members.shards.active, [True] * 5 + [False] * 2)
    for i, (inputs, targets) in enumerate(parts):
        np.testing.assert_array_equal(members.shards.inputs[i][members.shards.mask[i]], inputs)
        np.testing.assert_array_equal(members.shards.targets[i][members.shards.mask[i]], targets)


def test_join_after_leave_reuses_the_slot_and_keeps_every_shape():
    parts = shards()
    members = cooperative(parts, names=list("abcde"))
    without = leave(members, "d")
    assert without.members == ("a", "b", "c", "e")
    assert without.sizes[3] == 0
    assert not without.shards.active[3]
    again = join(without, "f", parts[3])
    assert again.index("f") == 3
    for before, after in zip(members.shards, again.shards, strict=True):
        np.testing.assert_array_equal(before, after)
    np.testing.assert_array_equal(members.sizes, [11, 0, 1, 6, 3])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: cooperative([]), "shards"),
        (lambda: cooperative(shards(), names=["a"] * 5), "unique"),
        (lambda: cooperative(shards(), names=["a"]), "names"),
        (lambda: cooperative(shards(), names="abcde"), "names='abcde' is one string"),
        (lambda: cooperative([np.ones((2, 3))] * 2), r"shards\[0\] is a ndarray of shape \(2, 3\)"),
        (lambda: cooperative([*shards(), np.ones((5, 3))]), r"shards\[5\] is a ndarray.*a pair"),
        (lambda: cooperative([(np.ones(1),) * 3]), r"shards\[0\] is a tuple.*a pair"),
        (lambda: cooperative({"ana": shards()[0]}), "its keys as names="),
        (lambda: cooperative(shards(), capacity=7.5), "capacity is 7.5"),
        (lambda: cooperative(shards(), sample_capacity=20.0), "sample_capacity is 20.0"),
        (lambda: cooperative(shards(), capacity=2), "capacity"),
        (lambda: cooperative(shards(), sample_capacity=4), "sample_capacity"),
        (lambda: cooperative([(np.ones((2, 1)), np.ones(3))]), "equally many"),
        (lambda: cooperative([(np.full((2, 1), np.nan), np.ones(2))]), "NaN"),
        (
            lambda: cooperative([(np.ones((2, 1)), np.ones(2)), (np.ones((2, 3)), np.ones(2))]),
            "make them alike",
        ),
        (
            lambda: cooperative(shards(), classes=2),
            r"shards\[0\] has .* labels outside 0\.\.1, such as 2",
        ),
        (lambda: cooperative([(np.ones((1, 1)), np.array([-1]))], classes=2), "such as -1"),
        (lambda: cooperative([(np.ones((1, 1)), np.ones(1))], classes=2), "dtype float64"),
        (lambda: cooperative(shards(), classes=0), "classes=0"),
        (
            lambda: join(
                cooperative([(np.ones((1, 1)), np.zeros(1, int))], classes=2, capacity=2),
                "x",
                (np.ones((1, 1)), np.array([2])),
            ),
            "shard has 1 labels outside",
        ),
        (lambda: leave(cooperative(shards()), "x"), "no member"),
        (
            lambda: join(cooperative(shards()), "x", shards()[0]),
            "slots are taken",
        ),
        (
            lambda: join(cooperative(shards()), "agent 1", shards()[0]),
            "already",
        ),
    ],
)
def test_bad_input_is_refused_by_name(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_numbers_are_named_and_free_slots_left_out():
    members = leave(cooperative(shards(), names=list("abcde"), capacity=7), "b")
    assert members.active.tolist() == [True, False, True, True, True, False, False]
    assert members.named(np.arange(7.0)) == {"a": 0.0, "c": 2.0, "d": 3.0, "e": 4.0}
    with pytest.raises(ValueError, match=r"numbers has shape \(5,\); give one a slot, \(7,\)"):
        members.named(np.zeros(5))
