"""Every agent's exact part of the virtual-batch gradient, as one linear operator.

With per-example losses l_s, owners a(s) and B live samples,

    g_i = (1/B) sum_{s: a(s)=i} grad l_s,        g = sum_i g_i.

Parts are summed, never averaged, so g is the gradient of the pooled batch. What comes after needs
only three actions on (g_1, ..., g_A); ``agent_gradients`` offers them in three forms that give the
same numbers:

    linearized   one forward jvp for ``dot``, one vjp for ``sum``: time and memory free of A.
    scanned      a ``lax.scan`` over the visited agents, the readable reference.
    stacked      every g_i held at once, O(A D) memory: for many actions on few agents.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from vcca_jax.trainer import ExampleLoss, Params, live_count
from vcca_jax.virtual_batch import VirtualBatch, Visits, present, visits

Method = Literal["linearized", "scanned", "stacked"]


class AgentGradients(NamedTuple):
    """The linear operator (g_1, ..., g_A) and what is known of the agents.

    It holds functions, so it lives inside one trace: make it where it is used.

    Attributes:
        dot: ``dot(direction) -> [A]``, the inner products <g_i, direction>.
        sum: ``sum(weights=None) -> params``, sum_i w_i g_i; all ones by default.
        stack: ``stack() -> params with a leading [A]``. The other two never need its memory.
        losses: [A], each agent's additive part of the batch's mean loss.
        present: [A] bool, agents with a live sample in the batch; the others have g_i = 0.
        active: [A] bool, members of the cooperative.
    """

    dot: Callable[[Params], jax.Array]
    sum: Callable[..., Params]
    stack: Callable[[], Params]
    losses: jax.Array
    present: jax.Array
    active: jax.Array


def agent_gradients(
    loss_fn: ExampleLoss,
    params: Params,
    batch: VirtualBatch,
    *,
    method: Method = "linearized",
    samples_per_visit: int | None = None,
) -> AgentGradients:
    """The agents' gradients of a virtual batch.

    Args:
        loss_fn: ``loss_fn(params, inputs, targets) -> [B]``, each entry a function of its own
            example alone (so no batch normalisation).
        params: pytree of D numbers.
        batch: B samples of A agents; padding and absent agents contribute exactly 0.
        method: the form; see the module's docstring.
        samples_per_visit: P of ``visits``, for the forms that visit.

    Returns:
        An ``AgentGradients``. It may be differentiated in its weights and directions.

    Raises:
        ValueError: an unknown method, or a ``loss_fn`` that does not return one loss an example.
    """
    if method == "linearized":
        return _linearized(loss_fn, params, batch, samples_per_visit)
    if method == "stacked":
        return _stacked(loss_fn, params, batch, samples_per_visit)
    if method == "scanned":
        return _scanned(loss_fn, params, batch, samples_per_visit)
    raise ValueError(f"method={method!r} must be 'linearized', 'scanned' or 'stacked'")


def affine(
    gradients: AgentGradients, scale: jax.Array, coefficients: jax.Array, rows: Params
) -> AgentGradients:
    """The operator h_i = scale_i g_i + sum_m coefficients_im rows_m, still matrix-free.

    Every screen is of this form: a projection adds multiples of value gradients, a rejection
    scales by 0 or 1. It costs the operator beneath and a product of rank M more.

    Args:
        gradients: (g_1, ..., g_A).
        scale: [A].
        coefficients: [A, M].
        rows: params with a leading [M].
    """

    def dot(direction: Params) -> jax.Array:
        return scale * gradients.dot(direction) + coefficients @ rows_dot(rows, direction)

    def total(weights: jax.Array | None = None) -> Params:
        weights = jnp.ones_like(scale) if weights is None else weights
        beneath = gradients.sum(weights * scale)
        return jax.tree.map(
            jnp.add, beneath, rows_combination(rows, (weights[None, :] @ coefficients)[0])
        )

    def stack() -> Params:
        return jax.tree.map(
            lambda g, n: (
                g * scale.reshape((-1,) + (1,) * (g.ndim - 1)).astype(g.dtype)
                + jnp.tensordot(coefficients.astype(n.dtype), n, 1)
            ),
            gradients.stack(),
            rows,
        )

    return gradients._replace(dot=dot, sum=total, stack=stack)


def agent_norms(gradients: AgentGradients) -> jax.Array:
    """[A], the Euclidean norms |g_i|; forms the stack, so O(A D) memory."""
    squares = [
        jnp.sum(jnp.square(leaf), axis=tuple(range(1, leaf.ndim)))
        for leaf in jax.tree.leaves(gradients.stack())
    ]
    return jnp.sqrt(jnp.sum(jnp.stack(squares), axis=0))


def tree_dot(left: Params, right: Params) -> jax.Array:
    """Inner product of two pytrees of one structure."""
    return jax.tree.reduce(jnp.add, jax.tree.map(jnp.vdot, left, right))


def rows_dot(rows: Params, direction: Params) -> jax.Array:
    """[M], inner products of stacked rows (leading [M]) with a direction."""
    products = jax.tree.map(lambda n, d: n.reshape(n.shape[0], -1) @ d.reshape(-1), rows, direction)
    return jax.tree.reduce(jnp.add, products)


def rows_gram(rows: Params) -> jax.Array:
    """[M, M], inner products of stacked rows with each other."""
    products = jax.tree.map(lambda n: n.reshape(n.shape[0], -1) @ n.reshape(n.shape[0], -1).T, rows)
    return jax.tree.reduce(jnp.add, products)


def rows_combination(rows: Params, coefficients: jax.Array) -> Params:
    """sum_m coefficients_m rows_m."""
    return jax.tree.map(lambda n: jnp.tensordot(coefficients.astype(n.dtype), n, 1), rows)


def _example_losses(
    loss_fn: ExampleLoss, params: Params, inputs: Any, targets: Any, mask: Any
) -> jax.Array:
    losses = loss_fn(params, inputs, targets)
    if losses.shape != mask.shape:
        raise ValueError(
            f"loss_fn returned shape {losses.shape} for {mask.shape[0]} examples; it must return"
            f" one loss an example, shape {mask.shape}, and leave the mean to the caller"
        )
    return jnp.where(mask, losses, 0)


def _agent_sum(values: jax.Array, owners: jax.Array, capacity: int) -> jax.Array:
    """Sum over each agent's entries along the leading axis."""
    return jax.ops.segment_sum(values, owners, num_segments=capacity)


