"""The run itself: epoch by epoch, each settled and checkpointed before the next begins."""

import contextlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vcca_jax.checkpoint import Checkpoints, checkpoints
from vcca_jax.ledger import Ledger, Verification
from vcca_jax.plan import TraversalPlan, virtual_batches
from vcca_jax.runs import epochs, measures
from vcca_jax.runs.config import RunConfig, stored_config
from vcca_jax.runs.environment import environment
from vcca_jax.runs.figures import draw_figures
from vcca_jax.runs.problem import Problem, make_problem
from vcca_jax.runs.records import Record, read_records, write_json, write_records, write_text
from vcca_jax.runs.sinks import Sink, scalars

RECORDS = ("metrics", "agents", "game")


class RunError(RuntimeError):
    """A run that cannot start or go on, with the remedy."""


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
    _claim(config, folder)
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
            folder / "ledger.sqlite",
            run=config.digest()[:16],
            config=config.digest(),
            principals=problem.study.agents,
            currency=config.settlement.currency,
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
                _settle(config, ledger, epoch // config.settlement.epochs_per_period, records)
            for name in RECORDS:
                write_records(folder / f"{name}.jsonl", records[name])
            note = {"head": ledger.head(), "config": config.digest(), "environment": machine}
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
            "revenue": config.settlement.revenue * verification.settlements,
            "reserve": ledger.reserve(),
            "carried": ledger.accounts().get("carried", 0),
            "settlements": verification.settlements,
            "ledger_head": verification.head,
        }
    write_records(folder / "payouts.jsonl", payouts)
    draw_figures(folder, {**records, "payouts": payouts}, config)
    write_json(folder / "results.json", results)
    return results


def read_results(folder: str | Path) -> Record:
    """Read the results of a finished run.

    Raises:
        RunError: the run has not finished.
    """
    path = Path(folder) / "results.json"
    if not path.exists():
        raise RunError(
            f"{folder} has not finished; go on with: vcca-jax resume {Path(folder).name}"
        )
    return json.loads(path.read_text(encoding="utf-8"))


def verify_run(folder: str | Path, *, head: str | None = None) -> Verification:
    """Replay a run's ledger, and look in it for the heads that are kept outside it.

    Those are in the latest checkpoint and, if the run has finished, in its results: a ledger whose
    tail was cut off or rewritten with all its hashes is found by them. ``head`` is one more.

    Raises:
        LedgerError: the ledger is absent, damaged, foreign, or lacks a head it should hold.
    """
    folder = Path(folder)
    config = stored_config(folder)
    heads = {head}
    note = latest_note(folder)
    if note is not None:
        heads.add(note["head"])
    if (folder / "results.json").exists():
        heads.add(read_results(folder)["ledger_head"])
    with Ledger.open(
        folder / "ledger.sqlite", config=config.digest(), create=False, read_only=True
    ) as ledger:
        # Each is a replay of the whole ledger; None is worth one only where nothing else is known.
        return [ledger.verify(head=known) for known in heads - {None} or {None}][-1]


def latest_note(folder: str | Path) -> Record | None:
    """Read what the latest checkpoint of a run notes beside the arrays, or None if there is none.

    It holds the ledger's "head", the digest of the "config", and the "environment" that trained the
    epoch (see ``environment``), which runs of earlier versions lack.
    """
    place = Path(folder) / "checkpoints"
    if not place.is_dir():
        return None
    with checkpoints(place) as saved:
        return None if saved.latest is None else saved.note(saved.latest)


def replay_run(folder: str | Path, path: str | Path) -> list[str]:
    """Settle all of a run's periods again, from its records alone, into a new ledger.

    Args:
        folder: the run's.
        path: where the new ledger is made.

    Returns:
        The hashes of its entries, which are the first of the run's own ledger, bit for bit.

    Raises:
        LedgerError: the run's ledger is absent, damaged or foreign.
    """
    folder = Path(folder)
    config = stored_config(folder)
    records = {name: read_records(folder / f"{name}.jsonl") for name in ("agents", "game")}
    epochs_done = max((record["epoch"] for record in records["game"]), default=0)
    with Ledger.open(
        folder / "ledger.sqlite", config=config.digest(), create=False, read_only=True
    ) as ledger:
        terms = ledger.terms
    with Ledger.open(
        path,
        run=terms.run,
        config=terms.config,
        principals=terms.principals,
        currency=terms.currency,
    ) as again:
        for period in range(1, epochs_done // config.settlement.epochs_per_period + 1):
            _settle(config, again, period, records)
        return [entry.hash for entry in again.entries()]


def _claim(config: RunConfig, folder: Path) -> None:
    """Write the configuration into a new folder, or see that it is the one that is there."""
    path = folder / "config.json"
    if path.exists():
        if path.read_text(encoding="utf-8") != config.canonical():
            raise RunError(
                f"{folder} was begun with another configuration (see {path}); choose another name,"
                " or remove the folder to start anew"
            )
    elif any(folder.iterdir()):
        raise RunError(f"{folder} is not empty and holds no run; choose another name")
    else:
        write_text(path, config.canonical())


def _take_up(
    folder: Path, saved: Checkpoints, ledger: Ledger, states: epochs.States
) -> tuple[int, epochs.States, dict[str, list[Record]]]:
    """Epochs done, the states after them, and the records up to them."""
    records: dict[str, list[Record]] = {name: [] for name in RECORDS}
    done = saved.latest
    if done is None:
        return 0, states, records
    states, note = saved.restore(done, states)
    ledger.verify(head=note["head"])
    for name in RECORDS:
        with contextlib.suppress(KeyError):
            found = read_records(folder / f"{name}.jsonl")
            records[name] = [record for record in found if record["epoch"] <= done]
        if not records[name] or records[name][-1]["epoch"] != done:
            raise RunError(
                f"{folder / name}.jsonl does not reach the checkpoint of epoch {done}; restore the"
                " file, or remove the folder to start anew"
            )
    return done, states, records


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


def _settle(
    config: RunConfig, ledger: Ledger, period: int, records: dict[str, list[Record]]
) -> None:
    """Settle one period on the paid run's credit, that of seed 0."""
    last = period * config.settlement.epochs_per_period
    first = last - config.settlement.epochs_per_period + 1

    def of_period(name: str) -> list[Record]:
        return [r for r in records[name] if r["seed"] == 0 and first <= r["epoch"] <= last]

    credits: dict[str, float] = {}
    for record in of_period("agents"):
        credits[record["agent"]] = credits.get(record["agent"], 0.0) + record["credit"]
    ledger.settle(
        period,
        credits,
        config.settlement.revenue,
        gain=sum(record["gain"] for record in of_period("game")),
        carry_over=sum(record["carry_over"] for record in of_period("game")),
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
