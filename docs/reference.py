"""A small Sphinx extension: plain-prose docstrings as reStructuredText, and pages of names.

Docstrings here are written to be read in an editor: formulas as aligned text, tables with bars,
``|u|`` for a norm. ``as_rst`` turns these into what the parser means by them. The directive
``names`` documents what it lists, relative to ``vcca_jax``: a table first, then each in full.
Formulas between dollars become MathML, which browsers draw by themselves. Links out of ``docs`` to
a README that has a page here lead to that page.
"""

import html
import importlib
import inspect
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging

PACKAGE = "vcca_jax"


class Field(NamedTuple):
    """Any named tuple, to know its fields' type by."""

    at: int


_FIELD = type(Field.at)
_SECTION = re.compile(
    r"(Args|Arguments|Attributes|Returns|Raises|Yields|Example|Examples|Note|Notes):\s*$"
)
_LABEL = re.compile(r"(Cost|Holds|Does not hold|Source|Guarantees): ")
_SENTENCE = re.compile(r"(?<=\.) (?=(?:Holds|Does not hold|Source): )")
_LITERAL = re.compile(r"``.+?``|`[^`]+`")
_ROW = re.compile(r"\|\s.*\|$")
# Sizes that the translation to MathML does not know; it finds its own.
_SIZES = re.compile(r"\\(?:big{1,2}|Big{1,2}|textstyle|displaystyle)(?![a-zA-Z])")
# An accent over a letter with an index: the index belongs beside the letter, not under it.
_ACCENTED = re.compile(
    r"<munderover>\s*(<mi>\w</mi>)\s*(<m[in]>\w+</m[in]>)\s*(<mo [^>]*>[~^¯]</mo>)\s*</munderover>"
)
_ITEM = re.compile(r"([-*+]|\d+\.)\s")


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _escaped(line: str) -> str:
    """Bars and trailing underscores outside of literals, which have a meaning of their own."""
    pieces, place = [], 0
    for found in _LITERAL.finditer(line):
        pieces += [_plain(line[place : found.start()]), found.group()]
        place = found.end()
        if line[place : place + 1].isalnum():  # ends of words, as in ``x``s
            pieces.append("\\ ")
    return "".join([*pieces, _plain(line[place:])])


def _plain(text: str) -> str:
    text = re.sub(r"\|", r"\\|", text)
    text = re.sub(r"(?<=\w)_(?!\w)", r"\\_", text)
    if len(re.findall(r"\*", text)) % 2:  # one that closes nothing, as in v*
        text = re.sub(r"\*(?=[^*]*$)", r"\\*", text)
    return text


def _table(lines: Sequence[str]) -> Iterator[str]:
    """A table with bars as a list table."""
    rows = [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))] for line in lines
    ]
    yield from (".. list-table::", "   :header-rows: 1", "")
    for row in (rows[0], *rows[2:]):
        for j, cell in enumerate(row):
            yield f"   {'* -' if j == 0 else '  -'} {_escaped(cell)}"
    yield ""


def _verbatim(block: Sequence[str]) -> list[str]:
    """An aligned block, such as formulas, as it stands."""
    return [".. code-block:: text", "", *block, ""]


def _list(block: Sequence[str]) -> list[str]:
    """A block of prose, each line at its margin an item of its own."""
    margin = min(_indent(line) for line in block if line.strip())
    items = [
        f"{'  ' if _indent(line) > margin else '- '}{_escaped(line.strip())}"
        if line.strip()
        else ""
        for line in block
    ]
    return [*items, ""]


def as_rst(lines: Iterable[str]) -> list[str]:
    """A docstring of this project as reStructuredText in Google style."""
    lines = [
        part for line in lines for part in ([line] if _indent(line) else _SENTENCE.split(line))
    ]
    out, i = [], 0
    section = ""
    while i < len(lines):
        line = lines[i]
        if line.strip() and not _indent(line):
            found = _SECTION.match(line)
            section = found.group(1) if found else ""
        if section:
            code = section.startswith("Example") or _SECTION.match(line)
            out.append(line if code else _escaped(line))
            i += 1
            continue
        if _ROW.match(line):
            end = next((k for k in range(i, len(lines)) if not _ROW.match(lines[k])), len(lines))
            out += ["", *_table(lines[i:end])]
            i = end
            continue
        starts = bool(_indent(line)) and (not out or not out[-1].strip() or not _indent(out[-1]))
        if starts and line.strip() and not (out and _ITEM.match(out[-1].lstrip())):
            end = i
            while end < len(lines) and (not lines[end].strip() or _indent(lines[end])):
                end += 1
            block = lines[i:end]
            while block and not block[-1].strip():
                block.pop()
            if out and out[-1].strip():  # right under its introduction
                out.append("")
            out += _list(block) if any("``" in each for each in block) else _verbatim(block)
            i = end
            continue
        label = _LABEL.match(line)
        if label:  # a paragraph of its own
            out += [""] if out and out[-1].strip() else []
            line = f"**{label.group(1)}:** {line[label.end() :]}"
        out.append(line if line.lstrip().startswith((">>>", "..")) else _escaped(line))
        i += 1
    return out


