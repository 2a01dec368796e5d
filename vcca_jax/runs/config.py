"""The configuration of a run: typed, validated, and the same bytes for the same meaning."""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from vcca_jax.profile_files import Profile
from vcca_jax.runs.errors import RunError
from vcca_jax.runs.rules import Rule
from vcca_jax.settings import ConfigError, Section, parse, read_toml

Positive = Annotated[int, Field(ge=1)]


class Data(Section):
    """Which study, and how each agent's rows are dealt to train, values, validation and test."""

    study: Literal["heart_disease"] = "heart_disease"
    split_seed: Annotated[int, Field(ge=0)] = 0
    fractions: tuple[float, float, float, float] = (0.55, 0.15, 0.15, 0.15)


class Model(Section):
    """A multilayer perceptron and the layer at which it is cut."""

    hidden: tuple[Positive, ...] = (16, 8)
    cut: Annotated[int, Field(ge=0)] = 1


class Training(Section):
    """Plain SGD, under which the screened direction is the update's own; seeds are reruns."""

    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.1
    batch_size: Positive = 64
    epochs: Positive = 40
    seed: Annotated[int, Field(ge=0)] = 0
    seeds: Positive = 5


class Screening(Section):
    """How and by whom updates are screened; see ``screen``."""

    added: ClassVar[frozenset[str]] = frozenset({"policy"})

    method: Literal["project", "reject", "shrink"] = "project"
    scope: Literal["own", "everyone", "weighted"] = "everyone"
    policy: Literal["drop", "least_violation"] = "drop"


class Value(Section):
    """A value loss on the rows held out for values; exactly one of the kinds.

    ``group``: a group's mean loss. ``probe``: the loss of a probe for an attribute on the body's
    output. The others measure, between a group and the rest, how far the model is from the kind of
    fairness that they name; see ``fairness``.
    """

    added: ClassVar[frozenset[str]] = frozenset(
        {"demographic_parity", "equal_opportunity", "equalized_odds"}
    )

    group: str | None = None
    probe: str | None = None
    demographic_parity: str | None = None
    equal_opportunity: str | None = None
    equalized_odds: str | None = None

    @model_validator(mode="after")
    def _one_of_all(self) -> Self:
        if len([name for name in type(self).model_fields if getattr(self, name)]) != 1:
            raise ValueError(f"name exactly one of {', '.join(type(self).model_fields)}")
        return self

    def kind(self) -> tuple[str, str]:
        """Which kind it is, and of which group or attribute."""
        return next((name, of) for name, of in self if of)


class Credit(Section):
    """The estimator of each step's contributions; ``nodes`` are those of ``aumann_shapley``."""

    estimator: Literal[
        "aumann_shapley", "exact_shapley", "leave_one_out", "influence", "first_order", "in_run"
    ] = "aumann_shapley"
    nodes: Positive = 4


class Settlement(Section):
    """What comes in, in integer minor units of the currency, each period of some epochs.

    ``decimals`` are the digits of a minor unit: 2 for cents, 0 for yen. ``rule``, ``rounding`` and
    ``release_lag`` are the ledger's terms; see ``share_rules`` and ``Ledger.open``.
    """

    added: ClassVar[frozenset[str]] = frozenset({"decimals", "rule", "rounding", "release_lag"})

    currency: Annotated[str, Field(pattern=r"^[A-Z]{3}$")] = "EUR"
    decimals: Annotated[int, Field(ge=0, le=18)] = 2
    revenue: Annotated[int, Field(ge=0, le=2**63 - 1)] = 1_000_000
    epochs_per_period: Positive = 1
    rule: Rule = Rule()
    rounding: Literal["largest_remainder", "running_floor"] = "largest_remainder"
    release_lag: Annotated[int, Field(ge=0)] = 0


class RunConfig(Section):
    """All that decides a run's numbers.

    ``profiles`` is keyed by the agents' names; an agent without one accepts every update.
    """

    data: Data = Data()
    model: Model = Model()
    training: Training = Training()
    screening: Screening = Screening()
    values: Annotated[dict[str, Value], Field(min_length=1)]
    profiles: dict[str, Profile]
    credit: Credit = Credit()
    settlement: Settlement = Settlement()

    @model_validator(mode="after")
    def _coherent(self) -> Self:
        for agent, profile in self.profiles.items():
            for name in profile.value_names():
                if name not in self.values:
                    raise ValueError(
                        f"profiles.{agent} names the value {name!r}; the values are"
                        f" {list(self.values)}"
                    )
        if self.model.cut > len(self.model.hidden):
            raise ValueError(
                f"model.cut={self.model.cut} does not exist; choose 0 to {len(self.model.hidden)}"
            )
        period, epochs = self.settlement.epochs_per_period, self.training.epochs
        if epochs % period:
            raise ValueError(
                f"settlement.epochs_per_period={period} does not divide training.epochs={epochs}"
            )
        return self

    def canonical(self) -> str:
        """JSON text, the same for the same configuration."""
        return self.model_dump_json(indent=2) + "\n"

    def digest(self) -> str:
        """SHA-256 of the canonical text, in hexadecimal."""
        return hashlib.sha256(self.canonical().encode()).hexdigest()


def load_config(path: str | Path) -> RunConfig:
    """Read and validate a TOML file.

    Raises:
        ConfigError: the file is absent or no TOML, or a setting is unknown or out of range; every
            fault is named with its place.
    """
    return parse_config(read_toml(path), str(path))


def stored_config(folder: str | Path) -> RunConfig:
    """Read the configuration that a run's folder holds.

    Raises:
        ConfigError: there is none.
        RunError: it was damaged, or holds what only another version knows.
    """
    path = Path(folder) / "config.json"
    try:
        return parse_config(json.loads(path.read_bytes()), str(path))
    except FileNotFoundError:
        raise ConfigError(f"there is no run in {folder}; check the name") from None
    except ValueError as error:
        raise RunError(
            f"{path} is damaged, or of another version; restore it from a copy ({error})"
        ) from None


def parse_config(content: dict[str, Any], origin: str) -> RunConfig:
    """Validate a configuration given as nested dicts; ``origin`` names it in errors."""
    return parse(RunConfig, content, origin)
