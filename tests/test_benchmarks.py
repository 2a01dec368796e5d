"""Every benchmark runs at its smallest size and writes what it measured (nothing here is timed)."""

import json
import sys

import pytest

from experiments.benchmarks import conic, ledger, projection, screening, traversal


@pytest.mark.parametrize(
    "benchmark",
    [
        pytest.param(conic, marks=pytest.mark.slow),  # three cone programs to compile
        ledger,
        projection,
        pytest.param(screening, marks=pytest.mark.slow),  # ten steps to compile
        traversal,
    ],
    ids=lambda module: module.__name__,
)
def test_it_runs_and_keeps_its_numbers(benchmark, tmp_path, monkeypatch, capsys):
    out = tmp_path / "results" / "smoke.json"
    monkeypatch.setattr(sys, "argv", [benchmark.__name__, "--smoke", "--out", str(out)])
    benchmark.main()
    content = json.loads(out.read_text())
    assert set(content["machine"]) >= {"cores", "device", "jax"}
    assert content["results"]
    assert capsys.readouterr().out
