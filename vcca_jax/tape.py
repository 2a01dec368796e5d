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

The loss is taken as it is, whatever framework wrote it: its program for one example is traced,
followed operation by operation (``sites``), and vectorized over the examples. So each example is
alone by construction. Source of the pair form: Goodfellow 2015, arXiv:1510.01799, for norms; for
inner products, In-Run Data Shapley, arXiv:2406.11011.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vcca_jax.site_forms import ROOM, Form, SiteSize, site_form
from vcca_jax.site_views import VIEWS, MatrixView, ViewRule
from vcca_jax.sites import Met, Site, run
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


class _Kept(NamedTuple):
    """A site with what it was given, what came back, and the form of its gradients."""

    site: Site
    form: Form
    weights: list[Any]
    activations: list[Any]  # [R, ...] each
    cotangents: list[Any]  # [R, ...] each


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
        ValueError: blocks that hold more rows than there are, or an unknown form.
    """
    if form not in ("auto", "pairs", "stacked", "directions"):
        raise ValueError(f"form={form!r} must be 'auto', 'pairs', 'stacked' or 'directions'")
    leaves, structure = jax.tree.flatten(params)
    data = jax.tree.leaves((inputs, targets))
    example = jax.tree.structure((inputs, targets))
    count = data[0].shape[0]
    if sum(blocks) > count or not all(size > 0 for size in blocks):
        raise ValueError(f"blocks={tuple(blocks)} must be positive and of {count} rows at most")
    first = [leaf[0] for leaf in data]

    def of_one(leaves: Sequence[Any], data: Sequence[Any]) -> jax.Array:
        alone = jax.tree.unflatten(example, [leaf[None] for leaf in data])
        return loss_fn(jax.tree.unflatten(structure, leaves), *alone)[0]

    program = jax.make_jaxpr(of_one)(leaves, first)
    noted: list[Met] = []

    def outputs(data: Sequence[Any]) -> list[list[Any]]:
        noted.append(run(program, leaves, data, None, views))
        return noted[-1].outputs

    shapes = jax.eval_shape(outputs, first)
    sites = noted[-1].sites
    probes = jax.tree.map(lambda o: jnp.zeros((count, *o.shape), o.dtype), shapes)

    def forward(probes: list[list[Any]]) -> tuple[jax.Array, list[list[Any]]]:
        def one(data: Sequence[Any], probe: list[list[Any]]) -> tuple[Any, list[list[Any]]]:
            met = run(program, leaves, data, jax.tree.leaves(probe), views)
            return met.loss, met.activations

        return jax.vmap(one)(data, probes)

    losses, pull, activations = jax.vjp(forward, probes, has_aux=True)
    (cotangents,) = pull(jnp.ones_like(losses))

    def weights_of(leaves: Sequence[Any]) -> list[list[Any]]:
        """What stands at the sites, of the parameters alone: the compiler drops the rest."""
        return run(program, leaves, first, None, views).weights

    weights, pull_weights = jax.vjp(weights_of, leaves)
    alone = [
        not any(site.depends & o.depends for j, o in enumerate(sites) if j != i)
        for i, site in enumerate(sites)
    ]
    kept = [
        _Kept(
            site,
            site_form(
                site,
                SiteSize(*(sum(leaf.size for leaf in each) for each in (weights[i], shapes[i]))),
                alone=alone[i],
                examples=count,
                blocks=blocks,
                wish=form,
            ),
            weights[i],
            activations[i],
            cotangents[i],
        )
        for i, site in enumerate(sites)
    ]
    stacks = [_stack(each) if each.form == "stacked" else None for each in kept]
    starts = [count - sum(blocks[k:]) for k in range(len(blocks))]

    def combined(place: int, coefficients: jax.Array, rows: slice) -> list[Any]:
        """sum_s c_s (dF/dw)^T d_s, of one site."""
        stack = stacks[place]
        if stack is None:
            return _combination(_of_rows(kept[place], rows), coefficients)
        return _unravel(kept[place], coefficients.astype(stack.dtype) @ stack[rows])

    def dot(direction: Params, rows: slice = EVERY) -> jax.Array:
        _, moved = jax.jvp(weights_of, (leaves,), (jax.tree.leaves(direction),))
        terms = [
            _dot(_of_rows(kept[place], rows), each)
            if (stack := stacks[place]) is None
            else stack[rows] @ _ravel(kept[place], each).astype(stack.dtype)
            for place, each in enumerate(moved)
        ]
        return sum(terms, jnp.zeros_like(losses[rows]))

    def combination(coefficients: jax.Array, rows: slice = EVERY) -> Params:
        parts = [combined(place, coefficients, rows) for place in range(len(kept))]
        return jax.tree.unflatten(structure, pull_weights(parts)[0])

    def products(coefficients: Sequence[jax.Array], weights: Params | None = None) -> jax.Array:
        if [len(each) for each in coefficients] != list(blocks):
            raise ValueError(
                f"coefficients are of {[len(each) for each in coefficients]} rows and the blocks"
                f" of {list(blocks)}; give one for each row"
            )
        factors = None if weights is None else jax.tree.leaves(weights)
        total = jnp.zeros((count, len(blocks)), losses.dtype)
        others = slice(count - sum(blocks), count)
        spread = jax.scipy.linalg.block_diag(*(each[:, None] for each in coefficients))
        for each in kept:
            if each.form == "pairs":
                term = _pairs(each, others) @ spread.astype(losses.dtype)
                total += _weighed(each, term, factors)
        rest = [place for place, each in enumerate(kept) if each.form != "pairs"]
        if not rest:
            return total

        def formed(coefficients: jax.Array, start: int) -> list[Any]:
            rows = slice(start, start + len(coefficients))
            parts = [
                combined(place, coefficients, rows)
                if place in rest
                else jax.tree.map(jnp.zeros_like, each.weights)
                for place, each in enumerate(kept)
            ]
            pulled = pull_weights(parts)[0]
            if factors is None:
                return pulled
            return [g * f.astype(g.dtype) for g, f in zip(pulled, factors, strict=True)]

        directions = [formed(*each) for each in zip(coefficients, starts, strict=True)]
        together = jax.tree.map(lambda *each: jnp.stack(each), *directions)
        moved = jax.vmap(lambda v: jax.jvp(weights_of, (leaves,), (v,))[1])(together)
        for place in rest:
            each, stack = kept[place], stacks[place]
            if stack is None:
                total += jax.vmap(lambda m, each=each: _dot(each, m))(moved[place]).T
            else:
                lines = jax.vmap(lambda m, each=each: _ravel(each, m))(moved[place])
                total += stack @ lines.T.astype(stack.dtype)
        return total

    def squares(
        coefficients: jax.Array,
        groups: jax.Array,
        count: int,
        rows: slice = EVERY,
        weights: Params | None = None,
    ) -> jax.Array | None:
        if not all(alone) or not all(site.leaf for site in sites):
            return None
        factors = None if weights is None else jax.tree.leaves(weights)
        total = jnp.zeros(count, losses.dtype)
        for each, stack in zip(kept, stacks, strict=True):
            own = None if stack is None else stack[rows]
            term = _squares(_of_rows(each, rows), own, coefficients, groups, count)
            if term is None:
                return None
            total += _weighed(each, term, factors)
        return total

    return Tape(losses, dot, combination, products, squares, tuple(each.form for each in kept))


def _of_rows(kept: _Kept, rows: slice) -> _Kept:
    """The site with some of its examples."""
    chosen = jax.tree.map(lambda leaf: leaf[rows], (kept.activations, kept.cotangents))
    return kept._replace(activations=chosen[0], cotangents=chosen[1])


def _weighed(kept: _Kept, term: jax.Array, factors: Sequence[jax.Array] | None) -> jax.Array:
    """A site's part of an inner product, times the number of the one leaf that it reads."""
    (leaf,) = kept.site.depends
    return term if factors is None else factors[leaf].astype(term.dtype) * term


