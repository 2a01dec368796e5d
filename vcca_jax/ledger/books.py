"""The two ledgers as plain numbers: signed scores, balanced money, and what an entry does to them.

Books know nothing of files. A method of `Books` drafts an entry, complete and checked, and changes
nothing; `post` applies a draft. Settling and replaying draft through the same code, so a stored
entry is right exactly if drafting it again gives its bytes.

Accounts: `revenue` (the outside world, the only one that may go below zero), `carried` (revenue
waiting for a period with a gain; both with `:<stream>` where revenue comes in streams),
`principal:<name>`, `escrow:<name>`, `reserve` (what no principal
has a claim to) and `dust` (fractions of a unit held back under "running_floor").
"""

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from vcca_jax.ledger.drafts import (
    CARRIED,
    DUST,
    RESERVE_ACCOUNT,
    REVENUE,
    Draft,
    Request,
    checked_reason,
    integers,
    number_or_none,
    of_stream,
)
from vcca_jax.ledger.errors import LedgerError
from vcca_jax.ledger.escrow import Escrow
from vcca_jax.ledger.tally import Tally
from vcca_jax.ledger.terms import FORMAT, Terms, check_name
from vcca_jax.settlement import (
    LARGEST_AMOUNT,
    exact,
    integer_weights,
    largest_remainder,
    running_floor,
)
from vcca_jax.share_rules import LONGEST, RESERVE, ShareRule, Standings


