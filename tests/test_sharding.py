"""Agents over devices: the same numbers on any number of them, and samples that stay put."""

import functools
import re
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import vcca_jax as vcca
from vcca_jax import streaming
from vcca_jax.gradients import agent_gradients
from vcca_jax.noise import Keyed
from vcca_jax.plan import TraversalPlan
from vcca_jax.sharded_batch import shard_cooperative, sharded_gather, sharded_plan
from vcca_jax.sharding import (
    agent_mesh,
    parameter_shardings,
    sharded,
    sharded_loss,
    spread_loss,
)

# Sizes that occur nowhere else, so that a shape in a compiled program says what it holds; classes
# are even, so that parameters divide in two.
FEATURES, CLASSES, AGENTS, BATCH, BLOCK = 37, 14, 16, 40, 11
BLOCKS = 16
TRACES = Counter()
"""How often each program was traced."""


def loss_fn(params, inputs, targets):
    if isinstance(inputs, Keyed):
        noise = jax.vmap(lambda key: jax.random.normal(key, (FEATURES,)))(inputs.keys)
        inputs = inputs.inputs + noise
    logits = jnp.tanh(inputs @ params["w"]) + params["b"][None, :]
    return optax.softmax_cross_entropy_with_integer_labels(logits, targets)


def shard(seed, size):
    generator = np.random.default_rng(seed)
    inputs = generator.normal(size=(size, FEATURES)).astype(np.float32)
    return inputs, generator.integers(0, CLASSES, size, dtype=np.int32)


def members():
    """An empty agent among others, and two free slots: a device of eight without a sample."""
    sizes = [9, 3, 5, 0, 7, 2, 9, 6, 1, 8, 4, 5, 7, 3]
    pairs = [shard(seed, size) for seed, size in enumerate(sizes)]
    return vcca.cooperative(pairs, capacity=AGENTS, sample_capacity=9, classes=CLASSES)


def initial():
    generator = np.random.default_rng(5)
    return {
        "w": jnp.asarray(0.3 * generator.normal(size=(FEATURES, CLASSES)), jnp.float32),
        "b": jnp.zeros(CLASSES),
    }


def trainer_of(loss, group):
    values = vcca.value_losses({"a": group(*shard(100, 19)), "b": group(*shard(101, 23))})
    worth = group(*shard(102, 29))
    profiles = vcca.value_profiles(
        values.names, [[vcca.protect("a")], [vcca.forbid("b")]] * (AGENTS // 2)
    )
    trainer = vcca.cooperate(
        loss,
        optax.sgd(0.2),
        lambda params: worth(params, None),
        values,
        estimator=functools.partial(vcca.aumann_shapley, nodes=2),
    )
    return vcca.Trainer(functools.partial(trainer.init, profiles=profiles), trainer.step)


def steps_of(plan):
    return list(streaming.steps_of(plan))


def epoch_of(own):
    return vcca.virtual_batches(own, BATCH, seed=3, epoch=0)


@functools.cache
def plainly():
    trainer = trainer_of(loss_fn, functools.partial(vcca.group_loss, loss_fn))
    step, state, own = jax.jit(trainer.step), trainer.init(initial()), members()
    for at in steps_of(epoch_of(own)):
        state, _ = step(state, vcca.gather(own.shards, at))
    return jax.device_get((state.params, state.credits))


@functools.cache
def program(devices, shards, blocks):
    mesh = agent_mesh(jax.devices()[:devices], parameter_shards=shards)
    trainer = sharded(
        trainer_of(
            sharded_loss(loss_fn, mesh, blocks=blocks),
            lambda inputs, targets: spread_loss(loss_fn, inputs, targets, mesh, blocks=blocks),
        ),
        mesh,
        smallest=1,
        gathered=blocks is not None,
    )

    def step(state, held, at):
        TRACES[devices, shards, blocks] += 1
        return trainer.step(state, sharded_gather(held, at, mesh))

    return mesh, trainer, jax.jit(step)


@functools.cache
def spread_over(devices, shards=1, blocks=None):
    mesh, trainer, step = program(devices, shards, blocks)
    own = shard_cooperative(members(), mesh)
    plan = sharded_plan(epoch_of(own), own, blocks or 8, block_capacity=BLOCK)
    state = jax.jit(trainer.init)(initial())
    for at in steps_of(plan):
        state, _ = step(state, own.shards, at)
    return state


def leaks(compiled):
    """Collectives of a compiled program that carry raw inputs: a shape with features and no class
    beside them."""
    found = []
    for line in compiled.as_text().splitlines():
        if re.search(r"= .*(all-|collective-|reduce-scatter|send|recv)", line):
            for shape in re.findall(r"f32\[([\d,]+)\]", line):
                sizes = [int(size) for size in shape.split(",")]
                if FEATURES in sizes and CLASSES not in sizes:
                    found.append(shape)
    return found


def assert_alike(state):
    params, credits = plainly()
    largest = np.abs(credits).max()
    np.testing.assert_allclose(state.credits, credits, rtol=0, atol=1e-6 * largest)
    for name, leaf in params.items():
        np.testing.assert_allclose(state.params[name], leaf, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "devices", [8, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2, 4))]
)
def test_any_number_of_devices_gives_the_same_credit_and_parameters(devices):
    assert_alike(spread_over(devices))


