"""The mesh that a cooperative is spread over, and the layout of parameters and states on it."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vcca_jax.noise import is_key
from vcca_jax.sharding.batch import AXES, REPLICATED
from vcca_jax.trainer import Trainer


def agent_mesh(
    devices: Sequence[jax.Device] | None = None, *, parameter_shards: int = 1
) -> jax.sharding.Mesh:
    """The mesh [agents, parameters] over which a cooperative is spread.

    Agents are spread over all devices, along both axes. Parameters are replicated along the first
    axis and may be divided along the second, as in fully sharded data parallelism.

    Args:
        devices: all devices of all processes by default. They are taken in the order of their
            processes, so that a process has neighbouring agents.
        parameter_shards: devices that share one copy of the parameters; must divide the devices.

    Raises:
        ValueError: no device, or a number of shards that does not divide the devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    if parameter_shards < 1 or not devices or len(devices) % parameter_shards:
        raise ValueError(
            f"parameter_shards={parameter_shards} must divide the {len(devices)} devices; choose"
            " one of " + str([k for k in range(1, len(devices) + 1) if len(devices) % k == 0])
        )
    # Not jax.make_mesh, which may reorder devices for speed: an agent's place is its process.
    ordered = sorted(devices, key=lambda device: (device.process_index, device.id))
    return jax.sharding.Mesh(
        np.array(ordered).reshape(-1, parameter_shards),
        AXES,
        axis_types=(jax.sharding.AxisType.Auto,) * 2,
    )


def parameter_shardings(tree: Any, mesh: jax.sharding.Mesh, *, smallest: int = 2**14) -> Any:
    """A sharding for each leaf: its largest dimension that divides over the second axis is divided.

    Args:
        tree: parameters, or a trainer's state; an optimizer's moments are divided as the
            parameters of their shape are.
        mesh: of ``agent_mesh``.
        smallest: numbers in a leaf, below which it is replicated; so are leaves without a
            dimension that divides, and keys.
    """
    shards = mesh.shape[AXES[1]]

    def one(leaf: Any) -> jax.NamedSharding:
        shape = jnp.shape(leaf)
        fits = [axis for axis, size in enumerate(shape) if size % shards == 0 and size >= shards]
        small = int(np.prod(shape)) < smallest
        if shards == 1 or not fits or small or not hasattr(leaf, "dtype") or is_key(leaf):
            return jax.NamedSharding(mesh, REPLICATED)
        longest = max(fits, key=lambda axis: shape[axis])
        spec = [AXES[1] if axis == longest else None for axis in range(len(shape))]
        return jax.NamedSharding(mesh, jax.P(*spec))

    return jax.tree.map(one, tree)


def sharded(
    trainer: Trainer, mesh: jax.sharding.Mesh, *, smallest: int = 2**14, gathered: bool = False
) -> Trainer:
    """The same trainer, whose state is divided over the mesh's second axis and keeps its layout.

    What a step tells is replicated, so every process can read it.

    Args:
        trainer: of a ``sharded_loss``.
        mesh: of ``agent_mesh``.
        smallest: see ``parameter_shardings``.
        gathered: have the state whole on every device while a step runs, and divided between
            steps. Inner products over parameters are then added in one order, so that with
            ``sharded_loss(..., blocks=...)`` the bits do not depend on the parameters' shards.
    """
    whole = jax.NamedSharding(mesh, REPLICATED)

    def known(tree: Any) -> Any:
        return jax.lax.with_sharding_constraint(tree, whole)

    def fenced(state: Any) -> Any:
        # Fences keep the compiler from dividing the step's own operations as the state is divided.
        fence = jax.lax.optimization_barrier
        return fence(known(fence(state))) if gathered else state

    def laid_out(state: Any) -> Any:
        state = fenced(state)
        shardings = parameter_shardings(state, mesh, smallest=smallest)
        return jax.lax.with_sharding_constraint(state, shardings)

    def init(*arguments: Any, **options: Any) -> Any:
        return laid_out(trainer.init(*arguments, **options))

    def step(state: Any, batch: Any) -> tuple[Any, Any]:
        state, info = trainer.step(fenced(state), batch)
        return laid_out(state), known(info)

    return Trainer(init, step)
