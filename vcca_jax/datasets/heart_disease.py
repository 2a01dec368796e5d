"""The study of four hospitals that the main job runs on; its file lies in the package."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vcca_jax.datasets.columns import Column, category, number, stack
from vcca_jax.datasets.folder import read_verified
from vcca_jax.datasets.study import Row, Study, deal, divide, oldest_third_from

HEART_DISEASE_PATH = Path(__file__).parents[1] / "data" / "heart_disease_uci.csv"
HEART_DISEASE_SHA256 = "574f2fa2b43012fa25fca4fcdb36bd7c6bccdd0af4242f6c0e4c8633c5a072ae"

AGENTS = ("cleveland", "hungarian", "switzerland", "va long beach")
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
    content = read_verified(
        Path(path),
        HEART_DISEASE_SHA256,
        what="heart disease",
        remedy="restore vcca_jax/data/heart_disease_uci.csv from the repository or by the two "
        "commands in vcca_jax/data/README.md",
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
    rows = read_heart_disease() if rows is None else rows
    ids = [row["id"] for row in rows]
    owners = np.array(
        [_HOSPITALS.index(_RELABELLED.get(row["id"], row["dataset"])) for row in rows], np.int32
    )
    targets = np.array([int(row["num"]) > 0 for row in rows], np.int32)
    _, male = category("sex", [row["sex"] for row in rows], ("Female", "Male"))
    sex = male.values.astype(np.int32)
    age = np.array([float(row["age"]) for row in rows], np.float32)

    split = deal(
        owners,
        2 * targets + sex,
        agents=AGENTS,
        fractions=fractions,
        split_seed=split_seed,
        units=np.array([int(_TWINS.get(row_id, row_id)) for row_id in ids]),
    )
    columns = _columns(rows, split == 0)
    if include_sex:
        columns.append(male)
    inputs, names = stack(columns)
    old_from = oldest_third_from(age[split == 0])
    parts = divide(
        split,
        agents=AGENTS,
        inputs=inputs,
        targets=targets,
        owners=owners,
        attributes={"sex": sex, "age": age},
        groups={"women": sex == 0, "men": sex == 1, "oldest third": age >= old_from},
        rows=np.array([int(row_id) for row_id in ids], np.int32),
    )
    return Study(AGENTS, *parts, names, GROUPS, old_from)


def _columns(rows: Sequence[Row], is_train: np.ndarray) -> list[Column]:
    """The input columns without sex."""
    columns: list[Column] = []
    for name, zero_is_missing in _NUMERIC.items():
        observed = np.array([float(row[name] or "nan") for row in rows])
        if zero_is_missing:
            observed[observed == 0] = np.nan
        columns += number(name, observed, is_train, indicator=name != "age")
    for name, levels in _LEVELS.items():
        columns += category(name, [row[name] for row in rows], levels)
    return columns
