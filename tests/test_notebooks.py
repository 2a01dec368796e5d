"""Notebooks: text and executed file say the same, all of them run, and results can be read."""

import importlib
import json
import re
import shutil

import nbformat
import numpy as np
import pandas
import pytest
from matplotlib.figure import Figure
from nbclient.exceptions import CellExecutionError

from experiments import notebooks, stored
from experiments.figures import HERE, redraw
from experiments.figures import main as draw
from experiments.figures import names as experiments_drawn

NAMES = notebooks.names()
MOST = 700_000


def held(name):
    return nbformat.read(notebooks.FOLDER / f"{name}.ipynb", as_version=4)


def outputs(notebook):
    return [(cell, output) for cell in notebook.cells for output in cell.get("outputs", [])]


@pytest.mark.parametrize("name", NAMES)
def test_text_and_executed_notebook_are_paired(name):
    text = notebooks.read_text(notebooks.FOLDER / f"{name}.py")
    pairs = [
        [(cell.cell_type, cell.source, cell.id) for cell in n.cells] for n in (text, held(name))
    ]
    assert pairs[0] == pairs[1], f"run: python -m experiments.notebooks {name}"
    assert text.metadata.jupytext.formats == held(name).metadata.jupytext.formats


@pytest.mark.parametrize("name", NAMES)
def test_executed_notebook_is_whole_and_clean(name):
    notebook = held(name)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    kinds = [(output.output_type, output.get("name")) for _, output in outputs(notebook)]
    assert ("error", None) not in kinds
    assert ("stream", "stderr") not in kinds, "a warning stands in the output"
    assert len(kinds) > len(code) / 3
    path = notebooks.FOLDER / f"{name}.ipynb"
    assert path.stat().st_size < MOST
    assert str(notebooks.ROOT) not in path.read_text(encoding="utf-8")
    assert notebook == notebooks.stripped(held(name))


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_opens_with_its_claim_and_ends_with_its_limits(name):
    notebook = held(name)
    first, last = notebook.cells[0], notebook.cells[-1]
    assert first.cell_type == last.cell_type == "markdown"
    assert first.source.startswith("# ")
    assert len(first.source.splitlines()) <= 40
    if name != "09_extend_it":
        assert "Claim" in first.source
    assert "## Limits" in "\n".join(c.source for c in notebook.cells if c.cell_type == "markdown")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_notebook_runs_at_smoke_size(name):
    notebook = notebooks.executed(notebooks.FOLDER / f"{name}.py", smoke=True)
    kinds = {output.output_type for _, output in outputs(notebook)}
    assert "error" not in kinds
    assert kinds & {"display_data", "execute_result"}


def written(folder, *cells):
    """A percent script of code cells."""
    path = folder / "01_made.py"
    path.write_text("\n\n".join(f"# %%\n{cell}" for cell in cells) + "\n", encoding="utf-8")
    return path


def test_cells_run_in_the_root_at_the_asked_size_and_leave_no_trace_of_the_run(tmp_path):
    path = written(
        tmp_path,
        "import os\nfrom pathlib import Path\nimport experiments",
        "print(Path.cwd(), os.environ['VCCA_SMOKE'], experiments.__name__)",
        "1 + 1",
        "1 + 1",
    )
    notebook = notebooks.executed(path, smoke=True)
    (_, told), (_, value), (_, again) = outputs(notebook)
    assert told["text"] == f"{notebooks.ROOT} 1 experiments\n"
    assert value["data"]["text/plain"] == again["data"]["text/plain"] == "2"
    assert [cell.execution_count for cell in notebook.cells] == [1, 2, 3, 4]
    assert not any(cell.metadata for cell in notebook.cells)
    assert set(notebook.metadata) == {"jupytext", "kernelspec", "language_info"}
    names = [cell.id for cell in notebook.cells]
    assert len(set(names)) == len(names)
    assert names == [cell.id for cell in notebooks.read_text(path).cells]


def test_prose_is_taken_over_and_changed_code_is_refused(tmp_path):
    path = written(tmp_path, "1 + 1", "2 + 2")
    held = notebooks.read_text(path)
    for k, cell in enumerate(held.cells, start=1):
        cell["execution_count"] = k
        cell["outputs"] = [nbformat.v4.new_output("stream", text=str(k))]
    code = path.read_text(encoding="utf-8")
    path.write_text("# %% [markdown]\n# Two sums.\n\n" + code, encoding="utf-8")
    found = notebooks.reworded(path, held)
    assert [cell.cell_type for cell in found.cells] == ["markdown", "code", "code"]
    assert [output["text"] for _, output in outputs(found)] == ["1", "2"]
    path.write_text(code.replace("2 + 2", "2 + 3"), encoding="utf-8")
    with pytest.raises(ValueError, match=r"01_made.py has changed"):
        notebooks.reworded(path, held)


