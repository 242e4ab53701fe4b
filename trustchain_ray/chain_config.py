"""The configuration of somebody's chains: of all keys, only those below `ledger` count."""

from collections.abc import Sequence

from trustchain_ray.config import CHOICES, RANGES, Config, chain_problems, get
from trustchain_ray.config_files import read_config
from trustchain_ray.errors import UsageError

PART = "ledger."


def load_chains(files: Sequence[str], overrides: Sequence[str] = ()) -> Config:
    """Read a configuration of which only `ledger` is used: a file with nothing else will do.

    Parameters
    ----------
    files, overrides
        As of :func:`trustchain_ray.config_files.load_config`.

    Raises
    ------
    UsageError
        Unknown key, wrong type or unreadable file; an impossible value below `ledger`.
    """
    config = read_config(list(files), list(overrides))
    wrong = [
        f"{path}={get(config, path)!r}: choose one of {', '.join(allowed)}"
        for path, allowed in CHOICES.items()
        if path.startswith(PART) and get(config, path) not in allowed
    ]
    wrong += [
        f"{path}={get(config, path)}: must be at least {least:g}"
        for path, least, _ in RANGES
        if path.startswith(PART) and least is not None and not get(config, path) >= least
    ]
    wrong += list(chain_problems(config.ledger))
    if wrong:
        raise UsageError("the chains do not fit:\n  " + "\n  ".join(wrong))
    return config
