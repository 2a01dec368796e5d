"""Run a cooperative over processes: ``python -m experiments.distributed.train --out DIR``.

By itself it deals out the data and starts all processes on this machine, over loopback. With
``--process`` it is one of them; with ``--cluster`` it is one of them too, and JAX asks the cluster
which: so SLURM, GKE or a TPU pod start it, once a host (see docs/launch.md).
"""

import argparse
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jax

from experiments.distributed.data import AGENTS, prepare
from experiments.distributed.worker import Setup, work
from experiments.pages import say

GRACE_SECONDS = 60
"""After one process has failed, how long the others may take to end by themselves."""


def parser() -> argparse.ArgumentParser:
    """The command line of the launcher and of its processes."""
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    made.add_argument("--out", type=Path, required=True, help="folder that all processes see")
    made.add_argument("--processes", type=int, default=2)
    made.add_argument("--devices", type=int, help="CPU devices a process; all accelerators if out")
    made.add_argument("--parameter-shards", type=int, default=1)
    made.add_argument("--epochs", type=int, default=4)
    made.add_argument("--order", choices=("fixed", "free"), default="fixed", help="of sums")
    made.add_argument(
        "--form", choices=("linearized", "one_pass"), default="linearized", help="of gradients"
    )
    made.add_argument("--process", type=int, help="be this process instead of starting all")
    made.add_argument("--cluster", action="store_true", help="be the process the cluster says")
    made.add_argument("--prepare", action="store_true", help="deal out the data and end")
    made.add_argument("--coordinator", default="", help="HOST:PORT of process 0")
    made.add_argument(
        "--fail", default="", metavar="P:E", help="process P kills itself after epoch E"
    )
    return made


def launch(given: argparse.Namespace, arguments: Sequence[str]) -> int:
    """Start the processes, wait, and end all if one fails; returns an exit status."""
    if given.processes < 1 or AGENTS % given.processes:
        say(f"--processes {given.processes} must divide the {AGENTS} agents")
        return 2
    prepare(given.out / "data")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    program = [sys.executable, "-m", "experiments.distributed.train", *arguments]
    started = [
        subprocess.Popen([*program, "--process", str(index), "--coordinator", f"127.0.0.1:{port}"])
        for index in range(given.processes)
    ]
    try:
        while all(each.poll() is None for each in started):
            time.sleep(0.2)
        while any(each.poll() is None for each in started) and not failed(started):
            time.sleep(0.2)
        if not failed(started):
            return 0
        first, code = failed(started)[0]
        begun = time.perf_counter()
        while (
            any(each.poll() is None for each in started)
            and time.perf_counter() - begun < GRACE_SECONDS
        ):
            time.sleep(0.2)
        waited = time.perf_counter() - begun
        left = [index for index, each in enumerate(started) if each.poll() is None]
        say(
            f"process {first} ended with status {code}; the others "
            + (f"were ended after {waited:.0f} s" if left else f"had ended {waited:.1f} s later")
            + f". Go on from the last checkpoint with: python -m experiments.distributed.train"
            f" --out {given.out}, on any number of processes and devices"
        )
        return 1
    finally:
        for each in started:
            if each.poll() is None:
                each.kill()
            each.wait()


def failed(started: Sequence[subprocess.Popen]) -> list[tuple[int, int]]:
    """Processes that ended with an error, and their statuses."""
    codes = [each.poll() for each in started]
    return [(index, code) for index, code in enumerate(codes) if code]


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, and launch or work."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    given = parser().parse_args(arguments)
    if given.prepare:
        prepare(given.out / "data")
        return 0
    if given.process is None and not given.cluster:
        return launch(given, arguments)
    if given.devices is not None:
        # Before JAX looks at the machine.
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", given.devices)
    fails, _, epoch = given.fail.partition(":")
    work(
        Setup(
            out=given.out,
            epochs=given.epochs,
            fixed=given.order == "fixed",
            parameter_shards=given.parameter_shards,
            form=given.form,
            process=given.process or 0,
            processes=given.processes,
            coordinator=given.coordinator,
            cluster=given.cluster,
            fail_after=int(epoch) if fails == str(given.process) else 0,
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
