"""The two errors that a person sees: the exit code is part of the type."""


class TrustChainError(Exception):
    """Something that the person who runs the command can act on (exit code 1)."""

    exit_code = 1


class UsageError(TrustChainError):
    """A wrong flag, key or value: nothing was started (exit code 2)."""

    exit_code = 2
