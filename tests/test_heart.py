"""The main job at full size gives the numbers that its README reports."""

import json

import pytest

from tests.run_examples import CONFIG
from vcca_jax.runs import load_config, run, verify_run


@pytest.mark.slow
def test_the_main_job_gives_the_numbers_it_reports(tmp_path):
    expected = json.loads((CONFIG.parent / "expected.json").read_text())
    within = expected["tolerance"]
    results = run(load_config(CONFIG), tmp_path / "heart")
    assert results["settlements"] == expected["settlements"]
    assert results["revenue"] == expected["revenue"]
    paid = sum(row["payout"] for row in results["agents"])
    assert paid + results["reserve"] + results["carried"] == results["revenue"]
    for row in results["agents"]:
        told = expected["agents"][row["agent"]]
        assert row["samples"] == told["samples"]
        for share in ("admissible_share", "removed_share"):
            assert row[share] == pytest.approx(told[share], abs=within["share"])
        assert row["credit_mean"] == pytest.approx(told["credit_mean"], abs=within["credit"])
        assert row["payout"] == pytest.approx(told["payout"], abs=within["payout"])
    for row in results["test"]:
        told = expected["test_loss"][row["trainer"]]
        assert row["loss"]["mean"] == pytest.approx(told, abs=within["loss"])
    assert verify_run(tmp_path / "heart").head == results["ledger_head"]
