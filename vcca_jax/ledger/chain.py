"""Canonical entries and the hash chain that binds each to all before it.

An entry's payload is JSON with sorted keys, no whitespace, ASCII only and every number written as
text, so one content has one sequence of bytes. hash_n = SHA-256(hash_{n-1} || payload_n), with 32
zero bytes before the first entry.
"""

import functools
import hashlib
import json
import sys
from collections.abc import Mapping
from fractions import Fraction
from json.encoder import encode_basestring_ascii as quoted
from typing import Any, Final, NamedTuple, NoReturn

from vcca_jax.ledger.errors import LedgerError

FIRST: Final = bytes(32)


class Entry(NamedTuple):
    """A stored entry.

    Attributes:
        seq: Its number, from 0.
        kind: "open", "join", "settle", "release", "claw_back" or "reverse".
        content: All it says; numbers are text.
        hash: SHA-256 of the hash before it and its payload, in hexadecimal.
    """

    seq: int
    kind: str
    content: dict[str, Any]
    hash: str


def canonical(content: Mapping[str, Any]) -> bytes:
    """Return the one canonical encoding of an entry's content.

    Args:
        content: Nested mappings and lists of text, integers, fractions and None; integers and
            fractions are written as text.

    Raises:
        ValueError: If the content holds a NaN or an infinite number, or an integer with more digits
            than Python writes.
    """
    try:
        return _encoded(content).encode("ascii")
    except ValueError as error:
        if "integer string conversion" not in str(error):
            raise
        raise ValueError(
            f"a number of the entry has more than {sys.get_int_max_str_digits()} digits; make it"
            " smaller: scale the credits down, or lower the rule's exponent"
        ) from None


def _encoded(value: Any) -> str:
    if isinstance(value, str):
        return quoted(value)
    if value is None:
        return "null"
    if isinstance(value, int | Fraction):
        return f'"{value}"'
    if not isinstance(value, Mapping):
        return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    if set(map(type, value.values())) == {int}:
        # A thousand numbers at once, three times a settlement: what settling spends most time on.
        order, template = _layout(tuple(value))
        return template % tuple(map(value.__getitem__, order) if order else value.values())
    return "{" + ",".join([f"{quoted(n)}:{_encoded(value[n])}" for n in sorted(value)]) + "}"


@functools.lru_cache(maxsize=64)
def _layout(names: tuple[str, ...]) -> tuple[list[str] | None, str]:
    """Sort names, None if they are sorted, and make the object in which numbers are to be put."""
    order = sorted(names)
    template = "{" + ",".join(map(_slot, order)) + "}"
    return None if order == list(names) else order, template


class _Slots(dict[str, str]):
    """name -> its place in an object of integers; a cache."""

    def __missing__(self, name: str) -> str:
        if len(self) > 2**16:
            self.clear()
        self[name] = slot = quoted(name).replace("%", "%%") + ':"%d"'
        return slot


_slot: Final = _Slots().__getitem__


def parse(payload: bytes) -> dict[str, Any]:
    """Return a payload's content.

    Raises:
        ValueError: If it is no JSON object, or if it holds a bare number.
    """
    content = _DECODER.decode(payload.decode())
    if not isinstance(content, dict):
        raise ValueError("an entry is a JSON object")
    return content


def _refuse(number: str) -> NoReturn:
    raise ValueError(f"bare number {number} in an entry; numbers are written as text")


_DECODER: Final = json.JSONDecoder(parse_float=_refuse, parse_int=_refuse, parse_constant=_refuse)


def link(previous: bytes, payload: bytes) -> bytes:
    """Return the hash of an entry: SHA-256 of the hash before it and its payload."""
    return hashlib.sha256(previous + payload).digest()


def stored(content: dict[str, Any], digest: bytes) -> Entry:
    """Return an entry as readers see it."""
    return Entry(int(content["seq"]), content["kind"], content, digest.hex())


def digest(head: str) -> bytes:
    """Read a head back from its text.

    Raises:
        LedgerError: If it is not all of a head's 64 hexadecimal digits.
    """
    try:
        found = bytes.fromhex(head)
    except (ValueError, TypeError):
        found = b""
    if len(found) != len(FIRST):
        raise LedgerError(f"head is {head!r}; give all of its 64 hexadecimal digits")
    return found
