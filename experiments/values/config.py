"""What the experiment fixes before it looks at any result."""

from typing import NamedTuple


class Size(NamedTuple):
    """Terms of one setting.

    Attributes:
        epochs, batch_size: of the virtual batches.
        learning_rate: of plain SGD.
        adam_rate: of Adam.
        hidden: widths of the hidden layers; the body is the first of them.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    adam_rate: float
    hidden: tuple[int, ...]


class Config(NamedTuple):
    """Sizes and terms; ``FULL`` is the experiment, ``SMOKE`` a tiny one of the hospitals alone.

    Attributes:
        seeds: runs of every condition, each with its own split, parameters and batches.
        first_seed: theirs are counted from here.
        settings: which of them are run.
        conditions: which of them are run; all by default.
        heart, adult, fashion: their terms.
        adult_rows: people drawn in all; 55 % of them are trained on.
        fashion_train, fashion_values, fashion_validation, fashion_test: images.
        few: the share of the value rows that is left where they are made few.
        counts: principals who state their constraints, in the sweep over them.
        prices: of the gap in Adult, in the sweep over them; the last is infinite.
        etas: learning rates of the sweep of single steps.
    """

    seeds: int = 5
    first_seed: int = 0
    settings: tuple[str, ...] = ("heart", "adult", "fashion")
    conditions: tuple[str, ...] | None = None
    heart: Size = Size(20, 64, 0.1, 0.01, (16, 8))
    adult: Size = Size(15, 256, 0.5, 0.01, (16, 8))
    fashion: Size = Size(8, 256, 0.1, 0.003, (32,))
    adult_rows: int = 10_900
    fashion_train: int = 6000
    fashion_values: int = 1000
    fashion_validation: int = 500
    fashion_test: int = 2000
    few: float = 0.125
    counts: tuple[int, ...] = (1, 2, 4)
    prices: tuple[float, ...] = (0.01, 0.1, 1.0, float("inf"))
    etas: tuple[float, ...] = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)


FULL = Config()
SMOKE = Config(
    seeds=2,
    settings=("heart",),
    conditions=("unscreened", "everyone", "verified", "adam, verified", "1 stating"),
    heart=Size(2, 128, 0.1, 0.01, (4,)),
    counts=(1,),
    etas=(0.01, 0.1),
)
