"""How fast and how exact is the projection onto admissible cones?

First the dual alone, as the library meets it: Gram matrices [A, K, K] and deficits [A, K] in,
multipliers out, each solver in the arrays it works on. Ours is ``solve_cone_duals``, jitted, in
float32; the others are loops of float64 solvers over agents, and the peers that are importable:
qpax and jaxopt, vmapped, and TorchJD's projector, one call an agent. The error is that of
g + N^T lambda against quadprog on the rows themselves, relative to the largest admissible update.

Then the whole of it on materialised stacks: gradients [A, D] and rows [A, K, D] in, updates out, in
float32. Ours is ``project_stack_onto_cones``; its twin is ``vmap(cone_projection)``; the peer is a
loop over agents of BLAS products, quadprog on the dual and one more product. *Bound* is the time
that the least traffic takes at the speed of a copy or a read, whichever is faster in the same
rounds: rows and gradients are read once for the inner products, and once more beside the update's
write.

All are timed in turn, round by round, so that a busy machine slows all alike; medians are reported
(fastest in brackets), compilation is left out.

Predictions, written before the first run of this form, on two cores. The dual: 3 to 5 times as
fast as a loop of quadprog for few rows (K = 4), where calls cost more than arithmetic, and 2 to 3
times at K = 64; as fast as nnls at K = 64; 8 to 12 times as fast as vmapped qpax everywhere. The
whole: 2 to 3 times the bound, 4 times as fast as the twin, and no faster than the loop, because
both wait for memory; the dual takes below 1 % of the inner products' time at D = 10^6.

    python -m experiments.benchmarks.projection --out projection.json

Peers are never a dependency. To have them measured, make a virtual environment beside the project's
with what ``vcca_jax`` needs and ``pip install qpax jaxopt torch torchjd qpsolvers quadprog scipy``.
"""

import functools
import importlib.util
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import quadprog
from scipy.optimize import nnls

from experiments.benchmarks.timing import arguments, keep, ratio, rounds
from vcca_jax.cones.duals import solve_cone_duals
from vcca_jax.cones.projection import cone_projection
from vcca_jax.cones.stacks import project_stack_onto_cones

# Agents, rows, parameters: half a gigabyte at most.
STACKS = [
    (64, 4, 100_000),
    (8, 16, 100_000),
    (8, 64, 100_000),
    (8, 4, 1_000_000),
    (4, 16, 1_000_000),
]

Solver = Callable[[np.ndarray, np.ndarray], np.ndarray]


def problems(agents: int, rows: int, correlated: bool, seed: int) -> tuple[np.ndarray, ...]:
    """Unit rows [A, K, 4 K], independent or all leaning one way, and gradients [A, 4 K]."""
    rng = np.random.default_rng(seed)
    normals = rng.standard_normal((agents, rows, 4 * rows))
    if correlated:
        normals += rng.standard_normal((agents, 1, 4 * rows))
    normals /= np.linalg.norm(normals, axis=2, keepdims=True)
    return normals, rng.standard_normal((agents, 4 * rows))


def quadprog_loop(grams: np.ndarray, deficits: np.ndarray) -> np.ndarray:
    """The dual itself as a quadratic program: one call an agent."""
    identity, zeros = np.eye(deficits.shape[1]), np.zeros(deficits.shape[1])
    return np.stack(
        [
            quadprog.solve_qp(gram, deficit, identity, zeros)[0]
            for gram, deficit in zip(grams, deficits, strict=True)
        ]
    )


def nnls_loop(grams: np.ndarray, deficits: np.ndarray) -> np.ndarray:
    """|R lambda - R^-T b|^2 with G = R^T R, by non-negative least squares: one call an agent."""
    result = []
    for gram, deficit in zip(grams, deficits, strict=True):
        factor = np.linalg.cholesky(gram)
        result.append(nnls(factor.T, np.linalg.solve(factor, deficit))[0])
    return np.stack(result)


def ours() -> Solver:
    solve = jax.jit(lambda grams, deficits: solve_cone_duals(grams, deficits).multipliers)
    return lambda grams, deficits: jax.block_until_ready(solve(grams, deficits))


def qpax_vmapped() -> Solver:
    import qpax

    def solve(gram: jax.Array, deficit: jax.Array) -> jax.Array:
        size = deficit.shape[0]
        none, empty = jnp.zeros((0, size)), jnp.zeros(0)
        return qpax.solve_qp(gram, -deficit, none, empty, -jnp.eye(size), jnp.zeros(size))[0]

    batch = jax.jit(jax.vmap(solve))
    return lambda grams, deficits: jax.block_until_ready(batch(grams, deficits))


