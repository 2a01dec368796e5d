import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from vcca_jax.preferences import choice_loss, fit_bradley_terry, preference_loss

PAIRS, SIZE, RIDGE = 80, 3, 0.02
generator = np.random.default_rng(3)
WISH = np.array([1.5, -1.0, 0.5])


def choose(random, pairs, wish):
    """What a principal with these weights would choose."""
    a, b = random.normal(size=(2, pairs, len(wish)))
    chance = 1 / (1 + np.exp(-(a - b) @ wish))
    return (
        a.astype(np.float32),
        b.astype(np.float32),
        (random.random(pairs) < chance).astype(np.float32),
    )


A, B, CHOICES = choose(generator, PAIRS, WISH)
fit = jax.jit(fit_bradley_terry, static_argnames=("ridge", "iterations"))


def inverse_information(weights, difference, ridge):
    chance = 1 / (1 + np.exp(-(difference @ weights)))
    information = (difference * (chance * (1 - chance))[:, None]).T @ difference
    return np.linalg.inv(information + len(difference) * ridge * np.eye(len(weights)))


def test_the_weights_are_a_logistic_regression_on_differences_without_intercept():
    ours = fit(A, B, CHOICES, ridge=RIDGE)
    theirs = LogisticRegression(C=1 / (RIDGE * PAIRS), fit_intercept=False, tol=1e-8)
    theirs.fit(A - B, CHOICES)
    np.testing.assert_allclose(ours.weights, theirs.coef_[0], rtol=1e-3, atol=1e-4)
    difference = (A - B).astype(float)
    weights = theirs.coef_[0]
    errors = np.sqrt(np.diag(inverse_information(weights, difference, RIDGE)))
    np.testing.assert_allclose(ours.standard_errors, errors, rtol=1e-3)
    logits = difference @ weights
    log_loss = np.mean(np.logaddexp(0, logits) - CHOICES * logits)
    assert ours.log_loss == pytest.approx(log_loss, rel=1e-4)


def test_known_weights_are_recovered_within_their_standard_errors():
    """Of 200 principals alike: the mean is right, and the errors are the spread between them."""
    each = [choose(np.random.default_rng((5, k)), 300, WISH) for k in range(200)]
    told = jax.jit(jax.vmap(functools.partial(fit_bradley_terry, ridge=1e-4)))(
        *(np.stack(part) for part in zip(*each, strict=True))
    )
    deviation = (np.asarray(told.weights) - WISH) / np.asarray(told.standard_errors)
    np.testing.assert_allclose(np.mean(told.weights, axis=0), WISH, atol=0.06)
    np.testing.assert_allclose(deviation.std(axis=0), 1, atol=0.15)


