"""Data sets, scenarios of graded agents, and one seed's arrays of one shape a data set."""

from functools import cache, lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import vcca_jax as vcca
from experiments.fidelity.config import AGENTS, UPDATE_CHEATS, Task
from vcca_jax import corruption, datasets
from vcca_jax.trainer import ExampleLoss

CLASSES = {"digits": 10, "fashion": 10, "heart": 2, "adult": 2}

MOST_NOISE = 0.9
KEPT_FEATURES = 0.2

Dealt = list[tuple[np.ndarray, np.ndarray]]

ROLES = (
    "clean, large",
    "clean",
    "clean, small",
    "replica of the clean",
    "few features",
    "random labels",
    "made-up rows",
    "wrong labels",
)
"""Of the agents of ``cheats``; the last three hold nothing to learn from and are to be found."""

SHARES = (1.6, 1.0, 0.5, 1.0, 1.0, 1.0, 1.0, 1.0)
REPLICA, COPIED = 3, 1

UPDATE_ROLES = (
    "honest, large",
    "honest",
    "honest, small",
    "honest, tiny",
    "half of the labels wrong",
    "zero updates",
    "random updates",
    "updates against a value",
)
"""Of the agents of ``update cheats``; the last three cheat in what they send, not in their rows."""

UPDATE_SHARES = (1.6, 1.0, 0.5, 0.25, 1.0, 1.0, 1.0, 1.0)
ZERO, RANDOM, BREAKER = 5, 6, 7
PROTECTED_CLASS, PROTECTED_ROWS = 1, 24


class Rows(NamedTuple):
    """Inputs [n, F] and targets [n] in 0, 1, ..."""

    inputs: Any
    targets: Any


class Pool(NamedTuple):
    """One seed's rows before they are dealt out."""

    train: Rows
    validation: Rows
    test: Rows


class Cheating(NamedTuple):
    """What the cheats of ``update cheats`` send by.

    Attributes:
        key: of the random updates; step t folds t in.
        protected: rows of the value that is broken, of the training pool.
    """

    key: jax.Array
    protected: Rows


class Arrays(NamedTuple):
    """What a compiled program is given.

    Attributes:
        start: initial parameters.
        batches: the run's virtual batches, a leading [T].
        validation: rows of the utility.
        test: rows of the second truth.
        cheating: None where everyone sends its gradient.
    """

    start: Any
    batches: vcca.VirtualBatch
    validation: Rows
    test: Rows
    cheating: Cheating | None = None


class Game(NamedTuple):
    """One scenario and seed of a data set.

    Attributes:
        arrays: for the programs.
        sizes: rows of each agent.
        bad: the agents that are to be found; None where nobody is.
    """

    arrays: Arrays
    sizes: tuple[int, ...]
    bad: tuple[int, ...] | None


class Model(NamedTuple):
    """What is trained on a data set, and how."""

    split: vcca.SplitModel
    loss_fn: ExampleLoss
    optimizer: optax.GradientTransformation


def model_of(task: Task, features: int) -> Model:
    """A perceptron with the mean cross entropy, and its optimizer."""
    split = vcca.mlp(features, task.hidden, CLASSES[task.data], cut=1)
    loss_fn = vcca.model_loss(split, optax.softmax_cross_entropy_with_integer_labels)
    optimizer = optax.adam(task.rate) if task.adam else optax.sgd(task.rate, momentum=0.9)
    return Model(split, loss_fn, optimizer)


