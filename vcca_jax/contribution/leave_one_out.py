"""Leave-one-out: what the grand coalition loses without one agent."""

import jax
import jax.numpy as jnp

from vcca_jax.contribution.coalitions import evaluate, marginal, only_present, participation
from vcca_jax.contribution.protocols import Utility


def leave_one_out(
    utility: Utility,
    weights: jax.typing.ArrayLike,
    *,
    key: jax.Array | None = None,
    batch_size: int | None = None,
) -> jax.Array:
    """Credit every agent with the utility lost when it alone is left out.

    c_i = v(w) - v(w with w_i = 0)

    Cost: A + 1 utility evaluations. Holds: symmetry, null agent (exactly 0), linearity in the
    utility. Does not hold: efficiency (the interactions of agents are counted several times, or
    not at all), split-invariance (two replicas can each be worth 0).

    Exactly 0 means bit for bit: for an agent of weight 0 always, and for one whose term is zero
    when the utility's batched form rounds every row alike. Matrix products on a CPU are tested to;
    `batch_size=1` makes all rows one program by construction.

    Args:
        utility: A pure function of participation weights `[A]`.
        weights: The grand coalition's participation weights, `[A]` in [0, 1].
        key: Not used; accepted so that all estimators are called alike.
        batch_size: How many coalitions at once; None means 256.

    Returns:
        Credits `[A]`, in the unit of the utility.

    Raises:
        ValueError: If `weights` is not `[A]` in [0, 1], `batch_size` is less than 1, or the utility
            does not return a scalar.

    Example:
        >>> import jax.numpy as jnp
        >>> leave_one_out(lambda w: w @ jnp.array([3.0, 2.0]), jnp.ones(2)).tolist()
        [3.0, 2.0]

    Source: the marginal contribution to the grand coalition; Cook, "Detection of influential
    observation in linear regression", Technometrics 19 (1977), for data.
    """
    del key
    weights = participation(weights)
    agents = weights.shape[0]
    # Row i leaves agent i out; the last row leaves nobody out.
    values = evaluate(
        utility,
        weights,
        jnp.arange(agents + 1),
        lambda absent: jnp.arange(agents) != absent,
        batch_size=batch_size,
    )
    everybody = jnp.broadcast_to(values[agents], (agents,))
    return only_present(marginal(everybody, values[:agents]), weights)
