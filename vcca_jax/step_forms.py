"""Which form a step's agent gradients take, by what each would cost.

A step asks K inner products of every agent's gradient, with M values and the validation loss, and
a weighted sum. With B samples, n held-out rows in the same pass, A agents, D parameters and V
visits of P samples each; and counting the multiplications in matrix products and convolutions of
one example's loss,

    g   forward and backward          t   what a tangent adds to the forward pass
    s   at all sites, each once       p   products and combination, each site in its cheapest
                                          form (``site_forms``)

the forms of ``gradients`` multiply, and hold beside the parameters,

    one_pass     (B + n) (g - s + p)             activations and cotangents of B + n rows, stacks
    linearized   (B + n) g + K B t               activations of B rows
    stacked      (3 V P + n) g + (K + 1) (1 + PASS) A D        A gradients
    scanned      (3 (K + 1) V P + n) g           activations of P rows, two gradients

where 3 stands for the few samples of a visit, whose products run at a third of a batch's speed.

Held-out losses that do not name their examples cost the same beside every form and count nothing.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vcca_jax.gradients import Method
from vcca_jax.one_pass.placement import PlacedLoss, placed
from vcca_jax.one_pass.shared_pass import HeldOut, joined_rows
from vcca_jax.one_pass.site_forms import PASS, WIDTH, site_costs, site_form
from vcca_jax.one_pass.site_views import VIEWS, ViewRule
from vcca_jax.one_pass.sites import forward_rules, loss_of_one, survey
from vcca_jax.programs import has_forward, holds, multiplications
from vcca_jax.trainer import ExampleLoss, Params
from vcca_jax.virtual_batch import VirtualBatch, visits

ROOM = 2**33
"""Bytes that a step may hold beside its parameters, by default: 8 GiB."""


class FormCost(NamedTuple):
    """What a form of the agent gradients would take for a step.

    Attributes:
        multiplications: of matrix products and convolutions, and what moving memory is worth.
        bytes: held at once beside the parameters.
    """

    multiplications: float
    bytes: float


def form_costs(
    loss_fn: ExampleLoss,
    params: Params,
    batch: VirtualBatch,
    held_out: Sequence[HeldOut] = (),
    context: Any = None,
    *,
    apart: bool = False,
    views: Mapping[str, ViewRule] = VIEWS,
) -> dict[Method, FormCost]:
    """What every form would cost, from shapes alone; nothing is run.

    An estimate to choose by: of all work only matrix products and what moves stacks, memory to a
    factor of two or three.

    Args:
        loss_fn: per-example loss.
        params: pytree of D numbers, or their shapes.
        batch: B samples of A agents, or their shapes.
        held_out: the M value losses, and the validation loss if its gradient is asked for: K of
            them, each a direction that every agent's gradient is met with.
        context: theirs.
        apart: their examples are kept out of the pass, as where values are streamed.
        views: of operations as products of matrices; see ``site_views``.

    Returns:
        A ``FormCost`` for each ``Method``; of a batch that is spread over devices, for the two that
        leave samples where they are. Without those whose products a ``jax.custom_vjp`` in the loss
        has no rule for: "linearized", and "one_pass" where parameters go through it.
    """
    spread = isinstance(loss_fn, PlacedLoss)
    blocks = [] if apart else joined_rows(loss_fn, batch, held_out, context)
    rows, held, asked = batch.mask.shape[0], sum(blocks), len(held_out)
    loss_fn, segments, where = placed(loss_fn, [(batch.inputs, batch.targets)])
    leaves, structure = jax.tree.flatten(params)
    of_one = loss_of_one(loss_fn, structure, jax.tree.structure(segments[0]))
    data = [where.example(leaf) for leaf in where.join(segments)]

    def moved(leaves: Sequence[Any], along: Sequence[Any], data: Sequence[Any]) -> Any:
        return jax.jvp(lambda at: of_one(at, data), (leaves,), (along,))

    def counted(function: Callable[..., Any], *arguments: Any) -> int:
        return multiplications(jax.make_jaxpr(function)(*arguments).eqns)

    bare = [jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves]
    program, sizes, _ = survey(of_one, leaves, data, views)
    forward = multiplications(program.eqns)
    gradient = counted(jax.grad(of_one), bare, data)
    backward_rules = holds(program.eqns, {"custom_vjp_call"})
    linear = not backward_rules or has_forward(moved, bare, bare, data)
    tangent = counted(moved, bare, bare, data) - forward if linear else 0
    sites = sum(size.multiplications for size in sizes)
    met = sum(size.activations + size.outputs for size in sizes)
    parameters = sum(leaf.size for leaf in bare)
    agents = batch.active.shape[0]
    joined = rows + held

    per_site = [site_costs(size, examples=joined, blocks=blocks) for size in sizes]
    forms = [site_form(size, examples=joined, blocks=blocks) for size in sizes]
    products = sum(min(costs.values()) for costs in per_site)
    products += (asked - len(blocks)) * sites  # of directions that are formed apart
    stacks = sum(size.weights for size, form in zip(sizes, forms, strict=True) if form == "stacked")
    costs: dict[Method, FormCost] = {
        "one_pass": FormCost(
            joined * (gradient - sites + products), WIDTH * joined * (2 * met + stacks)
        ),
        "linearized": FormCost(joined * gradient + asked * rows * tangent, WIDTH * rows * met),
    }
    if not forward_rules(program, bare, data, views):
        del costs["one_pass"]
    if not linear:
        del costs["linearized"]
    if spread and costs:
        return costs
    visited = jax.eval_shape(visits, batch).mask
    visiting = 3 * visited.size * gradient
    stack_work = (asked + 1) * (1 + PASS) * agents * parameters
    return costs | {
        "stacked": FormCost(visiting + held * gradient + stack_work, WIDTH * agents * parameters),
        "scanned": FormCost(
            (asked + 1) * visiting + held * gradient,
            WIDTH * (visited.shape[1] * met + 2 * parameters),
        ),
    }


def cheapest_form(costs: Mapping[Method, FormCost], *, room: float = ROOM) -> Method:
    """The form of fewest multiplications among those that fit into ``room`` bytes.

    Where none fits, the one that holds least.
    """
    fitting = [name for name, cost in costs.items() if cost.bytes <= room]
    if not fitting:
        return min(costs, key=lambda name: costs[name].bytes)
    return min(fitting, key=lambda name: costs[name].multiplications)
