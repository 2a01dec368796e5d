"""Derivatives of the projection onto half-spaces, ball, angle cones and regions."""

import functools

import jax
import numpy as np
import pytest

from tests.conic_examples import KINDS, example, padded, plain
from vcca_jax.cones.conic import solve_conic_program


def of_update(arguments, gradient, values):
    """u and all multipliers as functions of what they depend on smoothly."""
    arguments = dict(
        arguments,
        gram=values @ values.T,
        products=values @ gradient,
        squared_norm=gradient @ gradient,
    )
    solution = solve_conic_program(**arguments)
    update = solution.scale * gradient + solution.coefficients @ values
    return update, solution[2:6]


@functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
@jax.vmap
def derivatives(primals, tangents, cotangent, fixed):
    """The value, its derivative along ``tangents``, and the transpose of that on ``cotangent``."""

    def function(smooth, gradient, values):
        return of_update(dict(smooth, **fixed), gradient, values)

    value, push = jax.linearize(function, *primals)
    return value, push(*tangents), jax.linear_transpose(push, *primals)(cotangent)


def smooth_parts(rng, problem):
    """Arguments split in those with derivatives and the others, and a random tangent."""
    count = len(problem.values)
    arguments = padded(problem, np.float64, count, count)
    fixed = {name: arguments[name] for name in ("value", "sign", "mask", "prices")}
    smooth = {name: arguments[name] for name in ("margin", "cosines", "weights", "radii")}
    smooth["max_norm"] = arguments["max_norm"]
    primals = (smooth, problem.gradient, problem.values)
    tangents = jax.tree.map(lambda x: np.asarray(rng.standard_normal(np.shape(x))), primals)
    for name, none in (("cosines", smooth["cosines"] < 0), ("radii", np.isinf(smooth["radii"]))):
        tangents[0][name] = np.where(none, 0.0, 0.1 * tangents[0][name])
    tangents[0]["weights"] = np.where(smooth["weights"] > 0, tangents[0]["weights"], 0.0)
    tangents[0]["max_norm"] = np.where(np.isinf(smooth["max_norm"]), 0.0, tangents[0]["max_norm"])
    return primals, tangents, fixed


def cotangent_of(rng, primals):
    smooth, gradient, _ = primals
    shapes = [smooth[name].shape for name in ("margin", "max_norm", "cosines", "radii")]
    update, *multipliers = (rng.standard_normal(shape) for shape in (gradient.shape, *shapes))
    return update, tuple(multipliers)


def shifted(primals, tangents, step):
    return jax.tree.map(
        lambda x, t: np.where(np.isinf(x), x, np.where(np.isinf(x), 0, x) + step * t),
        primals,
        tangents,
    )


def test_derivatives_are_those_of_finite_differences():
    rng = np.random.default_rng(4)
    problems = [example(rng, kinds, 4, soft=True) for kinds in KINDS.values()]
    # And one at the apex, where the derivative is zero.
    away = np.array([0.2, -1.0]) @ problems[0].values[:2]
    apex = plain(away, problems[0].values, cosines=np.array([-1.0, 0.9, -1.0, -1.0]))
    parts = [smooth_parts(rng, problem) for problem in (*problems, apex)]
    primals, tangents, fixed = jax.tree.map(lambda *x: np.stack(x), *parts)
    with jax.enable_x64(True):
        cotangent = cotangent_of(rng, primals)
        value, pushed, pulled = derivatives(primals, tangents, cotangent, fixed)
        above, below = (
            derivatives(shifted(primals, tangents, step), tangents, cotangent, fixed)[0]
            for step in (1e-6, -1e-6)
        )
    np.testing.assert_array_equal(value[0][-1], 0.0)
    np.testing.assert_array_equal(pushed[0][-1], 0.0)
    numeric = jax.tree.map(lambda a, b: (np.asarray(a) - np.asarray(b)) / 2e-6, above, below)
    for mine, theirs in zip(jax.tree.leaves(pushed), jax.tree.leaves(numeric), strict=True):
        mine, theirs = np.asarray(mine)[:-1], np.asarray(theirs)[:-1]
        assert np.abs(theirs).max() > 0.01
        np.testing.assert_allclose(mine, theirs, atol=1e-6, rtol=1e-6)

    def inner(left, right):
        pairs = zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
        return sum(np.sum(np.asarray(a) * np.asarray(b)) for a, b in pairs)

    assert inner(pushed, cotangent) == pytest.approx(inner(tangents, pulled), rel=1e-9)
