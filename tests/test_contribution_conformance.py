import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.estimators import EVERY, OTHERS, REUSING, VARIANTS, those
from tests.games import learning
from vcca_jax import contribution

PARTS = 0.4 * jax.random.normal(jax.random.key(0), (5, 3)) + 0.1
WEIGHTS = jnp.array([1.0, 0.0, 1.0, 0.5, 1.0])
UTILITY = learning(PARTS)


@functools.cache
def compiled(name):
    """The estimator on the learning game, for any parts and weights of one shape."""
    estimate = CALLED[name].estimate
    return jax.jit(lambda parts, weights: estimate(learning(parts), weights))


def quick_first(names):
    """Names for parametrize; samplers that fit a model to coalitions take long to compile."""
    return [pytest.param(n, marks=pytest.mark.slow) if n in REUSING else n for n in names]


CALLED = EVERY | VARIANTS
each = pytest.mark.parametrize("name", quick_first(sorted(CALLED)))


def test_every_public_name_is_listed():
    assert set(contribution.__all__) == set(EVERY) | OTHERS
    assert all(hasattr(contribution, name) for name in contribution.__all__)


@pytest.mark.parametrize("name", quick_first(sorted(EVERY)))
def test_signature(name):
    parameters = inspect.signature(getattr(contribution, name)).parameters
    assert list(parameters)[:2] == ["utility", "weights"]
    options = list(parameters.values())[2:]
    assert all(option.kind is inspect.Parameter.KEYWORD_ONLY for option in options)
    assert parameters["key"].default is None
    assert ("batch_size" in parameters) == EVERY[name].chunked
    document = inspect.getdoc(getattr(contribution, name))
    for section in ("Cost:", "Holds:", "Args:", "Returns:", "Raises:", "Source:"):
        assert section in document
    for option in parameters:
        assert f"{option}:" in document


@each
def test_shape_and_type_follow_the_weights(name):
    credits = compiled(name)(PARTS, WEIGHTS)
    assert (credits.shape, credits.dtype) == ((5,), jnp.float32)
    assert np.all(np.isfinite(credits))
    with jax.enable_x64(True):
        double = functools.partial(CALLED[name].estimate, learning(PARTS.astype(jnp.float64)))
        precise = jax.eval_shape(double, WEIGHTS.astype(jnp.float64))
    assert (precise.shape, precise.dtype) == ((5,), jnp.float64)


@each
def test_absent_agent_gets_exactly_zero_even_where_it_is_poison(name):
    def poisoned(w):
        return UTILITY(w) + jnp.sqrt(jnp.where(jnp.arange(5) == 1, w, 1.0)).sum()

    # The slope of the square root at 0 is infinite: 0 times it would not be a number.
    estimate = jax.jit(functools.partial(CALLED[name].estimate, poisoned))
    credits = np.asarray(estimate(WEIGHTS))
    assert credits[1] == 0
    assert np.all(credits[np.array([0, 2, 3, 4])] != 0)


@each
def test_jit_changes_nothing(name):
    estimate = CALLED[name].estimate
    np.testing.assert_allclose(
        compiled(name)(PARTS, WEIGHTS), estimate(UTILITY, WEIGHTS), rtol=1e-5, atol=1e-6
    )


@each
def test_vmap_over_grand_coalitions(name):
    several = jnp.stack([WEIGHTS, jnp.ones(5), jnp.array([1.0, 1.0, 0.0, 0.0, 0.25])])
    together = jax.vmap(compiled(name), in_axes=(None, 0))(PARTS, several)
    alone = jnp.stack([compiled(name)(PARTS, weights) for weights in several])
    np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-6)
    assert np.array_equal(together == 0, several == 0)


