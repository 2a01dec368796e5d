"""A run's folder read and checked: its results, its ledger, and what its checkpoints note."""

import json
from pathlib import Path
from typing import Any, Final

from vcca_jax.checkpoint import checkpoints
from vcca_jax.ledger import Ledger, Verification
from vcca_jax.runs.config import stored_config
from vcca_jax.runs.errors import RunError
from vcca_jax.runs.records import FIELDS, Record, digest, faults, read_records

_TRIES: Final = 5
_RESULTS: Final = {
    "agents": list,
    "test": list,
    "value_names": list,
    "currency": str,
    "revenue": int,
    "reserve": int,
    "carried": int,
    "settlements": int,
    "ledger_head": str,
}
_NUMBER: Final = (int, float)
_AGENT: Final = {
    "agent": str,
    "samples": int,
    "admissible_share": _NUMBER,
    "dropped_share": _NUMBER,
    "removed_share": _NUMBER,
    "credit": _NUMBER,
    "credit_mean": _NUMBER,
    "credit_sd": (*_NUMBER, type(None)),
    "payout": int,
}


def read_results(folder: str | Path) -> Record:
    """Read the results of a finished run.

    Raises:
        RunError: the run has not finished, or the file is damaged.
    """
    path = Path(folder) / "results.json"
    again = f"vcca-jax resume {Path(folder).name}"
    if not path.exists():
        raise RunError(f"{folder} has not finished; go on with: {again}")
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        wrong = str(error)
    else:
        wrong = faults(content, _RESULTS) or next(
            filter(
                None,
                (
                    *(faults(row, _AGENT) for row in content["agents"]),
                    *(
                        faults(row, {"trainer": str, "loss": dict, "auc": dict})
                        for row in content["test"]
                    ),
                    "" if content["test"] else "it tells of no trainer",
                ),
            ),
            "",
        )
    if wrong:
        raise RunError(f"{path} is damaged ({wrong}); have it written anew with: {again}")
    return content


def verify_run(folder: str | Path, *, head: str | None = None) -> Verification:
    """Replay a run's ledger, and look in it for the heads that are kept outside it.

    Those are in the latest checkpoint and, if the run has finished, in its results: a ledger whose
    tail was cut off or rewritten with all its hashes is found by them. ``head`` is one more. The
    records, too, are compared with what the latest checkpoint notes of them. A run in progress may
    be verified: nothing is written.

    Raises:
        RunError: a file of the run is damaged, or records are not those that were checkpointed.
        LedgerError: the ledger is absent, damaged, foreign, or lacks a head it should hold.
    """
    folder = Path(folder)
    config = stored_config(folder)
    heads = {head}
    note = latest_note(folder)
    if note is not None:
        heads.add(note["head"])
        records_as_noted(folder, note)
    if (folder / "results.json").exists():
        heads.add(read_results(folder)["ledger_head"])
    with Ledger.open(
        folder / "ledger.sqlite", config=config.digest(), create=False, read_only=True
    ) as ledger:
        # Each is a replay of the whole ledger; None is worth one only where nothing else is known.
        return [ledger.verify(head=known) for known in heads - {None} or {None}][-1]


def latest_note(folder: str | Path) -> Record | None:
    """Read what the latest checkpoint of a run notes beside the arrays, or None if there is none.

    It holds the number of the "epoch", the ledger's "head", the digest of the "config", by name
    those of the "records" (see ``records_as_noted``), and the "environment" that trained the epoch
    (see ``environment``). Runs of earlier versions lack some of these.
    """
    place = Path(folder) / "checkpoints"
    if not place.is_dir():
        return None
    for tried in range(_TRIES):
        try:
            with checkpoints(place, read_only=True) as saved:
                done = saved.latest
                return None if done is None else {**saved.note(done), "epoch": done}
        except (OSError, ValueError):  # a run in progress took it away between two looks
            if tried == _TRIES - 1:
                raise
    raise AssertionError


def records_as_noted(folder: Path, note: Record) -> dict[str, list[Record]]:
    """Read a run's records up to a checkpoint, and compare them with what it notes of them.

    Args:
        folder: the run's.
        note: see ``latest_note``.

    Returns:
        The records up to the checkpoint's epoch, by the names of their files.

    Raises:
        RunError: a file is damaged, does not reach the checkpoint, or was changed since.
    """
    done, found = note["epoch"], {}
    for name in FIELDS:
        path = folder / f"{name}.jsonl"
        found[name] = [record for record in read_records(path) if record["epoch"] <= done]
        noted: Any = note.get("records", {}).get(name)
        if not found[name] or found[name][-1]["epoch"] != done:
            what = f"does not reach the checkpoint of epoch {done}"
        elif noted is not None and digest(found[name]) != noted:
            what = f"is not what it was at the checkpoint of epoch {done}: records were changed"
        else:
            continue
        raise RunError(
            f"{path} {what}; restore the file from a copy, or remove the folder to start anew"
        )
    return found
