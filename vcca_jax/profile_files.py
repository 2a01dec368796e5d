"""Value profiles as files: TOML that a principal can read, write and keep.

    [profiles.hungarian]
    protect = { women = 0.0 }                               # value = margin
    forbid = { "sex told" = { margin = 0.0, price = 2.0 } }
    preserve = { men = 0.0 }                                # value = rate
    max_norm = 0.5
    within_angle = { women = 60.0 }                         # value = degrees
    trust_region = [{ values = ["women", "men"], radius = 0.1 }]
    freeze = ["body"]
    weight = 2.0                                            # the say under the scope "weighted"

Every constraint but a freeze by predicate can be written, and comes back as it was. A file holds
nothing but profiles, or is the configuration of a run. This module needs pydantic and tomli-w,
which the ``experiments`` extra brings.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

import tomli_w
from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator
from pydantic import model_serializer as serializer

from vcca_jax.constraints import (
    AngleCone,
    Constraint,
    Freeze,
    HalfSpace,
    MaxNorm,
    TrustRegion,
    forbid,
    freeze,
    max_norm,
    preserve,
    protect,
    trust_region,
    within_angle,
)
from vcca_jax.settings import Number, Section, parse, read_toml


class Bound(Section):
    """A half-space's margin (a rate, where a value is preserved), and its price if it has one.

    Written as the margin alone, or as ``{ margin = 0.0, price = 2.0 }``; without a price it is not
    for sale.
    """

    margin: Number = 0.0
    price: Annotated[float, Field(strict=True)] = math.inf

    @model_validator(mode="before")
    @classmethod
    def _number_is_margin(cls, content: Any) -> Any:
        if isinstance(content, int | float) and not isinstance(content, bool):
            return {"margin": content}
        if not isinstance(content, dict | Bound):
            raise ValueError("give a margin, such as 0.0, or { margin = 0.0, price = 2.0 }")
        return content

    @model_validator(mode="after")
    def _can_be_made(self) -> Self:
        protect("", self.margin, price=self.price)
        return self

    @serializer(mode="wrap")
    def _written(self, handler: Any) -> Any:
        return self.margin if math.isinf(self.price) else handler(self)


class Region(Section):
    """How far the named values may move altogether; see ``trust_region``."""

    values: tuple[str, ...]
    radius: Number

    @model_validator(mode="after")
    def _can_be_made(self) -> Self:
        trust_region(self.values, self.radius)
        return self


def _listed(content: Any) -> Any:
    if isinstance(content, str | dict):
        raise ValueError("this is one; give a list of them, in [ ]")
    return content


def _degrees(number: float) -> float:
    if not 0 < number < 90:
        raise ValueError("an angle must be above 0 and below 90 degrees; protect is 90")
    return number


def _positive(number: float) -> float:
    try:
        return max_norm(number).limit
    except ValueError:
        raise ValueError("this must be a finite number above zero") from None


class Profile(Section):
    """A principal's profile as it is written: constraints by kind, and the principal's weight."""

    added: ClassVar[frozenset[str]] = frozenset(
        {"preserve", "max_norm", "within_angle", "trust_region", "freeze", "weight"}
    )

    protect: dict[str, Bound] = Field(default_factory=dict)
    forbid: dict[str, Bound] = Field(default_factory=dict)
    preserve: dict[str, Bound] = Field(default_factory=dict)
    max_norm: Annotated[Number, AfterValidator(_positive)] | None = None
    within_angle: dict[str, Annotated[Number, AfterValidator(_degrees)]] = Field(
        default_factory=dict
    )
    trust_region: Annotated[tuple[Region, ...], BeforeValidator(_listed)] = ()
    freeze: Annotated[tuple[str, ...], BeforeValidator(_listed)] = ()
    weight: Annotated[Number, AfterValidator(_positive)] = 1.0

    @field_validator("trust_region")
    @classmethod
    def _regions_differ(cls, regions: tuple[Region, ...]) -> tuple[Region, ...]:
        named = [frozenset(region.values) for region in regions]
        if len(set(named)) < len(named):
            raise ValueError("two regions are of the same values; keep the one of smaller radius")
        return regions

    @field_validator("freeze")
    @classmethod
    def _parts_differ(cls, parts: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(parts)) < len(parts):
            raise ValueError("a part is frozen twice; name each once")
        return parts

    def constraints(self) -> list[Constraint]:
        """The constraints, in the order of the kinds."""
        limits = [] if self.max_norm is None else [max_norm(self.max_norm)]
        return [
            *(protect(name, b.margin, price=b.price) for name, b in self.protect.items()),
            *(forbid(name, b.margin, price=b.price) for name, b in self.forbid.items()),
            *(preserve(name, b.margin, price=b.price) for name, b in self.preserve.items()),
            *limits,
            *(within_angle(name, degrees) for name, degrees in self.within_angle.items()),
            *(trust_region(region.values, region.radius) for region in self.trust_region),
            *(freeze(part) for part in self.freeze),
        ]

    def value_names(self) -> list[str]:
        """The values that the profile speaks of, each once."""
        half_spaces = (*self.protect, *self.forbid, *self.preserve, *self.within_angle)
        regions = (name for region in self.trust_region for name in region.values)
        return list(dict.fromkeys((*half_spaces, *regions)))


class ProfileFile(Section):
    """A file that holds profiles and nothing else."""

    profiles: dict[str, Profile]


def profile_of(constraints: Sequence[Constraint], *, weight: float = 1.0) -> Profile:
    """Write a profile's constraints as settings; ``Profile.constraints`` reads them back.

    Args:
        constraints: the principal's, in any order. Read back, they are ordered by kind.
        weight: the principal's say under the scope "weighted".

    Raises:
        ValueError: a freeze by predicate, which no file can hold; the same constraint twice, or
            something that is no constraint.
    """
    tables: dict[str, Any] = {}
    for constraint in constraints:
        if isinstance(constraint, HalfSpace):
            content: Any = {"margin": constraint.margin, "price": constraint.price}
            _put(tables, constraint.kind, constraint.value, content)
        elif isinstance(constraint, AngleCone):
            _put(tables, "within_angle", constraint.value, constraint.degrees)
        elif isinstance(constraint, MaxNorm):
            if "max_norm" in tables:
                raise ValueError("constraints state max_norm() twice; keep one")
            tables["max_norm"] = constraint.limit
        elif isinstance(constraint, TrustRegion):
            region = {"values": constraint.values, "radius": constraint.radius}
            tables.setdefault("trust_region", []).append(region)
        elif isinstance(constraint, Freeze):
            if not isinstance(constraint.part, str):
                raise ValueError(
                    f"freeze({constraint.part!r}) is by a predicate, which cannot be written; name"
                    ' the parts by their paths, such as freeze("body")'
                )
            tables.setdefault("freeze", []).append(constraint.part)
        else:
            raise ValueError(f"constraints hold {constraint!r}, which is none; use protect() etc.")
    return parse(Profile, {**tables, "weight": float(weight)}, "the profile", "written")


def read_profiles(path: str | Path) -> dict[str, Profile]:
    """Read a file of profiles, by the principals' names.

    Raises:
        ConfigError: the file is absent or no TOML, or a setting is unknown or out of range; every
            fault is named with its place.
    """
    return parse_profiles(read_toml(path, "file of profiles"), str(path))


def parse_profiles(content: Mapping[str, Any], origin: str) -> dict[str, Profile]:
    """Validate profiles given as nested dicts; ``origin`` names them in errors.

    Raises:
        ConfigError: as ``read_profiles``.
    """
    return parse(ProfileFile, content, origin, "read").profiles


def profiles_toml(profiles: Mapping[str, Profile]) -> str:
    """The profiles as TOML, the same text for the same profiles in the same order."""
    written = {}
    for name, profile in profiles.items():
        settings = profile.model_dump()
        for kind in ("protect", "forbid", "preserve"):
            bounds = settings.get(kind, {})
            # TOML has a table's plain entries before its tables: so that the order is kept, where
            # one bound has a price all are written out.
            if any(isinstance(bound, dict) for bound in bounds.values()):
                settings[kind] = {
                    value: bound if isinstance(bound, dict) else {"margin": bound}
                    for value, bound in bounds.items()
                }
        written[name] = {key: told for key, told in settings.items() if told != {}}
    return tomli_w.dumps({"profiles": written})


def _put(tables: dict[str, Any], kind: str, name: str, content: Any) -> None:
    table = tables.setdefault(kind, {})
    if name in table:
        raise ValueError(f"constraints state {kind}({name!r}) twice; keep one")
    table[name] = content
