"""Runs that are killed, not stopped: SIGKILL at a random moment, and what is left."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.killed_process import run, state_after
from vcca_jax.checkpoint import checkpoints
from vcca_jax.ledger import Ledger

ROOT = Path(__file__).parent.parent
ENDLESS = 10**6


def kill(command: list[str], seconds: float) -> list[str]:
    """Start a process, kill it some seconds after its first line, and return its lines."""
    with subprocess.Popen(
        [sys.executable, *command], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        first = process.stdout.readline()
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        rest = process.stdout.read()
    assert process.returncode == -signal.SIGKILL
    return [first, *rest.splitlines()]


def check_what_is_left(folder: Path) -> int:
    """The last checkpoint is whole, and nothing is more than an epoch ahead of it."""
    with checkpoints(folder / "checkpoints") as saved:
        done = saved.latest or 0
        if done:
            state, note = saved.restore(done, state_after(0))
            for name, leaf in state_after(done).items():
                np.testing.assert_array_equal(state[name], leaf)
            with Ledger.open(folder / "ledger.sqlite", create=False) as ledger:
                assert ledger.verify(head=note["head"]).settlements in (done, done + 1)
    return done


def check_as_if_never_killed(folder: Path, whole: Path, epochs: int) -> None:
    run(folder, epochs)
    run(whole, epochs)
    check_what_is_left(folder)
    heads = []
    for each in (folder, whole):
        with Ledger.open(each / "ledger.sqlite", create=False) as ledger:
            heads.append(ledger.verify().head)
    assert heads[0] == heads[1]


def test_a_killed_run_loses_no_more_than_the_last_interval(tmp_path):
    seconds = random.Random(0).uniform(0.0, 0.3)
    command = ["-m", "tests.killed_process", str(tmp_path / "killed"), str(ENDLESS)]
    (tmp_path / "killed").mkdir()
    (tmp_path / "whole").mkdir()
    begun = int(kill(command, seconds)[-1])  # the last epoch whose save has begun
    done = check_what_is_left(tmp_path / "killed")
    assert begun - 1 <= done <= begun + 1
    check_as_if_never_killed(tmp_path / "killed", tmp_path / "whole", done + 3)


@pytest.mark.slow  # a process for every kill
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_killed_again_and_again(tmp_path, seed):
    generator = random.Random(seed)
    command = ["-m", "tests.killed_process", str(tmp_path / "killed"), str(ENDLESS)]
    (tmp_path / "killed").mkdir()
    (tmp_path / "whole").mkdir()
    done = 0
    for _ in range(4):
        begun = int(kill(command, generator.uniform(0.0, 0.4))[-1])
        before, done = done, check_what_is_left(tmp_path / "killed")
        assert before <= done
        assert begun - 1 <= done <= begun + 1
    check_as_if_never_killed(tmp_path / "killed", tmp_path / "whole", done + 3)


COOPERATIVE = """
import sys
from pathlib import Path
from tests.run_examples import smoke
from vcca_jax.compilation import keep_compiled
from vcca_jax.runs import run
keep_compiled(sys.argv[2])
run(smoke(epochs=12), Path(sys.argv[1]), progress=lambda epoch: print(epoch, flush=True))
print("finished", flush=True)
"""


@pytest.mark.slow  # whole runs in processes of their own
def test_a_killed_cooperative_ends_with_the_same_bytes(tmp_path):
    import jax

    from tests.run_examples import digests, smoke
    from vcca_jax.runs import run as run_cooperative
    from vcca_jax.runs import verify_run

    cache = jax.config.jax_compilation_cache_dir
    generator = random.Random(0)
    for _ in range(3):
        lines = kill(["-c", COOPERATIVE, str(tmp_path / "killed"), cache], generator.uniform(0, 2))
        if "finished" in lines:
            break
        with checkpoints(tmp_path / "killed" / "checkpoints") as saved:
            done = saved.latest or 0
        assert done >= int(lines[-1]) - 1
        assert done <= verify_run(tmp_path / "killed").settlements <= done + 1
    run_cooperative(smoke(epochs=12), tmp_path / "killed")
    run_cooperative(smoke(epochs=12), tmp_path / "whole")
    assert digests(tmp_path / "killed") == digests(tmp_path / "whole")
