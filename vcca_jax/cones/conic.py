"""Projection onto half-spaces, a ball, angle cones and ellipsoids, for one agent; callers ``vmap``.

A profile may ask more of an update u than half-spaces. With value gradients V [M, D] and the
agent gradient g,

    minimise   1/2 |u - g|^2 + sum_k price_k xi_k
    subject to sign_k <u, V_{value_k}> >= margin_k - xi_k,  xi_k >= 0     half-spaces
               |u| <= max_norm                                           ball
               <u, V_q> >= cosine_q |u| |V_q|                            angle cones
               |(weight_rm <u, V_m>)_m| <= radius_r                      trust regions

is our reading of "updates that remain admissible" in arXiv:2606.28217 for all of them together.
Every constraint speaks of u through <u, V> and |u| alone, so u = scale g + V^T coefficients, and
the program is solved from inner products: D is met by V V^T, V g and |g|^2 only.

Half-spaces alone are ``cones.solve_cone_dual``, exactly, and nothing else is computed where its
answer meets every other constraint. Where it does not, it may not be capped or scaled: with
margins that leaves the half-spaces, or the nearest admissible point (``conic_newton`` starts
there, ``conic_interior`` helps where that fails).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from vcca_jax.cones import conic_newton
from vcca_jax.cones.conic_interior import conic_interior_point
from vcca_jax.cones.conic_programs import Asked, ConicPoint, ConicProgram, payable, scaled
from vcca_jax.cones.duals import solve_cone_dual
from vcca_jax.cones.solvers import matmul


class ConicSolution(NamedTuple):
    """The admissible update nearest to g, u = scale g + V^T coefficients, and how it was found.

    A multiplier is the rate at which 1/2 |u - g|^2 + price^T xi falls as its limit is loosened.

    Attributes:
        scale: scalar in [0, 1], what g is multiplied by; 1 unless a ball or an angle binds.
        coefficients: [M], multiples of the value gradients that are added.
        multipliers: [K] >= 0, of the half-spaces' margins, and at most their prices.
        norm_multiplier: scalar >= 0, of ``max_norm``.
        angle_multipliers: [M] >= 0, of <u, V_q> - cosine_q |u| |V_q| >= 0.
        region_multipliers: [R] >= 0, of ``radii``.
        feasible: bool scalar. False when no admissible update exists, or when none could be
            verified: the update is then to be dropped, and everything above is 0.
        residual: scalar, the worst violation of the optimality conditions, and at least what
            rounding hides of the sum that u is, for unit rows and relative to the larger of |g|
            and its projection onto the half-spaces; that of ``solve_cone_dual`` where its answer
            stands. Infinite where nothing finite was found.
        stands: bool scalar, True where the half-spaces decided alone.
    """

    scale: jax.Array
    coefficients: jax.Array
    multipliers: jax.Array
    norm_multiplier: jax.Array
    angle_multipliers: jax.Array
    region_multipliers: jax.Array
    feasible: jax.Array
    residual: jax.Array
    stands: jax.Array


def solve_conic_program(
    gram: ArrayLike,
    products: ArrayLike,
    squared_norm: ArrayLike,
    value: ArrayLike,
    sign: ArrayLike,
    margin: ArrayLike = 0.0,
    mask: ArrayLike | None = None,
    *,
    prices: ArrayLike | None = None,
    max_norm: ArrayLike = jnp.inf,
    cosines: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    radii: ArrayLike | None = None,
) -> ConicSolution:
    """Projects one gradient onto half-spaces, a ball, angle cones and trust regions at once.

    The program stands at the head of this module. Where the projection onto the half-spaces
    meets all else, beyond rounding, it is returned bit for bit, and no loop is entered; under
    ``vmap`` the loops run for as long as some agent needs them.

    Rows are scaled to unit norm and the program to unit size: sizes of gradients do not matter.
    Relative error of u on well-conditioned problems: 1e-12 in float64; in float32 5e-7 for nine in
    ten, 1e-6 for 99 in 100 and 6e-6 for all of some thousands. It grows with the condition number
    of the unit rows g and V, as cond^2 eps, with the narrowness of what is admissible, and for an
    angle of theta as eps / theta^2. Where angles all but refuse g the error is relative to |g|,
    and where a ball is much smaller than |g| to |g| eps. Cosines above 1 - eps^(2/3) (within 0.4
    degrees in float32, 5e-4 in float64), and radii below eps^(2/3) times the program's size, are
    taken for that: to ask for an exact 0 of some <u, V_m>, give the half-spaces of both signs.

    Where rows depend on each other, u is unique and multipliers are not. What rounding hides is not
    taken for an answer: one of the half-spaces' whose multipliers, for unit rows, add up to more
    than eps^(-3/8) of what is asked (400 in float32; of |g|, of its length or of a margin) does not
    stand, and elsewhere ``residual`` counts half an eps of all that is added up to u. So opposing
    copies whose margins exclude each other by more than rounding are infeasible. Prices of more
    than eps^(-1/2) times what is asked (2900 and 7e7) are taken for that: against an opposing copy
    that must hold, a row at its price pushes with all of it and moves nothing but digits. Rows that
    nearly depend on each other, a few sqrt(eps) apart, still lose what cond^2 eps says.

    Feasibility is decided by verifying the answer: optimality conditions to sqrt(eps), 3e-4 in
    float32 and 1e-8 in float64, nothing farther away than 32 times the larger of |g| and its
    projection onto the half-spaces being searched for. Where no hard margin is above zero u = 0 is
    admissible, and ``feasible`` is True without asking rounding; should the answer then not be
    verified even to eps^(1/4), u = 0 is returned.

    The derivative (jvp and vjp) is that of the optimality conditions with the
    binding constraints held binding. Where a constraint is about to bind it is one of the
    one-sided derivatives. At the apex, u = 0 by angle cones, it is 0: right where g is inside the
    polar of the admissible cone, and one of the one-sided derivatives on its boundary. ``residual``
    has none.

    Args:
        gram: V V^T, [M, M].
        products: V g, [M].
        squared_norm: |g|^2, scalar.
        value: int [K], the row of V each half-space speaks of.
        sign: [K], 1 where <u, V> is bounded from below, -1 where from above.
        margin: [K] or a scalar, in units of <u, V>.
        mask: bool [K], True for half-spaces that count. Default: all.
        prices: [K] or a scalar, what a half-space's violation costs a unit; infinite: it may not
            be violated; zero or less: it does not count. Default: infinite.
        max_norm: scalar >= 0, in units of u; infinite: none.
        cosines: [M] or a scalar, in [0, 1]; below 0: none. Default: none.
        weights: [R, M] >= 0, each region's, in units of 1 / <u, V>. Default: no region.
        radii: [R] or a scalar, >= 0; infinite: none. Default: 1, that is ``weights`` alone say it.

    Returns:
        A ``ConicSolution``; finite, but for ``residual``, for finite inner products. A value
        gradient of zero meets its angle, takes no part in regions, and admits nothing if a hard
        margin above zero is asked of it.

    Raises:
        ValueError: if shapes do not fit.
    """
    gram, products = jnp.asarray(gram), jnp.asarray(products)
    dtype = jnp.promote_types(jnp.promote_types(gram.dtype, products.dtype), jnp.float32)
    gram, products = gram.astype(dtype), products.astype(dtype)
    if products.ndim != 1 or gram.shape != 2 * products.shape:
        raise ValueError(
            f"gram {gram.shape} and products {products.shape} do not fit: pass one agent's [M, M] "
            "and [M], and use jax.vmap for more."
        )
    values = products.shape[0]
    value = jnp.asarray(value)
    rows = value.shape
    if len(rows) != 1:
        raise ValueError(f"value {rows} must be one agent's [K]; use jax.vmap for more.")
    counted = _shaped("mask", True if mask is None else mask, rows, jnp.bool_)
    prices = _shaped("prices", jnp.inf if prices is None else prices, rows, dtype)
    counted = counted & (prices > 0)
    margin = jnp.where(counted, _shaped("margin", margin, rows, dtype), 0.0)
    shape = (0, values) if weights is None else (jnp.shape(weights)[0], values)
    asked = Asked(
        gram=gram,
        products=products,
        squared_norm=_shaped("squared_norm", squared_norm, (), dtype),
        value=value,
        sign=_shaped("sign", sign, rows, dtype),
        margin=margin,
        mask=counted,
        prices=jnp.where(counted, prices, jnp.inf),
        max_norm=_shaped("max_norm", max_norm, (), dtype),
        cosines=_shaped("cosines", -1.0 if cosines is None else cosines, (values,), dtype),
        weights=_shaped("weights", 0.0 if weights is None else weights, shape, dtype),
        radii=_shaped("radii", 1.0 if radii is None else radii, shape[:1], dtype),
    )
    return _solve(asked)


def _shaped(name: str, array: ArrayLike, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    array = jnp.asarray(array, dtype)
    if array.shape not in ((), shape):
        raise ValueError(f"{name} {array.shape} does not fit: pass a scalar or {list(shape)}.")
    return jnp.broadcast_to(array, shape)


def _solve(asked: Asked) -> ConicSolution:
    epsilon = float(jnp.finfo(asked.gram.dtype).eps)
    length = jnp.sqrt(lax.stop_gradient(asked.squared_norm))
    asked, least = payable(asked)
    half = solve_cone_dual(
        asked.sign[:, None]
        * asked.sign[None, :]
        * asked.gram[asked.value[:, None], asked.value[None, :]],
        asked.margin - asked.sign * asked.products[asked.value],
        asked.mask,
        margins=asked.margin,
        scale=length,
        prices=asked.prices,
    )
    added = jnp.zeros_like(asked.products).at[asked.value].add(asked.sign * half.multipliers)

    program, units, trusted = scaled(asked, half.multipliers, least)
    start = ConicPoint(
        program.target + jnp.append(added / units.coordinates[:-1], 0.0),
        half.multipliers / units.rows,
        jnp.zeros_like(asked.cosines),
        jnp.zeros_like(asked.max_norm),
        jnp.zeros_like(asked.radii),
    )
    admissible = jnp.all((asked.margin <= 0) | (asked.prices < jnp.inf))  # u = 0 is
    stands = (trusted & _meets(program, start.coordinates)) | ~half.feasible
    closed = ~stands & (asked.max_norm <= 0)
    point, residual = _iterate(*lax.stop_gradient((program, start, stands | closed)))
    found = ~closed & jnp.where(admissible, residual <= epsilon**0.25, residual <= epsilon**0.5)
    feasible = jnp.where(stands, half.feasible, found | admissible)
    moved = found & ~stands
    point = jax.tree.map(lambda x: jnp.where(moved, x, 0.0), _differentiable(program, point))
    kept = stands & half.feasible
    weighted = point.coordinates * units.coordinates
    return ConicSolution(
        scale=jnp.where(kept, 1.0, weighted[-1]),
        coefficients=jnp.where(kept, added, weighted[:-1]),
        multipliers=jnp.where(kept, half.multipliers, point.rows * units.rows),
        norm_multiplier=point.norm * units.size,
        angle_multipliers=point.angles * units.coordinates[:-1],
        region_multipliers=point.regions * units.regions,
        feasible=feasible,
        residual=lax.stop_gradient(
            jnp.where(stands, half.residual, jnp.where(closed & admissible, 0.0, residual))
        ),
        stands=stands,
    )


def _meets(program: ConicProgram, coordinates: jax.Array) -> jax.Array:
    """Whether x meets ball, angles and regions, up to rounding."""
    slop = 8.0 * float(jnp.finfo(coordinates.dtype).eps) * jnp.sum(jnp.abs(coordinates))
    products = matmul(program.gram, coordinates)
    length = conic_newton.length_of(program, coordinates)
    measured = jnp.linalg.norm(program.weights * products[None, :-1], axis=1)
    return (
        (~program.capped | (length <= program.max_norm + slop))
        & jnp.all(~program.angled | (products[:-1] >= program.cosines * length - slop))
        & jnp.all(~program.bounded | (measured <= program.radii + slop))
    )


class _Attempt(NamedTuple):
    point: ConicPoint
    residual: jax.Array
    number: jax.Array
    done: jax.Array


def _iterate(
    program: ConicProgram, start: ConicPoint, skip: jax.Array
) -> tuple[ConicPoint, jax.Array]:
    """Newton from the half-spaces' answer, then, where that failed, from an interior point's.

    One loop of at most two turns: what is traced twice is compiled once.
    """
    epsilon = float(jnp.finfo(program.gram.dtype).eps)

    def unfinished(state: _Attempt) -> jax.Array:
        return ~state.done & (state.number < 2)

    def attempt(state: _Attempt) -> _Attempt:
        again = state.number > 0
        inner = conic_interior_point(program, ~again)
        first = jax.tree.map(lambda new, old: jnp.where(again, new, old), inner, start)
        # Zero is the answer if the multipliers found say so; half-spaces it is inside of do not.
        apex = first._replace(
            coordinates=jnp.zeros_like(first.coordinates),
            rows=jnp.where(program.margins < 0, 0.0, first.rows),
        )
        apex_error = jnp.where(again, conic_newton.residual(program, apex), jnp.inf)
        apex_error = jnp.where(jnp.isfinite(apex_error), apex_error, jnp.inf)
        point, error = conic_newton.newton(program, first, apex_error <= 16.0 * epsilon)
        point = _choose(apex_error < error, apex, point)
        error = jnp.minimum(apex_error, error)
        return _Attempt(
            _choose(error < state.residual, point, state.point),
            jnp.minimum(error, state.residual),
            state.number + 1,
            error <= 64.0 * epsilon,
        )

    infinite = jnp.asarray(jnp.inf, program.gram.dtype)
    state = lax.while_loop(unfinished, attempt, _Attempt(start, infinite, jnp.asarray(0), skip))
    return state.point, state.residual


def _choose(condition: jax.Array, first: ConicPoint, second: ConicPoint) -> ConicPoint:
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), first, second)


@jax.custom_jvp
def _differentiable(program: ConicProgram, point: ConicPoint) -> ConicPoint:
    """Returns ``point``, with the derivative of the optimality conditions attached."""
    return point


@_differentiable.defjvp
def _differentiable_jvp(primals: Any, tangents: Any) -> tuple[ConicPoint, ConicPoint]:
    program, point = primals[0], _differentiable(*primals)
    _, change = jax.jvp(
        lambda program: conic_newton.newton_step(program, point)[0], (program,), tangents[:1]
    )
    apex = conic_newton.length_of(program, point.coordinates) <= 0
    return point, jax.tree.map(lambda x: jnp.where(apex, 0.0, x), change)
