"""How near do the main programs come to what this machine can do?

Floating-point operations and bytes by the compiler's own account (``cost_analysis`` of the compiled
program) against measured time, and in the same rounds the machine's peak: a product of two square
matrices in float32, a copy of an array far larger than the caches, and of one that fits into them.
Arithmetic intensity is operations a byte; the roof at that intensity is the smaller of the peak and
intensity times the large copy's bandwidth. Times are the fastest of the rounds, of all alike.

    python -m experiments.benchmarks.roofline [--smoke] [--out roofline.json]

The compiler counts a loop's body once. Both are corrected for it: matrix products, their operands
and results are counted in the traced program with and without the lengths of its scans, and the
difference is added; of a loop without a known length the body is counted once, and how many such
loops there are is told. Bytes are those of every operation's operands and results, whether or not
they stay in a cache. So a share above 1 is possible where a cache serves, and a share is a lower
bound where there are loops.

Programs: perceptron 784-256-128-10, B = 512, 64 agents, SGD with momentum; the plain step, and the
whole step (four values, screen, first-order credit) on one pass, linearized and stacked; and the
projection of 64 stacked gradients of 100,000 numbers onto cones of 4 rows.

Predicted before measuring, on two cores: peak 100 to 150 Gflop/s, 8 to 15 GB/s. The plain step, 0.6
Gflop at an intensity of 20, half of the roof: its products are small. One pass a third, linearized
a quarter, since they do many small things beside products. Stacked and projection below an
intensity of 1, bound by memory, at 0.7 of the bandwidth.
"""

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import vcca_jax as vcca
from experiments.benchmarks.one_pass import Setting
from experiments.benchmarks.projection import whole
from experiments.benchmarks.timing import arguments, keep, rounds


def products(jaxpr: Any, scanned: bool) -> np.ndarray:
    """A traced program's matrix products: operations, and bytes of operands and results.

    Args:
        jaxpr: the program.
        scanned: whether a scan's body counts as often as it runs, or once.
    """
    total = np.zeros(2)
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            over = np.prod([shape[axis] for axis in contracted], dtype=float)
            arrays = [each.aval for each in (*equation.invars, *equation.outvars)]
            moved = sum(each.size * each.dtype.itemsize for each in arrays)
            total += (2 * over * arrays[-1].size, moved)
        times = equation.params["length"] if equation.primitive.name == "scan" else 1
        for each in _inner(equation):
            total += products(each, scanned) * (times if scanned else 1)
    return total


def _inner(equation: Any) -> list[Any]:
    """The programs that one operation holds; of branches all, as the compiler counts them."""
    found = []
    for value in equation.params.values():
        for each in value if isinstance(value, tuple | list) else (value,):
            jaxpr = getattr(each, "jaxpr", each)
            if hasattr(jaxpr, "eqns"):
                found.append(jaxpr)
    return found


def loops(jaxpr: Any) -> int:
    """Loops without a known length."""
    own = sum(equation.primitive.name == "while" for equation in jaxpr.eqns)
    return own + sum(loops(each) for equation in jaxpr.eqns for each in _inner(equation))


def account(function: Callable[..., Any], *given: Any, donate: tuple[int, ...] = ()) -> Any:
    """The compiled program, and its operations and bytes a call."""
    traced = jax.jit(function, donate_argnums=donate).trace(*given)
    compiled = traced.lower().compile()
    told = compiled.cost_analysis()
    jaxpr = traced.jaxpr.jaxpr
    missed = products(jaxpr, True) - products(jaxpr, False)
    return compiled, {
        "operations": told["flops"] + missed[0],
        "bytes": told["bytes accessed"] + missed[1],
        "counted_by_the_compiler": {"operations": told["flops"], "bytes": told["bytes accessed"]},
        "loops_of_unknown_length": loops(jaxpr),
    }