def _docstring(app: Sphinx, what: str, name: str, of: Any, options: Any, lines: list[str]) -> None:
    lines[:] = as_rst(lines)


def _skipped(app: Sphinx, what: str, name: str, of: Any, skip: bool, options: Any) -> bool | None:
    """Fields of named tuples: their class has told of them."""
    return True if isinstance(of, _FIELD) else None


def _kind(name: str) -> str:
    module, _, attribute = f"{PACKAGE}.{name}".rpartition(".")
    # A function may bear the name of its module; the function is what is public.
    value = getattr(importlib.import_module(module), attribute, None)
    if value is None:
        value = importlib.import_module(f"{PACKAGE}.{name}")
    if isinstance(value, ModuleType):
        return "automodule"
    if inspect.isclass(value):
        return "autoexception" if issubclass(value, Exception) else "autoclass"
    return "autofunction" if inspect.isroutine(value) else "autodata"


def _entries(found: re.Match[str]) -> str:
    """One public name a line, with its members if followed by ``+``: a table, then each in full."""
    names = found.group(1).split("\n")
    lines = [".. autosummary::", "   :nosignatures:", ""]
    lines += [f"   ~{PACKAGE}.{name.rstrip(' +')}" for name in names]
    for name in names:
        plain = name.rstrip(" +")
        lines += ["", f".. {_kind(plain)}:: {PACKAGE}.{plain}"]
        if name.endswith("+"):
            lines += ["   :members:"]
    return "\n".join(["```{eval-rst}", *lines, "```"])


def _math(self: Any, node: nodes.Element) -> None:
    block = isinstance(node, nodes.math_block)
    formula = re.sub(r"\\dots\b", r"\\ldots", _SIZES.sub("", node.astext()))
    try:
        drawn = tex2mathml(formula, as_block=block)
    except MathError as error:
        logging.getLogger(__name__).warning("%s in %r", error, formula, location=node)
        drawn = f"<code>{html.escape(formula)}</code>"
    self.body.append(_ACCENTED.sub(r"<msub><mover>\1\3</mover>\2</msub>", drawn))
    raise nodes.SkipNode


def _source(app: Sphinx, document: str, source: list[str]) -> None:
    """Blocks of names spelled out, and links out of ``docs`` led to pages here."""
    up = "../" * document.count("/")
    root = Path(app.srcdir).parent

    def inner(found: re.Match[str]) -> str:
        words, target, anchor = found.group(1), found.group(2), found.group(3) or ""
        experiment = re.fullmatch(r"(?:\.\./)+experiments/(\w+)/README\.md", target)
        if experiment:
            return f"[{words}]({up}experiments/{experiment.group(1)}.md{anchor})"
        if re.fullmatch(r"(?:\.\./)+CHANGELOG\.md", target):
            return f"[{words}]({up}changelog.md{anchor})"
        place = re.sub(r"^(\.\./)+", "", target)
        if place.startswith("docs/"):
            return f"[{words}]({up}{place.removeprefix('docs/')}{anchor})"
        return words if (root / place).exists() else found.group(0)

    text = re.sub(r"```\{names\}\n(.*?)\n```", _entries, source[0], flags=re.DOTALL)
    source[0] = re.sub(
        r"(?<!!)\[([^\]]*)\]\(((?:\.\./)+[^)#\s]+)(#[^)\s]*)?\)",
        lambda found: inner(found) if _leaves(document, found.group(2)) else found.group(0),
        text,
    )


def _leaves(document: str, target: str) -> bool:
    depth = 0 if document.startswith("notebooks/") else document.count("/")
    return target.count("../") > depth


def _notebooks(app: Sphinx, config: Any) -> None:
    """Executed notebooks, which lie beside ``docs``, copied for as long as the pages are built."""
    here = Path(app.srcdir) / "notebooks"
    _remove_notebooks(app, None)
    for notebook in (Path(app.srcdir).parent / "notebooks").glob("*.ipynb"):
        shutil.copy(notebook, here)


def _remove_notebooks(app: Sphinx, error: Exception | None) -> None:
    for copy in (Path(app.srcdir) / "notebooks").glob("*.ipynb"):
        copy.unlink()


def setup(app: Sphinx) -> dict[str, bool]:
    """Register it."""
    app.connect("autodoc-process-docstring", _docstring, priority=100)
    app.connect("config-inited", _notebooks)
    app.connect("build-finished", _remove_notebooks)
    app.connect("autodoc-skip-member", _skipped)
    app.connect("source-read", _source)
    app.add_html_math_renderer(
        "mathml", inline_renderers=(_math, None), block_renderers=(_math, None)
    )
    app.config.html_math_renderer = "mathml"
    return {"parallel_read_safe": True, "parallel_write_safe": True}
