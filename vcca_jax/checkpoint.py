"""Checkpoints of a pytree, written whole or not at all (the only file that knows Orbax)."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from vcca_jax.noise import is_key

_KEPT = 2


class Checkpoints:
    """The numbered checkpoints of one run in one directory; the last two are kept.

    | guarantee | holds |
    | --- | --- |
    | a checkpoint appears under its number only when it is complete | always |
    | killed while saving, the checkpoint before is the latest | always |
    | ``save`` returns when the arrays are copied, and writes while training goes on | always |
    | the arrays handed to ``save`` may be donated or overwritten as soon as it returns | always |
    | what reads (``latest``, ``note``, ``restore``) waits for the save under way | always |
    | the arrays come back bit for bit, whatever the layout they are restored onto | always |

    Of several processes (``jax.distributed``) each makes the object and calls every method, in the
    same order: each writes and reads the pieces of the arrays that its own devices hold, and
    process 0 alone writes the note. The directory is one that all of them see.
    """

    def __init__(self, directory: str | Path, *, read_only: bool = False) -> None:
        """Open a directory, which is made if absent; remains of broken saves are removed.

        Args:
            directory: whose checkpoints.
            read_only: change nothing in it. Only so may a directory be opened to which another
                process writes: what looks like the remains of a save may be one under way.
        """
        self._directory = Path(directory).resolve()
        self._read_only = read_only
        # Folders are made before `save` returns: one that cannot be made is told at once, where
        # the other way Orbax waits twenty minutes for it.
        options = ocp.options.AsyncOptions(create_directories_asynchronously=False)
        with _errors_alone():  # Orbax warns of how options are passed
            context = ocp.Context(async_options=options)
        self._checkpointer = ocp.training.Checkpointer(
            self._directory,
            context=context,
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=ocp.training.preservation_policies.LatestN(_KEPT),
            cleanup_tmp_directories=not read_only,
        )

    @property
    def latest(self) -> int | None:
        """Number of the newest complete checkpoint, or None."""
        self.wait()
        found = self._checkpointer.latest
        return None if found is None else int(found.step)

    def save(self, number: int, tree: Any, note: dict[str, Any]) -> None:
        """Begin to write a pytree of arrays and a JSON-able note as checkpoint ``number``.

        Returns once the arrays are in host memory; the files are written meanwhile. A save still
        under way is waited for first, so that one is outstanding at most, and its failure is
        raised here. A number that is written again is removed first: killed in between, the
        checkpoint before it is the latest.

        Args:
            number: of the checkpoint, at least 0 and at least the latest: those before the last
                two are not kept.
            tree: a pytree of arrays, in any sharding; keys of random numbers too.
            note: whatever JSON can say.

        Raises:
            ValueError: the checkpoints were opened to be read only, or a number below 0 or below
                the latest.
        """
        if self._read_only:
            raise ValueError(
                f"number={number} can't be saved: {self._directory} was opened with read_only=True;"
                " open it without"
            )
        least = self.latest or 0
        if number < least:
            raise ValueError(
                f"number={number} would not be kept in {self._directory}; give {least} or more, or"
                " another folder"
            )
        arrays = _with_key_data(tree)
        content = {"note": note, "layout": _layout(arrays), "empty": _empty(arrays)}
        self._checkpointer.save_async(number, arrays, custom_metadata=content, overwrite=True)

    def wait(self) -> None:
        """Return when no save is under way, raising what made one fail."""
        self._checkpointer.wait()

    def restore(self, number: int, like: Any) -> tuple[Any, dict[str, Any]]:
        """Read checkpoint ``number`` into the structure, shapes, dtypes and shardings of ``like``.

        Args:
            number: of a complete checkpoint.
            like: a tree of arrays, whose values are not looked at, or of ``jax.ShapeDtypeStruct``,
                which takes no memory. Its shardings decide where the pieces go: onto another mesh,
                or another number of devices or processes, than they were saved from.

        Returns:
            The tree and the note.

        Raises:
            ValueError: there is no such checkpoint, or it does not fit ``like``.
        """
        content = self._content(number)
        like = jax.tree.map(_as_array, like)
        arrays = _with_key_data(like)
        saved_layout, wanted = dict(content["layout"]), _layout(arrays)
        if "empty" in content:  # older checkpoints do not tell
            saved_layout |= dict.fromkeys(content["empty"], "empty")
            wanted |= dict.fromkeys(_empty(arrays), "empty")
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
        return _with_keys_of(like, self._checkpointer.load(number, abstract)), content["note"]

    def note(self, number: int) -> dict[str, Any]:
        """Read the note of checkpoint ``number`` alone.

        Raises:
            ValueError: there is no such checkpoint.
        """
        return self._content(number)["note"]

    def _content(self, number: int) -> dict[str, Any]:
        self.wait()
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
def checkpoints(directory: str | Path, *, read_only: bool = False) -> Iterator[Checkpoints]:
    """Open a run's checkpoints (see ``Checkpoints``), and close them whatever happens."""
    # Of what another process removes while it is read Orbax warns, and it is looked for again.
    with _errors_alone() if read_only else nullcontext():
        opened = Checkpoints(directory, read_only=read_only)
        try:
            yield opened
        finally:
            opened.close()


@contextmanager
def _errors_alone() -> Iterator[None]:
    """Let Orbax's logger, which is everybody's, tell of errors alone for a while."""
    logger = logging.getLogger("absl")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _layout(tree: Any) -> dict[str, str]:
    """What is where: the path of every leaf, with its dtype and shape."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path): f"{jax.numpy.result_type(leaf)}{list(jax.numpy.shape(leaf))}"
        for path, leaf in leaves
    }


def _empty(tree: Any) -> list[str]:
    """The paths of what holds no leaf, None or an empty container: Orbax asks for them too."""

    def bare(node: Any) -> bool:
        structure: Any = jax.tree.structure(node)
        return structure.num_leaves == 0 and structure.num_nodes == 1

    nodes = jax.tree_util.tree_leaves_with_path(tree, is_leaf=bare)
    return [jax.tree_util.keystr(path) for path, node in nodes if bare(node)]


def _as_array(leaf: Any) -> Any:
    """An array, or the description of one, with a sharding."""
    if not isinstance(leaf, jax.ShapeDtypeStruct):
        return jax.numpy.asarray(leaf)
    sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _key_data(key: Any) -> Any:
    """A key's words; of a described one, their description, laid out as the keys are."""
    if isinstance(key, jax.Array):
        return jax.random.key_data(key)
    words = jax.eval_shape(jax.random.key_data, key)
    return jax.ShapeDtypeStruct(words.shape, words.dtype, sharding=key.sharding)


def _with_key_data(tree: Any) -> Any:
    return jax.tree.map(lambda x: _key_data(x) if is_key(x) else x, tree)


def _with_keys_of(like: Any, saved: Any) -> Any:
    def restored(original: Any, leaf: Any) -> Any:
        return jax.random.wrap_key_data(leaf, impl=_kind(original)) if is_key(original) else leaf

    return jax.tree.map(restored, like, saved)


def _kind(key: Any) -> Any:
    """The implementation of a key; a description tells it where it is traced alone."""
    kinds: list[Any] = []

    def traced(key: jax.Array) -> None:
        kinds.append(jax.random.key_impl(key))

    jax.eval_shape(traced, key)
    return kinds[0]
