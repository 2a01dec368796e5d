"""The ledger's file: whose it is, who may write it, and what a full disk does to it."""

import os
import sqlite3

import pytest

from tests.ledger_process import output, start
from vcca_jax.ledger import (
    CorruptLedgerError,
    ForeignLedgerError,
    Ledger,
    LedgerError,
    LedgerWriteError,
    LockedLedgerError,
    ReadOnlyLedgerError,
)
from vcca_jax.share_rules import ShareRule, per_period

names = ("ann", "bob", "cy")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.sqlite"


def opened(path, **terms):
    return Ledger.open(path, **{"run": "r1", "principals": names, **terms})


# What is not this run's ledger


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ({"run": "r2"}, "run is 'r1', not 'r2'"),
        ({"principals": ["ann"]}, "principals is"),
        ({"currency": "USD"}, "currency is 'EUR'"),
        ({"config": "abc"}, "config is None"),
        ({"scale_bits": 20}, "scale_bits is 40"),
        ({"rule": per_period()}, "rule is"),
        ({"rounding": "running_floor"}, "rounding is"),
        ({"release_lag": 2}, "release_lag is 0"),
    ],
)
def test_a_ledger_on_other_terms_is_refused(path, terms, message):
    opened(path).close()
    before = path.read_bytes()
    with pytest.raises(ForeignLedgerError, match=message):
        opened(path, **terms)
    assert path.read_bytes() == before


def test_a_ledger_by_a_rule_from_outside_opens_with_that_rule_only(path):
    rule = ShareRule({"rule": "equal"}, lambda credits, standings: dict.fromkeys(credits, 1))
    with opened(path, rule=rule) as ledger:
        assert ledger.settle(0, {"ann": 1.0, "bob": -1.0}, 10).payouts == {"ann": 5, "bob": 5}
    with pytest.raises(ForeignLedgerError, match="pass rule="):
        opened(path)
    with opened(path, rule=rule) as ledger:
        ledger.verify()


@pytest.mark.parametrize("content", [b"", b"x", b"period,payout\n" * 500])
def test_a_file_that_is_no_ledger_is_refused_and_left_alone(path, content):
    path.write_bytes(content)
    with pytest.raises(ForeignLedgerError, match="is no ledger"):
        opened(path)
    assert path.read_bytes() == content
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("mode", ["DELETE", "WAL"])
def test_another_programs_database_is_refused_and_left_alone(path, mode):
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA journal_mode={mode}")
    connection.execute("CREATE TABLE entries (seq INTEGER PRIMARY KEY, payload TEXT, hash BLOB)")
    connection.commit()
    connection.close()
    before = path.read_bytes()
    with pytest.raises(ForeignLedgerError, match="is no ledger"):
        opened(path)
    assert path.read_bytes() == before


