"""How two results of a stage are compared, leaf by leaf."""

from typing import Any

import jax
import numpy as np


def apart(first: Any, second: Any) -> float:
    """The largest difference of two pytrees of one structure, over the first's largest number.

    Infinite where one is not a number and the other is. PRNG keys and flags differ by 0 or 1.
    """
    pairs = list(zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True))
    return max((_apart(_plain(a), _plain(b)) for a, b in pairs), default=0.0)


def _plain(leaf: Any) -> np.ndarray:
    if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf)


def _apart(first: np.ndarray, second: np.ndarray) -> float:
    if first.shape != second.shape:
        return np.inf
    if first.dtype.kind not in "fc":
        return float((first != second).any())
    same = (first == second) | (np.isnan(first) & np.isnan(second))
    if same.all():
        return 0.0
    with np.errstate(invalid="ignore"):
        gap = np.abs(first.astype(np.float64) - second.astype(np.float64))[~same].max()
    scale = np.abs(first[np.isfinite(first)]).max(initial=0.0) or 1.0
    return float(gap / scale) if np.isfinite(gap) else np.inf


def described(tree: Any) -> Any:
    """Shapes and types of a pytree's leaves, by path; what a scan asks to stay as it is."""
    return {
        jax.tree_util.keystr(path): (tuple(np.shape(leaf)), str(jax.numpy.result_type(leaf)))
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def finite(tree: Any) -> bool:
    """Whether every floating-point number of a pytree is finite."""
    leaves = [np.asarray(_plain(leaf)) for leaf in jax.tree.leaves(tree)]
    return all(np.isfinite(leaf).all() for leaf in leaves if leaf.dtype.kind in "fc")
