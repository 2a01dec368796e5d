"""Many periods: in one transaction or each in its own, replayed, and growing in a line."""

import random
from itertools import pairwise

import pytest

from vcca_jax.ledger import CorruptLedgerError, Ledger, LedgerError, Period, SettlementConflictError

# Where SQLite counts transactions: the change counter and the count that its version goes with.
COUNTERS = (slice(24, 28), slice(92, 96))


def without_counters(path) -> bytes:
    content = bytearray(path.read_bytes())
    for place in COUNTERS:
        content[place] = bytes(4)
    return bytes(content)


def periods(count, agents, seed=0):
    """Settlements of every kind: paid, carried, unfunded, with debts and a memory's credit."""
    draw = random.Random(seed)
    names = [f"agent {i:04d}" for i in range(agents)]
    for t in range(count):
        yield Period(
            t,
            {name: draw.gauss(0.01, 0.05) for name in names},
            draw.choice((0, 1_000_000, 1_000_003)),
            gain=draw.choice((None, 1.0, -1.0)),
            carry_over=draw.choice((None, 0.25)),
        )


@pytest.mark.parametrize("terms", [{}, {"release_lag": 2}, {"rounding": "running_floor"}], ids=str)
def test_together_or_one_by_one_the_file_is_the_same(tmp_path, terms):
    asked = list(periods(24, 30))
    with (
        Ledger.open(tmp_path / "one", **terms) as one,
        Ledger.open(tmp_path / "many", **terms) as many,
        Ledger.open(tmp_path / "sevens", **terms) as sevens,
    ):
        singly = [one.settle(*p[:3], gain=p.gain, carry_over=p.carry_over) for p in asked]
        assert many.settle_many(asked) == singly
        for first in range(0, 24, 7):
            sevens.settle_many(iter(asked[first : first + 7]))
        assert many.settle_many([]) == []
        assert many.head() == one.head() == sevens.head()
        assert many.accounts() == one.accounts()
        many.verify(one.head())
    whole = without_counters(tmp_path / "one")
    assert without_counters(tmp_path / "many") == whole == without_counters(tmp_path / "sevens")


def test_repeated_periods_are_recorded_once_also_within_a_batch(tmp_path):
    asked = list(periods(6, 5))
    with Ledger.open(tmp_path / "ledger") as ledger:
        receipts = ledger.settle_many(asked[:4])
        before = (tmp_path / "ledger").read_bytes()
        assert ledger.settle_many(asked[1:4]) == receipts[1:]
        assert (tmp_path / "ledger").read_bytes() == before
        again = ledger.settle_many([*asked, asked[5]])
        assert again[:4] == receipts
        assert again[5] == again[6]
        assert ledger.verify().settlements == 6


def test_a_refused_batch_leaves_the_session_as_its_file_is(tmp_path):
    with Ledger.open(tmp_path / "ledger") as ledger:
        ledger.settle(0, {"ana": 1.0}, 100)
        head = ledger.head()
        refused = [Period(1, {"ana": 1.0, "bob": 1.0}, 100), Period(2, {"ana": 1.0}, -1)]
        with pytest.raises(LedgerError):
            ledger.settle_many(refused)
        assert ledger.verify().head == head
        assert ledger.principals == ("ana",)
        assert ledger.head() == head
        ledger.settle(1, {"ana": 1.0, "bob": 1.0}, 100)
        assert ledger.verify(head).settlements == 2


