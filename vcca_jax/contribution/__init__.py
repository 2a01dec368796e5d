"""Estimators of an agent's contribution: one a file, each for any utility of participation weights.

Every estimator is called as `estimator(utility, weights, *, key=None, ...) -> credits [A]`; the
utility is any pure JAX function `utility(w) -> scalar`, a textbook cooperative game included. None
of them calls `jax.jit`; all run under `jit` and `vmap` where the utility does. Whether an update is
screened once, outside, or anew for every coalition, inside, is the utility's choice; estimators
see neither.
"""

from vcca_jax.contribution.aumann_shapley import aumann_shapley
from vcca_jax.contribution.coalitions import all_coalitions, coalition_values, evaluate
from vcca_jax.contribution.efficiency import efficiency_gap
from vcca_jax.contribution.in_run import in_run
from vcca_jax.contribution.influence import influence
from vcca_jax.contribution.leave_one_out import leave_one_out
from vcca_jax.contribution.multilinear import multilinear_shapley, multilinear_shapley_with_error
from vcca_jax.contribution.permutation import permutation_shapley, permutation_shapley_with_error
from vcca_jax.contribution.protocols import Estimator, Sampled, Utility
from vcca_jax.contribution.semivalues import banzhaf, beta_shapley, exact_shapley

__all__ = [
    "Estimator",
    "Sampled",
    "Utility",
    "all_coalitions",
    "aumann_shapley",
    "banzhaf",
    "beta_shapley",
    "coalition_values",
    "efficiency_gap",
    "evaluate",
    "exact_shapley",
    "in_run",
    "influence",
    "leave_one_out",
    "multilinear_shapley",
    "multilinear_shapley_with_error",
    "permutation_shapley",
    "permutation_shapley_with_error",
]