@pytest.mark.slow
def test_parameters_over_the_second_axis_change_nothing():
    state = spread_over(8, 2)
    assert_alike(state)
    for leaf in jax.tree.leaves(state.params):
        assert not leaf.is_fully_replicated
        assert leaf.addressable_shards[0].data.size == leaf.size // 2


@pytest.mark.slow
def test_sums_in_a_fixed_order_give_the_same_bits():
    alone, spread = spread_over(1, 1, BLOCKS), spread_over(8, 2, BLOCKS)
    assert_alike(alone)
    assert not spread.params["w"].is_fully_replicated
    for left, right in zip(
        jax.tree.leaves(alone._replace(key=())),
        jax.tree.leaves(spread._replace(key=())),
        strict=True,
    ):
        np.testing.assert_array_equal(left, right)


def test_joining_and_leaving_never_recompile():
    mesh, trainer, step = program(8, 1, None)
    spread_over(8)
    assert TRACES[8, 1, None] == 1
    changed = vcca.join(vcca.leave(members(), "agent 0"), "late", shard(50, 6))
    own = shard_cooperative(changed, mesh)
    plan = sharded_plan(epoch_of(own), own, 8, block_capacity=BLOCK)
    _, info = step(jax.jit(trainer.init)(initial()), own.shards, steps_of(plan)[0])
    assert np.isfinite(info.credits).all()
    assert TRACES[8, 1, None] == 1


def test_every_device_holds_its_own_agents_and_no_sample_leaves():
    mesh, trainer, step = program(8, 1, None)
    own = members()
    spread = shard_cooperative(own, mesh)
    for place, device in enumerate(mesh.devices.flat):
        (held,) = [s for s in spread.shards.inputs.addressable_shards if s.device == device]
        np.testing.assert_array_equal(held.data, own.shards.inputs[2 * place : 2 * place + 2])
    at = steps_of(sharded_plan(epoch_of(own), own, 8, block_capacity=BLOCK))[0]
    state = jax.jit(trainer.init)(initial())
    assert leaks(step.lower(state, spread.shards, at).compile()) == []
    # The same look finds what a plain gather sends around.
    assert leaks(jax.jit(vcca.gather).lower(spread.shards, at).compile())


def test_visits_read_samples_where_they_are():
    mesh, _, _ = program(8, 1, None)
    own = members()
    at = steps_of(epoch_of(own))[0]
    at_blocks = steps_of(sharded_plan(epoch_of(own), own, 8, block_capacity=BLOCK))[0]

    def norms(loss, batch):
        return agent_gradients(loss, initial(), batch).squared_norms()

    local = jax.jit(
        lambda held, at: norms(sharded_loss(loss_fn, mesh), sharded_gather(held, at, mesh))
    )
    held = shard_cooperative(own, mesh).shards
    expected = jax.jit(functools.partial(norms, loss_fn))(vcca.gather(own.shards, at))
    np.testing.assert_allclose(local(held, at_blocks), expected, rtol=1e-5, atol=1e-9)
    assert leaks(local.lower(held, at_blocks).compile()) == []


