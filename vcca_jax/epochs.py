"""Epochs on the device: steps in one scan, compiled once, reported in chunks.

``scan_steps`` is the pure part, a ``lax.scan`` over the steps of a plan that callers jit, vmap or
nest as they like. ``epoch_runner`` is a host's part for long runs: it compiles one program of k
steps with donated state and calls it until the epoch is over, so that no step waits for the host
and a reader hears of every chunk while the next one is computed.
"""

from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import jax
import numpy as np

from vcca_jax.arguments import check_count
from vcca_jax.streaming import check_source, steps_of, stream_batches
from vcca_jax.trainer import Trainer
from vcca_jax.virtual_batch import gather

Draw = Callable[[Any, Any], Any]
"""``draw(source, at) -> batch``, of one step: ``gather`` for shards and a plan, ``Round`` for
shards and a round's plan, ``as_given`` for batches that are there already."""

OnChunk = Callable[[int, Any], None]
"""``on_chunk(first, kept)``: the number of a chunk's first step, and what was kept of its steps,
NumPy arrays with a leading axis of the chunk's steps."""

EpochRunner = Callable[..., tuple[Any, Any]]
"""``run(state, source, steps, on_chunk=None) -> (state, kept [T, ...])``; see ``epoch_runner``."""


def as_given(source: Any, batch: Any) -> Any:
    """The batch itself: the ``draw`` of steps that are batches."""
    del source
    return batch


def everything(info: Any) -> Any:
    """All of what a step tells."""
    return info


def nothing(info: Any) -> None:
    """Nothing of what a step tells."""
    del info


def scan_steps(
    trainer: Trainer,
    state: Any,
    source: Any,
    steps: Any,
    *,
    draw: Draw = gather,
    keep: Callable[[Any], Any] = everything,
) -> tuple[Any, Any]:
    """Train through T steps in one ``lax.scan``.

    A pure function; it traces ``trainer.step`` once, whatever T.

    Args:
        trainer: any.
        state: what ``trainer.init`` made.
        source: what batches are drawn from, such as a cooperative's ``shards``.
        steps: a plan, or batches, every field with a leading [T].
        draw: makes a step's batch; see ``Draw``.
        keep: what to keep of a step's info, which is stacked over the steps.

    Returns:
        The state after the last step, and what was kept, with a leading [T].

    Raises:
        ValueError: a cooperative in place of its shards, or what is no state, such as parameters.
    """
    check_source(source)

    def step(carried: Any, at: Any) -> tuple[Any, Any]:
        carried, info = trainer.step(carried, draw(source, at))
        return carried, keep(info)

    try:
        return jax.lax.scan(step, state, steps)
    except AttributeError as error:
        if hasattr(state, "_fields"):
            raise
        raise ValueError(
            f"state is a {type(state).__name__}, with which trainer.step fails ({error}); give what"
            " trainer.init made"
        ) from error


def epoch_runner(
    trainer: Trainer,
    *,
    chunk: int | None = None,
    draw: Draw = gather,
    keep: Callable[[Any], Any] = everything,
    donate: bool = True,
    streamed: bool = False,
    prefetch: int = 2,
) -> EpochRunner:
    """A compiled epoch: ``run(state, source, steps, on_chunk=None) -> (state, kept)``.

    Make it once and call it for every epoch. It jits one program of k steps, which is traced when
    first called and never again while shapes stay as they are: the last chunk of an epoch is
    filled up with empty batches, which every trainer passes over, so epochs of any length share
    the program. The state ends bit-equal to that of ``scan_steps`` over all steps.

    ``run`` takes the state, the source, and the steps: a plan [T, B], or any iterable of the plans
    of single steps, which is read as it is needed (``stream_plan``). ``on_chunk`` is called for
    every chunk, in order, when the next one has been handed to the device; what it raises ends the
    epoch. It returns the state after the epoch and what was kept, NumPy arrays with a leading [T].

    Args:
        trainer: any whose batches have a ``mask`` and pass over one that is all false.
        chunk: k, at least 1; None puts a plan's steps into one chunk, whatever their number.
        draw: makes a step's batch; see ``Draw``.
        keep: what to keep of a step's info. Of many agents keep little: a report is [A, M].
        donate: give the state's memory to the next state. The state handed to ``run`` is then
            gone: copy it where it is needed afterwards.
        streamed: read batches on the host, ahead of the device, from a source that is not on it
            (see ``stream_batches``); ``draw`` is not asked then.
        prefetch: of a streamed source, chunks read ahead.

    Raises:
        ValueError: what has no step, or a chunk below 1 or that is no whole number; by ``run``, no
            step, no chunk for an iterable of steps, a cooperative in place of its shards, or what
            is no state.
    """
    if not callable(getattr(trainer, "step", None)):
        raise ValueError(f"trainer={trainer!r} has no step; give a Trainer, as cooperate(...) is")
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk={chunk} must be at least 1")
    if chunk is not None:
        check_count("chunk", chunk)
    drawn: Draw = as_given if streamed else draw

    def train(state: Any, source: Any, steps: Any) -> tuple[Any, Any]:
        return scan_steps(trainer, state, source, steps, draw=drawn, keep=keep)

    program = jax.jit(train, donate_argnums=0 if donate else ())

    def run(
        state: Any, source: Any, steps: Any, on_chunk: OnChunk | None = None
    ) -> tuple[Any, Any]:
        check_source(source)
        size = chunk
        if size is None:
            if not hasattr(steps, "_fields"):
                raise ValueError("chunk=None needs a plan with a leading [T]; give chunk=k steps")
            size = len(steps.mask)
        lengths: deque[int] = deque()
        chunks: Iterator[Any] = _chunks(steps, size, lengths)
        if streamed:
            chunks, source = stream_batches(source, chunks, prefetch=prefetch), None
        done, told, waiting = 0, [], None

        def tell(kept: Any, length: int) -> None:
            nonlocal done
            told.append(jax.tree.map(lambda leaf: np.asarray(leaf)[:length], kept))
            if on_chunk is not None:
                on_chunk(done, told[-1])
            done += length

        for each in chunks:
            state, kept = program(state, source, each)
            if waiting is not None:
                tell(*waiting)
            waiting = kept, lengths.popleft()
        if waiting is None:
            raise ValueError("steps holds no step; give a plan of at least one")
        tell(*waiting)
        return state, jax.tree.map(lambda *leaves: np.concatenate(leaves), *told)

    return run


def _chunks(steps: Any, size: int, lengths: deque[int]) -> Iterator[Any]:
    """Steps stacked by k, the last chunk filled up with empty ones; how many are real is noted."""
    each = steps_of(steps)
    while taken := list(islice(each, size)):
        lengths.append(len(taken))
        empty = taken[-1]._replace(mask=np.zeros_like(taken[-1].mask))
        taken += [empty] * (size - len(taken))
        yield jax.tree.map(lambda *leaves: np.stack(leaves), *taken)
