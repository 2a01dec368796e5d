"""The append-only record of credit and money: open it, settle into it, verify it."""

from vcca_jax.ledger.chain import Entry
from vcca_jax.ledger.drafts import Period, Settlement
from vcca_jax.ledger.errors import (
    CorruptLedgerError,
    ForeignLedgerError,
    LedgerError,
    LedgerWriteError,
    LockedLedgerError,
    ReadOnlyLedgerError,
    SettlementConflictError,
)
from vcca_jax.ledger.ledger import Ledger
from vcca_jax.ledger.replay import Verification
from vcca_jax.ledger.statement import Statement, StatementLine
from vcca_jax.ledger.streams import StreamSettlement, settle_streams

__all__ = [
    "CorruptLedgerError",
    "Entry",
    "ForeignLedgerError",
    "Ledger",
    "LedgerError",
    "LedgerWriteError",
    "LockedLedgerError",
    "Period",
    "ReadOnlyLedgerError",
    "Settlement",
    "SettlementConflictError",
    "Statement",
    "StatementLine",
    "StreamSettlement",
    "Verification",
    "settle_streams",
]
