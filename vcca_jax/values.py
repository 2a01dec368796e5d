"""Value losses: the scalar functions of the parameters that stand for values.

A value loss is any ``loss(params, context) -> scalar`` that JAX can differentiate; the ones made
here compose, since they take and return value losses. Fairness, probes and preferences have files
of their own (``fairness``, ``probes``, ``preferences``).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vcca_jax.arguments import check_takes
from vcca_jax.example_losses import checked_number, example_count
from vcca_jax.held_out import HeldOutLoss, composed, held_examples, mean_loss
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
        functions: the M value losses one by one.
    """

    names: tuple[str, ...]
    losses: Callable[[Params, Any], jax.Array]
    gradients: Callable[[Params, Any], tuple[jax.Array, Params]]
    functions: tuple[ValueLoss, ...]


def value_losses(losses: Mapping[str, ValueLoss]) -> Values:
    """Name the scalar functions of the parameters that stand for values.

    Raises:
        ValueError: no value loss is given, or one that does not take params and context; where it
            is evaluated, one that returns no floating-point scalar.
    """
    if not isinstance(losses, Mapping):
        raise ValueError(
            f"losses is a {type(losses).__name__}; name each loss: {{'value': loss, ...}}"
        )
    if not losses:
        raise ValueError("losses={} names no value; give at least one loss(params, context)")
    for name, loss in losses.items():
        # Also where a loss looks at the parameters alone.
        check_takes(f"losses[{name!r}]", loss, ("params", "context"))
    functions = tuple(losses.values())
    told = [_named(name, loss) for name, loss in losses.items()]

    def values(params: Params, context: Any) -> jax.Array:
        return jnp.stack([loss(params, context) for loss in told])

    def gradients(params: Params, context: Any) -> tuple[jax.Array, Params]:
        pairs = [jax.value_and_grad(loss)(params, context) for loss in told]
        rows = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(row for _, row in pairs))
        return jnp.stack([loss for loss, _ in pairs]), rows

    return Values(tuple(losses), values, gradients, functions)


def _named(name: str, loss: ValueLoss) -> ValueLoss:
    """The same loss, which says whose it is where it is none."""

    def checked(params: Params, context: Any) -> jax.Array:
        return checked_number(loss(params, context), f"losses[{name!r}]")

    return checked


def from_context(context: Any, name: str) -> Any:
    """What a value loss reads from its context, which is a mapping by the values' names.

    Raises:
        ValueError: the context is no mapping, or holds nothing under that name.
    """
    if not isinstance(context, Mapping) or name not in context:
        held = list(context) if isinstance(context, Mapping) else type(context).__name__
        raise ValueError(f"context={held} has no {name!r}; fit it and pass {{{name!r}: ...}}")
    return context[name]


def group_loss(loss_fn: ExampleLoss, inputs: Any, targets: Any) -> HeldOutLoss:
    """V = (1/n) sum_s loss_fn(params, x_s, y_s) over a group's n held-out examples.

    In the unit of ``loss_fn``, as smooth as it is. A group is any choice of rows: the patients of
    one sex, one hospital's, or the rows of some *classes*: a purpose limit such as "must not get
    better at telling these classes" is ``forbid`` of the group loss over their rows. It serves as a
    validation loss too, and names its examples: ``cooperate(method="one_pass")`` then takes them
    through the batch's own pass.

    Args:
        loss_fn: ``loss_fn(params, inputs, targets) -> [n]``.
        inputs: [n, ...], an array or a pytree of arrays.
        targets: [n, ...], likewise.

    Raises:
        ValueError: the group is empty, or has another number of targets than inputs.
    """
    group, _ = held_examples(inputs, targets)
    return HeldOutLoss(loss_fn, (group,), mean_loss)


def drawn_loss(loss_fn: ExampleLoss, inputs: Any, targets: Any, *, size: int) -> HeldOutLoss:
    """``group_loss`` of ``size`` of the group's rows, drawn anew as training goes on.

    The rows are drawn without replacement by the key that ``redrawn(trainer, key, every=k)`` puts
    in the context: V, and its gradient, are then unbiased estimates of the whole group's. Where
    the context holds no draw, such as in an evaluation, it is the loss of all rows. Groups of one
    length and size draw the same places, so give rows of different groups in orders of their own
    where their errors should not go together.

    Args:
        loss_fn: ``loss_fn(params, inputs, targets) -> [n]``.
        inputs: [n, ...].
        targets: [n, ...].
        size: rows that are read in a step, from 1 to n.

    Raises:
        ValueError: as ``group_loss``; a size that the group does not have.
    """
    whole = group_loss(loss_fn, inputs, targets)
    count = example_count(whole.examples)
    if not 1 <= size <= count:
        raise ValueError(f"size={size} must lie between 1 and the group's {count} rows")
    return replace(whole, sizes=(size,))


def linear_value(direction: Params) -> ValueLoss:
    """V = <direction, params>: a value whose gradient is the direction, wherever the model is.

    So ``within_angle``, ``protect`` and ``forbid`` may speak of a direction of one's own, such as
    a task vector, a past update, or the gradient of something that is no longer at hand. Its unit
    is that of the direction times the parameters'.

    Args:
        direction: a pytree of finite arrays like the parameters.

    Raises:
        ValueError: a direction that is zero or not finite; when called, one of another structure
            or other shapes than the parameters.
    """
    leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(direction)]
    if not all(bool(jnp.isfinite(leaf).all()) for leaf in leaves):
        raise ValueError("direction holds a number that is not finite; remove or replace it")
    if not any(bool((leaf != 0).any()) for leaf in leaves):
        raise ValueError("direction is zero everywhere, which says nothing; give one that is not")
    direction = jax.tree.map(jnp.asarray, direction)

    def loss(params: Params, context: Any) -> jax.Array:
        del context
        _check_alike("direction", direction, params)
        terms = jax.tree.map(lambda d, p: (d * p).sum(), direction, params)
        return jax.tree.reduce(jnp.add, terms)

    return loss


