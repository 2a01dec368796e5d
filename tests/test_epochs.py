"""Epochs in one program: the same numbers as step by step, and one trace whatever their length."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.cooperatives import CONTEXT, LOSS, RATE, STATED, VALUES, profiles_of, validation_loss
from tests.problems import problem, shards
from vcca_jax.cooperate import cooperate
from vcca_jax.cooperative import cooperative, leave
from vcca_jax.epochs import as_given, epoch_runner, nothing, scan_steps
from vcca_jax.plan import virtual_batches
from vcca_jax.plan_stream import stream_plan
from vcca_jax.rounds import Round, local_batches
from vcca_jax.streaming import store_shards
from vcca_jax.trainer import Trainer
from vcca_jax.traversal import traversal
from vcca_jax.virtual_batch import gather

MEMBERS, _, LOSS_FN, PARAMS, _ = problem()
ADAM = traversal(LOSS_FN, optax.adam(0.1))


def counted(trainer, most=1):
    """The same trainer, which may be traced ``most`` times."""
    chex.clear_trace_counter()
    return Trainer(trainer.init, chex.assert_max_traces(trainer.step, most))


def plan_of(batch_size=3, epoch=0, members=MEMBERS, **options):
    return virtual_batches(members, batch_size, seed=3, epoch=epoch, **options)


def start(trainer=ADAM):
    return trainer.init(PARAMS)


def assert_same_bits(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for one, other in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        one, other = np.asarray(one), np.asarray(other)
        assert (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())


whole = jax.jit(lambda state, plan: scan_steps(ADAM, state, MEMBERS.shards, plan))
one_step = jax.jit(lambda state, plan: ADAM.step(state, gather(MEMBERS.shards, plan)))


def test_a_scan_is_its_steps():
    plan = plan_of()
    final, infos = whole(start(), plan)
    state = start()
    for t in range(len(plan.mask)):
        state, info = one_step(state, jax.tree.map(lambda field, t=t: field[t], plan))
        np.testing.assert_allclose(infos.loss[t], info.loss, rtol=1e-6)
    chex.assert_trees_all_close(final, state, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("chunk", [1, 3, 7, 100, None])
def test_chunks_of_any_length_give_the_same_bits(chunk):
    """Seven steps: divided evenly or not, and less than one chunk."""
    plan = plan_of()
    assert len(plan.mask) == 7
    told = []
    run = epoch_runner(counted(ADAM), chunk=chunk)
    state, kept = run(
        start(), MEMBERS.shards, plan, lambda first, kept: told.append((first, len(kept.loss)))
    )
    assert_same_bits((state, kept), whole(start(), plan))
    size = min(chunk or 7, 7)
    assert told == [(first, min(size, 7 - first)) for first in range(0, 7, size)]


def test_epochs_of_any_length_and_members_share_one_program():
    run = epoch_runner(counted(ADAM), chunk=4, keep=lambda info: info.loss)
    state, lengths = start(), []
    for epoch, members in enumerate([MEMBERS, MEMBERS, leave(MEMBERS, "agent 0")]):
        state, losses = run(state, members.shards, plan_of(epoch=epoch, members=members))
        lengths.append(len(losses))
    assert lengths == [7, 7, 4]


def test_steps_may_come_one_by_one_and_from_disk(tmp_path):
    steps = list(stream_plan(MEMBERS.sizes, 3, seed=1, epoch=0))
    stacked = jax.tree.map(lambda *fields: np.stack(fields), *steps)
    expected = whole(start(), stacked)
    one_by_one = epoch_runner(counted(ADAM), chunk=3)
    assert_same_bits(one_by_one(start(), MEMBERS.shards, iter(steps)), expected)
    on_disk = store_shards(tmp_path, shards(), sizes=MEMBERS.sizes.tolist(), names=MEMBERS.members)
    streamed = epoch_runner(counted(ADAM), chunk=3, streamed=True)
    for source in (on_disk, MEMBERS.shards):
        assert_same_bits(streamed(start(), source, iter(steps)), expected)


def test_the_state_is_given_away_unless_it_is_kept():
    given = start()
    epoch_runner(ADAM, chunk=7)(given, MEMBERS.shards, plan_of())
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(given.params))
    kept = start()
    epoch_runner(ADAM, chunk=7, donate=False)(kept, MEMBERS.shards, plan_of())
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(kept))


def test_what_is_kept_is_chosen_and_a_reader_may_stop_the_epoch():
    run = epoch_runner(ADAM, chunk=2, keep=nothing)
    assert run(start(), MEMBERS.shards, plan_of())[1] is None
    heard = []

    def stop(first, kept):
        heard.append(first)
        if first == 2:
            raise StopIteration("enough")

    with pytest.raises(StopIteration, match="enough"):
        run(start(), MEMBERS.shards, plan_of(), stop)
    assert heard == [0, 2]


def test_rounds_and_ready_batches_are_drawn_by_a_function_of_ones_own():
    fields = [local_batches(MEMBERS, 4, seed=0, epoch=epoch) for epoch in range(3)]
    rounds = jax.tree.map(lambda *leaves: np.stack(leaves), *fields)

    def step(state, batch):
        assert isinstance(batch, Round)
        return state + batch.mask.sum(), batch.mask.any()

    live = epoch_runner(Trainer(lambda: 0, step), chunk=2, draw=Round)
    total, kept = live(jnp.zeros((), jnp.int32), MEMBERS.shards, rounds)
    assert total == 3 * MEMBERS.sizes.sum()
    assert kept.tolist() == [True] * 3

    plan = plan_of()
    batches = jax.vmap(lambda at: gather(MEMBERS.shards, at))(jax.tree.map(jnp.asarray, plan))
    ready = epoch_runner(ADAM, chunk=7, draw=as_given)
    assert_same_bits(ready(start(), None, batches), whole(start(), plan))


WHOLE_STEP = cooperate(LOSS, optax.sgd(RATE), validation_loss, VALUES)
SIX = cooperative(shards(), capacity=6)


def whole_step_start():
    state = WHOLE_STEP.init(PARAMS, profiles_of(STATED), context=CONTEXT)
    return jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), state)


def test_the_whole_step_hands_on_the_types_that_it_took():
    """Weak types too: else a second epoch would compile anew."""
    at = jax.tree.map(lambda field: field[0], plan_of(6, members=SIX))
    state = whole_step_start()
    after, _ = jax.eval_shape(WHOLE_STEP.step, state, jax.eval_shape(gather, SIX.shards, at))
    before = jax.eval_shape(lambda state: state, state)
    for one, other in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        assert (one.shape, one.dtype, one.weak_type) == (other.shape, other.dtype, other.weak_type)


@pytest.mark.slow  # compiles the whole step
def test_the_whole_step_is_traced_once_over_epochs():
    state = whole_step_start()
    run = epoch_runner(counted(WHOLE_STEP), chunk=4, keep=lambda info: info.credits)
    total = np.zeros(6)
    for epoch in range(2):
        state, credits = run(state, SIX.shards, plan_of(6, epoch, SIX))
        total += credits.sum(axis=0)
    np.testing.assert_allclose(state.credits, total, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "steps", "words"),
    [
        ({"chunk": 0}, None, "chunk=0"),
        ({"chunk": 2.5}, None, "chunk is 2.5"),
        ({"chunk": None}, iter([]), "chunk=None"),
        ({"chunk": 2}, iter([]), "no step"),
    ],
)
def test_bad_input_is_refused_by_name(options, steps, words):
    with pytest.raises(ValueError, match=words):
        epoch_runner(ADAM, **options)(start(), MEMBERS.shards, steps)


@pytest.mark.parametrize("streamed", [False, True])
def test_a_cooperative_or_parameters_in_place_of_shards_or_a_state_are_refused(streamed):
    run = epoch_runner(ADAM, chunk=2, streamed=streamed)
    calls = [run] if streamed else [run, functools.partial(scan_steps, ADAM)]
    for call in calls:
        with pytest.raises(ValueError, match=r"source is a Cooperative.*members\.shards"):
            call(start(), MEMBERS, plan_of())
        with pytest.raises(ValueError, match=r"state is a dict.*give what trainer\.init made"):
            call(PARAMS, MEMBERS.shards, plan_of())
