"""Where compiled programs are kept, and that a second process takes them from there."""

import subprocess
import sys

import jax
import pytest

from vcca_jax.compilation import keep_compiled


@pytest.fixture
def untold():
    """As if nobody had told JAX a folder; what the suite has told it comes back."""
    before = jax.config.jax_compilation_cache_dir
    least = jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    jax.config.update("jax_compilation_cache_dir", before)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", least)


def test_a_folder_that_jax_was_told_stays(tmp_path):
    before = jax.config.jax_compilation_cache_dir
    assert str(keep_compiled(tmp_path / "other")) == before == jax.config.jax_compilation_cache_dir
    assert not (tmp_path / "other").exists()


def test_the_argument_the_variable_and_the_users_cache_in_this_order(untold, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("VCCA_COMPILED", "")
    assert keep_compiled() is None
    assert not jax.config.jax_compilation_cache_dir
    for named, folder, expected in (
        (None, tmp_path / "argument", tmp_path / "argument"),
        (str(tmp_path / "variable"), None, tmp_path / "variable"),
        (None, None, tmp_path / "home" / "vcca_jax"),
    ):
        jax.config.update("jax_compilation_cache_dir", None)
        monkeypatch.delenv("VCCA_COMPILED", raising=False)
        if named:
            monkeypatch.setenv("VCCA_COMPILED", named)
        made = keep_compiled(folder)
        assert made == expected or (made.parent == expected and jax.__version__ in made.name)
        assert made.is_dir()
        assert made.stat().st_mode & 0o077 == 0
        assert jax.config.jax_compilation_cache_dir == str(made)


def test_a_cache_folder_that_cannot_be_made_is_no_reason_to_stop(untold, tmp_path, monkeypatch):
    monkeypatch.delenv("VCCA_COMPILED", raising=False)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert keep_compiled() is None
    with pytest.raises(OSError, match="file"):
        keep_compiled(tmp_path / "file" / "here")


PROGRAM = """
import sys
import jax, jax.numpy as jnp
from vcca_jax.compilation import keep_compiled
found = []
jax.monitoring.register_event_listener(lambda event, **_: found.append(event))
keep_compiled(sys.argv[1], least_seconds=0.0)
jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((3, 3))).block_until_ready()
print(sum("cache_hits" in event for event in found))
"""


@pytest.mark.slow  # two processes
def test_the_next_process_finds_what_this_one_compiled(tmp_path, monkeypatch):
    # The suite's own folder would be the one that JAX was told before.
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    hits = [
        int(
            subprocess.run(
                [sys.executable, "-c", PROGRAM, str(tmp_path)],
                check=True,
                capture_output=True,
                text=True,
            ).stdout
        )
        for _ in range(2)
    ]
    assert hits[0] == 0
    assert hits[1] > 0
