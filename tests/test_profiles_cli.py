"""``vcca-jax profiles``: what it reads out, where it sees contradictions, and how it ends."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vcca_jax.cli.commands import app

HEART = Path(__file__).parent.parent / "experiments" / "heart" / "config.toml"
STATED = """
[profiles.ana]
protect = { women = 0.1, men = { margin = 0.0, price = 2.0 } }
max_norm = 0.5
within_angle = { women = 60.0 }
freeze = ["body"]

[profiles.ben]
forbid = { women = 0.0 }
trust_region = [{ values = ["women", "men"], radius = 0.1 }]
weight = 2.0

[profiles.cem]
"""


@pytest.fixture
def told(tmp_path, monkeypatch):
    """Run the command on a file with this text, at a width."""

    def run(text, *options, width=120):
        monkeypatch.setenv("COLUMNS", str(width))
        path = tmp_path / "profiles.toml"
        path.write_text(text)
        return CliRunner().invoke(app, ["profiles", str(path), *options])

    return run


@pytest.mark.parametrize("width", [80, 120])
def test_it_reads_every_constraint_out(told, width):
    result = told(STATED, width=width)
    assert result.exit_code == 0, result.output
    for words in ("protect", "max_norm", "60°", "freeze", "weight 2", "radius 0.1", "anything"):
        assert words in result.output
    assert max(map(len, result.output.splitlines())) <= width


def test_it_names_who_contradicts_whom_under_everyone_and_ends_with_one(told):
    result = told(STATED, "--scope", "everyone")
    assert result.exit_code == 1
    words = " ".join(result.output.split())
    assert "ana (protect) asks to lower it by at least 0.1, ben (forbid) asks not" in words


def test_toml_comes_back_as_it_was_and_json_holds_the_same(told):
    first = told(STATED, "--toml")
    again = told(first.output, "--toml")
    assert first.exit_code == again.exit_code == 0
    assert first.output == again.output
    stated = json.loads(told(STATED, "--json").output)["profiles"]
    assert json.loads(told(first.output, "--json").output)["profiles"] == stated
    assert list(stated) == ["ana", "ben", "cem"]


def test_a_runs_configuration_is_read_with_its_own_scope():
    result = CliRunner().invoke(app, ["profiles", str(HEART)])
    assert result.exit_code == 0
    assert "no contradictions under the scope 'everyone'" in " ".join(result.output.split())
    assert "oldest third" in result.output


def test_json_is_one_object_that_says_whether_all_is_well(told):
    assert json.loads(told(STATED, "--json").stdout)["ok"] is True
    against = told(STATED, "--json", "--scope", "everyone")
    assert against.exit_code == 1
    assert json.loads(against.stdout)["ok"] is False
    wrong = told("profiles = ", "--json")
    assert wrong.exit_code == 2
    said = json.loads(wrong.stdout)
    assert (said["ok"], said["exit_code"]) == (False, 2)
    assert "no valid TOML" in said["error"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[profiles.ana]\nprotect = { women = inf }", "profiles.ana.protect"),
        ("[profiles.ana]\nprotects = { women = 0.0 }", "no such setting"),
        ("[profiles.ana]\nwithin_angle = { women = 120.0 }", "below 90 degrees"),
        ("profiles = ", "no valid TOML"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_place(told, text, words):
    result = told(text)
    assert result.exit_code == 2
    assert words in " ".join(result.output.split())
