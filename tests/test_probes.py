import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression

from vcca_jax.probes import (
    fit_linear_probe,
    fit_softmax_probe,
    probe_features,
    probe_fit,
    probe_loss,
)

ROWS, SIZE, CLASSES = 60, 4, 3
generator = np.random.default_rng(0)
FEATURES = generator.normal(size=(ROWS, SIZE)).astype(np.float32)
BINARY = (FEATURES @ [1.0, -2.0, 0.5, 0.0] + generator.normal(size=ROWS) > 0).astype(np.float32)
MANY = FEATURES @ generator.normal(size=(SIZE, CLASSES)) + generator.normal(size=(ROWS, CLASSES))
MANY = MANY.argmax(axis=1)

fit_binary = jax.jit(fit_linear_probe, static_argnames=("ridge", "iterations"))
fit_many = jax.jit(fit_softmax_probe, static_argnames=("classes", "ridge", "iterations"))


def body(params, inputs):
    return jnp.tanh(inputs @ params["body"])[:, None, :]


BODY = probe_features(body)
PARAMS = {"body": generator.normal(size=(SIZE, 2)).astype(np.float32), "head": np.ones(3)}


def test_the_probe_is_the_ridge_logistic_regression_of_scikit_learn():
    ours = fit_binary(FEATURES, BINARY, ridge=0.05)
    # scikit-learn's C multiplies the sum of losses, our ridge goes with their mean.
    theirs = LogisticRegression(C=1 / (0.05 * ROWS), fit_intercept=False, tol=1e-8, max_iter=1000)
    theirs.fit(FEATURES, BINARY)
    np.testing.assert_allclose(ours, theirs.coef_[0], rtol=2e-3, atol=2e-4)


def test_the_softmax_probe_is_the_multinomial_regression_of_scikit_learn():
    ours = fit_many(FEATURES, MANY, CLASSES, ridge=0.05)
    theirs = LogisticRegression(C=1 / (0.05 * ROWS), fit_intercept=False, tol=1e-8, max_iter=1000)
    theirs.fit(FEATURES, MANY)
    np.testing.assert_allclose(ours, theirs.coef_.T, rtol=2e-3, atol=5e-4)
    np.testing.assert_allclose(ours.sum(axis=1), 0, atol=1e-5)


def test_two_classes_are_a_binary_attribute():
    """W = [-w, w] / 2 has the same logits; |W|^2 = |w|^2 / 2, so it takes twice the ridge."""
    binary = fit_binary(FEATURES, BINARY, ridge=0.05)
    several = fit_many(FEATURES, BINARY.astype(int), 2, ridge=0.1)
    np.testing.assert_allclose(several[:, 1] - several[:, 0], binary, rtol=1e-4, atol=1e-5)


def test_rows_that_do_not_count_may_hold_anything():
    mask = np.arange(ROWS) % 3 > 0
    features, binary = FEATURES.copy(), BINARY.copy()
    features[~mask], binary[~mask] = np.nan, np.nan
    np.testing.assert_allclose(
        fit_binary(features, binary, mask=mask),
        fit_linear_probe(FEATURES[mask], BINARY[mask]),
        atol=1e-5,
    )
    np.testing.assert_allclose(
        fit_many(features, np.where(mask, MANY, -7), CLASSES, mask=mask),
        fit_softmax_probe(FEATURES[mask], MANY[mask], CLASSES),
        atol=1e-5,
    )
    nothing = fit_binary(features, binary, mask=np.zeros(ROWS, bool))
    np.testing.assert_array_equal(nothing, np.zeros(SIZE))


def wild_rows(seed):
    """Heavy tails, far from unit size, on which an undamped Newton step goes astray."""
    random = np.random.default_rng(seed)
    features = 100 * random.standard_t(2, size=(30, 10))
    labels = features @ random.normal(size=10) + 100 * random.normal(size=30) > 0
    return features.astype(np.float32), labels.astype(np.float32)


def test_the_fit_nears_the_minimum_also_where_full_newton_steps_overshoot():
    def objective(weights, features, labels):
        logits = features @ weights
        losses = np.logaddexp(0, logits) - labels * logits
        gradient = features.T @ (1 / (1 + np.exp(-np.clip(logits, -500, 500))) - labels)
        return losses.mean() + 0.05 * weights @ weights, gradient / len(labels) + 0.1 * weights

    for seed in range(10):
        features, labels = wild_rows(seed)
        best = minimize(
            objective,
            np.zeros(10),
            (features.astype(float), labels),
            jac=True,
            method="BFGS",
            options={"gtol": 1e-8},
        ).fun
        ours = np.asarray(fit_binary(features, labels, ridge=0.1), float)
        assert objective(ours, features.astype(float), labels)[0] < best + 1e-3


def test_the_features_are_flat_rows_and_a_constant():
    rows = BODY(PARAMS, FEATURES)
    np.testing.assert_allclose(rows[:, :2], np.tanh(FEATURES @ PARAMS["body"]), rtol=1e-5)
    np.testing.assert_array_equal(rows[:, 2], np.ones(ROWS))


