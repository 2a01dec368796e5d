"""The page of all benchmarks: what is stored is told, what got worse is found, slopes are right."""

import json
import subprocess

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.benchmarks import growth, headlines, page, plots, timing

STORED = page.HERE / "results"


def screening(ratio: float, growing: float = 1.0) -> dict:
    """What the benchmark of screening keeps, with a made-up headline; less is better."""
    record = {"agents": 8, "candidate": "screened, credited", "ratio": ratio, "milliseconds": 1.0}
    return {"machine": {}, "growth": growing, "results": [record]}


def conic(ratio: float) -> dict:
    """That of cone programs; more is better."""
    record = {"kind": "ball", "ratio_to_ours": {"clarabel loop": ratio}}
    return {"machine": {}, "results": [record]}


def written(folder, **contents):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


DRAW = page.draw_figures


@pytest.fixture(autouse=True)
def undrawn(monkeypatch):
    """Figures take their time and have tests of their own."""
    monkeypatch.setattr(page, "draw_figures", lambda contents, folder: {})


def pages(folder, *arguments):
    """The exit code and the page of a folder of results."""
    out, figures = folder / "page.md", folder / "figures"
    flags = ["--results", folder, "--out", out, "--figures", figures, *arguments]
    return page.main([str(each) for each in flags]), out.read_text()


def test_every_stored_headline_is_on_the_page(tmp_path):
    out = tmp_path / "page.md"
    assert page.main(["--results", str(STORED), "--out", str(out)]) == 0
    text, contents = out.read_text(), page.read(STORED)
    for headline in headlines.HEADLINES:
        found = headlines.values(headline.benchmark, contents.get(headline.benchmark, {}))
        assert (f"| {headline.name} |" in text) == (headline.name in found)
    assert len({(h.benchmark, h.name) for h in headlines.HEADLINES}) == len(headlines.HEADLINES)
    # A file that is renamed inside would lose its numbers without a word.
    told = {name for name, content in contents.items() if headlines.values(name, content)}
    assert told == set(contents) & {h.benchmark for h in headlines.HEADLINES}
    assert contents["traversal"]["machine"]["jax"] in text


@pytest.mark.slow
def test_figures_are_drawn_for_what_is_stored(tmp_path):
    contents = page.read(STORED)
    drawn = DRAW(contents, tmp_path)
    first = {path.name: path.read_bytes() for path in tmp_path.glob("*.png")}
    assert set(first) == {f"{name}.png" for name in drawn}
    assert {"forms", "projection", "credit", "ledger", "scale"} <= set(drawn)
    DRAW(contents, tmp_path)
    assert first == {path.name: path.read_bytes() for path in tmp_path.glob("*.png")}


def test_a_figure_has_its_lines_and_their_exponents():
    lines = growth.LINES[0]
    sizes = (1, 10, 100, 1000)
    found = {
        "flat": [(size, 2.0) for size in sizes],
        "square": [(size, float(size**2)) for size in sizes],
        "of three": [(size, float(size)) for size in sizes[:3]],
        "up and down": list(zip(sizes, (1.0, 30.0, 2.0, 40.0), strict=True)),
    }
    figure = plots.draw(lines, found)
    texts = [each.get_text() for each in figure.axes[0].texts]
    assert texts == ["flat  (0.00)", "square  (+2.00)", "of three", "up and down"]


def test_sizes_of_different_shapes_are_not_joined():
    stacks = next(lines for lines in growth.LINES if lines.shapes)
    points = [(float(size), float(size)) for size in (1, 2, 4, 8)]
    shapes = {size: f"{size:g} × 1" for size, _ in points}
    ax = plots.draw(stacks, {"ours": points}, shapes).axes[0]
    assert [each.get_text() for each in ax.texts] == ["ours"]
    assert [line.get_linestyle() for line in ax.lines] == ["None"]
    assert [each.get_text() for each in ax.get_xticklabels()] == list(shapes.values())


