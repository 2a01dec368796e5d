"""Real data, as plain NumPy arrays (host only: nothing here is traced by JAX).

`heart_disease` is the study of four hospitals that the main job runs on. Its file is small
and free (CC BY 4.0) and lies in the package; `data/README.md` beside it has its provenance.
`digits` and `breast_cancer` are scikit-learn's, for tests and notebooks.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np

HEART_DISEASE_PATH = Path(__file__).parent / "data" / "heart_disease_uci.csv"
HEART_DISEASE_SHA256 = "574f2fa2b43012fa25fca4fcdb36bd7c6bccdd0af4242f6c0e4c8633c5a072ae"

AGENTS = ("cleveland", "hungarian", "switzerland", "va long beach")
SPLITS = ("train", "values", "validation", "test")
GROUPS = ("women", "men", "oldest third")

_HOSPITALS = ("Cleveland", "Hungary", "Switzerland", "VA Long Beach")
# The published counts are 303 / 294 / 123 / 200: this row is Hungary's first, mislabelled.
_RELABELLED = {"304": "Hungary"}
# Rows that agree in everything but the id, perhaps one patient entered twice. Listed rather
# than searched for, so that no measurement can influence who is in which split.
_TWINS = {"406": "405", "908": "860"}

# Column -> whether a zero stands for "not measured".
_NUMERIC = {
    "age": False,
    "trestbps": True,
    "chol": True,
    "thalch": False,
    "oldpeak": False,
    "ca": False,
}
_LEVELS = {
    "cp": ("typical angina", "atypical angina", "non-anginal", "asymptomatic"),
    "fbs": ("FALSE", "TRUE"),
    "restecg": ("normal", "st-t abnormality", "lv hypertrophy"),
    "exang": ("FALSE", "TRUE"),
    "slope": ("upsloping", "flat", "downsloping"),
    "thal": ("normal", "fixed defect", "reversable defect"),
}

Row = Mapping[str, str]


class Shard(NamedTuple):
    """One agent's own training data: `inputs` float32 [n, F], `targets` int32 [n]."""

    inputs: np.ndarray
    targets: np.ndarray


