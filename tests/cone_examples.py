"""Cones to project onto, and float64 oracles to compare with, for the tests of ``cones``."""

import itertools

import jax
import numpy as np
import quadprog
from hypothesis import strategies as st

from tests.compiling import optimized
from vcca_jax.cones.projection import cone_projection

ROWS, WIDTH = 5, 8  # the padded shape of the free tests: one trace for all of them
KINDS = ("plain", "margins", "duplicate", "opposing", "zero", "correlated")

project_batch = optimized(jax.vmap(cone_projection))
project_one = optimized(cone_projection)


def enumerated(g, normals, margins):
    """The readable twin: try every set of binding rows, keep the one that is optimal."""
    deficit, gram = margins - normals @ g, normals @ normals.T
    best, best_error = None, np.inf
    for size in range(len(normals) + 1):
        for rows in itertools.combinations(range(len(normals)), size):
            rows = list(rows)
            multipliers = np.zeros(len(normals))
            multipliers[rows] = np.linalg.pinv(gram[np.ix_(rows, rows)], 1e-10) @ deficit[rows]
            slack = gram @ multipliers - deficit
            error = np.abs(np.minimum(multipliers, slack)).max(initial=0.0)
            if error < best_error:
                best, best_error = g + multipliers @ normals, error
    assert best_error < 1e-9
    return best


def quadratic_program(g, normals, margins, equalities=0):
    """quadprog on unit rows, zero rows left out."""
    g, normals = np.asarray(g, float), np.asarray(normals, float)
    norms = np.linalg.norm(normals, axis=1)
    kept = norms > 0
    if not kept.any():
        return g
    unit = normals[kept] / norms[kept, None]
    limits = np.asarray(margins, float)[kept] / norms[kept]
    return quadprog.solve_qp(np.eye(len(g)), g, unit.T, limits, meq=equalities)[0]


