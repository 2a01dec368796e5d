"""The near-duplicate report: agents whose updates point the same way round after round.

Copied data is paid like data. No share rule can tell, since a copy really does the same to the
model; what gives it away is that its updates follow another agent's. Honest agents' updates are
alike too, above all early in training, when everyone pulls the same way; so the rounds' common
direction is taken out first. All of it works on inner products, so no gradient is kept.
"""

import jax
import jax.numpy as jnp
import numpy as np


def update_cosines(grams: jax.Array, *, centred: bool = True) -> jax.Array:
    """Mean over rounds of the cosines between agents' updates.

    With a round's updates u_1..u_n of the agents that took part (u_i != 0), their mean u and
    d_i = u_i - u (or d_i = u_i without centring),

        cos_ij = <d_i, d_j> / (|d_i| |d_j|),

    averaged over the rounds in which both took part. Independent updates of one distribution have
    an expected centred cosine of about -1/(n - 1); two copies come near 1 if a round is long enough
    to hold all of their samples. A copy with as much noise as signal comes near 1/2.

    A round in which an agent's update is not finite does not count for it, and its update is in
    nobody's mean: whoever sends one hides neither himself nor others.

    Args:
        grams: [R, A, A], the inner products <u_i, u_j> of R rounds, such as ``rows_gram`` of each
            round's summed gradients; rows of agents that took no part are 0.
        centred: take out each round's mean update.

    Returns:
        [A, A], symmetric, in [-1, 1]; the diagonal is 1 for an agent that ever took part. Pairs
        that never met, or that have nothing left after centring, have 0. The row and the column of
        an agent that took part, but never with a finite update, are NaN.

    Raises:
        ValueError: a shape other than [R, A, A].
    """
    grams = jnp.asarray(grams)
    if grams.ndim != 3 or grams.shape[1] != grams.shape[2]:
        raise ValueError(f"grams has shape {grams.shape}; give inner products [rounds, A, A]")
    norms = jnp.diagonal(grams, axis1=1, axis2=2)
    finite = jnp.isfinite(norms)
    grams = jnp.where(finite[:, :, None] & finite[:, None, :], grams, 0)
    norms = jnp.where(finite, norms, 0)
    took_part = norms > 0
    products = grams
    if centred:
        count = jnp.maximum(took_part.sum(axis=1), 1).astype(grams.dtype)[:, None]
        means = products.sum(axis=2) / count
        mean = means.sum(axis=1, keepdims=True) / count
        products = products - means[:, :, None] - means[:, None, :] + mean[:, :, None]
    squares = jnp.diagonal(products, axis1=1, axis2=2)
    # What rounding leaves of an agent that equals the mean is no direction.
    left = took_part & (squares > 1e-6 * norms)
    together = left[:, :, None] & left[:, None, :]
    lengths = jnp.sqrt(jnp.where(left, squares, 1))
    cosines = jnp.where(together, products / (lengths[:, :, None] * lengths[:, None, :]), 0)
    rounds = jnp.maximum(together.sum(axis=0), 1).astype(grams.dtype)
    told = jnp.clip(cosines.sum(axis=0) / rounds, -1, 1)
    never = ~finite.all(axis=0) & ~took_part.any(axis=0)
    return jnp.where(never[:, None] | never[None, :], jnp.nan, told)


def near_duplicates(cosines: np.ndarray, threshold: float) -> list[tuple[int, ...]]:
    """Group the agents that are linked by a cosine above a threshold.

    A report and no verdict: it cannot tell the copy from the original, nor two honest agents that
    were given the same samples from two that were not; registration order or an audit must.

    Args:
        cosines: [A, A], of ``update_cosines``; NaN links nobody.
        threshold: above it two agents are linked; links chain.

    Returns:
        Groups of two or more agents in ascending order, largest index last.

    Raises:
        ValueError: a threshold outside (-1, 1), or a matrix that is not [A, A].
    """
    cosines = np.asarray(cosines)
    if cosines.ndim != 2 or cosines.shape[0] != cosines.shape[1]:
        raise ValueError(f"cosines has shape {cosines.shape}; give a matrix [A, A]")
    if not -1 < threshold < 1:
        raise ValueError(f"threshold={threshold} must lie between -1 and 1")
    linked = cosines > threshold
    left, groups = set(range(len(cosines))), []
    while left:
        group, edge = set(), {min(left)}
        while edge:
            group |= edge
            edge = {j for i in edge for j in left if linked[i, j] or linked[j, i]} - group
        left -= group
        if len(group) > 1:
            groups.append(tuple(sorted(group)))
    return groups