def steps(smoke: bool) -> dict[str, tuple[Callable[[], Any], dict[str, Any]]]:
    """Every training step as a call that keeps its own state, with its account."""
    given = Setting("perceptron", 16 if smoke else 512, 4 if smoke else 64, 25, smoke)
    descent = optax.sgd(0.1, momentum=0.9)
    trainers = {
        "plain step": vcca.centralized(given.loss_fn, descent),
        "whole step, one pass": given.whole("one_pass", descent, False),
        "whole step, linearized": given.whole("linearized", descent, False),
        "whole step, stacked": given.whole("stacked", descent, False),
    }
    found = {}
    for name, trainer in trainers.items():
        # Donation must not take what others start from.
        state = jax.jit(trainer.init)(given.params)
        compiled, told = account(trainer.step, state, given.batch, donate=(0,))
        kept = [state]

        def call(compiled: Any = compiled, kept: list[Any] = kept) -> Any:
            kept[0], info = compiled(kept[0], given.batch)
            return info, jax.tree.leaves(kept[0])[0]

        found[name] = (call, told)
    return found


def projection(smoke: bool) -> tuple[Callable[[], Any], dict[str, Any]]:
    agents, rows, width = (2, 4, 10_000) if smoke else (64, 4, 100_000)
    generator = np.random.default_rng(0)
    stack = (
        jnp.asarray(generator.standard_normal((agents, width), np.float32)),
        jnp.asarray(generator.standard_normal((agents, rows, width), np.float32)),
    )
    compiled, told = account(whole.__wrapped__, *stack)
    return partial(compiled, *stack), told


def peaks(smoke: bool) -> dict[str, tuple[Callable[[], Any], float]]:
    """Calls that measure the machine, and what one of them does: operations, or bytes moved."""
    side, large, small = (64, 10_000, 1000) if smoke else (2048, 64_000_000, 65_536)
    square = jnp.ones((side, side), jnp.float32)
    product = jax.jit(jnp.matmul)
    source, target = np.ones(large, np.float32), np.ones(large, np.float32)
    near, beside = np.ones(small, np.float32), np.ones(small, np.float32)

    def often() -> None:
        for _ in range(50):
            np.copyto(beside, near)

    return {
        "product": (partial(product, square, square), 2.0 * side**3),
        "copy": (partial(np.copyto, target, source), 2.0 * source.nbytes),
        "copy within caches": (often, 100.0 * near.nbytes),
    }


def main() -> None:
    options = arguments(__doc__, rounds=11).parse_args()
    programs = {**steps(options.smoke), "projection": projection(options.smoke)}
    machine = peaks(options.smoke)
    calls: dict[str, Callable[[], Any]] = {name: call for name, (call, _) in programs.items()}
    calls |= {name: call for name, (call, _) in machine.items()}
    load = os.getloadavg()[0]
    seconds = rounds(calls, 2 if options.smoke else options.rounds)
    fastest = {name: min(each) for name, each in seconds.items()}
    rates = {name: done / fastest[name] for name, (_, done) in machine.items()}
    results = []
    for name, (_, told) in programs.items():
        intensity = told["operations"] / told["bytes"]
        roof = min(rates["product"], intensity * rates["copy"])
        rate = told["operations"] / fastest[name]
        results.append(
            {
                "program": name,
                **told,
                "milliseconds": 1e3 * float(np.median(seconds[name])),
                "fastest_milliseconds": 1e3 * fastest[name],
                "intensity": intensity,
                "gigaflops": rate / 1e9,
                "gigabytes_a_second": told["bytes"] / fastest[name] / 1e9,
                "share_of_the_roof": rate / roof,
                "share_of_the_peak": rate / rates["product"],
            }
        )
        print(
            "{program:24s} {operations:.2e} operations, {intensity:6.2f} a byte, "
            "{fastest_milliseconds:8.2f} ms, {gigaflops:6.1f} Gflop/s, "
            "{share_of_the_roof:5.2f} of the roof".format(**results[-1]),
            flush=True,
        )
    told_peaks = {
        "gigaflops": rates["product"] / 1e9,
        "copy_gigabytes_a_second": rates["copy"] / 1e9,
        "copy_within_caches_gigabytes_a_second": rates["copy within caches"] / 1e9,
    }
    print(told_peaks)
    keep(options.out, peaks=told_peaks, load=load, results=results)


if __name__ == "__main__":
    main()
