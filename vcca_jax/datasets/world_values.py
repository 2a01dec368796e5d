"""World Values Survey: what people of many countries answer to one question, given another."""

from __future__ import annotations

import io
import lzma
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from vcca_jax.datasets.columns import category, stack
from vcca_jax.datasets.folder import read_fetched
from vcca_jax.datasets.study import Study, deal, divide, sample

WORLD_VALUES_ANSWERS = (
    "let anyone come",
    "as long as there are jobs",
    "strict limits",
    "let nobody come",
)
"""To the question (E143) what the government should do about people from other countries who come
here to work; position = class."""

_WAVES = (3, 4, 5)
_BRIBE = tuple(range(1, 11))


class Answers(NamedTuple):
    """People who answered both questions, in the order of the first file.

    Attributes:
        country: [n] str.
        wave: int [n], 3 to 5.
        year: int [n].
        bribe: int [n], whether accepting a bribe is ever justifiable (F117), 1 never to 10 always.
        immigration: int [n], index into `WORLD_VALUES_ANSWERS`.
        respondent: int [n], the source's number.
    """

    country: np.ndarray
    wave: np.ndarray
    year: np.ndarray
    bribe: np.ndarray
    immigration: np.ndarray
    respondent: np.ndarray


def read_world_values() -> Answers:
    """Reads the two fetched files, after verifying that they are those very files.

    They are pickled tables, which is why nothing is read before its SHA-256 has been compared; it
    takes pandas.

    Returns:
        175,750 people of 80 countries.

    Raises:
        FileNotFoundError: the set was not fetched.
        ValueError: the SHA-256 of a file is not the recorded one.
    """
    import pandas

    tables = []
    for file in ("wvs_immig.pkl.xz", "wvs_justifbribe.pkl.xz"):
        content = io.BytesIO(lzma.decompress(read_fetched("world-values", file)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # an older NumPy's names
            tables.append(pandas.read_pickle(content))
    both = tables[0].merge(tables[1][["uid", "f117"]], on="uid").dropna()
    return Answers(
        country=both["country"].to_numpy(dtype=str),
        wave=both["s002"].to_numpy(np.int64),
        year=both["s020"].to_numpy(np.int64),
        bribe=both["f117"].to_numpy(np.int64),
        immigration=both["e143"].to_numpy(np.int64) - 1,
        respondent=both["uid"].to_numpy(np.int64),
    )


def world_values(
    *,
    countries: int | Sequence[str] = 8,
    split_seed: int = 0,
    fractions: Sequence[float] = (0.4, 0.2, 0.2, 0.2),
    per_agent: int | None = None,
    answers: Answers | None = None,
) -> Study:
    """Countries whose people answer alike to little, for cooperatives whose principals disagree.

    The target is what a person would have the government do about foreign workers, one of
    `WORLD_VALUES_ANSWERS`. The inputs say what the same person thinks of bribes, and the wave of
    the survey; they do not say the country. So one model serves all countries, and what it tells
    of a person is a compromise: a country's loss is the mean over its own people, and one country's
    rows are another's loss where their people answer differently.

    Agents are countries. Each is dealt out to the four splits in strata of the target and the wave.

    Features, F = 13: one 0/1 column for each of the ten answers on bribes, and for each wave.

    Args:
        countries: so many, those with the most people who answered both questions (ties by name);
            or their names.
        split_seed: seed of the sampling and of the shuffle, an integer >= 0.
        fractions: shares of train, values, validation and test; all above 0, sum 1.
        per_agent: at most so many people of each country, drawn by the seed; None = all.
        answers: as `read_world_values` returns them, which is called when None.

    Returns:
        The study. Groups are the countries; the attribute "year" is int32; there is no age, so
        `oldest_third_from` is NaN. The same arguments give the same arrays, bit for bit.

    Raises:
        FileNotFoundError: the set was not fetched.
        ValueError: a file was altered, or an argument is out of range.

    Source: World Values Survey, waves 3 to 5 (1994 to 2009), as the R package stevedata has them.
    """
    answers = read_world_values() if answers is None else answers
    names, counts = np.unique(answers.country, return_counts=True)
    agents = _chosen(countries, names, counts)
    everyone = np.flatnonzero(np.isin(answers.country, agents))
    owner_of = {name: owner for owner, name in enumerate(agents)}
    owners = np.array([owner_of[name] for name in answers.country[everyone]], np.int32)
    kept = sample(owners, rows_limit=None, per_agent=per_agent, split_seed=split_seed)
    people, owners = everyone[kept], owners[kept]
    targets, wave = answers.immigration[people].astype(np.int32), answers.wave[people]
    split = deal(
        owners,
        len(_WAVES) * targets + wave,
        agents=agents,
        fractions=fractions,
        split_seed=split_seed,
    )
    columns = category("bribe", answers.bribe[people].astype(str), [str(k) for k in _BRIBE])
    columns += category("wave", wave.astype(str), [str(k) for k in _WAVES])
    inputs, features = stack(columns)
    parts = divide(
        split,
        agents=agents,
        inputs=inputs,
        targets=targets,
        owners=owners,
        attributes={"year": answers.year[people].astype(np.int32)},
        groups={name: owners == owner for owner, name in enumerate(agents)},
        rows=answers.respondent[people],
    )
    return Study(agents, *parts, features, agents, float("nan"))


def _chosen(
    countries: int | Sequence[str], names: np.ndarray, counts: np.ndarray
) -> tuple[str, ...]:
    if isinstance(countries, int):
        if not 1 <= countries <= len(names):
            raise ValueError(
                f"countries={countries} must be 1 to {len(names)}, or a sequence of names"
            )
        order = np.lexsort((names, -counts))[:countries]
        return tuple(str(name) for name in names[order])
    unknown = [name for name in countries if name not in names]
    if unknown or not countries or len(set(countries)) != len(countries):
        raise ValueError(
            f"countries={tuple(countries)!r} must be different names of {', '.join(names)}"
        )
    return tuple(countries)
