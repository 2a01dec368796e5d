"""The commands of a ledger, on a run and on a bare file, mistakes first."""

import json
import re
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.run_examples import smoke
from vcca_jax.cli import commands as cli
from vcca_jax.ledger import Ledger
from vcca_jax.runs import read_results, run
from vcca_jax.share_rules import ShareRule

runner = CliRunner()


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    run(smoke(epochs=2, seeds=1, batch_size=256), folder / "demo")
    return folder


def ledger(*arguments):
    return runner.invoke(cli.app, ["ledger", *map(str, arguments)], env={"COLUMNS": "80"})


def done(*arguments) -> str:
    result = ledger(*arguments)
    assert result.exit_code == 0, result.output
    return result.output


def refused(code, *arguments) -> str:
    result = ledger(*arguments)
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return re.sub(r"\s+", " ", result.stderr)


def test_verify_of_a_run_and_of_its_file(runs):
    head = read_results(runs / "demo")["ledger_head"]
    for place in (("demo", "--runs", runs), (runs / "demo" / "ledger.sqlite",)):
        assert "sound: 3 entries, 2 settlements" in done("verify", *place)
        assert head in done("verify", *place, "--head", head)
        assert "not in the chain" in refused(1, "verify", *place, "--head", 64 * "0")
        for wrong in (head[:16], "nothex", 63 * "0" + "g"):
            assert "all of its 64 hexadecimal digits" in refused(
                2, "verify", *place, "--head", wrong
            )


def test_verify_says_what_it_could_not_see(runs):
    head, bare = read_results(runs / "demo")["ledger_head"], runs / "demo" / "ledger.sqlite"
    said = "no head was given: a cut at the end would not be seen"
    assert said in done("verify", bare)
    assert said in told("verify", bare)["note"]
    assert said not in done("verify", bare, "--head", head.upper())
    assert said not in done("verify", "demo", "--runs", runs)  # its heads are kept elsewhere
    assert "note" not in told("verify", "demo", "--runs", runs)


def test_replay_settles_again_from_the_records(runs):
    words = done("replay", "demo", "--runs", runs)
    assert "3 entries derived again, byte for byte" in words
    assert "3 entries settled again from the run's records: the same hashes" in words
    assert len(re.findall(r"^ +\d+  settle ", words, re.M)) == 2
    assert (
        len(
            re.findall(
                r"^ +\d+  settle ", done("replay", "demo", "--runs", runs, "--last", 1), re.M
            )
        )
        == 1
    )
    alone = done("replay", runs / "demo" / "ledger.sqlite", "--last", 0)
    assert alone == "3 entries derived again, byte for byte\n"


def changed_record(folder: Path, name: str, change) -> None:
    path = folder / f"{name}.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    records = [kept for record in records if (kept := change(record)) is not None]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def test_replay_finds_records_that_do_not_give_the_payments(runs, tmp_path):
    shutil.copytree(runs / "demo", tmp_path / "demo")

    def raised(record):
        wanted = record["agent"] == "cleveland" and record["epoch"] == 2
        return {**record, "credit": record["credit"] + 1e-9} if wanted else record

    changed_record(tmp_path / "demo", "agents", raised)
    words = refused(1, "replay", "demo", "--runs", tmp_path)
    assert "entry 2 of" in words
    assert "restore the records or the ledger" in words


def test_replay_tells_a_ledger_that_was_cut_short_or_corrected(runs, tmp_path):
    shutil.copytree(runs / "demo", tmp_path / "demo")
    place = tmp_path / "demo" / "ledger.sqlite"
    with Ledger.open(place) as opened:
        opened.reverse(2, "a correction")
    assert "the same hashes; 1 later ones are not of the run" in done(
        "replay", "demo", "--runs", tmp_path
    )
    changed_record(tmp_path / "demo", "game", lambda r: r if r["epoch"] < 2 else None)
    assert "2 later ones" in done("replay", "demo", "--runs", tmp_path)
    # Now a ledger with a settlement fewer than the records.
    shutil.copy(runs / "demo" / "game.jsonl", tmp_path / "demo" / "game.jsonl")
    first = next(e for e in _entries(runs / "demo" / "ledger.sqlite") if e.kind == "settle")
    with Ledger.open(place) as opened:
        terms = opened.terms
    place.unlink()
    with Ledger.open(
        place, run=terms.run, config=terms.config, principals=terms.principals
    ) as shorter:
        said, one = first.content, 2**40
        shorter.settle(
            said["period"],
            {name: int(text) / one for name, text in said["credits"].items()},
            int(said["revenue"]),
            gain=int(said["gain"]) / one,
            carry_over=int(said["carry_over"]) / one,
            evidence=said["evidence"],
        )
    words = refused(1, "replay", "demo", "--runs", tmp_path)
    assert "ends with entry 1 where the run's records settle on to entry 2" in words


