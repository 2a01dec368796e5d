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
from vcca_jax.operators import inner_products
from vcca_jax.plan import TraversalPlan
from vcca_jax.sharding.batch import shard_cooperative, sharded_gather, sharded_plan
from vcca_jax.sharding.losses import sharded_loss, spread_loss
from vcca_jax.sharding.mesh import agent_mesh, parameter_shardings, sharded

# Sizes that occur nowhere else, so that a shape in a compiled program says what it holds; classes
# are even, so that parameters divide in two.
FEATURES, CLASSES, AGENTS, BATCH, BLOCK = 37, 14, 16, 40, 11
BLOCKS = 16
PAIRS = "one_pass, pairs"
"""The one pass in the form in which layers show held-out rows; with credit by sample, too."""
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


def trainer_of(loss, group, method="linearized"):
    values = vcca.value_losses({"a": group(*shard(100, 19)), "b": group(*shard(101, 23))})
    worth = group(*shard(102, 29))
    one_pass = method != "linearized"
    profiles = vcca.value_profiles(
        values.names, [[vcca.protect("a")], [vcca.forbid("b")]] * (AGENTS // 2)
    )
    trainer = vcca.cooperate(
        loss,
        optax.sgd(0.2),
        worth if one_pass else lambda params: worth(params, None),
        values,
        screen=vcca.screen("project", measure_norms=method == "one_pass"),
        estimator=vcca.first_order
        if method == PAIRS
        else functools.partial(vcca.aumann_shapley, nodes=2),
        method=vcca.OnePass(form="pairs") if method == PAIRS else method,
        credit_examples=method == PAIRS,
    )
    return vcca.Trainer(functools.partial(trainer.init, profiles=profiles), trainer.step)


def steps_of(plan):
    return list(streaming.steps_of(plan))


def epoch_of(own):
    return vcca.virtual_batches(own, BATCH, seed=3, epoch=0)


@functools.cache
def plainly(method="linearized"):
    trainer = trainer_of(loss_fn, functools.partial(vcca.group_loss, loss_fn), method)
    step, state, own = jax.jit(trainer.step), trainer.init(initial()), members()
    for at in steps_of(epoch_of(own)):
        state, info = step(state, vcca.gather(own.shards, at))
    return jax.device_get((state.params, state.credits, info, at))


@functools.cache
def program(devices, shards, blocks, method="linearized"):
    mesh = agent_mesh(jax.devices()[:devices], parameter_shards=shards)
    trainer = sharded(
        trainer_of(
            sharded_loss(loss_fn, mesh, blocks=blocks),
            lambda inputs, targets: spread_loss(loss_fn, inputs, targets, mesh, blocks=blocks),
            method,
        ),
        mesh,
        smallest=1,
        gathered=blocks is not None,
    )

    def step(state, held, at):
        TRACES[devices, shards, blocks, method] += 1
        return trainer.step(state, sharded_gather(held, at, mesh))

    return mesh, trainer, jax.jit(step)


@functools.cache
def run_over(devices, shards=1, blocks=None, method="linearized"):
    """The last state, what the last step told, and its plan."""
    mesh, trainer, step = program(devices, shards, blocks, method)
    own = shard_cooperative(members(), mesh)
    plan = sharded_plan(epoch_of(own), own, blocks or 8, block_capacity=BLOCK)
    state = jax.jit(trainer.init)(initial())
    for at in steps_of(plan):
        state, info = step(state, own.shards, at)
    return state, info, at


def spread_over(*arguments):
    return run_over(*arguments)[0]


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


def assert_alike(state, method="linearized"):
    params, credits, _, _ = plainly(method)
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


def by_sample(at, numbers):
    """A number a sample, by its owner and row."""
    told = {}
    for owner, row, live, number in zip(at.owners, at.rows, at.mask, numbers, strict=True):
        if live:
            told[int(owner), int(row)] = float(number)
    return told


def test_one_pass_over_devices_is_the_pass_on_one():
    """Credit by agent and by sample, and parameters, in the form that shows held-out rows."""
    state, info, at = run_over(8, 1, None, PAIRS)
    _, _, plain, plain_at = plainly(PAIRS)
    assert_alike(state, PAIRS)
    np.testing.assert_allclose(info.value_losses, plain.value_losses, rtol=1e-5)
    ours = by_sample(at, info.example_credits)
    theirs = by_sample(plain_at, plain.example_credits)
    assert ours.keys() == theirs.keys()
    largest = max(map(abs, theirs.values()))
    assert largest > 1e-4
    for sample, credit in theirs.items():
        assert abs(ours[sample] - credit) < 1e-6 * largest


def test_in_one_pass_what_crosses_is_held_out():
    mesh, trainer, step = program(8, 1, None, PAIRS)
    own = shard_cooperative(members(), mesh)
    at = steps_of(sharded_plan(epoch_of(own), own, 8, block_capacity=BLOCK))[0]
    compiled = step.lower(jax.jit(trainer.init)(initial()), own.shards, at).compile()
    # Three groups of 24, 24 and 32 rows with their filling; a device's samples come in elevens.
    rows = {np.prod([int(n) for n in shape.split(",")]) // FEATURES for shape in leaks(compiled)}
    assert rows <= {24 + 24 + 32, (24 + 24 + 32) // 8}
    assert rows


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2, 4, 8])
def test_one_pass_on_any_number_of_devices(devices):
    state = spread_over(devices, 1, None, "one_pass")
    assert_alike(state)
    np.testing.assert_allclose(
        run_over(devices, 1, None, "one_pass")[1].report.norm,
        plainly("one_pass")[2].report.norm,
        rtol=1e-5,
    )


@pytest.mark.slow
def test_one_pass_with_parameters_over_the_second_axis():
    assert_alike(spread_over(8, 2, None, "one_pass"))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["one_pass", PAIRS])
