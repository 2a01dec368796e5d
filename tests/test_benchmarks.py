"""Every benchmark runs at its smallest size and writes what it measured (nothing here is timed)."""

import json
import sys

import pytest

from experiments.benchmarks import (
    authors,
    conic,
    credit,
    cuts,
    federated,
    forms,
    in_run,
    latency,
    ledger,
    limits,
    one_pass,
    precision,
    projection,
    roofline,
    samplers,
    scale,
    screening,
    trajectory,
    traversal,
)


@pytest.mark.parametrize(
    "benchmark",
    [
        pytest.param(authors, marks=pytest.mark.slow),  # an epoch in two forms
        pytest.param(conic, marks=pytest.mark.slow),  # three cone programs to compile
        pytest.param(credit, marks=pytest.mark.slow),  # games, retraining and influence
        pytest.param(cuts, marks=pytest.mark.slow),  # a step of three models at every cut
        pytest.param(federated, marks=pytest.mark.slow),  # beside rounds, their evaluation
        pytest.param(forms, marks=pytest.mark.slow),  # four forms of two steps
        pytest.param(in_run, marks=pytest.mark.slow),  # three steps to compile
        pytest.param(latency, marks=pytest.mark.slow),  # processes that compile from nothing
        ledger,
        pytest.param(limits, marks=pytest.mark.slow),  # retraining in several forms
        pytest.param(one_pass, marks=pytest.mark.slow),  # steps of three models, in every form
        pytest.param(precision, marks=pytest.mark.slow),  # runs in two precisions
        projection,
        pytest.param(roofline, marks=pytest.mark.slow),  # four whole steps to compile
        pytest.param(samplers, marks=pytest.mark.slow),  # seven samplers
        pytest.param(scale, marks=pytest.mark.slow),  # processes of their own for peak memory
        pytest.param(screening, marks=pytest.mark.slow),  # ten steps to compile
        pytest.param(trajectory, marks=pytest.mark.slow),  # runs, forward and in reverse
        pytest.param(traversal, marks=pytest.mark.slow),  # eight steps to compile
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
