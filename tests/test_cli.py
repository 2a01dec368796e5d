"""What a person meets at the command line, mistakes first."""

import errno
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.test_runs import CONFIG, digests
from vcca_jax import cli
from vcca_jax.runs import load_config

runner = CliRunner()


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("config") / "smoke.toml"
    words = CONFIG.read_text()
    for old, new in (
        ("hidden = [16, 8]", "hidden = [4]"),
        ("epochs = 20", "epochs = 2"),
        ("seeds = 5", "seeds = 1"),
        ("batch_size = 64", "batch_size = 256"),
    ):
        assert old in words
        words = words.replace(old, new)
    path.write_text(words)
    return path


@pytest.fixture(scope="module")
def runs(config, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    result = invoke("run", config, "--name", "demo", "--runs", folder)
    assert result.exit_code == 0, result.output
    return folder


def invoke(*arguments):
    return runner.invoke(cli.app, [str(a) for a in arguments], env={"COLUMNS": "80"})


def message(result) -> str:
    """The error text, its line ends folded."""
    return re.sub(r"\s+", " ", result.stderr)


def test_report_prints_whole_numbers_in_eighty_columns(runs):
    result = invoke("report", "demo", "--runs", runs)
    assert result.exit_code == 0
    assert "cleveland" in result.output
    assert "va long beach" in result.output
    assert "20,000.00" in result.output  # two periods' revenue
    assert "…" not in result.output.replace("… ", "").replace("…\n", "") or "head" in result.output
    assert max(len(line) for line in result.output.splitlines() if "runs" not in line) <= 80


def test_verify_tells_that_the_ledger_is_whole(runs):
    result = invoke("verify", "demo", "--runs", runs)
    assert result.exit_code == 0
    assert "2 settlements" in result.output


def test_resume_of_a_finished_run_changes_nothing(runs):
    before = digests(runs / "demo")
    result = invoke("resume", "demo", "--runs", runs, "--quiet")
    assert result.exit_code == 0, result.output
    assert result.output == ""
    assert digests(runs / "demo") == before


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (("seeds = 1", "seeds = 0"), "training.seeds"),
        (("seeds = 1", "sedes = 1"), "training.sedes: no such setting"),
        (("[profiles.cleveland]", "[profiles.clevland]"), "clevland"),
        (("women = 0.0, men", "wimmin = 0.0, men"), "wimmin"),
        (('group = "women"', 'group = "girls"'), "girls"),
        (('probe = "sex"', 'probe = "age"'), "binary attribute"),
        (("cut = 1", "cut = 2"), "cut=2 does not exist"),
        (("epochs_per_period = 1", "epochs_per_period = 3"), "does not divide"),
        (("revenue = 1_000_000", "revenue = -5"), "settlement.revenue"),
        (("revenue = 1_000_000", "revenue = 1.5"), "settlement.revenue"),
        (("learning_rate = 0.1", "learning_rate = nan"), "training.learning_rate"),
        (("[data]", "[data"), "no valid TOML"),
    ],
)
def test_a_bad_configuration_is_named_with_its_place(config, tmp_path, edit, words):
    text = config.read_text()
    assert edit[0] in text
    bad = tmp_path / "bad.toml"
    bad.write_text(text.replace(*edit))
    result = invoke("run", bad, "--runs", tmp_path / "runs")
    assert result.exit_code == 2
    assert words in message(result)
    assert "Traceback" not in result.output
    assert not list(tmp_path.glob("runs/*/*"))


def test_absent_things_are_named(runs, tmp_path):
    absent = invoke("run", tmp_path / "none.toml")
    assert absent.exit_code == 2
    assert "there is no configuration" in message(absent)
    stranger = invoke("verify", "dome", "--runs", runs)
    assert stranger.exit_code == 2
    assert "['demo']" in message(stranger)
    outside = invoke("report", "../demo", "--runs", runs)
    assert outside.exit_code == 2
    assert "plain folder name" in message(outside)


def test_another_configuration_does_not_continue_a_run(config, runs, tmp_path):
    other = tmp_path / "other.toml"
    other.write_text(config.read_text().replace("learning_rate = 0.1", "learning_rate = 0.2"))
    result = invoke("run", other, "--name", "demo", "--runs", runs)
    assert result.exit_code == 1
    assert "another configuration" in message(result)


def test_a_corrupt_ledger_is_refused_and_left_as_it_is(runs, tmp_path):
    shutil.copytree(runs / "demo", tmp_path / "demo")
    path = tmp_path / "demo" / "ledger.sqlite"
    content = bytearray(path.read_bytes())
    # A digit of a stored payout, the kind of edit that a thief would make.
    place = content.index(b'"postings"')
    place = next(i for i in range(place, len(content)) if chr(content[i]) in "123456789")
    content[place] ^= 1
    path.write_bytes(bytes(content))
    for command in ("verify", "resume"):
        result = invoke(command, "demo", "--runs", tmp_path)
        assert result.exit_code == 1
        assert "Traceback" not in result.output
        assert path.read_bytes() == bytes(content)


def test_a_foreign_ledger_is_refused(runs, tmp_path):
    shutil.copytree(runs / "demo", tmp_path / "demo")
    path = tmp_path / "demo" / "ledger.sqlite"
    path.unlink()
    with sqlite3.connect(path) as connection:
        connection.execute("create table songs (title text)")
    connection.close()
    before = path.read_bytes()
    result = invoke("resume", "demo", "--runs", tmp_path)
    assert result.exit_code == 1
    assert "ledger" in message(result)
    assert path.read_bytes() == before


def test_a_full_disk_is_told_and_the_run_goes_on_later(config, runs, tmp_path, monkeypatch):
    module = sys.modules["vcca_jax.runs.run"]

    def full(path, records):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_records", full)
        result = invoke("run", config, "--name", "demo", "--runs", tmp_path)
    assert result.exit_code == 1
    assert "the disk is full" in message(result)
    assert invoke("run", config, "--name", "demo", "--runs", tmp_path).exit_code == 0
    assert digests(tmp_path / "demo") == digests(runs / "demo")


def test_help_shows_an_example():
    for command in ("run", "resume", "report", "verify"):
        result = invoke(command, "--help")
        assert result.exit_code == 0
        assert f"vcca-jax {command}" in result.output


@pytest.mark.slow
def test_killed_at_any_moment_it_resumes_to_the_same_bytes(config, runs, tmp_path):
    """Real kills, at ten moments spread over the run's own duration."""
    command = [sys.executable, "-m", "vcca_jax.cli", "run", str(config), "--name", "demo", "-q"]
    begun = time.monotonic()
    subprocess.run([*command, "--runs", str(tmp_path / "whole")], check=True)
    lasts = time.monotonic() - begun
    assert digests(tmp_path / "whole" / "demo") == digests(runs / "demo")
    for k in range(10):
        folder = tmp_path / f"killed {k}"
        process = subprocess.Popen([*command, "--runs", str(folder)])
        try:
            process.wait(timeout=lasts * (k + 1) / 11)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
        subprocess.run([*command, "--runs", str(folder)], check=True)
        assert digests(folder / "demo") == digests(runs / "demo")


def test_the_configuration_of_the_main_job_is_valid():
    assert load_config(CONFIG).training.seeds >= 5
