"""How a site's gradients are held, and what each way costs.

Of R examples with n others in K directions, at a site of T positions that multiplies [T, I] with
[I, J], in multiplications for each example:

    pairs        n T^2 (I + J) for products, T I J to combine         nothing of size I J is formed
    stacked      T I J to form its gradient, (K + 1) I J afterwards   R I J numbers are held
    directions   K T I J for products, T I J to combine               K directions are formed

A number that is written to memory and read back costs some twenty multiplications.
"""

from collections.abc import Sequence
from typing import Literal

from vcca_jax.one_pass.sites import SiteSize

Form = Literal["auto", "pairs", "stacked", "directions"]

PASS = 20
"""Multiplications in the time in which a number goes to memory or comes from it."""
ROOM = 2**28
"""Bytes that one site may hold beside its activations, at most."""
WIDTH = 4
"""Bytes of a number."""


def site_form(size: SiteSize, *, examples: int, blocks: Sequence[int], wish: Form = "auto") -> Form:
    """The cheapest form that fits, or the wished one where the site has it.

    Args:
        size: the site's.
        examples: R.
        blocks: rows in each of the K directions.
        wish: a form, or "auto".
    """
    if not blocks:
        return "directions"
    if wish == "pairs" and _pairable(size):
        return "pairs"
    if wish in ("stacked", "directions"):
        return wish
    costs = site_costs(size, examples=examples, blocks=blocks)
    return min(costs, key=lambda form: costs[form])


def site_costs(size: SiteSize, *, examples: int, blocks: Sequence[int]) -> dict[Form, float]:
    """Multiplications an example of the forms that fit; see the module for what they count.

    Args:
        size: the site's.
        examples: R.
        blocks: rows in each of the K directions, perhaps none.
    """
    directions, others = len(blocks), sum(blocks)
    stack_fits = WIDTH * examples * size.weights <= ROOM
    if size.shape is None:
        # Elementwise operations and look-ups: a small gradient is cheaper kept than taken anew.
        one = float(max(size.multiplications, size.outputs))
        costs: dict[Form, float] = {"directions": (directions + 1) * one}
        if stack_fits and size.weights <= size.outputs:
            costs = {"stacked": one + size.weights * (directions + 1)}
        return costs
    positions, inputs, outputs = size.shape
    one, combine = float(inputs * outputs), float(positions * inputs * outputs)
    costs = {"directions": (directions * (1 + others / examples) + 1) * combine}
    if stack_fits:
        costs["stacked"] = combine + one * (directions + 1 + 3 * PASS)
    if _pairable(size) and WIDTH * examples * others * positions**2 <= ROOM:
        costs["pairs"] = others * positions**2 * (inputs + outputs + 2 * PASS) + combine
    return costs


def _pairable(size: SiteSize) -> bool:
    """Pairs leave out what a leaf that is used at several sites owes to their combination."""
    return size.shape is not None and size.alone
