"""Books rebuilt from a file: every entry drafted again and compared, byte for byte."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from vcca_jax.ledger import chain
from vcca_jax.ledger.books import Books
from vcca_jax.ledger.errors import CorruptLedgerError, ForeignLedgerError
from vcca_jax.ledger.store import RESTORE, Store
from vcca_jax.ledger.terms import terms_from_content
from vcca_jax.share_rules import ShareRule, rule_from_spec


class Verification(NamedTuple):
    """What a successful verification went through.

    Attributes:
        entries: Number of entries, each derived again and found equal.
        settlements: How many of them settle a period.
        head: Hash of the last, in hexadecimal.
    """

    entries: int
    settlements: int
    head: str


def replay(
    file: Store, rule: ShareRule | None, seen: Callable[[bytes], None] | None = None
) -> tuple[Books, bytes]:
    """Build the books from all entries of a file; to be called inside a transaction.

    Args:
        file: The file.
        rule: The share rule, or None for one of the package's own.
        seen: Called with the hash of each entry.

    Returns:
        The books and the hash of the last entry.

    Raises:
        CorruptLedgerError: Naming the first entry that is not what the books would draft.
        ForeignLedgerError: If the ledger has another format or share rule.
    """
    books, head = None, chain.FIRST
    for row in file.rows():
        if books is None:
            books = _opened(file.path, row, rule)
        head = advance(file, books, head, row)
        if seen is not None:
            seen(head)
    if books is None:
        raise CorruptLedgerError(f"{file.path} holds no entry; {RESTORE}")
    return books, head


def _opened(path: Path, row: tuple[int, bytes, bytes], rule: ShareRule | None) -> Books:
    content = _checked(path, chain.FIRST, 0, row)
    try:
        terms = terms_from_content(content)
    except (KeyError, TypeError) as error:
        raise CorruptLedgerError(f"{path}: entry 0 is not a ledger's; {RESTORE}") from error
    if rule is None:
        try:
            rule = rule_from_spec(terms.rule)
        except ValueError as error:
            raise ForeignLedgerError(f"{path}: {error}") from error
    elif dict(rule.spec) != terms.rule:
        raise ForeignLedgerError(
            f"the ledger's rule is {terms.rule}, not {dict(rule.spec)}: it belongs to other terms; "
            "give the ledger's own, or another path for a new ledger"
        )
    return Books(terms, rule)


def advance(file: Store, books: Books, head: bytes, row: tuple[int, bytes, bytes]) -> bytes:
    """Check one more entry, post it, and return its hash.

    Raises:
        CorruptLedgerError: If it is not the entry that the books would draft next.
    """
    seq, payload, digest = row
    content = _checked(file.path, head, books.count, row)
    try:
        draft = books.redraft(content, lambda earlier: read(file, earlier)[0])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptLedgerError(
            f"{file.path}: entry {seq} can't be: {error}; {RESTORE}"
        ) from error
    if chain.canonical(draft.content) != payload:
        raise CorruptLedgerError(
            f"{file.path}: entry {seq} is not what its credits and revenue give; {RESTORE}"
        )
    books.post(draft)
    return digest


def _checked(path: Path, head: bytes, due: int, row: tuple[int, bytes, bytes]) -> dict[str, Any]:
    seq, payload, digest = row
    if seq != due:
        raise CorruptLedgerError(f"{path}: entry {seq} stands where {due} is due; {RESTORE}")
    if chain.link(head, payload) != digest:
        raise CorruptLedgerError(f"{path}: the hash of entry {seq} does not fit; {RESTORE}")
    try:
        return chain.parse(payload)
    except ValueError as error:
        raise CorruptLedgerError(f"{path}: entry {seq} can't be read; {RESTORE}") from error


def read(file: Store, seq: int) -> tuple[dict[str, Any], bytes]:
    """Return one entry's content and hash.

    Raises:
        LedgerError: If there is no such entry.
    """
    payload, digest = file.row(seq)
    return chain.parse(payload), digest
