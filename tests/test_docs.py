"""The documentation is true: links lead somewhere, code runs, every public name has its entry."""

import ast
import doctest
import functools
import importlib
import inspect
import os
import re
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path

import jax
import pytest
import yaml
from docutils.utils.math.latex2mathml import tex2mathml

import vcca_jax

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(
    path
    for folder in (ROOT, DOCS, ROOT / "experiments", ROOT / "notebooks", ROOT / "vcca_jax")
    for path in (folder.glob("*.md") if folder == ROOT else folder.rglob("*.md"))
)
FENCE = re.compile(r"^```(.*?)^```", flags=re.DOTALL | re.MULTILINE)
PYTHON = re.compile(r"^```python\n(.*?)^```", flags=re.DOTALL | re.MULTILINE)


def told(path):
    """A page as text; a page that includes another is that one."""
    text = path.read_text(encoding="utf-8")
    included = re.match(r"```\{include\} (\S+)", text)
    return told((path.parent / included.group(1)).resolve()) if included else text


def slug(heading):
    """The anchor of a heading, as GitHub and MyST make it."""
    words = re.sub(r"[^\w\- ]", "", re.sub(r"[`*]", "", heading).lower().strip())
    return words.replace(" ", "-")


@functools.cache
def anchors(path):
    """Anchors of a page's headings; repeated ones are numbered."""
    seen, found = Counter(), set()
    for heading in re.findall(r"^#{1,6} (.+)$", FENCE.sub("", told(path)), flags=re.MULTILINE):
        name = slug(heading)
        found.add(f"{name}-{seen[name]}" if seen[name] else name)
        seen[name] += 1
    return found


