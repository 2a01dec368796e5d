"""Kills at any moment and damage of any bit: the ledger comes back whole or refuses to be read."""

import os
import random
import sqlite3
import time

import pytest

from tests.ledger_process import output, start
from vcca_jax.ledger import CorruptLedgerError, ForeignLedgerError, Ledger, LedgerError

# Prints a line when the next thing it does is to open the ledger, and another when it is through,
# with the number of moments in between, one before and one after every statement of the database;
# at the moment it is told it kills itself.
WRITER = """
import os, signal, sqlite3, sys
from vcca_jax.ledger import Ledger, Period
periods, batch, last = map(int, sys.argv[2:])
moments = 0
def pass_moment():
    global moments
    moments += 1
    if moments == last:
        os.kill(os.getpid(), signal.SIGKILL)
class Connection(sqlite3.Connection):
    def execute(self, *arguments):
        pass_moment()
        result = super().execute(*arguments)
        pass_moment()
        return result
connect = sqlite3.connect
sqlite3.connect = lambda *a, **k: connect(*a, **k, factory=Connection)
print("start", flush=True)
with Ledger.open(sys.argv[1], run="r", release_lag=3) as ledger:
    for first in range(0, periods, batch):
        ledger.settle_many(
            Period(
                i,
                {f"p{j}": ((i * 7 + j * 3) % 11 - 4) / 3 for j in range(40)},
                1000 + i,
                gain=(i % 5) - 1.0,
                carry_over=0.25,
            )
            for i in range(first, first + batch)
        )
print("end", moments, flush=True)
"""
PERIODS = 80
NEVER = 0


def started(path, batch, last_moment=NEVER):
    process = start(WRITER, path, PERIODS, batch, last_moment)
    assert process.stdout is not None
    assert process.stdout.readline() == "start\n"
    return process


def moments_of(process):
    word, moments = output(process).split()
    assert word == "end"
    return int(moments)


def kill_until_done(path, batch, processes):
    """Wait for writers that meet a blow; return how often one was caught midway, and in writing."""
    caught = recovered = 0
    for process in processes:
        rest = process.communicate(timeout=300)[0]
        recovered += path.with_name(path.name + "-journal").exists()
        if "end" in rest:  # it was through before the blow: let the next one begin afresh
            path.unlink()
            continue
        caught += 1
        if path.exists():
            with Ledger.open(path, run="r") as ledger:
                assert ledger.verify().settlements % batch == 0
                assert sum(ledger.accounts().values()) == 0
    return caught, recovered


def check_the_end(straight, broken, batch):
    moments_of(started(broken, batch))
    assert broken.read_bytes() == straight.read_bytes()
    with Ledger.open(broken, run="r") as ledger:
        assert ledger.verify().settlements == PERIODS


@pytest.mark.parametrize("batch", [1, 8])
def test_a_run_killed_between_statements_ends_with_the_same_bytes(tmp_path, batch):
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    moments, draw = moments_of(started(straight, batch)), random.Random(0)
    blows = (1 + int(draw.random() ** 2 * moments) for _ in range(12))
    processes = (started(broken, batch, blow) for blow in blows)
    caught, recovered = kill_until_done(broken, batch, processes)
    # Some of the blows must have fallen inside a transaction, or the test shows too little.
    assert caught >= 6
    assert recovered > 0
    check_the_end(straight, broken, batch)


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 8])
def test_a_run_killed_at_random_moments_ends_with_the_same_bytes(tmp_path, batch):
    """The clock's blows fall inside the database's own code too, but where, no test can choose."""
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    process, draw = started(straight, batch), random.Random(1)
    begun = time.monotonic()
    moments_of(process)
    longest = time.monotonic() - begun

    def killed():
        for _ in range(200):
            process = started(broken, batch)
            time.sleep(draw.random() ** 2 * longest)
            process.kill()
            yield process

    caught, recovered = kill_until_done(broken, batch, killed())
    assert caught > 0
    assert recovered > 0
    check_the_end(straight, broken, batch)


