"""A training step with in-run data Shapley by GhostSuite's dot-product engine, over a plain step.

A stand-alone script for an interpreter that has ``torch==2.13.0`` and ``transformers==4.54.1``,
and GhostSuite (commit b1a3524) in a folder of its own; it needs nothing of this project.
``experiments.benchmarks.in_run`` writes the data, starts it and reads the last line of its output.

    python ghost.py FOLDER --ghostsuite FOLDER --threads 2 --rounds 15

A plain step on the batch takes turns with the engine's, on the batch joined with the held-out rows,
in three modes. In the first, autograd computes the pooled weight gradients as well, which the
engine replaces; in the second ("weights aside", its ``use_dummy_bias``) no weight asks for a
gradient, and the inputs do instead, so that there is something to go back to. The third is the
second with its inner products in float32: it casts them to bfloat16, which is a gain on an
accelerator alone. Modes may fail; what then is said is kept. Logging by iteration is part of the
step, as in its examples.
"""

import argparse
import contextlib
import io
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

RATE, MOMENTUM = 0.1, 0.9


def perceptron(held: dict[str, np.ndarray]) -> nn.Module:
    """With the parameters given: kernels and biases in turn."""
    flat = [torch.from_numpy(held[name]) for name in sorted(held) if name.startswith("layer")]
    modules: list[nn.Module] = []
    for kernel, bias in zip(flat[::2], flat[1::2], strict=True):
        linear = nn.Linear(*kernel.shape)
        linear.load_state_dict({"weight": kernel.T.contiguous(), "bias": bias})
        modules += [linear, nn.ReLU()]
    return nn.Sequential(*modules[:-1])


class Block(nn.Module):
    """Pre-norm attention and feed-forward, of layers that the engine supports."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.value = nn.Linear(width, width), nn.Linear(width, width)
        self.key = nn.Linear(width, width, bias=False)
        self.mixed = nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        shape = (*hidden.shape[:2], self.heads, -1)
        inner = self.first(hidden)
        parts = (layer(inner).view(shape).transpose(1, 2) for layer in (self.query, self.key))
        value = self.value(inner).view(shape).transpose(1, 2)
        seen = functional.scaled_dot_product_attention(*parts, value)
        hidden = hidden + self.mixed(seen.transpose(1, 2).reshape(hidden.shape))
        return hidden + self.narrow(functional.gelu(self.wide(self.second(hidden))))


class Transformer(nn.Module):
    """The mean over tokens of two blocks; positions are an embedding, which has its rules."""

    def __init__(self, vocabulary: int, length: int, width: int, classes: int) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(Block(width, 4) for _ in range(2)))
        self.norm, self.output = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        places = torch.arange(tokens.shape[1]).expand(tokens.shape)
        hidden = self.blocks(self.tokens(tokens) + self.positions(places))
        return self.output(self.norm(hidden).mean(dim=1))


class InSingle:
    """``torch`` for a module that is to compute in float32 where it asks for bfloat16."""

    def __getattr__(self, name: str) -> Any:
        return torch.float32 if name == "bfloat16" else getattr(torch, name)


class Steps:
    """The three steps of one model on one folder."""

    def __init__(self, held: dict[str, np.ndarray], width: int) -> None:
        self.inputs, self.unseen = (torch.from_numpy(held[n]) for n in ("inputs", "unseen"))
        self.targets, self.labels = (
            torch.from_numpy(held[n]).long() for n in ("targets", "labels")
        )
        self.tokens = not self.inputs.is_floating_point()
        if self.tokens:
            self.inputs, self.unseen = self.inputs.long(), self.unseen.long()
        self.held, self.width = held, width

    def model(self) -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = perceptron(self.held)
        if self.tokens:
            model = Transformer(1000, self.inputs.shape[1], self.width, 10)
        return model, torch.optim.SGD(model.parameters(), lr=RATE, momentum=MOMENTUM)

    def plain(self) -> Callable[[], Any]:
        model, optimizer = self.model()

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            functional.cross_entropy(model(self.inputs), self.targets).backward()
            optimizer.step()

        return step

    def ghost(self, aside: bool, single: bool = False) -> Callable[[], Any]:
        from ghostEngines import GradDotProdEngine
        from ghostEngines import supported_layers_grad_samplers_dotprod as rules
        from ghostEngines.transformers_support import _add_dummy_bias

        model, optimizer = self.model()
        engine = GradDotProdEngine(
            module=model, val_batch_size=len(self.labels), use_dummy_bias=aside
        )
        if aside and self.tokens:
            for module in [each for each in model.modules() if isinstance(each, nn.Embedding)]:
                _add_dummy_bias(module)
        with contextlib.redirect_stdout(io.StringIO()):
            engine.attach(optimizer)
        joined = torch.cat([self.inputs, self.unseen])
        targets = torch.cat([self.targets, self.labels])
        if aside and not self.tokens:
            joined.requires_grad_()

        def step() -> torch.Tensor:
            rules.torch = InSingle() if single else torch
            engine.attach_train_batch(self.inputs, self.targets, 0, 0)
            functional.cross_entropy(model(joined), targets).backward()
            engine.aggregate_and_log()
            engine.prepare_gradients()
            optimizer.step()
            engine.clear_gradients()
            optimizer.zero_grad(set_to_none=True)
            return engine.dot_product_log.pop()["dot_product"]

        return step


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--ghostsuite", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--width", type=int, default=64)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    sys.path.insert(0, str(options.ghostsuite.resolve()))
    held = {path.stem: np.load(path) for path in options.folder.glob("*.npy")}
    steps = Steps(held, options.width)
    makers = {
        "plain": steps.plain,
        "ghost": lambda: steps.ghost(False),
        "ghost, weights aside": lambda: steps.ghost(True),
        "ghost, weights aside, float32": lambda: steps.ghost(True, True),
    }
    calls: dict[str, Callable[[], Any]] = {}
    products, failed = {}, {}
    for name, make in makers.items():
        try:
            call = make()
            first = call()
            call()
        except Exception as error:
            failed[name] = f"{type(error).__name__}: {error}"[:300]
            continue
        calls[name] = call
        if first is not None:
            products[name] = first.tolist()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(options.rounds):
        for name, call in calls.items():
            begun = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - begun)
    over = {
        name: statistics.median(
            mine / base for mine, base in zip(each, seconds["plain"], strict=True)
        )
        for name, each in seconds.items()
    }
    from importlib.metadata import version

    told = {
        "milliseconds": {name: 1e3 * statistics.median(each) for name, each in seconds.items()},
        "ratio": over,
        "products": products,
        "failed": failed,
        "versions": {name: version(name) for name in ("torch", "transformers")},
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main()
