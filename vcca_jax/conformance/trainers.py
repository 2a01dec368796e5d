"""The contract of a trainer."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vcca_jax.conformance.comparison import apart, described, finite
from vcca_jax.rounds import Round
from vcca_jax.trainer import Trainer
from vcca_jax.virtual_batch import VirtualBatch

CLOSE = 1e-5
"""Relative: rounding of single precision, not more."""


def check_trainer(trainer: Trainer, state: Any, batch: VirtualBatch | Round) -> None:
    """Check that a trainer can take the place of any other.

        state       a step returns a state of the same structure, shapes and types, finite, so that
                    ``lax.scan`` can carry it; weak types count, for they compile a step anew
        memory      no two leaves of the state are one array, so that a step can be donated it
        purity      the same state for the same arguments, however it is called
        transforms  the same states under ``jit``, ``scan`` and ``vmap``
        emptiness   a batch without a live sample changes nothing, to the last bit
        padding     what stands in a padding slot does not matter

    Args:
        trainer: ``Trainer(init, step)``.
        state: of ``trainer.init``.
        batch: a ``VirtualBatch`` or a ``Round``, whichever the trainer takes, with at least three
            live samples.

    Raises:
        ValueError: the law that is broken, what was seen, and the remedy.
    """
    batch = jax.tree.map(jnp.asarray, batch)
    if int(batch.mask.sum()) < 3:
        raise ValueError(
            f"batch holds {int(batch.mask.sum())} live samples; give one with three at least"
        )
    if twice := _in_two_places(state):
        raise ValueError(
            f"state holds one array at {' and at '.join(twice)}, which cannot be donated twice;"
            " make one for each in init"
        )
    step = jax.jit(trainer.step)
    after = step(state, batch)[0]
    if described(after) != described(state):
        before = described(state)
        changed = {k: (before.get(k), v) for k, v in described(after).items() if before.get(k) != v}
        raise ValueError(
            f"step returned a state of another kind than it was given: {changed or 'fewer leaves'};"
            " scan carries only what keeps its structure, shapes and types"
        )
    weak, weak_after = _weakly_typed(state), _weakly_typed(after)
    if weak != weak_after:
        raise ValueError(
            f"step changed whether types are weak at {sorted(weak ^ weak_after)}, so that the next"
            " call compiles it anew; return trainer.strong(state) from init"
        )
    if not finite(after):
        raise ValueError("step returned numbers that are not finite from a finite state")
    several = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), state)
    mapped = jax.jit(jax.vmap(partial(_twice, trainer), in_axes=(0, None)))(several, batch)
    scanned = jax.tree.map(lambda leaf: leaf[0], mapped)
    if not (gap := apart(step(after, batch)[0], scanned)) <= CLOSE:
        raise ValueError(
            f"two steps differ by {gap:.3g} of the largest number between calls and a scan under"
            " vmap; make step a pure JAX function, with all that it remembers in the state"
        )
    empty = _with_mask(batch, jnp.zeros_like(batch.mask))
    # At the first state what is remembered may be nothing yet, so that the next one is asked.
    if (gap := apart(after, step(after, empty)[0])) > 0:
        raise ValueError(
            f"a batch without a live sample changed the state by {gap:.3g} of the largest number;"
            " return where_live(batch, new, old)"
        )
    one, other = (step(state, padded)[0] for padded in _padded(batch))
    if not (gap := apart(one, other)) <= CLOSE:
        raise ValueError(
            f"the state changes by {gap:.3g} of the largest number with what stands in a padding"
            " slot; weigh samples by batch.mask, and divide by the live ones"
        )


def _weakly_typed(state: Any) -> set[str]:
    """Where a state's leaves have types that yield to others, as Python's numbers have."""
    return {
        jax.tree_util.keystr(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
        if getattr(jnp.asarray(leaf), "weak_type", False)
    }


def _in_two_places(state: Any) -> list[str]:
    """Two places of a state that share memory, if there are any."""
    known: dict[Any, str] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        place = jax.tree_util.keystr(path)
        for piece in _memory(leaf):
            if known.setdefault(piece, place) != place:
                return [known[piece], place]
    return []


def _memory(leaf: Any) -> list[tuple[Any, int]]:
    """The device and address of every piece of an array, nothing where none is told."""
    if not isinstance(leaf, jax.Array) or leaf.size == 0:
        return []
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    try:
        return [(s.device, s.data.unsafe_buffer_pointer()) for s in leaf.addressable_shards]
    except jax.errors.JaxRuntimeError:  # a device that does not say where its arrays are
        return []


def _twice(trainer: Trainer, state: Any, batch: Any) -> Any:
    """The state after two steps on one batch, by a scan."""
    return jax.lax.scan(
        lambda carried, _: (trainer.step(carried, batch)[0], None), state, length=2
    )[0]


def _with_mask(batch: VirtualBatch | Round, mask: jax.Array) -> Any:
    if isinstance(batch, Round):
        return batch._replace(plan=batch.plan._replace(mask=mask))
    return batch._replace(mask=mask)


def _padded(batch: VirtualBatch | Round) -> tuple[Any, Any]:
    """The batch with its last live sample made padding, twice, with other contents in its slot."""
    mask = np.asarray(batch.mask)
    first, second, *_, last = np.argwhere(mask)
    masked = _with_mask(batch, jnp.asarray(mask).at[tuple(last)].set(False))
    if isinstance(batch, Round):
        # A client's rows are its own: the slot may name any row of the same shard.
        rows, agent = jnp.asarray(batch.plan.rows), np.asarray(batch.plan.agents)[last[0]]
        live = np.flatnonzero(np.asarray(batch.shards.mask)[agent])
        return tuple(
            masked._replace(plan=masked.plan._replace(rows=rows.at[tuple(last)].set(int(row))))
            for row in (live[0], live[-1])
        )

    def filled(slot: int) -> VirtualBatch:
        def put(leaf: jax.Array) -> jax.Array:
            return leaf.at[int(last[0])].set(leaf[slot])

        names = ("inputs", "targets", "owners", "rows")
        return masked._replace(**{name: jax.tree.map(put, getattr(batch, name)) for name in names})

    return filled(int(first[0])), filled(int(second[0]))