def _linearized(
    loss_fn: ExampleLoss, params: Params, batch: VirtualBatch, samples_per_visit: int | None
) -> AgentGradients:
    capacity = batch.active.shape[0]

    def shares(at: Params) -> jax.Array:
        losses = _example_losses(loss_fn, at, batch.inputs, batch.targets, batch.mask)
        return losses / live_count(batch)

    # One trace serves both directions: the jvp is the linear map, the vjp its transpose.
    losses, jvp = jax.linearize(shares, params)
    transpose = jax.linear_transpose(jvp, params)

    def dot(direction: Params) -> jax.Array:
        return _agent_sum(jvp(direction), batch.owners, capacity)

    def total(weights: jax.Array | None = None) -> Params:
        cotangent = jnp.ones_like(losses) if weights is None else weights[batch.owners]
        return transpose(cotangent.astype(losses.dtype))[0]

    return AgentGradients(
        dot=dot,
        sum=total,
        stack=lambda: _stack(loss_fn, params, batch, samples_per_visit),
        losses=_agent_sum(losses, batch.owners, capacity),
        present=present(batch),
        active=batch.active,
    )


def _stacked(
    loss_fn: ExampleLoss, params: Params, batch: VirtualBatch, samples_per_visit: int | None
) -> AgentGradients:
    stack = _stack(loss_fn, params, batch, samples_per_visit)
    return AgentGradients(
        dot=lambda direction: rows_dot(stack, direction),
        sum=lambda weights=None: rows_combination(
            stack, jnp.ones(batch.active.shape) if weights is None else weights
        ),
        stack=lambda: stack,
        losses=_losses(loss_fn, params, batch),
        present=present(batch),
        active=batch.active,
    )


def _scanned(
    loss_fn: ExampleLoss, params: Params, batch: VirtualBatch, samples_per_visit: int | None
) -> AgentGradients:
    capacity = batch.active.shape[0]
    plan = visits(batch, samples_per_visit)
    gradient = _visit_gradient(loss_fn, params, batch)

    def dot(direction: Params) -> jax.Array:
        def visit(products: jax.Array, each: Visits) -> tuple[jax.Array, None]:
            return products.at[each.agents].add(tree_dot(gradient(each), direction)), None

        zeros = jnp.zeros(capacity, jax.eval_shape(tree_dot, params, direction).dtype)
        return jax.lax.scan(visit, zeros, plan)[0]

    def total(weights: jax.Array | None = None) -> Params:
        weights = jnp.ones(capacity) if weights is None else weights

        def visit(carried: Params, each: Visits) -> tuple[Params, None]:
            weight = weights[each.agents]
            return jax.tree.map(
                lambda c, g: c + weight.astype(g.dtype) * g, carried, gradient(each)
            ), None

        return jax.lax.scan(visit, jax.tree.map(jnp.zeros_like, params), plan)[0]

    def stack() -> Params:
        def visit(carried: Params, each: Visits) -> tuple[Params, None]:
            return jax.tree.map(
                lambda c, g: c.at[each.agents].add(g), carried, gradient(each)
            ), None

        zeros = jax.tree.map(lambda p: jnp.zeros((capacity, *p.shape), p.dtype), params)
        return jax.lax.scan(visit, zeros, plan)[0]

    return AgentGradients(
        dot, total, stack, _losses(loss_fn, params, batch), present(batch), batch.active
    )


def _stack(
    loss_fn: ExampleLoss, params: Params, batch: VirtualBatch, samples_per_visit: int | None
) -> Params:
    plan = visits(batch, samples_per_visit)
    each = jax.vmap(_visit_gradient(loss_fn, params, batch))(plan)
    capacity = batch.active.shape[0]
    return jax.tree.map(lambda g: _agent_sum(g, plan.agents, capacity), each)


def _visit_gradient(
    loss_fn: ExampleLoss, params: Params, batch: VirtualBatch
) -> Callable[[Visits], Params]:
    """The gradient part that one visit brings, from the visited agent's own samples."""
    count = live_count(batch)

    def gradient(each: Visits) -> Params:
        inputs, targets = (x[each.slots] for x in (batch.inputs, batch.targets))
        return jax.grad(
            lambda at: _example_losses(loss_fn, at, inputs, targets, each.mask).sum() / count
        )(params)

    return gradient


def _losses(loss_fn: ExampleLoss, params: Params, batch: VirtualBatch) -> jax.Array:
    losses = _example_losses(loss_fn, params, batch.inputs, batch.targets, batch.mask)
    return _agent_sum(losses / live_count(batch), batch.owners, batch.active.shape[0])
