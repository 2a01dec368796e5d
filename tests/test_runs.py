"""The whole main job at smoke size: equal bytes twice, and after being stopped anywhere."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.run_examples import digests, smoke
from vcca_jax.ledger import Ledger, LedgerError
from vcca_jax.runs import (
    RunError,
    read_results,
    run,
    stored_config,
    verify_run,
)
from vcca_jax.statements import money


class Stop(Exception):
    """Stands for a kill: nothing in the run catches it."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    run(smoke(), folder)
    return folder


def test_a_run_leaves_all_it_promises(finished):
    names = set(digests(finished))
    assert names == {
        ".lock",
        "config.json",
        "metrics.jsonl",
        "agents.jsonl",
        "game.jsonl",
        "payouts.jsonl",
        "results.json",
        "ledger.sqlite",
        *(
            f"figures/{name}.png"
            for name in (
                "loss_against_centralized",
                "value_losses",
                "value_losses_on_validation_rows",
                "admissibility",
                "cumulative_credit",
                "cumulative_payout",
            )
        ),
    }
    assert stored_config(finished) == smoke()


def test_the_money_adds_up_and_follows_the_credit(finished):
    results = read_results(finished)
    paid = sum(row["payout"] for row in results["agents"])
    assert paid + results["reserve"] + results["carried"] == results["revenue"] == 3_000_000
    agents = [json.loads(line) for line in (finished / "agents.jsonl").read_text().splitlines()]
    with Ledger.open(finished / "ledger.sqlite", create=False, read_only=True) as ledger:
        scores = ledger.scores()
    for row in results["agents"]:
        own = [r["credit"] for r in agents if r["agent"] == row["agent"] and r["seed"] == 0]
        assert row["credit"] == pytest.approx(sum(own))
        assert scores[row["agent"]] == pytest.approx(row["credit"] * 2**40, rel=1e-9)


def test_credit_and_carry_over_account_for_the_fall_of_the_utility(finished):
    """Over a whole run of plain SGD the gains telescope to the fall of the validation loss."""
    game = [json.loads(line) for line in (finished / "game.jsonl").read_text().splitlines()]
    metrics = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    for seed in range(2):
        own = [r for r in metrics if r["trainer"] == "cooperative" and r["seed"] == seed]
        fall = own[0]["validation_loss"] - own[-1]["validation_loss"]
        gains = [r for r in game if r["seed"] == seed]
        assert sum(r["gain"] for r in gains) == pytest.approx(fall, abs=2e-6)
        assert all(r["carry_over"] == 0 for r in gains)
        assert abs(sum(r["residual"] for r in gains)) < 1e-5


def test_unscreened_traversal_is_centralized_training(finished):
    metrics = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    losses = {
        name: [r["validation_loss"] for r in metrics if r["trainer"] == name]
        for name in ("unscreened", "centralized")
    }
    np.testing.assert_allclose(losses["unscreened"], losses["centralized"], rtol=1e-6)


def test_again_gives_the_same_bytes(finished, tmp_path, monkeypatch):
    """And no epoch is settled before the checkpoint of the one before it is complete."""
    import sys

    module, events = sys.modules["vcca_jax.runs.run"], []

    def noted(name, function):
        def noting(*arguments, **options):
            result = function(*arguments, **options)
            events.append(name)
            return result

        return noting

    with monkeypatch.context() as patch:
        for owner, name in (
            (module, "settle_period"),
            (module.Checkpoints, "save"),
            (module.Checkpoints, "wait"),
        ):
            patch.setattr(owner, name, noted(name, getattr(owner, name)))
        run(smoke(), tmp_path / "again")
    settled = [at for at, name in enumerate(events) if name == "settle_period"]
    assert len(settled) == 3
    assert all(events[at - 1] == "wait" for at in settled)
    assert digests(tmp_path / "again") == digests(finished)
    run(smoke(), tmp_path / "again")  # a finished run started once more changes nothing
    assert digests(tmp_path / "again") == digests(finished)


@pytest.mark.parametrize("where", ["settled", "recorded", "saved"])
def test_stopped_and_resumed_gives_the_same_bytes(finished, tmp_path, monkeypatch, where):
    """Stopped in the second epoch: after the settlement, amid the records, after the checkpoint."""
    import sys

    module = sys.modules["vcca_jax.runs.run"]
    folder = tmp_path / "stopped"
    calls = []

    def stop_at(count: int, function):
        def stopping(*arguments, **options):
            result = function(*arguments, **options)
            calls.append(1)
            if len(calls) == count:
                raise Stop
            return result

        return stopping

    owner, name, count = {
        "settled": (module, "settle_period", 2),
        "recorded": (module, "write_records", 5),
        "saved": (module.Checkpoints, "save", 2),
    }[where]
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, stop_at(count, getattr(owner, name)))
        with pytest.raises(Stop):
            run(smoke(), folder)
    done = []
    run(smoke(), folder, progress=done.append)
    assert done[0] == (2 if where == "saved" else 1)
    assert digests(folder) == digests(finished)


def test_another_configuration_is_refused_in_the_same_folder(finished):
    before = digests(finished)
    with pytest.raises(RunError, match="another configuration"):
        run(smoke(learning_rate=0.5), finished)
    assert digests(finished) == before


def test_a_run_that_diverges_says_so(tmp_path):
    with pytest.raises(RunError, match="learning_rate"):
        run(smoke(learning_rate=1e38, epochs=2, seeds=1), tmp_path / "wild")


def test_a_folder_with_other_things_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(RunError, match="holds no run"):
        run(smoke(), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_verify_finds_a_ledger_that_was_cut_short(finished, tmp_path):
    """A ledger rebuilt with one settlement fewer is whole in itself; the kept heads tell."""
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    assert verify_run(copy).settlements == 3
    with Ledger.open(copy / "ledger.sqlite", create=False, read_only=True) as ledger:
        entries = [entry.content for entry in ledger.entries()]
        terms = ledger.terms
    (copy / "ledger.sqlite").unlink()
    with Ledger.open(
        copy / "ledger.sqlite",
        run=terms.run,
        config=terms.config,
        principals=terms.principals,
        currency=terms.currency,
    ) as shorter:
        first = next(entry for entry in entries if entry["kind"] == "settle")
        shorter.settle(1, {k: int(v) / 2**40 for k, v in first["credits"].items()}, 1_000_000)
    with pytest.raises(LedgerError, match="head"):
        verify_run(copy)


def test_test_rows_are_looked_at_only_at_the_end(tmp_path, monkeypatch):
    """A run whose test rows were replaced by noise makes the same choices and payments."""
    import sys

    from vcca_jax import datasets

    problem_module = sys.modules["vcca_jax.runs.problem"]
    original = datasets.heart_disease

    def corrupted(**options):
        study = original(**options)
        noise = np.random.default_rng(0).normal(size=study.test.inputs.shape).astype(np.float32)
        return study._replace(test=study.test._replace(inputs=noise))

    results = []
    for name in ("clean", "corrupted"):
        if name == "corrupted":
            monkeypatch.setattr(problem_module.datasets, "heart_disease", corrupted)
        results.append(run(smoke(epochs=1), tmp_path / name))
    clean, noisy = results
    assert clean["agents"] == noisy["agents"]
    assert clean["ledger_head"] == noisy["ledger_head"]
    assert clean["test"] != noisy["test"]


@pytest.mark.parametrize(
    ("units", "words"),
    [(0, "0.00"), (5, "0.05"), (-123456, "-1,234.56"), (2**63 - 1, "92,233,720,368,547,758.07")],
)
def test_money_is_written_exactly(units, words):
    assert money(units) == words
