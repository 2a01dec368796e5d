"""GTG-Shapley: guided orders, cut short once little is left to gain."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vcca_jax.arguments import check_count, check_key
from vcca_jax.contribution.coalitions import evaluate, participation
from vcca_jax.contribution.protocols import Utility


class Guided(NamedTuple):
    """What the guided orders came to; host values.

    Attributes:
        credits: `[A]` float64, in the unit of the utility.
        evaluations: how often the utility was asked for, once a coalition (batches padded to equal
            sizes run more rows).
        orders: how many orders were walked; 0 if the round was passed over.
        converged: whether the running means had settled, rather than `most` being reached.
    """

    credits: np.ndarray
    evaluations: int
    orders: int
    converged: bool


def gtg_shapley(
    utility: Utility,
    weights: jax.typing.ArrayLike,
    *,
    key: jax.Array,
    round_tolerance: float = 1e-3,
    order_tolerance: float = 1e-3,
    change: float = 0.05,
    window: int = 10,
    least: int = 30,
    most: int | None = None,
) -> Guided:
    """Estimate every agent's Shapley value in one round by guided truncation.

    If |v(w) - v(0)| <= round_tolerance, all credits are 0 (between-round truncation). Otherwise
    sweep after sweep of n orders for the n agents present, each agent leading one order of a
    sweep and the others following at random (guided sampling). Along an order,

        c_i gets v(those before i, and i) - v(those before i),

    until |v(w) - v(those before)| < order_tolerance, from where on it gets 0 (within-round
    truncation). c = mean over orders. After k > max(least, n) orders the running means have settled
    if each of the last `window` differs from the last one by at most `change`, as a mean over
    agents of relative differences; `most` orders end it anyway. Federated rounds are given as
    `renormalised_game`, as published, or as `fixed_weight_game`.

    RAW MEANS. The reference implementation goes on to divide positive and negative credits by the
    sums of their kind, which breaks efficiency wherever signs are mixed: of the additive game (0.3,
    0.2, -0.1) it makes (0.24, 0.16, -0.08), which sums to 0.32 instead of 0.4. Not done here.

    A host function: which coalition is asked for next depends on what the last was worth. The
    orders of a sweep are walked side by side, and their coalitions evaluated in batches of one
    shape; each is evaluated once and remembered. It runs neither under `jit` nor under `vmap`: pass
    a jitted utility, and one program serves all batches. For a run, hand its credits to `fedsv` as
    an estimator, `lambda *given, key: gtg_shapley(*given, key=key).credits`, stepped outside `jit`.

    Cost: `evaluations`, never more than 2**n; few agents are enumerated by it, and dearer than by
    `exact_shapley`, as batches are small. Holds: efficiency up to `order_tolerance` (to rounding
    without truncation, and up to `round_tolerance` in a round passed over), an agent that changes
    nothing gets exactly 0, symmetry in expectation. Whole sweeps of guided orders are unbiased;
    truncation is not, as it takes from whoever comes late. What the game does not hold, this does
    not either.

    Args:
        utility: a pure function of participation weights `[A]`; jitted, best.
        weights: the grand coalition's participation weights, `[A]` in [0, 1].
        key: a `jax.random.key`; sweep m draws from `fold_in(key, m)`.
        round_tolerance: in the unit of the utility, >= 0.
        order_tolerance: in the unit of the utility, >= 0; 0 cuts nothing.
        change: relative, >= 0.
        window: how many running means must agree, at least 2.
        least: fewest orders before they may.
        most: most orders (the sweep is finished); None means 0.8 * 2**n, as in the reference
            implementation, which is less than `least` for n <= 5.

    Returns:
        `Guided(credits, evaluations, orders, converged)`, NumPy.

    Raises:
        ValueError: If a tolerance is negative, `window` is less than 2, `least` or `most` is less
            than 1, `key` is None, `weights` is not `[A]` in [0, 1], or the utility of a coalition
            is no scalar or not finite.

    Source: Liu, Chen, Yu, Liu & Cui, "GTG-Shapley: efficient and accurate participant contribution
    evaluation in federated learning", arXiv:2109.02053; the constants are those of its published
    implementations.
    """
    _check(round_tolerance, order_tolerance, change, window, least, most)
    key = check_key(key, "the orders are")
    weights = participation(weights)
    players = np.flatnonzero(np.asarray(weights) > 0)
    count = len(players)
    credits = np.zeros(weights.shape[0])
    if count == 0:
        return Guided(credits, 0, 0, True)
    known = _Known(utility, weights, count)
    nobody = np.zeros(weights.shape[0], bool)
    everybody = np.asarray(weights) > 0
    empty, full = known.values(np.stack([nobody, everybody]))
    if abs(full - empty) <= round_tolerance:
        return Guided(credits, known.evaluations, 0, True)
    limit = math.ceil(0.8 * 2**count) if most is None else most
    marginals = np.zeros((0, count))
    converged = False
    sweep = 0
    while not converged and len(marginals) < limit:
        orders = _guided_orders(jax.random.fold_in(key, sweep), count)
        fresh = _walk(known, players, orders, empty, full, order_tolerance)
        marginals = np.concatenate([marginals, fresh])
        enough = len(marginals) > max(least, count, window - 1)
        converged = enough and _settled(marginals, window, change)
        sweep += 1
    credits[players] = marginals.mean(axis=0)
    return Guided(credits, known.evaluations, len(marginals), converged)


class _Known:
    """Utilities asked for so far, each evaluated once, in batches of one shape."""

    def __init__(self, utility: Utility, weights: jax.Array, batch: int) -> None:
        self.agents = weights.shape[0]
        self.evaluations = 0
        self._table: dict[bytes, float] = {}
        self._utility, self._weights, self._batch = utility, weights, batch

    def values(self, coalitions: np.ndarray) -> np.ndarray:
        """The utilities `[m]` of coalitions, booleans `[m, A]`."""
        names = [row.tobytes() for row in coalitions]
        new = {n: row for n, row in zip(names, coalitions, strict=True) if n not in self._table}
        wanted = list(new.items())
        for start in range(0, len(wanted), self._batch):
            part = wanted[start : start + self._batch]
            padded = [row for _, row in part] + [part[0][1]] * (self._batch - len(part))
            rows = jnp.asarray(np.stack(padded))
            results = np.asarray(evaluate(self._utility, self._weights, rows), np.float64)
            for (_, row), worth in zip(part, results.tolist(), strict=False):
                if not math.isfinite(worth):
                    raise ValueError(
                        f"utility returned {worth} for the coalition of agents"
                        f" {np.flatnonzero(row).tolist()}; credits need finite utilities: screen"
                        " the updates, shorten the step, or bound the loss"
                    )
            self.evaluations += len(part)
            self._table.update(zip((name for name, _ in part), results.tolist(), strict=False))
        return np.array([self._table[name] for name in names])


def _guided_orders(key: jax.Array, count: int) -> np.ndarray:
    """`[n, n]`, row i an order of arrival that player i leads."""
    draws = np.array(jax.random.uniform(key, (count, count)))
    np.fill_diagonal(draws, -1.0)
    return np.argsort(draws, axis=1, kind="stable")


def _walk(
    known: _Known,
    players: np.ndarray,
    orders: np.ndarray,
    empty: float,
    full: float,
    tolerance: float,
) -> np.ndarray:
    """Marginal contributions `[orders, n]` along orders, cut short where little is left."""
    lines = np.arange(len(orders))
    inside = np.zeros((len(orders), known.agents), bool)
    before = np.full(len(orders), empty)
    marginals = np.zeros(orders.shape)
    for place in range(orders.shape[1]):
        inside[lines, players[orders[:, place]]] = True
        going = np.abs(full - before) >= tolerance
        if not going.any():
            break
        after = before.copy()
        after[going] = known.values(inside[going])
        marginals[lines, orders[:, place]] = after - before
        before = after
    return marginals


def _settled(marginals: np.ndarray, window: int, change: float) -> bool:
    counts = np.arange(1, len(marginals) + 1)[:, None]
    means = (np.cumsum(marginals, axis=0) / counts)[-window:]
    apart = np.abs(means - means[-1]) / (np.abs(means[-1]) + 1e-12)
    return bool(apart.mean(axis=1).max() <= change)


def _check(
    round_tolerance: float,
    order_tolerance: float,
    change: float,
    window: int,
    least: int,
    most: int | None,
) -> None:
    for name, value in (
        ("round_tolerance", round_tolerance),
        ("order_tolerance", order_tolerance),
        ("change", change),
    ):
        if not value >= 0:
            raise ValueError(f"{name} is {value}; pass a number >= 0")
    for name, number, fewest in (("window", window, 2), ("least", least, 1), ("most", most, 1)):
        if number is not None:
            check_count(name, number, fewest)
