"""The share rule that a configuration asks for."""

from decimal import Decimal
from typing import Any, ClassVar, Final, Literal, Self

from pydantic import model_validator

from vcca_jax import share_rules
from vcca_jax.settings import Number, Section
from vcca_jax.share_rules import ShareRule

_OPTIONS: Final[dict[str, tuple[str, ...]]] = {
    "high_water_mark": (),
    "per_period": (),
    "accumulated": (),
    "softmax": ("temperature",),
    "power": ("exponent", "of"),
    "bounded": ("of", "floor", "cap"),
}
_NEEDED: Final = {"power": ("exponent",), "bounded": ("of",)}


class Rule(Section):
    """A share rule by its name, and the options that it has; see ``share_rules``.

    In TOML a name alone, or a table: ``{ name = "power", exponent = 0.5, of = "per_period" }``.
    Numbers are taken as the decimals that were written.
    """

    added: ClassVar[frozenset[str]] = frozenset({"temperature", "exponent", "floor", "cap", "of"})

    name: Literal["high_water_mark", "per_period", "accumulated", "softmax", "power", "bounded"] = (
        "high_water_mark"
    )
    temperature: Number | None = None
    exponent: Number | None = None
    floor: Number | None = None
    cap: Number | None = None
    of: "Rule | None" = None

    @model_validator(mode="before")
    @classmethod
    def _named(cls, given: Any) -> Any:
        if isinstance(given, str):
            return {"name": given}
        if not isinstance(given, dict | Rule):
            raise ValueError("give a rule's name, or a table with its name and its options")
        return given

    @model_validator(mode="after")
    def _can_be(self) -> Self:
        options = _OPTIONS[self.name]
        given = [name for name in sorted(self.added) if getattr(self, name) is not None]
        for name in given:
            if name not in options:
                known = f"has {', '.join(options)}" if options else "has no options"
                raise ValueError(f"{name} is no option of {self.name}, which {known}; remove it")
        for name in _NEEDED.get(self.name, ()):
            if name not in given:
                raise ValueError(f"{self.name} needs {name}; give it")
        self.share_rule()
        return self

    def share_rule(self) -> ShareRule:
        """Make the rule.

        Raises:
            ValueError: an option is out of its range.
        """
        options: dict[str, Any] = {}
        for name in _OPTIONS[self.name]:
            chosen = getattr(self, name)
            if isinstance(chosen, Rule):
                options[name] = chosen.share_rule()
            elif chosen is not None:
                options[name] = Decimal(str(chosen))
        rule: ShareRule = getattr(share_rules, self.name)(**options)
        return rule
