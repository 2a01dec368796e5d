"""What every trainer of rounds holds to: shapes, padding, scans, seeds, noise."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.round_examples import (
    CAPACITY,
    LOSS,
    NAMES,
    ONE_OF_A_KIND,
    SIZES,
    close,
    differs,
    initial,
    members,
    rounds,
    run_of,
    runner,
    same,
    shard,
    trainers,
)
from vcca_jax.baselines import fedprox, scaffold
from vcca_jax.cooperative import join, leave
from vcca_jax.rounds import Round
from vcca_jax.trainer import noisy

COUNT, STEPS = 3, 4  # one more local step than any agent of SIZES needs


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def usual(there=None, **options):
    there = members() if there is None else there
    return there.shards, rounds(there, COUNT, **({"steps": STEPS} | options))


def just(plans, t):
    """The plan of round t alone, still stacked."""
    return jax.tree.map(lambda field: field[t : t + 1], plans)


def trained(name, shards, plans):
    return run_of(name)(trainers()[name].init(initial()), shards, plans)


@pytest.mark.parametrize("name", NAMES)
def test_training_lowers_the_loss_and_counts_rounds(name):
    state, infos = trained(name, *usual())
    assert infos.loss[-1] < infos.loss[0]
    assert int(state.step) == COUNT


@pytest.mark.parametrize("name", ONE_OF_A_KIND)
def test_a_scan_over_rounds_equals_one_round_at_a_time(name):
    shards, plans = usual()
    expected, infos = trained(name, shards, plans)
    state, losses = trainers()[name].init(initial()), []
    for t in range(COUNT):
        state, info = run_of(name)(state, shards, just(plans, t))
        losses.append(info.loss[0])
    close(state, expected)
    close(jnp.stack(losses), infos.loss)


@pytest.mark.parametrize("name", NAMES)
def test_a_round_without_a_live_sample_changes_nothing(name):
    shards, plans = usual()
    state, _ = trained(name, shards, plans)
    dead = plans._replace(mask=np.zeros_like(plans.mask))
    after, infos = run_of(name)(state, shards, dead)
    same(after, state)
    np.testing.assert_array_equal(infos.loss, 0)
    if hasattr(infos, "weights"):
        np.testing.assert_array_equal(infos.weights, 0)
        np.testing.assert_array_equal(infos.drift, 0)


@pytest.mark.parametrize("name", NAMES)
def test_what_padding_names_does_not_matter(name):
    shards, plans = usual()
    state, _ = trained(name, shards, plans)
    # Padding slots read other rows, padding clients other agents, and free rows hold rubbish.
    padding = ~plans.mask.any(axis=(2, 3))
    other = plans._replace(
        agents=np.where(padding, 3, plans.agents).astype(np.int32),
        rows=np.where(plans.mask, plans.rows, 5).astype(np.int32),
    )
    free = ~shards.mask
    rubbish = shards._replace(
        inputs=np.where(free[..., None], 9.0, shards.inputs),
        targets=np.where(free, -9.0, shards.targets),
    )
    close(trained(name, rubbish, other)[0], state)


def test_a_client_learns_what_it_would_have_learnt_alone():
    # With momentum, a client that is done must rest while others take their last local steps.
    (shards, plans), start = usual(), trainers()["fedavg"].init(initial())
    plan = just(plans, 0)
    together, infos = run_of("fedavg")(start, shards, plan)
    assert len(set(plan.mask[0].any(axis=2).sum(axis=1))) > 2
    expected = start.params
    for client, weight in enumerate(infos.weights[0]):
        mask = np.zeros_like(plan.mask)
        mask[:, client] = plan.mask[:, client]
        alone, _ = run_of("fedavg")(start, shards, plan._replace(mask=mask))
        expected = jax.tree.map(
            lambda sum_, there, here, w=weight: sum_ + w * (there - here),
            expected,
            alone.params,
            start.params,
        )
    close(together.params, expected)


@pytest.mark.parametrize("name", ONE_OF_A_KIND)
def test_empty_local_steps_and_free_slots_change_nothing(name):
    state, infos = trained(name, *usual())
    there = members(capacity=CAPACITY + 2, sample_capacity=8)
    padded = trainers(CAPACITY + 2)[name]
    other, others = runner(padded)(padded.init(initial()), *usual(there, steps=STEPS + 2))
    close(other.params, state.params)
    close(others.loss, infos.loss)


@pytest.mark.parametrize("name", NAMES)
def test_agents_join_leave_and_go_empty_without_compiling_anew(name):
    traces = run_of(name).traces
    trained(name, *usual())
    before = len(traces)
    there = members()
    more = join(there, "new", shard(6, 11))
    for changed in (more, leave(more, "agent 2"), members((0, 1, 0, 0))):
        state, _ = trained(name, *usual(changed))
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
    assert len(traces) == before
    newcomer = trained(name, *usual(more))[0]
    assert differs(newcomer.params, trained(name, *usual())[0].params)


@pytest.mark.parametrize("name", NAMES)
def test_only_the_chosen_move_the_model(name):
    there = members()
    _, plans = usual(there)
    absent = int(plans.agents[0, 1])
    plans.mask[:, 1] = False
    same_clients = jax.tree.map(lambda field: np.stack([field[0]] * COUNT), plans)
    state, _ = trained(name, there.shards, same_clients)

    def altered(agent):
        inputs = there.shards.inputs.copy()
        inputs[agent] += 1
        return there.shards._replace(inputs=inputs)

    same(trained(name, altered(absent), same_clients)[0], state)
    for agent in {0, 2, 3} - {absent}:
        assert differs(trained(name, altered(agent), same_clients)[0].params, state.params)


@pytest.mark.parametrize("name", ONE_OF_A_KIND)
def test_seeds_are_trained_side_by_side(name):
    trainer, (shards, plans) = trainers()[name], usual()
    states = [trainer.init(initial(seed)) for seed in (0, 1)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    round_ = Round(shards, jax.tree.map(lambda field: field[0], plans))
    together, _ = jax.jit(jax.vmap(trainer.step, in_axes=(0, None)))(stacked, round_)
    for place, state in enumerate(states):
        alone, _ = run_of(name)(state, shards, just(plans, 0))
        close(jax.tree.map(lambda leaf, i=place: leaf[i], together), alone)


@pytest.mark.parametrize("name", [*ONE_OF_A_KIND, "splitfed_v1"])
def test_noise_is_drawn_from_the_runs_key(name):
    trainer, (shards, plans) = trainers()[name], usual()
    round_ = Round(shards, jax.tree.map(lambda field: field[0], plans))

    @jax.jit
    def run(state, key):
        return noisy(trainer, key).step(state, round_)[0]

    start = trainer.init(initial())
    one, again, other = (run(start, jax.random.key(seed)) for seed in (0, 0, 1))
    same(one, again)
    assert differs(one.params, other.params)
    # The second of two equal rounds draws anew: its step is folded in.
    later = run(start._replace(step=start.step + 1), jax.random.key(0))
    assert differs(one.params, later.params)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_the_state_keeps_its_types(name, dtype):
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), initial())
    shards, plans = usual()
    round_ = Round(shards, jax.tree.map(lambda field: field[0], plans))
    state = trainers()[name].init(params)
    after, _ = jax.eval_shape(trainers()[name].step, state, round_)
    described = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), (state, after))
    assert described[0] == described[1]


@pytest.mark.parametrize("name", NAMES)
def test_weakly_typed_parameters_begin_a_state_that_the_step_keeps(name):
    shards, plans = usual()
    round_ = Round(shards, jax.tree.map(lambda field: field[0], plans))
    params = initial()
    params["head"]["bias"] = jnp.asarray(0.5)[None]
    assert params["head"]["bias"].weak_type
    state = trainers()[name].init(params)
    after, _ = jax.eval_shape(trainers()[name].step, state, round_)
    kinds = [(leaf.shape, leaf.dtype, leaf.weak_type) for leaf in jax.tree.leaves(state)]
    assert kinds == [(leaf.shape, leaf.dtype, leaf.weak_type) for leaf in jax.tree.leaves(after)]
    assert not any(weak for _, _, weak in kinds)


def test_the_usual_round_has_padding_of_every_kind():
    _, plans = usual()
    clients = plans.mask.any(axis=(2, 3))
    assert (clients.sum(axis=1) == np.count_nonzero(SIZES)).all()
    assert clients.shape[1] == CAPACITY
    assert not plans.mask[:, :, -1].any()
    filled = plans.mask.sum(axis=3)
    assert (filled == 1).any()


@pytest.mark.parametrize("name", ["scaffold", "fedprox"])
def test_settings_may_be_traced_so_that_tuning_compiles_once(name):
    """The step of a trainer made within the traced function, against one made outside."""
    make = {
        "scaffold": lambda value: scaffold(LOSS, value, capacity=CAPACITY),
        "fedprox": lambda value: fedprox(LOSS, optax.sgd(0.1), proximal=value),
    }[name]
    shards, plans = usual()
    round_ = Round(shards, jax.tree.map(lambda field: field[0], plans))

    @jax.jit
    def run(value):
        trainer = make(value)
        return trainer.step(trainer.init(initial()), round_)[0].params

    fixed = make(0.05)
    expected = jax.jit(fixed.step)(fixed.init(initial()), round_)[0].params
    close(run(0.05), expected)
    assert differs(run(0.1), expected)
