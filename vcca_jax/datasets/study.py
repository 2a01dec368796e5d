"""A study of several agents: its shapes, and how rows are dealt out to splits and agents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

SPLITS = ("train", "values", "validation", "test")

Row = Mapping[str, str]


class Shard(NamedTuple):
    """One agent's own training data: `inputs` [n, ...], `targets` int32 [n]."""

    inputs: np.ndarray
    targets: np.ndarray


class Split(NamedTuple):
    """Rows of all agents pooled, each with its owner.

    Attributes:
        inputs: float32 [n, F]; of a text study, token ids int32 [n, L].
        targets: int32 [n], 0 or 1; each loader says what 1 stands for.
        owners: int32 [n], index into the study's `agents`.
        attributes: by name an array [n] of what is known of a row besides its inputs, as it
            is and not standardised. Where there is a "sex", it is int32, 1 = male and
            0 = female; "age" is float32, in years.
        groups: one boolean mask [n] for each name in the study's `groups`.
        rows: int32 [n], which row of the source this is; never a feature.
    """

    inputs: np.ndarray
    targets: np.ndarray
    owners: np.ndarray
    attributes: dict[str, np.ndarray]
    groups: dict[str, np.ndarray]
    rows: np.ndarray


class Study(NamedTuple):
    """A study of several agents: their own training shards, and held-out rows by purpose.

    Attributes:
        agents: the agents' names; position = owner index.
        train: one `Shard` for each agent, ready for `cooperative(study.train)`.
        pooled_train: the same rows pooled, in the agents' order, with their attributes.
        values: held-out rows for value losses and for probes.
        validation: held-out rows for the utility.
        test: held-out rows to report on, never to choose by.
        feature_names: F names, in column order.
        groups: the names of the masks in every `Split.groups`.
        oldest_third_from: age in years from which a person counts to the oldest third; the
            whole year that comes nearest to a third of the training rows.
    """

    agents: tuple[str, ...]
    train: tuple[Shard, ...]
    pooled_train: Split
    values: Split
    validation: Split
    test: Split
    feature_names: tuple[str, ...]
    groups: tuple[str, ...]
    oldest_third_from: float


class Parts(NamedTuple):
    """What `divide` makes of all rows; the fields are those of `Study`."""

    train: tuple[Shard, ...]
    pooled_train: Split
    values: Split
    validation: Split
    test: Split


def deal(
    owners: np.ndarray,
    strata: np.ndarray,
    *,
    agents: Sequence[str],
    fractions: Sequence[float],
    split_seed: int,
    units: np.ndarray | None = None,
) -> np.ndarray:
    """The index into `SPLITS` of every row; each agent is dealt out on its own.

    An agent's rows are ordered by stratum, shuffled within each by
    `numpy.random.default_rng(split_seed)`, and dealt one by one to the split that lags
    furthest behind its fraction. So each agent holds its fractions to within a row, and so
    does each stratum of one agent to within two.

    Args:
        owners: int [n], index into `agents`.
        strata: int [n].
        agents: their names.
        fractions: shares of train, values, validation and test; all above 0, sum 1.
        split_seed: seed of the shuffle, an integer >= 0.
        units: int [n], or None; rows of one unit go where the unit's first row goes, which
            costs a row of the precision above for each row moved.

    Returns:
        int [n].

    Raises:
        ValueError: `fractions` or `split_seed` are out of range, or an agent would be left
            without a training row.
    """
    shares = np.asarray(fractions, dtype=np.float64)
    if shares.shape != (4,) or not np.all(shares > 0) or abs(shares.sum() - 1.0) > 1e-9:
        raise ValueError(
            f"fractions={tuple(fractions)!r} must be four numbers above 0 that sum to 1, for "
            f"{', '.join(SPLITS)}; pass e.g. (0.55, 0.15, 0.15, 0.15)"
        )
    if split_seed < 0:
        raise ValueError(f"split_seed={split_seed!r} must be an integer >= 0")

    rng = np.random.default_rng(split_seed)
    split = np.empty(len(owners), np.int64)
    for owner in np.unique(owners):
        dealt = np.zeros(len(shares))
        members = np.flatnonzero(owners == owner)
        for stratum in np.unique(strata[members]):
            for row in rng.permutation(members[strata[members] == stratum]):
                # The count goes on across strata, so a small stratum's remainder is made
                # up for in the next and the owner as a whole keeps its fractions.
                due = shares * (dealt.sum() + 1) - dealt
                split[row] = np.argmax(due)
                dealt[split[row]] += 1
    if units is not None:
        _, first, unit = np.unique(units, return_index=True, return_inverse=True)
        split = split[first][unit]

    counts = np.bincount(owners[split == 0], minlength=len(agents))
    if counts.min() == 0:
        raise ValueError(
            f"fractions={tuple(fractions)!r} leave {agents[int(counts.argmin())]!r} without a "
            "training row; raise fractions[0]"
        )
    return split


