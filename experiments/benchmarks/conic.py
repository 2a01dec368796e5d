"""How fast is the projection onto half-spaces, a ball, angle cones and trust regions at once?

The program alone, as the library meets it: inner products of A agents in, coefficients out. Ours is
one jitted ``vmap`` in float32; the peer is a loop over agents of Clarabel in float64, on the same
programs in a basis of the span of g and V (M + 1 unknowns), problem set-up included and excluded.
All are timed in turn, round by round; medians are reported (fastest in brackets), compilation is
left out. The error is that of u against ours in float64, relative to |u|.

Predictions, written before the first run, for A = 64, M = 8 on two cores: half-spaces alone cost
what ``solve_cone_dual`` costs and no more, .5 ms; a ball makes it 4 times as long (some five Newton
steps, each of them a dual solve of 19 rows); everything at once 10 times. Clarabel takes .1 ms an
agent and as much again to set up: 13 ms whatever binds. So ours wins everywhere, by 20 times where
only half-spaces bind, and by 2 to 3 where all does.

    python -m experiments.benchmarks.conic --out conic.json
"""

from functools import partial
from typing import NamedTuple

import clarabel
import jax
import numpy as np
from scipy import sparse

from experiments.benchmarks.timing import arguments, keep, ratio, rounds
from vcca_jax.cones.conic import ConicSolution, solve_conic_program

KINDS = ("half-spaces", "ball", "everything")


class Programs(NamedTuple):
    """The same programs as inner products and in parameter space."""

    gradients: np.ndarray  # [A, D]
    values: np.ndarray  # [A, M, D]
    sign: np.ndarray  # [A, M]
    margin: np.ndarray  # [A, M]
    max_norm: np.ndarray  # [A]
    cosines: np.ndarray  # [A, M]
    weights: np.ndarray  # [A, 1, M]
    radii: np.ndarray  # [A, 1]


def programs(agents: int, values: int, kind: str, seed: int) -> Programs:
    """Random ones around an update known to be admissible; ``kind`` says what may bind."""
    rng = np.random.default_rng(seed)
    width = 4 * values
    rows = rng.standard_normal((agents, values, width))
    norms = np.linalg.norm(rows, axis=2)
    gradients = rng.standard_normal((agents, width))
    inside = 0.15 * rng.standard_normal((agents, width))
    inside += np.sum(rows[:, :3] / norms[:, :3, None], axis=1)
    size, reached = np.linalg.norm(inside, axis=1), np.einsum("amd,ad->am", rows, inside)
    sign = rng.choice([-1.0, 1.0], (agents, values))
    cosines, max_norm = np.full((agents, values), -1.0), np.full(agents, np.inf)
    weights = rng.uniform(0, 1, (agents, 1, values))
    radii = np.full((agents, 1), np.inf)
    if kind != "half-spaces":
        max_norm = 1.05 * size
    if kind == "everything":
        cosines[:, :3] = np.maximum(0, (reached / norms / size[:, None])[:, :3] - 0.1)
        radii = 1.1 * np.linalg.norm(weights * reached[:, None], axis=2)
    margin = sign * reached - 0.3 * rng.exponential(size=(agents, values))
    return Programs(gradients, rows, sign, margin, max_norm, cosines, weights, radii)


def inner_products(asked: Programs, dtype: type) -> dict[str, np.ndarray]:
    """The arguments of ``solve_conic_program``, with a leading [A]."""
    agents, values, _ = asked.values.shape
    arguments = {
        "gram": asked.values @ asked.values.transpose(0, 2, 1),
        "products": np.einsum("amd,ad->am", asked.values, asked.gradients),
        "squared_norm": np.sum(asked.gradients**2, axis=1),
        "sign": asked.sign,
        "margin": asked.margin,
        "max_norm": asked.max_norm,
        "cosines": asked.cosines,
        "weights": asked.weights,
        "radii": asked.radii,
    }
    floats = {name: array.astype(dtype) for name, array in arguments.items()}
    return {**floats, "value": np.tile(np.arange(values), (agents, 1))}


@jax.jit
def ours(arguments: dict[str, jax.Array]) -> ConicSolution:
    return jax.vmap(lambda each: solve_conic_program(**each))(arguments)