def example(rng, kind, rows, width):
    """One cone and one gradient, of a kind that always has an admissible update."""
    normals = rng.standard_normal((rows, width)) * np.exp(rng.uniform(-1, 1, (rows, 1)))
    margins = np.zeros(rows)
    half = rows - rows // 2
    if kind == "margins":
        margins = normals @ rng.standard_normal(width) - rng.exponential(size=rows)
    if kind == "duplicate":
        normals[half:] = 2.0 * normals[: rows // 2]
    if kind == "opposing":
        normals[half:] = -0.5 * normals[: rows // 2]
    if kind == "zero":
        normals[rng.random(rows) < 0.4] = 0.0
    if kind == "correlated":
        normals = normals + 2.0 * rng.standard_normal((1, width))
    return rng.standard_normal(width), normals, margins


def reference(kind, g, normals, margins):
    """quadprog where rows are independent, and on the distinct rows where they are not."""
    half = len(normals) - len(normals) // 2
    if kind == "duplicate":
        return quadratic_program(g, normals[:half], margins[:half])
    if kind == "opposing":
        # Pairs first, since quadprog takes its equalities from the front.
        return quadratic_program(g, normals[:half], margins[:half], len(normals) // 2)
    return quadratic_program(g, normals, margins)


SMALL, LARGE = (128, 16, 42), (24, 64, 138)  # agents, rows, width


def batch(cones, shape, dtype):
    """Stacks cones in the corner of ``shape``: NaN in unused rows, zeros in unused columns.

    Few shapes, so few compilations; and padding is met everywhere.
    """
    assert len(cones) <= shape[0]
    g = np.zeros(shape[::2], dtype)
    normals = np.full(shape, np.nan, dtype)
    margins = np.full(shape[:2], np.nan, dtype)
    mask = np.zeros(shape[:2], bool)
    for index, (gradient, lines, limits) in enumerate(cones):
        used, columns = lines.shape
        g[index, :columns] = gradient
        normals[index, :used] = 0.0
        normals[index, :used, :columns] = lines
        margins[index, :used] = limits
        mask[index, :used] = True
    return g, normals, margins, mask


def project_padded(g, normals, margins):
    """One small cone through the shape that every other test has compiled."""
    cone = tuple(np.asarray(x, np.float32) for x in (g, normals, margins))
    padded = (x[0] for x in batch([cone], (1, ROWS, WIDTH), np.float32))
    projection = project_one(*padded)
    return projection._replace(
        update=projection.update[: len(cone[0])],
        multipliers=projection.multipliers[: len(cone[1])],
    )


def worst_error(projection, references):
    return max(
        np.linalg.norm(np.asarray(u, float)[: len(r)] - r) / max(np.linalg.norm(r), 1e-3)
        for u, r in zip(projection.update, references, strict=False)
    )


@st.composite
def padded_cones(draw):
    """A cone in the corner of [ROWS, WIDTH], NaN everywhere else."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kind, rows = draw(st.sampled_from(KINDS)), draw(st.integers(1, ROWS))
    g, normals, margins = example(rng, kind, rows, WIDTH)
    g, normals, margins = (x.astype(np.float32) for x in (g, normals, margins))
    padded = np.full((ROWS, WIDTH), np.nan, np.float32)
    padded[:rows] = normals
    limits = np.full(ROWS, np.nan, np.float32)
    limits[:rows] = margins
    return g, padded, limits, np.arange(ROWS) < rows


def live(cone):
    g, normals, margins, mask = cone
    return tuple(x.astype(float) for x in (g, normals[mask], margins[mask]))


def nearly_dependent(rng, rows, width, condition):
    left, _ = np.linalg.qr(rng.standard_normal((rows, rows)))
    right, _ = np.linalg.qr(rng.standard_normal((width, rows)))
    normals = left * np.geomspace(1.0, 1.0 / condition, rows) @ right.T
    return rng.standard_normal(width), normals, np.zeros(rows)


def degenerate(rng, rows, width):
    """Integer rows of which the second half are sums of others, with signs: exactly dependent."""
    half = rows // 2
    normals = rng.integers(-3, 4, (rows, width)).astype(float)
    for row in range(half, rows):
        chosen = rng.choice(half, 2, replace=False)
        normals[row] = rng.choice([-1, 1], 2) @ normals[chosen]
    return rng.integers(-3, 4, width).astype(float), normals, np.zeros(rows)


def margins_by(rng, rows, width, distance):
    """Unit rows whose margins can be met with ``distance`` to spare, or miss by as much."""
    normals = rng.standard_normal((rows, width))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    if distance > 0:
        spare = distance + rng.exponential(size=rows) * (rng.random(rows) < 0.5)
        return rng.standard_normal(width), normals, normals @ rng.standard_normal(width) - spare
    # Farkas: y >= 0 with N^T y = 0 and m^T y = |distance| sum(y), so some row misses by as much.
    used = rng.integers(1, min(rows, 6))
    certificate = np.zeros(rows)
    certificate[:used] = rng.uniform(0.3, 1.0, used)
    last = -certificate[:used] @ normals[:used]
    certificate[used] = np.linalg.norm(last)
    normals[used] = last / certificate[used]
    margins = rng.uniform(-1.0, 1.0, rows)
    margins -= margins @ certificate / certificate.sum() + distance
    return rng.standard_normal(width), normals, margins


def random_cones(rng, count):
    """Anything goes: ranks, sizes, margins, masks, repeated and vanishing rows."""
    g = rng.standard_normal((count, WIDTH)) * 10.0 ** rng.uniform(-6, 6, (count, 1))
    normals = rng.standard_normal((count, 12, WIDTH)) * 10.0 ** rng.uniform(-6, 6, (count, 12, 1))
    copies = rng.integers(0, 12, (count, 12, 1)) * (rng.random((count, 12, 1)) < 0.3)
    repeated = np.take_along_axis(normals, copies, axis=1) * rng.choice([-1, 1e-3, 1], copies.shape)
    normals = np.where(copies > 0, repeated, normals) * (rng.random((count, 12, 1)) < 0.9)
    margins = rng.standard_normal((count, 12)) * 10.0 ** rng.uniform(-6, 6, (count, 1))
    margins *= rng.random((count, 1)) < 0.5
    return *(x.astype(np.float32) for x in (g, normals, margins)), rng.random((count, 12)) < 0.8
