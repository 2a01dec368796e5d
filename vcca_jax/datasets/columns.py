"""Input columns of tables: standardised numbers and one-hot categories."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Column(NamedTuple):
    """A named input column, `values` float64 [n]."""

    name: str
    values: np.ndarray


def number(
    name: str, observed: np.ndarray, is_train: np.ndarray, *, indicator: bool = False
) -> list[Column]:
    """A number, imputed and standardised by training rows alone.

    A missing value becomes the median of the observed training rows; the filled column then
    has mean 0 and standard deviation 1 (divisor n) over the training rows.

    Args:
        name: the column's name.
        observed: float64 [n], NaN where missing.
        is_train: bool [n].
        indicator: whether a second column follows, 1 = it was missing.

    Returns:
        One column, or two.

    Raises:
        ValueError: no training row has a value.
    """
    missing = np.isnan(observed)
    if np.all(missing[is_train]):
        raise ValueError(
            f"no training row has {name!r}, so it cannot be imputed; raise fractions[0]"
        )
    filled = np.where(missing, np.nanmedian(observed[is_train]), observed)
    # A column that never varies in training carries nothing: it becomes all zeros there.
    deviation = filled[is_train].std() or 1.0
    columns = [Column(name, (filled - filled[is_train].mean()) / deviation)]
    if indicator:
        columns.append(Column(f"{name} missing", missing.astype(np.float64)))
    return columns


def category(
    name: str, words: Sequence[str], levels: Sequence[str], *, missing: str = ""
) -> list[Column]:
    """One 0/1 column a level; a missing category is all zeros.

    Args:
        name: the column's name; each level's own is "name: level", in lower case.
        words: n cells.
        levels: the words that may occur.
        missing: the word that stands for a missing category.

    Returns:
        As many columns as levels.

    Raises:
        ValueError: another word occurs.
    """
    unknown = set(words) - {*levels, missing}
    if unknown:
        raise ValueError(
            f"column {name!r} holds {sorted(unknown)!r}, which is none of {tuple(levels)!r}; "
            "pass rows as the source's file has them"
        )
    cells = np.asarray(words, dtype=object)
    return [
        Column(f"{name}: {level.lower()}", (cells == level).astype(np.float64)) for level in levels
    ]


def stack(columns: Sequence[Column]) -> tuple[np.ndarray, tuple[str, ...]]:
    """The columns side by side, float32 [n, F], and their F names."""
    inputs = np.stack([column.values for column in columns], axis=1).astype(np.float32)
    return inputs, tuple(column.name for column in columns)
