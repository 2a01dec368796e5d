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
    chunked: bool = True


KEY = jax.random.key(7)

ESTIMATORS = {
    "leave_one_out": Claims(contribution.leave_one_out),
    "influence": Claims(contribution.influence, split_invariant=True, differentiates=True),
    "in_run": Claims(contribution.in_run, split_invariant=True, differentiates=True, chunked=False),
    "aumann_shapley": Claims(
        contribution.aumann_shapley, efficient=True, split_invariant=True, differentiates=True
    ),
    "exact_shapley": Claims(contribution.exact_shapley, efficient=True),
    "banzhaf": Claims(contribution.banzhaf),
    "beta_shapley": Claims(partial(contribution.beta_shapley, alpha=4.0, beta=1.0)),
    "permutation_shapley": Claims(
        partial(contribution.permutation_shapley, permutations=6, antithetic=True, key=KEY),
        efficient=True,
        sampled=True,
    ),
    "multilinear_shapley": Claims(
        partial(contribution.multilinear_shapley, samples=6, key=KEY), sampled=True
    ),
}

# Public names of the package that are not estimators themselves.
OTHERS = {
    "Estimator",
    "Sampled",
    "Utility",
    "all_coalitions",
    "coalition_values",
    "efficiency_gap",
    "evaluate",
    "multilinear_shapley_with_error",
    "permutation_shapley_with_error",
}


def those(**claims):
    """Names of the estimators whose claims are these, for parametrize."""
    return [
        name
        for name, made in ESTIMATORS.items()
        if all(getattr(made, claim) == value for claim, value in claims.items())
    ]
