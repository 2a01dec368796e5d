"""What is kept of every experiment is what it is expected to be, and what is not is told."""

import shutil

import pytest

from experiments import expected
from experiments.pages import read, write_records


@pytest.mark.parametrize("name", expected.names())
def test_the_kept_results_are_as_expected(name):
    assert expected.deviations(name, expected.HERE / name / "results") == []


def test_every_experiment_of_results_says_what_it_expects():
    held = {path.parents[1].name for path in expected.HERE.glob("*/results/tables.md")}
    assert set(expected.names()) == held


def test_a_number_that_is_off_is_told_and_ends_with_1(tmp_path, capsys):
    results = tmp_path / "results"
    shutil.copytree(expected.HERE / "values" / "results", results)
    finals = read(results, "finals")
    for record in finals:
        if (record["setting"], record["condition"]) == ("heart", "verified"):
            record["worst_rise"] = 0.5
    write_records(results, "finals", finals)
    expected.main(["--results", str(expected.HERE / "values" / "results"), "values"])
    assert "as expected" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        expected.main(["--results", str(results), "values"])
    assert stopped.value.code == 1
    assert "heart, verified: worst rise: 0.5, expected 6.258e-07" in capsys.readouterr().out
    # A number that is gone is off too.
    write_records(results, "finals", [r for r in finals if r["setting"] != "fashion"])
    assert any("Fashion-MNIST" in line for line in expected.deviations("values", results))


def test_an_experiment_without_expectations_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"'weather' has no expected\.toml; choose of"):
        expected.deviations("weather", tmp_path)
