"""The shape of parsed documents: exactly these fields, each of this kind."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from ledger.canonical import is_digest
from ledger.errors import LedgerError

DIGEST, STR, INT, DICT, LIST = "digest", "str", "int", "dict", "list"
"""Kinds of fields; ``int`` is never negative. With ``?`` behind it, a field may be null."""

_PYTHON_TYPE = {STR: str, DICT: dict, LIST: list}


def fields(value: object, kinds: Mapping[str, str], where: str) -> dict[str, Any]:
    """Return ``value`` if it is a table of exactly these fields.

    Parameters
    ----------
    value
        From :func:`ledger.canonical.parse_canonical`.
    kinds
        Kind by name of the field.
    where
        What it is, for messages.

    Raises
    ------
    LedgerError
        It is no table, a field is missing, unknown, or of another kind.
    """
    if not isinstance(value, dict) or value.keys() != kinds.keys():
        raise LedgerError(f"{where}: needs exactly {', '.join(sorted(kinds))}")
    for name, kind in kinds.items():
        if not is_kind(value[name], kind):
            raise LedgerError(f"{where}: {name} is not a {kind.removesuffix('?')}: {str(value[name])[:80]!r}")
    return value


def rows(value: object, kinds: Mapping[str, str], where: str) -> list[dict[str, Any]]:
    """:func:`fields` for every entry of a list. Raises LedgerError."""
    if not isinstance(value, list):
        raise LedgerError(f"{where}: is not a list")
    return [fields(entry, kinds, f"{where}[{number}]") for number, entry in enumerate(value)]


def digests(value: object, where: str) -> list[str]:
    """Return ``value`` if it is a list of digests in order, none twice. Raises LedgerError."""
    if not isinstance(value, list) or not all(is_digest(item) for item in value):
        raise LedgerError(f"{where}: is not a list of digests (64 hex digits)")
    if any(a >= b for a, b in pairwise(value)):
        raise LedgerError(f"{where}: is not in order, or names one twice")
    return value


def table_of(value: object, kind: str, where: str) -> dict[str, Any]:
    """Return ``value`` if it is a table whose values are all of one kind. Raises LedgerError."""
    if not isinstance(value, dict) or not all(is_kind(item, kind) for item in value.values()):
        raise LedgerError(f"{where}: is not a table of {kind}s")
    return value


def is_kind(value: object, kind: str) -> bool:
    """Whether ``value`` is of a kind."""
    if kind.endswith("?"):
        return value is None or is_kind(value, kind[:-1])
    if kind == DIGEST:
        return is_digest(value)
    if kind == INT:
        return type(value) is int and value >= 0
    return type(value) is _PYTHON_TYPE[kind]
