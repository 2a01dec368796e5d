"""What a ledger is opened with and keeps for good: its first entry."""

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from vcca_jax.ledger import chain
from vcca_jax.ledger.errors import ForeignLedgerError, LedgerError

FORMAT: Final = "vcca-ledger-1"
ROUNDINGS: Final = ("largest_remainder", "running_floor")


class Terms(NamedTuple):
    """The agreement under which a ledger settles; fixed when the ledger is created.

    Attributes:
        run: Name of the run the ledger belongs to, or None for any.
        config: Digest of the run's configuration, or None.
        principals: Names of the first principals, sorted; None registers whoever is first credited.
        currency: Code of the currency whose minor units are counted.
        scale_bits: Credits are kept as integers in units of 2^-scale_bits.
        rule: Spec of the share rule.
        rounding: "largest_remainder" (exact within a period) or "running_floor" (exact over time).
        release_lag: Settlements for which a payout stays in escrow; 0 pays at once.
    """

    run: str | None
    config: str | None
    principals: tuple[str, ...] | None
    currency: str
    scale_bits: int
    rule: Mapping[str, Any]
    rounding: str
    release_lag: int

    def content(self) -> dict[str, Any]:
        """Return the content of the ledger's first entry."""
        return {
            **self._asdict(),
            "format": FORMAT,
            "kind": "open",
            "principals": None if self.principals is None else list(self.principals),
            "seq": 0,
        }


def terms_from_content(content: Mapping[str, Any]) -> Terms:
    """Read the terms back from the first entry.

    Raises:
        ForeignLedgerError: If the entry is of another format.
    """
    if content.get("kind") != "open" or content.get("format") != FORMAT:
        raise ForeignLedgerError(
            f"the ledger's format is {content.get('format')!r}; this version reads {FORMAT!r}: "
            "open it with the version that wrote it"
        )
    names = content["principals"]
    return Terms(
        run=content["run"],
        config=content["config"],
        principals=None if names is None else tuple(names),
        currency=content["currency"],
        scale_bits=int(content["scale_bits"]),
        rule=content["rule"],
        rounding=content["rounding"],
        release_lag=int(content["release_lag"]),
    )


def check_name(name: object) -> str:
    """Return a principal's name if it can be one.

    Raises:
        LedgerError: If it is no text, empty, or begins with "@", which the ledger keeps for itself.
    """
    if not isinstance(name, str) or not name or name.startswith("@"):
        raise LedgerError(
            f"principal is {name!r}; a name is text, not empty, and does not begin with '@'"
        )
    return name


def check_names(names: Sequence[str]) -> tuple[str, ...]:
    """Return principals' names, sorted, if they can be a cooperative's.

    Raises:
        LedgerError: If `names` is a text by itself, if a name repeats or can't be one.
    """
    if isinstance(names, str):
        raise LedgerError(f"principals is {names!r}; give a list of names")
    found = [check_name(name) for name in names]
    if len(set(found)) != len(found):
        raise LedgerError(f"principals are {found}; name each of them once")
    return tuple(sorted(found))


def check_terms(terms: Terms) -> None:
    """Refuse terms that no ledger can be created with.

    Raises:
        LedgerError: Naming the term, its value and the remedy.
    """
    if not isinstance(terms.currency, str) or not terms.currency:
        raise LedgerError(f"currency is {terms.currency!r}; give a code such as 'EUR'")
    if terms.scale_bits < 0:
        raise LedgerError(f"scale_bits is {terms.scale_bits}; give 0 or more")
    if terms.rounding not in ROUNDINGS:
        raise LedgerError(f"rounding is {terms.rounding!r}; give one of {', '.join(ROUNDINGS)}")
    if chain.parse(chain.canonical({"rule": terms.rule}))["rule"] != terms.rule:
        raise LedgerError(f"the rule's spec is {dict(terms.rule)}; write its numbers as text")
    if terms.release_lag < 0:
        raise LedgerError(f"release_lag is {terms.release_lag}; give 0 or more settlements")


def match(terms: Terms, registered: Sequence[str], wanted: Mapping[str, Any]) -> None:
    """Refuse a ledger whose terms are not those asked for; None asks for nothing.

    Args:
        terms: The ledger's own.
        registered: The principals known to the ledger by now.
        wanted: Name of a term -> its value asked for.

    Raises:
        ForeignLedgerError: Naming the first term that differs.
    """
    for name, value in wanted.items():
        if value is None:
            continue
        found: Any = getattr(terms, name)
        if name == "principals":
            value = list(check_names(value))
            if terms.principals is None:
                fits = set(registered) <= set(value)
            else:
                fits = value in (sorted(terms.principals), sorted(registered))
            found = sorted(registered)
        else:
            fits = found == value
        if not fits:
            raise ForeignLedgerError(
                f"the ledger's {name} is {found!r}, not {value!r}: it belongs to other terms; "
                "give the ledger's own, or another path for a new ledger"
            )
