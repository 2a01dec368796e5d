"""The run itself: epoch by epoch, each settled and checkpointed before the next begins."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vcca_jax.checkpoint import Checkpoints, checkpoints
from vcca_jax.ledger import Ledger
from vcca_jax.plan import TraversalPlan, virtual_batches
from vcca_jax.runs import epochs, measures
from vcca_jax.runs.config import RunConfig
from vcca_jax.runs.environment import environment
from vcca_jax.runs.errors import RunError
from vcca_jax.runs.figures import draw_figures
from vcca_jax.runs.lock import NAME, working_on
from vcca_jax.runs.problem import Problem, make_problem
from vcca_jax.runs.records import FIELDS, Record, write_json, write_records, write_text
from vcca_jax.runs.settling import settle_period, terms
from vcca_jax.runs.sinks import Sink, scalars
from vcca_jax.runs.stored import records_as_noted


def run(
    config: RunConfig,
    folder: str | Path,
    *,
    progress: Callable[[int], None] = lambda epoch: None,
    sinks: Sequence[Sink] = (),
) -> Record:
    """Run, or take up, the configured cooperative in a folder.

    Every epoch is trained, measured, settled if it ends a period, written down and checkpointed,
    in this order; a checkpoint is written while the next epoch is trained, and nothing of that
    epoch is settled or written down before it is complete. So ledger and records are never more
    than one epoch ahead of the last checkpoint. A run killed at any point and started again
    continues from there; settling again what the ledger already holds changes nothing, and records
    beyond the checkpoint are written anew. So it ends with the same bytes as one that was never
    stopped (but for ``checkpoints/``, where the library that writes them stores the time).

    Writes to ``folder``: config.json; metrics.jsonl, agents.jsonl and game.jsonl (see
    ``measures``); ledger.sqlite; checkpoints/; at the end results.json and figures/.

    Args:
        config: see ``load_config``.
        folder: made if absent.
        progress: called with the number of epochs done, first with those found done.
        sinks: told every epoch once its checkpoint is under way, and before that, once more, those
            found done (see ``sinks``). The caller closes them; what they raise stops the run, which
            can be taken up again.

    Returns:
        The content of results.json.

    Raises:
        RunError: the folder holds another configuration, or its parts do not belong together.
        ConfigError: the configuration does not fit the study.
        LedgerError: the ledger is damaged, foreign, locked or cannot be written.
    """
    folder = Path(folder)
    problem = make_problem(config)
    folder.mkdir(parents=True, exist_ok=True)
    _refuse_others(folder)
    with working_on(folder):
        _claim(config, folder)
        return _run(config, problem, folder, progress, sinks)


def _run(
    config: RunConfig,
    problem: Problem,
    folder: Path,
    progress: Callable[[int], None],
    sinks: Sequence[Sink],
) -> Record:
    """Run or take up what is in a folder that is this process's alone."""
    keys = jax.vmap(lambda r: jax.random.fold_in(jax.random.key(config.training.seed), r))(
        np.arange(config.training.seeds)
    )
    states = epochs.over_seeds(lambda key: epochs.initial_states(problem, key), 0)(keys)
    evaluate = epochs.over_seeds(lambda states: epochs.evaluate(problem, states), 0)
    train = epochs.over_seeds(
        lambda states, shards, plan: epochs.epoch(problem, states, shards, plan),
        0,
        None,
        0,
        donated=(0,),
    )
    shards = jax.device_put(problem.members.shards)
    machine = environment()

    with (
        checkpoints(folder / "checkpoints") as saved,
        Ledger.open(
            folder / "ledger.sqlite", principals=problem.study.agents, **terms(config)
        ) as ledger,
    ):
        done, states, records = _take_up(folder, saved, ledger, states)
        if done == 0:
            records["metrics"] = measures.metric_records(problem, 0, evaluate(states), None)
        for epoch in range(done + 1):
            _tell(sinks, records, epoch)
        progress(done)
        for epoch in range(done + 1, config.training.epochs + 1):
            states, summary = train(states, shards, _plans(problem, config, epoch - 1))
            evaluation = evaluate(states)
            _refuse_divergence(epoch, (summary, evaluation))
            saved.wait()
            records["metrics"] += measures.metric_records(problem, epoch, evaluation, summary)
            records["agents"] += measures.agent_records(problem, epoch, summary)
            records["game"] += measures.game_records(epoch, summary)
            if epoch % config.settlement.epochs_per_period == 0:
                period = epoch // config.settlement.epochs_per_period
                settle_period(config, ledger, period, records)
            written = {
                name: write_records(folder / f"{name}.jsonl", records[name]) for name in FIELDS
            }
            note = {
                "head": ledger.head(),
                "config": config.digest(),
                "records": written,
                "environment": machine,
            }
            saved.save(epoch, states, note)
            _tell(sinks, records, epoch)
            progress(epoch)
        verification = ledger.verify()
        payouts = measures.payout_records(ledger)
        results = {
            "agents": measures.agent_table(problem, config, records["agents"], ledger),
            "test": _test(problem, states),
            "value_names": list(problem.values.names),
            "currency": config.settlement.currency,
            "decimals": config.settlement.decimals,
            **measures.money(ledger),
            "settlements": verification.settlements,
            "ledger_head": verification.head,
        }
    write_records(folder / "payouts.jsonl", payouts)
    draw_figures(folder, {**records, "payouts": payouts}, config)
    write_json(folder / "results.json", results)
    return results


