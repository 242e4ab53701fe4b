"""The exceptions of the package."""


class LedgerError(Exception):
    """What was wrong, where (file, event, organization), and what to do about it."""


class Unavailable(LedgerError):
    """A chain does not answer now: the same call can succeed later. Any other LedgerError is a refusal for good."""
