"""An epoch of Traversal Learning by its authors' code, without its sleeps.

A stand-alone script for an interpreter that has ``torch==2.13.0``, and the authors' code (commit
b4a3dd2) in a folder of its own; it needs nothing of this project.
``experiments.benchmarks.authors`` writes the data, starts it and reads the last line of its output.

    python traversal_learning.py FOLDER --code FOLDER --agents 8 --batch 256 --form inside

Two forms. "loopback" is theirs: an orchestrator and a process a node, messages pickled, compressed
and sent through sockets; what is changed is that nobody sleeps and nothing is logged below a
warning. "inside" calls the very functions that nodes and orchestrator run on their messages in one
process, one node after another in order, so that what is left is arithmetic and their data loader.
Its data set is a stand-in that hands out the arrays of the folder. A third, "centralized", is a
plain PyTorch loop on the same model, for reference. The evaluation after an epoch is left out.
Of two epochs the second is told; parameters after the first are written for comparison.
"""

import argparse
import importlib
import json
import logging
import os
import socket
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

EPOCHS = 2
SHARED = ("model", "data_handler")
"""Module names that nodes and orchestrator both have, with different content."""


def stand_in(folder: Path) -> None:
    """A ``torchvision`` whose MNIST is the folder's arrays."""
    inputs = torch.from_numpy(np.load(folder / "inputs.npy"))
    targets = torch.from_numpy(np.load(folder / "targets.npy")).long()
    held = torch.utils.data.TensorDataset(inputs, targets)
    nothing = lambda *_, **__: None  # noqa: E731
    module = types.ModuleType("torchvision")
    module.datasets = types.SimpleNamespace(MNIST=lambda *_, **__: held)  # type: ignore[attr-defined]
    module.transforms = types.SimpleNamespace(  # type: ignore[attr-defined]
        Compose=nothing, ToTensor=nothing, Normalize=nothing
    )
    sys.modules["torchvision"] = module


def part(code: Path, name: str, *modules: str) -> list[Any]:
    """Modules of one of the two folders, which import each other by bare names."""
    for each in SHARED:
        sys.modules.pop(each, None)
    sys.path.insert(0, str(code / name))
    try:
        return [importlib.import_module(each) for each in modules]
    finally:
        sys.path.remove(str(code / name))


def start_of(folder: Path) -> dict[str, torch.Tensor]:
    """The initial state of their network."""
    flat = [torch.from_numpy(np.load(path)) for path in sorted(folder.glob("layer_*.npy"))]
    state = {}
    for place in range(4):
        state[f"fc{place + 1}.weight"] = flat[2 * place].T.contiguous()
        state[f"fc{place + 1}.bias"] = flat[2 * place + 1]
    return state


class Clock:
    """Ends of epochs, told by the updates; writes the parameters after the first."""

    def __init__(self, steps: int, folder: Path, model: torch.nn.Module) -> None:
        self.steps, self.folder, self.model = steps, folder, model
        self.updates, self.ends = 0, [time.perf_counter()]

    def __call__(self) -> None:
        self.updates += 1
        if self.updates % self.steps == 0:
            self.ends.append(time.perf_counter())
        if self.updates == self.steps:
            for name, each in self.model.state_dict().items():
                kind = name.endswith("weight")
                array = each.T if kind else each
                place = 2 * int(name[2]) - (2 if kind else 1)
                np.save(self.folder / f"end_{place:02d}.npy", array.numpy().copy())


def watched(manager: Any, steps: int, folder: Path) -> Clock:
    """A clock set off by the manager's updates; its evaluation is left out."""
    manager.model.load_state_dict(start_of(folder))
    clock, update = Clock(steps, folder, manager.model), manager.update_parameters

    def told() -> None:
        update()
        clock()

    manager.update_parameters, manager.test = told, lambda: None
    return clock