@lru_cache(maxsize=8)
def pool(task: Task, seed: int) -> Pool:
    """The rows of one seed, split at random; test images are the official ones."""
    name = task.data
    if name in ("digits", "fashion"):
        inputs, targets, *official = _images(name)
        order = np.random.default_rng((seed, 7)).permutation(len(targets))
        if official:
            order = order[: task.train + task.validation]
            chosen = np.random.default_rng((seed, 8)).permutation(len(official[1]))[: task.test]
            test = Rows(official[0][chosen], official[1][chosen])
        else:
            rest = order[task.train + task.validation :][: task.test]
            test = Rows(inputs[rest], targets[rest])
        own = order[: task.train]
        held = order[task.train : task.train + task.validation]
        return Pool(Rows(inputs[own], targets[own]), Rows(inputs[held], targets[held]), test)
    total = task.train + task.validation + task.test
    shares = [task.train / total - 0.01, 0.01, task.validation / total, task.test / total]
    if name == "heart":
        study: Any = datasets.heart_disease(
            rows=_heart_rows(), split_seed=seed, fractions=(0.5, 0.01, 0.245, 0.245)
        )
    else:
        study = datasets.adult(
            rows=_adult_rows(), rows_limit=round(1.05 * total), split_seed=seed, fractions=shares
        )
    parts = []
    for place, (split, size) in enumerate(
        zip((study.pooled_train, study.validation, study.test), task[1:4], strict=True)
    ):
        order = np.random.default_rng((seed, 9, place)).permutation(len(split.targets))[:size]
        if len(order) < size:
            raise ValueError(f"{name} holds {len(split.targets)} rows for {size}; ask for fewer")
        parts.append(Rows(split.inputs[order], split.targets[order]))
    return Pool(*parts)


@cache
def _images(name: str) -> tuple[np.ndarray, ...]:
    """Rows of pixels; photographs at half their resolution, by means over 2 x 2 pixels."""
    if name == "digits":
        return datasets.digits()
    halved = [
        (images.reshape(-1, 14, 2, 14, 2).mean(axis=(2, 4)).reshape(-1, 196), labels)
        for images, labels in datasets.fashion_mnist()
    ]
    return (*halved[0], *halved[1])


# The files are read once, however many seeds are dealt from them.
_heart_rows = cache(datasets.read_heart_disease)
_adult_rows = cache(datasets.read_adult)


def cut(rows: Rows, shares: tuple[float, ...]) -> Dealt:
    """The rows in order, in parts in proportion to the shares."""
    ends = np.rint(np.cumsum(shares) / np.sum(shares) * len(rows.targets)).astype(int)
    return list(
        zip(np.split(rows.inputs, ends[:-1]), np.split(rows.targets, ends[:-1]), strict=True)
    )