@pytest.mark.parametrize("times", [1.12, 1.08])
@pytest.mark.parametrize("better", ["lower", "higher"])
def test_an_eighth_worse_is_told_and_a_twelfth_is_not(tmp_path, capsys, times, better):
    before, now = (screening(2.0), screening(2.0 * times)) if better == "lower" else (
        conic(3.0 * times), conic(3.0))  # fmt: skip
    name = "screening" if better == "lower" else "conic"
    old = written(tmp_path / "old", **{name: before})
    new = written(tmp_path / "new", **{name: now})
    code, text = pages(new, "--against", old)
    shown = "12 % worse" in text
    assert shown == (times == 1.12)
    assert shown == ("12 % worse" in capsys.readouterr().err)
    assert ("Nothing by more than 10 %." in text) == (times == 1.08)
    assert code == 0
    assert pages(new, "--against", old, "--strict")[0] == int(times == 1.12)


def test_getting_better_is_no_regression():
    assert not headlines.regressions("screening", {"its growth over agents": 2.0},
                                     {"its growth over agents": 1.0})  # fmt: skip


def test_a_benchmark_tells_what_got_worse_when_it_writes(tmp_path, capsys):
    path = tmp_path / "screening.json"
    for ratio in (2.0, 2.3):
        timing._before.cache_clear()  # another process each time
        timing.keep(path, **{k: v for k, v in screening(ratio).items() if k != "machine"})
    assert "15 % worse" in capsys.readouterr().err
    # What was kept in between by the same run, part by part, is not what it is compared with.
    timing.keep(path, **{k: v for k, v in screening(2.1).items() if k != "machine"})
    assert capsys.readouterr().err == ""
    assert json.loads(path.read_text())["before"]["its growth over agents"] == 1.0
    assert "Nothing by more than" in pages(tmp_path)[1]
    timing._before.cache_clear()
    timing.keep(path, **{k: v for k, v in screening(3.0).items() if k != "machine"})
    assert "43 % worse" in pages(tmp_path)[1]


def test_files_of_other_benchmarks_are_passed_over(tmp_path):
    folder = written(tmp_path, screening=screening(2.0), refreshed={"results": [1]}, listed=[1, 2])
    (folder / "broken.json").write_text("{")
    code, text = pages(folder)
    assert code == 0
    assert "`refreshed.json`" in text
    assert "screened and credited step" in text


def test_a_revision_can_be_compared_with(tmp_path):
    folder = written(tmp_path / "kept", screening=screening(2.0))
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "kept"]):
        subprocess.run([*git, *words], check=True)
    written(folder, screening=screening(2.5))
    assert "25 % worse" in pages(folder, "--against", "HEAD")[1]


def test_neither_a_folder_nor_a_revision_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        pages(written(tmp_path, screening=screening(2.0)), "--against", "no such thing")
    assert "neither a folder nor a revision" in capsys.readouterr().err


@given(st.floats(-3, 3), st.floats(0.01, 100), st.lists(st.integers(1, 10**6), min_size=2,
                                                        unique=True, max_size=6))  # fmt: skip
def test_a_power_law_has_its_exponent(power, scale, sizes):
    points = [(float(size), scale * float(size) ** power) for size in sizes]
    assert growth.exponent(points) == pytest.approx(power, abs=1e-6)


def test_scans_are_counted_as_often_as_they_run():
    jax = pytest.importorskip("jax")
    from experiments.benchmarks.roofline import account

    square = np.ones((8, 8), np.float32)

    def repeated(x):
        return jax.lax.scan(lambda carry, _: (carry @ square, None), x, None, length=5)[0]

    _, told = account(repeated, square)
    assert told["operations"] >= 5 * 2 * 8**3
    assert told["operations"] < 6 * 2 * 8**3
    assert told["counted_by_the_compiler"]["operations"] < 2 * 2 * 8**3
