"""The contract of an estimator: the project's own keep it, and broken ones are found out."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vcca_jax as vcca
from tests.estimators import EVERY, KEY, those
from vcca_jax.conformance import check_estimator


def quick(names):
    """For parametrize; samplers take long to compile and share their code, so they are slow."""
    slow = those(EVERY, sampled=True)
    return [pytest.param(n, marks=[pytest.mark.slow] if n in slow else []) for n in sorted(names)]


@pytest.mark.parametrize("name", quick(EVERY))
def test_estimators_and_the_axioms_they_claim(name):
    claims, axioms = EVERY[name], check_estimator(EVERY[name].estimate, key=KEY)
    assert not claims.efficient or axioms.efficiency < 1e-3
    assert not claims.split_invariant or axioms.splitting < 1e-4
    assert not claims.additive or axioms.additivity < 1e-4
    assert claims.sampled or axioms.symmetry < 1e-5
    assert claims.sampled or axioms.null_player < 1e-5
    if name == "leave_one_out":
        assert axioms.efficiency > 0.05  # it is measured, not taken for granted
        assert axioms.splitting > 0.005


def keyless(utility, weights):
    return vcca.leave_one_out(utility, weights)


def total(utility, weights, *, key=None):
    return utility(weights)


def careless(utility, weights, *, key=None):
    return jax.grad(utility)(weights) * weights


def restless(utility, weights, *, key=None):
    return vcca.leave_one_out(utility, weights) * np.random.default_rng().uniform()


@pytest.mark.parametrize(
    ("estimator", "message"),
    [(total, "one credit an agent"), (careless, "exactly 0"), (restless, "pure JAX function")],
)
def test_a_broken_estimator_is_found_out(estimator, message):
    with pytest.raises(ValueError, match=message):
        check_estimator(estimator)


def test_an_estimator_without_a_key_is_refused():
    with pytest.raises(ValueError, match=r"must take \(utility, weights, key=\)"):
        check_estimator(keyless)


class Growing:
    """Impure only where it is called, which a compiled call does once: each call gives more."""

    calls = 0

    def __call__(self, utility, weights, *, key=None):
        if not isinstance(weights, jax.core.Tracer):
            self.calls += 1
        return vcca.leave_one_out(utility, weights) * max(self.calls, 1)


def listing(utility, weights, *, key=None):
    return [1.0] * len(weights)


def on_the_host(utility, weights, *, key=None):
    return jnp.asarray(np.asarray(vcca.leave_one_out(utility, np.asarray(weights))))


with_error = functools.partial(vcca.contribution.permutation_shapley_with_error, permutations=4)


@pytest.mark.parametrize(
    ("estimator", "message"),
    [
        (Growing(), "when called a second time"),
        (listing, "returned a list; return one array"),
        (with_error, "returned a Sampled"),
        (on_the_host, "fails under jit"),
        (functools.partial(vcca.beta_shapley, alpha=1.0), "must take"),
        (3, "give a function"),
    ],
)
def test_what_is_no_estimator_is_told_in_words(estimator, message):
    with pytest.raises(ValueError, match=message):
        check_estimator(estimator, key=KEY)