def clarabel_solvers(asked: Programs) -> list[clarabel.DefaultSolver]:
    """One solver an agent, ready to go: min 1/2 |x|^2 - <g, x>, right - left x in cones."""
    solvers = []
    settings = clarabel.DefaultSettings()
    settings.verbose = False
    for agent in range(len(asked.gradients)):
        vectors = np.vstack([asked.values[agent], asked.gradients[agent]])
        basis = np.linalg.qr(vectors.T)[0]
        rows, size = asked.values[agent] @ basis, basis.shape[1]
        nothing = np.zeros((1, size))
        left, right = [-asked.sign[agent][:, None] * rows], [-asked.margin[agent]]
        cones = [clarabel.NonnegativeConeT(len(rows))]
        curved = [(nothing, asked.max_norm[agent], np.eye(size))]
        for cosine, row in zip(asked.cosines[agent], rows, strict=True):
            if cosine >= 0:
                scaled = cosine * np.linalg.norm(row) * np.eye(size)
                curved.append((row[None], 0.0, scaled))
        curved.append((nothing, asked.radii[agent, 0], asked.weights[agent, 0][:, None] * rows))
        for head, limit, tail in curved:
            if np.isfinite(limit):
                left += [-head, -tail]
                right += [[limit], np.zeros(len(tail))]
                cones.append(clarabel.SecondOrderConeT(1 + len(tail)))
        solvers.append(
            clarabel.DefaultSolver(
                sparse.eye(size, format="csc"),
                -basis.T @ asked.gradients[agent],
                sparse.csc_matrix(np.vstack(left)),
                np.concatenate(right),
                cones,
                settings,
            )
        )
    return solvers


def solve_all(solvers: list[clarabel.DefaultSolver]) -> list:
    return [solver.solve().x for solver in solvers]


def updates(asked: Programs, solution: ConicSolution) -> np.ndarray:
    coefficients = np.asarray(solution.coefficients, float)
    scale = np.asarray(solution.scale, float)[:, None]
    return scale * asked.gradients + np.einsum("am,amd->ad", coefficients, asked.values)


def measure(agents: int, values: int, kind: str, turns: int) -> dict:
    """Times both on the same programs, round by round."""
    asked = programs(agents, values, kind, seed=values)
    arguments = inner_products(asked, np.float32)
    solution = ours(arguments)
    with jax.enable_x64(True):
        exact = updates(asked, ours(inner_products(asked, np.float64)))
    size = np.linalg.norm(exact, axis=1)
    error = np.linalg.norm(updates(asked, solution) - exact, axis=1) / size
    solvers = clarabel_solvers(asked)
    seconds = rounds(
        {
            "ours": partial(ours, arguments),
            "clarabel loop": lambda: solve_all(solvers),
            "clarabel loop with set-up": lambda: solve_all(clarabel_solvers(asked)),
        },
        turns,
    )
    return {
        "agents": agents,
        "values": values,
        "kind": kind,
        "rounds": turns,
        "half_spaces_stand": int(np.sum(solution.stands)),
        "feasible": int(np.sum(solution.feasible)),
        "milliseconds": {name: 1e3 * float(np.median(t)) for name, t in seconds.items()},
        "fastest_milliseconds": {name: 1e3 * min(t) for name, t in seconds.items()},
        "ratio_to_ours": {name: ratio(seconds, name, "ours") for name in seconds},
        "error": float(error.max()),
    }


def line(result: dict) -> str:
    cells = [
        f"{name} {result['milliseconds'][name]:6.2f} "
        f"({result['fastest_milliseconds'][name]:.2f}) ms {result['ratio_to_ours'][name]:5.1f}x"
        for name in result["milliseconds"]
    ]
    head = f"A {result['agents']:3d}  M {result['values']:2d}  {result['kind']:11s}"
    return f"{head} | {' | '.join(cells)} | error {result['error']:.0e}"


def main() -> None:
    options = arguments(__doc__, rounds=21).parse_args()
    agents, values, turns = (4, 3, 2) if options.smoke else (64, 8, options.rounds)
    results = []
    for kind in KINDS:
        results.append(measure(agents, values, kind, turns))
        print(line(results[-1]), flush=True)
    keep(options.out, results=results)


if __name__ == "__main__":
    main()