def _dot(kept: _Kept, moved: Sequence[Any]) -> jax.Array:
    """[r], <d_s, dF/dw moved>."""

    def one(h: Sequence[Any], d: Sequence[Any]) -> jax.Array:
        _, pushed = jax.jvp(lambda w: kept.site.apply(h, w), (kept.weights,), (list(moved),))
        return jnp.stack([jnp.vdot(a, b) for a, b in zip(pushed, d, strict=True)]).sum()

    return jax.vmap(one)(kept.activations, kept.cotangents)


def _combination(kept: _Kept, coefficients: jax.Array) -> list[Any]:
    """sum_s c_s (dF/dw)^T d_s, without a gradient of any example."""
    _, transposed = jax.vjp(
        lambda w: jax.vmap(lambda h: kept.site.apply(h, w))(kept.activations), kept.weights
    )
    return transposed([_times(leaf, coefficients) for leaf in kept.cotangents])[0]


def _stack(kept: _Kept) -> jax.Array:
    """[R, weights of the site], every example's own gradient at it."""
    if (view := kept.site.view) is not None:
        h, d = _seen(view, kept)
        each = jnp.einsum("sti,stj->sij", h, d)
        return each.reshape(each.shape[0], -1)

    def one(h: Sequence[Any], d: Sequence[Any]) -> jax.Array:
        _, transposed = jax.vjp(lambda w: kept.site.apply(h, w), kept.weights)
        return _ravel(kept, transposed(list(d))[0])

    return jax.vmap(one)(kept.activations, kept.cotangents)


