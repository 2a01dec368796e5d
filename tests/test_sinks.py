"""What a run tells a sink, and that no sink is told, or keeps, a step twice."""

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.run_examples import smoke
from vcca_jax.runs import run
from vcca_jax.runs.records import read_records
from vcca_jax.runs.sinks import TensorBoardSink, WandbSink, scalars, wandb_sink

CONFIG = smoke(epochs=2, seeds=1, batch_size=256)


class Stop(Exception):
    """Stands for a kill."""


class Kept(list):
    """A sink that keeps what it is told."""

    def write(self, step, scalars):
        self.append((step, dict(scalars)))

    def close(self):
        """Nothing is held back."""


def board(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """tag -> (step, scalar), as TensorBoard itself reads them."""
    event_accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator",
        reason="tensorboard is not installed",
    )
    read = event_accumulator.EventAccumulator(str(folder), size_guidance={"scalars": 0})
    read.Reload()
    return {
        tag: [(event.step, event.value) for event in read.Scalars(tag)]
        for tag in read.Tags()["scalars"]
    }


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("events.out.tfevents.*"))


def test_what_is_written_is_what_tensorboard_reads(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    sink = TensorBoardSink(tmp_path / "a", about="lr = 1")
    assert not (tmp_path / "a").exists()
    for step in (0, 1, 5):
        sink.write(step, {"loss/ours": 0.5 * step, "credit/<ana>": -step})
    held = board(tmp_path / "a")  # before it is closed: a step is on the disk when it is written
    sink.close()
    assert held == {
        "loss/ours": [(0, 0), (1, 0.5), (5, 2.5)],
        "credit/<ana>": [(0, 0), (1, -1), (5, -5)],
    }


def test_steps_that_a_folder_holds_are_passed_over_even_where_a_file_was_cut(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    folder = tmp_path / "a"
    first = TensorBoardSink(folder)
    for step in range(4):
        first.write(step, {"loss": float(step)})
    first.close()
    (path,) = files(folder)
    path.write_bytes(path.read_bytes()[:-5])  # cut in the last step
    second = TensorBoardSink(folder)
    for step in range(5):
        second.write(step, {"loss": float(step)})
    second.close()
    assert board(folder)["loss"] == [(step, float(step)) for step in range(5)]
    third = TensorBoardSink(folder)
    third.write(4, {"loss": 9.0})
    third.close()
    assert len(files(folder)) == 2


def test_another_configurations_folder_is_refused(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    sink = TensorBoardSink(tmp_path, about="lr = 1")
    sink.write(0, {"loss": 1.0})
    sink.close()
    with pytest.raises(ValueError, match="another configuration; name another folder"):
        TensorBoardSink(tmp_path, about="lr = 2")
    TensorBoardSink(tmp_path, about="lr = 1").close()


def test_without_tensorboard_or_wandb_the_remedy_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard.compat.proto.event_pb2", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "vcca_jax\[tensorboard\]"'):
        TensorBoardSink(tmp_path)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ModuleNotFoundError, match="pip install wandb"):
        wandb_sink(project="vcca")


class Recorder:
    """Stands for a run of Weights & Biases: ``step`` is the next one."""

    def __init__(self, step=0):
        self.step, self.logged, self.finished = step, [], False

    def log(self, content, step):
        self.logged.append((step, content))
        self.step = step + 1

    def finish(self):
        self.finished = True


def test_wandb_is_told_each_step_once_also_when_it_is_resumed(monkeypatch):
    asked, ours = [], Recorder()

    def init(**options):
        asked.append(options)
        return ours

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    sink = wandb_sink(project="vcca", id="heart")
    assert asked == [{"resume": "allow", "project": "vcca", "id": "heart"}]
    for step in (0, 1, 1):
        sink.write(step, {"loss": 1.0})
    sink.close()
    assert ours.logged == [(0, {"loss": 1.0}), (1, {"loss": 1.0})]
    assert ours.finished
    resumed = Recorder(step=2)
    again = WandbSink(resumed)
    for step in range(4):
        again.write(step, {"loss": 2.0})
    assert [step for step, _ in resumed.logged] == [2, 3]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that was never stopped, and what it told."""
    folder, kept = tmp_path_factory.mktemp("runs") / "whole", Kept()
    run(CONFIG, folder, sinks=[kept])
    return folder, kept


def test_a_run_tells_every_epoch_of_the_paid_seed_as_its_records_do(whole):
    folder, kept = whole
    assert [step for step, _ in kept] == [0, 1, 2]
    agents = [r for r in read_records(folder / "agents.jsonl") if r["seed"] == 0]
    metrics = [r for r in read_records(folder / "metrics.jsonl") if r["seed"] == 0]
    for step, told in kept:
        for record in (r for r in agents if r["epoch"] == step):
            assert told[f"credit/{record['agent']}"] == record["credit"]
        for record in (r for r in metrics if r["epoch"] == step):
            assert told[f"validation loss/{record['trainer']}"] == record["validation_loss"]
            if record["trainer"] == "cooperative":
                for value, loss in record["fresh_value_losses"].items():
                    assert told[f"fresh value losses/{value}"] == loss
    assert not any(name.startswith(("credit", "train loss")) for name in kept[0][1])
    assert len(kept[2][1]) == 3 + 3 + 3 + 2 * 4 + 3 * 4 + 1
    gains = [r["gain"] - r["carry_over"] for r in read_records(folder / "game.jsonl")]
    assert [told["credit/all together"] for _, told in kept[1:]] == gains


def test_only_the_paid_seed_is_told():
    agent = {"epoch": 1, "agent": "a", "steps": 2, "admissible_steps": 1, "removed": 0.5}
    records = {
        "metrics": [],
        "agents": [{**agent, "seed": seed, "credit": 1.0 + seed} for seed in (2, 0, 1)],
        "game": [],
    }
    assert scalars(records, 1) == {"credit/a": 1.0, "admitted/a": 0.5, "removed/a": 0.5}
    assert scalars(records, 2) == {}


@pytest.mark.slow
@pytest.mark.parametrize("lost", [False, True], ids=["checkpointed", "before its checkpoint"])
def test_a_killed_run_leaves_each_step_once(whole, tmp_path, lost):
    """Also where an epoch was told and the kill came before its checkpoint was complete."""
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    folder, place = tmp_path / "run", tmp_path / "board"

    def kill(done):
        if done == 2:
            raise Stop

    def begun(**options):
        sink = TensorBoardSink(place, about=CONFIG.canonical())
        try:
            run(CONFIG, folder, sinks=[sink], **options)
        finally:
            sink.close()

    with pytest.raises(Stop):
        begun(progress=kill)
    if lost:
        shutil.rmtree(folder / "checkpoints" / "2")
    begun()
    told = {tag: dict(pairs) for tag, pairs in board(place).items()}
    assert all(len(pairs) == len(told[tag]) for tag, pairs in board(place).items())
    for step, numbers in whole[1]:
        for tag, number in numbers.items():
            assert told[tag][step] == pytest.approx(number, rel=1e-6)


def test_a_finished_run_fills_a_sink_from_its_records(whole):
    folder, kept = whole
    late = Kept()
    run(CONFIG, folder, sinks=[late])
    assert late == kept