def test_one_pass_in_a_fixed_order_gives_the_same_bits(method):
    alone = run_over(1, 1, BLOCKS, method)[:2]
    assert_alike(alone[0], method)
    for devices, shards in ((2, 1), (4, 1), (8, 1), (8, 2)):
        spread = run_over(devices, shards, BLOCKS, method)[:2]
        for left, right in zip(
            jax.tree.leaves((alone[0]._replace(key=()), alone[1])),
            jax.tree.leaves((spread[0]._replace(key=()), spread[1])),
            strict=True,
        ):
            np.testing.assert_array_equal(left, right)


@pytest.mark.slow
def test_noise_in_one_pass_is_that_of_the_sample():
    """Keys travel with training samples; held-out ones have none, and are met on their own."""
    mesh, _, _ = program(8, 1, None, "linearized")
    own = members()
    at = steps_of(epoch_of(own))[0]
    at_blocks = steps_of(sharded_plan(epoch_of(own), own, 8, block_capacity=BLOCK))[0]

    def told(loss, group, batch):
        batch = batch.keyed(jax.random.key(7))
        seen = vcca.shared_pass(loss, initial(), batch, [group(*shard(100, 19))])
        return seen.gradients.sum(), inner_products(seen.gradients, seen.rows)

    held = shard_cooperative(own, mesh).shards
    spread = jax.jit(
        lambda held, at: told(
            sharded_loss(loss_fn, mesh),
            lambda inputs, targets: spread_loss(loss_fn, inputs, targets, mesh),
            sharded_gather(held, at, mesh),
        )
    )(held, at_blocks)
    group = functools.partial(vcca.group_loss, loss_fn)
    plain = jax.jit(functools.partial(told, loss_fn, group))(vcca.gather(own.shards, at))
    for left, right in zip(jax.tree.leaves(spread), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-7)


def test_joining_and_leaving_never_recompile():
    mesh, trainer, step = program(8, 1, None, "linearized")
    spread_over(8)
    assert TRACES[8, 1, None, "linearized"] == 1
    changed = vcca.join(vcca.leave(members(), "agent 0"), "late", shard(50, 6))
    own = shard_cooperative(changed, mesh)
    plan = sharded_plan(epoch_of(own), own, 8, block_capacity=BLOCK)
    _, info = step(jax.jit(trainer.init)(initial()), own.shards, steps_of(plan)[0])
    assert np.isfinite(info.credits).all()
    assert TRACES[8, 1, None, "linearized"] == 1


def test_every_device_holds_its_own_agents_and_no_sample_leaves():
    mesh, trainer, step = program(8, 1, None, "linearized")
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
    mesh, _, _ = program(8, 1, None, "linearized")
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
    mesh, _, _ = program(8, 1, None, "linearized")
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
    with pytest.raises(ValueError, match="inputs holds no example"):
        spread_loss(loss_fn, np.zeros((0, FEATURES)), np.zeros(0, np.int32), mesh)
    at = steps_of(epoch_of(own))[0]
    with pytest.raises(ValueError, match="do not divide among 8 devices"):
        sharded_gather(own.shards, TraversalPlan(*(field[:9] for field in at)), mesh)


def test_one_pass_says_what_does_not_divide():
    mesh, _, _ = program(8, 1, None, "linearized")
    own = members()
    at = steps_of(sharded_plan(epoch_of(own), own, 8, block_capacity=BLOCK))[0]

    def one_pass(held):
        batch = sharded_gather(held, at, mesh)
        loss = sharded_loss(loss_fn, mesh, blocks=48)
        return agent_gradients(loss, initial(), batch, method="one_pass").losses

    with pytest.raises(ValueError, match=r"\[88\] rows do not divide into 48 parts"):
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
