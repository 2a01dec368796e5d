"""What can be wrong with a ledger or a request to it; each message ends with the remedy."""


class LedgerError(ValueError):
    """A ledger refuses what was asked; the file is as it was before."""


class CorruptLedgerError(LedgerError):
    """The file is damaged, cut short or edited: what it records can't be trusted."""


class ForeignLedgerError(LedgerError):
    """The file is no ledger, or it is the ledger of another run, cooperative or rule."""


class LockedLedgerError(LedgerError):
    """Another process held the ledger for longer than the timeout."""


class ReadOnlyLedgerError(LedgerError):
    """The ledger can be read but not written."""


class LedgerWriteError(LedgerError):
    """The disk is full or failed while writing; nothing of the request was recorded."""


class SettlementConflictError(LedgerError):
    """The period is already settled, with other content."""
