"""Influence functions and their conjugate gradients against closed forms in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vcca_jax import contribution
from vcca_jax.contribution.influence_functions import conjugate_gradients, influence_functions
from vcca_jax.virtual_batch import VirtualBatch

pytestmark = pytest.mark.slow  # many small programs to compile

AGENTS, SAMPLES, WIDTH, RIDGE = 5, 12, 4, 0.3
DRAW = np.random.default_rng(3)
INPUTS, TARGETS = DRAW.normal(size=(SAMPLES, WIDTH)), DRAW.normal(size=SAMPLES)
OWNERS = np.arange(SAMPLES) % (AGENTS - 1)  # the last agent has no sample
PROBE = DRAW.normal(size=WIDTH)
HESSIAN = INPUTS.T @ INPUTS / SAMPLES + RIDGE * np.eye(WIDTH)
MINIMUM = np.linalg.solve(HESSIAN, INPUTS.T @ TARGETS / SAMPLES)
ERRORS = INPUTS @ MINIMUM - TARGETS


def host(tree):
    """Arrays of NumPy, which keep their precision outside of float64."""
    return jax.tree.map(np.asarray, tree)


def outputs(params, inputs):
    return inputs @ params


def criterion(told, targets):
    return 0.5 * (told - targets) ** 2


def squared_loss(params, inputs, targets):
    return criterion(outputs(params, inputs), targets)


def batch_of(owners, agents):
    return VirtualBatch(
        INPUTS, TARGETS, owners, owners, np.ones(SAMPLES, bool), np.arange(agents) >= 0
    )


def in_two(batch):
    """The same samples as two batches, the second one padded."""
    slots = np.concatenate([np.arange(SAMPLES), np.zeros(2, int)]).reshape(2, 7)
    parts = (leaf[slots] for leaf in batch[:4])
    mask = np.arange(14).reshape(2, 7) < SAMPLES
    return VirtualBatch(*parts, mask, np.stack([batch.active] * 2))


def probe(params):
    return jnp.vdot(jnp.asarray(PROBE), params)


def solved(w, owners):
    """The minimum that agents with weights w have: v(w) = -L_val there."""
    weights = w[jnp.asarray(owners)]
    curvature = jnp.einsum("s,sd,se->de", weights, INPUTS, INPUTS) / SAMPLES + RIDGE * np.eye(WIDTH)
    linear = jnp.einsum("s,sd,s->d", weights, INPUTS, TARGETS) / SAMPLES
    return -probe(jnp.linalg.solve(curvature, linear))


@pytest.mark.parametrize("curvature", ["hessian", "gauss_newton"])
def test_credit_of_ridge_regression_is_woodburys_without_its_correction(curvature):
    """theta without agent i is theta + H^-1 X_i^T (N I - X_i H^-1 X_i^T)^-1 e_i; to first order the
    inverse is I / N. Exact leave-one-out keeps it.
    """
    first, exact = np.zeros(AGENTS), np.zeros(AGENTS)
    for i in range(AGENTS - 1):
        own, errors = INPUTS[i == OWNERS], ERRORS[i == OWNERS]
        lever = np.linalg.solve(HESSIAN, own.T)
        first[i] = PROBE @ lever @ errors / SAMPLES
        exact[i] = PROBE @ lever @ np.linalg.solve(SAMPLES * np.eye(len(own)) - own @ lever, errors)
    batch = batch_of(OWNERS, AGENTS)
    with jax.enable_x64(True):
        told = host(
            influence_functions(
                squared_loss,
                jnp.asarray(MINIMUM),
                in_two(batch) if curvature == "hessian" else batch,
                probe,
                damping=RIDGE,
                curvature=curvature,
                outputs=outputs,
                criterion=criterion,
                tolerance=1e-12,
            )
        )
        ones, of_agents = jnp.ones(AGENTS), functools.partial(solved, owners=OWNERS)
        retrained = contribution.leave_one_out(of_agents, ones)
        slope = contribution.influence(of_agents, ones)
    np.testing.assert_allclose(told.credits, first, rtol=1e-10)
    np.testing.assert_allclose(slope, first, rtol=1e-10, atol=1e-15)
    np.testing.assert_allclose(retrained, exact, rtol=1e-10, atol=1e-15)
    assert told.credits[AGENTS - 1] == 0
    assert told.system.converged
    assert not told.system.negative_curvature
    assert 0 < told.system.iterations <= WIDTH + 1
    assert told.system.residual < 1e-11
    eigenvalues = np.linalg.eigvalsh(HESSIAN)
    assert eigenvalues[0] <= told.system.curvature <= eigenvalues[-1]


def test_a_left_out_sample_is_missed_by_its_leverage():
    """Each sample an agent, its own prediction the utility: leaving it out turns the residual e
    into e / (1 - h), of which influence functions see e h of the change e h / (1 - h).
    """
    every = np.arange(SAMPLES)
    leverage = np.einsum("sd,de,se->s", INPUTS, np.linalg.inv(HESSIAN), INPUTS) / SAMPLES
    for s in (0, 5, 11):
        with jax.enable_x64(True):
            told = host(
                influence_functions(
                    squared_loss,
                    jnp.asarray(MINIMUM),
                    batch_of(every, SAMPLES),
                    lambda params, s=s: jnp.vdot(jnp.asarray(INPUTS[s]), params),
                    damping=RIDGE,
                    tolerance=1e-12,
                )
            )
        weights = (every != s) / SAMPLES
        theta = np.linalg.solve(
            (INPUTS.T * weights) @ INPUTS + RIDGE * np.eye(WIDTH), (INPUTS.T * weights) @ TARGETS
        )
        without = INPUTS[s] @ theta - TARGETS[s]
        np.testing.assert_allclose(without, ERRORS[s] / (1 - leverage[s]), rtol=1e-10)
        np.testing.assert_allclose(told.credits[s], ERRORS[s] * leverage[s], rtol=1e-9)
        np.testing.assert_allclose(
            without - ERRORS[s], told.credits[s] / (1 - leverage[s]), rtol=1e-9
        )


def test_gauss_newton_leaves_out_the_curvature_of_the_model():
    """For outputs theta^2 / 2 times x, J^T J = theta^2 x^2 and the Hessian adds (o - y) x."""
    theta, x, y = 0.7, INPUTS[:, :1], TARGETS
    batch = batch_of(OWNERS, AGENTS)._replace(inputs=x)

    def bent(params, inputs):
        return inputs[:, 0] * params[0] ** 2 / 2

    told = {}
    with jax.enable_x64(True):
        for curvature in ("hessian", "gauss_newton"):
            told[curvature] = influence_functions(
                lambda p, inputs, targets: criterion(bent(p, inputs), targets),
                jnp.array([theta]),
                batch,
                lambda p: p[0],
                damping=2.0,
                curvature=curvature,
                outputs=bent,
                criterion=criterion,
            ).credits
    errors = x[:, 0] * theta**2 / 2 - y
    slopes = np.array([(theta * x[:, 0] * errors)[i == OWNERS].sum() for i in range(AGENTS)])
    square = np.mean(theta**2 * x[:, 0] ** 2)
    extra = np.mean(errors * x[:, 0])
    assert abs(extra) > 1e-2
    np.testing.assert_allclose(
        told["gauss_newton"], slopes / SAMPLES / (square + 2), rtol=1e-9, atol=1e-15
    )
    np.testing.assert_allclose(
        told["hessian"], slopes / SAMPLES / (square + extra + 2), rtol=1e-9, atol=1e-15
    )


@functools.cache
def solver(max_iterations=50):
    return jax.jit(
        lambda matrix, right: conjugate_gradients(
            lambda d: matrix @ d, right, tolerance=1e-10, max_iterations=max_iterations
        )
    )


def test_conjugate_gradients_end_at_negative_curvature_with_the_iterate_before():
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(4, 4)))[0]
    right = turn @ np.array([3.0, 1.0, 0.5, 0.2])
    with jax.enable_x64(True):
        sound = host(solver()(turn @ np.diag([4.0, 3.0, 2.0, 1.0]) @ turn.T, right))
        told = host(solver()(turn @ np.diag([4.0, 3.0, 2.0, -0.5]) @ turn.T, right))
        down = host(solver()(-np.eye(4), right))
        flat = host(solver()(np.zeros((4, 4)), right))
    np.testing.assert_allclose(
        sound.solution, turn @ np.diag([1 / 4, 1 / 3, 1 / 2, 1]) @ turn.T @ right, rtol=1e-9
    )
    assert (int(sound.iterations), bool(sound.converged)) == (4, True)
    assert told.negative_curvature
    assert not told.converged
    assert 0 < told.iterations < 4
    assert told.curvature < 0
    # The iterate is the minimum over the directions so far, so it has lowered the quadratic.
    x, matrix = np.asarray(told.solution), turn @ np.diag([4.0, 3.0, 2.0, -0.5]) @ turn.T
    assert x @ matrix @ x / 2 - right @ x < -0.1
    np.testing.assert_allclose(
        told.residual, np.linalg.norm(right - matrix @ x) / np.linalg.norm(right), rtol=1e-9
    )
    for nothing in (down, flat):
        assert nothing.negative_curvature
        assert (np.asarray(nothing.solution) == 0).all()
        assert (int(nothing.iterations), float(nothing.residual)) == (0, 1.0)


def test_conjugate_gradients_never_return_what_is_not_a_number():
    with jax.enable_x64(True):
        right = np.ones(4)
        nothing = host(solver()(np.eye(4), 0 * right))
        broken = host(solver()(np.diag([1.0, 2.0, np.nan, 1.0]), right))
        huge = host(solver()(3e-308 * np.eye(4), 100 * right))
        short = host(solver(1)(np.diag([1.0, 2.0, 3.0, 4.0]), right))
    assert (bool(nothing.converged), float(nothing.residual)) == (True, 0.0)
    for told in (nothing, broken, huge, short):
        assert np.isfinite(told.solution).all()
    for told in (broken, huge):
        assert not told.converged
        assert not told.negative_curvature
        assert (np.asarray(told.solution) == 0).all()
    assert (int(short.iterations), bool(short.converged)) == (1, False)
    assert 0.1 < short.residual < 1


def test_what_makes_no_sense_is_refused():
    batch = batch_of(OWNERS, AGENTS)
    params = jnp.zeros(WIDTH)
    for options, words in (
        ({"damping": -1.0}, "damping=-1.0 must be finite"),
        ({"damping": float("nan")}, "damping=nan"),
        ({"damping": 0.0, "curvature": "fisher"}, "curvature='fisher' must be"),
        ({"damping": 0.0, "curvature": "gauss_newton"}, "give outputs= and criterion="),
        ({"damping": 0.0, "max_iterations": 0}, "max_iterations=0 must be at least 1"),
    ):
        with pytest.raises(ValueError, match=words):
            influence_functions(squared_loss, params, batch, lambda p: p.sum(), **options)
    with pytest.raises(ValueError, match=r"validation_loss returned shape \(.*\); it must return"):
        influence_functions(squared_loss, params, batch, lambda p: p, damping=0.1)