def squared_distance(reference: Params) -> ValueLoss:
    """V = 1/2 |params - reference|^2: how far the model has moved from where it should stay.

    Its gradient is params - reference, so a protected one lets no step lead further away; with a
    reference of zeros it is weight decay as a value. At the reference itself the gradient vanishes
    and nothing is demanded. The unit is that of the parameters, squared.

    Args:
        reference: a pytree of finite arrays like the parameters, such as a released model's.

    Raises:
        ValueError: a reference that is not finite; when called, one of another structure or other
            shapes than the parameters.
    """
    if not all(bool(jnp.isfinite(jnp.asarray(leaf)).all()) for leaf in jax.tree.leaves(reference)):
        raise ValueError("reference holds a number that is not finite; remove or replace it")
    reference = jax.tree.map(jnp.asarray, reference)

    def loss(params: Params, context: Any) -> jax.Array:
        del context
        _check_alike("reference", reference, params)
        terms = jax.tree.map(lambda r, p: ((p - r) ** 2).sum() / 2, reference, params)
        return jax.tree.reduce(jnp.add, terms)

    return loss


def worst_group_loss(losses: Sequence[ValueLoss], *, temperature: float) -> ValueLoss:
    """V = temperature log sum_g exp(V_g / temperature): a smooth maximum over groups.

    max_g V_g <= V <= max_g V_g + temperature log G. Its gradient is the groups' mean gradient
    weighted by softmax(V_g / temperature): one value that speaks for whichever group is worst off,
    as in group distributionally robust optimisation (Sagawa et al., arXiv:1911.08731), where the
    maximum is a hard one. Smooth wherever the groups' losses are, and in their unit.

    Args:
        losses: G value losses, of ``group_loss`` for instance.
        temperature: in the losses' unit, above zero; the smaller, the nearer to the maximum and
            the more sudden the change from one group to the other.

    Raises:
        ValueError: no loss, or a temperature that is not above zero and finite.
    """
    losses = _some("losses", losses)
    _check_positive("temperature", temperature)

    return composed(
        losses,
        lambda each: temperature * jax.nn.logsumexp(jnp.stack(each) / temperature),
    )


def loss_gap(first: ValueLoss, second: ValueLoss, *, smoothing: float | None = None) -> ValueLoss:
    """V = V_first - V_second, or its smooth size sqrt(gap^2 + smoothing^2) - smoothing.

    Protecting the signed gap keeps the first from falling behind; ``preserve`` holds the gap as it
    is. The smooth size is protected where it should not widen in either direction; it lies between
    |gap| - smoothing and |gap| and its gradient vanishes where the gap does. In the unit of both.

    Args:
        first: a value loss.
        second: another, in the same unit.
        smoothing: None for the signed gap; else above zero, in the losses' unit.

    Raises:
        ValueError: a smoothing that is not above zero and finite.
    """
    if smoothing is not None:
        _check_positive("smoothing", smoothing)

    def size(both: list[jax.Array]) -> jax.Array:
        gap = both[0] - both[1]
        if smoothing is None:
            return gap
        # gap^2 / (root + smoothing) is root - smoothing without the cancellation.
        return gap**2 / (jnp.sqrt(gap**2 + smoothing**2) + smoothing)

    return composed([first, second], size)


def weighted_sum(losses: Sequence[ValueLoss], weights: Sequence[float]) -> ValueLoss:
    """V = sum_k weights_k V_k: several losses that one constraint is to speak of together.

    A principal that would trade one against another states their rates here; constraints on each
    of them trade nothing.

    Args:
        losses: value losses.
        weights: one finite number each; the unit of V is that of the products.

    Raises:
        ValueError: no loss, another number of weights, or a weight that is not finite.
    """
    losses = _some("losses", losses)
    weights = tuple(float(weight) for weight in weights)
    if len(weights) != len(losses) or not all(math.isfinite(weight) for weight in weights):
        raise ValueError(f"weights={weights} must be {len(losses)} finite numbers")

    return composed(
        losses,
        lambda each: jnp.stack([w * value for w, value in zip(weights, each, strict=True)]).sum(),
    )


def _some(name: str, losses: Sequence[ValueLoss]) -> tuple[ValueLoss, ...]:
    if not losses:
        raise ValueError(f"{name}={losses!r} is empty; give at least one loss(params, context)")
    return tuple(losses)


def _check_positive(name: str, number: float) -> None:
    if not (math.isfinite(number) and number > 0):
        raise ValueError(f"{name}={number} must be a finite number above zero")


def _check_alike(name: str, mine: Params, params: Params) -> None:
    """Both trees have the same structure and shapes, so that nothing is broadcast by mistake."""
    here, there = (jax.tree.map(jnp.shape, tree) for tree in (mine, params))
    if here != there:
        raise ValueError(f"{name} has the shapes {here} and the parameters {there}; make it alike")
