"""Credit by principal: the quotient game, in which a principal's agents come and go together.

A principal may send several agents. Values of games that see agents alone can be gamed by it:
under Shapley a principal that splits an agent in two may earn more by it. In the quotient game the
players are the principals, so how many agents one sends cannot matter. (Under Aumann-Shapley both
ways agree: a principal's credit is the sum of its agents'.)
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from vcca_jax.contribution.coalitions import participation
from vcca_jax.contribution.protocols import Estimator, Utility


def quotient(
    utility: Utility, weights: jax.typing.ArrayLike, principals: jax.typing.ArrayLike
) -> Utility:
    """The game of principals over a game of agents.

    v_P(u) = v(w_1 u_p(1), ..., w_A u_p(A)),  u in [0, 1]^P

    Args:
        utility: A pure function of the agents' participation weights `[A]`.
        weights: The grand coalition's, `[A]` in [0, 1].
        principals: Integers `[A]`, each agent's principal, from 0.

    Returns:
        A utility of the principals' participation weights `[P]`.

    Raises:
        ValueError: If `principals` is not one integer an agent; when called, if one is not within
            0 .. P - 1 (where `principals` is not traced).
    """
    weights = participation(weights)
    principals = _owners(principals, weights)
    known = None if isinstance(principals, jax.core.Tracer) else np.asarray(principals)

    def agents(shares: jax.Array) -> jax.Array:
        # A gather would take what is out of range for the first or the last.
        if known is not None:
            _checked_count(known, shares.shape[0])
        return weights * shares[principals].astype(weights.dtype)

    def played(shares: jax.Array) -> jax.Array:
        return utility(agents(shares))

    expanded = getattr(utility, "first_order", None)
    if expanded is None:
        return played

    def first_order(shares: jax.Array) -> jax.Array:
        return jax.ops.segment_sum(
            expanded(agents(shares)), principals, num_segments=shares.shape[0]
        )

    return _ExpandedQuotient(played, first_order)


@dataclass(frozen=True)
class _ExpandedQuotient:
    """The quotient of a game that knows its own first-order credits, as one step's does."""

    worth: Utility
    first_order: Callable[[jax.Array], jax.Array]

    def __call__(self, shares: jax.Array) -> jax.Array:
        return self.worth(shares)


def by_principal(
    estimator: Estimator, principals: jax.typing.ArrayLike, *, count: int | None = None
) -> Estimator:
    """The same estimator, played by principals instead of agents.

    It is an estimator itself: the credit of a principal in the quotient game is divided equally
    among its present agents, so the sum over a principal's agents is that principal's credit, and
    `cooperate` can be given it. Use `principal_credits` to sum.

    Holds: what the estimator holds, between principals; and a principal that presents its part as
    more agents changes nobody's credit but the division among its own.

    Args:
        estimator: Any.
        principals: Integers `[A]`, each agent's principal, from 0. Padding may name any.
        count: P, how many principals; by default one more than the largest of `principals`. Fix
            it where `principals` is traced.

    Raises:
        ValueError: If `principals` is not one integer an agent within 0 .. P - 1.
    """
    count = _checked_count(principals, count)

    def estimate(
        utility: Utility, weights: jax.Array, *, key: jax.Array | None = None
    ) -> jax.Array:
        weights = participation(weights)
        owners = _owners(principals, weights)
        present = (weights > 0).astype(weights.dtype)
        agents = jax.ops.segment_sum(present, owners, num_segments=count)
        grand = (agents > 0).astype(weights.dtype)
        credits = estimator(quotient(utility, weights, owners), grand, key=key)
        return present * (credits / jnp.maximum(agents, 1))[owners]

    return estimate


def principal_credits(
    credits: jax.Array, principals: jax.typing.ArrayLike, *, count: int | None = None
) -> jax.Array:
    """Sum agents' credits `[A]` by principal, `[P]`; see `by_principal` for the arguments.

    Raises:
        ValueError: If `credits` is not one an agent, or as `by_principal`.
    """
    count, credits = _checked_count(principals, count), jnp.asarray(credits)
    if credits.shape != jnp.shape(principals):
        raise ValueError(
            f"credits has shape {credits.shape} and principals {jnp.shape(principals)}; pass one"
            " credit an agent, [A] (of a matrix by beneficiary, map over its rows with jax.vmap)"
        )
    return jax.ops.segment_sum(credits, jnp.asarray(principals), num_segments=count)


def _owners(principals: jax.typing.ArrayLike, weights: jax.Array) -> jax.Array:
    owners = jnp.asarray(principals)
    if owners.shape != weights.shape or not jnp.issubdtype(owners.dtype, jnp.integer):
        raise ValueError(
            f"principals has shape {owners.shape} and dtype {owners.dtype}, and weights"
            f" {weights.shape}; name one principal an agent, by integers"
        )
    return owners


def _checked_count(principals: jax.typing.ArrayLike, count: int | None) -> int:
    array = jnp.asarray(principals)
    if array.ndim != 1 or not jnp.issubdtype(array.dtype, jnp.integer):
        raise ValueError(
            f"principals has shape {array.shape} and dtype {array.dtype}; pass one integer an agent"
        )
    if isinstance(array, jax.core.Tracer):
        if count is None:
            raise ValueError("principals is traced, so count=None cannot be found out; pass count=")
        return count
    host = np.asarray(array)
    count = int(host.max(initial=0)) + 1 if count is None else count
    if host.size and not (host.min() >= 0 and host.max() < count):
        raise ValueError(f"principals={host} must lie in 0..{count - 1}; renumber or raise count")
    return count