def loopback(options: argparse.Namespace) -> list[float]:
    module, *_ = part(options.code, "orchestrator", "orchestrator")
    module.time = types.SimpleNamespace(sleep=lambda _: None)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = [sys.executable, __file__, *sys.argv[1:], "--port", str(port)]
    nodes = [
        subprocess.Popen([*given, "--node", str(place + 1)], stdout=subprocess.DEVNULL)
        for place in range(options.agents)
    ]
    try:
        whole = module.Orchestrator(
            "127.0.0.1", port, options.agents, EPOCHS, options.batch, 1.0, 1.0, torch.device("cpu")
        )
        clock = watched(whole.model_manager, options.steps, options.folder)
        whole.run()
        for node in nodes:
            node.wait(timeout=30)
    finally:
        for node in nodes:
            node.kill()
    return clock.ends


def node(options: argparse.Namespace) -> None:
    module, *_ = part(options.code, "node", "node")
    module.Node(options.node, "127.0.0.1", options.port, options.agents, torch.device("cpu")).run()


def inside(options: argparse.Namespace) -> list[float]:
    device = torch.device("cpu")
    processors, *_ = part(options.code, "node", "task_processor")
    names = range(1, options.agents + 1)
    nodes = {n: processors.TaskProcessor(n, options.agents, device) for n in names}
    managers, orchestrators = part(options.code, "orchestrator", "model_manager", "orchestrator")
    manager = managers.ModelManager(1.0, 1.0, device)
    planner = types.SimpleNamespace(batch_size=options.batch, virtual_batches=[])
    share = len(nodes[1].data_manager.train_set) // options.agents
    orchestrators.Orchestrator._create_virtual_batches(planner, dict.fromkeys(names, share))
    clock = watched(manager, options.steps, options.folder)

    def every(call: Callable[[int, Any], Any]) -> dict[int, Any]:
        return {name: call(name, each) for name, each in nodes.items()}

    def step(batch: dict[int, list[int]]) -> None:
        state = manager.get_parameters()
        found = every(
            lambda n, each: each.forward_pass({"indices": batch[n], "model_parameters": state})
        )
        _, grad, left, right = manager.forward_pass(found, batch)
        found = every(
            lambda n, each: each.backward_second(
                {"grad_z2": grad, "padding_left": left[n], "padding_right": right[n]}
            )
        )
        first = manager.backward_second(found, grad)
        manager.backward_first(
            every(lambda _, each: each.backward_first({"grad_z1": first})), first
        )
        manager.update_parameters()

    for _ in range(EPOCHS):
        for batch in planner.virtual_batches:
            step(batch)
    return clock.ends


def centralized(options: argparse.Namespace) -> list[float]:
    managers, *_ = part(options.code, "orchestrator", "model_manager")
    manager = managers.ModelManager(1.0, 1.0, torch.device("cpu"))
    clock = watched(manager, options.steps, options.folder)
    inputs, targets = manager.test_loader.dataset.tensors
    order = torch.from_numpy(np.load(options.folder / "order.npy"))
    for _ in range(EPOCHS):
        for rows in order.split(options.batch):
            manager.optimizer.zero_grad()
            functional.nll_loss(manager.model(inputs[rows]), targets[rows]).backward()
            manager.update_parameters()
    return clock.ends


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--code", type=Path, required=True)
    parser.add_argument("--agents", type=int, default=8)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--steps", type=int, required=True, help="of an epoch")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--form", choices=("loopback", "inside", "centralized"), default="inside")
    parser.add_argument("--node", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    # Later calls of basicConfig, of which every module has one, change nothing.
    logging.basicConfig(level=logging.WARNING)
    torch.set_num_threads(options.threads)
    stand_in(options.folder)
    if options.node:
        node(options)
        return
    for old in options.folder.glob("end_*.npy"):
        os.remove(old)
    ends = {"loopback": loopback, "inside": inside, "centralized": centralized}[options.form](
        options
    )
    epochs = np.diff(ends)[1:]
    print(json.dumps({"seconds": epochs.tolist(), "torch": torch.__version__}))


if __name__ == "__main__":
    main()
