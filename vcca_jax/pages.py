"""HTML pages that need nothing beside them: no network, no script, no font but the reader's own.

The templates are in ``templates``; whatever is put into one is escaped.
"""

import base64
import functools
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup


def render(template: str, **content: Any) -> str:
    """Fill a template; a name that the content lacks is an error.

    Args:
        template: File name in ``templates``.
        content: What it shows, by the names it uses; text is escaped.
    """
    return _templates().get_template(template).render(content)


@functools.cache
def _templates() -> "Environment":
    from jinja2 import Environment, PackageLoader, StrictUndefined

    found = Environment(
        loader=PackageLoader("vcca_jax"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    found.filters.update(as_image=as_image, breakable=breakable, number_columns=number_columns)
    return found


def number_columns(rows: Sequence[Sequence[object]]) -> set[int]:
    """The columns of a table, but for the first, whose cells are amounts: they go to the right."""
    columns = list(zip(*rows, strict=True))[1:]
    return {at for at, cells in enumerate(columns, 1) if all(map(_is_amount, cells))}


def _is_amount(cell: object) -> bool:
    pattern = r"([+-]?[\d.,]+(e[+-]?\d+)?( ?%)?( ± [\d.]+)?)?"
    return re.fullmatch(pattern, str(cell)) is not None


def breakable(text: str) -> "Markup":
    """Text whose long names break after an underscore on a narrow page, not within a word."""
    from markupsafe import Markup, escape

    return Markup("_<wbr>").join(map(escape, text.split("_")))


def as_image(png: bytes) -> str:
    """A PNG as an address that holds it."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def anchors(prefix: str, names: Iterable[str]) -> dict[str, str]:
    """name -> an id of its own, of plain letters, digits and hyphens, that begins with a prefix."""
    found: dict[str, str] = {}
    for name in names:
        plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "unnamed"
        candidate, number = f"{prefix}-{plain}", 1
        while candidate in found.values():
            number += 1
            candidate = f"{prefix}-{plain}-{number}"
        found[name] = candidate
    return found