def _entries(path):
    with Ledger.open(path, read_only=True) as opened:
        return list(opened.entries())


def test_a_statement_in_words_and_files(runs, tmp_path):
    row = next(r for r in read_results(runs / "demo")["agents"] if r["agent"] == "va long beach")
    words = done("statement", "va long beach", "demo", "--runs", runs)
    paid = f"{row['payout'] // 100:,}.{row['payout'] % 100:02d} EUR in all"
    assert f"va long beach was paid {paid}" in words
    assert "had a sample in" in words
    assert f"vcca-jax ledger verify demo --runs {runs} --head" in words
    for suffix in ("txt", "html", "png"):
        target = tmp_path / f"statement.{suffix}"
        assert done("statement", "va long beach", "demo", "--runs", runs, "--out", target) == words
        assert target.stat().st_size > 500
    assert (tmp_path / "statement.txt").read_text() == words
    assert "data:image/png;base64," in (tmp_path / "statement.html").read_text()
    bare = done("statement", "va long beach", runs / "demo" / "ledger.sqlite")
    assert f"was paid {paid}" in bare
    assert "no records of a run" in bare


def test_exports_go_to_the_terminal_or_a_file(runs, tmp_path):
    text = done("export", "demo", "--runs", runs)
    assert text.startswith("seq,kind,stream,period,account,amount,currency,hash\n")
    said = done("export", "demo", "--runs", runs, "--out", tmp_path / "x.csv")
    assert said == f"{len(text.splitlines()) - 1} postings are in {tmp_path / 'x.csv'}\n"
    assert (tmp_path / "x.csv").read_text() == text
    done("export", "demo", "--runs", runs, "--out", tmp_path / "x.beancount")
    beans = done("export", "demo", "--runs", runs, "--format", "beancount")
    assert (tmp_path / "x.beancount").read_text() == beans
    loader = pytest.importorskip("beancount.loader", reason="beancount is not installed")
    assert loader.load_string(beans)[1] == []
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    done("export", "demo", "--runs", runs, "--out", tmp_path / "x.parquet")
    assert parquet.read_table(tmp_path / "x.parquet").num_rows == len(text.splitlines()) - 1


def test_nothing_is_written_over_what_it_is_read_from(runs, tmp_path):
    shutil.copytree(runs / "demo", tmp_path / "demo")
    place = tmp_path / "demo" / "ledger.sqlite"
    (tmp_path / "same.csv").hardlink_to(place)
    before = {path: path.read_bytes() for path in (tmp_path / "demo").rglob("*") if path.is_file()}
    for where in (("demo", "--runs", tmp_path), (place,)):
        for target in (place, tmp_path / "same.csv"):
            for form in ("csv", "beancount", "parquet"):
                assert "is the ledger that is read" in refused(
                    2, "export", *where, "--out", target, "--format", form
                )
        for name in ("agents.jsonl", "config.json", "results.json"):
            assert "one of the run's own files" in refused(
                2, "export", *where, "--out", tmp_path / "demo" / name, "--format", "csv"
            )
        picture = next((tmp_path / "demo" / "figures").glob("*.png"))
        assert "one of the run's own files" in refused(
            2, "statement", "cleveland", *where, "--out", picture
        )
        done("export", *where, "--out", tmp_path / "demo" / "mine.csv")  # twice, over the first
    assert {path: path.read_bytes() for path in before} == before


def test_names_are_printed_as_they_are_and_a_rule_of_ones_own_is_explained(tmp_path):
    name = "team:rocket: [b]x[/b]"
    with Ledger.open(tmp_path / "named") as opened:
        opened.settle("the :rocket: month", {name: 1.0}, 100)
    assert f"Statement of {name}" in done("statement", name, tmp_path / "named")
    assert "the :rocket: month" in done("replay", tmp_path / "named")
    rule = ShareRule({"rule": "mine"}, lambda credits, standings: dict.fromkeys(credits, 1))
    Ledger.open(tmp_path / "mine", rule=rule).close()
    for command in (("verify",), ("replay",), ("statement", "ann"), ("export",)):
        words = refused(1, *command, tmp_path / "mine")
        assert "the command line knows the package's own rules only" in words


