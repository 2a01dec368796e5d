"""Every public estimator as the tests call it, with what its docstring claims."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax

from vcca_jax import contribution


class Claims(NamedTuple):
    estimate: Callable
    efficient: bool = False  # for any smooth utility, to rounding or a small quadrature error
    split_invariant: bool = False
    differentiates: bool = False  # needs a smooth utility
    sampled: bool = False  # symmetric in expectation only
    additive: bool = True  # exact in additive games
    linear: bool = True  # in the utility
    chunked: bool = True


KEY = jax.random.key(7)

ESTIMATORS = {
    "leave_one_out": Claims(contribution.leave_one_out),
    "influence": Claims(contribution.influence, split_invariant=True, differentiates=True),
    "first_order": Claims(
        contribution.first_order, split_invariant=True, differentiates=True, chunked=False
    ),
    "in_run": Claims(contribution.in_run, split_invariant=True, differentiates=True, chunked=False),
    "aumann_shapley": Claims(
        contribution.aumann_shapley, efficient=True, split_invariant=True, differentiates=True
    ),
    "exact_shapley": Claims(contribution.exact_shapley, efficient=True),
    "banzhaf": Claims(contribution.banzhaf),
    "beta_shapley": Claims(partial(contribution.beta_shapley, alpha=4.0, beta=1.0)),
    "semivalue": Claims(
        partial(contribution.semivalue, by_size=contribution.binomial_sizes(0.3)),
    ),
    "permutation_shapley": Claims(
        partial(contribution.permutation_shapley, permutations=6, antithetic=True, key=KEY),
        efficient=True,
        sampled=True,
    ),
    "multilinear_shapley": Claims(
        partial(contribution.multilinear_shapley, samples=6, key=KEY), sampled=True
    ),
    "semivalue_sampled": Claims(
        partial(
            contribution.semivalue_sampled,
            by_size=contribution.beta_sizes(4.0, 1.0),
            samples=6,
            key=KEY,
        ),
        sampled=True,
    ),
}

# Where a coalition serves all agents at once, a null agent gets 0 in expectation, not bit for bit.
REUSING = {
    "stratified_shapley": Claims(
        partial(contribution.stratified_shapley, evaluations=20, key=KEY),
        efficient=True,
        sampled=True,
    ),
    "kernel_shapley": Claims(
        partial(contribution.kernel_shapley, evaluations=20, key=KEY),
        efficient=True,
        sampled=True,
    ),
    "leverage_shapley": Claims(
        partial(contribution.leverage_shapley, evaluations=20, key=KEY),
        efficient=True,
        sampled=True,
    ),
    "banzhaf_sampled": Claims(
        partial(contribution.banzhaf_sampled, samples=20, key=KEY),
        sampled=True,
        additive=False,
    ),
}

EVERY = ESTIMATORS | REUSING

# Options under which an estimator claims less.
VARIANTS = {
    "permutation_shapley, truncated": Claims(
        partial(
            contribution.permutation_shapley,
            permutations=6,
            antithetic=True,
            truncation=0.3,
            key=KEY,
        ),
        sampled=True,
        additive=False,
        linear=False,
    ),
}

# Public names of the package that are not estimators themselves.
OTHERS = {
    "Across",
    "Estimator",
    "InfluenceFunctions",
    "LeastCore",
    "Pooled",
    "Sampled",
    "SampledEstimator",
    "Utilities",
    "Utility",
    "across",
    "all_coalitions",
    "banzhaf_sampled_with_error",
    "beta_sizes",
    "binomial_sizes",
    "bootstrap",
    "by_principal",
    "coalition_values",
    "credit_matrix",
    "efficiency_gap",
    "evaluate",
    "influence_functions",
    "kernel_shapley_with_error",
    "least_core",
    "leverage_shapley_with_error",
    "multilinear_shapley_with_error",
    "permutation_shapley_with_error",
    "principal_credits",
    "quotient",
    "semivalue_sampled_with_error",
    "shapley_interactions",
    "slope_matrix",
    "stratified_shapley_with_error",
    "until_precise",
    "with_validation_error",
}


def those(among=ESTIMATORS, **claims):
    """Names of the estimators whose claims are these, for parametrize."""
    return [
        name
        for name, made in among.items()
        if all(getattr(made, claim) == value for claim, value in claims.items())
    ]
