"""Estimators of an agent's contribution: one a file, each for any utility of participation weights.

Every estimator is called as `estimator(utility, weights, *, key=None, ...) -> credits [A]`; the
utility is any pure JAX function `utility(w) -> scalar`, a textbook cooperative game included. None
of them calls `jax.jit`; all run under `jit` and `vmap` where the utility does. Whether an update is
screened once, outside, or anew for every coalition, inside, is the utility's choice; estimators
see neither. `shapley_interactions` returns a matrix in the same way; `least_core` divides utilities
already evaluated, on the host; `until_precise` repeats any sampler that knows its error.
"""

from vcca_jax.contribution.aumann_shapley import aumann_shapley
from vcca_jax.contribution.banzhaf_sampling import banzhaf_sampled, banzhaf_sampled_with_error
from vcca_jax.contribution.coalitions import all_coalitions, coalition_values, evaluate
from vcca_jax.contribution.efficiency import efficiency_gap
from vcca_jax.contribution.first_order import first_order
from vcca_jax.contribution.in_run import in_run
from vcca_jax.contribution.influence import influence
from vcca_jax.contribution.influence_functions import InfluenceFunctions, influence_functions
from vcca_jax.contribution.interaction import shapley_interactions
from vcca_jax.contribution.least_core import LeastCore, least_core
from vcca_jax.contribution.leave_one_out import leave_one_out
from vcca_jax.contribution.matrix import Utilities, credit_matrix, with_validation_error
from vcca_jax.contribution.multilinear import multilinear_shapley, multilinear_shapley_with_error
from vcca_jax.contribution.permutation import permutation_shapley, permutation_shapley_with_error
from vcca_jax.contribution.protocols import Estimator, Sampled, Utility
from vcca_jax.contribution.quotient import by_principal, principal_credits, quotient
from vcca_jax.contribution.regression import (
    kernel_shapley,
    kernel_shapley_with_error,
    leverage_shapley,
    leverage_shapley_with_error,
)
from vcca_jax.contribution.semivalue_sampling import (
    semivalue_sampled,
    semivalue_sampled_with_error,
)
from vcca_jax.contribution.semivalues import banzhaf, beta_shapley, exact_shapley, semivalue
from vcca_jax.contribution.size_measures import beta_sizes, binomial_sizes
from vcca_jax.contribution.stopping import Pooled, SampledEstimator, until_precise
from vcca_jax.contribution.stratified import stratified_shapley, stratified_shapley_with_error
from vcca_jax.contribution.uncertainty import Across, across, bootstrap, slope_matrix

__all__ = [
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
    "aumann_shapley",
    "banzhaf",
    "banzhaf_sampled",
    "banzhaf_sampled_with_error",
    "beta_shapley",
    "beta_sizes",
    "binomial_sizes",
    "bootstrap",
    "by_principal",
    "coalition_values",
    "credit_matrix",
    "efficiency_gap",
    "evaluate",
    "exact_shapley",
    "first_order",
    "in_run",
    "influence",
    "influence_functions",
    "kernel_shapley",
    "kernel_shapley_with_error",
    "least_core",
    "leave_one_out",
    "leverage_shapley",
    "leverage_shapley_with_error",
    "multilinear_shapley",
    "multilinear_shapley_with_error",
    "permutation_shapley",
    "permutation_shapley_with_error",
    "principal_credits",
    "quotient",
    "semivalue",
    "semivalue_sampled",
    "semivalue_sampled_with_error",
    "shapley_interactions",
    "slope_matrix",
    "stratified_shapley",
    "stratified_shapley_with_error",
    "until_precise",
    "with_validation_error",
]
