"""The dual of the projection, from inner products alone: for one agent, and for a batch of them.

With a row of finite price tau_k the half-space may be left at that cost,

    min 1/2 |u - g|^2 + sum_k tau_k xi_k   subject to   N u >= m - xi, xi >= 0,

and the dual is the same program with 0 <= lambda_k <= tau_k: a multiplier is the price of a value,
here with a ceiling. The constraint is kept exactly as long as keeping it costs less than tau_k.

With margins above zero the half-spaces may have no point in common. That is decided by the
homogenised dual (least distance programming; C. Lawson and R. Hanson, *Solving Least Squares
Problems*, 1974, ch. 23) of the rows without a price,

    y = argmin_{y >= 0} 1/2 y^T (G + b b^T) y - b^T y,    rho = 1 - b^T y = 1 / (1 + distance^2),

which always has a solution: lambda = y / rho, and rho = 0 exactly if no update is admissible, y
then being a certificate (N^T y = 0, m^T y > 0). The quotient |N^T y| / b^T y bounds what is
proven: every admissible update is at least b^T y / |N^T y| away from g.

Under ``policy="least_violation"`` such margins are lowered: see ``violations``.
"""

from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from vcca_jax.cones import solvers
from vcca_jax.cones.derivatives import with_derivative
from vcca_jax.cones.pivoting import active_set
from vcca_jax.cones.programs import Program, Units, floating, scaled_program, smallest_rho, verified
from vcca_jax.cones.solvers import matmul
from vcca_jax.cones.violations import least_violation

Policy = Literal["drop", "least_violation"]

# Agents whose programs need more than pivoting are taken together in blocks of this many.
BLOCK = 16


class ConeSolution(NamedTuple):
    """The dual solution of one projection.

    Attributes:
        multipliers: lambda [K] >= 0, the prices of the rows, at most ``prices``; zero on masked
            and zero rows, and everywhere when dropped. Not unique where rows depend on each
            other; N^T lambda is.
        feasible: bool scalar. False when no admissible update exists within reach, or when none
            could be verified: the update is then to be dropped, unless ``policy`` is
            "least_violation". Rows with a price never make it false.
        residual: scalar, the worst violation of the optimality conditions,
            max_k |lambda_k - clip(lambda_k - (G lambda - b)_k, 0, tau_k)| for unit rows, relative
            to the largest deficit, margin or ``scale``; before any correction in parameter space.
            When infeasible, |N^T y| / (b^T y) of the certificate instead: small means proven
            infeasible, anything else that rounding left the question open; under
            "least_violation" the conditions of the lowered margins, and |G v| / max v besides.
            Infinite where the update is dropped for a zero row with a margin above zero, and for
            input that is not finite.
        violation: [K] >= 0, in units of the margins: how far the solution stays below them,
            N u >= m - violation. What priced rows were allowed to miss and, under
            "least_violation", v*; otherwise zero.
    """

    multipliers: jax.Array
    feasible: jax.Array
    residual: jax.Array
    violation: jax.Array


class _Outcome(NamedTuple):
    multipliers: jax.Array
    violation: jax.Array
    feasible: jax.Array
    residual: jax.Array
    settled: jax.Array  # bool: nothing is left to do


def solve_cone_dual(
    gram: ArrayLike,
    deficit: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    margins: ArrayLike | None = None,
    scale: ArrayLike | None = None,
    prices: ArrayLike | None = None,
    policy: Policy = "drop",
) -> ConeSolution:
    """Solves min_{0 <= lambda <= tau} 1/2 lambda^T G lambda - b^T lambda from inner products alone.

    Rows are scaled to unit norm, so that gradients of very different sizes share a cone. Masked
    rows may hold NaN. A zero row (G_kk = 0) asks 0 >= m_k: with a deficit above zero nothing is
    admissible (unless it has a price), otherwise it says nothing. The derivative (jvp and vjp) is
    that of the equations of the free rows, {0 < lambda - (G lambda - b) < tau}, of any order under
    "drop"; at points where a row is about to bind it is one of the one-sided derivatives. Through
    "least_violation" it is that of v* and of the projection as long as the rank of the binding rows
    stays, which moving the margins never changes and moving the rows may.

    What counts as infeasible is what rounding can tell: no solution verified to sqrt(eps) of the
    largest deficit (3e-4 in float32, 1e-8 in float64), or none nearer than eps^(-3/8) times the
    largest of deficits, margins, ``scale`` and finite prices (400 and 7e5). Margins of two opposing
    rows that exclude each other are told by themselves, however large the deficits.

    Args:
        gram: G = N N^T, [K, K].
        deficit: b = m - N g, [K]; above zero where g violates a row.
        mask: bool [K], True for rows that count. Default: all.
        margins: m [K] or a scalar, if known. Where no margin of a row without a price is above
            zero, u = 0 is admissible and ``feasible`` is True without asking rounding.
        scale: |g|, or any size that N g / |N_k| was computed at, if known. Deficits below
            rounding at that size are then taken for zero, so that a projected update projects
            onto itself.
        prices: tau, [K] or a scalar, in the units of lambda; infinite for a row that must hold.
            Rows with a price of zero or less do not count. Default: all infinite.
        policy: what becomes of margins that exclude each other: "drop" (multipliers zero) or
            "least_violation" (lowered by v*, see the module; ``feasible`` stays False).

    Returns:
        A ``ConeSolution``; finite for finite input.

    Raises:
        ValueError: if shapes do not fit, or for an unknown policy.
    """
    check_policy(policy)
    gram, deficit = floating(gram), floating(deficit)
    if deficit.ndim != 1 or gram.shape != (deficit.shape[0], deficit.shape[0]):
        raise ValueError(
            f"gram {gram.shape} and deficit {deficit.shape} do not fit: pass one agent's [K, K] "
            "and [K], and use jax.vmap or solve_cone_duals for more."
        )
    program, units = scaled_program(
        gram, deficit, mask, margins, scale, prices, policy == "least_violation"
    )
    if deficit.shape[0] == 0:
        none = program.deficit
        return ConeSolution(none, jnp.asarray(True), jnp.zeros((), none.dtype), none)
    fixed = lax.stop_gradient(program)
    outcome = _easy(fixed)
    # A loop of at most one round: under vmap it is entered only if some agent needs it.
    outcome = lax.while_loop(
        lambda found: ~found.settled, lambda found: _hard(fixed, found, policy), outcome
    )
    return _in_units(program, units, outcome, policy)


