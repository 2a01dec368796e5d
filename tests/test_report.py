"""A run's page: all of it is there, nothing is fetched, nothing a user named is markup."""

import itertools
import os
import re
import shutil
from collections import Counter
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path

import pytest

from tests.report_examples import EPOCHS, FIGURES, made_run
from vcca_jax.ledger import Ledger, LedgerError
from vcca_jax.pages import anchors, number_columns
from vcca_jax.runs import RunError, report
from vcca_jax.runs.report import report_page, write_report
from vcca_jax.statements import money

HOSTILE = '<script>document.title="taken"</script>'
AGENTS = ("ana", "Ana!", HOSTILE, '"><img src=x onerror=alert(1)>', "{{ 7 * 7 }}", r"$\frac{Łódź$")
VALUES = ("women", "<b>sex</b> told' onclick='x", "a value with a name that is rather long")
EMPTY = {"wbr", "meta", "link", "img", "br", "hr", "input"}
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


class Reader(HTMLParser):
    """The elements of a page; ends where a tag is not closed in its place."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.amounts: list[tuple[str, int, str]] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        assert len(dict(attributes)) == len(attributes), f"an attribute of {tag} repeats"
        self.elements.append((tag, dict(attributes)))
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)
        if self.open and self.open[-1] == "data":
            told = self.elements[-1][1]
            self.amounts.append((told["class"], int(told["value"]), data))

    def all(self, name: str) -> list[str]:
        """Every value of an attribute."""
        return [told[name] for _, told in self.elements if told.get(name) is not None]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return made_run(tmp_path_factory.mktemp("runs") / "<i>demo", AGENTS, VALUES)


@pytest.fixture(scope="module")
def page(run) -> str:
    return report_page(run)


@pytest.fixture(scope="module")
def read(page) -> Reader:
    return Reader(page)


def test_it_is_well_formed_and_its_ids_are_its_own(read):
    assert max(Counter(read.all("id")).values()) == 1
    links = [link for link in read.all("href") if link.startswith("#")]
    assert {link[1:] for link in links} <= set(read.all("id"))
    statements = [link for link in links if link.startswith("#statement-")]
    assert len(set(statements)) == len(AGENTS)
    assert dict(read.elements)["html"] == {"lang": "en"}
    assert dict(read.elements)["h1"] == {}
    levels = [int(tag[1]) for tag, _ in read.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def test_it_needs_nothing_beside_it(page, read):
    assert all(link.startswith(("#", "data:")) for link in read.all("href"))
    sources = read.all("src")
    assert len(sources) == len(FIGURES) + len(AGENTS)
    assert all(source.startswith("data:image/png;base64,iVBOR") for source in sources)
    tags = {tag for tag, _ in read.elements}
    assert not tags & {"script", "iframe", "object", "embed", "base", "form"}
    assert "http-equiv" in page
    assert not re.search(r"https?://|@import|url\(", page)
    for tag, told in read.elements:
        assert not any(name.startswith("on") for name in told)
        if tag == "img":
            assert len(told["alt"]) > 40
        if tag in {"div", "pre"} and "tabindex" in told:
            assert told["aria-label"]


def test_names_are_words_and_never_markup(page, read):
    assert not any(tag in {"script", "b", "i"} for tag, _ in read.elements)
    assert HOSTILE not in page
    shown = " ".join(read.words)
    for name in (*AGENTS, *VALUES, "Report of the run <i>demo"):
        assert name in shown


def test_its_money_is_the_ledgers(run, page, read):
    with Ledger.open(run / "ledger.sqlite", create=False, read_only=True) as ledger:
        balances, accounts, head = ledger.balances(), ledger.accounts(), ledger.head()
    assert all(text == money(units) for _, units, text in read.amounts)
    told = [units for what, units, _ in read.amounts if what == "balance"]
    assert told == [balances[agent] for agent in AGENTS]
    assert [u for what, u, _ in read.amounts if what == "account"] == [
        accounts[name] for name in sorted(accounts)
    ]
    shown = " ".join(read.words)
    assert f'<code id="head">{head}</code>' in page
    assert f"{EPOCHS + 1} entries, {EPOCHS} settlements" in shown
    for agent in AGENTS:
        assert f"{agent} was paid {money(balances[agent], 'EUR')} in all" in shown


def test_test_rows_stand_beside_those_that_credit_is_measured_on(page, read):
    shown = " ".join(" ".join(read.words).split())
    assert "Of 1 protected groups' losses on the test rows, 1 ended no lower" in shown
    assert re.search(r"women protect, 6 principals test 0\.5000 0\.5000 ", shown)
    assert "but on which credit is measured" in shown
    assert "fresh" not in shown
    assert shown.count("over all seeds") >= 3


def test_every_setting_is_told_with_its_default(read):
    shown = " ".join(" ".join(read.words).split())
    for told in ("screening.policy drop", "settlement.decimals 2", "model.hidden 16, 8"):
        assert told in shown
    assert "settlement.rule high_ water_ mark" in shown  # may break after an underscore


def test_it_is_the_same_twice_and_written_whole(run, page, tmp_path, monkeypatch):
    target = tmp_path / "new" / "report.html"
    write_report(run, target)
    assert target.read_text(encoding="utf-8") == page
    with monkeypatch.context() as patch:

        def lost(*_):
            raise OSError("the disk is gone")

        patch.setattr(report, "report_page", lambda *_, **__: "half of a page")
        patch.setattr(os, "replace", lost)
        with pytest.raises(OSError, match="gone"):
            write_report(run, target)
    assert target.read_text(encoding="utf-8") == page
    assert [path.name for path in target.parent.iterdir()] == ["report.html"]
    with pytest.raises(ValueError, match=r"must end in '\.html'"):
        write_report(run, tmp_path / "report.pdf")


def test_no_page_is_made_of_a_damaged_or_unfinished_run(run, tmp_path):
    damaged = tmp_path / "damaged"
    shutil.copytree(run, damaged)
    with Ledger.open(tmp_path / "other.sqlite", config="another") as other:
        other.settle(1, {"ana": 1.0}, 5)
    shutil.copy(tmp_path / "other.sqlite", damaged / "ledger.sqlite")
    with pytest.raises(LedgerError, match="belongs to other terms"):
        write_report(damaged, tmp_path / "a.html")
    (damaged / "results.json").unlink()
    with pytest.raises(RunError, match="has not finished"):
        write_report(damaged, tmp_path / "a.html")
    assert not (tmp_path / "a.html").exists()


def test_a_figure_that_is_not_there_is_left_out(tmp_path):
    bare = made_run(tmp_path / "bare", ["ana"], ["women"])
    shutil.rmtree(bare / "figures")
    read = Reader(report_page(bare))
    assert len(read.all("src")) == 1
    assert "#figures" not in read.all("href")


def test_anchors_differ_and_stay_the_same():
    names = ["a", "A", "a-2", "a 2", "é", "!"]
    ids = anchors("x", names)
    assert list(ids.values()) == ["x-a", "x-a-2", "x-a-2-2", "x-a-2-3", "x-unnamed", "x-unnamed-2"]
    assert anchors("x", names) == ids


def test_columns_of_amounts_are_known():
    rows = [
        ("1", "1,234.50", "0.5 ± 0.1", "12.3 %", "+2e-07", "7", ""),
        ("2", "-3", "0.25", "50.0%", "+1.5", "none", ""),
    ]
    assert number_columns(rows) == {1, 2, 3, 4, 6}
    assert number_columns([]) == set()


def test_the_templates_are_part_of_the_package():
    found = {path.name for path in resources.files("vcca_jax").joinpath("templates").iterdir()}
    assert {"report.html", "statement.html", "parts.html", "style.css"} <= found


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280])
def test_in_a_browser(run, page, tmp_path, width):
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("there is no chromium, chromium-browser or google-chrome on the PATH")
    target = tmp_path / "report.html"
    target.write_text(page, encoding="utf-8")
    with Ledger.open(run / "ledger.sqlite", create=False, read_only=True) as ledger:
        balances, head = ledger.balances(), ledger.head()
    requests, said = [], []
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=[
                "--no-sandbox",
                "--disable-gpu",
                "--disable-quic",
                "--no-first-run",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
            ],
        )
        try:
            shown = browser.new_page(
                viewport={"width": width, "height": 844}, reduced_motion="reduce"
            )
            shown.on("request", lambda request: requests.append(request.url))
            shown.on("console", lambda message: said.append(message.text))
            shown.on("pageerror", lambda error: said.append(str(error)))
            shown.on("dialog", lambda dialog: said.append(dialog.message))
            shown.goto(target.as_uri())
            shown.keyboard.press("Tab")
            assert shown.evaluate("document.activeElement.className") == "skip"
            for scheme in ("light", "dark"):
                shown.emulate_media(color_scheme=scheme)
                wide = shown.evaluate("document.documentElement.scrollWidth")
                assert wide <= width
            assert shown.evaluate(
                "[...document.images].every(image => image.complete && image.naturalWidth > 0)"
            )
            assert len(shown.query_selector_all("img")) == len(FIGURES) + len(AGENTS)
            assert shown.title() == "Report of the run <i>demo"
            told = shown.eval_on_selector_all(
                "data.balance",
                "all => all.map(e => [e.closest('tr').cells[0].innerText, +e.value, e.innerText])",
            )
            assert {name: units for name, units, _ in told} == balances
            assert all(text == money(units) for _, units, text in told)
            assert shown.inner_text("#head") == head
            links = shown.query_selector_all('nav a[href^="#statement-"]')
            assert len(links) == len(AGENTS)
            for link in links:
                name = link.inner_text()
                link.focus()
                shown.keyboard.press("Enter")
                heading = shown.query_selector(f"details:has({link.get_attribute('href')}) h3")
                assert heading.inner_text() == f"Statement of {name}"
                assert shown.query_selector(link.get_attribute("href")).is_visible()
                shown.evaluate("new Promise(next => requestAnimationFrame(next))")
                assert 0 <= heading.bounding_box()["y"] < 844
            shown.reload()  # at the last statement, which is open; the others are folded
            for medium, unfolded in (("screen", 1), ("print", len(AGENTS))):
                shown.emulate_media(media=medium)
                seen = shown.eval_on_selector_all(
                    ".statement > div", "all => all.map(each => each.checkVisibility())"
                )
                assert sum(seen) == unfolded
        finally:
            browser.close()
    assert said == []
    assert {url for url in requests if not url.startswith("data:")} <= {
        target.as_uri(),
        *(f"{target.as_uri()}{link}" for link in Reader(page).all("href")),
    }