def broken(path):
    """Relative links of a page that lead nowhere."""
    text = FENCE.sub("", path.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", text)):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        there = (path.parent / file).resolve() if file else path
        missing = anchor and there.suffix == ".md" and there.exists()
        if not there.exists() or (missing and anchor not in anchors(there)):
            yield target


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_relative_links_lead_somewhere(path):
    assert list(broken(path)) == []


def test_a_broken_link_and_a_broken_anchor_are_found(tmp_path):
    (tmp_path / "there.md").write_text("# A `b` (c)\n\n## A\n\n## A\n")
    page = tmp_path / "page.md"
    page.write_text("[](there.md#a-b-c) [](there.md#a-1) [](gone.md) [](there.md#gone) `[](y)`\n")
    assert list(broken(page)) == ["gone.md", "there.md#gone"]


def test_pages_of_experiments_include_every_experiment():
    have = {path.parent.name for path in (ROOT / "experiments").glob("*/README.md")}
    pages = {path.stem: path for path in (DOCS / "experiments").glob("*.md")}
    assert set(pages) - {"index"} == have
    listed = (DOCS / "experiments" / "index.md").read_text(encoding="utf-8").split("\n")
    for name in have:
        assert told(pages[name]) == (ROOT / "experiments" / name / "README.md").read_text("utf-8")
        assert name in listed


# Code.

START = DOCS / "how_to" / "train.md"
SLOW = {"devices", "estimators", "extend", "flax", "forms", "members", "streaming", "train"}
"""Pages that compile for more than three seconds."""


def blocks(path):
    return PYTHON.findall(path.read_text(encoding="utf-8"))


def is_ours(node):
    """Whether it is ``vcca.x``."""
    named = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    return named and node.value.id in ("vcca", "vcca_jax")


def unknown_names(code):
    """What is asked of ``vcca`` or imported from the package and is not there."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("vcca_jax"):
            module = importlib.import_module(node.module)
            for each in node.names:
                if not hasattr(module, each.name):
                    try:
                        importlib.import_module(f"{node.module}.{each.name}")
                    except ImportError:
                        yield f"{node.module}.{each.name}"
        if is_ours(node) and not hasattr(vcca_jax, node.attr):
            yield f"vcca.{node.attr}"
        if isinstance(node, ast.Call) and not any(k.arg is None for k in node.keywords):
            yield from unknown_keywords(node)


def unknown_keywords(call):
    """Keywords of a call of ``vcca.x`` that it does not take."""
    if is_ours(call.func):
        function = getattr(vcca_jax, call.func.attr, None)
        if inspect.isfunction(function):
            takes = inspect.signature(function).parameters
            yield from (
                f"vcca.{call.func.attr}({k.arg}=)" for k in call.keywords if k.arg not in takes
            )


WITH_CODE = [path for path in (ROOT / "README.md", *sorted(DOCS.rglob("*.md"))) if blocks(path)]


@pytest.mark.parametrize("path", WITH_CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_code_names_what_there_is(path):
    for code in blocks(path):
        assert list(unknown_names(code)) == []


def test_unknown_names_are_found():
    code = "from vcca_jax.models import mlq\nvcca.alocate(1)\nvcca.allocate(1, [1], id=2)"
    found = {"vcca_jax.models.mlq", "vcca.alocate", "vcca.allocate(id=)"}
    assert set(unknown_names(code)) == found


LAUNCH = DOCS / "launch.md"
README = ROOT / "README.md"
RUN = [path for path in WITH_CODE if path not in (README, LAUNCH)]
"""Every page with code; the README has a test of its own, and the launched program is one file."""

DEVICES = "jax_num_cpu_devices"
"""What a page says first of all, in a process of its own."""


def program(path):
    """A page's blocks in the order in which they run, with what the page goes on from."""
    code = blocks(path)
    if "first block of [Train a cooperative]" in path.read_text(encoding="utf-8"):
        first = [code.pop(0)] if DEVICES in code[0] else []
        code = [*first, blocks(START)[0], *code]
    return code


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, marks=[pytest.mark.slow] * (path.stem in SLOW), id=path.stem)
        for path in RUN
    ],
)
def test_code_runs_as_it_stands(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = program(path)
    if DEVICES in code[0]:
        (tmp_path / "page.py").write_text("\n".join(code), encoding="utf-8")
        subprocess.run([sys.executable, "page.py"], check=True, env=with_the_package())
        return
    scope = {"__name__": path.stem}
    with jax.numpy_rank_promotion("allow"):  # as users have it
        for i, block in enumerate(code):
            exec(compile(block, f"{path.name}, block {i + 1}", "exec"), scope)


def with_the_package():
    """The environment of a process that imports this package, wherever it runs."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}


@pytest.mark.slow
def test_the_launched_program_pays_the_same_in_one_process_and_in_two(tmp_path):
    (code,) = blocks(LAUNCH)
    (tmp_path / "spread.py").write_text(code, encoding="utf-8")
    paid = []
    for processes in (1, 2):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{probe.getsockname()[1]}"
        started = [
            subprocess.Popen(
                [sys.executable, "spread.py", str(process), str(processes), address],
                cwd=tmp_path,
                env=with_the_package(),
                stdout=subprocess.PIPE,
                text=True,
            )
            for process in range(processes)
        ]
        told = [each.communicate(timeout=300)[0] for each in started]
        assert [each.returncode for each in started] == [0] * processes
        (line,) = re.findall(r"^loss .* on (\d+) devices; (\{.*\})$", told[0], re.MULTILINE)
        assert int(line[0]) == 2 * processes
        paid.append(ast.literal_eval(line[1]))
    assert list(paid[0]) == [f"agent {i}" for i in range(8)]
    assert paid[1] == pytest.approx(paid[0], abs=1e-5)


@pytest.mark.parametrize("path", [START, DOCS / "forms.md"], ids=lambda path: path.stem)
def test_the_first_block_runs_by_itself(path, capsys):
    scope = {}
    exec(compile(blocks(path)[0], path.name, "exec"), scope)
    assert scope["members"].sizes.sum() == 400


def test_the_files_listed_are_those_there_are():
    page = (DOCS / "contributing.md").read_text(encoding="utf-8")
    table = page.split("## The files")[1].split("## What to write")[0]
    rows = [line.split("|")[2] for line in table.split("\n") if line.startswith("| ")]
    named = {name.rstrip("/") for row in rows for name in re.findall(r"`(\w+/?)`", row)}
    there = {path.stem for path in (ROOT / "vcca_jax").glob("[!_]*") if path.name != "py.typed"}
    assert named == there - {"data"}


# The reference.


def listed():
    """Names of the reference's blocks, by page."""
    for page in sorted((DOCS / "api").glob("*.md")):
        for block in re.findall(r"^```\{names\}\n(.*?)^```", page.read_text(), re.DOTALL | re.M):
            yield from (line.rstrip(" +") for line in block.split("\n") if line)


def test_every_public_name_is_in_the_reference_exactly_once():
    found = Counter(name for name in listed() if "." not in name)
    own = {name for name in found if name in vcca_jax.__all__}
    assert own == set(vcca_jax.__all__)
    assert [name for name, count in Counter(listed()).items() if count > 1] == []


def test_every_name_in_the_reference_exists():
    for name in listed():
        module, _, attribute = f"vcca_jax.{name}".rpartition(".")
        if not hasattr(importlib.import_module(module), attribute):
            importlib.import_module(f"vcca_jax.{name}")  # raises where it does not exist


# Docstrings.

EXAMPLES = sorted(
    str(path.relative_to(ROOT).with_suffix("")).replace("/", ".").removesuffix(".__init__")
    for path in (ROOT / "vcca_jax").rglob("*.py")
    if re.search(r"^\s*>>> ", path.read_text(encoding="utf-8"), re.MULTILINE)
)


@pytest.mark.parametrize("name", ["cli", "cones", "one_pass", "sharding"])
def test_a_package_says_what_each_of_its_modules_does(name):
    package = importlib.import_module(f"vcca_jax.{name}")
    there = {path.stem for path in (ROOT / "vcca_jax" / name).glob("[!_]*.py")}
    assert set(re.findall(r"^\| ``(\w+)`` \|", package.__doc__, re.MULTILINE)) == there


def test_central_functions_have_examples():
    assert len(EXAMPLES) >= 10


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=[pytest.mark.slow] * (n == "vcca_jax.cones.projection"))
        for n in EXAMPLES
    ],
)
def test_examples_in_docstrings(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    found = doctest.testmod(
        module, optionflags=doctest.NORMALIZE_WHITESPACE, extraglobs={"vcca": vcca_jax}
    )
    assert found.attempted > 0
    assert found.failed == 0


# What the pages are built with.


@functools.cache
def reference():
    sys.path.insert(0, str(DOCS))
    try:
        return importlib.import_module("reference")
    finally:
        sys.path.remove(str(DOCS))


def test_docstrings_become_what_they_mean():
    docstring = """A norm |u| and v* stay.

    | guarantee | holds |
    | --- | --- |
    | the sum | exactly |

The kinds:

    protect   <u, grad V> >= m
    forbid    the other side

Args:
    u: |u| <= 1, of ``x``s.
"""
    lines = reference().as_rst(inspect.cleandoc(docstring.replace("\n    |", "\n|")).split("\n"))
    text = "\n".join(lines)
    assert r"A norm \|u\| and v\* stay." in text
    assert ".. list-table::\n   :header-rows: 1\n\n   * - guarantee\n     - holds" in text
    assert "   * - the sum\n     - exactly" in text
    assert ".. code-block:: text\n\n    protect   <u, grad V> >= m\n    forbid" in text
    assert r"    u: \|u\| <= 1, of ``x``\ s." in text


@pytest.mark.parametrize("path", sorted(DOCS.glob("*.md")), ids=lambda path: path.name)
def test_formulas_can_be_drawn(path):
    text = re.sub(r"`[^`\n]*`", "", FENCE.sub("", path.read_text(encoding="utf-8")))
    for formula in re.findall(r"\$\$(.+?)\$\$", text, re.DOTALL):
        assert tex2mathml(formula.strip(), as_block=True).startswith("<math")
    for formula in re.findall(r"(?<!\$)\$([^$\n]+)\$(?!\$)", text):
        assert tex2mathml(formula).startswith("<math")


@pytest.mark.slow
def test_the_pages_are_built_without_a_warning_and_load_nothing(tmp_path):
    command = [sys.executable, "-m", "sphinx", "-W", "-n", "-q", "-E", "-d", tmp_path / "trees"]
    subprocess.run([*command, DOCS, tmp_path / "pages"], check=True)
    loads = re.compile(r"<(?:script|link|img|iframe)\b[^>]*?(?:src|href)=\"(?:https?:)?//[^\"]*\"")
    for page in (tmp_path / "pages").rglob("*.html"):
        assert loads.findall(page.read_text(encoding="utf-8")) == [], page
    for sheet in (tmp_path / "pages").rglob("*.css"):
        assert not re.search(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//", sheet.read_text()), sheet


# Citation.


def test_the_citation_file_is_complete():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= set(cited)
    assert (cited["cff-version"], cited["license"]) == ("1.2.0", "Apache-2.0")
    assert cited["version"] == vcca_jax.__version__
    assert all("name" in author for author in cited["authors"])
    for each in cited["references"]:
        assert {"type", "title", "authors"} <= set(each)
        assert all(each["authors"])
        assert all({"type", "value"} <= set(named) for named in each["identifiers"])
