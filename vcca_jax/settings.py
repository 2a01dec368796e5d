"""Settings that people write in TOML: typed sections, and faults told with place and remedy."""

import tomllib
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

import pydantic
from pydantic import Field, model_serializer


class ConfigError(ValueError):
    """A configuration that cannot be run, with the place and the remedy."""


Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
"""A finite number; TOML's words and truth values are none."""


class Section(pydantic.BaseModel):
    """A table of a TOML file; what it does not know it refuses.

    Settings in ``added`` came after configurations had been stored by their canonical text: they
    are left out of it where they have their defaults, so that it and its digest stay as they were.
    """

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)
    added: ClassVar[frozenset[str]] = frozenset()

    @model_serializer(mode="wrap")
    def _written(self, handler: Any) -> Any:

        def said(name: str) -> bool:
            default = type(self).model_fields[name].get_default(call_default_factory=True)
            return name not in self.added or getattr(self, name) != default

        return {name: content for name, content in handler(self).items() if said(name)}


AnySection = TypeVar("AnySection", bound=Section)


def read_toml(path: str | Path, what: str = "configuration") -> dict[str, Any]:
    """Read a TOML file as nested dicts.

    Raises:
        ConfigError: the file is absent, a folder or no TOML.
    """
    path = Path(path)
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"there is no {what} at {path}; check the path") from None
    except IsADirectoryError:
        raise ConfigError(f"{path} is a folder; name a TOML file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no valid TOML: {error}") from None


def parse(section: type[AnySection], content: Any, origin: str, use: str = "run") -> AnySection:
    """Validate nested dicts.

    Args:
        section: what they should be.
        content: the dicts.
        origin: names them in errors.
        use: what cannot be done with them if they are faulty.

    Raises:
        ConfigError: a setting is unknown, absent or out of range; every fault has its place.
    """
    try:
        return section.model_validate(content)
    except pydantic.ValidationError as error:
        faults = []
        for fault in error.errors():
            place = ".".join(str(part) for part in fault["loc"]) or "the file as a whole"
            words = fault["msg"].removeprefix("Value error, ")
            if fault["type"] == "extra_forbidden":
                words = "no such setting; remove it or correct its name"
            elif fault["type"] != "missing" and not isinstance(fault["input"], dict):
                words += f" (given: {fault['input']!r})"
            faults.append(f"  {place}: {words}")
        raise ConfigError(f"{origin} cannot be {use}:\n" + "\n".join(faults)) from None
