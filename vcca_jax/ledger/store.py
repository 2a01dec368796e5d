"""The SQLite file of a ledger: one table of entries, appended to in transactions, never edited.

The rollback journal and synchronisation of file and folder ("EXTRA": a commit is the removal of the
journal, which "FULL" leaves to the system to write down) make a commit survive the loss of power,
and, as nothing is ever deleted and no time is recorded, the file's bytes depend on the committed
entries alone: a run killed at any moment and resumed ends with the same file.
"""

import contextlib
import os
import secrets
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from vcca_jax.ledger.errors import (
    CorruptLedgerError,
    ForeignLedgerError,
    LedgerError,
    LedgerWriteError,
    LockedLedgerError,
    ReadOnlyLedgerError,
)

APPLICATION_ID: Final = 0x76636361  # "vcca"
RESTORE: Final = "restore it from a copy whose head hash you know"
_FOREIGN: Final = "{} is no ledger; give the path of a ledger, or of a file that does not exist yet"
_TABLE: Final = (
    "CREATE TABLE entries (seq INTEGER PRIMARY KEY, payload TEXT NOT NULL, hash BLOB NOT NULL)"
)


class Store:
    """An open ledger file. Rows are (number, payload, hash), in order of number."""

    def __init__(self, path: Path, *, read_only: bool, timeout: float) -> None:
        """Open an existing file; a file that is no ledger is left untouched.

        Args:
            path: The file.
            read_only: Never write; a file on a read-only disk can be opened so.
            timeout: Seconds to wait for another process.

        Raises:
            LedgerError: Of the kind that says what is wrong with the file.
        """
        self.path = path
        # Looked at read-only first: opening a foreign database for writing may already change it.
        with _translated(path), contextlib.closing(self._connect("ro", timeout)) as probe:
            try:
                self._check_identity(probe)
            except _Recovering as error:
                if not path.with_name(path.name + "-journal").exists():
                    raise ForeignLedgerError(_FOREIGN.format(path)) from error
        self._connection = self._connect("ro" if read_only else "rw", timeout)
        try:
            with _translated(path):
                self._connection.execute("PRAGMA synchronous=EXTRA")
                # Room for a hundred large entries, so that a batch is written at its end, at once.
                self._connection.execute("PRAGMA cache_size=-16384")
            with self.reading():
                self._check_identity(self._connection)
                self._check_size()
            if not read_only:
                self._check_writable()
        except BaseException:
            self.close()
            raise

    def _connect(self, mode: str, timeout: float) -> sqlite3.Connection:
        uri = f"{self.path.absolute().as_uri()}?mode={mode}"
        with _translated(self.path):
            connection = sqlite3.connect(uri, uri=True, timeout=timeout, isolation_level=None)
        # Latin-1 maps bytes one to one, so damaged text is seen as it is instead of failing; and
        # text stays distinct from binary data.
        connection.text_factory = lambda raw: raw.decode("latin-1")
        return connection

    def _check_identity(self, connection: sqlite3.Connection) -> None:
        try:
            (identity,) = connection.execute("PRAGMA application_id").fetchone()
            tables = connection.execute("SELECT type, name, sql FROM sqlite_master").fetchall()
            (mode,) = connection.execute("PRAGMA journal_mode").fetchone()
        except sqlite3.OperationalError as error:
            if _primary(error) in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN):
                raise _Recovering from error  # a killed writer's journal waits to be rolled back
            raise
        if identity != APPLICATION_ID:
            raise ForeignLedgerError(_FOREIGN.format(self.path))
        if tables != [("table", "entries", _TABLE)] or mode != "delete":
            raise CorruptLedgerError(
                f"{self.path} has been altered: its tables are not a ledger's; {RESTORE}"
            )

    def _check_size(self) -> None:
        """Refuse a cut file. SQLite notices missing pages, but not a last page cut short."""
        (pages,) = self._connection.execute("PRAGMA page_count").fetchone()
        (page,) = self._connection.execute("PRAGMA page_size").fetchone()
        size = os.stat(self.path).st_size  # opening the file here would drop SQLite's locks
        if size != pages * page:
            raise CorruptLedgerError(
                f"{self.path} is {size} bytes long where {pages * page} were written; {RESTORE}"
            )

    def _check_writable(self) -> None:
        # A transaction alone starts on a read-only file, too; an insertion of nothing does not.
        # Whoever holds the lock shows that one can write.
        with contextlib.suppress(LockedLedgerError), self.writing():
            self._connection.execute("INSERT INTO entries SELECT * FROM entries WHERE 0")

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Hold one state of the file for all reads inside."""
        yield from self._transaction("BEGIN")

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Append all that is appended inside, or nothing."""
        yield from self._transaction("BEGIN IMMEDIATE")

    def _transaction(self, begin: str) -> Iterator[None]:
        with _translated(self.path):
            self._connection.execute(begin)
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                # Should this fail too, the journal stays behind and the next opening rolls back.
                with contextlib.suppress(sqlite3.Error):
                    if self._connection.in_transaction:
                        self._connection.execute("ROLLBACK")
                raise

    def rows(self, first: int = -(2**63)) -> Iterator[tuple[int, bytes, bytes]]:
        """Read the entries from number `first` on; by default all, those numbered wrongly too."""
        query = "SELECT seq, payload, hash FROM entries WHERE seq >= ? ORDER BY seq"
        with _translated(self.path):
            for seq, payload, digest in self._connection.execute(query, (first,)):
                if type(payload) is not str or type(digest) is not bytes:
                    raise CorruptLedgerError(
                        f"{self.path}: entry {seq} has been altered; {RESTORE}"
                    )
                yield seq, payload.encode("latin-1"), digest

    def row(self, seq: int) -> tuple[bytes, bytes]:
        """Read the payload and the hash of one entry."""
        for found, payload, digest in self.rows(seq):
            if found == seq:
                return payload, digest
            break
        raise LedgerError(f"{self.path} has no entry {seq}; see its entries() for their numbers")

    def digest(self, seq: int) -> bytes | None:
        """Read the hash of one entry, or None if there is no such entry."""
        query = "SELECT hash FROM entries WHERE seq = ?"
        with _translated(self.path):
            found = self._connection.execute(query, (seq,)).fetchone()
        return None if found is None else found[0]

    def append(self, seq: int, payload: bytes, digest: bytes) -> None:
        """Append an entry; to be called while writing."""
        _insert(self._connection, seq, payload, digest)

    def check_pages(self) -> None:
        """Have SQLite check its own structure."""
        problems = self._connection.execute("PRAGMA integrity_check(1)").fetchall()
        if problems != [("ok",)]:
            raise CorruptLedgerError(f"{self.path} is damaged: {problems[0][0]}; {RESTORE}")

    def close(self) -> None:
        """Close the file; closing twice does nothing."""
        self._connection.close()


