"""Checkpoints of a pytree, written whole or not at all (the only file that knows Orbax)."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

_KEPT = 2


class Checkpoints:
    """The numbered checkpoints of one run in one directory; the last two are kept.

    A checkpoint appears under its number only when it is complete: a process killed while saving
    leaves the one before as the latest.
    """

    def __init__(self, directory: str | Path) -> None:
        """Open a directory, which is made if absent; remains of broken saves are removed."""
        self._directory = Path(directory).resolve()
        # Orbax announces on the root logger what every call does; only trouble is of interest.
        logging.getLogger("absl").setLevel(logging.ERROR)
        self._checkpointer = ocp.training.Checkpointer(
            self._directory,
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=ocp.training.preservation_policies.LatestN(_KEPT),
            cleanup_tmp_directories=True,
        )

    @property
    def latest(self) -> int | None:
        """Number of the newest complete checkpoint, or None."""
        found = self._checkpointer.latest
        return None if found is None else int(found.step)

    def save(self, number: int, tree: Any, note: dict[str, Any]) -> None:
        """Write a pytree of arrays and a JSON-able note as checkpoint ``number``."""
        arrays = _with_key_data(tree)
        content = {"note": note, "layout": _layout(arrays)}
        self._checkpointer.save(number, arrays, custom_metadata=content, overwrite=True)

    def restore(self, number: int, like: Any) -> tuple[Any, dict[str, Any]]:
        """Read checkpoint ``number`` into the structure, shapes and dtypes of ``like``.

        Returns:
            The tree and the note.

        Raises:
            ValueError: there is no such checkpoint, or it does not fit ``like``.
        """
        arrays = jax.tree.map(jax.numpy.asarray, _with_key_data(like))
        saved_layout, wanted = self._content(number)["layout"], _layout(arrays)
        for place in sorted({*saved_layout, *wanted}):
            saved, asked = saved_layout.get(place, "absent"), wanted.get(place, "absent")
            if saved != asked:
                raise ValueError(
                    f"checkpoint {number} in {self._directory} does not fit: {place or 'the tree'}"
                    f" is {saved} there and {asked} here; restore it with the configuration that"
                    " wrote it"
                )
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), arrays
        )
        return _with_keys_of(like, self._checkpointer.load(number, abstract)), self.note(number)

    def note(self, number: int) -> dict[str, Any]:
        """Read the note of checkpoint ``number`` alone.

        Raises:
            ValueError: there is no such checkpoint.
        """
        return self._content(number)["note"]

    def _content(self, number: int) -> dict[str, Any]:
        found = [int(each.step) for each in self._checkpointer.checkpoints]
        if number not in found:
            raise ValueError(
                f"number={number} is no checkpoint in {self._directory}; there are {found}"
            )
        content = self._checkpointer.metadata(number).custom_metadata
        if not content or {"note", "layout"} - set(content):
            raise ValueError(
                f"checkpoint {number} in {self._directory} was not written by this module; name"
                " another folder"
            )
        return dict(content)

    def close(self) -> None:
        """Finish outstanding work."""
        self._checkpointer.close()


@contextmanager
def checkpoints(directory: str | Path) -> Iterator[Checkpoints]:
    """Open a run's checkpoints, and close them whatever happens."""
    opened = Checkpoints(directory)
    try:
        yield opened
    finally:
        opened.close()


def _layout(tree: Any) -> dict[str, str]:
    """What is where: the path of every leaf, with its dtype and shape."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path): f"{jax.numpy.result_type(leaf)}{list(jax.numpy.shape(leaf))}"
        for path, leaf in leaves
    }


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _with_key_data(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.random.key_data(x) if _is_key(x) else x, tree)


def _with_keys_of(like: Any, saved: Any) -> Any:
    def restored(original: Any, leaf: Any) -> Any:
        if _is_key(original):
            return jax.random.wrap_key_data(leaf, impl=jax.random.key_impl(original))
        return leaf

    return jax.tree.map(restored, like, saved)
