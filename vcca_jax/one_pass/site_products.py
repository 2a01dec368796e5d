"""What is asked of examples' gradients at one site, told from its activations and cotangents."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vcca_jax.one_pass.site_forms import ROOM, Form
from vcca_jax.one_pass.site_views import MatrixView
from vcca_jax.one_pass.sites import Site
from vcca_jax.rows import tree_dot, wide


class Kept(NamedTuple):
    """A site with what it was given, what came back, and the form of its gradients.

    Attributes:
        site: it.
        form: how its gradients are held.
        weights: what stands at it.
        settings: what stands at it and has no derivative.
        activations, cotangents: [R, ...] each.
        stack: [R, weights of the site], where the gradients are held as they are.
    """

    site: Site
    form: Form
    weights: list[Any]
    settings: list[Any]
    activations: list[Any]
    cotangents: list[Any]
    stack: jax.Array | None


def of_rows(kept: Kept, rows: slice) -> Kept:
    """The site with some of its examples."""
    chosen = (kept.activations, kept.cotangents, kept.stack)
    activations, cotangents, stack = jax.tree.map(lambda leaf: leaf[rows], chosen)
    return kept._replace(activations=activations, cotangents=cotangents, stack=stack)


def dot(kept: Kept, moved: Sequence[Any]) -> jax.Array:
    """[r], <d_s, dF/dw moved>."""
    if kept.stack is not None:
        return _product(kept.stack, _ravel(kept, moved).astype(kept.stack.dtype))

    def one(h: Sequence[Any], d: Sequence[Any]) -> jax.Array:
        _, pushed = jax.jvp(lambda w: _apply(kept, h, w), (kept.weights,), (list(moved),))
        return tree_dot(pushed, list(d))

    return jax.vmap(one)(kept.activations, kept.cotangents)


def dots(kept: Kept, moved: Sequence[Any]) -> jax.Array:
    """[r, K], ``dot`` of K directions on a leading axis."""
    if kept.stack is None:
        return jax.vmap(lambda each: dot(kept, each))(list(moved)).T
    lines = jax.vmap(lambda each: _ravel(kept, each))(list(moved))
    return _product(kept.stack, lines.T.astype(kept.stack.dtype))


def combination(kept: Kept, coefficients: jax.Array) -> list[Any]:
    """sum_s c_s (dF/dw)^T d_s, without a gradient of any example that is not held."""
    if kept.stack is not None:
        return _unravel(kept, coefficients.astype(kept.stack.dtype) @ kept.stack)
    _, transposed = jax.vjp(
        lambda w: jax.vmap(lambda h: _apply(kept, h, w))(kept.activations), kept.weights
    )
    return transposed([_times(leaf, coefficients) for leaf in kept.cotangents])[0]


def stack(kept: Kept) -> jax.Array:
    """[R, weights of the site], every example's own gradient at it."""
    if (view := kept.site.view) is not None:
        h, d = seen(view, kept.activations[0], kept.cotangents[0])
        each = jnp.einsum("sti,stj->sij", h, d)
        return each.reshape(each.shape[0], -1)

    def one(h: Sequence[Any], d: Sequence[Any]) -> jax.Array:
        _, transposed = jax.vjp(lambda w: _apply(kept, h, w), kept.weights)
        return _ravel(kept, transposed(list(d))[0])

    return jax.vmap(one)(kept.activations, kept.cotangents)


def pairs(kept: Kept, others: tuple[jax.Array, jax.Array]) -> jax.Array:
    """[R, n], sum over positions t, u of (h_st . h_ru) (d_st . d_ru), r among the others."""
    view = kept.site.view
    assert view is not None
    h, d = seen(view, kept.activations[0], kept.cotangents[0])
    other_h, other_d = seen(view, *others)
    if view.positions == 1:
        return _product(h[:, 0], other_h[:, 0].T) * _product(d[:, 0], other_d[:, 0].T)
    met = jnp.einsum("sti,rui->srtu", h, other_h, preferred_element_type=wide(h.dtype))
    sent = jnp.einsum("stj,ruj->srtu", d, other_d, preferred_element_type=wide(d.dtype))
    return (met * sent).sum(axis=(2, 3))


def squares(kept: Kept, coefficients: jax.Array, groups: jax.Array, count: int) -> jax.Array | None:
    """[count], |sum_{s in k} c_s grad l_s|^2 at one site, from pairs or from the groups' sums."""
    view = kept.site.view
    coefficients = coefficients.astype(wide(kept.cotangents[0].dtype))
    size = sum(leaf.size for leaf in kept.weights)
    if kept.stack is None and view is not None and view.positions == 1 and len(groups) < size:
        h, d = (leaf[:, 0] for leaf in seen(view, kept.activations[0], kept.cotangents[0]))
        same = groups[:, None] == groups[None, :]
        met = jnp.where(same, _product(h, h.T) * _product(d, d.T), 0)
        return jax.ops.segment_sum(coefficients * (met @ coefficients), groups, count)
    if max(count, len(groups)) * size * coefficients.dtype.itemsize > ROOM:
        return None
    alone = stack(kept) if kept.stack is None else kept.stack
    sums = jax.ops.segment_sum(coefficients[:, None] * alone, groups, count)
    return jnp.square(sums).sum(axis=1)


def seen(view: MatrixView, h: jax.Array, d: jax.Array) -> tuple[jax.Array, jax.Array]:
    """[R, positions, inputs] activations and [R, positions, outputs] cotangents."""
    return jax.vmap(view.rows)(h), jax.vmap(view.columns)(d)


def _apply(kept: Kept, h: Sequence[Any], w: Sequence[Any]) -> list[Any]:
    """The site's outputs for one example's activations, at some weights."""
    return kept.site.apply(h, w, kept.settings)


def _product(left: jax.Array, right: jax.Array) -> jax.Array:
    """Of matrices, in float32 at least."""
    return jnp.matmul(left, right, preferred_element_type=wide(jnp.result_type(left, right)))


def _ravel(kept: Kept, weights: Sequence[Any]) -> jax.Array:
    """A site's weights as one line, in the order of its stack."""
    if kept.site.view is not None:
        return kept.site.view.matrix(weights[0]).reshape(-1)
    return jnp.concatenate([leaf.reshape(-1) for leaf in weights])


def _unravel(kept: Kept, line: jax.Array) -> list[Any]:
    """The weights that a line stands for: ``_ravel`` only reorders, so its transpose undoes it.

    The line may be kept in more digits than the weights have, where those meet wider activations.
    """
    told = jax.eval_shape(lambda w: _ravel(kept, w), kept.weights)
    transposed = jax.linear_transpose(lambda w: _ravel(kept, w), kept.weights)
    return transposed(line.astype(told.dtype))[0]


def _times(leaf: jax.Array, coefficients: jax.Array) -> jax.Array:
    """Each example's [R, ...] times its coefficient."""
    shape = (-1, *(1 for _ in leaf.shape[1:]))
    return leaf * coefficients.reshape(shape).astype(leaf.dtype)
