"""Where a run's numbers go while it trains, beside its own records: TensorBoard, W&B, yours.

A sink is told every epoch of the run that is paid (seed 0), in order, from epoch 0 (before
training) on. A run that is taken up tells the epochs that it finds done once more, from its
records, before it trains on: what it repeats is bit for bit what it said before, so a sink that
outlives a process passes over the steps that it holds. So nothing is written twice, and what a
kill kept from being written is written then.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, Protocol

from vcca_jax.runs.records import Record

_ABOUT: Final = "configuration"


class Sink(Protocol):
    """Takes the scalars of one step after another; whoever makes a sink closes it."""

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Take the scalars of a step (in a run: an epoch), by name; steps only grow.

        A process that goes on where another was killed begins with step 0 again.
        """

    def close(self) -> None:
        """Write what is still held back; nothing is written afterwards."""


def scalars(records: Mapping[str, Sequence[Record]], epoch: int) -> dict[str, float]:
    """One epoch's numbers of the paid run (seed 0), by name; "/" parts a name from its group.

    Args:
        records: "metrics", "agents" and "game", as a run writes them down.
        epoch: which; epoch 0 has no training loss, no credit and no gain.
    """
    found: dict[str, float] = {}
    for record in _of(records["metrics"], epoch):
        trainer = record["trainer"]
        if record["train_loss"] is not None:
            found[f"train loss/{trainer}"] = record["train_loss"]
        found[f"validation loss/{trainer}"] = record["validation_loss"]
        found[f"validation AUC/{trainer}"] = record["validation_auc"]
        if trainer == "cooperative":
            for group in ("value losses", "fresh value losses"):
                for value, loss in record[group.replace(" ", "_")].items():
                    found[f"{group}/{value}"] = loss
    for record in _of(records["agents"], epoch):
        steps = max(record["steps"], 1)
        found[f"credit/{record['agent']}"] = record["credit"]
        found[f"admitted/{record['agent']}"] = record["admissible_steps"] / steps
        found[f"removed/{record['agent']}"] = record["removed"]
    for record in _of(records["game"], epoch):
        found["credit/all together"] = record["gain"] - record["carry_over"]
    return found


def _of(records: Sequence[Record], epoch: int) -> Iterator[Record]:
    return (r for r in records if r["epoch"] == epoch and r["seed"] == 0)


class TensorBoardSink:
    """Writes scalars as TensorBoard's event files, with no TensorFlow.

    The folder is made at the first step that is new to it, each process writes a file of its own,
    and each step is one record that is on its way to the disk when ``write`` returns: a kill leaves
    whole steps. Steps up to the last one that the folder holds are passed over.
    """

    def __init__(self, folder: str | Path, *, about: str = "") -> None:
        """Look for the last step that is held.

        Args:
            folder: of one run; those beside it are compared with it by ``tensorboard --logdir``.
            about: what decides the run's numbers, such as its configuration; it is shown under
                "Text", and another run's folder is known by it.

        Raises:
            ModuleNotFoundError: TensorBoard is not installed.
            ValueError: The folder holds the steps of a run that is about something else.
        """
        self._events = _tensorboard()
        self._folder, self._about = Path(folder), about
        self._writer: Any = None
        self._last = self._held()

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Write a step that is not held yet."""
        if self._last is not None and step <= self._last:
            return
        events = self._events
        if self._writer is None:
            self._writer = events.EventFileWriter(str(self._folder))
            if self._last is None:
                self._add(step, [_text(events, _ABOUT, self._about)])
        value = events.Summary.Value
        self._add(step, [value(tag=tag, simple_value=scalar) for tag, scalar in scalars.items()])
        self._writer.flush()
        self._last = step

    def close(self) -> None:
        """Close the file, if one was begun."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _add(self, step: int, values: list[Any]) -> None:
        events = self._events
        self._writer.add_event(
            events.Event(step=step, wall_time=time.time(), summary=events.Summary(value=values))
        )

    def _held(self) -> int | None:
        """The last step of the folder's files; a file cut short counts up to where it was cut."""
        last: int | None = None
        for path in sorted(self._folder.glob("events.out.tfevents.*")):
            for event in self._events.EventFileLoader(str(path)).Load():
                for value in event.summary.value:
                    if value.tag != _ABOUT:
                        last = event.step if last is None else max(last, event.step)
                    elif value.tensor.string_val[0] != self._about.encode():
                        raise ValueError(
                            f"{self._folder} holds the steps of a run with another configuration;"
                            " name another folder for TensorBoard, or remove that one"
                        )
        return last


def _tensorboard() -> SimpleNamespace:
    """What is used of TensorBoard, by name."""
    proto = "tensorboard.compat.proto"
    places = {
        "EventFileLoader": "tensorboard.backend.event_processing.event_file_loader",
        "EventFileWriter": "tensorboard.summary.writer.event_file_writer",
        "Event": f"{proto}.event_pb2",
        "Summary": f"{proto}.summary_pb2",
        "SummaryMetadata": f"{proto}.summary_pb2",
        "TensorProto": f"{proto}.tensor_pb2",
        "TensorShapeProto": f"{proto}.tensor_shape_pb2",
    }
    try:
        found = {name: getattr(import_module(place), name) for name, place in places.items()}
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"TensorBoard, or {error.name}, is not installed; install it with:"
            ' pip install "vcca_jax[tensorboard]"',
            name=error.name,
        ) from None
    return SimpleNamespace(**found)


def _text(events: Any, tag: str, text: str) -> Any:
    """A text as TensorBoard's text plugin shows it."""
    metadata = events.SummaryMetadata(
        plugin_data=events.SummaryMetadata.PluginData(plugin_name="text")
    )
    shape = events.TensorShapeProto(dim=[events.TensorShapeProto.Dim(size=1)])
    tensor = events.TensorProto(dtype="DT_STRING", string_val=[text.encode()], tensor_shape=shape)
    return events.Summary.Value(tag=tag, metadata=metadata, tensor=tensor)


class WandbSink:
    """Logs scalars to a Weights & Biases run, each step once."""

    def __init__(self, run: Any) -> None:
        """Go on after what the run holds.

        Args:
            run: What ``wandb.init`` returned, or anything with its ``step`` (the next step of a run
                that was resumed, 0 of a new one), ``log`` and ``finish``.
        """
        self._run, self._next = run, int(run.step)

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Log a step that the run does not hold yet."""
        if step >= self._next:
            self._run.log(dict(scalars), step=step)
            self._next = step + 1

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


def wandb_sink(**options: Any) -> WandbSink:
    """Begin, or resume, a run of Weights & Biases.

    Args:
        options: of ``wandb.init``. With ``id=`` a run that was killed and started again goes on in
            the same place; ``resume="allow"`` is added if ``resume=`` is not given.

    Raises:
        ModuleNotFoundError: ``wandb``, which no extra of this package brings, is not installed.
    """
    try:
        wandb = import_module("wandb")
    except ModuleNotFoundError as error:
        if error.name != "wandb":
            raise
        raise ModuleNotFoundError(
            "wandb is not installed; install it with: pip install wandb", name="wandb"
        ) from None
    return WandbSink(wandb.init(**{"resume": "allow", **options}))
