"""The least core: an allocation that no coalition has much reason to leave."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

SLACK = 1e-7
"""How much above the smallest a deficit still counts as a tie, relative to the largest gain."""


class LeastCore(NamedTuple):
    """An allocation of the grand coalition's gain.

    Attributes:
        credits: `[A]` float64, in the unit of the utility, summing to v(w) - v(0).
        deficit: e, the most by which a coalition's gain exceeds its members' credit. 0 or less: the
            core is not empty (over the coalitions given).
    """

    credits: np.ndarray
    deficit: float


def least_core(
    values: ArrayLike, *, coalitions: ArrayLike | None = None, weights: ArrayLike | None = None
) -> LeastCore:
    """Divide the grand coalition's gain so that the largest deficit of a coalition is smallest.

    min e  subject to  sum_i c_i = v(N) - v(0),  sum_{i in S} c_i >= v(S) - v(0) - e  for all S

    over the proper non-empty coalitions S. Often many credits reach the smallest e; of these the
    one of least norm is returned, that is the one closest to equal shares, which is unique; e may
    exceed the smallest by 1e-7 of the largest gain for it. (The nucleolus, which goes on to the
    next largest deficit, is another point of the least core.)

    A host function of utilities already evaluated: it solves a linear program and a least-distance
    problem in float64 and runs neither under `jit` nor under `vmap`. Get the values of all
    coalitions from `coalition_values`, exact and quick up to A = 12 or so; beyond, draw rows and
    get theirs from `evaluate`, which bounds the deficit for most coalitions, not for all.

    Cost: no utility evaluation; a linear program of A + 1 variables and one row a coalition. Holds:
    efficiency, symmetry (with all coalitions). Does not hold: linearity, split-invariance, null
    agent: where the smallest deficit leaves room, equal shares reach into it (agents of weight 0
    are left out and get exactly 0). For one agent e is minus infinity: there is no other coalition.

    Args:
        values: Utilities `[n]`: of all 2**A coalitions in the order of `coalition_values`, or of
            `coalitions`.
        coalitions: Members as booleans `[n, A]`, the empty and the grand one among them; None means
            all. Repeated rows do no harm.
        weights: The grand coalition's participation weights, `[A]`; None means all present.

    Returns:
        `LeastCore(credits, deficit)`, NumPy.

    Raises:
        ValueError: If `values` are not finite or of no fitting length, the empty or the grand
            coalition is missing, weights are outside [0, 1], or nobody is present.
        RuntimeError: If the linear program is not solved.

    Example:
        >>> least_core([0.0, 0.0, 0.0, 1.0]).credits.tolist()  # no worth alone
        [0.5, 0.5]

    Source: Maschler, Peleg & Shapley, "Geometric properties of the kernel, nucleolus, and related
    solution concepts", Mathematics of Operations Research 4 (1979); Yan & Procaccia, "If you like
    Shapley then you'll love the core", AAAI (2021), for sampled coalitions and the least norm;
    Lawson & Hanson, "Solving least squares problems" (1974), for the least distance.
    """
    # Loaded when it is needed: an import of the package stays quick.
    from scipy import optimize  # type: ignore[import-untyped]

    gains, members, present, everybody = _checked(values, coalitions, weights)
    credits = np.zeros(len(present))
    # The solvers' tolerances are absolute: they are given gains of size 1.
    scale = np.abs(gains).max() or 1.0
    gains = gains / scale
    total = gains[everybody]
    rows = np.unique(np.column_stack([members[:, present], gains]).astype(np.float64), axis=0)
    inside, asked = rows[:, :-1], rows[:, -1]
    number = inside.sum(axis=1)
    proper = (number > 0) & (number < inside.shape[1])
    inside, asked, number = inside[proper], asked[proper], number[proper]
    agents = inside.shape[1]
    if not len(asked):
        credits[present] = scale * total / agents
        return LeastCore(credits, -np.inf)
    solution = optimize.linprog(
        np.append(np.zeros(agents), 1.0),
        A_ub=np.column_stack([-inside, -np.ones(len(asked))]),
        b_ub=-asked,
        A_eq=np.append(np.ones(agents), 0.0)[None, :],
        b_eq=[total],
        bounds=(None, None),
        method="highs",
    )
    if solution.status != 0:
        raise RuntimeError(f"the linear program was not solved: {solution.message}")
    # Solvers keep constraints to a tolerance: what their point attains is attainable.
    attained = solution.x[:-1] + (total - solution.x[:-1].sum()) / agents
    deficit = float(np.max(asked - inside @ attained))
    # Deviations from equal shares, in an orthonormal basis of those that sum to 0.
    basis = np.linalg.svd(np.ones((1, agents)))[2][1:].T
    short = asked - deficit - number * total / agents - SLACK
    closest = total / agents + basis @ _least_distance(inside @ basis, short)
    reached = float(np.max(asked - inside @ closest))
    # Where ties are narrower than rounding, the linear program's own point is as good.
    if not reached <= deficit + 10 * SLACK:
        closest, reached = attained, deficit
    credits[present] = scale * closest
    return LeastCore(credits, float(scale * reached))


def _least_distance(rows: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """argmin |x|^2 subject to rows x >= bounds, by non-negative least squares."""
    from scipy import optimize

    if np.all(bounds <= 0):
        return np.zeros(rows.shape[1])
    target = np.append(np.zeros(rows.shape[1]), 1.0)
    stacked = np.vstack([rows.T, bounds[None, :]])
    multipliers, _ = optimize.nnls(stacked, target, maxiter=50 * stacked.shape[1])
    rest = target - stacked @ multipliers
    return -rest[:-1] / rest[-1] if rest[-1] else np.full(rows.shape[1], np.nan)


def _checked(
    values: ArrayLike, coalitions: ArrayLike | None, weights: ArrayLike | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Gains over the empty coalition, members, who is present, the grand coalition's row."""
    utilities = np.asarray(values, dtype=np.float64)
    if utilities.ndim != 1 or not np.all(np.isfinite(utilities)):
        raise ValueError(
            f"values has shape {utilities.shape}; pass one finite utility a coalition, [n]"
        )
    if coalitions is None:
        agents = len(utilities).bit_length() - 1
        if agents < 1 or len(utilities) != 2**agents:
            raise ValueError(
                f"values has {len(utilities)} entries, not 2**A; pass the coalitions they belong to"
            )
        members = (np.arange(2**agents)[:, None] >> np.arange(agents)[None, :]) & 1 == 1
    else:
        members = np.asarray(coalitions, dtype=bool)
        if members.ndim != 2 or len(members) != len(utilities) or members.shape[1] < 1:
            raise ValueError(
                f"coalitions has shape {members.shape}; pass one row a value, {len(utilities)}, "
                "and one column an agent"
            )
    given = np.ones(members.shape[1]) if weights is None else np.asarray(weights, np.float64)
    within = np.all((given >= 0) & (given <= 1))
    if given.shape != (members.shape[1],) or not (within and given.any()):
        raise ValueError(
            f"weights is {weights!r}; pass one weight an agent, {members.shape[1]}, each in [0, 1]"
            " and one above 0"
        )
    present = given > 0
    number = members[:, present].sum(axis=1)
    empty, everybody = np.flatnonzero(number == 0), np.flatnonzero(number == present.sum())
    if not len(empty) or not len(everybody):
        raise ValueError(
            "coalitions lacks the empty or the grand coalition; add a row of false and one of true"
        )
    return utilities - utilities[empty[0]], members, present, int(everybody[0])
