"""Several real processes over loopback: the same ledger, and a clear end when one is lost."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np
import pytest

import vcca_jax as vcca
from experiments.distributed.data import AGENTS, own_agents, prepare
from experiments.distributed.train import main
from vcca_jax.ledger import Ledger

pytest.importorskip("sklearn")
ROOT = Path(__file__).parents[1]


def run(out, *options, epochs=2):
    """Launch the experiment; its exit status, what it printed, and its results."""
    cache = Path(tempfile.gettempdir()) / f"vcca_jax-{jax.__version__}"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "experiments.distributed.train"),
            *("--out", str(out), "--epochs", str(epochs), *options),
        ],
        cwd=ROOT,
        env={**os.environ, "JAX_COMPILATION_CACHE_DIR": str(cache)},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    path = out / "results.json"
    results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    return done.returncode, done.stdout + done.stderr, results


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """One process on one device, never stopped."""
    status, printed, results = run(
        tmp_path_factory.mktemp("alone"), "--processes", "1", "--devices", "1"
    )
    assert status == 0, printed
    return results


@pytest.mark.slow
def test_two_processes_keep_the_ledger_of_one(alone, tmp_path):
    status, printed, results = run(tmp_path, "--processes", "2", "--devices", "2")
    assert status == 0, printed
    assert results["devices"] == 4
    assert results["credits"] == alone["credits"]
    assert results["payouts"] == alone["payouts"]
    assert results["ledger_head"] == alone["ledger_head"]


@pytest.mark.slow
def test_two_processes_keep_the_ledger_of_one_in_one_pass(alone, tmp_path):
    form = ("--form", "one_pass")
    status, printed, one = run(tmp_path / "one", "--processes", "1", "--devices", "1", *form)
    assert status == 0, printed
    status, printed, two = run(tmp_path / "two", "--processes", "2", "--devices", "4", *form)
    assert status == 0, printed
    assert (two["devices"], two["form"]) == (8, "one_pass")
    assert two["ledger_head"] == one["ledger_head"]
    assert two["credits"] == one["credits"]
    # The other form rounds otherwise, and says the same.
    assert one["ledger_head"] != alone["ledger_head"]
    largest = max(map(abs, alone["credits"].values()))
    for name, credit in alone["credits"].items():
        assert abs(one["credits"][name] - credit) < 1e-5 * largest


@pytest.mark.slow
def test_a_lost_process_ends_the_others_and_the_run_goes_on_elsewhere(alone, tmp_path):
    status, printed, results = run(tmp_path, "--processes", "2", "--devices", "1", "--fail", "1:1")
    assert status == 1
    assert results is None
    assert "process 0 of 2: the common program broke off" in printed
    assert "process 1 ended with status -9" in printed
    with Ledger.open(tmp_path / "ledger.sqlite", read_only=True) as ledger:
        assert ledger.verify().settlements == 1
    status, printed, results = run(tmp_path, "--processes", "1", "--devices", "4")
    assert status == 0, printed
    assert "resuming after epoch 1, on 4 devices" in printed
    assert results["ledger_head"] == alone["ledger_head"]


def test_a_process_opens_its_own_agents_files_only(tmp_path):
    prepare(tmp_path)
    whole = own_agents(tmp_path, 0, 1)
    for agent in range(AGENTS // 2):
        (tmp_path / f"agent_{agent:02d}.npz").unlink()
    half = own_agents(tmp_path, 1, 2)
    assert half.names == whole.names[AGENTS // 2 :]
    np.testing.assert_array_equal(half.shards.inputs, whole.shards.inputs[AGENTS // 2 :])
    assert half.sample_capacity == whole.sample_capacity


def test_data_are_dealt_out_once(tmp_path):
    prepare(tmp_path)
    before = (tmp_path / "agent_00.npz").stat().st_mtime_ns
    prepare(tmp_path)
    assert (tmp_path / "agent_00.npz").stat().st_mtime_ns == before
    assert isinstance(own_agents(tmp_path, 0, 4), vcca.Cooperative)


def test_processes_that_do_not_divide_the_agents_are_refused(tmp_path, capsys):
    assert main(["--out", str(tmp_path), "--processes", "3"]) == 2
    assert not list(tmp_path.iterdir())
    assert "must divide the 16 agents" in capsys.readouterr().out
