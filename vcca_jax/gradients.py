"""Every agent's exact part of the virtual-batch gradient, as one linear operator.

With per-example losses l_s, owners a(s) and B live samples,

    g_i = (1/B) sum_{s: a(s)=i} grad l_s,        g = sum_i g_i.

Parts are summed, never averaged, so g is the gradient of the pooled batch. What comes after needs
only a few actions on (g_1, ..., g_A); ``agent_gradients`` offers them in four forms that give the
same numbers:

    linearized   one forward jvp for ``dot``, one vjp for ``sum``: time and memory free of A.
    one_pass     one forward and one backward pass for all actions, and one product a layer for each
                 of them (see ``tape``): cheaper than linearized where there are several.
    scanned      a ``lax.scan`` over the visited agents, the readable reference.
    stacked      every g_i held at once, O(A D) memory: for many actions on few agents.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from vcca_jax.example_losses import checked_losses
from vcca_jax.one_pass.tape import Tape, record
from vcca_jax.programs import check_forward
from vcca_jax.rows import rows_combination, rows_dot, scalar_weights, tree_dot, weighted, wide
from vcca_jax.trainer import ExampleLoss, Params, live_count, sample_shares
from vcca_jax.virtual_batch import VirtualBatch, Visits, present, visits

Method = Literal["linearized", "one_pass", "scanned", "stacked"]


class AgentGradients(NamedTuple):
    """The linear operator (g_1, ..., g_A) and what is known of the agents.

    It holds functions, so it lives inside one trace: make it where it is used.

    Attributes:
        dot: ``dot(direction) -> [A]``, the inner products <g_i, direction>.
        sum: ``sum(weights=None) -> params``, sum_i w_i g_i; all ones by default.
        stack: ``stack() -> params with a leading [A]``. The others never need its memory.
        squared_norms: ``squared_norms(weights=None) -> [A]``, sum_d weights_d g_id^2 for a
            diagonal like the parameters (ones by default): one backward pass a visit, one
            gradient held at a time; from pairs of examples in the one-pass form, where it can.
        losses: [A], each agent's additive part of the batch's mean loss.
        present: [A] bool, agents with a live sample in the batch; the others have g_i = 0.
        active: [A] bool, members of the cooperative.
        most_present: how many agents are present at most, by shapes alone: a batch of B samples is
            of at most B agents, however many there are. None where nothing is known; whoever makes
            more agents present sets it to None, or those beyond are not screened.
    """

    dot: Callable[[Params], jax.Array]
    sum: Callable[..., Params]
    stack: Callable[[], Params]
    squared_norms: Callable[..., jax.Array]
    losses: jax.Array
    present: jax.Array
    active: jax.Array
    most_present: int | None = None


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
        ValueError: an unknown method, or a ``loss_fn`` that does not return one loss an example;
            by ``dot`` of "linearized" and "one_pass", a ``jax.custom_vjp`` on the way of the
            parameters, which has no derivative in forward mode.
    """
    forms = {
        "linearized": _linearized,
        "one_pass": _one_pass,
        "scanned": _scanned,
        "stacked": _stacked,
    }
    if not isinstance(method, str) or method not in forms:
        raise ValueError(f"method={method!r} must be one of {sorted(forms)}")
    made = forms[method](loss_fn, params, batch, samples_per_visit)
    return made._replace(most_present=batch.mask.size)


def from_stack(
    stack: Params, losses: jax.Array, present: jax.Array, active: jax.Array
) -> AgentGradients:
    """The operator of gradients held at once: a pytree like the parameters with a leading [A].

    See ``AgentGradients`` for the other three, each [A].
    """

    def total(weights: jax.Array | None = None) -> Params:
        agents = active.shape[0]
        held = jnp.ones(agents) if weights is None else checked_weights(weights, agents)
        return rows_combination(stack, held)

    def squared_norms(weights: Params | None = None) -> jax.Array:
        return jax.vmap(lambda g: tree_dot(g, weighted(g, weights)))(stack)

    return AgentGradients(
        dot=lambda direction: rows_dot(stack, direction),
        sum=total,
        stack=lambda: stack,
        squared_norms=squared_norms,
        losses=losses,
        present=present,
        active=active,
    )


def from_tape(
    tape: Tape,
    loss_fn: ExampleLoss,
    params: Params,
    batch: VirtualBatch,
    samples_per_visit: int | None = None,
) -> AgentGradients:
    """The operator of a tape whose first B rows are the batch's; others may follow."""
    capacity, mine = batch.active.shape[0], slice(batch.mask.shape[0])
    share = sample_shares(batch).astype(tape.losses.dtype)

    def dot(direction: Params) -> jax.Array:
        return _agent_sum(share * tape.dot(direction, mine), batch.owners, capacity)

    def total(weights: jax.Array | None = None) -> Params:
        held = share
        if weights is not None:
            held = share * checked_weights(weights, capacity)[batch.owners].astype(share.dtype)
        return tape.combination(held, mine)

    visited = _squared_norms(loss_fn, params, batch, samples_per_visit)

    def squared_norms(weights: Params | None = None) -> jax.Array:
        told = None
        if scalar_weights(weights):
            told = tape.squares(share, batch.owners, capacity, mine, weights)
        return visited(weights) if told is None else told

    return AgentGradients(
        dot=dot,
        sum=total,
        stack=lambda: _stack(loss_fn, params, batch, samples_per_visit),
        squared_norms=squared_norms,
        losses=_agent_sum(share * tape.losses[mine], batch.owners, capacity),
        present=present(batch),
        active=batch.active,
        most_present=batch.mask.size,
    )


