"""The cooperative, and each cheat against it: worlds that differ in one agent's conduct alone.

Every world of a seed has the same rows, the same first parameters and, wherever the number of
samples allows it, the same virtual batches, so that a cheat and its honest twin are compared in
pairs. All arrays have one shape whatever the cheat: one compiled program trains every world.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

import vcca_jax as vcca
from experiments.economy.config import Config
from vcca_jax import corruption
from vcca_jax.cooperative import Cooperative, Shard, Shards, leave
from vcca_jax.datasets import digits
from vcca_jax.plan import TraversalPlan, virtual_batches

CLASSES = 10
PROTECTED = "light on dark"
CHEAT = 15
"""Slot of the agent whose conduct is in question, in every scenario but the mixed one."""
SYBIL_SLOTS = (16, 17, 18)
CAPACITY = 19
ALL = tuple(range(CAPACITY))


MIXED = (
    *["honest"] * 6,
    "free rider, zero update",
    "free rider, invented data",
    "label flipper",
    "value breaker",
    "replicator",
    "splitter, 4 identities",
    "late joiner",
    "leaver",
    "size liar, rows × 3",
    "validation over-fitter",
)
"""Who sits in which slot of the scenario that has every kind at once."""


class World(NamedTuple):
    """All that one run takes, for one seed; every field an array.

    Attributes:
        shards: of the agents, [A, S, ...].
        plan: [P, T, B] for P periods of T steps.
        active: [P, A] bool, who is a member in which period.
        scale: [A], factor on each agent's updates; 1 but for a zero update.
        profiles: the principals' value profiles.
        validation, audit, protected, test: held-out (inputs, targets).
        seed: scalar.
    """

    shards: Shards
    plan: TraversalPlan
    active: Any
    scale: Any
    profiles: vcca.ValueProfiles
    validation: Shard
    audit: Shard
    protected: Shard
    test: Shard
    seed: Any


class Rows(NamedTuple):
    """A seed's rows by purpose; ``train`` has one shard an agent."""

    train: list[Shard]
    validation: Shard
    audit: Shard
    protected: Shard
    test: Shard


Bring = Callable[[Rows, Shard, int], Shard]
"""(rows, own shard, seed) -> the shard that is brought instead."""

Move = Callable[[Shard, Shard], list[tuple[int, int]]]
"""(own shard, brought shard) -> for each brought row, (slot, row) of the identity it goes to."""


class Conduct(NamedTuple):
    """What the agents of a scenario do; the default is honest.

    Attributes:
        shards: slot -> what it brings instead of its own rows.
        moves: slot -> how it deals its rows out to several identities.
        scale: slot -> factor on its updates.
        joins, leaves: slots that are absent before ``join_at``, or from ``leave_at`` on.
        unbound: slots whose principal states no value profile.
    """

    shards: Mapping[int, Bring] = {}
    moves: Mapping[int, Move] = {}
    scale: Mapping[int, float] = {}
    joins: tuple[int, ...] = ()
    leaves: tuple[int, ...] = ()
    unbound: tuple[int, ...] = ()


class Scenario(NamedTuple):
    """A conduct, under a screen, and the scenario that it is compared with.

    Attributes:
        conduct: what the agents do.
        screen: "own", "everyone" (both project), or "reject" (everyone's profile).
        twin: name of the scenario in which the same agent is honest; "" for none.
        shown: how tables and figures call it.
    """

    conduct: Conduct
    screen: str = "own"
    twin: str = "honest"
    shown: str = ""


def deal_rows(config: Config, seed: int) -> Rows:
    """Deal the digits out by purpose and agent; the first quarter of each shard is inverted.

    Purposes hold the classes in equal proportion: with 24 rows a class, chance would else decide
    which agent's mixture of labels the utility happens to like.
    """
    inputs, targets = digits()
    generator = np.random.default_rng((seed, 1))
    left = generator.permutation(len(inputs))
    left = left[np.argsort(targets[left], kind="stable")]
    sizes = (config.validation, config.validation, config.value_rows)
    parts = []
    for size in (*sizes, config.agents * config.rows):
        chosen = np.rint(np.linspace(0, len(left) - 1, size)).astype(int)
        parts.append(left[chosen])
        left = np.delete(left, chosen)
    validation, audit, protected, train, test = (
        (inputs[rows], targets[rows]) for rows in (*parts, left)
    )
    shards = vcca.partition.iid(*train, config.agents, seed=seed)
    for shard_inputs, _ in shards:
        few = len(shard_inputs) // 4
        shard_inputs[:few] = 1 - shard_inputs[:few]
    return Rows(
        train=shards,
        validation=validation,
        audit=audit,
        protected=(1 - protected[0], protected[1]),
        test=test,
    )


