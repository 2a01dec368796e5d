"""A run's folder from outside: read while it is written, locked, cut short, changed, added to."""

import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from tests.run_examples import CONFIG, digests, smoke
from tests.test_runs import Stop
from vcca_jax.ledger import Ledger
from vcca_jax.runs import ConfigError, RunConfig, RunError, read_results, run, stored_config
from vcca_jax.runs import verify_run as verified
from vcca_jax.runs.lock import working_on
from vcca_jax.runs.measures import money, payout_records
from vcca_jax.runs.records import read_records, write_records
from vcca_jax.runs.report import report_page
from vcca_jax.runs.settling import replay_run


def short(**settlement) -> RunConfig:
    """Four epochs of one seed, settled after every second."""
    content = smoke(epochs=4, seeds=1).model_dump()
    content["settlement"] |= {"epochs_per_period": 2, **settlement}
    content["credit"] = {"estimator": "first_order"}
    return RunConfig.model_validate(content)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory) -> Path:
    """A run that was stopped after its third epoch, in the midst of a period."""
    folder = tmp_path_factory.mktemp("runs") / "stopped"

    def stop(epoch):
        if epoch == 3:
            raise Stop

    with pytest.raises(Stop):
        run(short(), folder, progress=stop)
    return folder


@pytest.fixture(scope="module")
def finished(stopped, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "finished"
    shutil.copytree(stopped, folder)
    run(short(), folder)
    return folder


@pytest.fixture
def copy(tmp_path):
    def copied(folder: Path) -> Path:
        return Path(shutil.copytree(folder, tmp_path / "copy"))

    return copied


def test_reading_leaves_a_save_under_way_alone(stopped, copy):
    folder = copy(stopped)
    under_way = folder / "checkpoints" / "4.orbax-checkpoint-tmp"
    shutil.copytree(folder / "checkpoints" / "3", under_way)
    before = sorted(folder.rglob("*"))
    assert verified(folder).settlements == 1
    assert sorted(folder.rglob("*")) == before


def test_one_process_works_on_a_folder(finished, copy):
    folder = copy(finished)
    before = digests(folder)
    with working_on(folder), pytest.raises(RunError, match="another process is working on"):
        run(short(), folder)
    assert digests(folder) == before
    assert verified(folder).settlements == 2
    with working_on(folder):  # reading needs no lock
        assert verified(folder).settlements == 2


def test_a_process_that_dies_holds_nothing(tmp_path):
    program = (
        "import os, sys, pathlib; from vcca_jax.runs.lock import working_on\n"
        "with working_on(pathlib.Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        cwd=CONFIG.parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(RunError, match="another process"), working_on(tmp_path):
            pass
        other.kill()
    with working_on(tmp_path):
        pass


def without_a_record(lines: list[dict]) -> list[dict]:
    return [r for r in lines if (r.get("agent"), r["epoch"]) != ("cleveland", 3)]


def with_other_credit(lines: list[dict]) -> list[dict]:
    return [{**r, "credit": 5.0} if r["epoch"] == 1 else r for r in lines]


def with_other_gain(lines: list[dict]) -> list[dict]:
    return [{**r, "gain": 2 * r["gain"]} for r in lines]


@pytest.mark.parametrize(
    ("name", "change"),
    [("agents", without_a_record), ("agents", with_other_credit), ("game", with_other_gain)],
)
def test_records_that_were_changed_are_found_before_anything_is_settled(
    stopped, finished, tmp_path, name, change
):
    for k, (source, act) in enumerate(((stopped, partial(run, short())), (finished, verified))):
        folder = Path(shutil.copytree(source, tmp_path / str(k)))
        path = folder / f"{name}.jsonl"
        write_records(path, change(read_records(path)))
        before = digests(folder)
        with pytest.raises(RunError, match=rf"{name}\.jsonl is not what it was at the check"):
            act(folder)
        assert digests(folder) == before


def test_an_entry_holds_the_digest_of_what_was_settled(finished, copy, tmp_path):
    with Ledger.open(finished / "ledger.sqlite", read_only=True) as ledger:
        entries = list(ledger.entries())
    evidence = [e.content["evidence"] for e in entries if e.kind == "settle"]
    assert len(set(evidence)) == 2
    assert all(len(each) == 64 for each in evidence)
    assert replay_run(finished, tmp_path / "a.sqlite") == [entry.hash for entry in entries]
    # Records that settle to the same money are still not those that it was settled on.
    folder = copy(finished)
    records = read_records(folder / "agents.jsonl")
    write_records(folder / "agents.jsonl", [{**r, "removed": 0.0} for r in records])
    again = replay_run(folder, tmp_path / "b.sqlite")
    assert again[0] == entries[0].hash
    assert again[1] != entries[1].hash


def test_what_was_entered_by_hand_is_in_the_records(finished, copy):
    folder = copy(finished)
    with Ledger.open(folder / "ledger.sqlite") as ledger:
        ledger.settle("bonus", {"cleveland": 0.5, "hungarian": 0.25}, 900)
        ledger.reverse(1, "the revenue was another")
        balances, head = ledger.balances(), ledger.head()
    results = run(short(), folder)
    assert results["ledger_head"] == head
    assert results["revenue"] == 1_000_900
    paid = sum(row["payout"] for row in results["agents"])
    assert paid + results["reserve"] + results["carried"] == results["revenue"]
    records = read_records(folder / "payouts.jsonl")
    last = {record["principal"]: record["balance"] for record in records}
    assert {name: last[name] for name in balances} == balances
    for name, balance in balances.items():
        assert sum(r["paid"] for r in records if r["principal"] == name) == balance
    assert {r["period"] for r in records} == {"1", "2", "bonus"}
    assert {r["period"] for r in records if r["kind"] == "reverse"} == {"1"}


def test_a_run_goes_on_past_what_was_entered_by_hand(stopped, copy, tmp_path):
    folder = copy(stopped)
    with Ledger.open(folder / "ledger.sqlite") as ledger:
        ledger.settle("bonus", {"cleveland": -0.1, "hungarian": 0.3}, 901, gain=0.5, carry_over=0.1)
        ledger.reverse(1, "other records")
        ledger.settle(1, {"switzerland": 0.1}, 500, stream="licence")
        ledger.settle(1, {"switzerland": 0.1}, 700)
        ledger.join("a guest")
    results = run(short(), folder)
    assert results["revenue"] == 901 + 500 + 700 + 1_000_000
    with Ledger.open(folder / "ledger.sqlite", read_only=True) as ledger:
        hashes = [entry.hash for entry in ledger.entries()]
    assert replay_run(folder, tmp_path / "again.sqlite") == hashes
    assert verified(folder).head == hashes[-1]
    assert (folder / "figures" / "cumulative_payout.png").is_file()


def test_the_terms_of_the_settlement_are_the_ledgers(tmp_path):
    """And yen, which have no decimals, are told in whole numbers."""
    rule = {"name": "power", "exponent": 0.5, "of": "per_period"}
    terms = {"rule": rule, "rounding": "running_floor", "release_lag": 1}
    config = short(**terms, currency="JPY", decimals=0)
    results = run(config, tmp_path / "run")
    page = report_page(tmp_path / "run")
    for row in results["agents"]:
        assert f'value="{row["payout"]}">{row["payout"]:,}<' in page
        assert f"{row['payout'] / 100:,.2f}" not in page
    with Ledger.open(tmp_path / "run" / "ledger.sqlite", read_only=True) as ledger:
        terms, accounts, entries = ledger.terms, ledger.accounts(), list(ledger.entries())
        assert money(ledger) == {name: results[name] for name in money(ledger)}
        records = payout_records(ledger)
    assert terms.rule == {"rule": "power", "exponent": "1/2", "of": {"rule": "per_period"}}
    assert (terms.rounding, terms.release_lag) == ("running_floor", 1)
    assert "release" in {entry.kind for entry in entries}
    held = {row["agent"]: row["held"] for row in results["agents"]}
    assert held == {name: accounts[f"escrow:{name}"] for name in held}
    assert sum(record["held"] for record in records) == results["escrow"] == sum(held.values())
    whole = ("escrow", "dust", "reserve", "carried")
    paid = sum(row["payout"] for row in results["agents"])
    assert paid + sum(results[name] for name in whole) == results["revenue"] == 2_000_000
    hashes = [entry.hash for entry in entries]
    assert replay_run(tmp_path / "run", tmp_path / "again.sqlite") == hashes


@pytest.mark.parametrize("name", ["metrics", "agents", "game"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:500] if len(text) > 500 else text[:90],
        lambda text: "[]\n" + text,
        lambda text: text.replace('"epoch": ', '"epok": ', 1),
        lambda text: text.replace('"seed": 0', '"seed": "0"', 1),
        lambda text: text.replace('"seed": 0', '"seed": NaN', 1),
    ],
)
def test_damaged_records_are_named_with_their_line(finished, copy, name, damage, tmp_path):
    folder = copy(finished)
    path = folder / f"{name}.jsonl"
    path.write_text(damage(path.read_text()))
    before = digests(folder)
    acts = [lambda: verified(folder)]
    if name != "metrics":
        acts.append(lambda: replay_run(folder, tmp_path / "again.sqlite"))
    for act in acts:
        with pytest.raises(RunError, match=rf"{name}\.jsonl is damaged at line \d+ \("):
            act()
    assert digests(folder) == before


@pytest.mark.parametrize("text", ["", "[]", "{", '{"agents": []}', "\xff"])
def test_damaged_results_and_configurations_are_told_and_results_are_mended(finished, copy, text):
    folder = copy(finished)
    (folder / "results.json").write_text(text)
    with pytest.raises(RunError, match=r"results\.json is damaged .* anew with: vcca-jax resume"):
        read_results(folder)
    if text == "[]":
        run(short(), folder)
        assert digests(folder) == digests(finished)
    (folder / "config.json").write_text(text)
    with pytest.raises(RunError, match=r"config\.json is damaged, or of another version"):
        stored_config(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ConfigError, match="there is no run"):
        stored_config(folder)
