"""Value losses, and the profiles in which principals state what updates may do to them."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vcca_jax.trainer import ExampleLoss, Params

ValueLoss = Callable[[Params, Any], jax.Array]
"""``loss(params, context) -> scalar``. The context is whatever the value losses need besides the
parameters and may change between steps without recompiling, such as a refitted probe."""


class Values(NamedTuple):
    """The M value losses of a cooperative.

    Attributes:
        names: M names.
        losses: ``losses(params, context) -> [M]``.
        gradients: ``gradients(params, context) -> ([M] losses, params with a leading [M])``.
    """

    names: tuple[str, ...]
    losses: Callable[[Params, Any], jax.Array]
    gradients: Callable[[Params, Any], tuple[jax.Array, Params]]


def value_losses(losses: Mapping[str, ValueLoss]) -> Values:
    """Name the scalar functions of the parameters that stand for values.

    Raises:
        ValueError: no value loss is given.
    """
    if not losses:
        raise ValueError("losses={} names no value; give at least one loss(params, context)")
    functions = list(losses.values())

    def values(params: Params, context: Any) -> jax.Array:
        return jnp.stack([loss(params, context) for loss in functions])

    def gradients(params: Params, context: Any) -> tuple[jax.Array, Params]:
        pairs = [jax.value_and_grad(loss)(params, context) for loss in functions]
        rows = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(row for _, row in pairs))
        return jnp.stack([loss for loss, _ in pairs]), rows

    return Values(tuple(losses), values, gradients)


def group_loss(loss_fn: ExampleLoss, inputs: Any, targets: Any) -> ValueLoss:
    """The mean loss of a group of held-out examples, as a value loss.

    Raises:
        ValueError: the group is empty.
    """
    if len(inputs) == 0:
        raise ValueError("inputs holds no example; a group needs at least one held-out row")
    inputs, targets = jnp.asarray(inputs), jnp.asarray(targets)

    def loss(params: Params, context: Any) -> jax.Array:
        del context
        return loss_fn(params, inputs, targets).mean()

    return loss


class Constraint(NamedTuple):
    """A half-space of updates: sign <u, grad V> >= margin, u the direction that is stepped against.

    Attributes:
        kind: "protect" (sign +1) or "forbid" (sign -1).
        value: name of the value loss V.
        margin: least first-order change of V per unit of learning rate, in the kept direction.
    """

    kind: Literal["protect", "forbid"]
    value: str
    margin: float


def protect(name: str, margin: float = 0.0) -> Constraint:
    """V must not increase: <u, grad V> >= margin.

    A step of -eta u moves V by -eta <u, grad V> to first order, so with a positive margin V must
    fall by at least eta margin, and with a negative one it may rise by at most -eta margin.
    """
    return Constraint("protect", name, _checked_margin(margin))


def forbid(name: str, margin: float = 0.0) -> Constraint:
    """The model must not get better at V: -<u, grad V> >= margin."""
    return Constraint("forbid", name, _checked_margin(margin))


class ValueProfiles(NamedTuple):
    """The principals' constraints, padded: K a principal, A principals, all arrays [A, K].

    Attributes:
        value: int32, which value loss a constraint speaks of; 0 in padding.
        sign: +1 to protect, -1 to forbid.
        margin: see ``Constraint``.
        mask: bool, false for padding.
    """

    value: Any
    sign: Any
    margin: Any
    mask: Any


def value_profiles(
    value_names: Sequence[str],
    profiles: Sequence[Sequence[Constraint]],
    *,
    capacity: int | None = None,
    constraints: int | None = None,
) -> ValueProfiles:
    """Write the principals' profiles as padded arrays.

    Args:
        value_names: the names of ``Values``, in its order.
        profiles: one sequence of constraints an agent, in the order of the agent axis; it may be
            empty: then every update of that principal is admissible.
        capacity: A, slots on the agent axis; the number of profiles by default.
        constraints: K, slots a profile; the longest profile's by default. With both capacities
            fixed, profiles may change without recompiling.

    Raises:
        ValueError: an unknown value or kind, the same constraint twice in a profile, or a capacity
            that is too small or below one.
    """
    agents = len(profiles) if capacity is None else capacity
    longest = max((len(profile) for profile in profiles), default=0)
    width = max(longest, 1) if constraints is None else constraints
    if agents < max(len(profiles), 1):
        raise ValueError(f"capacity={capacity} is less than the {len(profiles)} profiles; raise it")
    if width < max(longest, 1):
        raise ValueError(f"constraints={constraints} cannot hold a profile of {longest}; raise it")
    value = np.zeros((agents, width), np.int32)
    sign = np.zeros((agents, width), np.float32)
    margin = np.zeros((agents, width), np.float32)
    mask = np.zeros((agents, width), bool)
    for i, profile in enumerate(profiles):
        seen: set[tuple[str, str]] = set()
        for k, constraint in enumerate(profile):
            kind, name = constraint.kind, constraint.value
            if kind not in ("protect", "forbid"):
                raise ValueError(
                    f"profiles[{i}] holds the kind {kind!r}; use protect() or forbid()"
                )
            if name not in value_names:
                raise ValueError(
                    f"profiles[{i}] names the value {name!r}, which is none of {list(value_names)}"
                )
            if (kind, name) in seen:
                raise ValueError(f"profiles[{i}] states {kind}({name!r}) twice; keep one")
            seen.add((kind, name))
            value[i, k] = list(value_names).index(name)
            sign[i, k] = 1.0 if kind == "protect" else -1.0
            margin[i, k] = constraint.margin
            mask[i, k] = True
    return ValueProfiles(value, sign, margin, mask)


def _checked_margin(margin: float) -> float:
    if not math.isfinite(margin):
        raise ValueError(f"margin={margin} must be a finite number")
    return float(margin)