def build(path):
    with Ledger.open(path, run="r", principals=[f"p{j}" for j in range(5)]) as ledger:
        for i in range(12):
            credits = {f"p{j}": ((i * 7 + j * 3) % 11 - 4) / 3 for j in range(5)}
            receipt = ledger.settle(i, credits, 1000 + i)
        ledger.reverse(receipt.seq, "for the test")
        return ledger.head()


def rows_of(path):
    connection = sqlite3.connect(path)
    rows = connection.execute("SELECT seq, CAST(payload AS BLOB), hash FROM entries").fetchall()
    connection.close()
    return rows


def flip_stored_bits(path, trials, seed):
    """Flip single bits of numbers, payloads and hashes in turn; each must be found and named."""
    draw = random.Random(seed)
    rows = rows_of(path)
    with Ledger.open(path) as ledger:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("PRAGMA synchronous=OFF")
        for trial in range(trials):
            seq, payload, digest = draw.choice(rows)
            column = ("payload", "hash", "seq")[trial % 3]
            if column == "seq":
                changed = seq ^ (1 << draw.randrange(16))
                if changed < len(rows):
                    continue  # taken by another entry: SQLite itself refuses
                other.execute("UPDATE entries SET seq = ? WHERE seq = ?", (changed, seq))
            else:
                data = bytearray(payload if column == "payload" else digest)
                bit = draw.randrange(8 * len(data))
                data[bit // 8] ^= 1 << bit % 8
                kept = "CAST(? AS TEXT)" if column == "payload" else "?"
                other.execute(f"UPDATE entries SET {column} = {kept} WHERE seq = ?", (data, seq))
                changed = seq
            with pytest.raises(CorruptLedgerError):
                ledger.verify()
            other.execute("DELETE FROM entries WHERE seq = ?", (changed,))
            other.execute("INSERT INTO entries VALUES (?, CAST(? AS TEXT), ?)", rows[seq])
        other.close()
        ledger.verify()


def flip_file_bits(path, trials, seed):
    """Flip single bits anywhere in the file: it is refused, or no entry has changed.

    As many must be refused as hit an entry, on average; the rest hit what SQLite leaves unused.
    """
    draw = random.Random(seed)
    rows, whole = rows_of(path), path.read_bytes()
    refused = 0
    for _ in range(trials):
        data = bytearray(whole)
        bit = draw.randrange(8 * len(data))
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        try:
            with Ledger.open(path) as ledger:
                ledger.verify()
        except (CorruptLedgerError, ForeignLedgerError, LedgerError):
            refused += 1
        else:
            assert rows_of(path) == rows
    path.write_bytes(whole)
    used = sum(len(payload) + len(digest) for _, payload, digest in rows)
    assert refused > 0.85 * trials * used / len(whole)


def test_every_flipped_bit_of_a_stored_entry_is_found(tmp_path):
    build(tmp_path / "ledger")
    flip_stored_bits(tmp_path / "ledger", 300, seed=0)


def test_every_flipped_bit_of_the_file_is_found_or_harmless(tmp_path):
    build(tmp_path / "ledger")
    flip_file_bits(tmp_path / "ledger", 300, seed=0)


@pytest.mark.slow
def test_ten_thousand_flipped_bits_are_found(tmp_path):
    build(tmp_path / "ledger")
    flip_stored_bits(tmp_path / "ledger", 10_000, seed=1)
    flip_file_bits(tmp_path / "ledger", 10_000, seed=1)


def edit(path, *statements):
    connection = sqlite3.connect(path)
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM entries WHERE seq = 5",
        "DELETE FROM entries WHERE seq = 0",
        "DELETE FROM entries",
        "INSERT INTO entries SELECT 99, payload, hash FROM entries WHERE seq = 5",
        "UPDATE entries SET payload = CAST(payload AS BLOB) WHERE seq = 5",
        "UPDATE entries SET seq = -seq",
        "CREATE TABLE more (x)",
        "CREATE TRIGGER t AFTER INSERT ON entries BEGIN DELETE FROM entries; END",
    ],
)
def test_edits_are_found(tmp_path, statement):
    build(tmp_path / "ledger")
    edit(tmp_path / "ledger", statement)
    with pytest.raises(CorruptLedgerError):
        Ledger.open(tmp_path / "ledger")