def jaxopt_vmapped() -> Solver:
    import jaxopt

    solver = jaxopt.BoxCDQP()

    def solve(gram: jax.Array, deficit: jax.Array) -> jax.Array:
        zeros = jnp.zeros_like(deficit)
        return solver.run(
            zeros, params_obj=(gram, -deficit), params_ineq=(zeros, zeros + jnp.inf)
        ).params

    batch = jax.jit(jax.vmap(solve))
    return lambda grams, deficits: jax.block_until_ready(batch(grams, deficits))


def torchjd_loop() -> Solver:
    """Its projector: min v^T G v, v >= u; here u = -G^-1 b, and lambda = v - u."""
    import torch
    from torchjd.linalg import QuadprogProjector

    projector = QuadprogProjector()

    def solve(grams: np.ndarray, deficits: np.ndarray) -> np.ndarray:
        weights = -np.linalg.solve(grams, deficits[:, :, None])[:, :, 0]
        pairs = zip(torch.from_numpy(weights), torch.from_numpy(grams), strict=True)
        return np.stack([projector(u, gram).numpy() for u, gram in pairs]) - weights

    return solve


@functools.cache
def solvers() -> dict[str, tuple[Solver, Callable]]:
    """Name -> (solver, what makes the arrays it is given)."""
    single, double = partial(jnp.asarray, dtype=jnp.float32), np.asarray
    found: dict[str, tuple[Solver, Callable]] = {
        "ours": (ours(), single),
        "quadprog loop": (quadprog_loop, double),
        "nnls loop": (nnls_loop, double),
    }
    peers: tuple[tuple[str, Callable, Callable], ...] = (
        ("qpax", qpax_vmapped, single),
        ("jaxopt", jaxopt_vmapped, single),
        ("torchjd", torchjd_loop, double),
    )
    for name, make, arrays in peers:
        if importlib.util.find_spec(name) is not None:
            found[name] = (make(), arrays)
    return found


def exact_updates(normals: np.ndarray, gradients: np.ndarray) -> np.ndarray:
    """The projections themselves, in float64 and in parameter space."""
    identity, zeros = np.eye(normals.shape[2]), np.zeros(normals.shape[1])
    return np.stack(
        [
            quadprog.solve_qp(identity, g, rows.T, zeros)[0]
            for rows, g in zip(normals, gradients, strict=True)
        ]
    )


def measure(agents: int, rows: int, correlated: bool, turns: int) -> dict:
    """Times every solver on the same problems, round by round."""
    normals, gradients = problems(agents, rows, correlated, seed=rows)
    grams = normals @ normals.transpose(0, 2, 1)
    deficits = -np.einsum("akd,ad->ak", normals, gradients)
    exact = exact_updates(normals, gradients)
    entries = solvers()
    inputs = {name: (arrays(grams), arrays(deficits)) for name, (_, arrays) in entries.items()}
    errors = {}
    for name, (solve, _) in entries.items():
        multipliers = np.asarray(solve(*inputs[name]), float)
        update = gradients + np.einsum("ak,akd->ad", multipliers, normals)
        size = np.linalg.norm(exact, axis=1)
        errors[name] = float(np.max(np.linalg.norm(update - exact, axis=1) / size.max()))
    seconds = rounds(
        {name: partial(solve, *inputs[name]) for name, (solve, _) in entries.items()}, turns
    )
    fastest = {name: 1e3 * min(values) for name, values in seconds.items()}
    medians = {name: 1e3 * float(np.median(values)) for name, values in seconds.items()}
    return {
        "agents": agents,
        "rows": rows,
        "correlated": correlated,
        "rounds": turns,
        "milliseconds": medians,
        "fastest_milliseconds": fastest,
        "ratio_to_ours": {name: ratio(seconds, name, "ours") for name in entries},
        "error": errors,
    }


def line(result: dict) -> str:
    cells = [
        f"{name} {result['milliseconds'][name]:8.2f} "
        f"({result['fastest_milliseconds'][name]:.2f}) ms "
        f"{result['ratio_to_ours'][name]:5.1f}x "
        f"{result['error'][name]:.0e}"
        for name in result["milliseconds"]
    ]
    kind = "correlated" if result["correlated"] else "independent"
    return f"A {result['agents']:4d}  K {result['rows']:3d}  {kind:11s} | " + " | ".join(cells)


@jax.jit
def whole(gradients: jax.Array, normals: jax.Array) -> jax.Array:
    return project_stack_onto_cones(gradients, normals).update