def make_world(config: Config, scenario: Scenario, seed: int) -> World:
    """One seed's world under a scenario."""
    rows, conduct = deal_rows(config, seed), scenario.conduct
    shards = list(rows.train)
    for slot, bring in conduct.shards.items():
        shards[slot] = bring(rows, rows.train[slot], seed)
    names = [f"agent {i:02}" for i in range(config.agents)]
    room = {"capacity": CAPACITY, "sample_capacity": config.rows * config.repeats}
    members = vcca.cooperative(shards, names=names, **room)
    everyone = _with_sybils(members, conduct, rows, shards, room)
    plans, active = [], []
    for period in range(config.periods):
        absent = [s for s in conduct.joins if period < config.join_at]
        absent += [s for s in conduct.leaves if period >= config.leave_at]
        present = members
        for slot in absent:
            present = leave(present, names[slot])
        plan = virtual_batches(
            present, config.batch_size, seed=seed, epoch=period, steps=config.steps
        )
        plans.append(_moved(plan, conduct, rows, shards))
        active.append(np.array(everyone.shards.active))
        active[-1][absent] = False
    scale = np.ones(CAPACITY, np.float32)
    for slot, factor in conduct.scale.items():
        scale[slot] = factor
    profiles = [
        [] if slot in conduct.unbound else [vcca.protect(PROTECTED)] for slot in range(CAPACITY)
    ]
    return World(
        shards=everyone.shards,
        plan=TraversalPlan(*(np.stack(fields) for fields in zip(*plans, strict=True))),
        active=np.stack(active),
        scale=scale,
        profiles=vcca.value_profiles([PROTECTED], profiles),
        validation=rows.validation,
        audit=rows.audit,
        protected=rows.protected,
        test=rows.test,
        seed=np.int32(seed),
    )


def _with_sybils(
    members: Cooperative,
    conduct: Conduct,
    rows: Rows,
    shards: list[Shard],
    room: dict[str, int],
) -> Cooperative:
    """The cooperative in which owners appear as the identities they pose as."""
    if not conduct.moves:
        return members
    parts = dict(enumerate(shards))
    for slot, move in conduct.moves.items():
        places = move(rows.train[slot], shards[slot])
        for identity in sorted({s for s, _ in places}):
            own = [r for r, (s, _) in enumerate(places) if s == identity]
            parts[identity] = tuple(part[own] for part in shards[slot])
    ordered = sorted(parts)  # identities fill the free slots from the first one on
    names = [f"identity {slot:02}" for slot in ordered]
    return vcca.cooperative([parts[slot] for slot in ordered], names=names, **room)


def _moved(plan: TraversalPlan, conduct: Conduct, rows: Rows, shards: list[Shard]) -> TraversalPlan:
    """The same virtual batches, every sample under the identity that now brings it."""
    holders, places = plan.owners.copy(), plan.rows.copy()
    for slot, move in conduct.moves.items():
        own = plan.owners == slot
        moved = np.array(move(rows.train[slot], shards[slot]), np.int32)
        holders[own], places[own] = moved[plan.rows[own]].T
    return TraversalPlan(holders, places, plan.mask)


def _invented(rows: Rows, own: Shard, seed: int) -> Shard:
    return corruption.invent(own, classes=CLASSES, seed=seed)


def _flipped(rows: Rows, own: Shard, seed: int) -> Shard:
    return corruption.flip_labels(own, classes=CLASSES, seed=seed)


def _against_the_value(rows: Rows, own: Shard, seed: int) -> Shard:
    """Only samples of the protected group, all with wrong labels."""
    inputs, targets = corruption.flip_labels(own, classes=CLASSES, seed=seed)
    few = len(inputs) // 4
    return np.concatenate([inputs[:few], 1 - inputs[few:]]), targets


def _copied(rows: Rows, own: Shard, seed: int) -> Shard:
    return corruption.replica(rows.train[0])


def _leaked(rows: Rows, own: Shard, seed: int) -> Shard:
    """The utility's own rows in place of all ordinary ones."""
    few, generator = len(own[1]) // 4, np.random.default_rng((seed, 3))
    chosen = generator.permutation(len(rows.validation[1]))[: len(own[1]) - few]
    pairs = zip(own, rows.validation, strict=True)
    return tuple(np.concatenate([mine[:few], leaked[chosen]]) for mine, leaked in pairs)


def _partly_wrong(rows: Rows, own: Shard, seed: int) -> Shard:
    return corruption.flip_labels(own, classes=CLASSES, fraction=0.3, seed=seed)