def test_what_a_session_knows_is_still_looked_for_after_a_refused_batch(tmp_path):
    path, copy = tmp_path / "ledger", tmp_path / "copy"
    with Ledger.open(path, principals=["ana"]) as ledger:
        copy.write_bytes(path.read_bytes())
        ledger.settle(0, {"ana": 1.0}, 100)
        with pytest.raises(LedgerError):
            ledger.settle_many([Period(1, {"ana": 1.0}, 100), Period(2, {"bob": 1.0}, 100)])
        path.write_bytes(copy.read_bytes())  # cut back to before what the session wrote
        with pytest.raises(CorruptLedgerError, match="cut off or rewritten"):
            ledger.verify()
        with pytest.raises(CorruptLedgerError, match="cut or replaced"):
            ledger.settle(1, {"ana": 1.0}, 100)


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        (Period("x", {"agent 0000": 1.0}, -1), LedgerError),
        (Period("x", {"eve": 1.0}, 1), LedgerError),
        (Period("x", {"agent 0000": float("nan")}, 1), ValueError),
        (Period(0, {"agent 0000": 9.0}, 1), SettlementConflictError),
    ],
)
def test_one_wrong_period_and_none_of_the_batch_is_recorded(tmp_path, wrong, error):
    path = tmp_path / "ledger"
    asked = list(periods(4, 3))
    with Ledger.open(path, principals=[f"agent {i:04d}" for i in range(3)]) as ledger:
        ledger.settle_many(asked[:2])
        before, head, accounts = path.read_bytes(), ledger.head(), ledger.accounts()
        with pytest.raises(error):
            ledger.settle_many([asked[2], wrong, asked[3]])
        assert path.read_bytes() == before
        assert (ledger.head(), ledger.accounts()) == (head, accounts)
        ledger.settle_many(asked[2:])
        assert ledger.verify().settlements == 4


def replayed(source, target, batch=100):
    """Settle all that one ledger was asked into another, from its entries alone."""
    waiting = []
    with Ledger.open(source, read_only=True) as ledger, Ledger.open(target) as again:
        for entry in ledger.entries():
            if entry.kind != "settle":
                continue
            said, one = entry.content, 2**ledger.terms.scale_bits
            scores = {k: None if said[k] is None else int(said[k]) / one for k in SCORES}
            credits = {name: int(text) / one for name, text in said["credits"].items()}
            waiting.append(Period(said["period"], credits, int(said["revenue"]), **scores))
            if len(waiting) == batch:
                again.settle_many(waiting)
                waiting = []
        again.settle_many(waiting)
        return ledger.head(), again.head()


SCORES = ("gain", "carry_over")


def check_replay(tmp_path, count, agents):
    batch = 100
    with Ledger.open(tmp_path / "ledger") as ledger:
        asked = list(periods(count, agents))
        for first in range(0, count, batch):
            ledger.settle_many(asked[first : first + batch])
        head, accounts, scores = ledger.head(), ledger.accounts(), ledger.scores()
    assert sum(accounts.values()) == 0
    with Ledger.open(tmp_path / "ledger", read_only=True) as ledger:
        assert (ledger.head(), ledger.accounts(), ledger.scores()) == (head, accounts, scores)
    assert replayed(tmp_path / "ledger", tmp_path / "again", batch) == (head, head)
    assert (tmp_path / "again").read_bytes() == (tmp_path / "ledger").read_bytes()


def test_a_ledger_replays_to_the_same_bytes(tmp_path):
    check_replay(tmp_path, 200, 40)


@pytest.mark.slow
def test_a_large_ledger_replays_to_the_same_bytes(tmp_path):
    check_replay(tmp_path, 1_000, 1_000)


def test_the_file_grows_in_a_line_with_the_number_of_periods(tmp_path):
    path, sizes = tmp_path / "ledger", []
    names = [f"agent {i:04d}" for i in range(50)]
    draw = random.Random(0)
    with Ledger.open(path) as ledger:
        for stage in range(4):
            ledger.settle_many(
                Period(100 * stage + i, {n: draw.gauss(0.01, 0.05) for n in names}, 10**6)
                for i in range(100)
            )
            sizes.append(path.stat().st_size)
    grown = [later - earlier for earlier, later in pairwise(sizes)]
    assert max(grown) <= 1.05 * min(grown)
    assert sizes[0] <= 1.15 * min(grown)
