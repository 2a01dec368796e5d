"""Losses of samples that stay on their devices: of a batch, and of held-out rows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vcca_jax.example_losses import checked_losses, example_count
from vcca_jax.held_out import HeldOutLoss, held_examples
from vcca_jax.noise import Keyed
from vcca_jax.one_pass.placement import TOGETHER, Placement, Segment
from vcca_jax.sharding.batch import AXES, REPLICATED, SPREAD, Located, Resident
from vcca_jax.sharding.rows import SpreadRows
from vcca_jax.trainer import ExampleLoss, Params


def sharded_loss(
    loss_fn: ExampleLoss, mesh: jax.sharding.Mesh, *, blocks: int | None = None
) -> ExampleLoss:
    """The loss of samples that stay on their devices.

    Of a ``ShardedBatch`` as a whole, every device runs its own samples; of samples taken by
    position, every device runs as many and only the owner's count, which is how visits go on
    working (without being faster). Plain arrays are passed to ``loss_fn`` as they are, the same on
    every device.

    The sum of gradients over devices is in the order of the hardware's all-reduce, so results on
    different numbers of devices agree to rounding. With ``blocks`` the batch is run block by block
    and the blocks' gradients are gathered and added in their order: the same programs on the same
    shapes, added alike, on any number of devices that divides the blocks. On CPUs results are then
    the same bit for bit; elsewhere this is untested. It holds a gradient a block, sends all of
    them, and takes two blocks a device at least: a loop of one round is inlined, and then fused
    with what is around it and rounded otherwise.

    Args:
        loss_fn: ``loss_fn(params, inputs, targets) -> [n]``, a function of each example alone.
        mesh: of ``agent_mesh``.
        blocks: of ``sharded_plan``, for sums in a fixed order: a multiple of the devices, twice
            their number at least.

    Returns:
        A loss for ``ShardedBatch``, for every form of the agent gradients. In the one-pass form
        each device keeps what its own rows leave and shows the others nothing but sums of
        gradients, a number a row, and what layers saw of held-out rows, which every process is
        given anyway; those rows are spread where ``spread_loss`` of the same ``loss_fn``, mesh and
        blocks names them.

    Raises:
        ValueError: blocks that do not suit the devices; by the loss, samples that do not divide
            among them.
    """
    if blocks is not None and (blocks < 2 * mesh.size or blocks % mesh.size):
        raise ValueError(
            f"blocks={blocks} must be a multiple of the {mesh.size} devices, and"
            f" {2 * mesh.size} at least"
        )
    return ShardedLoss(loss_fn, mesh, blocks)


@dataclass(frozen=True, eq=False)
class ShardedLoss:
    """What ``sharded_loss`` makes: a per-example loss that knows where its samples are.

    Attributes:
        loss_fn: of samples at hand.
        mesh: over which they are spread.
        blocks: for sums in a fixed order, or None.
    """

    loss_fn: ExampleLoss
    mesh: jax.sharding.Mesh
    blocks: int | None

    def __eq__(self, other: object) -> bool:
        """Whether it is the same loss of samples in the same places."""
        return isinstance(other, ShardedLoss) and (
            self.loss_fn is other.loss_fn
            and self.mesh == other.mesh
            and self.blocks == other.blocks
        )

    def __hash__(self) -> int:
        return hash((id(self.loss_fn), self.mesh, self.blocks))

    def __call__(self, params: Params, inputs: Any, targets: Any) -> jax.Array:
        """[n], known to every device."""
        loss_fn, mesh, blocks = self.loss_fn, self.mesh, self.blocks
        held, keys = _apart(inputs)
        if isinstance(held, Located):
            return _of_some(loss_fn, mesh, params, held, keys)
        if not isinstance(held, Resident):
            return loss_fn(params, inputs, targets)
        size = jax.tree.leaves(held)[0].shape[0]
        if size != targets.shape[0] or size % (blocks or mesh.size):
            raise ValueError(
                f"{size} samples for {blocks or mesh.size} blocks: a sharded batch is read whole"
                " or by take(); use one sharded_plan throughout"
            )
        run = _in_one if blocks is None else partial(_block_by_block, blocks=blocks)
        losses = run(loss_fn, mesh, params, held, keys)
        # A number a sample, known to all: whatever is summed of them is summed in their order.
        return jax.lax.with_sharding_constraint(losses, jax.NamedSharding(mesh, REPLICATED))

    def placed(
        self, segments: Sequence[Segment]
    ) -> tuple[ExampleLoss, Sequence[Segment], Placement]:
        """For the one pass: the samples' own loss, the samples, and their place."""
        apart = [_apart(inputs) for inputs, _ in segments]
        if not all(isinstance(held, Resident) for held, _ in apart):
            return self.loss_fn, segments, TOGETHER
        own = [(_keyed(held.inputs, keys), held.targets) for held, keys in apart]
        sizes = tuple(jax.tree.leaves(segment)[0].shape[0] for segment in own)
        return self.loss_fn, own, SpreadRows(self.mesh, self.blocks, sizes)


