"""Ways to deal one data set out to agents; each places every sample with exactly one agent.

All are host functions in NumPy, repeatable from their seed. They return what
``vcca_jax.cooperative`` takes: a list of ``(inputs, targets)`` shards.
"""

from typing import Any

import numpy as np

Shards = list[tuple[np.ndarray, np.ndarray]]


def iid(inputs: Any, targets: Any, agents: int, *, seed: int) -> Shards:
    """Shuffle, then cut into parts whose sizes differ by at most one.

    Raises:
        ValueError: fewer than one agent, or inputs and targets of unequal length.

    Example:
        >>> [len(rows) for rows, _ in iid(np.zeros((7, 2)), np.arange(7), 3, seed=0)]
        [3, 2, 2]
    """
    inputs, targets = _checked(inputs, targets, agents)
    order = np.random.default_rng(seed).permutation(len(inputs))
    return _shards(inputs, targets, np.array_split(order, agents))


def dirichlet(
    inputs: Any, targets: Any, agents: int, *, alpha: float, seed: int, minimum: int = 1
) -> Shards:
    """Deal each class out in proportions drawn from a symmetric Dirichlet distribution.

    A small ``alpha`` gives most of a class to one agent, a large one approaches ``iid``
    (Hsu, Qi and Brown, 2019, arXiv:1909.06335).

    Args:
        inputs: [n, ...].
        targets: [n] class labels.
        agents: how many shards.
        alpha: concentration, > 0.
        seed: of the draw.
        minimum: fewest samples an agent may end with; 0 lets an agent be empty.

    Raises:
        ValueError: a bad argument, or a draw that leaves an agent under the minimum.
    """
    inputs, targets = _checked(inputs, targets, agents)
    if not (np.isfinite(alpha) and alpha > 0):
        raise ValueError(f"alpha={alpha} must be positive and finite")
    generator = np.random.default_rng(seed)
    parts: list[list[np.ndarray]] = [[] for _ in range(agents)]
    for label in np.unique(targets):
        rows = generator.permutation(np.flatnonzero(targets == label))
        shares = generator.dirichlet(np.full(agents, alpha))
        cuts = np.rint(np.cumsum(shares)[:-1] * len(rows)).astype(int)
        for part, piece in zip(parts, np.split(rows, cuts), strict=True):
            part.append(piece)
    rows_of = [np.concatenate(part) for part in parts]
    starved = [i for i, rows in enumerate(rows_of) if len(rows) < minimum]
    if starved:
        raise ValueError(
            f"alpha={alpha} with seed={seed} leaves agents {starved} with fewer than minimum="
            f"{minimum} samples; raise alpha, change the seed, or allow it with minimum=0"
        )
    return _shards(inputs, targets, rows_of)


def by_label(
    inputs: Any, targets: Any, agents: int, *, labels_per_agent: int = 1, seed: int
) -> Shards:
    """Give each agent samples of a few labels only; a label's samples are cut evenly.

    Agent i holds the labels at places i L, ..., i L + L - 1 of the sorted labels, counted round.

    Raises:
        ValueError: too few agents to hold every label, or more labels an agent than there are.

    Example:
        >>> labels = np.array([0, 0, 1, 1, 2, 2])
        >>> [sorted(set(held.tolist())) for _, held in by_label(labels, labels, 3, seed=0)]
        [[0], [1], [2]]
    """
    inputs, targets = _checked(inputs, targets, agents)
    labels = np.unique(targets)
    if not 1 <= labels_per_agent <= len(labels):
        raise ValueError(
            f"labels_per_agent={labels_per_agent} must lie between 1 and the {len(labels)} labels"
        )
    if agents * labels_per_agent < len(labels):
        raise ValueError(
            f"agents={agents} with labels_per_agent={labels_per_agent} cannot hold all"
            f" {len(labels)} labels; raise one of them"
        )
    generator = np.random.default_rng(seed)
    held = np.arange(agents * labels_per_agent) % len(labels)
    parts: list[list[np.ndarray]] = [[] for _ in range(agents)]
    for place, label in enumerate(labels):
        rows = generator.permutation(np.flatnonzero(targets == label))
        holders = np.flatnonzero(held == place) // labels_per_agent
        for holder, piece in zip(holders, np.array_split(rows, len(holders)), strict=True):
            parts[holder].append(piece)
    return _shards(inputs, targets, [np.concatenate(part) for part in parts])


def by_group(inputs: Any, targets: Any, groups: Any) -> Shards:
    """One shard a distinct value of ``groups`` [n], in sorted order; rows keep their order.

    Raises:
        ValueError: lengths that differ.
    """
    inputs, targets = _checked(inputs, targets, 1)
    groups = np.asarray(groups)
    if groups.shape != (len(inputs),):
        raise ValueError(f"groups has shape {groups.shape}; give one entry a sample, {len(inputs)}")
    return _shards(inputs, targets, [np.flatnonzero(groups == g) for g in np.unique(groups)])


def _shards(inputs: np.ndarray, targets: np.ndarray, parts: list[np.ndarray]) -> Shards:
    return [(inputs[rows], targets[rows]) for rows in parts]


def _checked(inputs: Any, targets: Any, agents: int) -> tuple[np.ndarray, np.ndarray]:
    inputs, targets = np.asarray(inputs), np.asarray(targets)
    if agents < 1:
        raise ValueError(f"agents={agents} must be at least 1")
    if inputs.ndim == 0 or targets.ndim == 0 or len(inputs) != len(targets) or len(inputs) == 0:
        raise ValueError(
            f"inputs of shape {inputs.shape} and targets of shape {targets.shape} must hold"
            " equally many samples on their leading axes, at least one"
        )
    return inputs, targets