def solve_cone_duals(
    grams: ArrayLike,
    deficits: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    margins: ArrayLike | None = None,
    scale: ArrayLike | None = None,
    prices: ArrayLike | None = None,
    policy: Policy = "drop",
) -> ConeSolution:
    """``solve_cone_dual`` for a batch of agents: the same numbers, sooner when few are hard.

    Under ``vmap`` a single program that needs the interior point makes all A programs go through
    its steps. Here those programs are gathered and taken in blocks of ``BLOCK``.

    Args:
        grams: [A, K, K].
        deficits: [A, K].
        mask: bool [A, K]. Default: all.
        margins, scale, prices: as for ``solve_cone_dual``, with a leading [A]. Default: none.
        policy: one for all.

    Returns:
        A ``ConeSolution`` with a leading [A].

    Raises:
        ValueError: if shapes do not fit, or for an unknown policy.
    """
    check_policy(policy)
    grams, deficits = floating(grams), floating(deficits)
    if deficits.ndim != 2 or grams.shape != (*deficits.shape, deficits.shape[1]):
        raise ValueError(
            f"grams {grams.shape} and deficits {deficits.shape} do not fit: pass [A, K, K] and "
            "[A, K]."
        )
    agents, size = deficits.shape
    optional = {"mask": mask, "margins": margins, "scale": scale, "prices": prices}
    for name, value in optional.items():
        if value is not None and jnp.shape(value)[:1] != (agents,):
            raise ValueError(
                f"{name} {jnp.shape(value)} does not fit {agents} agents: give it a leading "
                f"axis of {agents}."
            )
    programs, units = jax.vmap(partial(scaled_program, lowered=policy == "least_violation"))(
        grams, deficits, mask, margins, scale, prices
    )
    if agents == 0 or size == 0:
        none = programs.deficit
        return ConeSolution(none, jnp.ones((agents,), bool), jnp.zeros((agents,), none.dtype), none)
    fixed = lax.stop_gradient(programs)
    outcomes = jax.vmap(_easy)(fixed)
    order = jnp.argsort(outcomes.settled)
    count = jnp.sum(~outcomes.settled)
    block = min(BLOCK, agents)

    def solve_block(state: tuple[jax.Array, _Outcome]) -> tuple[jax.Array, _Outcome]:
        index, outcomes = state
        # The last block may start earlier and meet settled programs, which come back as they were.
        agent = lax.dynamic_slice_in_dim(order, index * block, block)
        found = jax.vmap(lambda program, outcome: _hard(program, outcome, policy))(
            *jax.tree.map(lambda leaf: leaf[agent], (fixed, outcomes))
        )
        return index + 1, jax.tree.map(lambda old, new: old.at[agent].set(new), outcomes, found)

    _, outcomes = lax.while_loop(
        lambda state: state[0] * block < count, solve_block, (jnp.asarray(0), outcomes)
    )
    return jax.vmap(lambda program, unit, found: _in_units(program, unit, found, policy))(
        programs, units, outcomes
    )