@jax.jit
def twin(gradients: jax.Array, normals: jax.Array) -> jax.Array:
    return jax.vmap(cone_projection)(gradients, normals).update


def inner_products(gradients: np.ndarray, normals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What the dual needs, agent by agent, by BLAS."""
    pairs = [(rows @ rows.T, rows @ g) for g, rows in zip(gradients, normals, strict=True)]
    return np.stack([gram for gram, _ in pairs]), np.stack([products for _, products in pairs])


@jax.jit
def duals(grams: jax.Array, products: jax.Array) -> jax.Array:
    return solve_cone_duals(grams, -products).multipliers


def blas_loop(gradients: np.ndarray, normals: np.ndarray) -> np.ndarray:
    """Products in float32, the dual by quadprog in float64: one call an agent."""
    identity, zeros = np.eye(normals.shape[1]), np.zeros(normals.shape[1])
    updates = np.empty_like(gradients)
    for index, (g, rows) in enumerate(zip(gradients, normals, strict=True)):
        gram, products = rows @ rows.T, rows @ g
        solution = quadprog.solve_qp(gram.astype(float), -products.astype(float), identity, zeros)
        updates[index] = g + solution[0].astype(np.float32) @ rows
    return updates


def measure_whole(agents: int, rows: int, width: int, turns: int) -> dict:
    """Times the projection of a materialised stack, its parts and a copy, round by round."""
    rng = np.random.default_rng(rows)
    normals = rng.standard_normal((agents, rows, width), np.float32)
    gradients = rng.standard_normal((agents, width), np.float32)
    stack = (jnp.asarray(gradients), jnp.asarray(normals))
    products = inner_products(gradients, normals)
    flat, target = normals.reshape(-1), np.ones_like(normals)
    seconds = rounds(
        {
            "ours": partial(whole, *stack),
            "vmap": partial(twin, *stack),
            "BLAS and quadprog loop": partial(blas_loop, gradients, normals),
            "inner products": partial(inner_products, gradients, normals),
            "dual": partial(duals, *map(jnp.asarray, products)),
            "copy": partial(np.copyto, target, normals),
            "read": partial(np.dot, flat, flat),
        },
        turns,
    )
    # A copy is one read and one write.
    bandwidth = max(
        2 * normals.nbytes / min(seconds["copy"]), normals.nbytes / min(seconds["read"])
    )
    traffic = 2 * normals.nbytes + 3 * gradients.nbytes
    ours, twins = np.asarray(whole(*stack)), np.asarray(twin(*stack))
    return {
        "agents": agents,
        "rows": rows,
        "width": width,
        "rounds": turns,
        "milliseconds": {name: 1e3 * float(np.median(times)) for name, times in seconds.items()},
        "fastest_milliseconds": {name: 1e3 * min(times) for name, times in seconds.items()},
        "ratio_to_ours": {name: ratio(seconds, name, "ours") for name in seconds},
        "dual_over_inner_products": ratio(seconds, "dual", "inner products"),
        "gigabytes_a_second": bandwidth / 1e9,
        "bound_milliseconds": 1e3 * traffic / bandwidth,
        "difference_to_vmap": float(np.max(np.abs(ours - twins)) / np.max(np.abs(twins))),
    }


def line_of_whole(result: dict) -> str:
    cells = [
        f"{name} {result['milliseconds'][name]:.2f} "
        f"({result['fastest_milliseconds'][name]:.2f}) ms {result['ratio_to_ours'][name]:.1f}x"
        for name in result["milliseconds"]
    ]
    return (
        f"A {result['agents']:3d}  K {result['rows']:3d}  D {result['width']:7d} | "
        f"{' | '.join(cells)} | bound {result['bound_milliseconds']:.1f} ms at "
        f"{result['gigabytes_a_second']:.1f} GB/s | dual / inner products "
        f"{result['dual_over_inner_products']:.3f}"
    )


def main() -> None:
    options = arguments(__doc__, rounds=21).parse_args()
    agents, rows = ((8,), (4,)) if options.smoke else ((8, 64, 512), (4, 16, 64))
    turns = 2 if options.smoke else options.rounds
    results = []
    for correlated in (False,) if options.smoke else (False, True):
        for number in agents:
            for size in rows:
                results.append(measure(number, size, correlated, turns))
                print(line(results[-1]), flush=True)
    stacks = [(2, 4, 10_000)] if options.smoke else STACKS
    wholes = []
    for stack in stacks:
        wholes.append(measure_whole(*stack, max(2, turns // 3)))
        print(line_of_whole(wholes[-1]), flush=True)
    keep(options.out, results=results, stacks=wholes)


if __name__ == "__main__":
    main()