def sample(
    owners: np.ndarray,
    *,
    rows_limit: int | None,
    per_agent: int | None,
    split_seed: int,
) -> np.ndarray:
    """Fewer rows, drawn without looking at anything but their owners.

    Args:
        owners: int [n].
        rows_limit: at most so many rows in all; None = no limit. They are drawn uniformly,
            so agents keep their proportions but for chance.
        per_agent: at most so many rows of each agent; None = no limit. It is applied first.
        split_seed: seed of the draw, an integer >= 0. A lower limit draws a subset of what a
            higher one draws.

    Returns:
        The rows kept, int [m], increasing.

    Raises:
        ValueError: a limit is below 1, or `split_seed` is below 0.
    """
    for name, limit in (("rows_limit", rows_limit), ("per_agent", per_agent)):
        if limit is not None and limit < 1:
            raise ValueError(f"{name}={limit!r} must be at least 1, or None for every row")
    if split_seed < 0:
        raise ValueError(f"split_seed={split_seed!r} must be an integer >= 0")
    # A stream of its own, so that the shuffle of the splits is not the same numbers.
    order = np.random.default_rng((split_seed, 1)).permutation(len(owners))
    if per_agent is not None:
        agents = np.unique(owners)
        kept = [np.flatnonzero(owners[order] == agent)[:per_agent] for agent in agents]
        order = order[np.sort(np.concatenate(kept))]
    return np.sort(order[:rows_limit])


def divide(
    split: np.ndarray,
    *,
    agents: Sequence[str],
    inputs: np.ndarray,
    targets: np.ndarray,
    owners: np.ndarray,
    attributes: Mapping[str, np.ndarray],
    groups: Mapping[str, np.ndarray],
    rows: np.ndarray,
) -> Parts:
    """All rows, divided into the four splits and the training rows once more by agent.

    Within a split agents come in order, and one agent's rows in the file's order.

    Args:
        split: int [n], as `deal` returns it.
        agents: their names.
        inputs: [n, ...].
        targets: int [n].
        owners: int [n].
        attributes: arrays [n] by name.
        groups: masks [n] by name.
        rows: int [n].

    Returns:
        The parts of a study.
    """

    def select(wanted: int) -> Split:
        index = np.flatnonzero(split == wanted)
        index = index[np.argsort(owners[index], kind="stable")]
        return Split(
            inputs=inputs[index],
            targets=targets[index].astype(np.int32),
            owners=owners[index].astype(np.int32),
            attributes={name: values[index] for name, values in attributes.items()},
            groups={name: mask[index] for name, mask in groups.items()},
            rows=rows[index].astype(np.int32),
        )

    pooled, values, validation, test = (select(wanted) for wanted in range(len(SPLITS)))
    train = tuple(
        Shard(pooled.inputs[pooled.owners == agent], pooled.targets[pooled.owners == agent])
        for agent in range(len(agents))
    )
    return Parts(train, pooled, values, validation, test)


def oldest_third_from(age: np.ndarray) -> float:
    """The age at or above which the share of rows is nearest to a third (ages are whole years)."""
    candidates = np.unique(age)
    shares = (age[None, :] >= candidates[:, None]).mean(axis=1)
    return float(candidates[np.argmin(np.abs(shares - 1 / 3))])