def spread_loss(
    loss_fn: ExampleLoss,
    inputs: Any,
    targets: Any,
    mesh: jax.sharding.Mesh,
    *,
    blocks: int | None = None,
) -> HeldOutLoss:
    """``group_loss`` with its rows spread over the devices: (1/n) sum_s loss_fn(params, x_s, y_s).

    For the rows of value losses and of the validation loss, which every process is given alike.
    It names its examples: ``cooperate(sharded_loss(loss_fn, mesh), ..., method="one_pass")`` takes
    them through the batch's own pass, each device its share of each group. Rows that do not divide
    are filled up with the last one, which counts for nothing.

    Args:
        loss_fn: the per-example loss, not a sharded one.
        inputs: [n, ...], an array or a pytree of arrays.
        targets: [n, ...], likewise.
        mesh: of ``agent_mesh``.
        blocks: as in ``sharded_loss``.

    Raises:
        ValueError: the group is empty, or has another number of targets than inputs.
    """
    group, count = held_examples(inputs, targets, np.asarray)
    parts = blocks or mesh.size
    rows = np.minimum(np.arange(-(-count // parts) * parts), count - 1)

    def taken(array: np.ndarray) -> np.ndarray:
        # On the host, so that every process can put its own devices' part where it belongs.
        return array[rows].astype(jax.dtypes.canonicalize_dtype(array.dtype))

    held = Resident(*jax.tree.map(taken, group))

    def mean(groups: Sequence[jax.Array]) -> jax.Array:
        (losses,) = groups
        return losses[:count].mean()

    of_rows = sharded_loss(loss_fn, mesh, blocks=blocks)
    return HeldOutLoss(of_rows, ((held, rows.astype(np.int32)),), mean)


def _apart(inputs: Any) -> tuple[Any, Any]:
    """Inputs without their keys, and the keys, if there are any."""
    return (inputs.inputs, inputs.keys) if isinstance(inputs, Keyed) else (inputs, None)


def _keyed(inputs: Any, keys: Any) -> Any:
    return inputs if keys is None else Keyed(inputs, keys)


def _here(
    function: Callable[..., jax.Array], mesh: jax.sharding.Mesh, in_specs: Any
) -> Callable[..., jax.Array]:
    """A function of what is on each device, whose results stay there.

    Types that vary by device are not checked: a loop that starts from zeros, such as a recurrent
    layer's, or a choice of which one branch is a constant would have to be told what it mixes with.
    Nothing is summed inside, so nothing rests on those types.
    """
    return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=SPREAD, check_vma=False)


def _losses(loss_fn: ExampleLoss, params: Params, inputs: Any, targets: Any) -> jax.Array:
    return checked_losses(loss_fn(params, inputs, targets), example_count(targets))


def _in_one(
    loss_fn: ExampleLoss, mesh: jax.sharding.Mesh, params: Params, held: Resident, keys: Any
) -> jax.Array:
    def local(params: Params, held: Resident, keys: Any) -> jax.Array:
        return _losses(loss_fn, params, _keyed(held.inputs, keys), held.targets)

    return _here(local, mesh, (REPLICATED, SPREAD, SPREAD))(params, held, keys)


def _block_by_block(
    loss_fn: ExampleLoss,
    mesh: jax.sharding.Mesh,
    params: Params,
    held: Resident,
    keys: Any,
    *,
    blocks: int,
) -> jax.Array:
    """Each block on parameters of its own: transposed, a gradient a block, added in order."""
    # Transposed, the layout gathers all blocks at once, and the stack adds them one by one.
    copies = jax.lax.with_sharding_constraint(
        jax.tree.map(lambda leaf: jnp.stack([leaf] * blocks), params),
        jax.NamedSharding(mesh, REPLICATED),
    )

    def local(copies: Params, held: Resident, keys: Any) -> jax.Array:
        parts = jax.tree.map(
            lambda leaf: leaf.reshape(blocks // mesh.size, -1, *leaf.shape[1:]), (held, keys)
        )

        def one(given: Any) -> jax.Array:
            at, (part, part_keys) = given
            return _losses(loss_fn, at, _keyed(part.inputs, part_keys), part.targets)

        return jax.lax.map(one, (copies, parts)).reshape(-1)

    return _here(local, mesh, SPREAD)(copies, held, keys)


def _of_some(
    loss_fn: ExampleLoss, mesh: jax.sharding.Mesh, params: Params, some: Located, keys: Any
) -> jax.Array:
    """Every device runs as many samples, its own and stand-ins; what is its own is summed."""

    def local(params: Params, resident: Resident, positions: jax.Array, keys: Any) -> jax.Array:
        own = jax.tree.leaves(resident)[0].shape[0]
        places = positions - jax.lax.axis_index(AXES) * own
        mine = (places >= 0) & (places < own)
        inputs, targets = jax.tree.map(
            lambda leaf: leaf[jnp.where(mine, places, 0)], tuple(resident)
        )
        losses = _losses(loss_fn, params, _keyed(inputs, keys), targets)
        return jnp.where(mine, losses, 0)[None]

    run = _here(local, mesh, (REPLICATED, SPREAD, REPLICATED, REPLICATED))
    return run(params, some.resident, some.positions, keys).sum(axis=0)