@pytest.mark.slow
def test_a_cell_that_fails_fails_the_notebook(tmp_path):
    with pytest.raises(CellExecutionError, match="no such thing"):
        notebooks.executed(written(tmp_path, "raise ValueError('no such thing')"))


@pytest.mark.parametrize("words", [["nothing"], ["--smoke", "--out", str(notebooks.FOLDER)]])
def test_what_is_unknown_or_would_replace_full_size_is_refused(words, capsys):
    with pytest.raises(SystemExit, match="2"):
        notebooks.main(words)
    assert "no notebook nothing" in (told := capsys.readouterr().err) or "--smoke must not" in told


@pytest.mark.parametrize(("experiment", "name"), list(stored.files()))
def test_every_file_of_results_can_be_read(experiment, name):
    found, records = stored.table(experiment, name), stored.records(experiment, name)
    assert len(found) == len(records) > 0
    assert set(found.columns) == {key for record in records for key in record}


def test_every_format_gives_the_same_table(tmp_path, monkeypatch):
    rows = [{"method": "a", "score": 0.5, "seed": 1}, {"method": "b", "score": 1.5, "seed": 2}]
    folder = tmp_path / "made" / "results"
    folder.mkdir(parents=True)
    monkeypatch.setattr(stored, "HERE", tmp_path)
    frame = pandas.DataFrame(rows)
    frame.to_csv(folder / "third.csv", index=False)
    frame.to_parquet(folder / "first.parquet")
    (folder / "second.json").write_text(json.dumps(rows), encoding="utf-8")
    (folder / "whole.json").write_text(json.dumps({"machine": "m", "rows": rows}))
    for name in ("first", "second", "third"):
        pandas.testing.assert_frame_equal(stored.table("made", name), frame, check_dtype=False)
    assert stored.records("made", "first") == stored.records("made", "second") == rows
    assert stored.records("made", "third")[0]["score"] == "0.5"
    assert stored.records("made", "whole", "rows") == rows
    assert stored.table("made", "whole").shape == (1, 2)
    assert stored.document("made", "whole")["machine"] == "m"
    with pytest.raises(ValueError, match=r"no results 'fourth'.*first.*whole"):
        stored.table("made", "fourth")


def test_tables_are_shown_by_their_titles():
    for experiment in experiments_drawn():
        titles = stored.titles(experiment)
        assert titles
        shown = stored.tables(experiment, titles[-1]).data
        assert shown.startswith(f"**{titles[-1]}**")
        assert "| ---" in shown
    with pytest.raises(ValueError, match="no table 'nothing'"):
        stored.tables("values", "nothing")


@pytest.mark.parametrize(("smoke", "size"), [(False, 30), (True, 3)])
def test_smoke_chooses_the_smaller_size(smoke, size, monkeypatch):
    monkeypatch.setattr(stored, "SMOKE", smoke)
    assert stored.sized(30, 3) == size


def test_a_figure_is_shown_with_the_same_bytes_and_its_title():
    figure = Figure(figsize=(3, 2))
    figure.subplots().plot(np.arange(5.0), label="line")
    figure.suptitle("What is\nseen")
    first, second = stored.show(figure), stored.show(figure)
    assert first.data == second.data
    assert first.data.startswith(b"\x89PNG")
    assert first.alt == "What is seen"
    assert len(stored.show(figure, dpi=40).data) < len(first.data)


QUICK = ("economy", "fidelity", "values")


@pytest.mark.parametrize(
    "name",
    [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in experiments_drawn()],
)
def test_tables_are_those_of_the_stored_results(name, tmp_path, monkeypatch):
    module = importlib.import_module(f"experiments.{name}.figures")
    monkeypatch.setattr(module, "draw_figures", lambda results, folder: None)
    shutil.copytree(HERE / name / "results", tmp_path / "results")
    (tmp_path / "results" / "tables.md").unlink()
    page = (HERE / name / "README.md").read_text(encoding="utf-8")
    emptied = re.sub(r"(<!-- table: .*? -->\n).*?(<!-- end -->)", r"\1\2", page, flags=re.DOTALL)
    (tmp_path / "README.md").write_text(emptied, encoding="utf-8")
    redraw(name, tmp_path)
    for told in ("README.md", "results/tables.md"):
        texts = [(f / told).read_text(encoding="utf-8") for f in (HERE / name, tmp_path)]
        assert texts[0] == texts[1], f"run: python -m experiments.figures {name}"


@pytest.mark.slow
@pytest.mark.parametrize("name", experiments_drawn())
def test_figures_are_drawn_from_stored_results_alone(name, tmp_path):
    draw([name, "--out", str(tmp_path)])
    kept, made = (sorted((folder / name / "figures").iterdir()) for folder in (HERE, tmp_path))
    assert [path.name for path in kept] == [path.name for path in made]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in made)


def test_an_unknown_experiment_is_refused():
    with pytest.raises(SystemExit, match="2"):
        draw(["nothing"])