def _easy(program: Program) -> _Outcome:
    """Pivoting, verified: all that nearly every program needs."""
    gram, deficit, caps, rounding, _, live, _ = program
    if deficit.shape[0] == 1:
        multipliers, true = jnp.clip(deficit, 0.0, caps), jnp.asarray(True)
        return _Outcome(multipliers, jnp.zeros_like(deficit), true, jnp.zeros((), gram.dtype), true)
    tolerance = 4.0 * float(jnp.finfo(gram.dtype).eps) * rounding
    multipliers = active_set(gram, deficit, caps, tolerance)
    residual, solved = verified(program, multipliers)
    exact = residual <= solvers.refined_enough(multipliers)
    return _Outcome(
        multipliers,
        jnp.zeros_like(deficit),
        solved,
        residual / rounding,
        (solved & exact) | ~live,
    )


def _hard(program: Program, found: _Outcome, policy: Policy) -> _Outcome:
    """Refinement, the interior point and the certificate; settled programs come back unchanged."""
    # Or the parts that do not depend on ``found`` would be done before the loop, needed or not.
    program, found = lax.optimization_barrier((program, found))
    gram, deficit, caps, rounding, bounded, *_ = program
    pivoted = found.multipliers
    residual, solved = verified(program, pivoted)
    skip = solved | found.settled
    if caps is None:
        ray, gain, inner = _least_distance(gram, deficit, bounded, skip)
        possible = bounded
    else:
        # Rows with a price cannot make a program infeasible: it is decided on the others.
        hard = jnp.isinf(caps)
        both = hard[:, None] & hard[None, :]
        rest = program._replace(
            gram=jnp.where(both, gram, jnp.eye(gram.shape[0], dtype=gram.dtype)),
            deficit=jnp.where(hard, deficit, -1.0),
            caps=None,
        )
        ray, gain, inner = _least_distance(rest.gram, rest.deficit, bounded, skip)
        possible = bounded | verified(rest, solvers.refine(rest.gram, rest.deficit, inner))[1]
        inner = solvers.interior_point(gram, deficit, skip | ~possible, caps)
        inner = jnp.clip(inner, 0.0, caps)
    better = ~skip & (solvers.natural_residual(gram, deficit, inner, caps) < residual)
    multipliers = solvers.refine(gram, deficit, jnp.where(better, inner, pivoted), caps)
    residual, solved = verified(program, multipliers)

    feasible = solved | possible
    length = jnp.sqrt(jnp.maximum(jnp.dot(ray, matmul(gram, ray)), 0.0))
    certificate = jnp.where(gain > 0, length / jnp.where(gain > 0, gain, 1.0), jnp.inf)
    residual = jnp.where(feasible, residual / rounding, certificate)
    violation = jnp.zeros_like(deficit)
    if policy == "least_violation":
        nearest, violation, worst = least_violation(program, feasible | found.settled)
        multipliers = jnp.where(feasible, multipliers, nearest)
        violation = jnp.where(feasible, 0.0, violation)
        residual = jnp.where(feasible, residual, worst)
    new = _Outcome(multipliers, violation, feasible, residual, jnp.asarray(True))
    return jax.tree.map(lambda old, now: jnp.where(found.settled, old, now), found, new)


def _least_distance(
    gram: jax.Array, deficit: jax.Array, bounded: jax.Array, skip: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The homogenised dual: its ray y, b^T y, and the multipliers y / rho."""
    lift = jnp.where(bounded, 0.0, deficit)
    balance = (1.0 + lift**2) ** -0.5
    lifted = (gram + lift[:, None] * lift[None, :]) * balance[:, None] * balance[None, :]
    ray = balance * solvers.interior_point(lifted, balance * deficit, skip)
    gain = jnp.dot(deficit, ray)
    rho = jnp.where(bounded, 1.0, 1.0 - gain)
    return ray, gain, ray / jnp.maximum(rho, smallest_rho(gram))


def _in_units(program: Program, units: Units, outcome: _Outcome, policy: Policy) -> ConeSolution:
    gram, deficit, caps, _, _, live, _ = program
    impossible = jnp.any(units.impossible)
    feasible = outcome.feasible & ~impossible & live
    kept = live if policy == "least_violation" else feasible
    multipliers = jnp.where(kept, outcome.multipliers, 0.0)
    violation = jnp.where(kept, outcome.violation, 0.0)
    lowered = policy == "least_violation"
    multipliers, violation = with_derivative(gram, deficit, caps, multipliers, violation, lowered)
    if caps is not None:
        missing = deficit - matmul(gram, multipliers)
        missed = jnp.isfinite(caps) & (multipliers >= caps) & (missing > 0)
        violation = jnp.where(missed & kept, missing, violation)
    violation = violation * units.margin + jnp.where(kept, units.depth, 0.0)
    dropped = ~live if policy == "least_violation" else impossible | ~live
    residual = jnp.where(dropped, jnp.inf, outcome.residual)
    return ConeSolution(multipliers * units.multiplier, feasible, residual, violation)


def check_policy(policy: str) -> None:
    """Refuse a policy that is not known."""
    if policy not in ("drop", "least_violation"):
        raise ValueError(f"policy={policy!r} must be 'drop' or 'least_violation'")
