"""One virtual batch on the device, and its division into visits."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vcca_jax.cooperative import Shards
from vcca_jax.noise import Keyed, sample_keys
from vcca_jax.plan import TraversalPlan


class VirtualBatch(NamedTuple):
    """B samples of many agents, treated as one batch.

    Attributes:
        inputs: [B, ...], an array or a pytree of arrays.
        targets: [B, ...], likewise.
        owners: [B] int32, the agent that holds each sample.
        rows: [B] int32, the sample's row in its owner's shard.
        mask: [B] bool, false for padding.
        active: [A] bool, members of the cooperative.
    """

    inputs: Any
    targets: Any
    owners: Any
    rows: Any
    mask: Any
    active: Any

    def keyed(self, key: jax.Array) -> "VirtualBatch":
        """The same batch with a key for each sample; see ``noise``."""
        return self._replace(inputs=Keyed(self.inputs, sample_keys(key, self.owners, self.rows)))

    def take(self, slots: jax.Array) -> tuple[Any, Any]:
        """Inputs and targets of the samples at ``slots``, any shape of positions in the batch."""
        return jax.tree.map(lambda leaf: jnp.asarray(leaf)[slots], (self.inputs, self.targets))


class Visits(NamedTuple):
    """The scan's view of a batch: V visits that carry at most P samples each.

    Attributes:
        agents: [V] int32, the agent visited; 0 for a padding visit, whose mask is all false.
        slots: [V, P] int32, positions in the virtual batch.
        mask: [V, P] bool, false for padding.
    """

    agents: jax.Array
    slots: jax.Array
    mask: jax.Array


def gather(shards: Shards, step: TraversalPlan) -> VirtualBatch:
    """Collect the samples that one step of a plan names (its fields without the leading T).

    This is how a simulation on one machine assembles the batch; under ``traverse`` inputs stay
    with their owners and only activations are assembled.

    Raises:
        ValueError: what has no inputs, as a cooperative has not, or steps that are not one.
    """
    if not hasattr(shards, "inputs"):
        raise ValueError(f"shards is a {type(shards).__name__}; give members.shards")
    if jnp.ndim(step.mask) != 1:
        raise ValueError(
            f"step.mask is {jnp.shape(step.mask)}; give one step of the plan, each field at [t]"
        )
    inputs, targets = jax.tree.map(
        lambda leaf: jnp.asarray(leaf)[step.owners, step.rows], (shards.inputs, shards.targets)
    )
    return VirtualBatch(
        inputs=inputs,
        targets=targets,
        owners=jnp.asarray(step.owners),
        rows=jnp.asarray(step.rows),
        mask=jnp.asarray(step.mask),
        active=jnp.asarray(shards.active),
    )


def by_example(batch: VirtualBatch) -> VirtualBatch:
    """The same batch with every sample an agent of its own: A = B, slot s owned by player s.

    Whatever speaks of agents then speaks of examples: gradients, screens, credit. A key for noise
    is folded from owners and rows: take it before.
    """
    places = jnp.arange(batch.mask.shape[0], dtype=jnp.int32)
    return batch._replace(owners=places, active=batch.mask)


def present(batch: VirtualBatch) -> jax.Array:
    """[A] bool, agents with a live sample in the batch."""
    counts = jax.ops.segment_sum(
        batch.mask.astype(jnp.int32), batch.owners, num_segments=batch.active.shape[0]
    )
    return counts > 0


def visits(batch: VirtualBatch, samples_per_visit: int | None = None) -> Visits:
    """Divide a batch into visits of one agent each, in the order agents first appear.

    An agent with more than P samples in the batch is visited again, at once. With at most
    Q = min(A, B) agents in a batch, V = Q + floor((B - Q) / P) visits always suffice, and
    P = ceil(B / Q), the default, keeps the padded work V P below 2 B + P however uneven the agents
    are: shapes depend on A, B and P alone.

    Args:
        batch: in any order; an agent's samples need not stand together.
        samples_per_visit: P, at least 1.
    """
    size, capacity = batch.mask.shape[0], batch.active.shape[0]
    most_agents = min(capacity, size)
    width = -(-size // most_agents) if samples_per_visit is None else samples_per_visit
    if width < 1:
        raise ValueError(f"samples_per_visit={samples_per_visit} must be at least 1")
    count = most_agents + (size - most_agents) // width
    position = jnp.arange(size, dtype=jnp.int32)
    first = jax.ops.segment_min(
        jnp.where(batch.mask, position, size), batch.owners, num_segments=capacity
    )
    order = jnp.argsort(jnp.where(batch.mask, first[batch.owners], size), stable=True)
    owners, live = batch.owners[order], batch.mask[order]
    starts = jnp.concatenate([jnp.ones(1, bool), owners[1:] != owners[:-1]])
    within = position - jax.lax.cummax(jnp.where(starts, position, 0))
    column = within % width
    # Padding stands last: it is sent to a row that does not exist, and the write is dropped.
    row = jnp.where(live, jnp.cumsum(column == 0) - 1, count)
    return Visits(
        agents=jnp.zeros(count, jnp.int32).at[row].set(owners, mode="drop"),
        slots=jnp.zeros((count, width), jnp.int32)
        .at[row, column]
        .set(order.astype(jnp.int32), mode="drop"),
        mask=jnp.zeros((count, width), bool).at[row, column].set(True, mode="drop"),
    )
