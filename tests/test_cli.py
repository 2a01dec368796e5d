"""What a person meets at the command line, mistakes first."""

import errno
import json
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

from tests.run_examples import CONFIG, digests, edit_payout
from vcca_jax.cli import commands as cli
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


def invoke(*arguments, width=80):
    return runner.invoke(cli.app, [str(a) for a in arguments], env={"COLUMNS": str(width)})


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
    edited = edit_payout(path)
    for command in ("verify", "resume"):
        result = invoke(command, "demo", "--runs", tmp_path)
        assert result.exit_code == 1
        assert "Traceback" not in result.output
        assert path.read_bytes() == edited


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


OPPOSED = """
[profiles.cleveland]
protect = { women = 0.5, men = 0.0 }
forbid = { women = 0.25 }
trust_region = [{ values = ["women", "men", "oldest third"], radius = 0.1 }]
max_norm = 2.0
freeze = ["body"]
weight = 2.0

[profiles.hungarian]
forbid = { "sex told" = { price = 2.0 }, men = 0.1 }
within_angle = { women = 60.0 }

[profiles."va long beach"]
protect = { "sex told" = 1.0 }

[profiles.switzerland]
"""


@pytest.fixture(scope="module")
def opposed(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("profiles") / "opposed.toml"
    path.write_text(OPPOSED)
    return path


def rows(output: str) -> list[list[str]]:
    """The cells of a printed table's rows, in which two blanks part cells."""
    return [re.split(r"\s{2,}", line.strip()) for line in output.splitlines() if line.strip()]


@pytest.mark.parametrize("width", [80, 120])
def test_profiles_are_read_out_row_by_row_in_the_terminals_width(opposed, width):
    result = invoke("profiles", opposed, width=width)
    assert max(map(len, result.stdout.splitlines())) <= width
    assert "…" not in result.stdout
    told = rows(result.stdout)
    for row in (
        ["cleveland (weight 2)", "protect", "women", "margin 0.5", "none"],
        ["forbid", "women", "margin 0.25", "none"],
        ["max_norm", "the update", "2"],
        ["freeze", "body"],
        ["hungarian", "forbid", "sex told", "margin 0", "2"],
        ["within_angle", "women", "60°"],
        ["switzerland", "anything"],
    ):
        assert row in told
    assert "radius 0.1" in result.stdout


def test_contradictions_within_a_profile_are_pointed_out(opposed):
    result = invoke("profiles", opposed)
    assert result.exit_code == 1
    words = re.sub(r"\s+", " ", result.stdout)
    assert "no update is admissible" in words
    assert (
        "- 'women': cleveland (protect) asks to lower it by at least 0.5, cleveland (forbid) asks"
        " to raise it by at least 0.25" in words
    )
    assert "hungarian (" not in words
    assert "--scope everyone" in words


def test_contradictions_between_principals_are_pointed_out_under_the_scope_everyone(opposed):
    result = invoke("profiles", opposed, "--scope", "everyone", width=200)
    assert result.exit_code == 1
    told = re.sub(r"\s+", " ", result.stdout).split("- ")
    assert any("'men': cleveland (protect)" in t and "hungarian (forbid)" in t for t in told)
    assert any("hungarian (within_angle)" in t and "cleveland (forbid)" in t for t in told), told
    sold = result.stdout.index("what has a price gives way")
    assert result.stdout.index("'sex told': va long beach (protect)") > sold


def test_what_gives_way_for_a_price_is_told_and_is_no_failure(tmp_path):
    path = tmp_path / "sold.toml"
    path.write_text("[profiles.a]\nprotect = { x = 1.0 }\nforbid = { x = { price = 2 } }\n")
    result = invoke("profiles", path)
    assert result.exit_code == 0
    assert "what has a price gives way" in re.sub(r"\s+", " ", result.stdout)


def test_profiles_of_a_configuration_are_under_its_own_scope(config):
    result = invoke("profiles", config)
    assert result.exit_code == 0, result.output
    assert ["hungarian", "protect", "women", "margin 0", "none"] in rows(result.stdout)
    assert "no contradictions under the scope 'everyone'" in result.stdout


def test_normalised_profiles_are_a_file_of_profiles_again(opposed, config, tmp_path):
    for source in (opposed, config):
        once = invoke("profiles", source, "--toml")
        path = tmp_path / "again.toml"
        path.write_text(once.stdout)
        again = invoke("profiles", path, "--toml")
        assert again.stdout == once.stdout
    assert "\n[profiles.cleveland.protect]\nwomen = 0.0\nmen = 0.0\n" in "\n" + again.stdout


def test_profiles_as_json_hold_the_profiles_and_the_contradictions(opposed):
    result = invoke("profiles", opposed, "--json")
    assert result.exit_code == 1
    told = json.loads(result.stdout)
    assert told["scope"] == "own"
    assert told["profiles"]["hungarian"]["forbid"]["sex told"] == {"margin": 0.0, "price": 2.0}
    (found,) = told["contradictions"]
    assert found["principals"] == ["cleveland"]
    assert found["consequence"] == "nothing"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[profiles.a]\nprotect = { x = nan }", "profiles.a.protect.x.margin: "),
        ("[profiles.a]\nprevent = {}", "profiles.a.prevent: no such setting"),
        ("[profiles.a]\nfreeze = 'body'", "profiles.a.freeze: "),
        ("[profiles", "no valid TOML"),
        ("", "profiles: Field required"),
        ("[screening]\n[profiles.a]", "values: Field required"),
    ],
)
def test_bad_profiles_are_named_with_their_place(tmp_path, text, words):
    path = tmp_path / "bad.toml"
    path.write_text(text)
    result = invoke("profiles", path)
    assert result.exit_code == 2
    assert words in message(result)
    assert "Traceback" not in result.output


def test_profiles_that_the_study_cannot_have_are_refused(config, tmp_path):
    path = tmp_path / "bad.toml"
    for old, new, words in (
        ("[profiles.cleveland]", "[profiles.clevland]", "clevland"),
        ("[profiles.cleveland]", '[profiles.cleveland]\nfreeze = ["tail"]', "freezes 'tail'"),
    ):
        path.write_text(config.read_text().replace(old, new))
        result = invoke("profiles", path)
        assert result.exit_code == 2
        assert words in message(result)


def test_profiles_are_printed_in_one_way_at_a_time(opposed, tmp_path):
    both = invoke("profiles", opposed, "--json", "--toml")
    assert both.exit_code == 2
    assert "choose one" in message(both)
    absent = invoke("profiles", tmp_path / "none.toml")
    assert absent.exit_code == 2
    assert "there is no configuration or file of profiles at" in message(absent)


def test_help_shows_an_example():
    for command in ("run", "resume", "report", "verify", "profiles"):
        result = invoke(command, "--help")
        assert result.exit_code == 0
        assert f"vcca-jax {command}" in result.output


@pytest.mark.slow
def test_killed_at_any_moment_it_resumes_to_the_same_bytes(config, runs, tmp_path):
    """Real kills, at ten moments spread over the run's own duration."""
    command = [sys.executable, "-m", "vcca_jax", "run", str(config), "--name", "demo", "-q"]
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
