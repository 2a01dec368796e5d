"""The two ledgers as plain numbers: signed scores, balanced money, and what an entry does to them.

Books know nothing of files. A method of `Books` drafts an entry, complete and checked, and changes
nothing; `post` applies a draft. Settling and replaying draft through the same code, so a stored
entry is right exactly if drafting it again gives its bytes.

Accounts: `revenue` (the outside world, the only one that may go below zero), `carried` (revenue
waiting for a period with a gain), `principal:<name>`, `escrow:<name>`, `reserve` (what no principal
has a claim to) and `dust` (fractions of a unit held back under "running_floor").
"""

from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

from vcca_jax.ledger.drafts import (
    CARRIED,
    DUST,
    RESERVE_ACCOUNT,
    REVENUE,
    Draft,
    Request,
    integers,
    number_or_none,
    texts,
)
from vcca_jax.ledger.errors import LedgerError
from vcca_jax.ledger.terms import Terms, check_name
from vcca_jax.settlement import LARGEST_AMOUNT, allocate, exact, running_floor
from vcca_jax.share_rules import RESERVE, ShareRule, Standings


class Books:
    """Scores, balances and settled periods after some number of entries.

    Attributes:
        terms: The ledger's terms.
        rule: The share rule.
        count: Number of entries posted, which is the next entry's number.
        principals: Registered names, in order of registration.
        balances: account -> minor units; they sum to zero.
        scores: party -> sum of its quantised credits; the reserve is a party.
        marks: party -> the score it has been paid on.
        entitlements: party -> exact entitlement; kept under "running_floor" only.
        settled: period -> number of its settlement that stands.
        reversed: numbers of the settlements taken back.
        held: number of a settlement -> (the settlement that releases it, its payouts in escrow).
        settlements: Number of settlements ever posted.
    """

    def __init__(self, terms: Terms, rule: ShareRule) -> None:
        self.terms = terms
        self.rule = rule
        self.count = 0
        self.principals: dict[str, None] = {}
        self.balances: dict[str, int] = {}
        self.scores: dict[str, int] = {}
        self.marks: dict[str, int] = {}
        self.entitlements: dict[str, Fraction] = {}
        self.settled: dict[str, int] = {}
        self.reversed: set[int] = set()
        self.held: dict[int, tuple[int, dict[str, int]]] = {}
        self.settlements = 0

    def redraft(self, content: Mapping[str, Any], lookup: Callable[[int], dict[str, Any]]) -> Draft:
        """Draft a stored entry again from what it was asked with.

        Args:
            content: The stored content; only what the asker determined is read.
            lookup: Number of an earlier entry -> its content.

        Raises:
            ValueError, KeyError, TypeError: If the content can't be what these books would draft.
        """
        kind = content["kind"]
        if kind == "open":
            return self.draft_opening()
        if kind == "settle":
            credits = {name: int(credit) for name, credit in content["credits"].items()}
            request = Request(
                content["period"],
                credits,
                int(content["revenue"]),
                number_or_none(content["gain"]),
                number_or_none(content["carry_over"]),
                content["evidence"],
            )
            return self.draft_settlement(request)
        if kind == "join":
            return self.draft_joining(content["principal"])
        if kind == "release":
            draft = self.draft_release()
            if draft is None:
                raise LedgerError("nothing is due for release")
            return draft
        if kind == "claw_back":
            return self.draft_claw_back(content["period"], content["principal"], content["reason"])
        if kind == "reverse":
            of = int(content["of"])
            return self.draft_reversal(of, lookup(of), content["reason"])
        raise LedgerError(f"no entry is of kind {kind!r}")

    def draft_opening(self) -> Draft:
        """Draft the first entry, the terms."""
        if self.count:
            raise LedgerError("a ledger has one opening entry")
        return Draft(self.terms.content(), {}, newcomers=self.terms.principals or ())

    def draft_joining(self, principal: str) -> Draft:
        """Draft the registration of a principal."""
        if check_name(principal) in self.principals:
            raise LedgerError(f"principal {principal!r} is registered already")
        content = {"kind": "join", "principal": principal, "seq": str(self.count)}
        return Draft(content, {}, newcomers=(principal,))

    def draft_settlement(self, request: Request) -> Draft:
        """Draft a period: book its credits to the scores and divide its revenue.

        Raises:
            LedgerError: On an unknown principal, a negative or too large revenue.
            ValueError: If the share rule gives shares that can't be allocated.
        """
        if request.period in self.settled:
            raise LedgerError(f"period {request.period!r} is settled already")
        newcomers = tuple(name for name in request.credits if name not in self.principals)
        for name in newcomers:
            check_name(name)
            if self.terms.principals is not None:
                known = ", ".join(self.principals) or "none"
                raise LedgerError(
                    f"principal {name!r} is unknown (registered: {known}); "
                    "correct the name, or register it with join()"
                )
        credits = dict(request.credits)
        if request.carry_over is not None:
            credits[RESERVE] = request.carry_over
        scores = dict(self.scores)
        for party, credit in credits.items():
            scores[party] = scores.get(party, 0) + credit
        carried = self.balances.get(CARRIED, 0)
        amount = request.revenue + carried
        if request.revenue < 0:
            raise LedgerError(
                f"revenue is {request.revenue}; revenue is never negative: "
                "take a wrong settlement back with reverse()"
            )
        if amount > LARGEST_AMOUNT:
            raise LedgerError(
                f"revenue is {request.revenue} with {carried} carried; together they must not "
                "exceed 2^63 - 1: settle it in several periods"
            )
        postings = {REVENUE: -request.revenue}
        rises: dict[str, int] = {}
        shares: dict[str, int | Fraction] = {}
        entitlements, held = None, None
        if request.gain is not None and request.gain <= 0:
            outcome = "carried"
            postings[CARRIED] = request.revenue
        elif amount == 0:
            outcome = "unfunded"
        else:
            postings[CARRIED] = -carried
            shares = self._shares(credits, scores)
            if shares:
                outcome = "paid"
                marks = self.marks
                rises = {p: b - h for p, b in scores.items() if b > (h := marks.get(p, 0))}
                payouts, entitlements = self._divide(request.period, amount, shares)
                postings[DUST] = amount - sum(payouts.values())
                postings[RESERVE_ACCOUNT] = payouts.pop(RESERVE, 0)
                prefix = "escrow:" if self.terms.release_lag else "principal:"
                postings.update({prefix + name: paid for name, paid in payouts.items()})
                if self.terms.release_lag:
                    held = {name: paid for name, paid in payouts.items() if paid}
            else:
                outcome = "reserved"
                postings[RESERVE_ACCOUNT] = amount
        postings = {account: delta for account, delta in postings.items() if delta}
        content = {
            **request.content(),
            "above_mark": texts(rises),
            "kind": "settle",
            "outcome": outcome,
            "postings": texts(postings),
            "seq": str(self.count),
            # The default rule's shares are what rose above the mark: not written twice.
            "shares": None if shares == rises else texts(shares),
        }
        new_marks = {**self.marks, **{p: scores[p] for p in rises}} if rises else None
        self._check_postings(postings)
        return Draft(content, postings, scores, new_marks, entitlements, newcomers, held)

    def _shares(self, credits: dict[str, int], scores: dict[str, int]) -> dict[str, int | Fraction]:
        given = self.rule.shares(credits, Standings(scores, self.marks))
        shares = {
            party: share if type(share) is int else exact(share, f"the share of {party!r}")
            for party, share in given.items()
            if share
        }
        for party in shares:
            if party not in scores and party not in self.principals and party != RESERVE:
                raise LedgerError(
                    f"the share rule gives a share to {party!r}, whom nobody knows; "
                    "correct the rule"
                )
        return shares

    def _divide(
        self, period: str, amount: int, shares: dict[str, int | Fraction]
    ) -> tuple[dict[str, int], dict[str, Fraction] | None]:
        if self.terms.rounding == "running_floor":
            return running_floor(amount, shares, self.entitlements)
        # The period is part of the id, so that ties do not favour the same principal for ever.
        ids = [f"{period}/{party}" for party in shares]
        parts = allocate(amount, shares.values(), ids=ids)
        return dict(zip(shares, parts, strict=True)), None

    def draft_release(self) -> Draft | None:
        """Draft the release of the payouts whose lag has passed, or None if there are none."""
        for seq, (due, payouts) in self.held.items():
            if due <= self.settlements:
                postings = {f"escrow:{name}": -paid for name, paid in payouts.items()}
                postings.update({f"principal:{name}": paid for name, paid in payouts.items()})
                content = {"kind": "release", "of": str(seq), "postings": texts(postings)}
                return Draft({**content, "seq": str(self.count)}, postings)
        return None

    def draft_claw_back(self, period: str, principal: str, reason: str) -> Draft:
        """Draft the return of one held payout to the reserve.

        Raises:
            LedgerError: If that payout isn't in escrow.
        """
        seq = self.settled.get(period, -1)
        paid = self.held.get(seq, (0, {}))[1].get(principal, 0)
        if not paid:
            raise LedgerError(
                f"principal {principal!r} has nothing in escrow from period {period!r}; "
                "only a payout that has not been released can be clawed back"
            )
        postings = {f"escrow:{principal}": -paid, RESERVE_ACCOUNT: paid}
        content = {
            "kind": "claw_back",
            "of": str(seq),
            "period": period,
            "postings": texts(postings),
            "principal": principal,
            "reason": _reason(reason),
            "seq": str(self.count),
        }
        return Draft(content, postings)

    def draft_reversal(self, of: int, settlement: Mapping[str, Any], reason: str) -> Draft:
        """Draft the entry that takes a settlement back: its scores, its marks and its money.

        Raises:
            LedgerError: If the entry is no settlement, is reversed already, or its money has moved
                on (carried revenue paid out, a payout released or clawed back).
        """
        if settlement["kind"] != "settle":
            raise LedgerError(f"entry {of} is of kind {settlement['kind']!r}; reverse a settlement")
        if of in self.reversed:
            raise LedgerError(f"entry {of} is reversed already; settle its period anew")
        if self.settled.get(settlement["period"]) != of:
            raise LedgerError(f"entry {of} is not before this one; reverse an earlier settlement")
        running = self.terms.rounding == "running_floor"
        if running and any(seq > of for seq in self.settled.values()):
            raise LedgerError(
                f"entry {of} is not the last settlement and later ones build on its running "
                "entitlements; reverse those first, latest first"
            )
        postings = {account: -int(text) for account, text in settlement["postings"].items()}
        rises = integers(settlement["above_mark"])
        shares = settlement["shares"]
        shares = rises if shares is None else {p: Fraction(text) for p, text in shares.items()}
        scores, marks = dict(self.scores), dict(self.marks)
        for name, credit in settlement["credits"].items():
            scores[name] -= int(credit)
        if settlement["carry_over"] is not None:
            scores[RESERVE] -= int(settlement["carry_over"])
        for party, rise in rises.items():
            marks[party] -= rise
        entitlements = None
        if running and settlement["outcome"] == "paid":
            amount = postings.get(REVENUE, 0) + postings.get(CARRIED, 0)
            total = sum(shares.values())
            entitlements = dict(self.entitlements)
            for party, share in shares.items():
                entitlements[party] -= Fraction(amount * share) / total
        paid = {a.removeprefix("escrow:"): -d for a, d in postings.items() if a[:7] == "escrow:"}
        if paid and self.held.get(of, (0, {}))[1] != paid:
            raise LedgerError(
                f"entry {of} has payouts that were released or clawed back; "
                "correct it in a later period"
            )
        self._check_postings(postings)
        content = {
            "kind": "reverse",
            "of": str(of),
            "postings": texts(postings),
            "reason": _reason(reason),
            "seq": str(self.count),
        }
        return Draft(content, postings, scores, marks, entitlements)

    def _check_postings(self, postings: Mapping[str, int]) -> None:
        if sum(postings.values()):
            raise LedgerError(f"postings sum to {sum(postings.values())}, not to zero")
        for account, delta in postings.items():
            left = self.balances.get(account, 0) + delta
            if left < 0 and account != REVENUE:
                raise LedgerError(
                    f"account {account!r} would fall to {left}; its money has moved on: "
                    "reverse the later settlement first"
                )

    def post(self, draft: Draft) -> None:
        """Apply a draft; it can't fail on a draft that these books have just made."""
        content, balances = draft.content, self.balances
        kind = content["kind"]
        for account, delta in draft.postings.items():
            balances[account] = balances.get(account, 0) + delta
        self.principals.update(dict.fromkeys(draft.newcomers))
        self.scores = self.scores if draft.scores is None else draft.scores
        self.marks = self.marks if draft.marks is None else draft.marks
        if draft.entitlements is not None:
            self.entitlements = draft.entitlements
        if kind == "settle":
            self.settled[content["period"]] = self.count
            self.settlements += 1
            if draft.held:
                self.held[self.count] = (
                    self.settlements + self.terms.release_lag,
                    dict(draft.held),
                )
        elif kind == "release":
            del self.held[int(content["of"])]
        elif kind == "claw_back":
            payouts = self.held[int(content["of"])][1]
            del payouts[content["principal"]]
            if not payouts:
                del self.held[int(content["of"])]
        elif kind == "reverse":
            of = int(content["of"])
            self.reversed.add(of)
            self.held.pop(of, None)
            self.settled = {p: seq for p, seq in self.settled.items() if seq != of}
        self.count += 1


def _reason(reason: str) -> str:
    if not isinstance(reason, str) or not reason.strip():
        raise LedgerError(f"reason is {reason!r}; say in words why")
    return reason