def test_noise_is_drawn_by_sample_on_any_device():
    mesh, _, _ = program(8, 1, None)
    own = members()
    at = steps_of(epoch_of(own))[0]
    at_blocks = steps_of(sharded_plan(epoch_of(own), own, 8, block_capacity=BLOCK))[0]

    def losses(loss, batch):
        batch = batch.keyed(jax.random.key(7))
        each = jnp.where(batch.mask, loss(initial(), batch.inputs, batch.targets), 0)
        return jax.ops.segment_sum(each, batch.owners, num_segments=AGENTS)

    held = shard_cooperative(own, mesh).shards
    spread = jax.jit(
        lambda held, at: losses(sharded_loss(loss_fn, mesh), sharded_gather(held, at, mesh))
    )(held, at_blocks)
    plain = jax.jit(functools.partial(losses, loss_fn))(vcca.gather(own.shards, at))
    np.testing.assert_allclose(spread, plain, rtol=1e-5)


def test_a_plan_in_blocks_holds_the_same_samples():
    own = members()
    plan = epoch_of(own)
    blocks = sharded_plan(plan, own, 8)
    for t in range(len(plan.mask)):
        for agent in range(AGENTS):
            # Each agent's rows, in the order they had.
            before, after = (p.rows[t][p.mask[t] & (p.owners[t] == agent)] for p in (plan, blocks))
            np.testing.assert_array_equal(after, before)
        block = np.repeat(np.arange(8), blocks.mask.shape[1] // 8)
        np.testing.assert_array_equal(blocks.owners[t] // 2, block)


def test_what_does_not_divide_is_refused_with_a_remedy():
    mesh = agent_mesh(jax.devices()[:8])
    odd = vcca.cooperative([shard(0, 3)] * 3)
    with pytest.raises(ValueError, match="capacity=8"):
        shard_cooperative(odd, mesh)
    own = members()
    with pytest.raises(ValueError, match="capacity=18"):
        sharded_plan(epoch_of(own), own, 3)
    with pytest.raises(ValueError, match=r"block_capacity=1 is too small.*raise it to"):
        sharded_plan(epoch_of(own), own, 8, block_capacity=1)
    with pytest.raises(ValueError, match="parameter_shards=3 must divide"):
        agent_mesh(jax.devices()[:8], parameter_shards=3)
    with pytest.raises(ValueError, match=r"blocks=8 must be a multiple.*16 at least"):
        sharded_loss(loss_fn, mesh, blocks=8)
    with pytest.raises(ValueError, match="0 rows"):
        spread_loss(loss_fn, np.zeros((0, FEATURES)), np.zeros(0, np.int32), mesh)
    at = steps_of(epoch_of(own))[0]
    with pytest.raises(ValueError, match="do not divide among 8 devices"):
        sharded_gather(own.shards, TraversalPlan(*(field[:9] for field in at)), mesh)


def test_one_pass_is_refused():
    mesh, _, _ = program(8, 1, None)
    own = members()
    at = steps_of(sharded_plan(epoch_of(own), own, 8, block_capacity=BLOCK))[0]

    def one_pass(held):
        batch = sharded_gather(held, at, mesh)
        return agent_gradients(
            sharded_loss(loss_fn, mesh), initial(), batch, method="one_pass"
        ).losses

    with pytest.raises(ValueError, match="one_pass"):
        jax.eval_shape(one_pass, shard_cooperative(own, mesh).shards)


def test_the_largest_dimension_that_divides_is_divided():
    mesh = agent_mesh(jax.devices()[:8], parameter_shards=4)
    tree = {
        "a": jnp.zeros((8, 12)),
        "b": jnp.zeros((13, 5)),
        "c": jnp.zeros(4),
        "k": jax.random.key(0),
    }
    specs = jax.tree.map(lambda s: s.spec, parameter_shardings(tree, mesh, smallest=8))
    assert specs == {
        "a": jax.P(None, "parameters"),
        "b": jax.P(),
        "c": jax.P(),
        "k": jax.P(),
    }