def test_every_truncation_is_found(path):
    with opened(path) as ledger:
        for i in range(40):
            ledger.settle(i, {"ann": 0.1 * i, "bob": -0.2}, 100 + i)
    whole = path.read_bytes()
    for size in (*range(0, len(whole), 1500), *range(4096, len(whole), 4096), len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises((CorruptLedgerError, ForeignLedgerError)):
            opened(path)
        assert path.read_bytes() == whole[:size]
    path.write_bytes(whole)
    opened(path).close()


def test_a_cut_of_what_sqlite_leaves_unused_is_found(path):
    with Ledger.open(path) as ledger:
        for i in range(40):
            ledger.settle(i, {f"p{j}": 1.0 for j in range(100 + 7 * i)}, 100)
            whole = path.read_bytes()
            if whole.endswith(bytes(9)):
                break
    assert whole.endswith(bytes(9))
    path.write_bytes(whole[:-9])
    with pytest.raises(CorruptLedgerError, match="bytes long where"):
        Ledger.open(path)


def test_paths_that_cannot_hold_a_ledger_are_refused(tmp_path):
    with pytest.raises(LedgerError, match="there is no ledger"):
        Ledger.open(tmp_path / "none", create=False)
    with pytest.raises(LedgerError, match="there is no ledger"):
        Ledger.open(tmp_path / "none", read_only=True)
    with pytest.raises(LedgerError, match="does not exist; create it"):
        Ledger.open(tmp_path / "no" / "folder")
    with pytest.raises(LedgerError, match="no file"):
        Ledger.open(tmp_path)
    for terms, message in (
        ({"principals": ["a", "a"]}, "once"),
        ({"principals": "ab"}, "list of names"),
        ({"principals": ["a", ""]}, "principal is ''"),
        ({"currency": ""}, "currency"),
        ({"scale_bits": -1}, "scale_bits"),
        ({"rounding": "up"}, "rounding"),
        ({"release_lag": -1}, "release_lag"),
    ):
        with pytest.raises(LedgerError, match=message):
            Ledger.open(tmp_path / "bad", **terms)
    assert os.listdir(tmp_path) == []


# Two writers, disks


def test_two_sessions_see_each_others_settlements(path):
    with opened(path) as one, opened(path) as two:
        one.settle(0, {"ann": 1.0}, 10)
        assert two.settle(0, {"ann": 1.0}, 10).seq == 1
        two.settle(1, {"ann": 1.0}, 10)
        one.settle(2, {"ann": 1.0}, 10)
        assert one.balances() == two.balances() == {"ann": 30, "bob": 0, "cy": 0}
        assert one.head() == two.head()
        one.verify(two.head())


def test_a_locked_ledger_says_so_and_nothing_is_lost(path):
    with opened(path, timeout=0.05) as ledger:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(LockedLedgerError, match="another process"):
            ledger.settle(0, {"ann": 1.0}, 10)
        with opened(path, timeout=0.05) as reader:  # readers need not wait
            assert reader.balances()["ann"] == 0
        other.execute("ROLLBACK")
        other.execute("BEGIN")
        other.execute("SELECT * FROM entries").fetchone()
        with pytest.raises(LockedLedgerError):  # the commit itself is held up by a reader
            ledger.settle(0, {"ann": 1.0}, 10)
        other.close()
        assert ledger.balances()["ann"] == 0
        assert ledger.settle(0, {"ann": 1.0}, 10).payouts == {"ann": 10}
        ledger.verify()


def test_reading_beside_a_writer_says_what_is_the_matter(path):
    with opened(path, timeout=0.05) as ledger:
        ledger.settle(0, {"ann": 1.0}, 10)
        entries = ledger.entries()
        next(entries)
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(LockedLedgerError, match="another process"):
            next(entries)
        with pytest.raises(LockedLedgerError, match="another process"):
            ledger.statement("ann")
        other.close()
        entries = ledger.entries()
        next(entries)
    for ask in (lambda: next(entries), ledger.balances, lambda: next(ledger.entries())):
        with pytest.raises(LedgerError, match="is closed; open it again"):
            ask()


def test_a_commit_and_a_new_name_outlive_the_loss_of_power(path, monkeypatch):
    synced = []

    def fsync(descriptor, real=os.fsync):
        synced.append(os.fstat(descriptor).st_ino)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with opened(path) as ledger:
        assert path.parent.stat().st_ino in synced
        # EXTRA: the folder is written down after the journal is taken out of it.
        assert ledger._store._connection.execute("PRAGMA synchronous").fetchone() == (3,)


def test_many_processes_settle_at_once_and_nothing_is_lost(path):
    program = """
import sys
from vcca_jax.ledger import Ledger
with Ledger.open(sys.argv[1], timeout=60) as ledger:
    for i in range(10):
        ledger.settle(f"{sys.argv[2]}-{i}", {sys.argv[2]: 1.0}, 10)
"""
    for writer in [start(program, path, name) for name in names]:
        output(writer)
    with Ledger.open(path) as ledger:
        assert ledger.balances() == dict.fromkeys(ledger.principals, 100)
        assert ledger.verify().settlements == 30


def test_a_full_disk_leaves_the_ledger_whole(path):
    # The limit on file size stands for the disk's end; the first write beyond it fails.
    program = """
import resource, sys
from vcca_jax.ledger import Ledger, LedgerWriteError
with Ledger.open(sys.argv[1]) as ledger:
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, resource.RLIM_INFINITY))
    credits = {f"p{i}": 0.5 for i in range(100)}
    for i in range(20):
        try:
            ledger.settle(i, credits, 100)
        except LedgerWriteError as error:
            assert "disk is full" in str(error)
            assert sum(ledger.balances().values()) == 100 * i
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
            if sys.argv[2] == "stop":
                break
            ledger.settle(i, credits, 100)
    else:
        assert sys.argv[2] == "go on"
    print(i)
"""
    done = {}
    for mode in ("stop", "go on"):
        file = path.with_name(mode)
        done[mode] = int(output(start(program, file, mode)))
    assert 0 < done["stop"] < done["go on"] == 19
    credits = {f"p{i}": 0.5 for i in range(100)}
    with Ledger.open(path.with_name("stop")) as ledger:
        assert ledger.verify().settlements == done["stop"]
        for i in range(20):
            ledger.settle(i, credits, 100)
    assert path.with_name("stop").read_bytes() == path.with_name("go on").read_bytes()


def test_a_full_disk_when_creating_leaves_nothing_behind(path):
    program = """
import resource, sys
from vcca_jax.ledger import Ledger
resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, resource.RLIM_INFINITY))
try:
    Ledger.open(sys.argv[1])
except Exception as error:
    print(type(error).__name__)
"""
    answer = output(start(program, path))
    assert answer.strip() == LedgerWriteError.__name__
    assert os.listdir(path.parent) == []


def test_a_file_system_without_links_can_hold_a_ledger(path, monkeypatch):
    def refuse(source, target):
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    opened(path).close()
    assert os.listdir(path.parent) == [path.name]


def test_a_read_only_ledger_is_refused_for_writing_and_can_be_read(path, tmp_path):
    with opened(path) as ledger:
        ledger.settle(0, {"ann": 1.0}, 10)
    with Ledger.open(path, read_only=True) as ledger:
        with pytest.raises(ReadOnlyLedgerError, match="read_only=True"):
            ledger.settle(1, {"ann": 1.0}, 10)
        assert ledger.balances()["ann"] == 10
    # Permissions mean nothing to the superuser, so the attempt is made as nobody.
    program = """
import os, sys, tempfile
from vcca_jax.ledger import Ledger, LedgerError
folder = tempfile.mkdtemp()
path = os.path.join(folder, "ledger")
Ledger.open(path).close()
before = open(path, "rb").read()
os.chmod(path, 0o444)
os.chmod(folder, 0o555)
if os.getuid() == 0:
    os.setuid(65534)
for mode in ({}, {"read_only": True}):
    try:
        with Ledger.open(path, **mode) as ledger:
            print(ledger.verify().entries)
    except LedgerError as error:
        print(type(error).__name__)
try:
    Ledger.open(os.path.join(folder, "new"))
except LedgerError as error:
    print(type(error).__name__)
assert open(path, "rb").read() == before
"""
    answer = output(start(program, cwd="/"))
    assert answer.split() == ["ReadOnlyLedgerError", "1", "ReadOnlyLedgerError"]
