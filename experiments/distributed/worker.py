"""One process of the cooperative: its own agents' samples, and a part in the common program."""

import os
import signal
import sys
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

import vcca_jax as vcca
from experiments.distributed.data import AGENTS, held_out, own_agents
from experiments.pages import say
from vcca_jax.checkpoint import checkpoints
from vcca_jax.ledger import Ledger
from vcca_jax.model import model_loss
from vcca_jax.models import mlp
from vcca_jax.plan import TraversalPlan
from vcca_jax.runs.records import write_json
from vcca_jax.sharding.batch import shard_cooperative, sharded_gather, sharded_plan
from vcca_jax.sharding.losses import sharded_loss, spread_loss
from vcca_jax.sharding.mesh import agent_mesh, sharded

LOST = 17
"""Exit status of a process that ended because another one did."""

HEARTBEAT_SECONDS = 10
BATCH, BLOCKS, REVENUE = 128, 16, 1_000_000
FREE_SCALE_BITS = 16
"""With sums in any order, credits are kept in units of 2^-16 nat, a hundred times the rounding."""


class Setup(NamedTuple):
    """What a process is told.

    Attributes:
        out: folder that all processes see.
        epochs: how many, each a settlement period.
        fixed: add gradients in a fixed order, the same bits on any number of devices.
        parameter_shards: devices that share one copy of the parameters.
        form: of the agent gradients, "linearized" or "one_pass".
        process, processes, coordinator: of ``jax.distributed``; one process needs no coordinator.
        cluster: let JAX ask the cluster for these three.
        fail_after: the epoch after which this process kills itself, to see what becomes of the
            others; 0 for never.
    """

    out: Path
    epochs: int
    fixed: bool
    parameter_shards: int
    form: Any
    process: int
    processes: int
    coordinator: str
    cluster: bool
    fail_after: int


class Program(NamedTuple):
    """The cooperative and its jitted step."""

    members: vcca.Cooperative
    blocks: int
    initial: Any
    step: Any


def make_program(setup: Setup) -> Program:
    """Load the own agents' files, put them on the mesh, and bind the step to it."""
    mesh = agent_mesh(parameter_shards=setup.parameter_shards)
    folder = setup.out / "data"
    members = shard_cooperative(own_agents(folder, setup.process, setup.processes), mesh)
    model = mlp(64, (32,), 10, cut=1)
    loss_fn = model_loss(model, optax.softmax_cross_entropy_with_integer_labels)
    blocks = BLOCKS if setup.fixed else None
    rows = held_out(folder)

    def spread(inputs: np.ndarray, targets: np.ndarray, of: np.ndarray) -> Any:
        return spread_loss(loss_fn, inputs[of], targets[of], mesh, blocks=blocks)

    targets = rows.values[1]
    values = vcca.value_losses(
        {
            "low digits": spread(*rows.values, targets < 5),
            "nines": spread(*rows.values, targets == 9),
        }
    )
    validation = spread(*rows.validation, np.ones(len(rows.validation[1]), bool))
    profiles = vcca.value_profiles(
        values.names,
        [
            [vcca.forbid("nines")] if i % 4 == 3 else [vcca.protect("low digits")]
            for i in range(AGENTS)
        ],
    )
    trainer = sharded(
        vcca.cooperate(
            sharded_loss(loss_fn, mesh, blocks=blocks),
            optax.sgd(0.3),
            validation,
            values,
            estimator=partial(vcca.aumann_shapley, nodes=4),
            method=setup.form,
        ),
        mesh,
        smallest=256,
        gathered=setup.fixed,
    )

    def step(state: Any, shards: Any, at: TraversalPlan) -> Any:
        return trainer.step(state, sharded_gather(shards, at, mesh))

    initial = jax.jit(trainer.init)(model.init(jax.random.key(0)), profiles)
    return Program(members, blocks or mesh.size, initial, jax.jit(step, donate_argnums=0))


