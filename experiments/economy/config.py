"""What the experiment fixes before it looks at any result."""

from typing import NamedTuple


class Config(NamedTuple):
    """Sizes and terms; ``FULL`` is the experiment, ``SMOKE`` the same in seconds.

    Attributes:
        seeds: runs of every scenario, each with its own rows, parameters and batches.
        first_seed: theirs are counted from here.
        agents: members of the cooperative.
        rows: training samples of an honest agent; a quarter of them are of the protected group.
        periods: settlement periods, one epoch each.
        batch_size, steps: of an epoch's virtual batches.
        learning_rate: of plain SGD.
        hidden: width of the hidden layer.
        validation: rows of the utility, and as many of the audit.
        value_rows: held-out rows of the protected group.
        revenue: minor units a period.
        repeats: how often the size liar sends each row.
        permutations: of permutation Shapley a step, in antithetic pairs.
        join_at: the late joiner's first period, counted from 0.
        leave_at: the first period that the leaver misses.
        temperature: of the softmax rule, in nats of validation loss.
        cap: greatest share of a period's revenue, under the capped rule.
        floor: least share, under the rule with a floor.
        duplicate_threshold: cosine above which two agents are reported.
        row_threshold: cosine above which two rows of one agent count as one.
        report_after: periods before the first report.
    """

    seeds: int = 16
    first_seed: int = 100
    agents: int = 16
    rows: int = 64
    periods: int = 50
    batch_size: int = 288
    steps: int = 4
    learning_rate: float = 0.3
    hidden: int = 32
    validation: int = 240
    value_rows: int = 150
    revenue: int = 1_000_000
    repeats: int = 3
    permutations: int = 2
    join_at: int = 20
    leave_at: int = 30
    temperature: str = "1/500"
    cap: str = "1/10"
    floor: str = "1/100"
    duplicate_threshold: float = 0.75
    row_threshold: float = 0.95
    report_after: int = 5


FULL = Config()
SMOKE = Config(
    seeds=2,
    rows=16,
    periods=4,
    batch_size=80,
    hidden=8,
    validation=60,
    value_rows=40,
    permutations=2,
    join_at=2,
    leave_at=2,
    report_after=2,
)

ESTIMATORS = (
    "aumann_shapley",
    "influence",
    "in_run order 1",
    "in_run order 2",
    "leave_one_out",
    "permutation_shapley",
    "aumann_shapley on audit rows",
)
DEFAULT_ESTIMATOR, AUDIT = ESTIMATORS[0], ESTIMATORS[-1]
DEFAULT_RULE = "high water mark"
