import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vcca_jax import partition

TARGETS = np.repeat(np.arange(5), [40, 30, 20, 10, 3])
INPUTS = np.arange(len(TARGETS), dtype=np.float32)[:, None]


def assert_each_sample_once(parts):
    """Every row is placed with exactly one agent, with its own target."""
    rows = np.concatenate([inputs[:, 0] for inputs, _ in parts]).astype(int)
    np.testing.assert_array_equal(np.sort(rows), np.arange(len(TARGETS)))
    np.testing.assert_array_equal(np.concatenate([t for _, t in parts]), TARGETS[rows])


@given(agents=st.integers(1, 12), seed=st.integers(0, 99))
def test_iid_places_each_sample_once_and_evenly(agents, seed):
    parts = partition.iid(INPUTS, TARGETS, agents, seed=seed)
    assert_each_sample_once(parts)
    sizes = [len(t) for _, t in parts]
    assert len(sizes) == agents
    assert max(sizes) - min(sizes) <= 1


@given(agents=st.integers(1, 12), seed=st.integers(0, 99), alpha=st.sampled_from([1e-3, 0.1, 10.0]))
def test_dirichlet_places_each_sample_once(agents, seed, alpha):
    parts = partition.dirichlet(INPUTS, TARGETS, agents, alpha=alpha, seed=seed, minimum=0)
    assert len(parts) == agents
    assert_each_sample_once(parts)


def test_dirichlet_skews_more_at_a_smaller_concentration():
    def most(alpha):
        parts = partition.dirichlet(INPUTS, TARGETS, 4, alpha=alpha, seed=0, minimum=0)
        counts = np.array([np.bincount(t, minlength=5) for _, t in parts])
        return (counts.max(axis=0) / counts.sum(axis=0)).mean()

    assert most(0.05) > 0.8
    assert most(1000.0) < 0.45


def test_dirichlet_refuses_to_starve_an_agent():
    with pytest.raises(ValueError, match="minimum=0"):
        partition.dirichlet(INPUTS, TARGETS, 10, alpha=1e-3, seed=0)


@given(agents=st.integers(1, 12), labels=st.integers(1, 5), seed=st.integers(0, 9))
def test_by_label_gives_each_agent_only_its_labels(agents, labels, seed):
    if agents * labels < 5:
        with pytest.raises(ValueError, match="cannot hold all"):
            partition.by_label(INPUTS, TARGETS, agents, labels_per_agent=labels, seed=seed)
        return
    parts = partition.by_label(INPUTS, TARGETS, agents, labels_per_agent=labels, seed=seed)
    assert_each_sample_once(parts)
    for i, (_, targets) in enumerate(parts):
        assert set(targets) <= {(i * labels + k) % 5 for k in range(labels)}


def test_by_group_keeps_groups_apart_in_order():
    groups = np.where(TARGETS % 2 == 0, "even", "odd")
    parts = partition.by_group(INPUTS, TARGETS, groups)
    assert_each_sample_once(parts)
    assert set(parts[0][1]) == {0, 2, 4}
    assert (np.diff(parts[1][0][:, 0]) > 0).all()


def test_a_seed_repeats_and_another_differs():
    first, again, other = (
        partition.iid(INPUTS, TARGETS, 3, seed=seed)[0][0][:, 0] for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: partition.iid(INPUTS, TARGETS, 0, seed=0), "agents=0"),
        (lambda: partition.iid(INPUTS, TARGETS[:3], 2, seed=0), "equally many"),
        (lambda: partition.dirichlet(INPUTS, TARGETS, 2, alpha=0.0, seed=0), "alpha=0.0"),
        (
            lambda: partition.by_label(INPUTS, TARGETS, 2, labels_per_agent=9, seed=0),
            "labels_per_agent=9",
        ),
        (lambda: partition.by_group(INPUTS, TARGETS, TARGETS[:2]), "groups"),
    ],
)
def test_bad_input_is_refused_by_name(make, words):
    with pytest.raises(ValueError, match=words):
        make()