def plans(program: Program, epochs: int) -> list[TraversalPlan]:
    """Every epoch's plan, all of one shape; the host's work, the same in every process."""
    members, blocks = program.members, program.blocks
    drawn = [vcca.virtual_batches(members, BATCH, seed=0, epoch=epoch) for epoch in range(epochs)]
    widest = max(sharded_plan(plan, members, blocks).mask.shape[1] for plan in drawn)
    return [sharded_plan(plan, members, blocks, block_capacity=widest // blocks) for plan in drawn]


def train(setup: Setup, program: Program) -> None:
    """Train, settle and checkpoint, from the last checkpoint on."""
    names, leader = program.members.names, setup.process == 0
    epochs = plans(program, setup.epochs)
    with ExitStack() as stack:
        saved = stack.enter_context(checkpoints(setup.out / "checkpoints"))
        ledger = None
        if leader:
            bits = 40 if setup.fixed else FREE_SCALE_BITS
            path = setup.out / "ledger.sqlite"
            ledger = stack.enter_context(
                Ledger.open(path, run="distributed", principals=names, scale_bits=bits)
            )
        state, done = program.initial, saved.latest or 0
        if done:
            state, note = saved.restore(done, state)
            if ledger is not None:
                ledger.verify(head=note["head"])
                say(f"resuming after epoch {done}, on {jax.device_count()} devices")
        begun = time.perf_counter()
        for epoch in range(done + 1, setup.epochs + 1):
            credits, gain, loss = np.zeros(AGENTS), 0.0, 0.0
            for at in zip(*epochs[epoch - 1], strict=True):
                state, info = program.step(state, program.members.shards, TraversalPlan(*at))
                credits += np.asarray(info.credits, np.float64)
                gain += float(info.gain)
                loss = float(info.loss)
            head = ""
            if ledger is not None:
                of_agents = dict(zip(names, credits.tolist(), strict=True))
                ledger.settle(epoch, of_agents, REVENUE, gain=gain)
                head = ledger.head()
                say(f"epoch {epoch}: loss {loss:.4f}, credit {credits.sum():.4f}, {head[:12]}")
            saved.save(epoch, state, {"head": head})
            if epoch == setup.fail_after:
                saved.wait()
                say(f"process {setup.process} kills itself, as it was asked to")
                os.kill(os.getpid(), signal.SIGKILL)
        if ledger is not None:
            write_json(
                setup.out / "results.json",
                {
                    "processes": setup.processes,
                    "devices": jax.device_count(),
                    "parameter_shards": setup.parameter_shards,
                    "order": "fixed" if setup.fixed else "free",
                    "form": setup.form,
                    "seconds": round(time.perf_counter() - begun, 2),
                    "ledger_head": ledger.verify().head,
                    "payouts": ledger.balances(),
                    "credits": {
                        name: float(credit)
                        for name, credit in zip(names, np.asarray(state.credits), strict=True)
                    },
                },
            )


def work(setup: Setup) -> None:
    """Be one process; leave with status ``LOST`` if another one is lost."""
    if setup.cluster:
        jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT_SECONDS)
        setup = setup._replace(process=jax.process_index(), processes=jax.process_count())
    elif setup.processes > 1:
        jax.distributed.initialize(
            setup.coordinator,
            setup.processes,
            setup.process,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            initialization_timeout=60,
        )
    try:
        train(setup, make_program(setup))
    except jax.errors.JaxRuntimeError as error:
        if setup.processes == 1:
            raise
        print(
            f"process {setup.process} of {setup.processes}: the common program broke off, most"
            f" likely because another process ended ({str(error).splitlines()[0][:160]})."
            " What was checkpointed is kept; the same command goes on from there.",
            file=sys.stderr,
            flush=True,
        )
        # Leaving in order would wait for the lost process.
        os._exit(LOST)
    if setup.processes > 1:
        jax.distributed.shutdown()
