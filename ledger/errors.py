"""The one exception of the package."""


class LedgerError(Exception):
    """What was wrong, where (file, event, organization), and what to do about it."""
