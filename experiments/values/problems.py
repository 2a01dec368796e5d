"""What a setting consists of: a model, agents with data, values, and profiles.

Value rows come through the values' context, so the seeds, each with a split of its own, are
mapped over by one program, and rows may be drawn anew between epochs.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import vcca_jax as vcca
from vcca_jax.fairness import equal_opportunity
from vcca_jax.probes import probe_features, probe_fit, probe_loss
from vcca_jax.trainer import ExampleLoss, Params
from vcca_jax.values import ValueLoss, from_context

Rows = Mapping[str, Any]
"""By value, the held-out rows it is measured on."""


class Data(NamedTuple):
    """One seed's data; stacked over seeds every field has a leading [R].

    Attributes:
        shards: the agents' training rows.
        plan: the epochs' virtual batches, [E, T, B].
        rows: what the value losses are measured on while training.
        fresh: the same of test rows, which no screen sees.
        fits: what probes are fitted on.
        validation: (inputs, targets) of the utility.
        test: inputs [n, ...], padded.
        seed: of parameters.
        draws: like ``rows``, which of them an epoch looks at, [E, n]; ``drawn`` makes them.
    """

    shards: vcca.Shards
    plan: vcca.TraversalPlan
    rows: Rows
    fresh: Rows
    fits: Rows
    validation: Any
    test: Any
    seed: Any
    draws: Any = None


class Reported(NamedTuple):
    """One seed's test rows, as the host reads them.

    Attributes:
        targets: [n].
        audience: [A, n], by agent the weights of the test rows that are like its own; sum 1.
        groups: masks [n] by name.
    """

    targets: np.ndarray
    audience: np.ndarray
    groups: dict[str, np.ndarray]


class Problem(NamedTuple):
    """A setting.

    Attributes:
        agents: their names.
        model, loss_fn: what is trained; one output decides between two classes.
        values: the value losses, of rows in the context.
        profiles: a sequence of constraints an agent.
        order: agents in the order in which the sweep lets them state constraints.
        fit: ``fit(params, fits) -> context`` of the probes.
        data: one a seed.
        reported: one a seed.
    """

    agents: tuple[str, ...]
    model: vcca.SplitModel
    loss_fn: ExampleLoss
    values: vcca.Values
    profiles: tuple[tuple[vcca.Constraint, ...], ...]
    order: tuple[int, ...]
    fit: Callable[[Params, Rows], dict[str, jax.Array]]
    data: tuple[Data, ...]
    reported: tuple[Reported, ...]


def binary_loss(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Loss [n] of logits [n, 1] for targets [n] in {0, 1}, in nats."""
    return optax.sigmoid_binary_cross_entropy(outputs[:, 0], targets.astype(outputs.dtype))


def group_value(loss_fn: ExampleLoss, name: str) -> ValueLoss:
    """The group loss over the rows (inputs, targets) in the context."""

    def loss(params: Params, context: Any) -> jax.Array:
        inputs, targets = from_context(context["rows"], name)
        return vcca.group_loss(loss_fn, inputs, targets)(params, None)

    return loss


def opportunity_value(model: vcca.SplitModel, name: str) -> ValueLoss:
    """The gap in equal opportunity between two groups' rows with target 1 in the context."""

    def loss(params: Params, context: Any) -> jax.Array:
        first, second = from_context(context["rows"], name)
        inputs, members = jnp.concatenate([first, second]), side(first, second)
        gap = equal_opportunity(
            lambda at, x: model.apply(at, x)[:, 0], inputs, np.ones(len(members)), members
        )
        return gap(params, None)

    return loss


def probe_value(
    model: vcca.SplitModel, name: str
) -> tuple[ValueLoss, Callable[[Params, Rows], dict[str, jax.Array]]]:
    """The loss of a probe that tells two groups' rows apart, and its fit."""
    features = probe_features(lambda params, inputs: model.body(params["body"], inputs))

    def loss(params: Params, context: Any) -> jax.Array:
        first, second = from_context(context["rows"], name)
        inputs = jnp.concatenate([first, second])
        measured = probe_loss(features, inputs, side(first, second), name)
        return measured(params, context["probes"])

    def fit(params: Params, fits: Rows) -> dict[str, jax.Array]:
        first, second = fits[name]
        inputs = jnp.concatenate([first, second])
        return {name: probe_fit(features, inputs, side(first, second))(params)}

    return loss, fit


def side(first: Any, second: Any) -> np.ndarray:
    """Which of two arrays a row of both comes from; by shapes alone, so it is never traced."""
    return np.repeat([True, False], [len(first), len(second)])


def stacked(each: Sequence[Data]) -> Data:
    """All seeds' data with a leading [R]; value rows are cut to the fewest that a seed has."""
    least = jax.tree.map(lambda *leaves: min(map(len, leaves)), *(rows_of(d) for d in each))
    cut = [d._replace(**jax.tree.map(lambda leaf, n: leaf[:n], rows_of(d), least)) for d in each]
    most = max(len(d.test) for d in each)
    padded = [
        d._replace(test=np.pad(d.test, [(0, most - len(d.test)), *[(0, 0)] * (d.test.ndim - 1)]))
        for d in cut
    ]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *padded)


def rows_of(data: Data) -> dict[str, Any]:
    """The parts whose number of rows may differ between seeds."""
    names = ("rows", "fresh", "fits", "validation")
    return {name: getattr(data, name) for name in names}


def planned(
    shards: Sequence[tuple[Any, Any]],
    names: Sequence[str],
    capacity: int,
    size: Any,
    seed: int,
    steps: int,
) -> tuple[vcca.Shards, vcca.TraversalPlan]:
    """The agents on one axis, and all epochs' virtual batches."""
    members = vcca.cooperative(shards, names=names, sample_capacity=capacity)
    plans = [
        vcca.virtual_batches(members, size.batch_size, seed=seed, epoch=epoch, steps=steps)
        for epoch in range(size.epochs)
    ]
    return members.shards, jax.tree.map(lambda *fields: np.stack(fields), *plans)


def drawn(data: Data, epochs: int, share: float, *, anew: bool, seed: int) -> Data:
    """The data with the value rows that each epoch looks at.

    Args:
        data: one seed's.
        epochs: E.
        share: of the rows that an epoch looks at, though at least eight. They are repeated until
            they are as many as all are, so that one program serves every share.
        anew: whether every epoch draws others; else all look at the same.
        seed: of the draws.
    """
    draws: dict[str, Any] = {}
    for place, (name, leaves) in enumerate(sorted(data.rows.items())):
        sizes = [len(leaf) for leaf in leaves]
        rng = np.random.default_rng((seed, place, 5))
        picked = []
        for size in sizes:
            count = min(size, max(8, round(share * size)))
            first = rng.permutation(size)[:count]
            chosen = [rng.permutation(size)[:count] if anew else first for _ in range(epochs)]
            picked.append(np.stack([np.resize(each, size) for each in chosen]).astype(np.int32))
        # A group's inputs and targets are of the same rows; two sides are rows of their own.
        paired = leaves[1].ndim == 1
        draws[name] = (picked[0], picked[0] if paired else picked[1])
    return data._replace(draws=draws)
