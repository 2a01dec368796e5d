"""An epoch's plan one step at a time: nothing as long as the data is ever held (host, NumPy).

``virtual_batches`` holds a permutation of all N samples. Here sample numbers are permuted by a
keyed bijection instead, computed where it is asked for: a Feistel network on the least power of
two that is not below N (Luby and Rackoff, SIAM J. Comput. 17(2), 1988), whose results beyond N are
sent through it again until they lie below (cycle walking; Black and Rogaway, CT-RSA 2002). So any
step of any epoch is planned at once, from its number alone.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from vcca_jax.plan import (
    TraversalPlan,
    VisitingOrder,
    check_layout,
    steps_for,
    visiting_layout,
)

_ROUNDS = 8
_FEWEST_BITS = 8  # halves of four bits: below, the rounds would have too little to mix


def stream_plan(
    sizes: Any,
    batch_size: int,
    *,
    seed: int,
    epoch: int,
    steps: int | None = None,
    start: int = 0,
    visiting_order: VisitingOrder = "random",
) -> Iterator[TraversalPlan]:
    """Plan an epoch step by step, each live sample exactly once, in O(A + B) memory.

    The counterpart of ``virtual_batches`` for data of any size, with draws of its own: a
    pseudorandom permutation, of which there are 2^64 for a size, where N! are possible. The draw
    depends on ``(seed, epoch)``, the step and ``sizes`` alone.

    Args:
        sizes: [A] live samples of each agent, its rows 0..n_i - 1: ``Cooperative.sizes``, where an
            agent that left has none, or ``StoredShards.sizes``.
        batch_size: B, samples in a virtual batch; the last one may hold fewer.
        seed: of the run, >= 0.
        epoch: counted from 0.
        steps: T; the fewest that hold every sample by default, with empty batches beyond.
        start: the first step to give, to go on in the middle of an epoch.
        visiting_order: "random" draws one anew for each batch; "ascending" follows the axis.

    Returns:
        An iterator over steps start..T - 1, each a plan with fields [B].

    Raises:
        ValueError: a size below one or that is no whole number, a negative number, no live sample,
            too few steps, or a start beyond them.
    """
    check_layout(batch_size, visiting_order)
    if seed < 0 or epoch < 0 or start < 0:
        raise ValueError(f"seed={seed}, epoch={epoch} and start={start} must not be negative")
    told = np.asarray(sizes)
    if told.size and told.dtype.kind not in "iu":
        raise ValueError(
            f"sizes of dtype {told.dtype} must be whole numbers of samples, one an agent"
        )
    sizes = told.astype(np.int64)
    if sizes.ndim != 1 or (sizes < 0).any():
        raise ValueError(f"sizes of shape {sizes.shape} must be [A] numbers of samples, 0 or more")
    ends = np.cumsum(sizes)
    count = int(ends[-1]) if len(ends) else 0
    if count == 0:
        raise ValueError("sizes hold no live sample; let an agent with data join")
    steps = steps_for(count, batch_size, steps)
    if start > steps:
        raise ValueError(
            f"start={start} lies beyond the epoch's {steps} steps; give at most {steps}"
        )
    return _steps(sizes, ends, batch_size, (seed, epoch), range(start, steps), visiting_order)


def _steps(
    sizes: np.ndarray,
    ends: np.ndarray,
    batch_size: int,
    draw: tuple[int, int],
    steps: range,
    visiting_order: VisitingOrder,
) -> Iterator[TraversalPlan]:
    count = int(ends[-1])
    keys = np.random.default_rng(draw).integers(0, 2**64, _ROUNDS, np.uint64)
    for t in steps:
        positions = np.arange(t * batch_size, (t + 1) * batch_size)
        mask = positions < count
        # Padding repeats the epoch's first sample, masked.
        samples = permuted(np.where(mask, positions, 0), count, keys)
        owners = np.searchsorted(ends, samples, side="right")
        step = TraversalPlan(
            owners=owners.astype(np.int32),
            rows=(samples - (ends - sizes)[owners]).astype(np.int32),
            mask=mask,
        )
        generator = np.random.default_rng((*draw, t))
        layout = visiting_layout(step.owners, mask, generator, visiting_order)
        yield TraversalPlan(*(field[layout] for field in step))


def permuted(positions: np.ndarray, count: int, keys: np.ndarray) -> np.ndarray:
    """The images of positions under the bijection of 0..count - 1 that the keys choose.

    Args:
        positions: int64, each in 0..count - 1, any shape.
        count: N, up to 2^62.
        keys: [R] uint64, one a round.
    """
    bits = max(_FEWEST_BITS, (count - 1).bit_length())
    images = _feistel(positions.astype(np.uint64), bits, keys)
    # A walk from below N comes back below N at the latest where it began, so it ends.
    while (outside := images >= count).any():
        images[outside] = _feistel(images[outside], bits, keys)
    return images.astype(np.int64)


def _feistel(numbers: np.ndarray, bits: int, keys: np.ndarray) -> np.ndarray:
    """A bijection of 0..2^bits - 1: halves, of unlike widths where bits is odd, change in turn."""
    low = bits // 2
    high = bits - low
    for r, key in enumerate(keys):
        # The lower part is mixed into the upper one, then they change places.
        width, kept = (low, high) if r % 2 == 0 else (high, low)
        lower = numbers & np.uint64(2**width - 1)
        upper = numbers >> np.uint64(width)
        upper ^= _mixed(lower ^ key) >> np.uint64(64 - kept)
        numbers = (lower << np.uint64(kept)) | upper
    return numbers


def _mixed(numbers: np.ndarray) -> np.ndarray:
    """The finalizer of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), on arrays of uint64."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))