def told(*arguments) -> dict:
    content = json.loads(done(*arguments, "--json"))
    assert content.pop("ok") is True
    return content


def test_everything_is_told_as_json_too(runs, tmp_path):
    place = ("demo", "--runs", runs)
    results = read_results(runs / "demo")
    again = told("replay", *place, "--last", 2)
    assert (again["entries"], again["settled_again"]) == (3, 3)
    assert again["head"] == again["last"][-1]["hash"] == results["ledger_head"]
    assert [each["kind"] for each in again["last"]] == ["settle", "settle"]
    assert sum(each["to_principals"] + each["to_reserve"] for each in again["last"]) == sum(
        int(entry.content["revenue"])
        for entry in _entries(runs / "demo" / "ledger.sqlite")
        if entry.kind == "settle"
    )
    assert "settled_again" not in told("replay", runs / "demo" / "ledger.sqlite")

    row = next(each for each in results["agents"] if each["agent"] == "va long beach")
    own = told("statement", "va long beach", *place, "--out", tmp_path / "a.txt")
    assert own["paid"] == row["payout"] == sum(line["paid"] for line in own["lines"])
    assert own["principal"] == "va long beach"
    assert own["page"] == str(tmp_path / "a.txt")
    assert (tmp_path / "a.txt").read_text() == done("statement", "va long beach", *place)
    assert own["screened"]["1"]["steps"] > 0

    lines = done("export", *place).splitlines()
    moved = told("export", *place)["postings"]
    assert [",".join(map(str, each.values())) for each in moved] == lines[1:]
    assert list(moved[0]) == lines[0].split(",")
    written = told("export", *place, "--out", tmp_path / "b.csv")
    assert written == {
        "file": str(tmp_path / "b.csv"),
        "format": "csv",
        "postings": len(moved),
    }
    assert (tmp_path / "b.csv").read_text().splitlines() == lines
    for command in (("replay",), ("statement", "ann"), ("export",)):
        failed = ledger(*command, "nowhere", "--runs", runs, "--json")
        assert json.loads(failed.stdout)["exit_code"] == failed.exit_code == 2
    assert "a format already" in refused(2, "export", *place, "--format", "csv", "--json")


def test_mistakes_are_named_with_their_remedy(runs, tmp_path):
    assert "['demo']" in refused(2, "replay", "dome", "--runs", runs)
    assert "'paris' is unknown (registered: cleveland" in refused(
        2, "statement", "paris", "demo", "--runs", runs
    )
    for absent in (tmp_path / "none.sqlite", "none.sqlite"):
        assert f"there is no ledger at {absent}, and no run of that name" in refused(
            2, "verify", absent, "--runs", runs
        )
    assert "must end in .html, .png or .txt" in refused(
        2, "statement", "cleveland", "demo", "--runs", runs, "--out", tmp_path / "x.pdf"
    )
    assert "name the --format" in refused(
        2, "export", "demo", "--runs", runs, "--out", tmp_path / "x.xlsx"
    )
    assert "say where to write it" in refused(
        2, "export", "demo", "--runs", runs, "--format", "parquet"
    )
    foreign = tmp_path / "ledger"
    foreign.write_text("period,payout\n")
    for command in (("verify",), ("replay",), ("statement", "ann"), ("export",)):
        assert "is no ledger" in refused(1, *command, foreign)
    assert foreign.read_text() == "period,payout\n"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ledger"]


def test_a_stranger_among_a_runs_files_is_refused(runs, tmp_path):
    shutil.copytree(runs / "demo", tmp_path / "demo")
    (tmp_path / "demo" / "ledger.sqlite").unlink()
    with Ledger.open(tmp_path / "demo" / "ledger.sqlite", config="another") as other:
        other.settle(1, {"ann": 1.0}, 5)
    for command in (("verify",), ("replay",), ("statement", "ann"), ("export",)):
        assert "belongs to other terms" in refused(1, *command, "demo", "--runs", tmp_path)


def test_help_shows_an_example():
    for command in ("verify", "replay", "statement", "export"):
        assert f"vcca-jax ledger {command}" in done(command, "--help")
