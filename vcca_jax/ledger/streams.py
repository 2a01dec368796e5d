"""Several revenues settled at once: who earned whose, by a matrix of credits."""

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

from vcca_jax.ledger.drafts import Period, Settlement
from vcca_jax.ledger.errors import LedgerError
from vcca_jax.ledger.ledger import Ledger
from vcca_jax.settlement import Number


class StreamSettlement(NamedTuple):
    """The receipt of a period settled in streams.

    Attributes:
        streams: beneficiary -> the receipt of its stream.
        payouts: principal -> minor units, summed over streams.
        revenue: The revenue of all streams.
        reserve: Minor units that went to the reserve.
        carried: Minor units that wait, each in its own stream, for the next period.
        carried_in: Minor units that came from earlier periods.
        dust: Minor units held back as fractions of units, under "running_floor".
    """

    streams: dict[str, Settlement]
    payouts: dict[str, int]
    revenue: int
    reserve: int
    carried: int
    carried_in: int
    dust: int


def settle_streams(
    ledger: Ledger,
    period: int | str,
    credits: Mapping[str, Mapping[str, Number]],
    revenues: Mapping[str, int],
    *,
    gains: Mapping[str, Number] | None = None,
    carry_overs: Mapping[str, Number] | None = None,
    evidence: str | None = None,
) -> StreamSettlement:
    """Settle a period in which every beneficiary brings a revenue of its own.

    Row b of the matrix, C[b, p], is what principal p contributed to the utility of beneficiary b;
    the revenue R_b that b has from it is divided by the ledger's rule on row b alone. Each stream
    is one entry, with its own scores, high-water marks, debts and carried revenue; all are written
    in one transaction, ordered by the beneficiaries' names.

    | guarantee | holds |
    | --- | --- |
    | revenue + carried_in = payouts + reserve + dust + carried, for every b and in all | exactly |
    | all payouts sum to the payouts of all streams, to all revenue less what is kept | exactly |
    | all streams are recorded, or none | always |
    | a stream's payouts depend on its own credits, revenues and history alone | always |
    | debt in one stream lowers pay in another | never |
    | reordering beneficiaries or principals changes a byte of the file | never |
    | a beneficiary is paid out of its own revenue | by C[b, b]; leave it out, and it isn't |
    | adding all rows and all revenues up pays the same | **no**: the streams keep them apart |

    Args:
        ledger: An open ledger.
        period: The period's name, unique in each stream.
        credits: beneficiary -> principal -> credit, signed, in units of b's utility.
        revenues: beneficiary -> R_b in minor units, at least 0; the same beneficiaries.
        gains: beneficiary -> v_b(1) - v_b(0); a stream without a gain carries its revenue on.
        carry_overs: beneficiary -> v_b(0), the reserve's score in that stream.
        evidence: Digest of whatever the credits were computed from.

    Returns:
        The receipts of all streams and their sum. Settling the same again returns the same.

    Raises:
        LedgerError: If credits, revenues, gains or carry-overs name other beneficiaries, or there
            are none.
        ValueError: As `Ledger.settle`; then no stream is recorded.
    """
    gains, carry_overs = gains or {}, carry_overs or {}
    if not credits:
        raise LedgerError("credits is empty; give a row of credits for each beneficiary")
    for name, given in (("gains", gains), ("carry_overs", carry_overs), ("revenues", revenues)):
        strangers = [b for b in given if b not in credits]
        if strangers:
            raise LedgerError(
                f"{name} names {strangers}, who have no row in credits ({list(credits)}); "
                "give each beneficiary a row, an empty one if nobody earned anything"
            )
    silent = [b for b in credits if b not in revenues]
    if silent:
        raise LedgerError(f"revenues lacks {silent}; give each beneficiary's revenue, 0 if none")
    names = sorted(credits, key=str)
    receipts = ledger.settle_many(
        Period(period, credits[b], revenues[b], gains.get(b), carry_overs.get(b), evidence, b)
        for b in names
    )
    payouts: Counter[str] = Counter()
    for receipt in receipts:
        payouts.update(receipt.payouts)
    return StreamSettlement(
        dict(zip(names, receipts, strict=True)),
        dict(payouts),
        sum(receipt.revenue for receipt in receipts),
        sum(receipt.reserve for receipt in receipts),
        sum(receipt.carried for receipt in receipts),
        sum(receipt.carried_in for receipt in receipts),
        sum(receipt.dust for receipt in receipts),
    )