def test_mapped_over_principals_it_is_one_at_a_time_whatever_they_left_out():
    """Principals with 80, 50 and 0 pairs, padded with NaN."""
    counts = np.array([PAIRS, 50, 0])
    masks = np.arange(PAIRS)[None] < counts[:, None]
    stacked = [np.where(masks[..., None], each, np.nan) for each in (A[None], B[None])]
    choices = np.where(masks, CHOICES[None], np.nan)
    mapped = jax.jit(jax.vmap(lambda a, b, c, m: fit_bradley_terry(a, b, c, mask=m)))(
        *stacked, choices, masks
    )
    for i, count in enumerate(counts[:2]):
        alone = fit_bradley_terry(A[:count], B[:count], CHOICES[:count])
        np.testing.assert_allclose(mapped.weights[i], alone.weights, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(mapped.standard_errors[i], alone.standard_errors, rtol=1e-4)
        assert mapped.log_loss[i] == pytest.approx(float(alone.log_loss), rel=1e-4)
    np.testing.assert_array_equal(mapped.weights[2], np.zeros(SIZE))
    eager = fit_bradley_terry(stacked[0][1], stacked[1][1], choices[1], mask=masks[1])
    np.testing.assert_allclose(eager.weights, mapped.weights[1], rtol=1e-4, atol=1e-5)


def test_who_is_named_first_makes_no_difference():
    swapped = fit(B, A, 1 - CHOICES)
    np.testing.assert_allclose(swapped.weights, fit(A, B, CHOICES).weights, rtol=1e-4, atol=1e-5)


def test_a_tie_is_half_a_win_for_each_and_contradictory_choices_are_a_tie():
    ties = fit(A, B, np.full(PAIRS, 0.5, np.float32))
    np.testing.assert_allclose(ties.weights, 0, atol=1e-6)
    assert ties.log_loss == pytest.approx(np.log(2), rel=1e-5)
    half = slice(0, PAIRS // 2)
    both = fit(
        np.concatenate([A[half], A[half]]),
        np.concatenate([B[half], B[half]]),
        np.concatenate([CHOICES[half], 1 - CHOICES[half]]),
    )
    np.testing.assert_allclose(both.weights, 0, atol=1e-6)


def test_separable_choices_stay_finite_and_keep_their_direction():
    separable = ((A - B) @ WISH > 0).astype(np.float32)
    weights = [np.asarray(fit(A, B, separable, ridge=r).weights) for r in (1e-1, 1e-2, 1e-3)]
    lengths = [np.linalg.norm(w) for w in weights]
    assert np.isfinite(lengths).all()
    assert lengths[0] < lengths[1] < lengths[2]
    cosine = weights[-1] @ WISH / lengths[-1] / np.linalg.norm(WISH)
    assert cosine > 0.98


def test_one_hot_options_get_strengths_that_sum_to_zero():
    options = np.eye(4, dtype=np.float32)
    winners, losers = np.array([0, 0, 1, 2, 0, 1]), np.array([1, 2, 2, 3, 3, 3])
    told = fit_bradley_terry(options[winners], options[losers], np.ones(6))
    np.testing.assert_allclose(told.weights.sum(), 0, atol=1e-5)
    assert list(np.argsort(-told.weights)) == [0, 1, 2, 3]
    unseen = fit_bradley_terry(options[[0]], options[[1]], np.ones(1), ridge=0.25)
    np.testing.assert_allclose(unseen.weights[2:], 0, atol=1e-7)
    np.testing.assert_allclose(unseen.standard_errors[2:], 2.0, rtol=1e-5)


def test_whole_numbers_are_features_and_a_list_is_a_mask():
    strong, weak = np.eye(3, dtype=int)[[0, 0, 1]], np.eye(3, dtype=int)[[1, 2, 2]]
    choices = [1, 1, 0.5]
    told = fit_bradley_terry(strong, weak, choices, mask=[True] * 3)
    as_floats = fit_bradley_terry(strong.astype(np.float32), weak.astype(np.float32), choices)
    np.testing.assert_array_equal(told.weights, as_floats.weights)


INPUTS = generator.normal(size=(6, 2))
OPTIONS = generator.normal(size=(6, 4, SIZE))
PARAMS = generator.normal(size=(2, 4))


def logits(params, inputs):
    return jnp.asarray(inputs) @ params


def regret(params, options, weights):
    """What the expected reward falls short of the best one, input by input."""
    exponentials = np.exp(INPUTS @ params)
    chance = exponentials / exponentials.sum(axis=1, keepdims=True)
    rewards = np.broadcast_to(options @ weights, chance.shape)
    return np.mean([r.max() - p @ r for p, r in zip(chance, rewards, strict=True)])


def slopes(function, params):
    steps = np.eye(params.size).reshape(-1, *params.shape) * 1e-5
    return np.array([(function(params + e) - function(params - e)) / 2e-5 for e in steps])


@pytest.mark.parametrize("options", [OPTIONS, OPTIONS[0]], ids=["by input", "the same"])
def test_the_preference_loss_is_the_reward_given_away(options):
    loss = preference_loss(logits, INPUTS, options, "taste")
    with jax.enable_x64(True):
        run = jax.jit(jax.value_and_grad(loss))
        told, gradient = run(jnp.asarray(PARAMS), {"taste": jnp.asarray(WISH)})
        assert told == pytest.approx(regret(PARAMS, options, WISH), rel=1e-10)
        expected = slopes(lambda p: regret(p, options, WISH), PARAMS)
        np.testing.assert_allclose(gradient.ravel(), expected, atol=1e-8)


def test_a_model_that_takes_what_is_liked_best_gives_nothing_away():
    loss = preference_loss(lambda params, inputs: params * (OPTIONS @ WISH), INPUTS, OPTIONS, "t")
    context = {"t": jnp.asarray(WISH)}
    given = [float(loss(sharpness, context)) for sharpness in (0.0, 1.0, 1e4)]
    assert given[0] > given[1] > given[2]
    assert given[2] == pytest.approx(0, abs=1e-5)


def test_a_preference_fitted_anew_recompiles_nothing():
    loss = preference_loss(logits, INPUTS, OPTIONS, "taste")
    traces = []

    @jax.jit
    def run(params, context):
        traces.append(1)
        return loss(params, context)

    told = [run(PARAMS, {"taste": fit(A, B, c).weights}) for c in (CHOICES, 1 - CHOICES)]
    assert len(traces) == 1
    assert told[0] != told[1]


def score(params, inputs):
    return jnp.tanh(jnp.asarray(inputs) @ params)


def test_the_choice_loss_is_the_bradley_terry_likelihood_of_the_models_scores():
    def by_hand(params):
        gap = np.tanh(A.astype(float) @ params) - np.tanh(B.astype(float) @ params)
        chance = 1 / (1 + np.exp(-gap))
        return -np.mean(CHOICES * np.log(chance) + (1 - CHOICES) * np.log(1 - chance))

    with jax.enable_x64(True):
        loss = choice_loss(score, A.astype(float), B.astype(float), CHOICES)
        told, gradient = jax.jit(jax.value_and_grad(loss))(jnp.asarray(WISH), None)
        assert told == pytest.approx(by_hand(WISH), rel=1e-9)
        np.testing.assert_allclose(gradient, slopes(by_hand, WISH), atol=1e-8)


def test_the_choice_loss_stays_finite_where_scores_are_far_apart():
    loss = choice_loss(lambda params, inputs: params * inputs[:, 0], A, B, CHOICES)
    value, gradient = jax.value_and_grad(loss)(1e6, None)
    assert np.isfinite(value)
    assert np.isfinite(gradient)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fit_bradley_terry(A, B[:5], CHOICES), r"features_b \(5, 3\)"),
        (lambda: fit_bradley_terry(A, B, CHOICES[:5]), r"choices \(5,\)"),
        (lambda: fit_bradley_terry(A[:, 0], B[:, 0], CHOICES), r"features_a \(80,\)"),
        (lambda: fit_bradley_terry(A, B, CHOICES * 2), r"choices must be within \[0, 1\]"),
        (lambda: fit_bradley_terry(A, B, CHOICES * np.nan), r"choices must be within \[0, 1\]"),
        (lambda: fit_bradley_terry(A, B, CHOICES, ridge=0.0), "ridge=0.0"),
        (lambda: fit_bradley_terry(A, B, CHOICES, iterations=0), "iterations=0"),
        (lambda: preference_loss(logits, INPUTS[:0], OPTIONS[:0], "t"), "inputs holds no example"),
        (lambda: preference_loss(logits, INPUTS, OPTIONS[:5], "t"), "options have the shape"),
        (lambda: preference_loss(logits, INPUTS, WISH, "t"), "options have the shape"),
        (lambda: preference_loss(logits, INPUTS, OPTIONS * np.inf, "t"), "options hold a number"),
        (
            lambda: preference_loss(logits, INPUTS, OPTIONS, "t")(PARAMS, {}),
            r"context=\[\] has no 't'",
        ),
        (
            lambda: preference_loss(logits, INPUTS, OPTIONS, "t")(PARAMS, {"t": jnp.ones(2)}),
            r"context\['t'\] has \(2,\)",
        ),
        (
            lambda: preference_loss(logits, INPUTS, OPTIONS[:, :3], "t")(PARAMS, {"t": WISH}),
            r"logits_fn returns the shape \(6, 4\)",
        ),
        (lambda: choice_loss(score, A[:0], B[:0], CHOICES[:0]), "inputs_a holds no example"),
        (lambda: choice_loss(score, A, B[:5], CHOICES), "inputs_a, inputs_b and chosen are 80, 5"),
        (lambda: choice_loss(score, A, B, -CHOICES), r"chosen must be within \[0, 1\]"),
        (
            lambda: choice_loss(lambda p, x: x, A, B, CHOICES)(WISH, None),
            r"score_fn returns the shapes \(80, 3\)",
        ),
    ],
)
def test_bad_input_is_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()
