"""First-order credit of one step: the validation loss followed along each agent's update."""

import jax

from vcca_jax.contribution.coalitions import only_present, participation
from vcca_jax.contribution.influence import influence
from vcca_jax.contribution.protocols import Utility


def first_order(
    utility: Utility, weights: jax.typing.ArrayLike, *, key: jax.Array | None = None
) -> jax.Array:
    """Credit every agent with what its update does to the loss, to first order at the parameters.

    With u(w) the optimizer's update for the coalition w and theta the parameters before the step,

        c_i = -w_i <grad L_val(theta), du/dw_i (w)>,

    which for gradient descent, momentum and weight decay included, is eta w_i <grad L_val, g~_i>,
    the published first-order in-run score. `influence` follows the loss at the parameters after the
    step and needs a pass for it; `in_run` those of a step in which nobody takes part. This one
    needs the gradient where it is known: from the step's own pass
    (`cooperate(method="one_pass")`) it costs inner products only, for any A.

    Cost: one validation gradient, or none where the step's pass told it, and one action of the
    agent gradients; no utility evaluation.
    Holds: symmetry, null agent (exactly 0), split-invariance, linearity in the validation loss.
    Where u is linear in w the first-order game is additive, so that every Shapley-like estimator of
    it gives these credits. Does not hold: efficiency, but to first order in the step.

    Args:
        utility: A one-step utility. Any other pure differentiable function of participation weights
            has no parameters to be expanded at, and is followed at `weights`, as `influence` does.
        weights: The grand coalition's participation weights, `[A]` in [0, 1].
        key: Not used; accepted so that all estimators are called alike.

    Returns:
        Credits `[A]`, in the unit of the utility.

    Raises:
        ValueError: If `weights` is not `[A]` in [0, 1].

    Source: Wang, Mittal, Song & Jia, "Data Shapley in one training run", arXiv:2406.11011, of which
    this is our reading for participation weights and any optimizer.
    """
    weights = participation(weights)
    expanded = getattr(utility, "first_order", None)
    if expanded is None:
        return influence(utility, weights, key=key)
    return only_present(expanded(weights), weights)
