"""Canonical entries and the hash chain that binds each to all before it.

An entry's payload is JSON with sorted keys, no whitespace, ASCII only and every number written as
text, so one content has one sequence of bytes. hash_n = SHA-256(hash_{n-1} || payload_n), with 32
zero bytes before the first entry.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Final, NamedTuple, NoReturn

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
        content: Nested mappings and lists of text and None.

    Raises:
        ValueError: If the content holds a NaN or an infinite number.
    """
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def parse(payload: bytes) -> dict[str, Any]:
    """Return a payload's content.

    Raises:
        ValueError: If it is no JSON object, or if it holds a bare number.
    """
    content = json.loads(payload, parse_float=_refuse, parse_int=_refuse, parse_constant=_refuse)
    if not isinstance(content, dict):
        raise ValueError("an entry is a JSON object")
    return content


def _refuse(number: str) -> NoReturn:
    raise ValueError(f"bare number {number} in an entry; numbers are written as text")


def link(previous: bytes, payload: bytes) -> bytes:
    """Return the hash of an entry: SHA-256 of the hash before it and its payload."""
    return hashlib.sha256(previous + payload).digest()


def stored(content: dict[str, Any], digest: bytes) -> Entry:
    """Return an entry as readers see it."""
    return Entry(int(content["seq"]), content["kind"], content, digest.hex())