def test_a_cut_tail_is_found_with_a_head_kept_elsewhere(tmp_path):
    path = tmp_path / "ledger"
    head = build(path)
    with Ledger.open(path) as ledger:
        earlier = ledger.verify(head)
        edit(path, "DELETE FROM entries WHERE seq >= 12")
        with pytest.raises(CorruptLedgerError, match="known to this session"):
            ledger.verify()
        with pytest.raises(CorruptLedgerError, match="cut or replaced"):
            ledger.settle("x", {}, 0)
    with Ledger.open(path) as ledger:
        assert ledger.verify().entries == 12 < earlier.entries  # the chain alone can't tell
        with pytest.raises(CorruptLedgerError, match="known to the caller"):
            ledger.verify(head)
        old = ledger.head()
        ledger.settle("more", {}, 5)
        ledger.verify(old)  # a head that was passed long ago is still in the chain
        with pytest.raises(LedgerError, match="hexadecimal"):
            ledger.verify("none")


def forge(path, seq, change):
    """Edit one entry as somebody would who redoes all hashes after it."""
    from vcca_jax.ledger import chain

    connection = sqlite3.connect(path)
    head = chain.FIRST
    for number, payload in connection.execute(
        "SELECT seq, CAST(payload AS BLOB) FROM entries ORDER BY seq"
    ).fetchall():
        content = chain.parse(payload)
        if number == seq:
            change(content)
        payload = chain.canonical(content)
        head = chain.link(head, payload)
        connection.execute(
            "UPDATE entries SET payload = ?, hash = ? WHERE seq = ?",
            (payload.decode(), head, number),
        )
    connection.commit()
    connection.close()


def move_a_cent(content):
    content["postings"]["principal:p1"] = str(int(content["postings"]["principal:p1"]) + 1)
    content["postings"]["principal:p2"] = str(int(content["postings"]["principal:p2"]) - 1)


def create_a_cent(content):
    content["postings"]["principal:p1"] = str(int(content["postings"]["principal:p1"]) + 1)


def credit_more(content):
    content["credits"]["p0"] = str(int(content["credits"]["p0"]) + 1)


@pytest.mark.parametrize(
    "change",
    [
        move_a_cent,
        create_a_cent,
        credit_more,
        lambda content: content.update(revenue="1001"),
        lambda content: content.update(revenue="-5"),
        lambda content: content.update(revenue="1e3"),
        lambda content: content.update(outcome="reserved"),
        lambda content: content.update(period="1"),
        lambda content: content.update(kind="join"),
        lambda content: content.update(seq="9"),
        lambda content: content.update(credits=None),
        lambda content: content.update(note="added"),
        lambda content: content.pop("gain"),
    ],
)
def test_even_with_all_hashes_redone_a_payment_that_the_credits_do_not_give_is_found(
    tmp_path, change
):
    path = tmp_path / "ledger"
    build(path)
    forge(path, 3, lambda content: None)
    Ledger.open(path).close()  # redoing hashes without a change is no change
    forge(path, 3, change)
    with pytest.raises(CorruptLedgerError, match="entry"):
        Ledger.open(path)


def test_a_ledger_of_another_format_says_so(tmp_path):
    path = tmp_path / "ledger"
    build(path)
    forge(path, 0, lambda content: content.update(format="vcca-ledger-9"))
    with pytest.raises(ForeignLedgerError, match="vcca-ledger-9"):
        Ledger.open(path)
    assert os.path.exists(path)
