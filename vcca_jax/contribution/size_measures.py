"""How likely an agent is to join a coalition of each size: what makes a semivalue the one it is."""

import math
from collections.abc import Callable, Sequence
from fractions import Fraction

import jax
import numpy as np

SizeMeasure = Sequence[float] | np.ndarray | Callable[[int], Sequence[float]]
"""The probabilities q(0) .. q(A - 1) of the number of others that an agent joins, `[A]`; or a
function of A that returns them, which then serves cooperatives of any length."""


def beta_sizes(alpha: float, beta: float) -> Callable[[int], list[float]]:
    """The sizes of Beta(alpha, beta)-Shapley: beta-binomial.

    q(s) = C(A-1, s) B(s + beta, A - 1 - s + alpha) / B(alpha, beta),  B the beta function

    alpha > beta stresses small coalitions, beta > alpha large ones; (1, 1) is Shapley.

    Args:
        alpha: First parameter, positive; (16, 1) is a common choice to find bad data.
        beta: Second parameter, positive.

    Returns:
        For `by_size` of `semivalue` and `semivalue_sampled`.

    Raises:
        ValueError: If `alpha` or `beta` is not positive and finite.

    Source: Kwon & Zou, "Beta Shapley", arXiv:2110.14049.
    """
    for name, parameter in (("alpha", alpha), ("beta", beta)):
        if not (math.isfinite(parameter) and parameter > 0):
            raise ValueError(f"{name} is {parameter}; pass a positive finite number")
    first, second = Fraction(float(alpha)), Fraction(float(beta))
    # B(a + j, b + k) / B(a, b) is rational: of products of a, a + 1, ..., all over one denominator,
    # whose powers cancel. Integers of any length divide without rounding but the last.
    unit = math.lcm(first.denominator, second.denominator)
    small, large = int(first * unit), int(second * unit)

    def sizes(agents: int) -> list[float]:
        others = agents - 1
        of_small, of_large = _rising(small, unit, others), _rising(large, unit, others)
        whole = _rising(small + large, unit, others)[-1]
        return [
            math.comb(others, size) * of_large[size] * of_small[others - size] / whole
            for size in range(agents)
        ]

    return sizes


def binomial_sizes(probability: float) -> Callable[[int], list[float]]:
    """The sizes of the weighted Banzhaf value: everybody else is in with the same probability.

    q(s) = C(A-1, s) p^s (1 - p)^(A-1-s)

    1/2 is Banzhaf, 1 leave-one-out, and 0 each agent's worth alone.

    Args:
        probability: p, in [0, 1].

    Returns:
        For `by_size` of `semivalue` and `semivalue_sampled`.

    Raises:
        ValueError: If `probability` is outside [0, 1].

    Source: Li & Yu, "Robust data valuation with weighted Banzhaf values", NeurIPS (2023).
    """
    if not 0 <= probability <= 1:
        raise ValueError(f"probability is {probability}; pass a number in [0, 1]")
    share = Fraction(float(probability))
    inside, unit = share.numerator, share.denominator

    def sizes(agents: int) -> list[float]:
        others = agents - 1
        return [
            math.comb(others, size)
            * inside**size
            * (unit - inside) ** (others - size)
            / unit**others
            for size in range(agents)
        ]

    return sizes


def sizes_for(by_size: SizeMeasure, agents: int) -> np.ndarray:
    """The probabilities of the sizes for this many agents, `[A]` float64, checked.

    Raises:
        ValueError: If they are traced, not one a size, negative, not finite, or do not sum to 1.
    """
    given = by_size(agents) if callable(by_size) else by_size
    wanted = (
        f"give the probability of each number of others, 0 to {agents - 1}, or a function of the"
        " number of agents that does, such as beta_sizes(4, 1)"
    )
    if isinstance(given, jax.core.Tracer):
        raise ValueError(f"by_size is traced, and decides what is drawn; {wanted}")
    sizes = np.asarray(given, dtype=np.float64)
    if sizes.shape != (agents,):
        raise ValueError(f"by_size has shape {sizes.shape} for {agents} agents; {wanted}")
    if not (np.all(sizes >= 0) and abs(sizes.sum() - 1) <= 1e-6):
        raise ValueError(f"by_size={sizes} sums to {sizes.sum():.6g}, not all >= 0 to 1; {wanted}")
    return sizes


def _rising(start: int, step: int, count: int) -> list[int]:
    """1, start, start (start + step), ..., with `count` factors at last."""
    products = [1]
    for number in range(count):
        products.append(products[-1] * (start + number * step))
    return products
