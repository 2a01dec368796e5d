"""The methods, each as a trainer of traced settings, and the grids that they are tuned on."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

import vcca_jax as vcca
from experiments.lossless.config import Config, Task
from experiments.lossless.problems import classes
from vcca_jax.baselines.federated import fedadam, fedavg, fedprox
from vcca_jax.baselines.scaffold import scaffold
from vcca_jax.baselines.split_learning import split_learning
from vcca_jax.baselines.splitfed import splitfed_v1, splitfed_v2
from vcca_jax.epochs import nothing, scan_steps
from vcca_jax.models import mlp, transformer
from vcca_jax.rounds import Round
from vcca_jax.trainer import Params, Trainer

CENTRALIZED, TRAVERSAL, DEEPER, VISITED = (
    "centralized",
    "TL",
    "TL, other cut",
    "TL, visit by visit",
)
EXACT = "TL, visit by visit, float64"
POOLED = (CENTRALIZED, TRAVERSAL, DEEPER, VISITED)
"""Trained on virtual batches with the settings that centralized training has chosen."""

PROXIMAL = (0.01, 0.1)
SERVER_RATES = (0.01, 0.03)

SAME_AS = {"SplitFed v1": "FedAvg"}
"""Methods that compute what another does, by another protocol: they take the other's choice."""

FIXED = ("FedProx",)
"""Methods whose second setting is checked when the trainer is made, so it is not traced."""


criterion = optax.softmax_cross_entropy_with_integer_labels


class Clients(NamedTuple):
    """How many agents there are, and how many of them are simulated side by side."""

    agents: int
    at_once: int | None


Optimizer = Callable[[Any], optax.GradientTransformation]
Make = Callable[[vcca.SplitModel, Optimizer, Any, Clients], Trainer]
"""``make(model, optimizer of a rate, settings [2], clients) -> trainer``."""


def loss(model: vcca.SplitModel) -> Any:
    """Cross-entropy of each example, in nats."""
    return vcca.model_loss(model, criterion)


def _traversal(method: Any) -> Make:
    def make(
        model: vcca.SplitModel, optimizer: Optimizer, settings: Any, clients: Clients
    ) -> Trainer:
        return vcca.split_traversal(model, criterion, optimizer(settings[0]), method=method)

    return make


def _scaffold(
    model: vcca.SplitModel, optimizer: Optimizer, settings: Any, clients: Clients
) -> Trainer:
    # With a constant rate, SGD at that rate is SGD at rate 1 on the loss times the rate, and the
    # control variates are the rate times theirs: so the rate may be traced.
    own = loss(model)

    def times_rate(params: Params, inputs: Any, targets: Any) -> jax.Array:
        return settings[0] * own(params, inputs, targets)

    # Weighed by samples as the others are: what is reported is a mean over samples.
    return scaffold(
        times_rate,
        1.0,
        capacity=clients.agents,
        weighting="samples",
        clients_at_once=clients.at_once,
    )


MAKERS: dict[str, Make] = {
    CENTRALIZED: lambda model, optimizer, s, _: vcca.centralized(loss(model), optimizer(s[0])),
    TRAVERSAL: _traversal("together"),
    DEEPER: _traversal("together"),
    VISITED: _traversal("scanned"),
    "FedAvg": lambda model, optimizer, s, clients: fedavg(
        loss(model), optimizer(s[0]), clients_at_once=clients.at_once
    ),
    "FedProx": lambda model, optimizer, s, clients: fedprox(
        loss(model), optimizer(s[0]), proximal=s[1], clients_at_once=clients.at_once
    ),
    "FedAdam": lambda model, optimizer, s, clients: fedadam(
        loss(model), optimizer(s[0]), s[1], clients_at_once=clients.at_once
    ),
    "SCAFFOLD": _scaffold,
    "split learning": lambda model, optimizer, s, _: split_learning(
        model, criterion, optimizer(s[0])
    ),
    "SplitFed v1": lambda model, optimizer, s, clients: splitfed_v1(
        model, criterion, optimizer(s[0]), clients_at_once=clients.at_once
    ),
    "SplitFed v2": lambda model, optimizer, s, _: splitfed_v2(model, criterion, optimizer(s[0])),
}