def create(path: Path, payload: bytes, digest: bytes) -> None:
    """Create a ledger file with its first entry, whole or not at all; leave an existing one alone.

    The file is made under another name and linked to its own, so nobody ever sees half of it.

    Raises:
        LedgerError: If the folder does not exist or can't be written.
    """
    if not path.parent.is_dir():
        raise LedgerError(f"folder {path.parent} does not exist; create it first")
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with _translated(path), contextlib.closing(sqlite3.connect(draft)) as connection:
            connection.isolation_level = None
            connection.execute("PRAGMA page_size=4096")
            connection.execute("PRAGMA synchronous=EXTRA")
            connection.execute("BEGIN IMMEDIATE")
            connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
            connection.execute(_TABLE)
            _insert(connection, 0, payload, digest)
            connection.execute("COMMIT")
        _publish(draft, path)
    except OSError as error:
        raise LedgerWriteError(f"{path} can't be created: {error}; give another path") from error
    finally:
        draft.unlink(missing_ok=True)
        draft.with_name(draft.name + "-journal").unlink(missing_ok=True)


def _publish(draft: Path, path: Path) -> None:
    try:
        os.link(draft, path)
    except FileExistsError:
        pass  # another process was first; its ledger is the one
    except OSError:  # a file system without links: a rename is as whole, but could overwrite
        if not path.exists():
            os.rename(draft, path)
    _keep_names(path.parent)


def _keep_names(folder: Path) -> None:
    """Write down what files a folder holds; where a system can't, it does so itself, later."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _insert(connection: sqlite3.Connection, seq: int, payload: bytes, digest: bytes) -> None:
    connection.execute(
        "INSERT INTO entries VALUES (?, ?, ?)", (seq, payload.decode("ascii"), digest)
    )


class _Recovering(Exception):
    """A read-only look is not possible before a journal is rolled back."""


def _primary(error: sqlite3.Error) -> int:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


@contextlib.contextmanager
def _translated(path: Path) -> Iterator[None]:
    """Turn SQLite's errors into the ledger's, each with its remedy."""
    try:
        yield
    except _Recovering as error:
        raise ReadOnlyLedgerError(
            f"{path} was left in the middle of a write and can't be recovered read-only; "
            "open it for writing once"
        ) from error
    except UnicodeDecodeError as error:  # from a message about damaged names
        raise CorruptLedgerError(f"{path} is damaged; {RESTORE}") from error
    except sqlite3.Error as error:
        if isinstance(error, sqlite3.ProgrammingError) and "closed" in str(error):
            raise LedgerError(f"{path} is closed; open it again") from error
        code = _primary(error)
        if code == sqlite3.SQLITE_NOTADB:
            raise ForeignLedgerError(_FOREIGN.format(path)) from error
        if code in (
            sqlite3.SQLITE_CORRUPT,
            sqlite3.SQLITE_ERROR,
            sqlite3.SQLITE_TOOBIG,
            sqlite3.SQLITE_FORMAT,
        ):
            raise CorruptLedgerError(f"{path} is damaged ({error}); {RESTORE}") from error
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise LockedLedgerError(
                f"{path} is being written by another process; wait for it, or raise timeout"
            ) from error
        if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
            raise ReadOnlyLedgerError(
                f"{path} can't be written ({error}); make the file and its folder writable, or "
                "open it with read_only=True"
            ) from error
        if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
            raise LedgerWriteError(
                f"{path}: the disk is full or failed ({error}); nothing was recorded: free some "
                "space and settle again"
            ) from error
        raise LedgerError(f"{path}: {error}") from error
