"""What the experiment fixes before it looks at any result."""

from typing import Any, NamedTuple

from experiments.pages import plain

AGENTS = 8
"""So few that all 256 coalitions are retrained; the roles of ``cheats`` need exactly these."""

UPDATE_CHEATS = "update cheats"
SCENARIOS = ("label noise", "sizes", "cheats", UPDATE_CHEATS)


class Task(NamedTuple):
    """One data set and what is trained on it.

    Attributes:
        data: the set's name.
        train, validation, test: rows of each; what is trained on is all agents' together.
        steps: T, of the run that is valued.
        batch_size: of the virtual batches.
        hidden: widths of the hidden layers of a perceptron.
        rate: learning rate.
        adam: whether the optimizer is Adam; else SGD with momentum 0.9.
    """

    data: str
    train: int
    validation: int
    test: int
    steps: int
    batch_size: int
    hidden: tuple[int, ...]
    rate: float
    adam: bool = False


class Config(NamedTuple):
    """Sizes and terms; ``FULL`` is the experiment, ``SMOKE`` a tiny one on bundled digits.

    Attributes:
        tasks: by name; the last two of ``FULL`` tell the optimizer's part from the data's.
        scenarios: what tells the agents apart.
        seeds: each has its own rows, partition, initial parameters and batch order.
        axiom_seeds: of the games that the axioms are measured on; 0 leaves them out.
        nodes: of whole-run Aumann-Shapley.
        orders: of permutation sampling.
        budgets: evaluations of stratified sampling and the regressions.
        chunk: coalitions retrained side by side, which bounds the memory.
        programs: names of those that are run beside the retraining; all by default.
    """

    tasks: dict[str, Task]
    scenarios: tuple[str, ...] = SCENARIOS
    seeds: int = 5
    axiom_seeds: int = 5
    nodes: tuple[int, ...] = (2, 4, 8)
    orders: tuple[int, ...] = (8, 32)
    budgets: tuple[int, ...] = (40, 80)
    chunk: int = 64
    programs: tuple[str, ...] | None = None


FULL = Config(
    tasks={
        "digits": Task("digits", 800, 400, 597, 100, 64, (32,), 0.05),
        "heart": Task("heart", 456, 200, 200, 90, 32, (8,), 0.05),
        "fashion": Task("fashion", 1000, 600, 2000, 96, 64, (16,), 0.05),
        "adult": Task("adult", 1500, 1000, 1500, 120, 64, (8,), 0.01, adam=True),
        "digits, Adam": Task("digits", 800, 400, 597, 100, 64, (32,), 0.01, adam=True),
        "adult, SGD": Task("adult", 1500, 1000, 1500, 120, 64, (8,), 0.05),
    }
)

SMOKE = Config(
    tasks={"digits": Task("digits", 96, 60, 60, 3, 32, (4,), 0.3)},
    scenarios=("cheats",),
    seeds=2,
    axiom_seeds=1,
    nodes=(2,),
    orders=(8,),
    budgets=(40,),
    programs=("Aumann-Shapley of the run, 2", "online in-run 1", "gradient norm"),
)


def told(config: Config, name: str) -> Any:
    """What a cell of a data set depends on, as JSON gives it back."""
    fields = ("nodes", "orders", "budgets", "chunk", "programs")
    fixed = {field: getattr(config, field) for field in fields}
    return plain({**fixed, "task": config.tasks[name]._asdict()})
