"""The ledger itself: the books, kept in a file, with every entry chained to those before it."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Self

from vcca_jax.ledger import chain, drafts, store
from vcca_jax.ledger.books import Books
from vcca_jax.ledger.drafts import Draft, Period, Request, Settlement
from vcca_jax.ledger.errors import CorruptLedgerError, LedgerError
from vcca_jax.ledger.replay import Verification, advance, read, replay
from vcca_jax.ledger.statement import Statement, statement
from vcca_jax.ledger.terms import Terms, checked_terms, match, new_terms
from vcca_jax.settlement import Number
from vcca_jax.share_rules import ShareRule, high_water_mark


class Ledger:
    """An append-only, hash-chained record of credit (signed) and money (double entry).

    | guarantee | holds |
    | --- | --- |
    | every entry's postings sum to zero | exactly |
    | no account but the outside world's falls below zero | always |
    | no payout of a settlement is negative | always |
    | the same period with the same content is recorded once | always |
    | killed at any moment, the file opens with every settlement whole or absent | always |
    | the file's bytes depend on | the committed entries alone (and the SQLite version) |
    | an edit, insertion or removal is found by `verify` | unless all hashes after it are redone |
    | a tail cut off, or hashes redone, is found by `verify` | given a head hash kept elsewhere |

    Opening replays the whole file, so a damaged ledger never opens; it costs about as much as
    settling it did, less the waiting for the disk. Use `Ledger.open`, and close it (or use `with`).
    """

    def __init__(self, file: store.Store, rule: ShareRule | None) -> None:
        self._store = file
        with self._store.reading():
            self._books, self._tip = replay(self._store, rule)
            self._keep()

    @classmethod
    def open(
        cls,
        path: str | PathLike[str],
        *,
        run: str | None = None,
        principals: Sequence[str] | None = None,
        currency: str | None = None,
        config: str | None = None,
        scale_bits: int | None = None,
        rule: ShareRule | None = None,
        rounding: str | None = None,
        release_lag: int | None = None,
        create: bool = True,
        read_only: bool = False,
        timeout: float = 10.0,
    ) -> Self:
        """Open the ledger at `path`, or create it there.

        What is None is taken from an existing ledger, which must agree with all that is not None.

        Args:
            path: The SQLite file.
            run: Name of the run it belongs to.
            principals: Names of the principals; others are refused until they `join`. None for a
                new ledger registers whoever is credited first.
            currency: Code of the currency whose minor units are counted; "EUR" for a new ledger.
            config: Digest of the run's configuration.
            scale_bits: Credits are kept in units of 2^-scale_bits; 40 for a new ledger.
            rule: The share rule; `share_rules.high_water_mark()` for a new ledger. A rule defined
                outside the package has to be given each time.
            rounding: "largest_remainder" (the default: a period's payouts sum to its revenue) or
                "running_floor" (see `settlement.running_floor`).
            release_lag: Number of settlements for which a payout stays in escrow, from where it
                can be clawed back, counted in each stream by itself; 0 for a new ledger. The last
                payouts stay there until more is settled, or until `release`.
            create: Whether to create a ledger that does not exist.
            read_only: Only read; works on a read-only disk.
            timeout: Seconds to wait for another process that is writing.

        Raises:
            ForeignLedgerError: The file is something else, or a ledger on other terms.
            CorruptLedgerError: The ledger is damaged, cut short or edited.
            ReadOnlyLedgerError: It can't be written (and `read_only` was not asked for).
            LockedLedgerError: Another process held it for longer than `timeout`.
            LedgerError: There is no such ledger and `create` is False, or the terms can't be.
        """
        path = Path(path)
        wanted = checked_terms(
            rule,
            run=run,
            config=config,
            principals=principals,
            currency=currency,
            scale_bits=scale_bits,
            rounding=rounding,
            release_lag=release_lag,
        )
        if path.exists() and not path.is_file():
            raise LedgerError(f"{path} is no file; give the path of a file")
        if not path.exists():
            if read_only or not create:
                raise LedgerError(f"there is no ledger at {path}; check the path")
            new_rule = high_water_mark() if rule is None else rule
            books = Books(new_terms(wanted, new_rule), new_rule)
            payload = chain.canonical(books.draft_opening().content)
            store.create(path, payload, chain.link(chain.FIRST, payload))
        file = store.Store(path, read_only=read_only, timeout=timeout)
        try:
            ledger = cls(file, rule)
            match(ledger.terms, list(ledger._books.principals), wanted)
        except BaseException:
            file.close()
            raise
        return ledger

    @property
    def path(self) -> Path:
        """Where its file is."""
        return self._store.path

    @property
    def terms(self) -> Terms:
        """The terms the ledger was created with."""
        return self._books.terms

    @property
    def principals(self) -> tuple[str, ...]:
        """The registered principals, in order of registration."""
        books = self._books if self._in_step else self._refreshed()
        return tuple(books.principals)

    def settle(
        self,
        period: int | str,
        credits: Mapping[str, Number],
        revenue: int,
        *,
        gain: Number | None = None,
        carry_over: Number | None = None,
        evidence: str | None = None,
        stream: str | None = None,
    ) -> Settlement:
        """Book a period's credits and divide its revenue, in one transaction.

        Settling the same period with the same content again returns the stored receipt, so an
        interrupted run may simply repeat what it is not sure of.

        Args:
            period, credits, revenue, gain, carry_over, evidence, stream: See `Period`.

        Returns:
            The receipt.

        Raises:
            ValueError: On a NaN or infinite credit, a revenue that is negative, fractional or too
                large (both named), or shares that can't be allocated.
            SettlementConflictError: The period was settled with other content.
            LedgerError: A principal is unknown; or of the kind that says why it was not written.
        """
        asked = Period(period, credits, revenue, gain, carry_over, evidence, stream)
        return self.settle_many([asked])[0]

    def settle_many(self, periods: Iterable[Period]) -> list[Settlement]:
        """Settle several periods, in their order, in one transaction: all of them or none.

        The disk is waited for once instead of once a period. The file is that of settling one by
        one, but for the count of transactions in SQLite's header (8 of its first 100 bytes).

        Args:
            periods: What `settle` takes, one `Period` each.

        Returns:
            The receipts, in order.

        Raises:
            ValueError: As `settle`, for the first period that can't be settled.
        """
        requests = [drafts.request(self.terms.scale_bits, asked) for asked in periods]
        with self._writing():
            return [self._settle(asked) for asked in requests]

    def _settle(self, asked: Request) -> Settlement:
        seq = self._books.settled.get(asked.key)
        if seq is not None:
            content, digest = read(self._store, seq)
            drafts.check_same(asked, content)
        else:
            seq = self._books.count
            draft, digest = self._append(lambda books: books.draft_settlement(asked))
            content = draft.content
            while self._books.escrow.due() is not None:
                self._append(Books.draft_release)
        return drafts.receipt(content, self._books.waiting.get(seq, 0), digest)

    def join(self, principal: str) -> None:
        """Register a principal; registering it again does nothing.

        Raises:
            LedgerError: If the name can't be one; or of the kind that says why it was not written.
        """
        with self._writing():
            if principal not in self._books.principals:
                self._append(lambda books: books.draft_joining(principal))

    def reverse(self, seq: int, reason: str) -> chain.Entry:
        """Take a settlement back by a new entry; the old one stays, and its period is free again.

        Args:
            seq: Number of the settlement's entry.
            reason: Why, in words.

        Raises:
            LedgerError: If that entry is no settlement, is reversed already, or its money has
                moved on (see the message).
        """
        with self._writing():
            content, _ = read(self._store, seq)
            draft, _ = self._append(lambda books: books.draft_reversal(seq, content, reason))
            return chain.stored(*read(self._store, draft.content["seq"]))

    def claw_back(
        self, period: int | str, principal: str, reason: str, *, stream: str | None = None
    ) -> chain.Entry:
        """Move one payout that is still in escrow to the reserve.

        Args:
            period: The period it was paid for.
            principal: To whom.
            reason: Why, in words.
            stream: Out of whose revenue, where revenue comes in streams.

        Raises:
            LedgerError: If that payout is not in escrow (any more).
        """
        with self._writing():
            draft, _ = self._append(
                lambda books: books.draft_claw_back((stream, str(period)), principal, reason)
            )
            return chain.stored(*read(self._store, draft.content["seq"]))

    def release(self, reason: str) -> list[chain.Entry]:
        """Release all payouts that are still in escrow, whatever is left of their lag.

        For the end of a cooperative, when no settlement will follow that would release the last
        payouts, or for an audit that ended early. Releasing again does nothing.

        Args:
            reason: Why, in words.

        Returns:
            The new entries, one for each settlement that had payouts in escrow.

        Raises:
            LedgerError: If there is no reason; or of the kind that says why it was not written.
        """
        drafts.checked_reason(reason)
        released = []
        with self._writing():
            while self._books.escrow.first() is not None:
                draft, _ = self._append(lambda books: books.draft_release(reason))
                released.append(chain.stored(*read(self._store, draft.content["seq"])))
        return released

    def balances(self) -> dict[str, int]:
        """Return what each principal has, in minor units; escrow is not counted."""
        accounts = self._refreshed().balances
        return {p: accounts.get(f"principal:{p}", 0) for p in self._books.principals}

    def scores(self) -> dict[str, int]:
        """Return each principal's score: the sum of its quantised credits, of all streams."""
        tallies = self._refreshed().tallies.values()
        columns = [tally.column(tally.scores) for tally in tallies]
        return {p: sum(c.get(p, 0) for c in columns) for p in self._books.principals}

    def accounts(self) -> dict[str, int]:
        """Return all accounts that were ever posted to; they sum to zero."""
        return dict(self._refreshed().balances)

    def reserve(self) -> int:
        """Return the reserve's balance in minor units."""
        return self._refreshed().balances.get("reserve", 0)

    def head(self) -> str:
        """Return the last entry's hash in hexadecimal; kept elsewhere, it serves `verify`."""
        self._refreshed()
        return self._known[1].hex()

    def entries(self) -> Iterator[chain.Entry]:
        """Iterate over all entries, as they were when the iteration began."""
        for seq in range(self._refreshed().count):
            yield chain.stored(*read(self._store, seq))

    def statement(self, principal: str) -> Statement:
        """Return all that concerns one principal.

        Raises:
            LedgerError: If it is unknown.
        """
        if principal not in self._refreshed().principals:
            known = ", ".join(self._books.principals) or "none"
            raise LedgerError(
                f"principal {principal!r} is unknown (registered: {known}); correct the name"
            )
        return statement(principal, self.terms, self.entries())

    def verify(self, head: str | None = None) -> Verification:
        """Check the whole file: its structure, its chain, and every entry derived anew.

        Each entry is drafted again from what was asked (credits, revenue, reasons), with all sums,
        shares and payouts computed anew, and must equal the stored bytes; so postings sum to zero,
        nothing is overdrawn and no period is settled twice.

        Args:
            head: A hash that `head` returned earlier; it must be in the chain.

        Raises:
            CorruptLedgerError: Naming the first entry that is wrong, or the cut.
        """
        with self._store.reading():
            self._store.check_pages()
            digests: set[bytes] = set()
            books, last = replay(self._store, self._books.rule, digests.add)
        for expected, source in ((self._known[1].hex(), "this session"), (head, "the caller")):
            if expected is not None and chain.digest(expected) not in digests:
                raise CorruptLedgerError(
                    f"the head {expected} known to {source} is not in the chain: entries were cut "
                    "off or rewritten; restore the file from a copy that has it"
                )
        return Verification(books.count, books.settlements, last.hex())

    def close(self) -> None:
        """Close the file; closing twice does nothing."""
        self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _refreshed(self) -> Books:
        with self._store.reading():
            self._catch_up()
        return self._books

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        with self._store.writing():
            self._catch_up()
            yield
        self._keep()

    def _keep(self) -> None:
        """Note that the books, and the tip that they end with, are the file's."""
        self._known = (self._books.count - 1, self._tip)
        self._in_step = True

    def _catch_up(self) -> None:
        """Post what other processes have appended since; to be called inside a transaction."""
        seq, head = self._known
        if self._store.digest(seq) != head:
            raise CorruptLedgerError(
                f"{self._store.path} no longer holds entry {seq} as this session "
                f"knows it: it was cut or replaced; {store.RESTORE}"
            )
        if self._in_step:
            self._in_step = False
            for row in self._store.rows(self._books.count):
                self._tip = advance(self._store, self._books, self._tip, row)
        else:  # what was posted last was taken back, or not posted to its end
            self._books, self._tip = replay(self._store, self._books.rule)
        self._keep()

    def _append(self, draw: Callable[[Books], Draft | None]) -> tuple[Draft, bytes]:
        draft = draw(self._books)
        assert draft is not None
        payload = chain.canonical(draft.content)
        digest = chain.link(self._tip, payload)
        self._in_step = False  # until the transaction is committed
        self._store.append(self._books.count, payload, digest)
        self._books.post(draft)
        self._tip = digest
        return draft, digest