def dealt(rows: Rows, scenario: str, classes: int, seed: int) -> tuple[Dealt, Any]:
    """The agents' shards, and who of them is to be found.

    Args:
        rows: of training, shuffled.
        scenario: "label noise": agent i of A has a share i / (A - 1) of 90 % of its labels wrong;
            "sizes": in proportion to 1, ..., A; "cheats": see ``ROLES``; "update cheats": see
            ``UPDATE_ROLES``.
        classes: of the targets.
        seed: of the corruptions.
    """
    if scenario == "label noise":
        flipped = [
            corruption.flip_labels(
                shard, classes=classes, fraction=MOST_NOISE * i / (AGENTS - 1), seed=seed + i
            )
            for i, shard in enumerate(cut(rows, (1.0,) * AGENTS))
        ]
        return flipped, tuple(range(AGENTS // 2, AGENTS))
    if scenario == "sizes":
        return cut(rows, tuple(float(i + 1) for i in range(AGENTS))), None
    if scenario == UPDATE_CHEATS:
        shards = cut(rows, UPDATE_SHARES)
        shards[4] = corruption.flip_labels(shards[4], classes=classes, fraction=0.5, seed=seed)
        return shards, (ZERO, RANDOM, BREAKER)
    if scenario != "cheats":
        raise ValueError(f"scenario={scenario!r} is none of this experiment")
    shards = cut(rows, SHARES)
    rng = np.random.default_rng((seed, 11))
    shards[REPLICA] = corruption.replica(shards[COPIED])
    poor, (random_, made_up, wrong) = shards[4], shards[5:]
    features = rows.inputs.shape[1]
    lost = rng.permutation(features)[round(KEPT_FEATURES * features) :]
    shards[4] = (poor[0].copy(), poor[1])
    shards[4][0][:, lost] = 0
    # Wrong for all but one label in K: what is left says nothing about the inputs.
    shards[5] = corruption.flip_labels(
        random_, classes=classes, fraction=1 - 1 / classes, seed=seed
    )
    shards[6] = corruption.invent(made_up, classes=classes, seed=seed)
    shards[7] = corruption.flip_labels(wrong, classes=classes, seed=seed)
    return shards, (5, 6, 7)


def game(task: Task, model: Model, scenario: str, seed: int) -> Game:
    """One scenario and seed; T steps of as many epochs as they need."""
    rows = pool(task, seed)
    shards, bad = dealt(rows.train, scenario, CLASSES[task.data], seed)
    played = _game(task, model, rows, shards, bad, seed)
    if scenario != UPDATE_CHEATS:
        return played
    # Of one shape in every seed: where a class has fewer rows they come again.
    chosen = np.resize(np.flatnonzero(rows.train.targets == PROTECTED_CLASS), PROTECTED_ROWS)
    protected = Rows(*(jnp.asarray(part[chosen]) for part in rows.train))
    cheating = Cheating(jax.random.key(seed), protected)
    return played._replace(arrays=played.arrays._replace(cheating=cheating))


def sent(
    loss_fn: ExampleLoss,
    cheating: Cheating,
    gradients: vcca.AgentGradients,
    params: Any,
    step: jax.Array,
) -> vcca.AgentGradients:
    """What the agents of ``update cheats`` send in place of their gradients.

    Nothing; a random direction of the length of the gradient that its rows would have given; and
    a gradient with a push of the same length against a value, the mean loss of one class.
    """

    def length(tree: Any) -> jax.Array:
        square = optax.tree_utils.tree_norm(tree, squared=True)
        # The root of 0 has no derivative, and an agent that is not visited has no gradient.
        return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)

    def own(agent: int) -> jax.Array:
        return length(gradients.sum(jnp.zeros(AGENTS).at[agent].set(1.0)))

    against = jax.grad(lambda at: loss_fn(at, *cheating.protected).mean())(params)
    agents = jnp.arange(AGENTS)
    strength = own(BREAKER) / jnp.maximum(length(against), 1e-30)
    honest = corruption.scaled_updates(gradients, jnp.where(agents == ZERO, 0.0, 1.0))
    pushed = corruption.updates_toward(honest, against, jnp.where(agents == BREAKER, strength, 0.0))
    return corruption.random_updates(
        pushed,
        agents == RANDOM,
        norm=own(RANDOM),
        key=jax.random.fold_in(cheating.key, step),
    )


def axiom_games(task: Task, model: Model, seed: int) -> tuple[Game, Game]:
    """Two games in which every step sees all rows: agents 5 and 6 hold the same ones.

    In the first agent 7 has none; in the second it is the other half of agent 4, whose rows come in
    the same order. The first four have growing label noise. The shapes are those of ``game``.
    """
    rows = pool(task, seed)
    each = task.batch_size // (AGENTS - 1)
    shards = cut(Rows(*(part[: each * AGENTS] for part in rows.train)), (1.0,) * AGENTS)[:-1]
    for i in range(4):
        shards[i] = corruption.flip_labels(
            shards[i], classes=CLASSES[task.data], fraction=0.2 * i, seed=seed + i
        )
    shards[6] = corruption.replica(shards[5])
    nothing = shards[0][0][:0], shards[0][1][:0]
    halves = corruption.split(shards[4], 2)
    one = [*shards, nothing]
    two = [*shards[:4], halves[0], *shards[5:], halves[1]]
    return (
        _game(task, model, rows, one, None, seed),
        _game(task, model, rows, two, None, seed),
    )


def _game(task: Task, model: Model, rows: Pool, shards: Dealt, bad: Any, seed: int) -> Game:
    members = vcca.cooperative(shards)
    epochs: list[vcca.TraversalPlan] = []
    planned = 0
    while planned < task.steps:
        epochs.append(vcca.virtual_batches(members, task.batch_size, seed=seed, epoch=len(epochs)))
        planned += len(epochs[-1].mask)
    plan = jax.tree.map(lambda *parts: np.concatenate(parts)[: task.steps], *epochs)
    held = [Rows(jnp.asarray(part.inputs), jnp.asarray(part.targets)) for part in rows[1:]]
    batches = jax.vmap(partial(vcca.gather, members.shards))(plan)
    start = _initial(model.split)(jax.random.key(seed))
    return Game(Arrays(start, batches, *held), tuple(int(size) for size in members.sizes), bad)


@cache
def _initial(split: vcca.SplitModel) -> Any:
    return jax.jit(split.init)
