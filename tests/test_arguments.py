"""The experiments' command line: typed options for every field, and the two configurations."""

from typing import NamedTuple

import pytest

from experiments import attribution, economy, fidelity, lossless, values
from experiments.arguments import asked
from experiments.attribution import config as attribution_config
from experiments.economy import config as economy_config
from experiments.fidelity import config as fidelity_config
from experiments.lossless import config as lossless_config
from experiments.values import config as values_config

CONFIGS = {
    attribution: (attribution_config, "tasks"),
    economy: (economy_config, None),
    fidelity: (fidelity_config, "tasks"),
    lossless: (lossless_config, "tasks"),
    values: (values_config, "settings"),
}


class Terms(NamedTuple):
    """Of nothing.

    Attributes:
        tasks: some.
        seeds: how many
            there are.
        rates, widths: of it.
        nested: no option.
    """

    tasks: dict[str, int]
    seeds: int = 5
    rates: tuple[float, ...] = (0.1, 1.0)
    widths: tuple[int, ...] | None = None
    nested: tuple[dict[str, int], ...] = ()


FULL, SMALL = Terms({"a": 1, "b, c": 2}), Terms({"a": 0}, seeds=1)


def given(*words):
    return asked(words, "What it does.", FULL, SMALL, "it in seconds")


@pytest.mark.parametrize("experiment", CONFIGS, ids=lambda each: each.__name__)
def test_every_experiment_takes_its_own_terms(experiment):
    config, parts = CONFIGS[experiment]
    for words, wanted in (([], config.FULL), (["--smoke"], config.SMOKE)):
        found, out = asked(
            ["--out", "there", *words], "It.", config.FULL, config.SMOKE, "it", parts=parts
        )
        assert found == wanted
        assert out.name == "there"


def test_options_are_typed_and_start_from_either_configuration(capsys):
    assert given("--out", "x", "--seeds", "3")[0] == FULL._replace(seeds=3)
    assert given("--out", "x", "--smoke", "--rates", "2")[0] == SMALL._replace(rates=(2.0,))
    assert given("--out", "x", "--only", "b, c")[0] == FULL._replace(tasks={"b, c": 2})
    for wrong in (["--seeds", "many"], ["--nested", "1"], ["--only", "d"], []):
        with pytest.raises(SystemExit) as stopped:
            given(*(wrong and ["--out", "x"]), *wrong)
        assert stopped.value.code == 2
    assert "seeds" in capsys.readouterr().err


def test_help_tells_what_the_fields_are(capsys):
    with pytest.raises(SystemExit) as stopped:
        given("--help")
    assert stopped.value.code == 0
    told = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "how many there are. (default: 5)" in told
    assert told.count("of it. (default:") == 2
    assert "Run it in seconds." in told
    assert "nested" not in told
