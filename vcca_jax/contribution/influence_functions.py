"""Influence functions: what leaving an agent out of a trained model would do, by its curvature."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from vcca_jax.contribution.coalitions import only_present, scalar_of
from vcca_jax.gradients import agent_gradients
from vcca_jax.rows import tree_dot
from vcca_jax.trainer import ExampleLoss, Params
from vcca_jax.virtual_batch import VirtualBatch

Product = Callable[[Params], Params]
"""A symmetric linear map on the parameters."""

_RUNNING, _CONVERGED, _NEGATIVE, _BROKEN = range(4)


class Solution(NamedTuple):
    """What conjugate gradients came to; the scalars say how far it is to be trusted.

    Attributes:
        solution: like the parameters, the last good iterate; finite for a finite right-hand side.
        iterations: int32, products with the matrix that entered the solution.
        residual: |b - M x| / |b|, measured anew at the end (0 where b = 0).
        curvature: the least p^T M p / p^T p met along the search directions; infinite where there
            was none.
        negative_curvature: bool, a direction with p^T M p <= 0 was met, and the iteration ended.
        converged: bool, the iteration's own residual came below the tolerance.
    """

    solution: Params
    iterations: jax.Array
    residual: jax.Array
    curvature: jax.Array
    negative_curvature: jax.Array
    converged: jax.Array


class InfluenceFunctions(NamedTuple):
    """Credits by influence functions, with the account of the system that was solved.

    Attributes:
        credits: [A], in the unit of the validation loss; positive where the agent helps.
        system: the ``Solution`` of (H + damping I) x = grad L_val.
    """

    credits: jax.Array
    system: Solution


def influence_functions(
    loss_fn: ExampleLoss,
    params: Params,
    batches: VirtualBatch,
    validation_loss: Callable[[Params], jax.Array],
    *,
    damping: float,
    curvature: Literal["hessian", "gauss_newton"] = "hessian",
    outputs: Callable[[Params, Any], Any] | None = None,
    criterion: Callable[[Any, Any], jax.Array] | None = None,
    tolerance: float = 1e-5,
    max_iterations: int = 100,
) -> InfluenceFunctions:
    """Credit every agent with the validation loss that the optimum would gain without it.

    c_i = grad L_val(theta)^T (H + damping I)^-1 g_i

    With N live samples in all, J(theta) = (1/N) sum_s l_s(theta), H its Hessian at theta and
    g_i = (1/N) sum_{s: a(s)=i} grad l_s: dropping agent i's terms, and renormalising nothing, moves
    the minimum of J + damping/2 |theta|^2 by (H + damping I)^-1 g_i to first order, and the
    validation loss by c_i. So c_i estimates v(1) - v(1 - e_i) of v(w) = -L_val at the minimum that
    the agents w have, and equals `influence` of that utility where theta is the minimum.

    It looks at the end of training alone: theta is taken for the minimum, and a run that stopped
    before it, or that a non-convex loss or the order of the batches led elsewhere, is not what is
    measured. `influence` of `training_utility` differentiates the run itself. It is no function of
    a utility, so its arguments are not those of the estimators.

    Cost: one Hessian-vector product over all samples an iteration, and one jvp for all agents in
    the end: none of it depends on A. Holds: symmetry, null agent (exactly 0), linearity in the
    validation loss, split-invariance. Does not hold: efficiency.

    Args:
        loss_fn: per-example loss.
        params: theta, the trained parameters.
        batches: all the agents' samples, each once: one batch, or several with a leading [T], which
            are gone through one after the other, in the memory of one.
        validation_loss: ``validation_loss(params) -> scalar``.
        damping: added to the curvature, >= 0; the weight of a quadratic penalty in J, or what makes
            an indefinite Hessian invertible. Without a penalty, 1e-3 to 1e-2 of the largest
            curvature is usual.
        curvature: "hessian", or "gauss_newton": J^T (Hessian of the criterion) J in the outputs,
            which is positive semi-definite for a convex criterion.
        outputs: ``outputs(params, inputs [B, ...]) -> [B, ...]``; for "gauss_newton".
        criterion: ``criterion(outputs, targets) -> [B]``, such that ``loss_fn`` is the criterion of
            the outputs; for "gauss_newton".
        tolerance: of |b - M x| / |b|.
        max_iterations: at most as many products.

    Returns:
        An ``InfluenceFunctions``. Its credits are finite for finite gradients, whatever became of
        the iteration; look at ``system`` before they are relied on.

    Raises:
        ValueError: negative or non-finite damping, an unknown curvature, "gauss_newton" without
            outputs and criterion, fewer than one iteration, or a validation loss that does not
            return a floating-point scalar.

    Source: Koh & Liang, "Understanding black-box predictions via influence functions",
    arXiv:1703.04730, with the sign of leave-one-out; Gauss-Newton: Martens, "Deep learning via
    Hessian-free optimization" (2010), and Bae et al., "If influence functions are the answer, then
    what is the question?", arXiv:2209.05364.
    """
    if not (isinstance(damping, jax.core.Tracer) or 0 <= damping < float("inf")):
        raise ValueError(f"damping={damping} must be finite and not negative")
    if curvature not in ("hessian", "gauss_newton"):
        raise ValueError(f"curvature={curvature!r} must be 'hessian' or 'gauss_newton'")
    batches = jax.tree.map(jnp.asarray, batches)
    if batches.mask.ndim == 1:
        batches = jax.tree.map(lambda leaf: leaf[None], batches)
    total = jnp.maximum(batches.mask.sum(), 1)

    def over_batches(function: Callable[[VirtualBatch], Any]) -> Any:
        """Sum of what the function says of each batch, one batch at a time."""

        def add(so_far: Any, batch: VirtualBatch) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, so_far, function(batch)), None

        first = jax.tree.map(lambda leaf: leaf[0], batches)
        zeros = jax.tree.map(
            lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(function, first)
        )
        return jax.lax.scan(add, zeros, batches)[0]

    def mean(losses: jax.Array, batch: VirtualBatch) -> jax.Array:
        return jnp.where(batch.mask, losses, 0).sum() / total

    def hessian(direction: Params) -> Callable[[VirtualBatch], Params]:
        def of(batch: VirtualBatch) -> Params:
            def gradient(at: Params) -> Params:
                return jax.grad(lambda p: mean(loss_fn(p, batch.inputs, batch.targets), batch))(at)

            return jax.jvp(gradient, (params,), (direction,))[1]

        return of

    def gauss_newton(direction: Params) -> Callable[[VirtualBatch], Params]:
        if outputs is None or criterion is None:
            raise ValueError(
                "curvature='gauss_newton' splits the loss at the model's outputs; give outputs= and"
                " criterion="
            )

        def of(batch: VirtualBatch) -> Params:
            def model(at: Params) -> Any:
                return outputs(at, batch.inputs)

            def slope(told: Any) -> Any:
                return jax.grad(lambda o: mean(criterion(o, batch.targets), batch))(told)

            told, moved = jax.jvp(model, (params,), (direction,))
            bent = jax.jvp(slope, (told,), (moved,))[1]
            return jax.vjp(model, params)[1](bent)[0]

        return of

    chosen = hessian if curvature == "hessian" else gauss_newton

    def product(direction: Params) -> Params:
        bent = over_batches(chosen(direction))
        return jax.tree.map(lambda b, d: b + jnp.asarray(damping, d.dtype) * d, bent, direction)

    system = conjugate_gradients(
        product,
        jax.grad(scalar_of(validation_loss, "validation_loss"))(params),
        tolerance,
        max_iterations,
    )

    def credit(batch: VirtualBatch) -> jax.Array:
        # An agent's part is of the batch's mean; the credit wants it of the mean over all samples.
        share = batch.mask.sum() / total
        return share * agent_gradients(loss_fn, params, batch).dot(system.solution)

    credits = over_batches(credit)
    active = batches.active.any(axis=0).astype(credits.dtype)
    return InfluenceFunctions(only_present(credits, active), system)


def conjugate_gradients(
    product: Product, right: Params, tolerance: float = 1e-5, max_iterations: int = 100
) -> Solution:
    """Solve M x = b for a symmetric M by conjugate gradients from x = 0, and tell what happened.

    On an indefinite matrix the method divides by a p^T M p that may vanish, and its iterates can go
    anywhere. ``jax.scipy.sparse.linalg.cg`` goes on, returns such an iterate or NaN, and reports
    nothing. Here the iteration ends at the first direction with p^T M p <= 0 (or a product that is
    not finite), and the iterate before it is returned: it minimises x^T M x / 2 - b^T x over the
    directions so far, on all of which M is positive.

    Args:
        product: M, as a map on trees like ``right``.
        right: b.
        tolerance: of |b - M x| / |b|.
        max_iterations: at most as many products, at least 1.

    Raises:
        ValueError: fewer than one iteration.

    Source: Hestenes & Stiefel (1952); the stopping rule, Steihaug (1983).
    """
    if max_iterations < 1:
        raise ValueError(f"max_iterations={max_iterations} must be at least 1")
    size = tree_dot(right, right)
    goal = tolerance**2 * size

    def plus(left: Params, scale: jax.Array, other: Params) -> Params:
        return jax.tree.map(lambda a, b: a + scale.astype(a.dtype) * b, left, other)

    def going(state: tuple[Any, ...]) -> jax.Array:
        return (state[0] == _RUNNING) & (state[1] < max_iterations)

    def step(state: tuple[Any, ...]) -> tuple[Any, ...]:
        _, count, x, residual, direction, square, least = state
        bent = product(direction)
        along = tree_dot(direction, bent)
        length = square / jnp.where(along > 0, along, 1)
        further, remaining = plus(x, length, direction), plus(residual, -length, bent)
        fresh = tree_dot(remaining, remaining)
        bounded = jax.tree.map(lambda leaf: jnp.isfinite(leaf).all(), (further, along, fresh))
        finite = jax.tree.reduce(jnp.logical_and, bounded)
        good = finite & (along > 0)
        status = jnp.where(
            good,
            jnp.where(fresh <= goal, _CONVERGED, _RUNNING),
            jnp.where(finite, _NEGATIVE, _BROKEN),
        ).astype(jnp.int32)
        least = jnp.where(
            jnp.isfinite(along), jnp.minimum(least, along / tree_dot(direction, direction)), least
        )
        onward = plus(remaining, fresh / square, direction)
        moved = (x, residual, direction, square)
        kept = jax.tree.map(
            lambda new, old: jnp.where(good, new, old), (further, remaining, onward, fresh), moved
        )
        return (status, count + good.astype(jnp.int32), *kept, least)

    nothing = jax.tree.map(jnp.zeros_like, right)
    sound = jnp.isfinite(size)
    status = jnp.where(sound, jnp.where(size == 0, _CONVERGED, _RUNNING), _BROKEN)
    start = (status.astype(jnp.int32), jnp.int32(0), nothing, right, right, size)
    final = jax.lax.while_loop(going, step, (*start, jnp.full_like(size, jnp.inf)))
    status, count, x, least = final[0], final[1], final[2], final[-1]
    gap = jax.tree.map(jnp.subtract, right, product(x))
    return Solution(
        solution=x,
        iterations=count,
        residual=jnp.sqrt(tree_dot(gap, gap) / jnp.where(size > 0, size, 1)),
        curvature=least,
        negative_curvature=status == _NEGATIVE,
        converged=status == _CONVERGED,
    )