class Split(NamedTuple):
    """Rows of all agents pooled, each with its owner.

    Attributes:
        inputs: float32 [n, F].
        targets: int32 [n], 1 = disease present.
        owners: int32 [n], index into `Study.agents`.
        attributes: "sex" int32 [n], 1 = male, 0 = female, as the source records it; "age"
            float32 [n] in years, not standardised.
        groups: one boolean mask [n] for each name in `Study.groups`.
        rows: int32 [n], the source's `id`; never a feature.
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
        oldest_third_from: age in years from which a patient counts to the oldest third; the
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


def read_heart_disease(path: str | Path = HEART_DISEASE_PATH) -> list[dict[str, str]]:
    """Reads the checked-in file as text rows, after verifying that it is that very file.

    Args:
        path: where the file lies.

    Returns:
        920 rows in the file's order, each a mapping from column name to the text in the cell.

    Raises:
        FileNotFoundError: the file is absent.
        ValueError: the SHA-256 of the file is not the recorded one.
    """
    path = Path(path)
    remedy = (
        "restore vcca_jax/data/heart_disease_uci.csv from the repository or by the two "
        "commands in vcca_jax/data/README.md"
    )
    if not path.is_file():
        raise FileNotFoundError(f"the heart disease data is not at path={str(path)!r}; {remedy}")
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest != HEART_DISEASE_SHA256:
        raise ValueError(
            f"the heart disease data at path={str(path)!r} was altered: its SHA-256 is {digest}, "
            f"expected {HEART_DISEASE_SHA256} (a changed line end is enough); {remedy}"
        )
    return list(csv.DictReader(io.StringIO(content.decode("ascii"), newline="")))


def heart_disease(
    *,
    split_seed: int = 0,
    fractions: Sequence[float] = (0.55, 0.15, 0.15, 0.15),
    include_sex: bool = False,
    rows: Sequence[Row] | None = None,
) -> Study:
    """UCI Heart Disease: 920 patients of four hospitals, split for a cooperative.

    The target is 1 where disease is present (the source's `num` > 0). Agents are the
    hospitals: Cleveland 303 rows, Hungary 294, Switzerland 123, VA Long Beach 200. Disease
    rates differ widely (0.46, 0.36, 0.93, 0.74), so report AUC or balanced accuracy.

    Splitting. Each hospital is split on its own. Its rows are ordered by outcome and sex,
    shuffled within these strata by `numpy.random.default_rng(split_seed)`, and dealt one by
    one to the split that lags furthest behind its fraction, so each hospital and each
    stratum holds its fractions to within two rows. Only hospital, outcome and sex decide;
    no measurement does. Two pairs of identical rows are each kept within one split.

    Features, F = 28 (29 with sex), in the order of `feature_names`:

    - Numbers (age, trestbps, chol, thalch, oldpeak, ca). A blank is missing; so is a zero of
      `chol` (all of Switzerland, 49 rows of VA) and of `trestbps` (one row of VA). Missing
      numbers are filled with the median of the observed **training** rows pooled over
      hospitals; the filled column is then standardised by the mean and the standard
      deviation (divisor n) of the filled training rows. Each number except age, which is
      always known, is followed by an indicator, 1 = it was missing.
    - Categories (cp, fbs, restecg, exang, slope, thal). One 0/1 column a level; a missing
      category is a level of its own, all columns zero. Nothing is imputed.
    - Sex, only with `include_sex`: 1 = male.

    The medians, means, deviations and the age that bounds the oldest third come from
    training rows alone: no measurement of a held-out row changes any training array, or
    another held-out row. They are pooled, so hospitals do share these few statistics.

    What is missing tells hospitals apart (no Swiss cholesterol, almost no `ca` outside
    Cleveland), and hospitals differ in disease rate and in their share of women. The
    indicators are kept, since absence of a test is known at prediction time; but a model
    can use them to guess the hospital, so a good pooled score is partly between-hospital
    and would not carry over to a fifth. It is the same for every split and every trainer.

    Sex is by default an attribute and not an input: a purpose limit such as "the body must
    not get better at telling a patient's sex" would be odd if sex were handed to the body.

    Args:
        split_seed: seed of the shuffle, an integer >= 0.
        fractions: shares of train, values, validation and test; all above 0, sum 1.
        include_sex: whether sex is also the last input column.
        rows: text rows as `read_heart_disease` returns them, which is called when None.

    Returns:
        The study. The same arguments give the same arrays, bit for bit.

    Raises:
        FileNotFoundError: the data file is absent.
        ValueError: the data file was altered, an argument is out of range, or a cell holds
            an unknown word.

    Source: Janosi, Steinbrunn, Pfisterer, Detrano (1989), Heart Disease, UCI Machine
    Learning Repository, https://doi.org/10.24432/C52P4X, CC BY 4.0.
    """
    shares = np.asarray(fractions, dtype=np.float64)
    if shares.shape != (4,) or not np.all(shares > 0) or abs(shares.sum() - 1.0) > 1e-9:
        raise ValueError(
            f"fractions={tuple(fractions)!r} must be four numbers above 0 that sum to 1, for "
            f"{', '.join(SPLITS)}; pass e.g. (0.55, 0.15, 0.15, 0.15)"
        )
    if split_seed < 0:
        raise ValueError(f"split_seed={split_seed!r} must be an integer >= 0")

    rows = read_heart_disease() if rows is None else rows
    ids = [row["id"] for row in rows]
    owners = np.array(
        [_HOSPITALS.index(_RELABELLED.get(row["id"], row["dataset"])) for row in rows], np.int32
    )
    targets = np.array([int(row["num"]) > 0 for row in rows], np.int32)
    sex = _indicator(rows, "sex", ("Female", "Male"))[:, 1].astype(np.int32)
    age = np.array([float(row["age"]) for row in rows], np.float32)

    split = _deal(owners, 2 * targets + sex, shares, np.random.default_rng(split_seed))
    position = {row_id: i for i, row_id in enumerate(ids)}
    for twin, first in _TWINS.items():
        if twin in position and first in position:
            split[position[twin]] = split[position[first]]

    counts = np.bincount(owners[split == 0], minlength=len(AGENTS))
    if counts.min() == 0:
        raise ValueError(
            f"fractions={tuple(fractions)!r} leave {AGENTS[int(counts.argmin())]!r} without a "
            "training row; raise fractions[0]"
        )
    inputs, names = _features(rows, split == 0)
    if include_sex:
        inputs = np.concatenate([inputs, sex[:, None].astype(np.float32)], axis=1)
        names = (*names, "sex: male")
    oldest_third_from = _oldest_third_from(age[split == 0])

    def select(mask: np.ndarray) -> Split:
        # Agents in order, and within one agent the file's order.
        index = np.flatnonzero(mask)
        index = index[np.argsort(owners[index], kind="stable")]
        return Split(
            inputs=inputs[index],
            targets=targets[index],
            owners=owners[index],
            attributes={"sex": sex[index], "age": age[index]},
            groups={
                "women": sex[index] == 0,
                "men": sex[index] == 1,
                "oldest third": age[index] >= oldest_third_from,
            },
            rows=np.array([int(ids[i]) for i in index], np.int32),
        )

    pooled_train, values, validation, test = (select(split == k) for k in range(4))
    train = tuple(
        Shard(
            pooled_train.inputs[pooled_train.owners == agent],
            pooled_train.targets[pooled_train.owners == agent],
        )
        for agent in range(len(AGENTS))
    )
    return Study(
        AGENTS, train, pooled_train, values, validation, test, names, GROUPS, oldest_third_from
    )


def digits() -> tuple[np.ndarray, np.ndarray]:
    """Scikit-learn's handwritten digits, 1797 images of 8 x 8.

    Returns:
        Inputs float32 [1797, 64], grey levels divided by 16 so that they lie in [0, 1], and
        targets int32 [1797] in 0..9.

    Raises:
        ImportError: scikit-learn is not installed.
    """
    inputs, targets = _sklearn_datasets().load_digits(return_X_y=True)
    return (inputs / 16.0).astype(np.float32), targets.astype(np.int32)


def breast_cancer() -> tuple[np.ndarray, np.ndarray]:
    """Scikit-learn's Wisconsin breast cancer data, 569 tumours, 30 measurements.

    Returns:
        Inputs float32 [569, 30], every column with mean 0 and standard deviation 1 over all
        569 rows (standardise again on the training rows where a held-out figure is
        reported), and targets int32 [569], 1 = benign.

    Raises:
        ImportError: scikit-learn is not installed.
    """
    inputs, targets = _sklearn_datasets().load_breast_cancer(return_X_y=True)
    scaled = (inputs - inputs.mean(axis=0)) / inputs.std(axis=0)
    return scaled.astype(np.float32), targets.astype(np.int32)


def _deal(
    owners: np.ndarray, strata: np.ndarray, shares: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """The index of the split of every row, int [n]; each owner is dealt out on its own."""
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
    return split


def _oldest_third_from(age: np.ndarray) -> float:
    """The age at or above which the share of rows is nearest to a third (ages are whole years)."""
    candidates = np.unique(age)
    shares = (age[None, :] >= candidates[:, None]).mean(axis=1)
    return float(candidates[np.argmin(np.abs(shares - 1 / 3))])


def _features(rows: Sequence[Row], is_train: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    """Inputs float32 [n, F] without sex, and the F names; statistics of training rows only."""
    columns: list[np.ndarray] = []
    names: list[str] = []
    for name, zero_is_missing in _NUMERIC.items():
        observed = np.array([float(row[name] or "nan") for row in rows])
        if zero_is_missing:
            observed[observed == 0] = np.nan
        missing = np.isnan(observed)
        if np.all(missing[is_train]):
            raise ValueError(
                f"no training row has {name!r}, so it cannot be imputed; raise fractions[0]"
            )
        filled = np.where(missing, np.nanmedian(observed[is_train]), observed)
        # A column that never varies in training carries nothing: it becomes all zeros there.
        deviation = filled[is_train].std() or 1.0
        columns.append((filled - filled[is_train].mean()) / deviation)
        names.append(name)
        if name != "age":
            columns.append(missing.astype(np.float64))
            names.append(f"{name} missing")
    for name, levels in _LEVELS.items():
        columns.extend(_indicator(rows, name, levels).T)
        names.extend(f"{name}: {level.lower()}" for level in levels)
    return np.stack(columns, axis=1).astype(np.float32), tuple(names)


def _indicator(rows: Sequence[Row], name: str, levels: tuple[str, ...]) -> np.ndarray:
    """One 0/1 column a level [n, levels]; a blank gives a row of zeros."""
    unknown = {row[name] for row in rows} - {*levels, ""}
    if unknown:
        raise ValueError(
            f"column {name!r} holds {sorted(unknown)!r}, which is none of {levels!r}; "
            "pass rows as read_heart_disease returns them"
        )
    return np.array([[row[name] == level for level in levels] for row in rows], np.float64)


def _sklearn_datasets() -> ModuleType:
    """`sklearn.datasets`, imported only when asked for."""
    try:
        import sklearn.datasets
    except ImportError as error:
        raise ImportError(
            "scikit-learn is needed for this data set and is not installed; "
            "install it with: pip install 'vcca_jax[experiments]'"
        ) from error
    return sklearn.datasets