def checked_weights(weights: jax.Array, agents: int) -> jax.Array:
    """Weights that are one number an agent; others would be read as if they were.

    Raises:
        ValueError: they are not [A].
    """
    if jnp.shape(weights) != (agents,):
        raise ValueError(
            f"weights {jnp.shape(weights)} are not one for each of {agents} slots on the agent"
            f" axis; give {(agents,)}, 0 for who is left out"
        )
    return weights


def agent_norms(gradients: AgentGradients) -> jax.Array:
    """[A], the Euclidean norms |g_i|, of a changed operator to rounding: never negative."""
    return jnp.sqrt(jnp.maximum(gradients.squared_norms(), 0))


def _example_losses(
    loss_fn: ExampleLoss, params: Params, inputs: Any, targets: Any, mask: Any
) -> jax.Array:
    losses = checked_losses(loss_fn(params, inputs, targets), mask.shape[0])
    return jnp.where(mask, losses, 0)


def _agent_sum(values: jax.Array, owners: jax.Array, capacity: int) -> jax.Array:
    """Sum over each agent's entries along the leading axis, in float32 at least."""
    return jax.ops.segment_sum(values.astype(wide(values.dtype)), owners, num_segments=capacity)


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

    @functools.cache
    def check_rules() -> None:
        """Once: it takes a trace, and says the same of every direction."""
        check_forward("linearized", jvp, jax.eval_shape(lambda: params))

    def dot(direction: Params) -> jax.Array:
        check_rules()
        return _agent_sum(jvp(direction), batch.owners, capacity)

    def total(weights: jax.Array | None = None) -> Params:
        cotangent = jnp.ones_like(losses)
        if weights is not None:
            cotangent = checked_weights(weights, capacity)[batch.owners]
        return transpose(cotangent.astype(losses.dtype))[0]

    return AgentGradients(
        dot=dot,
        sum=total,
        stack=lambda: _stack(loss_fn, params, batch, samples_per_visit),
        squared_norms=_squared_norms(loss_fn, params, batch, samples_per_visit),
        losses=_agent_sum(losses, batch.owners, capacity),
        present=present(batch),
        active=batch.active,
    )


def _one_pass(
    loss_fn: ExampleLoss, params: Params, batch: VirtualBatch, samples_per_visit: int | None
) -> AgentGradients:
    tape = record(loss_fn, params, batch.inputs, batch.targets)
    return from_tape(tape, loss_fn, params, batch, samples_per_visit)


def _stacked(
    loss_fn: ExampleLoss, params: Params, batch: VirtualBatch, samples_per_visit: int | None
) -> AgentGradients:
    return from_stack(
        _stack(loss_fn, params, batch, samples_per_visit),
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
        weights = jnp.ones(capacity) if weights is None else checked_weights(weights, capacity)

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
        dot=dot,
        sum=total,
        stack=stack,
        squared_norms=_squared_norms(loss_fn, params, batch, samples_per_visit),
        losses=_losses(loss_fn, params, batch),
        present=present(batch),
        active=batch.active,
    )


def _stack(
    loss_fn: ExampleLoss, params: Params, batch: VirtualBatch, samples_per_visit: int | None
) -> Params:
    plan = visits(batch, samples_per_visit)
    each = jax.vmap(_visit_gradient(loss_fn, params, batch))(plan)
    capacity = batch.active.shape[0]
    return jax.tree.map(lambda g: _agent_sum(g, plan.agents, capacity).astype(g.dtype), each)


def _squared_norms(
    loss_fn: ExampleLoss, params: Params, batch: VirtualBatch, samples_per_visit: int | None
) -> Callable[..., jax.Array]:
    """A scan over visits that holds the visited agent's gradient so far, and nothing else."""
    gradient, capacity = _visit_gradient(loss_fn, params, batch), batch.active.shape[0]

    def squared_norms(weights: Params | None = None) -> jax.Array:
        def visit(
            carried: tuple[Params, jax.Array, jax.Array], each: Visits
        ) -> tuple[tuple[Params, jax.Array, jax.Array], None]:
            so_far, agent, norms = carried
            again = each.agents == agent
            whole = jax.tree.map(
                lambda before, new: jnp.where(again, before, 0) + new, so_far, gradient(each)
            )
            # An agent's visits follow each other, and the last one writes what stands.
            slot = jnp.where(each.mask.any(), each.agents, capacity)
            square = tree_dot(whole, weighted(whole, weights)).astype(norms.dtype)
            return (whole, each.agents, norms.at[slot].set(square, mode="drop")), None

        zeros = jax.tree.map(jnp.zeros_like, params)
        norms = jnp.zeros(capacity, jax.eval_shape(tree_dot, params, params).dtype)
        plan = visits(batch, samples_per_visit)
        start = (zeros, jnp.asarray(-1, plan.agents.dtype), norms)
        return jax.lax.scan(visit, start, plan)[0][2]

    return squared_norms


def _visit_gradient(
    loss_fn: ExampleLoss, params: Params, batch: VirtualBatch
) -> Callable[[Visits], Params]:
    """The gradient part that one visit brings, from the visited agent's own samples."""
    count = live_count(batch)

    def gradient(each: Visits) -> Params:
        inputs, targets = batch.take(each.slots)
        return jax.grad(
            lambda at: _example_losses(loss_fn, at, inputs, targets, each.mask).sum() / count
        )(params)

    return gradient


def _losses(loss_fn: ExampleLoss, params: Params, batch: VirtualBatch) -> jax.Array:
    losses = _example_losses(loss_fn, params, batch.inputs, batch.targets, batch.mask)
    return _agent_sum(losses / live_count(batch), batch.owners, batch.active.shape[0])
