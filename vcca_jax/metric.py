"""The metric in which an optimizer steps, for screening what it will make of a gradient."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from vcca_jax.trainer import Params

Metric = Callable[[Any, Params], Params]
"""``metric(optimizer_state, gradient) -> P``, a positive diagonal like the parameters: an agent's
part g_i of the gradient becomes P g_i of the direction that is stepped against."""


def adam_metric(
    b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8, eps_root: float = 0.0
) -> Metric:
    """The metric of ``optax.adam``, ``adamw`` and other chains around ``scale_by_adam``.

    At step t the direction is m_t / (1 - b1^t) / (sqrt(v_t / (1 - b2^t) + eps_root) + eps) with
    m_t = b1 m_{t-1} + (1 - b1) g and v_t = b2 v_{t-1} + (1 - b2) g^2. For v_t as the batch's
    gradient makes it, g's own part is P g with

        P = (1 - b1) / (1 - b1^t) / (sqrt(v_t / (1 - b2^t) + eps_root) + eps).

    Adam goes on from the screened gradient, whose v_t is another, and adds its momentum; what is
    really applied is for ``keep_admissible`` to see to. Arguments are those given to optax.

    Returns:
        The metric; it raises a ValueError for an optimizer state without one ``ScaleByAdamState``.
    """

    def metric(optimizer_state: Any, gradient: Params) -> Params:
        found = [
            leaf for leaf in jax.tree.leaves(optimizer_state, is_leaf=_is_adam) if _is_adam(leaf)
        ]
        if len(found) != 1:
            raise ValueError(
                f"optimizer_state holds {len(found)} states of scale_by_adam; the metric of Adam is"
                " for a chain with exactly one"
            )
        (adam,) = found

        def diagonal(second: jax.Array, g: jax.Array) -> jax.Array:
            step = (adam.count + 1).astype(second.dtype)
            share = (1 - b1) / (1 - b1**step)
            moment = (b2 * second + (1 - b2) * jnp.square(g)) / (1 - b2**step)
            return (share / (jnp.sqrt(moment + eps_root) + eps)).astype(g.dtype)

        return jax.tree.map(diagonal, adam.nu, gradient)

    return metric


def _is_adam(leaf: Any) -> bool:
    return isinstance(leaf, optax.ScaleByAdamState)