@pytest.mark.parametrize("name", quick_first(those(CALLED, sampled=False)))
def test_renaming_the_agents_renames_the_credits(name):
    order = np.array([3, 0, 4, 1, 2])
    credits = compiled(name)(PARTS, WEIGHTS)
    renamed = compiled(name)(PARTS[order], WEIGHTS[order])
    np.testing.assert_allclose(renamed, credits[order], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", quick_first(those(CALLED, sampled=True, additive=True)))
def test_a_renamed_sampled_estimate_is_exact_where_it_has_no_variance(name):
    """Other draws meet other agents: equal outright in the additive game only."""
    worths = jnp.array([0.5, 0.25, -1.0, 2.0, 0.0])
    estimate = jax.jit(
        lambda worths, weights: CALLED[name].estimate(lambda w: jnp.sum(w * worths), weights)
    )
    order = np.array([3, 0, 4, 1, 2])
    np.testing.assert_allclose(estimate(worths, WEIGHTS), worths * WEIGHTS, atol=1e-6)
    np.testing.assert_allclose(
        estimate(worths[order], WEIGHTS[order]), (worths * WEIGHTS)[order], atol=1e-6
    )


@each
def test_one_agent_alone(name):
    utility = lambda w: 3.0 * w[0] + 1.0  # noqa: E731
    estimate = jax.jit(functools.partial(CALLED[name].estimate, utility))
    np.testing.assert_allclose(estimate(jnp.ones(1)), [3.0], rtol=1e-6)


@pytest.mark.parametrize("name", quick_first(those(CALLED, chunked=True)))
def test_chunks_change_nothing(name):
    options = {"mode": "forward"} if name == "influence" else {}
    estimate = functools.partial(CALLED[name].estimate, UTILITY, **options)
    chunked = jax.jit(functools.partial(estimate, batch_size=2))(WEIGHTS)
    np.testing.assert_allclose(chunked, compiled(name)(PARTS, WEIGHTS), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=r"batch_size is 0; pass at least 1"):
        estimate(WEIGHTS, batch_size=0)


@each
def test_devices_change_nothing(name):
    """Eight agents on one device, and one on each of eight: the same draws, the same credits."""
    parts = 0.4 * jax.random.normal(jax.random.key(1), (8, 3)) + 0.1
    weights = jnp.array([1.0, 0.0, 1.0, 0.5, 1.0, 1.0, 1.0, 1.0])
    agents = jax.sharding.Mesh(np.array(jax.devices()[:8]), ("agents",))
    spread = jax.device_put(
        (parts, weights), jax.sharding.NamedSharding(agents, jax.sharding.PartitionSpec("agents"))
    )
    assert len(spread[0].sharding.device_set) == 8
    estimate = CALLED[name].estimate
    if "evaluations" in getattr(estimate, "keywords", {}):  # those of five agents are too few
        estimate = functools.partial(estimate, evaluations=40)
    credits = jax.jit(lambda parts, weights: estimate(learning(parts), weights))
    np.testing.assert_allclose(credits(*spread), credits(parts, weights), rtol=1e-5, atol=1e-6)


@each
def test_accepts_a_mask_and_refuses_bad_weights(name):
    estimate = CALLED[name].estimate
    mask = jnp.array([True, False, True, True, True])
    np.testing.assert_array_equal(
        compiled(name)(PARTS, mask), compiled(name)(PARTS, mask.astype(jnp.float32))
    )
    for bad in (jnp.ones((5, 1)), jnp.ones(0), jnp.float32(1.0)):
        with pytest.raises(ValueError, match="weights has shape"):
            estimate(UTILITY, bad)
    for entry in (-0.1, 1.5, np.nan):
        with pytest.raises(ValueError, match=r"weights must lie in \[0, 1\]"):
            estimate(UTILITY, WEIGHTS.at[0].set(entry))


@pytest.mark.parametrize("name", quick_first(those(CALLED, sampled=False)))
def test_a_key_changes_nothing_where_nothing_is_drawn(name):
    keyed = jax.jit(lambda key: CALLED[name].estimate(UTILITY, WEIGHTS, key=key))
    np.testing.assert_array_equal(keyed(jax.random.key(1)), keyed(jax.random.key(2)))


@pytest.mark.parametrize("name", quick_first(those(CALLED, sampled=True)))
def test_sampled_estimators_ask_for_a_key_and_use_it(name):
    estimate = CALLED[name].estimate
    with pytest.raises(ValueError, match=r"key is None; pass a jax\.random\.key"):
        estimate(UTILITY, WEIGHTS, key=None)
    keyed = jax.jit(lambda key: estimate(UTILITY, WEIGHTS, key=key))
    first = keyed(jax.random.key(1))
    np.testing.assert_array_equal(first, keyed(jax.random.key(1)))
    assert not np.array_equal(first, keyed(jax.random.key(2)))


def test_an_estimator_written_outside_the_package():
    """The protocol is all there is: equal shares, in a function of the same shape."""

    def equal_shares(utility, weights, *, key=None):
        gain = utility(weights) - utility(jnp.zeros_like(weights))
        return gain * weights / jnp.sum(weights)

    estimator: contribution.Estimator = equal_shares
    credits = estimator(UTILITY, WEIGHTS)
    gap = contribution.efficiency_gap(UTILITY, WEIGHTS, credits)
    np.testing.assert_allclose(gap, 0.0, atol=1e-6)
