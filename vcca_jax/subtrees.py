"""Agents taken apart by parameter subtree: who taught which part of the model."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from vcca_jax.gradients import AgentGradients
from vcca_jax.trainer import Params


def by_subtree(
    gradients: AgentGradients, params: Params, label: Callable[[str], str]
) -> tuple[AgentGradients, tuple[str, ...]]:
    """The same gradients, of A K players: each agent's part in each of K subtrees.

    Player (i, k), at place i K + k, brings g_i in subtree k and nothing elsewhere. It is an
    operator like any other, so every utility and estimator takes it; ``credits.reshape(A, K)`` is
    then who taught which part. Under Aumann-Shapley, influence and in-run credit a row sums to
    what the agent earns whole.

    Args:
        gradients: of A agents, screened or not.
        params: of the model.
        label: names the subtree of a leaf from its path, written with slashes
            ("body/params/...").

    Returns:
        The operator over A K players, whose ``sum`` costs K backward passes and ``dot`` K forward
        ones, and the K names, sorted. A loss has no subtree: an agent's is spread evenly.
    """
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    labels = [label(jax.tree_util.keystr(path, simple=True, separator="/")) for path in paths]
    names = tuple(sorted(set(labels)))
    structure, count = jax.tree.structure(params), len(names)

    def only(name: str, tree: Params) -> Params:
        """The tree with zeros outside of one subtree."""
        leaves = jax.tree.leaves(tree)
        kept = [
            leaf if own == name else jnp.zeros_like(leaf)
            for leaf, own in zip(leaves, labels, strict=True)
        ]
        return jax.tree.unflatten(structure, kept)

    def players(of_subtrees: list[Any]) -> Any:
        """K arrays [A, ...] as one [A K, ...]."""

        def woven(*arrays: jax.Array) -> jax.Array:
            stacked = jnp.stack(arrays, axis=1)
            return stacked.reshape(-1, *stacked.shape[2:])

        return jax.tree.map(woven, *of_subtrees)

    def dot(direction: Params) -> jax.Array:
        return players([gradients.dot(only(name, direction)) for name in names])

    def total(weights: jax.Array | None = None) -> Params:
        if weights is None:
            return gradients.sum()
        whole = count * gradients.active.shape[0]
        if jnp.shape(weights) != (whole,):
            raise ValueError(
                f"weights has shape {jnp.shape(weights)}; give one a player, ({whole},): agents'"
                f" weights are repeated for the subtrees, jnp.repeat(weights, {count})"
            )
        by_agent = weights.reshape(-1, count)
        totals = [jax.tree.leaves(gradients.sum(by_agent[:, k])) for k in range(count)]
        places = [names.index(own) for own in labels]
        return jax.tree.unflatten(structure, [totals[k][i] for i, k in enumerate(places)])

    def stack() -> Params:
        whole = gradients.stack()
        return players([only(name, whole) for name in names])

    def squared_norms(weights: Params | None = None) -> jax.Array:
        diagonal = jax.tree.map(jnp.ones_like, params) if weights is None else weights
        return players([gradients.squared_norms(only(name, diagonal)) for name in names])

    def each(array: jax.Array) -> jax.Array:
        return jnp.repeat(array, count)

    taken_apart = AgentGradients(
        dot=dot,
        sum=total,
        stack=stack,
        squared_norms=squared_norms,
        losses=each(gradients.losses) / count,
        present=each(gradients.present),
        active=each(gradients.active),
    )
    return taken_apart, names
