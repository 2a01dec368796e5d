"""Where data files lie, and reading one only after its checksum has been verified."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from vcca_jax.datasets.sources import SOURCES, Source


def data_folder() -> Path:
    """The folder of fetched sets, one folder a set: `VCCA_DATA`, or `.data` where one works."""
    return Path(os.environ.get("VCCA_DATA") or ".data")


def fetched(name: str) -> bool:
    """Whether every file of a set is in the data folder; what is in them is not looked at.

    Args:
        name: a key of `SOURCES`.
    """
    folder = data_folder() / name
    return all((folder / member.file).is_file() for member in SOURCES[name].members)


def sha256_of(content: bytes) -> str:
    """The SHA-256 in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def read_verified(path: Path, sha256: str, *, what: str, remedy: str) -> bytes:
    """A file's content, if it is the very file that is expected.

    Args:
        path: where the file lies.
        sha256: the expected digest, in hexadecimal.
        what: the set's title, for messages.
        remedy: what a reader of the message can do.

    Returns:
        All bytes.

    Raises:
        FileNotFoundError: the file is absent.
        ValueError: it holds other bytes, be it altered, damaged or half written.
    """
    if not path.is_file():
        raise FileNotFoundError(f"the {what} data is not at path={str(path)!r}; {remedy}")
    content = path.read_bytes()
    digest = sha256_of(content)
    if digest != sha256:
        raise ValueError(
            f"the {what} data at path={str(path)!r} was altered or is incomplete: its SHA-256 is "
            f"{digest}, expected {sha256} (a changed line end is enough); {remedy}"
        )
    return content


def read_fetched(name: str, file: str) -> bytes:
    """A file of a fetched set, from the data folder.

    Args:
        name: a key of `SOURCES`.
        file: the name of one of its members.

    Returns:
        All bytes, verified.

    Raises:
        FileNotFoundError: the file is absent.
        ValueError: its SHA-256 is not the recorded one.
    """
    source = SOURCES[name]
    (member,) = (member for member in source.members if member.file == file)
    path = data_folder() / name / file
    return read_verified(path, member.sha256, what=source.title, remedy=remedy(source))


def remedy(source: Source) -> str:
    """What to do where a set's files are absent or damaged."""
    return (
        f"run `make data`, or `python -m vcca_jax.datasets.fetch {source.name}`, in the same "
        "folder, or set VCCA_DATA to the folder that holds "
        f"{', '.join(f'{source.name}/{member.file}' for member in source.members)}"
    )
