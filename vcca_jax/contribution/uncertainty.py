"""How sure a credit is: over seeds, over validation draws, and which agents it tells apart."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vcca_jax.arguments import check_count, check_key
from vcca_jax.contribution.aumann_shapley import diagonal_rule
from vcca_jax.contribution.coalitions import (
    chunked_map,
    forward_slopes,
    only_present,
    participation,
)
from vcca_jax.contribution.matrix import Utilities


class Across(NamedTuple):
    """Credits over repetitions, and what of their order is settled.

    Attributes:
        credits: [A], the mean.
        standard_error: [A], of that mean.
        above: [A, A] bool, entry (i, j) where agent i's credit is above agent j's beyond noise.
        best_rank, worst_rank: [A] int32, between which an agent's rank lies (1 is the highest
            credit) as far as settled pairs tell; equal where it is settled. 0 for absent agents.
        repetitions: S.
    """

    credits: jax.Array
    standard_error: jax.Array
    above: jax.Array
    best_rank: jax.Array
    worst_rank: jax.Array
    repetitions: int


def across(
    credits: jax.typing.ArrayLike,
    *,
    level: float = 0.05,
    active: jax.typing.ArrayLike | None = None,
) -> Across:
    """The mean of repeated credits, its error, and the pairs of agents that differ beyond noise.

    A repetition is a seed (of the partition, the parameters, the batches), or a validation example:
    an estimator that is linear in the utility credits an agent with the mean over examples of a
    row of ``credit_matrix`` or ``slope_matrix``, so the matrix itself may be given, and nothing is
    run again. Repetitions must be independent; what they do not vary (the data of all seeds, the
    validation rows of one matrix) is not in the error.

    Agents i and j are compared by a paired t-test: with d_s = c_si - c_sj,

        t = mean(d) / (sd(d) / sqrt(S)),    above_ij  iff  t > 0 and p(t, S - 1) A(A-1)/2 <= level

    Differences are paired, so what moves all agents alike from seed to seed does not hide their
    order. By the Bonferroni correction the chance that any pair at all is called settled the wrong
    way, or of two equals, is at most ``level`` where differences are normal (by the central limit
    for many repetitions). Two agents that never differ, replicas say, are not settled; a
    difference that never varies is. Under a sampler's own noise a seed must draw its own key.

    Args:
        credits: [S, A], S >= 2.
        level: of all pairs together, in (0, 1).
        active: [A] bool, agents that take part in the comparison; all by default.

    Returns:
        An ``Across``. Memory O(S A + A^2); runs under jit and vmap.

    Raises:
        ValueError: credits that are not [S, A] with S >= 2, a level outside (0, 1), or ``active``
            that is not [A].
    """
    credits = jnp.asarray(credits)
    if credits.ndim != 2 or credits.shape[0] < 2:
        raise ValueError(
            f"credits has shape {credits.shape}; give [S, A] with S >= 2 repetitions, for one says"
            " nothing of its error"
        )
    if not 0 < level < 1:
        raise ValueError(f"level={level} must lie between 0 and 1")
    count, agents = credits.shape
    active = jnp.ones(agents, bool) if active is None else jnp.asarray(active, bool)
    if active.shape != (agents,):
        raise ValueError(f"active has shape {active.shape}; give one boolean an agent, ({agents},)")
    freedom = count - 1
    compared = active.sum()
    pairs = jnp.maximum(compared * (compared - 1) / 2, 1)

    def above(agent: jax.Array) -> jax.Array:
        differences = credits[:, agent][:, None] - credits
        mean = differences.mean(axis=0)
        squared_error = jnp.var(differences, axis=0, ddof=1) / count
        # nu / (nu + t^2), without the quotient that has no value where nothing varies.
        spread = freedom * squared_error
        total = spread + mean**2
        share = jnp.where(total > 0, spread / jnp.where(total > 0, total, 1), 1)
        p = jax.scipy.special.betainc(freedom / 2, 0.5, share)
        settled = (p * pairs <= level) & active & active[agent]
        return settled & (mean > 0)

    order = jax.lax.map(above, jnp.arange(agents))
    rank = 1 + order.sum(axis=0), compared - order.sum(axis=1)
    best, worst = (jnp.where(active, each, 0).astype(jnp.int32) for each in rank)
    error = jnp.std(credits, axis=0, ddof=1) / count**0.5
    return Across(credits.mean(axis=0), error, order, best, worst, count)


def bootstrap(
    matrix: jax.typing.ArrayLike,
    *,
    key: jax.Array,
    draws: int = 1000,
    statistic: Callable[[jax.Array], Any] = lambda credits: credits,
) -> Any:
    """What credit would have been on other validation draws of the same size.

    Credit that is linear in the utility is the mean of the matrix's rows, one a validation example;
    each draw takes U rows with replacement and means them: no utility is evaluated. Of the credits
    themselves ``across`` knows the error in closed form; this is for what is made of them and is
    not linear: shares, ranks, the lowest agent, the payout of a rule.

    Args:
        matrix: credits by example, [U, A], as ``credit_matrix`` or ``slope_matrix`` give it.
        key: of the draws.
        draws: how many.
        statistic: ``statistic(credits [A])``, any arrays of fixed shapes; the credits themselves by
            default.

    Returns:
        The statistic with a leading [draws], one draw computed after the other. Its percentiles
        are an interval; its standard deviation is a standard error.

    Raises:
        ValueError: a matrix that is not [U, A] with U >= 2, fewer than one draw, or no key.

    Source: Efron, "Bootstrap methods: another look at the jackknife", Annals of Statistics 7
    (1979).
    """
    matrix = jnp.asarray(matrix)
    if matrix.ndim != 2 or matrix.shape[0] < 2:
        raise ValueError(f"matrix has shape {matrix.shape}; give [U, A] with U >= 2 examples")
    key, draws = check_key(key, "examples are"), check_count("draws", draws)
    examples = matrix.shape[0]

    def one(own: jax.Array) -> Any:
        rows = jax.random.randint(own, (examples,), 0, examples)
        return statistic(matrix[rows].mean(axis=0))

    return jax.lax.map(one, jax.random.split(key, draws))


def slope_matrix(
    utilities: Utilities,
    weights: jax.typing.ArrayLike,
    *,
    nodes: int | None = None,
    batch_size: int | None = None,
) -> jax.Array:
    """Influence, or Aumann-Shapley credit, for every beneficiary at once, by forward mode.

    C_ui = w_i du_u/dw_i (w), or with nodes  w_i int_0^1 du_u/dw_i (s w) ds

    The matrix of ``credit_matrix(influence, ...)`` and ``credit_matrix(aumann_shapley, ...)``, for
    A directional derivatives of all utilities together (a node), where those take one backward pass
    a beneficiary: the cheaper one for many validation examples and few agents. Its mean over
    examples is the credit for the mean utility and ``across`` tells the mean's error, from this one
    pass.

    Args:
        utilities: a pure differentiable function of participation weights [A] to utilities [U].
        weights: the grand coalition's participation weights, [A] in [0, 1].
        nodes: of Gauss-Legendre quadrature along the diagonal, at least 1; None for influence.
        batch_size: agents at once; None means 256. It bounds the memory.

    Returns:
        Credits [U, A], exactly 0 for absent agents.

    Raises:
        ValueError: ``utilities`` that do not return one axis, fewer than one node, or as
            ``influence``.
    """
    weights = participation(weights)
    shape = jax.eval_shape(utilities, weights).shape
    if len(shape) != 1:
        raise ValueError(
            f"utilities returned shape {shape}; it must return one utility a beneficiary, shape [U]"
        )
    ones = jnp.ones(1, weights.dtype)
    scales, shares = (ones, ones) if nodes is None else diagonal_rule(nodes, weights.dtype)

    def at(point: jax.Array) -> tuple[jax.Array, jax.Array]:
        # Linearized once: what does not depend on the direction is not computed for each.
        value, linear = jax.linearize(utilities, point)

        def along(agent: jax.Array) -> jax.Array:
            chosen = jnp.arange(weights.shape[0]) == agent
            return linear(jnp.where(chosen, weights, jnp.zeros_like(weights)))

        return value, chunked_map(along, jnp.arange(weights.shape[0]), batch_size=batch_size)

    slopes = jax.lax.map(lambda scale: forward_slopes(at, weights, scale), scales)
    average = jnp.tensordot(shares, slopes, 1)
    return jax.vmap(only_present, in_axes=(0, None))(average.T, weights)