class Books:
    """Scores, balances and settled periods after some number of entries.

    Attributes:
        terms: The ledger's terms.
        rule: The share rule.
        count: Number of entries posted, which is the next entry's number.
        principals: Registered name -> the account that its payouts are posted to, in order of
            registration.
        balances: account -> minor units; they sum to zero.
        tallies: stream -> what the parties have accumulated in it.
        settled: (stream, period) -> number of its settlement that stands.
        reversed: numbers of the settlements taken back.
        escrow: payouts that wait for their release.
        waiting: number of a settlement -> minor units that its stream carried on from it.
        settlements: Number of settlements ever posted.
    """

    def __init__(self, terms: Terms, rule: ShareRule) -> None:
        self.terms = terms
        self.rule = rule
        self.count = 0
        self.principals: dict[str, str] = {}
        self._payee = "escrow:" if terms.release_lag else "principal:"
        self.balances: dict[str, int] = {}
        self.tallies: dict[str | None, Tally] = {}
        self.settled: dict[tuple[str | None, str], int] = {}
        self.reversed: set[int] = set()
        self.escrow = Escrow(terms.release_lag, apart=terms.format != FORMAT)
        self.waiting: dict[int, int] = {}
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
            request = Request(
                content["period"],
                integers(content["credits"]),
                int(content["revenue"]),
                number_or_none(content["gain"]),
                number_or_none(content["carry_over"]),
                content["evidence"],
                content.get("stream"),
            )
            return self.draft_settlement(request)
        if kind == "join":
            return self.draft_joining(content["principal"])
        if kind == "release":
            draft = self.draft_release(content.get("reason"))
            if draft is None:
                raise LedgerError("nothing is due for release")
            return draft
        if kind == "claw_back":
            key = content.get("stream"), content["period"]
            return self.draft_claw_back(key, content["principal"], content["reason"])
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
        content = {"kind": "join", "principal": principal, "seq": self.count}
        return Draft(content, {}, newcomers=(principal,))

    def draft_settlement(self, request: Request) -> Draft:
        """Draft a period: book its credits to the scores and divide its revenue.

        Raises:
            LedgerError: On an unknown principal, a negative or too large revenue.
            ValueError: If the share rule gives shares that can't be allocated.
        """
        stream = request.stream
        if request.key in self.settled:
            raise LedgerError(f"period {request.period!r} is settled already")
        credits = request.credits
        if request.carry_over is not None:
            credits = {**credits, RESERVE: request.carry_over}
        before = self.tallies.get(stream, _BLANK)
        tally = before.credited(credits)
        newcomers: tuple[str, ...] = ()
        if tally.places is not before.places or RESERVE in request.credits:
            newcomers = self._newcomers(request.credits)  # whoever has a place is registered
        amount, carried = self._amount(request)
        postings = {of_stream(REVENUE, stream): -request.revenue}
        rises: Mapping[str, int] = {}
        shares: Mapping[str, int | Fraction] = {}
        payouts, paid = dict[str, int](), dict[str, int]()
        if request.gain is not None and request.gain <= 0:
            outcome = "carried"
            postings[of_stream(CARRIED, stream)] = request.revenue
        elif amount == 0:
            outcome = "unfunded"
        else:
            postings[of_stream(CARRIED, stream)] = -carried
            above = tally.above()
            shares = self._shares(credits, tally, above)
            if shares:
                outcome = "paid"
                rises = above
                payouts, entitlements = self._divide(request, amount, shares, tally.entitlements)
                postings[DUST] = amount - sum(payouts.values())
                postings[RESERVE_ACCOUNT] = payouts.pop(RESERVE, 0)
                # A newcomer may be paid, and is not registered before the draft is posted.
                account = {**self.principals, **self._accounts(newcomers)}
                paid = {account[name]: part for name, part in payouts.items() if part}
                tally = tally.paid_on(entitlements)
            else:
                outcome = "reserved"
                postings[RESERVE_ACCOUNT] = amount
        postings = {**{a: delta for a, delta in postings.items() if delta}, **paid}
        content = {
            **request.content(),
            "above_mark": rises,
            "kind": "settle",
            "outcome": outcome,
            "postings": postings,
            "seq": self.count,
            # The default rule's shares are what rose above the mark: not written twice.
            "shares": None if shares is rises or shares == rises else shares,
        }
        self._check_postings(postings)
        return Draft(content, postings, newcomers, stream, tally, payouts)

    def _newcomers(self, credits: Mapping[str, int]) -> tuple[str, ...]:
        newcomers = tuple(name for name in credits if name not in self.principals)
        for name in newcomers:
            check_name(name)
            if self.terms.principals is not None:
                known = ", ".join(self.principals) or "none"
                raise LedgerError(
                    f"principal {name!r} is unknown (registered: {known}); "
                    "correct the name, or register it with join()"
                )
        return newcomers

    def _accounts(self, names: Sequence[str]) -> dict[str, str]:
        return {name: self._payee + name for name in names}

    def _amount(self, request: Request) -> tuple[int, int]:
        """Return what there is to divide, and the part of it that was carried."""
        carried = self.balances.get(of_stream(CARRIED, request.stream), 0)
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
        return amount, carried

    def _shares(
        self, credits: Mapping[str, int], tally: Tally, above: Mapping[str, int]
    ) -> Mapping[str, int | Fraction]:
        standings = Standings(tally.column(tally.scores), tally.column(tally.marks), above)
        given = self.rule.shares(credits, standings)
        if given is above:
            return above
        shares = {
            party: share if type(share) is int else exact(share, f"the share of {party!r}")
            for party, share in given.items()
            if share
        }
        for party, share in shares.items():
            if max(share.numerator.bit_length(), share.denominator.bit_length()) > _LONGEST_BITS:
                raise LedgerError(
                    f"the share of {party!r} has more than {LONGEST} digits, too many to be written"
                    " down; give a rule of smaller numbers, such as power() of a lower exponent"
                )
            known = party in tally.places or party in self.principals
            if not known and party != RESERVE:
                raise LedgerError(
                    f"the share rule gives a share to {party!r}, whom nobody knows; "
                    "correct the rule"
                )
        return shares

    def _divide(
        self,
        request: Request,
        amount: int,
        shares: Mapping[str, int | Fraction],
        entitlements: dict[str, Fraction],
    ) -> tuple[dict[str, int], dict[str, Fraction]]:
        if self.terms.rounding == "running_floor":
            return running_floor(amount, shares, entitlements)
        parties = list(shares)
        # The period is part of the id, so that ties do not favour the same principal for ever.
        when = of_stream(request.period, request.stream)
        parts = largest_remainder(
            amount, integer_weights(shares.values()), lambda i: f"{when}/{parties[i]}"
        )
        return dict(zip(parties, parts, strict=True)), entitlements

    def draft_release(self, reason: str | None = None) -> Draft | None:
        """Draft the release of one settlement's payouts, or None if there are none to release.

        Args:
            reason: Why they need not wait any longer; None: because their lag has passed.
        """
        seq = self.escrow.due() if reason is None else self.escrow.first()
        if seq is None:
            return None
        payouts = self.escrow.payouts(seq)
        postings = {f"escrow:{name}": -paid for name, paid in payouts.items()}
        postings.update({f"principal:{name}": paid for name, paid in payouts.items()})
        content = {"kind": "release", "of": seq, "postings": postings, "seq": self.count}
        if reason is not None:
            content["reason"] = checked_reason(reason)
        return Draft(content, postings)

    def draft_claw_back(self, key: tuple[str | None, str], principal: str, reason: str) -> Draft:
        """Draft the return of one held payout to the reserve; the key is (stream, period).

        Raises:
            LedgerError: If that payout isn't in escrow.
        """
        stream, period = key
        seq = self.settled.get(key, -1)
        paid = self.escrow.payouts(seq).get(principal, 0)
        if not paid:
            raise LedgerError(
                f"principal {principal!r} has nothing in escrow from period {period!r}; "
                "only a payout that has not been released can be clawed back"
            )
        postings = {f"escrow:{principal}": -paid, RESERVE_ACCOUNT: paid}
        content = {
            "kind": "claw_back",
            "of": seq,
            "period": period,
            "postings": postings,
            "principal": principal,
            "reason": checked_reason(reason),
            "seq": self.count,
            **({} if stream is None else {"stream": stream}),
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
        stream = settlement.get("stream")
        if self.settled.get((stream, settlement["period"])) != of:
            raise LedgerError(f"entry {of} is not before this one; reverse an earlier settlement")
        later = (seq > of for (other, _), seq in self.settled.items() if other == stream)
        if self.terms.rounding == "running_floor" and any(later):
            raise LedgerError(
                f"entry {of} is not the last settlement and later ones build on its running "
                "entitlements; reverse those first, latest first"
            )
        postings = {a: -delta for a, delta in integers(settlement["postings"]).items()}
        paid = {a.removeprefix("escrow:"): -d for a, d in postings.items() if a[:7] == "escrow:"}
        if paid and self.escrow.payouts(of) != paid:
            raise LedgerError(
                f"entry {of} has payouts that were released or clawed back; "
                "correct it in a later period"
            )
        self._check_postings(postings)
        content = {
            "kind": "reverse",
            "of": of,
            "postings": postings,
            "reason": checked_reason(reason),
            "seq": self.count,
        }
        running = self.terms.rounding == "running_floor"
        tally = self.tallies[stream].without(settlement, running=running)
        return Draft(content, postings, stream=stream, tally=tally)

    def _check_postings(self, postings: Mapping[str, int]) -> None:
        if sum(postings.values()):
            raise LedgerError(f"postings sum to {sum(postings.values())}, not to zero")
        for account, delta in postings.items():
            if delta < 0 and account.partition(":")[0] != REVENUE:
                left = self.balances.get(account, 0) + delta
                if left < 0:
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
        self.principals.update(self._accounts(draft.newcomers))
        if draft.tally is not None:
            self.tallies[draft.stream] = draft.tally
        if kind == "settle":
            self.settled[draft.stream, content["period"]] = self.count
            self.settlements += 1
            if content["outcome"] == "carried":
                self.waiting[self.count] = balances.get(of_stream(CARRIED, draft.stream), 0)
            self.escrow.hold(self.count, draft.stream, draft.payouts)
        elif kind == "release":
            self.escrow.take(content["of"])
        elif kind == "claw_back":
            self.escrow.take(content["of"], content["principal"])
        elif kind == "reverse":
            of = content["of"]
            self.reversed.add(of)
            self.escrow.take(of)
            self.settled = {key: seq for key, seq in self.settled.items() if seq != of}
        self.count += 1


_LONGEST_BITS = (10**LONGEST).bit_length()
_BLANK = Tally({}, np.zeros(0, np.int64), np.zeros(0, np.int64), {})
