"""What a ledger is opened with and keeps for good: its first entry."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from vcca_jax.ledger import chain
from vcca_jax.ledger.errors import ForeignLedgerError, LedgerError
from vcca_jax.settlement import whole_number
from vcca_jax.share_rules import ShareRule, check_rule

FORMAT: Final = "vcca-ledger-1"
LAGGING: Final = "vcca-ledger-2"
"""Of ledgers with a release lag, which is counted in each stream. In those of the first format it
was counted over all streams together, and is still when they are replayed."""
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
        format: Name of the way in which entries follow from what was asked.
    """

    run: str | None
    config: str | None
    principals: tuple[str, ...] | None
    currency: str
    scale_bits: int
    rule: Mapping[str, Any]
    rounding: str
    release_lag: int
    format: str = FORMAT

    def content(self) -> dict[str, Any]:
        """Return the content of the ledger's first entry."""
        return {
            **self._asdict(),
            "kind": "open",
            "principals": None if self.principals is None else list(self.principals),
            "seq": 0,
        }


def terms_from_content(content: Mapping[str, Any]) -> Terms:
    """Read the terms back from the first entry.

    Raises:
        ForeignLedgerError: If the entry is of another format.
    """
    if content.get("kind") != "open" or content.get("format") not in (FORMAT, LAGGING):
        raise ForeignLedgerError(
            f"the ledger's format is {content.get('format')!r}; this version reads {FORMAT!r} and "
            f"{LAGGING!r}: open it with the version that wrote it"
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
        format=content["format"],
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


def check_names(names: Iterable[str]) -> tuple[str, ...]:
    """Return principals' names, sorted, if they can be a cooperative's.

    Raises:
        LedgerError: If `names` is a text by itself or no collection, if a name repeats or can't be
            one.
    """
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise LedgerError(f"principals is {names!r}; give a list of names")
    found = [check_name(name) for name in names]
    if len(set(found)) != len(found):
        raise LedgerError(f"principals are {found}; name each of them once")
    return tuple(sorted(found))


LARGEST_SCALE: Final = 1023
"""Most binary digits of a credit; 2^1023 is the largest power of two that a float can be."""


def checked_terms(
    rule: ShareRule | None,
    *,
    scale_bits: object,
    release_lag: object,
    principals: Iterable[str] | None,
    **others: Any,
) -> dict[str, Any]:
    """Return what a ledger is asked to be opened with, each term as the ledger writes it.

    Args:
        rule: The share rule, or None.
        scale_bits, release_lag: Whole numbers of any library, or None.
        principals: Names, or None.
        others: The other terms, each a text or None.

    Raises:
        LedgerError: Naming the term, its value and the remedy.
    """
    if rule is not None:
        try:
            check_rule(rule)
        except ValueError as error:
            raise LedgerError(str(error)) from None
    for name, value in others.items():
        if value is not None and not isinstance(value, str):
            raise LedgerError(f"{name} is {value!r}; give a text")
    if others["currency"] == "":
        raise LedgerError("currency is ''; give a code such as 'EUR'")
    rounding = others["rounding"]
    if rounding is not None and rounding not in ROUNDINGS:
        raise LedgerError(f"rounding is {rounding!r}; give one of {', '.join(ROUNDINGS)}")
    return {
        **others,
        "principals": None if principals is None else check_names(principals),
        "scale_bits": _whole("scale_bits", scale_bits, LARGEST_SCALE),
        "rule": None if rule is None else rule.spec,
        "release_lag": _whole("release_lag", release_lag, 2**63 - 1),
    }


def _whole(name: str, value: object, most: int) -> int | None:
    if value is None:
        return None
    whole = whole_number(value)
    if whole is None or not 0 <= whole <= most:
        raise LedgerError(f"{name} is {value!r}; give a whole number, 0 to {most}")
    return whole


def innermost(spec: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the spec of the rule that looks at credit, be it within others that change shares."""
    while isinstance(of := spec.get("of"), Mapping):
        spec = of
    return spec


def rule_scale(spec: Mapping[str, Any]) -> str | None:
    """Return the scale_bits of a rule that has any, be it within others; None if it fits all."""
    own = innermost(spec)
    return own.get("scale_bits") if own.get("rule") == "softmax" else None


def new_terms(asked: Mapping[str, Any], rule: ShareRule) -> Terms:
    """Return the terms of a new ledger.

    Args:
        asked: What `checked_terms` returned; None stands for the usual.
        rule: The share rule.

    Raises:
        LedgerError: If the rule counts credits in other units than the ledger, or the terms would
            not be read back as they were written.
    """
    usual = {"currency": "EUR", "scale_bits": 40, "rounding": ROUNDINGS[0], "release_lag": 0}
    given = {name: value for name, value in asked.items() if value is not None}
    given["format"] = LAGGING if given.get("release_lag") else FORMAT
    terms = Terms(**{**dict.fromkeys(Terms._fields), **usual, **given, "rule": rule.spec})
    scale = rule_scale(rule.spec)
    if scale not in (None, str(terms.scale_bits)):
        raise LedgerError(
            f"the rule softmax has scale_bits={scale} and the ledger has"
            f" scale_bits={terms.scale_bits}; give both the same"
        )
    try:
        same = terms_from_content(chain.parse(chain.canonical(terms.content()))) == terms
    except (TypeError, ValueError, AttributeError):
        same = False
    if not same:
        raise LedgerError(f"the rule's spec is {dict(terms.rule)}; write its numbers as text")
    return terms


def match(terms: Terms, registered: Sequence[str], wanted: Mapping[str, Any]) -> None:
    """Refuse a ledger whose terms are not those asked for; None asks for nothing.

    Args:
        terms: The ledger's own.
        registered: The principals known to the ledger by now.
        wanted: Name of a term -> its value asked for, as `checked_terms` returned it.

    Raises:
        ForeignLedgerError: Naming the first term that differs.
    """
    for name, value in wanted.items():
        if value is None:
            continue
        found: Any = getattr(terms, name)
        if name == "principals":
            value = list(value)
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
