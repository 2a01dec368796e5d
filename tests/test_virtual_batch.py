import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.problems import batches, problem, shards
from vcca_jax.cooperative import cooperative, leave
from vcca_jax.virtual_batch import VirtualBatch, present, visits

divide = jax.jit(visits, static_argnums=1)


def test_gather_collects_the_planned_samples():
    members, _, _, _, steps = problem()
    for batch in steps:
        for b in np.flatnonzero(batch.mask):
            owner, row = int(batch.owners[b]), int(batch.rows[b])
            np.testing.assert_array_equal(batch.inputs[b], members.shards.inputs[owner, row])
            assert batch.targets[b] == members.shards.targets[owner, row]


def test_present_are_the_agents_with_a_live_sample():
    _, _, _, _, steps = problem()
    for batch in steps:
        np.testing.assert_array_equal(
            present(batch), np.isin(np.arange(5), batch.owners[batch.mask])
        )


@given(owners=st.lists(st.integers(0, 5), min_size=1, max_size=16))
@pytest.mark.parametrize("width", [None, 1, 5])
def test_visits_cover_each_live_sample_once_whatever_the_layout(owners, width):
    size = 16
    batch = VirtualBatch(
        inputs=np.zeros((size, 1)),
        targets=np.zeros(size),
        owners=np.array(owners + [0] * (size - len(owners)), np.int32),
        rows=np.zeros(size, np.int32),
        mask=np.arange(size) < len(owners),
        active=np.ones(6, bool),
    )
    plan = jax.tree.map(np.asarray, divide(batch, width))
    assert sorted(plan.slots[plan.mask]) == list(range(len(owners)))
    for agent, slots, mask in zip(plan.agents, plan.slots, plan.mask, strict=True):
        assert all(owners[slot] == agent for slot in slots[mask])
    visited = [int(a) for a, m in zip(plan.agents, plan.mask, strict=True) if m.any()]
    assert list(dict.fromkeys(visited)) == list(dict.fromkeys(owners))
    # The padded work is bounded, however uneven the agents.
    if width is None:
        assert plan.slots.size <= 2 * size + plan.slots.shape[1]


def test_shapes_depend_on_sizes_alone():
    members = cooperative(shards())
    fewer = leave(members, "agent 0")
    shapes = {
        jax.tree.map(jnp.shape, visits(batch))
        for m in (members, fewer)
        for batch in batches(m, 4, steps=6)
    }
    assert len(shapes) == 1


def test_a_visit_must_carry_something():
    with pytest.raises(ValueError, match="samples_per_visit=0"):
        visits(problem()[-1][0], 0)
