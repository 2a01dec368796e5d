"""Influence: the first-order leave-one-out, by one gradient in the participation weights."""

from typing import Literal

import jax
import jax.numpy as jnp

from vcca_jax.contribution.coalitions import (
    chunked_map,
    forward_slopes,
    only_present,
    participation,
    scalar_of,
)
from vcca_jax.contribution.protocols import Utility

FEW_AGENTS = 2
"""Agents up to which `auto` goes forward: as many directional derivatives cost less than a vjp."""


def influence(
    utility: Utility,
    weights: jax.typing.ArrayLike,
    *,
    key: jax.Array | None = None,
    mode: Literal["auto", "reverse", "forward"] = "auto",
    batch_size: int | None = None,
) -> jax.Array:
    """Credit every agent with the slope of the utility in its own participation.

    c_i = w_i dv/dw_i (w)

    The factor w_i makes it the first-order estimate of v(w) - v(w with w_i = 0): a cooperative's
    present agents (w_i = 1) get the derivative itself, absent ones 0.

    Cost: `reverse` one utility and its gradient for all agents at once (for a training run, the
    memory of its segments); `forward` A directional derivatives, each some two utilities, no memory
    of the run, and `batch_size` of them at once share the utility itself. Equal results to
    rounding. `auto` goes forward for one or two agents, and in reverse for more. Choose `forward`
    for a utility that has no reverse mode, such as one with a loop of unknown length.
    Holds: symmetry, null agent (exactly 0), linearity in the utility, split-invariance where the
    utility depends on the sum of the agents' parts. Does not hold: efficiency (to first order in
    the size of the whole update only; near saturation it under-reports every agent). A step
    function, such as a vote, has slope 0 almost everywhere: use its multilinear extension. The
    worth of a run of relus is ragged in the weights where its rate is high, and no slope tells the
    removal of a sixteenth of the data (Pearson 0.93 to 0.98 over seeds, where tanh reaches 0.99);
    leave such agents out and run again.

    Args:
        utility: A pure differentiable function of participation weights `[A]`.
        weights: The grand coalition's participation weights, `[A]` in [0, 1].
        key: Not used; accepted so that all estimators are called alike.
        mode: "reverse" (one vjp), "forward" (one jvp an agent, vmapped) or "auto".
        batch_size: How many agents at once in forward mode; None means 256.

    Returns:
        Credits `[A]`, in the unit of the utility.

    Raises:
        ValueError: If `mode` is none of these, `weights` is not `[A]` in [0, 1], or `batch_size` is
            less than 1, or the utility does not return a floating-point scalar.

    Source: Koh & Liang, "Understanding black-box predictions via influence functions",
    arXiv:1703.04730, for the idea; here the derivative goes through the utility itself, so no
    Hessian is inverted.
    """
    del key
    weights, utility = participation(weights), scalar_of(utility)
    if mode == "auto":
        mode = "forward" if weights.shape[0] <= FEW_AGENTS else "reverse"
    if mode == "reverse":
        credits = weights * jax.grad(utility)(weights)
    elif mode == "forward":

        def at(point: jax.Array) -> tuple[jax.Array, jax.Array]:
            def along(agent: jax.Array) -> tuple[jax.Array, jax.Array]:
                chosen = jnp.arange(weights.shape[0]) == agent
                tangent = jnp.where(chosen, weights, jnp.zeros_like(weights))
                return jax.jvp(utility, (point,), (tangent,))

            told = chunked_map(along, jnp.arange(weights.shape[0]), batch_size=batch_size)
            return told[0][0], told[1]

        credits = forward_slopes(at, weights)
    else:
        raise ValueError(f'mode is {mode!r}; choose "auto", "reverse" or "forward"')
    return only_present(credits, weights)