@functools.cache
def probe(classes=None):
    labels = BINARY if classes is None else MANY
    fit = jax.jit(probe_fit(BODY, FEATURES[::2], labels[::2], classes=classes))
    return fit, probe_loss(BODY, FEATURES[1::2], labels[1::2], "told")


def test_the_loss_is_the_probes_mean_cross_entropy():
    rows = np.asarray(BODY(PARAMS, FEATURES[1::2]), float)
    fit, loss = probe()
    weights = fit(PARAMS)
    logits = rows @ np.asarray(weights, float)
    expected = np.mean(np.logaddexp(0, logits) - BINARY[1::2] * logits)
    assert loss(PARAMS, {"told": weights}) == pytest.approx(expected, rel=1e-5)
    fit, loss = probe(CLASSES)
    weights = fit(PARAMS)
    logits = rows @ np.asarray(weights, float)
    chance = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = -np.log(chance[np.arange(len(rows)), MANY[1::2]]).mean()
    assert loss(PARAMS, {"told": weights}) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("classes", [None, CLASSES])
def test_refitted_probes_recompile_nothing_and_gradients_are_finite_differences(classes):
    fit, loss = probe(classes)
    traces = []

    @jax.jit
    def gradient(params, context):
        traces.append(1)
        return jax.value_and_grad(loss)(params, context)

    other = {**PARAMS, "body": PARAMS["body"] + 0.3}
    for params in (PARAMS, other):
        value, rows = gradient(params, {"told": fit(params)})
        assert np.isfinite(value)
        assert not np.any(rows["head"])
        with jax.enable_x64(True):
            exact = {"told": jnp.asarray(fit(params), jnp.float64)}
            wide = np.asarray(params["body"], np.float64)
            plain = jax.jit(lambda b, exact=exact: loss({"body": b, "head": 0}, exact))
            steps = np.eye(wide.size).reshape(-1, *wide.shape) * 1e-5
            slopes = [float(plain(wide + e) - plain(wide - e)) / 2e-5 for e in steps]
        np.testing.assert_allclose(rows["body"].ravel(), slopes, atol=2e-5)
    assert len(traces) == 1


def test_a_step_along_the_gradient_makes_the_attribute_harder_to_tell():
    fit, loss = probe()
    context = {"told": fit(PARAMS)}
    gradient = jax.grad(loss)(PARAMS, context)
    away = jax.tree.map(lambda p, g: p + 0.01 * g, PARAMS, gradient)
    assert loss(away, context) > loss(PARAMS, context)


def test_a_class_alone_is_its_rows_of_the_multiclass_loss():
    fit, loss = probe(CLASSES)
    context = {"told": fit(PARAMS)}
    inputs, labels = FEATURES[1::2], MANY[1::2]
    parts = [
        (labels == c).mean()
        * probe_loss(BODY, inputs[labels == c], labels[labels == c], "told")(PARAMS, context)
        for c in range(CLASSES)
    ]
    assert sum(parts) == pytest.approx(float(loss(PARAMS, context)), rel=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fit_linear_probe(FEATURES, BINARY, ridge=0.0), "ridge=0.0"),
        (lambda: fit_linear_probe(FEATURES, BINARY, iterations=0), "iterations=0"),
        (lambda: fit_softmax_probe(FEATURES, MANY, 1), "classes=1"),
        (lambda: fit_softmax_probe(FEATURES, MANY, 3, ridge=-1.0), "ridge=-1.0"),
        (lambda: probe_fit(BODY, FEATURES, BINARY, ridge=0.0), "ridge=0.0"),
        (lambda: probe_fit(BODY, FEATURES[:0], BINARY[:0]), "inputs holds no example"),
        (lambda: probe_fit(BODY, FEATURES, BINARY[:5]), r"labels have the shape \(5,\)"),
        (lambda: probe_fit(BODY, FEATURES, MANY), "labels reach 2, but there are 2 classes"),
        (lambda: probe_fit(BODY, FEATURES, BINARY / 2), "counting numbers"),
        (lambda: probe_fit(BODY, FEATURES, BINARY - 1), "counting numbers"),
        (lambda: probe_loss(BODY, FEATURES[:0], BINARY[:0], "told"), "inputs holds no example"),
        (lambda: probe()[1](PARAMS, {}), r"context=\[\] has no 'told'"),
        (
            lambda: probe()[1](PARAMS, {"told": jnp.ones(2)}),
            r"shape \(2,\), but the features are 3",
        ),
        (
            lambda: probe(CLASSES)[1](PARAMS, {"told": jnp.ones((3, 2))}),
            r"shape \(3, 2\).* the labels reach 2",
        ),
        (lambda: probe(CLASSES)[1](PARAMS, {"told": jnp.ones(3)}), "the labels reach 2"),
    ],
)
def test_bad_input_is_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()