def _ravel(kept: _Kept, weights: Sequence[Any]) -> jax.Array:
    """A site's weights as one line, in the order of its stack."""
    if kept.site.view is not None:
        return kept.site.view.matrix(weights[0]).reshape(-1)
    return jnp.concatenate([leaf.reshape(-1) for leaf in weights])


def _unravel(kept: _Kept, line: jax.Array) -> list[Any]:
    """The weights that a line stands for: ``_ravel`` only reorders, so its transpose undoes it."""
    (weights,) = jax.linear_transpose(lambda w: _ravel(kept, w), kept.weights)(line)
    return weights


def _pairs(kept: _Kept, others: slice) -> jax.Array:
    """[R, n], sum over positions t, u of (h_st . h_ru) (d_st . d_ru), r among the others."""
    view = kept.site.view
    assert view is not None
    h, d = _seen(view, kept)
    if view.positions == 1:
        return (h[:, 0] @ h[others, 0].T) * (d[:, 0] @ d[others, 0].T)
    seen = jnp.einsum("sti,rui->srtu", h, h[others])
    sent = jnp.einsum("stj,ruj->srtu", d, d[others])
    return (seen * sent).sum(axis=(2, 3))


def _squares(
    kept: _Kept,
    stack: jax.Array | None,
    coefficients: jax.Array,
    groups: jax.Array,
    count: int,
) -> jax.Array | None:
    """[count], |sum_{s in k} c_s grad l_s|^2 at one site, from pairs or from the groups' sums."""
    view = kept.site.view
    coefficients = coefficients.astype(kept.cotangents[0].dtype)
    size = sum(leaf.size for leaf in kept.weights)
    if stack is None and view is not None and view.positions == 1 and len(groups) < size:
        h, d = (leaf[:, 0] for leaf in _seen(view, kept))
        same = groups[:, None] == groups[None, :]
        pairs = jnp.where(same, (h @ h.T) * (d @ d.T), 0)
        return jax.ops.segment_sum(coefficients * (pairs @ coefficients), groups, count)
    if max(count, len(groups)) * size * coefficients.dtype.itemsize > ROOM:
        return None
    alone = _stack(kept) if stack is None else stack
    sums = jax.ops.segment_sum(coefficients[:, None] * alone, groups, count)
    return jnp.square(sums).sum(axis=1)


def _seen(view: MatrixView, kept: _Kept) -> tuple[jax.Array, jax.Array]:
    """[R, positions, inputs] activations and [R, positions, outputs] cotangents."""
    (h,), (d,) = kept.activations, kept.cotangents
    return jax.vmap(view.rows)(h), jax.vmap(view.columns)(d)


def _times(leaf: jax.Array, coefficients: jax.Array) -> jax.Array:
    """Each example's [R, ...] times its coefficient."""
    shape = (-1, *(1 for _ in leaf.shape[1:]))
    return leaf * coefficients.reshape(shape).astype(leaf.dtype)