class Grid(NamedTuple):
    """Values of each setting; every combination is tried.

    Attributes:
        names: of the settings.
        values: of each, increasing.
    """

    names: tuple[str, ...]
    values: tuple[tuple[float, ...], ...]


def grid(config: Config, task: Task, method: str) -> Grid:
    """The grid of a method: six configurations, of one setting or of two."""
    rates = config.adam_rates if task.adam else config.rates
    middle = rates[1:4] if len(rates) > 3 else rates[:1]
    if method == "FedProx":
        return Grid(("rate", "proximal"), (middle, PROXIMAL))
    if method == "FedAdam":
        return Grid(("rate", "server rate"), (middle, SERVER_RATES))
    if method == "SCAFFOLD":  # its correction is one of SGD's steps, whatever others use
        return Grid(("rate",), (config.rates,))
    return Grid(("rate",), (rates,))


def optimizer_of(task: Task) -> Optimizer:
    """What pooled trainers and clients use."""
    return optax.adam if task.adam else optax.sgd


def model_of(name: str, task: Task, features: int, cut: int) -> vcca.SplitModel:
    """The data set's model at a cut."""
    if name != "sentiment":
        return mlp(features, task.hidden, classes(name), cut=cut)
    width, heads, blocks, length, words = task.hidden
    return transformer(
        words, length, classes(name), cut=cut, width=width, heads=heads, blocks=blocks
    )


def cut_of(task: Task, method: str) -> int:
    """Where a method cuts the model."""
    return task.cuts[1 if method == DEEPER else 0]


def program(
    model: vcca.SplitModel, task: Task, method: str, fixed: float | None = None
) -> Callable[..., Params]:
    """``run(params, shards, plan, settings [2]) -> parameters after each epoch, [E, ...]``.

    ``plan`` is a problem's virtual batches for the pooled methods, else its rounds: an epoch is a
    round of one local epoch, so that all methods see every sample equally often. ``fixed`` is the
    second setting where it is not traced.
    """
    make = MAKERS[method]

    def run(params: Params, shards: Any, plan: Any, settings: jax.Array) -> Params:
        given = (settings[0], settings[1] if fixed is None else fixed)
        # One copy of a perceptron at a time stays in a processor's cache; the transformer has many
        # small operations, and fewer are faster. No number depends on it, but for rounding.
        clients = Clients(shards.mask.shape[0], None if task.adam else 1)
        trainer = make(model, optimizer_of(task), given, clients)

        def epoch(state: Any, each: Any) -> tuple[Any, Params]:
            if method in POOLED:
                state, _ = scan_steps(trainer, state, shards, each, keep=nothing)
            else:
                state, _ = trainer.step(state, Round(shards, each))
            return state, state.params

        return jax.lax.scan(epoch, trainer.init(params), plan)[1]

    return run


def in_order(params: Params) -> list[Any]:
    """The leaves of a model's parameters in an order that no cut changes.

    A perceptron numbers its layers within each part, so its leaves keep their order; the layers
    of other models have names of their own, which sort alike wherever they are.
    """
    body, head = (params[part].get("params", {}) for part in ("body", "head"))
    whole = [body, head] if set(body) & set(head) else body | head
    leaves: list[Any] = jax.tree.leaves(whole)
    return leaves


def starting(
    name: str, model: vcca.SplitModel, deeper: vcca.SplitModel, seed: int
) -> tuple[Params, Params]:
    """The same initial parameters at the first and at the other cut."""
    key = jax.random.fold_in(jax.random.key(0), seed)
    first, other = model.init(key), deeper.init(key)
    if name != "sentiment":  # a perceptron's draws depend on the cut
        other = jax.tree.unflatten(jax.tree.structure(other), jax.tree.leaves(first))
    return first, other


def outputs(model: vcca.SplitModel, params: Params, inputs: Any) -> jax.Array:
    """Outputs [E, n, ...] of the parameters of E epochs."""
    return jax.lax.map(lambda each: model.apply(each, inputs), params)


def settings_array(settings: tuple[float, ...]) -> np.ndarray:
    """[2] float32, a setting that a method does not have is 0."""
    return np.array([*settings, 0.0][:2], np.float32)
