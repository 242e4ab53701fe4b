"""The configuration of somebody's chains: of all keys, only those below `ledger` count."""

from collections.abc import Sequence

from trustchain_ray.config import Config, chain_problems, impossible_values
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
    if wrong := [*impossible_values(config, PART), *chain_problems(config.ledger)]:
        raise UsageError("the chains do not fit:\n  " + "\n  ".join(wrong))
    return config


def has_contract(config: Config) -> bool:
    """Whether the chains name a consortium's contract."""
    return config.ledger.public.kind == "rpc" and bool(config.ledger.public.contract)
