"""What programs meet at the command line: exit codes, JSON, progress, sinks, completion, versions.

Training is left out: a run that was made by hand is reported and verified, and ``run`` is stood
for by a function that tells its progress and its sinks.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.report_examples import EPOCHS, made_run
from tests.run_examples import CONFIG, edit_payout
from vcca_jax import __version__
from vcca_jax import runs as package
from vcca_jax.cli import commands as cli
from vcca_jax.cli import console
from vcca_jax.ledger import Ledger
from vcca_jax.runs import read_results

COMMANDS = (
    *(("run",), ("resume",), ("report",), ("verify",), ("profiles",)),
    *(("ledger", name) for name in ("verify", "replay", "statement", "export")),
)


def invoke(*arguments, **environment):
    return CliRunner().invoke(
        cli.app,
        [str(a) for a in arguments],
        env={"COLUMNS": "80", **environment},
        prog_name="vcca-jax",
    )


def words(text: str) -> str:
    return re.sub(r"\s+", " ", text)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    made_run(folder / "demo", ["ana", "ben"], ["women"])
    return folder


@pytest.fixture
def quick(monkeypatch, runs):
    """``run`` that trains nothing; returns what it was called with."""
    called = []

    def stand_in(config, folder, *, progress, sinks):
        called.append((config, folder))
        for epoch in range(4):
            for sink in sinks:
                sink.write(epoch, {"loss": 1.0 / (1 + epoch)})
            progress(epoch)
            time.sleep(0.01)
        return read_results(runs / "demo")

    monkeypatch.setattr(package, "run", stand_in)
    monkeypatch.setattr("vcca_jax.compilation.keep_compiled", lambda: None)
    return called


def told(result) -> dict:
    """The one object on standard output."""
    assert result.stdout.count("\n") == 1
    return json.loads(result.stdout)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_of_every_command_shows_an_example_that_can_be_called(command):
    result = invoke(*command, "--help")
    assert result.exit_code == 0
    examples = re.findall(r"Example: (.*?)(?= Example:|$)", words(result.stdout).strip())
    assert examples
    assert all(example.startswith(f"vcca-jax {' '.join(command)} ") for example in examples)
    options = set(re.findall(r"--[a-z]+", " ".join(examples)))
    assert options <= set(re.findall(r"--[a-z]+", result.stdout.split("Example:")[0]))


def test_exit_codes_are_documented():
    for command in ((), ("ledger",)):
        assert console.EXIT_CODES in words(invoke(*command, "--help").stdout)
    assert (console.FAILED, console.MISTAKEN, console.INTERRUPTED) == (1, 2, 130)


def test_the_version_is_told():
    result = invoke("--version")
    assert result.exit_code == 0
    assert result.stdout.startswith(f"vcca-jax {__version__} (jax ")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("report", "dome"), "there is no run 'dome'"),
        (("report", "demo", "--out", "x.pdf"), "must end in .html"),
        (("report", "demo", "--oot", "x.html"), "No such option"),
        (("verify",), "Missing argument"),
        (("run", "none.toml"), "there is no configuration"),
    ],
)
def test_what_cannot_be_ends_with_two(runs, arguments, says):
    result = invoke(*arguments, "--runs", runs)
    assert result.exit_code == 2
    assert says in words(result.stderr)
    assert result.stdout == ""


def test_a_sound_run_ends_with_zero_and_says_so_in_json(runs):
    with Ledger.open(runs / "demo" / "ledger.sqlite", create=False, read_only=True) as ledger:
        head = ledger.head()
    whole = {"ok": True, "entries": EPOCHS + 1, "settlements": EPOCHS, "head": head}
    for command in (("verify",), ("ledger", "verify")):
        result = invoke(*command, "demo", "--runs", runs, "--json")
        assert result.exit_code == 0
        assert told(result) == whole
        assert result.stderr == ""
    results = {"ok": True, "run": str(runs / "demo"), **read_results(runs / "demo")}
    assert told(invoke("report", "demo", "--runs", runs, "--json")) == results


def test_damage_ends_with_one_and_says_so_in_json(runs, tmp_path):
    shutil.copytree(runs / "demo", tmp_path / "demo")
    path = tmp_path / "demo" / "ledger.sqlite"
    edit_payout(path)
    page = tmp_path / "page.html"
    for command in (("verify", "demo"), ("report", "demo", "--out", page)):
        result = invoke(*command, "--runs", tmp_path, "--json")
        assert result.exit_code == 1
        said = told(result)
        assert (said["ok"], said["exit_code"]) == (False, 1)
        assert words(said["error"]) in words(result.stderr)
    assert not page.exists()


@pytest.mark.parametrize(
    ("name", "commands"),
    [
        ("results.json", (("report", "demo"), ("verify", "demo"))),
        ("agents.jsonl", (("ledger", "statement", "ana", "demo"), ("ledger", "replay", "demo"))),
        ("config.json", (("verify", "demo"), ("resume", "demo"), ("ledger", "verify", "demo"))),
    ],
)
@pytest.mark.parametrize("damage", [lambda text: text[:500], lambda text: "[]\n"])
def test_damaged_files_of_a_run_are_named_and_end_with_one(runs, tmp_path, name, commands, damage):
    shutil.copytree(runs / "demo", tmp_path / "demo")
    path = tmp_path / "demo" / name
    path.write_text(damage(path.read_text()))
    for command in commands:
        result = invoke(*command, "--runs", tmp_path)
        assert result.exit_code == 1
        assert f"{path} is damaged" in words(result.stderr)
    assert invoke("ledger", "export", "demo", "--runs", tmp_path).exit_code == (
        1 if name == "config.json" else 0
    )


def test_money_has_the_decimals_of_the_runs_currency_unless_others_are_asked_for(tmp_path):
    made_run(tmp_path / "demo", ["ana", "ben"], ["women"], currency="JPY", decimals=0)
    for command, own, asked in (
        (("report", "demo"), "3,000,000", "3,000.000"),
        (("ledger", "replay", "demo"), "1,000,000 JPY", "1,000.000 JPY"),
        (("ledger", "export", "demo", "--format", "beancount"), "1000000 JPY", "1000.000 JPY"),
    ):
        for digits, shown in (((), own), (("--decimals", 3), asked)):
            result = invoke(*command, *digits, "--runs", tmp_path)
            assert result.exit_code == 0
            assert shown in result.stdout


def test_a_report_is_written_where_it_was_asked_for(runs, tmp_path):
    page = tmp_path / "new" / "page.html"
    result = invoke("report", "demo", "--runs", runs, "--out", page)
    assert result.exit_code == 0
    assert words(result.stdout) == f"the report is in {page} "
    assert "<h1>Report of the run demo</h1>" in page.read_text(encoding="utf-8")


def test_a_run_prints_its_results_as_one_object_and_its_progress_beside_them(runs, quick, tmp_path):
    result = invoke("run", CONFIG, "--name", "a", "--runs", tmp_path, "--json")
    assert result.exit_code == 0, result.output
    assert told(result) == {"ok": True, "run": str(tmp_path / "a"), **read_results(runs / "demo")}
    assert re.search(r"3/20 epochs, \d+\.\d/s", words(result.stderr))
    assert quick[0][1] == tmp_path / "a"
    silent = invoke("run", CONFIG, "--name", "a", "--runs", tmp_path, "--json", "--quiet")
    assert told(silent) == told(result)
    assert silent.stderr == ""
    nothing = invoke("run", CONFIG, "--name", "a", "--runs", tmp_path, "--quiet")
    assert nothing.output == ""


@pytest.mark.parametrize(
    ("speed", "words"), [(None, ""), (0, ""), (3.21, ", 3.2/s"), (0.25, ", 4.0 s each")]
)
def test_the_rate_is_told_in_the_unit_that_reads_well(speed, words):
    assert cli._rate(speed) == words


def test_tensorboard_gets_a_folder_of_the_runs_name(quick, tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    options = ("--runs", tmp_path / "runs", "--tensorboard", tmp_path / "boards", "-q")
    assert invoke("run", CONFIG, "--name", "a", *options).exit_code == 0
    assert invoke("run", CONFIG, "--name", "b", *options).exit_code == 0
    assert sorted(p.name for p in (tmp_path / "boards").iterdir()) == ["a", "b"]
    other = tmp_path / "other.toml"
    other.write_text(CONFIG.read_text().replace("learning_rate = 0.1", "learning_rate = 0.2"))
    refused = invoke("run", other, "--name", "a", *options)
    assert refused.exit_code == 2
    assert "another configuration" in words(refused.stderr)


def test_without_tensorboard_the_remedy_is_named(quick, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard.compat.proto.event_pb2", None)
    result = invoke("run", CONFIG, "--runs", tmp_path, "--tensorboard", tmp_path / "boards")
    assert result.exit_code == 1
    assert 'pip install "vcca_jax[tensorboard]"' in words(result.stderr)
    assert quick == []


def test_an_interrupted_run_says_how_to_go_on_and_ends_with_130(monkeypatch, tmp_path):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(package, "run", interrupted)
    monkeypatch.setattr("vcca_jax.compilation.keep_compiled", lambda: None)
    result = invoke("run", CONFIG, "--name", "a", "--runs", tmp_path, "--json")
    assert result.exit_code == 130
    assert f"stopped; go on with: vcca-jax resume a --runs {tmp_path}" in words(result.stderr)
    assert told(result)["exit_code"] == 130


def test_shells_are_offered_commands_and_runs(runs):
    def offered(line):
        arguments = line.split(" ")
        result = invoke(
            _VCCA_JAX_COMPLETE="complete_bash",
            COMP_WORDS=line,
            COMP_CWORD=str(len(arguments) - 1),
            _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1",
        )
        return result.stdout.split()

    assert "--install-completion" in invoke("--help").stdout
    assert offered("vcca-jax re") == ["resume", "report"]
    assert offered(f"vcca-jax verify --runs {runs} d") == ["demo"]
    assert offered(f"vcca-jax verify --runs {runs} x") == []


@pytest.mark.slow
def test_a_real_interrupt_keeps_what_was_settled(tmp_path):
    # Where the tests run in the background, interrupts are ignored, and children inherit that.
    program = (
        "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
        " runpy.run_module('vcca_jax', run_name='__main__')"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, *f"run {CONFIG} --runs {tmp_path} --name a --json".split()],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    ledger = tmp_path / "a" / "ledger.sqlite"
    limit = time.monotonic() + 300
    while not (ledger.exists() and os.path.getsize(ledger)) and time.monotonic() < limit:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 130, stderr
    assert json.loads(stdout)["exit_code"] == 130
    assert b"Traceback" not in stderr
    assert invoke("verify", "a", "--runs", tmp_path).exit_code == 0
