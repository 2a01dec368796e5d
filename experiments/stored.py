"""What experiments have stored, as notebooks read and show it."""

import io
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import matplotlib
import pandas
from PIL import Image as pillow  # which Matplotlib draws with
from pyarrow import parquet

from experiments.pages import Records
from vcca_jax.plotting.parts import STYLE

if TYPE_CHECKING:  # IPython comes with the notebooks, and is not needed to read results
    from IPython.display import Image, Markdown
    from matplotlib.figure import Figure

HERE = Path(__file__).parent
KINDS = (".parquet", ".json", ".csv")
SMOKE = os.environ.get("VCCA_SMOKE", "0") not in ("", "0")
"""Whether live cells are to be small; stored results are read as they are."""
DPI = 90
NO_DITHER = pillow.Dither.NONE

T = TypeVar("T")


def sized(full: T, smoke: T) -> T:
    """One of two sizes of a live cell: the smoke one where ``VCCA_SMOKE`` is set."""
    return smoke if SMOKE else full


def files() -> Iterator[tuple[str, str]]:
    """The experiment and the name of every stored file of results."""
    for path in sorted(HERE.glob("*/results/*")):
        if path.suffix in KINDS:
            yield path.parts[-3], path.stem


def path(experiment: str, name: str) -> Path:
    """Where ``experiments/EXPERIMENT/results/NAME`` is kept, in whichever format.

    Raises:
        ValueError: no such file; the message lists those that there are.
    """
    folder = HERE / experiment / "results"
    for kind in KINDS:
        if (found := folder / f"{name}{kind}").exists():
            return found
    held = [stem for where, stem in files() if where == experiment]
    raise ValueError(f"no results {name!r} of experiment {experiment!r}; there are {held}")


def document(experiment: str, name: str) -> Any:
    """A JSON file as it is, such as ``summary`` or a benchmark's."""
    return json.loads(path(experiment, name).read_text(encoding="utf-8"))


def records(experiment: str, name: str, part: str | None = None) -> Records:
    """A file of records, as the experiments' own figure functions take them.

    Args:
        experiment, name: the file is ``experiments/EXPERIMENT/results/NAME``, whatever its format.
        part: of a file that is one object with lists of records (``benchmarks``), which list; one
            object without a part counts as one record.

    Returns:
        A mapping a record. Those of a CSV file hold texts.
    """
    found = path(experiment, name)
    if found.suffix == ".parquet":
        rows: Records = parquet.read_table(found).to_pylist()
        return rows
    if found.suffix == ".csv":
        return pandas.read_csv(found, dtype=str, keep_default_na=False).to_dict("records")
    held = document(experiment, name)
    if part is not None:
        held = held[part]
    return [held] if isinstance(held, dict) else held


def table(experiment: str, name: str, part: str | None = None) -> pandas.DataFrame:
    """The same as a table, a record a row; numbers of a CSV file are numbers."""
    found = path(experiment, name)
    if found.suffix == ".csv":
        return pandas.read_csv(found)
    return pandas.DataFrame(records(experiment, name, part))


def titles(experiment: str) -> list[str]:
    """The titles of the tables in ``tables.md``."""
    return list(_written(experiment))


def tables(experiment: str, title: str) -> "Markdown":
    """Show one of the tables of ``experiments/EXPERIMENT/results/tables.md``.

    Raises:
        ValueError: no table of that title; the message lists the titles.
    """
    from IPython.display import Markdown

    held = _written(experiment)
    if title not in held:
        raise ValueError(f"{experiment} has no table {title!r}; there are {list(held)}")
    return Markdown(f"**{title}**\n\n{held[title]}")


def _written(experiment: str) -> dict[str, str]:
    text = (HERE / experiment / "results" / "tables.md").read_text(encoding="utf-8")
    heads = re.split(r"^#{2,3} (.+)\n", text, flags=re.MULTILINE)[1:]
    return {title: body.strip() for title, body in zip(heads[::2], heads[1::2], strict=True)}


def show(figure: "Figure", *, dpi: int = DPI) -> "Image":
    """A figure as an image in a notebook: of moderate size, the same bytes for the same figure."""
    from IPython.display import Image

    with matplotlib.rc_context(STYLE):
        drawn = io.BytesIO()
        figure.savefig(drawn, format="png", dpi=dpi)
    # A palette of 256 colours takes a third of the bytes, and the eye sees no difference.
    image, colours = io.BytesIO(), pillow.open(drawn).convert("RGB").quantize(256, dither=NO_DITHER)
    colours.save(image, format="png", optimize=True)
    told = " ".join(figure.get_suptitle().split())
    return Image(data=image.getvalue(), format="png", alt=told or None)
