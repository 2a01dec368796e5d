"""How a site's gradients are held, and what each way costs.

Of R examples with n others in K directions, at a site of T positions that multiplies [T, I] with
[I, J], in multiplications for each example:

    pairs        n T^2 (I + J) for products, T I J to combine         nothing of size I J is formed
    stacked      T I J to form its gradient, (K + 1) I J afterwards   R I J numbers are held
    directions   K T I J for products, T I J to combine               K directions are formed

A number that is written to memory and read back costs some twenty multiplications.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from vcca_jax.sites import Site

Form = Literal["auto", "pairs", "stacked", "directions"]

PASS = 20
"""Multiplications in the time in which a number goes to memory or comes from it."""
ROOM = 2**28
"""Bytes that one site may hold beside its activations, at most."""
_WIDTH = 4


class SiteSize(NamedTuple):
    """What the choice needs to know of a site.

    Attributes:
        weights: numbers in its weights.
        outputs: numbers in one example's outputs.
    """

    weights: int
    outputs: int


def site_form(
    site: Site, size: SiteSize, *, alone: bool, examples: int, blocks: Sequence[int], wish: Form
) -> Form:
    """The cheapest form that fits, or the wished one where the site has it.

    Args:
        site: it.
        size: its.
        alone: its weights meet data nowhere else, which pairs need: they leave out what a leaf
            that is used at several sites owes to their combination.
        examples: R.
        blocks: rows in each of the K directions.
        wish: a form, or "auto".
    """
    if not blocks:
        return "directions"
    view, directions, others = site.view, len(blocks), sum(blocks)
    pairable = view is not None and site.leaf and alone
    if wish == "pairs" and pairable:
        return "pairs"
    if wish in ("stacked", "directions"):
        return wish
    stack_fits = _WIDTH * examples * size.weights <= ROOM
    if view is None:
        # Elementwise operations and look-ups: a small gradient is cheaper kept than taken anew.
        return "stacked" if stack_fits and size.weights <= size.outputs else "directions"
    one = view.inputs * view.outputs
    combine = view.positions * one
    pair_room = _WIDTH * examples * others * view.positions**2
    costs: dict[Form, float] = {"directions": (directions * (1 + others / examples) + 1) * combine}
    if stack_fits:
        costs["stacked"] = combine + one * (directions + 1 + 3 * PASS)
    if pairable and pair_room <= ROOM:
        pairs = others * view.positions**2 * (view.inputs + view.outputs + 2 * PASS)
        costs["pairs"] = pairs + combine
    return min(costs, key=lambda form: costs[form])
