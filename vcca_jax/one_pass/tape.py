"""One pass over examples that keeps what every layer saw and what came back to it.

An example's gradient is a sum over sites, where an operation F turns its activations h_s and a
weight w into an output; with d_s the cotangent of that output in the backward pass,

    grad_w l_s = (dF/dw (h_s, w))^T d_s,

so h and d tell every example's gradient without any of them being formed. A forward and a backward
pass without weight gradients give them all, and what is asked of gradients afterwards costs one
weighted product a site, a third of a training step over the rows:

    combination(c)   sum_s c_s grad l_s                     F transposed, on d weighted by c
    dot(v)           <grad l_s, v> for every s              F applied to v, times d
    products(c)      <grad l_s, sum_r c_kr grad l_r>        in the cheapest form at each site

of which the form is chosen by a cost model (``site_forms``): from pairs, <grad_w l_s, grad_w l_r> =
(h_s . h_r) (d_s . d_r) of a dense layer; from each example's gradient, where it is small beside its
activations, as a convolution's; or from K directions that are formed.

Rows may be in parts that stay where they are, as a batch that is spread over devices
(``placement``): then every part runs and keeps its own, sums go over the parts, and for pairs each
part is handed what layers saw of the held-out rows.

The loss is taken as it is, whatever framework wrote it: its program for one example is traced,
followed operation by operation (``sites``), and vectorized over the examples. So each example is
alone by construction. Source of the pair form: Goodfellow 2015, arXiv:1510.01799, for norms; for
inner products, In-Run Data Shapley, arXiv:2406.11011.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vcca_jax.one_pass import site_products
from vcca_jax.one_pass.placement import Segment, placed
from vcca_jax.one_pass.site_forms import Form, site_form
from vcca_jax.one_pass.site_products import Kept, of_rows
from vcca_jax.one_pass.site_views import VIEWS, ViewRule
from vcca_jax.one_pass.sites import Site, loss_of_one, run, survey
from vcca_jax.programs import check_forward, holds
from vcca_jax.trainer import ExampleLoss, Params

EVERY = slice(None)


class Tape(NamedTuple):
    """Gradients of R examples, as one linear operator; it holds functions, so it lives in a trace.

    Attributes:
        losses: [R].
        dot: ``dot(direction, rows=all) -> [r]``, <grad l_s, direction> of a slice of the rows.
        combination: ``combination(coefficients [r], rows=all) -> params``, sum_s c_s grad l_s.
        products: ``products(coefficients, weights=None) -> [R, K]``, <grad l_s, W v_k> with v_k =
            sum_r c_kr grad l_r over the rows of block k. One array of coefficients a block; W
            multiplies each leaf by a number, a pytree like the parameters of scalars.
        squares: ``squares(coefficients [r], groups [r], count, rows=all, weights=None)``, [count],
            <v_k, W v_k> of each group's v_k = sum_{s in k} c_s grad l_s; None where a leaf meets
            data in several places, or a group's gradients at a layer would not fit.
        forms: how each site holds its gradients.
    """

    losses: jax.Array
    dot: Callable[..., jax.Array]
    combination: Callable[..., Params]
    products: Callable[..., jax.Array]
    squares: Callable[..., jax.Array | None]
    forms: tuple[Form, ...]


_Standing = tuple[list[list[Any]], list[list[Any]]]
"""The weights and the settings of every site."""


class _Held(NamedTuple):
    """What the pass leaves, in parts: a list entry a site."""

    losses: jax.Array
    activations: list[list[Any]]
    cotangents: list[list[Any]]
    stacks: list[jax.Array | None]


def record(
    loss_fn: ExampleLoss,
    params: Params,
    inputs: Any,
    targets: Any,
    *,
    blocks: Sequence[int] = (),
    form: Form = "auto",
    views: Mapping[str, ViewRule] = VIEWS,
) -> Tape:
    """Run R examples forward and backward once, their gradients unformed.

    Memory: what every site was given and what came back to it, for all R examples.

    Args:
        loss_fn: ``loss_fn(params, inputs, targets) -> [n]``, each entry a function of its own
            example alone. It is run on batches of one.
        params: pytree of D numbers.
        inputs: [R, ...], an array or a pytree of arrays; ``Keyed`` ones too.
        targets: [R, ...], likewise.
        blocks: rows in each of the K blocks that ``products`` makes directions of: the last rows,
            block after block.
        form: how sites hold their gradients: chosen by cost, or one form wherever it is possible.
        views: how operations are seen as products of matrices; see ``site_views``.

    Returns:
        The tape. Its numbers are those of ``jax.grad`` up to the order of summation.

    Raises:
        ValueError: blocks that hold more rows than there are, or an unknown form; by ``dot`` and
            ``products``, a ``jax.custom_vjp`` on the way of the parameters.
    """
    segments = [(inputs, targets)]
    return record_segments(loss_fn, params, segments, blocks=blocks, form=form, views=views)


def record_segments(
    loss_fn: ExampleLoss,
    params: Params,
    segments: Sequence[Segment],
    *,
    blocks: Sequence[int] = (),
    form: Form = "auto",
    views: Mapping[str, ViewRule] = VIEWS,
) -> Tape:
    """``record`` of examples in segments that differ in nothing but their length.

    The loss says where they are (``placement``). Where they are in parts, blocks and slices of the
    tape's rows begin and end with segments.
    """
    if form not in ("auto", "pairs", "stacked", "directions"):
        raise ValueError(f"form={form!r} must be 'auto', 'pairs', 'stacked' or 'directions'")
    loss_fn, segments, where = placed(loss_fn, segments)
    leaves, structure = jax.tree.flatten(params)
    of_one = loss_of_one(loss_fn, structure, jax.tree.structure(segments[0]))
    count = sum(jax.tree.leaves(segment)[0].shape[0] for segment in segments)
    if sum(blocks) > count or not all(size > 0 for size in blocks):
        raise ValueError(f"blocks={tuple(blocks)} must be positive and of {count} rows at most")
    data = where.join(segments)
    first = [where.example(leaf) for leaf in data]

    program, sizes, shapes = survey(of_one, leaves, first, views)
    backward_rules = holds(program.eqns, {"custom_vjp_call"})
    forms = [site_form(size, examples=count, blocks=blocks, wish=form) for size in sizes]
    noted: list[list[Site]] = []

    def stood(leaves: Sequence[Any]) -> tuple[list[list[Any]], list[list[Any]]]:
        """What stands at the sites, and what is fixed there: of the parameters alone."""
        met = run(program, leaves, first, None, views)
        noted.append(met.sites)
        return met.weights, met.settings

    at_sites, pull_weights, settings = jax.vjp(stood, leaves, has_aux=True)
    standing = (at_sites, settings)
    sites = noted[0]
    every = range(len(sites))

    def moved_weights(direction: Sequence[Any]) -> list[list[Any]]:
        """What a direction of the parameters is at the sites."""
        return jax.jvp(lambda at: stood(at)[0], (leaves,), (list(direction),))[1]

    def kept(held: _Held, standing: _Standing, rows: slice = EVERY) -> list[Kept]:
        """The sites, with some of a part's rows."""
        own = (held.activations, held.cotangents, held.stacks)
        fields = zip(sites, forms, *standing, *own, strict=True)
        return [of_rows(Kept(*each), rows) for each in fields]

    def run_part(data: Sequence[Any], shared: tuple[Sequence[Any], _Standing]) -> _Held:
        leaves, standing = shared
        rows = data[0].shape[0]
        probes = jax.tree.map(lambda o: jnp.zeros((rows, *o.shape), o.dtype), shapes)

        def forward(probes: list[list[Any]]) -> tuple[jax.Array, list[list[Any]]]:
            def one(data: Sequence[Any], probe: list[list[Any]]) -> tuple[Any, list[list[Any]]]:
                met = run(program, leaves, data, jax.tree.leaves(probe), views)
                return met.loss, met.activations

            return jax.vmap(one)(data, probes)

        losses, pull, activations = jax.vjp(forward, probes, has_aux=True)
        held = _Held(losses, activations, pull(jnp.ones_like(losses))[0], [None] * len(sites))
        return held._replace(
            stacks=[
                site_products.stack(each) if each.form == "stacked" else None
                for each in kept(held, standing)
            ]
        )

    held = where.each(run_part, data, (leaves, standing))
    losses = where.collect(held.losses, EVERY)
    starts = [count - sum(blocks[k:]) for k in range(len(blocks))]
    others = slice(count - sum(blocks), count)

    def dot(direction: Params, rows: slice = EVERY) -> jax.Array:
        if backward_rules:
            check_forward("one_pass", partial(dot_of, rows=rows), direction)
        return dot_of(direction, rows)

    def dot_of(direction: Params, rows: slice) -> jax.Array:
        moved = moved_weights(jax.tree.leaves(direction))
        own = where.within(rows)

        def of_part(held: _Held, shared: Any) -> jax.Array:
            standing, moved = shared
            terms = map(site_products.dot, kept(held, standing, own), moved)
            return sum(terms, jnp.zeros_like(held.losses[own]))

        return where.collect(where.each(of_part, held, (standing, moved)), rows)

    def combined(coefficients: jax.Array, rows: slice, places: Sequence[int]) -> list[Any]:
        """sum_s c_s grad l_s leaf by leaf, of some of the sites."""
        own = where.within(rows)

        def of_part(part: tuple[_Held, jax.Array], standing: _Standing) -> list[Any]:
            each = kept(part[0], standing, own)
            return [site_products.combination(each[place], part[1]) for place in places]

        parts = where.each(of_part, (held, where.deal(coefficients, rows)), standing)
        told = dict(zip(places, where.total(parts), strict=True))
        nothing = [jax.tree.map(jnp.zeros_like, each) for each in at_sites]
        return pull_weights([told.get(place, nothing[place]) for place in every])[0]

    def combination(coefficients: jax.Array, rows: slice = EVERY) -> Params:
        return jax.tree.unflatten(structure, combined(coefficients, rows, every))

    def products(coefficients: Sequence[jax.Array], weights: Params | None = None) -> jax.Array:
        if [len(each) for each in coefficients] != list(blocks):
            raise ValueError(
                f"coefficients are of {[len(each) for each in coefficients]} rows and the blocks"
                f" of {list(blocks)}; give one for each row"
            )
        if backward_rules:
            check_forward("one_pass", products_of, coefficients, weights)
        return products_of(coefficients, weights)

    def products_of(coefficients: Sequence[jax.Array], weights: Params | None) -> jax.Array:
        factors = None if weights is None else jax.tree.leaves(weights)
        paired = [place for place in every if forms[place] == "pairs"]
        rest = [place for place in every if forms[place] != "pairs"]

        def direction(coefficients: jax.Array, start: int) -> list[Any]:
            formed = combined(coefficients, slice(start, start + len(coefficients)), rest)
            if factors is None:
                return formed
            return [g * f.astype(g.dtype) for g, f in zip(formed, factors, strict=True)]

        moved: list[Any] = []
        if rest:
            directions = [direction(*each) for each in zip(coefficients, starts, strict=True)]
            together = jax.tree.map(lambda *each: jnp.stack(each), *directions)
            moved = jax.vmap(moved_weights)(together)

        own = where.within(others)

        def shown(held: _Held, _: Any) -> list[tuple[Any, Any]]:
            """What a part shows the others: of its held-out rows."""
            return [
                (held.activations[place][0][own], held.cotangents[place][0][own])
                for place in paired
            ]

        spread = jax.scipy.linalg.block_diag(*(each[:, None] for each in coefficients))
        mixed = where.everyone(where.deal(spread.astype(losses.dtype), others))

        def of_part(held: _Held, shared: Any) -> jax.Array:
            standing, moved, met, mixed, factors = shared
            each = kept(held, standing)
            total = jnp.zeros((held.losses.shape[0], len(blocks)), losses.dtype)
            for place, seen in zip(paired, met, strict=True):
                term = site_products.pairs(each[place], seen) @ mixed
                total += _weighed(each[place], term, factors)
            for place in rest:
                total += site_products.dots(each[place], moved[place])
            return total

        met = where.everyone(where.each(shown, held, None)) if paired else []
        return where.collect(
            where.each(of_part, held, (standing, moved, met, mixed, factors)), EVERY
        )

    def squares(
        coefficients: jax.Array,
        groups: jax.Array,
        count: int,
        rows: slice = EVERY,
        weights: Params | None = None,
    ) -> jax.Array | None:
        if not all(size.alone for size in sizes):
            return None
        dealt, number = where.deal_groups(groups, count, rows)
        own = where.within(rows)

        def of_part(part: tuple[_Held, jax.Array, jax.Array], shared: Any) -> jax.Array | None:
            standing, factors = shared
            total = jnp.zeros(number, losses.dtype)
            for each in kept(part[0], standing, own):
                term = site_products.squares(each, *part[1:], number)
                if term is None:
                    return None
                total += _weighed(each, term, factors)
            return total

        given = (held, where.deal(coefficients, rows), dealt)
        factors = None if weights is None else jax.tree.leaves(weights)
        told = where.each(of_part, given, (standing, factors))
        return None if told is None else where.collect_groups(told)

    return Tape(losses, dot, combination, products, squares, tuple(forms))


def _weighed(kept: Kept, term: jax.Array, factors: Sequence[jax.Array] | None) -> jax.Array:
    """A site's part of an inner product, times the number of the one leaf that it reads."""
    (leaf,) = kept.site.depends
    return term if factors is None else factors[leaf].astype(term.dtype) * term