def _evenly(slot: int) -> Move:
    """Deal the rows out to the slot itself and all the sybils', as ``corruption.split`` does."""
    slots = (slot, *SYBIL_SLOTS)

    def places(own: Shard, brought: Shard) -> list[tuple[int, int]]:
        return [(slots[r % len(slots)], r // len(slots)) for r in range(len(brought[1]))]

    return places


def _wrong_apart(own: Shard, brought: Shard) -> list[tuple[int, int]]:
    """Park the wrongly labelled rows with a second identity."""
    right = own[1] == brought[1]
    return [
        (CHEAT, int(right[:r].sum())) if right[r] else (SYBIL_SLOTS[0], int((~right[:r]).sum()))
        for r in range(len(right))
    ]


def scenarios(config: Config) -> dict[str, Scenario]:
    """All of them by name; what each cheat is compared with is its ``twin``."""

    def repeated(rows: Rows, own: Shard, seed: int) -> Shard:
        return corruption.repeat(own, config.repeats)

    def jittered(rows: Rows, own: Shard, seed: int) -> Shard:
        return corruption.add_noise(repeated(rows, own, seed), scale=0.05, seed=seed)

    def cheat(bring: Bring) -> Conduct:
        return Conduct(shards={CHEAT: bring})

    breaker = Conduct(shards={CHEAT: _against_the_value}, unbound=(CHEAT,))
    return {
        "honest": Scenario(Conduct(), twin="", shown="honest"),
        "free rider": Scenario(Conduct(scale={CHEAT: 0.0}), shown="free rider, zero update"),
        "inventor": Scenario(cheat(_invented), shown="free rider, invented data"),
        "label flipper": Scenario(cheat(_flipped), shown="label flipper"),
        "value breaker": Scenario(breaker, shown="value breaker"),
        "replicator": Scenario(cheat(_copied), shown="replicator"),
        "splitter": Scenario(
            Conduct(moves={CHEAT: _evenly(CHEAT)}), shown="splitter, 4 identities"
        ),
        "honest, no values": Scenario(
            Conduct(unbound=ALL), twin="", shown="honest, nobody screened"
        ),
        "splitter, no values": Scenario(
            Conduct(moves={CHEAT: _evenly(CHEAT)}, unbound=ALL),
            twin="honest, no values",
            shown="splitter, nobody screened",
        ),
        "part wrong": Scenario(cheat(_partly_wrong), twin="", shown="honest, 30 % wrong labels"),
        "parker": Scenario(
            Conduct(shards={CHEAT: _partly_wrong}, moves={CHEAT: _wrong_apart}),
            twin="part wrong",
            shown="splitter, parks wrong rows",
        ),
        "late joiner": Scenario(Conduct(joins=(CHEAT,)), shown="late joiner"),
        "leaver": Scenario(Conduct(leaves=(CHEAT,)), shown="leaver"),
        "size liar": Scenario(cheat(repeated), shown="size liar, rows × 3"),
        "jittering liar": Scenario(cheat(jittered), shown="size liar, rows × 3 with noise"),
        "over-fitter": Scenario(cheat(_leaked), shown="validation over-fitter"),
        "honest, everyone": Scenario(Conduct(), "everyone", "", "honest"),
        "breaker, everyone": Scenario(breaker, "everyone", "honest, everyone", "value breaker"),
        "honest, reject": Scenario(Conduct(), "reject", "", "honest"),
        "breaker, reject": Scenario(breaker, "reject", "honest, reject", "value breaker"),
        "mixed": Scenario(_mixed(repeated), twin="", shown="all at once"),
    }


def _mixed(repeated: Bring) -> Conduct:
    """Every kind at once, in the slots of ``MIXED``; nobody has a counterpart to compare with."""
    slot = {kind: i for i, kind in enumerate(MIXED)}
    leaver, joiner = slot["leaver"], slot["late joiner"]
    rider, breaker = slot["free rider, zero update"], slot["value breaker"]
    return Conduct(
        shards={
            slot["free rider, invented data"]: _invented,
            slot["label flipper"]: _flipped,
            breaker: _against_the_value,
            slot["replicator"]: _copied,
            slot["size liar, rows × 3"]: repeated,
            slot["validation over-fitter"]: _leaked,
        },
        moves={slot["splitter, 4 identities"]: _evenly(slot["splitter, 4 identities"])},
        scale={rider: 0.0},
        joins=(joiner,),
        leaves=(leaver,),
        unbound=(breaker,),
    )


def owners(name: str) -> list[int]:
    """Slot -> slot of the principal behind it: identities beyond the sixteen are the splitter's."""
    splitter = MIXED.index("splitter, 4 identities") if name == "mixed" else CHEAT
    return [slot if slot not in SYBIL_SLOTS else splitter for slot in range(CAPACITY)]
