"""Does a stage of one's own keep what the others rely on? Asked before it is used.

Each check runs a stage on a small example and raises ``ValueError`` with the law that is broken and
the remedy. What a stage is free to promise or not, such as the axioms of a credit, is measured and
returned. The project's own stages are held to the same checks.

| check | of |
| --- | --- |
| ``check_estimator`` | ``estimator(utility, weights, *, key=None) -> credits`` |
| ``check_screen`` | ``screen(gradients, value_gradients, profiles) -> (gradients, report)`` |
| ``check_share_rule`` | ``ShareRule(spec, shares)`` |
| ``check_trainer`` | ``Trainer(init, step)`` |
| ``check_value_loss`` | ``loss(params, context) -> scalar`` |

A model's split is checked by ``check_boundary``.
"""

from vcca_jax.conformance.estimators import Axioms, check_estimator
from vcca_jax.conformance.screens import Promises, check_screen
from vcca_jax.conformance.share_rules import RuleTraits, check_share_rule
from vcca_jax.conformance.trainers import check_trainer
from vcca_jax.conformance.value_losses import Slope, check_value_loss

__all__ = [
    "Axioms",
    "Promises",
    "RuleTraits",
    "Slope",
    "check_estimator",
    "check_screen",
    "check_share_rule",
    "check_trainer",
    "check_value_loss",
]