def _refuse_others(folder: Path) -> None:
    """See that a folder holds a run, or nothing yet."""
    held = {path.name for path in folder.iterdir()} - {NAME}
    if held and not (folder / "config.json").exists():
        raise RunError(f"{folder} is not empty and holds no run; choose another name")


def _claim(config: RunConfig, folder: Path) -> None:
    """Write the configuration into a new folder, or see that it is the one that is there."""
    path = folder / "config.json"
    if not path.exists():
        write_text(path, config.canonical())
    elif path.read_bytes() != config.canonical().encode():
        raise RunError(
            f"{folder} was begun with another configuration (see {path}); choose another name,"
            " or remove the folder to start anew"
        )


def _take_up(
    folder: Path, saved: Checkpoints, ledger: Ledger, states: epochs.States
) -> tuple[int, epochs.States, dict[str, list[Record]]]:
    """Epochs done, the states after them, and the records up to them."""
    done = saved.latest
    if done is None:
        return 0, states, {name: [] for name in FIELDS}
    states, note = saved.restore(done, states)
    ledger.verify(head=note["head"])
    return done, states, records_as_noted(folder, {**note, "epoch": done})


def _tell(sinks: Sequence[Sink], records: dict[str, list[Record]], epoch: int) -> None:
    if sinks:
        told = scalars(records, epoch)
        for sink in sinks:
            sink.write(epoch, told)


def _plans(problem: Problem, config: RunConfig, epoch: int) -> TraversalPlan:
    """One epoch's plan for every seed, leading axis the seeds."""
    plans = [
        virtual_batches(
            problem.members,
            config.training.batch_size,
            seed=config.training.seed + replica,
            epoch=epoch,
        )
        for replica in range(config.training.seeds)
    ]
    return TraversalPlan(*(np.stack(fields) for fields in zip(*plans, strict=True)))


def _refuse_divergence(epoch: int, measured: Any) -> None:
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(measured)):
        raise RunError(
            f"epoch {epoch} gave losses or credits that are not finite: training diverged; lower"
            " training.learning_rate and start under another name. What was settled is kept"
        )


def _test(problem: Problem, states: epochs.States) -> list[Record]:
    """The one look at the test rows, after the last epoch."""
    test = problem.study.test
    outputs: dict[str, Any] = {}
    losses: dict[str, Any] = {}
    for name, state in states.items():
        apply = epochs.over_seeds(lambda p: problem.model.apply(p, test.inputs)[:, 0], 0)
        loss = epochs.over_seeds(lambda p: problem.loss_fn(p, test.inputs, test.targets), 0)
        outputs[name], losses[name] = (np.asarray(f(state.params)) for f in (apply, loss))
    return measures.test_table(problem, outputs, losses)
