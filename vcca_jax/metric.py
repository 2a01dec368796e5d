"""The metric in which an optimizer steps, for screening what it will make of a gradient."""

import math
from collections.abc import Callable
from numbers import Real
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vcca_jax.trainer import Params

Metric = Callable[[Any, Params], Params]
"""``metric(optimizer_state, gradient) -> P``, a positive diagonal like the parameters: an agent's
part g_i of the gradient becomes P g_i of the direction that is stepped against."""


def adam_metric(
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    *,
    optimizer: optax.GradientTransformation | None = None,
) -> Metric:
    """The metric of ``optax.adam``, ``adamw`` and other chains around ``scale_by_adam``.

    At step t the direction is m_t / (1 - b1^t) / (sqrt(v_t / (1 - b2^t) + eps_root) + eps) with
    m_t = b1 m_{t-1} + (1 - b1) g and v_t = b2 v_{t-1} + (1 - b2) g^2. For v_t as the batch's
    gradient makes it, g's own part is P g with

        P = (1 - b1) / (1 - b1^t) / (sqrt(v_t / (1 - b2^t) + eps_root) + eps).

    Adam goes on from the screened gradient, whose v_t is another, and adds its momentum; what is
    really applied is for ``keep_admissible`` to see to.

    FOR ADAM ONLY. The state does not tell the rule that made it: optax keeps ``adamax``, ``yogi``
    and ``nadam`` in a ``ScaleByAdamState`` too, whose directions are others, and so are those of
    Adam with other arguments than given here. Give the optimizer to have it compared.

    Args:
        b1, b2, eps, eps_root: those given to optax.
        optimizer: the optimizer, whose first steps on a small example are compared with what the
            metric says of them; its step must be Adam's up to one factor. None believes the caller.

    Returns:
        The metric; it raises a ValueError for an optimizer state without one ``ScaleByAdamState``.

    Raises:
        ValueError: b1 or b2 outside [0, 1), eps or eps_root negative or not finite, or an optimizer
            that steps otherwise.
    """
    # What is no number (a state, given to this in place of the metric) is told where it is used.
    for name, decay in (("b1", b1), ("b2", b2)):
        if isinstance(decay, Real) and not 0 <= decay < 1:
            raise ValueError(f"{name}={decay} must lie in [0, 1), as Adam's decays do")
    for name, small in (("eps", eps), ("eps_root", eps_root)):
        if isinstance(small, Real) and not 0 <= small < math.inf:
            raise ValueError(f"{name}={small} must be finite and not negative")

    def metric(optimizer_state: Any, gradient: Params) -> Params:
        adam = _adam_state(optimizer_state)

        def diagonal(second: jax.Array, g: jax.Array) -> jax.Array:
            step = (adam.count + 1).astype(second.dtype)
            share = (1 - b1) / (1 - b1**step)
            moment = (b2 * second + (1 - b2) * jnp.square(g)) / (1 - b2**step)
            return (share / (jnp.sqrt(moment + eps_root) + eps)).astype(g.dtype)

        return jax.tree.map(diagonal, adam.nu, gradient)

    if optimizer is not None:
        _check_steps(optimizer, metric, b1)
    return metric


def _check_steps(optimizer: optax.GradientTransformation, metric: Metric, b1: float) -> None:
    """Refuse an optimizer whose steps from a state are not the metric times its first moment's."""
    # Parameters of 0: a weight decay has nothing to add. Sizes far apart tell moments apart.
    params = {"kernel": jnp.zeros(5), "bias": jnp.zeros(2)}
    state = optimizer.init(params)
    for step in range(3):
        key = jax.random.fold_in(jax.random.key(0), step)
        drawn = jax.random.normal(key, (7,)) * jnp.logspace(-2, 1, 7)[:: (-1) ** step]
        gradient = {"kernel": drawn[:5], "bias": drawn[5:]}
        diagonal = metric(state, gradient)
        adam = _adam_state(state)
        expected = jax.tree.map(
            lambda p, m, g: p * (b1 * m + (1 - b1) * g), diagonal, adam.mu, gradient
        )
        updates, state = optimizer.update(gradient, state, params)
        ratio = np.concatenate(
            [np.asarray(updates[each] / expected[each]) for each in ("kernel", "bias")]
        )
        if not np.ptp(ratio) <= 1e-3 * abs(ratio.mean()):
            raise ValueError(
                f"optimizer does not step as Adam with these arguments: its step {step + 1} is"
                f" between {ratio.min():.3g} and {ratio.max():.3g} times what the metric says; give"
                " b1, b2, eps and eps_root as the optimizer has them, or write the metric of its"
                " own rule"
            )


def _adam_state(optimizer_state: Any) -> Any:
    found = [leaf for leaf in jax.tree.leaves(optimizer_state, is_leaf=_is_adam) if _is_adam(leaf)]
    if len(found) != 1:
        raise ValueError(
            f"optimizer_state holds {len(found)} states of scale_by_adam; the metric of Adam is"
            " for a chain with exactly one"
        )
    return found[0]


def _is_adam(leaf: Any) -> bool:
    return isinstance(leaf, optax.ScaleByAdamState)
