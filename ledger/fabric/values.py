"""Arguments and results of the chaincode's transactions: UTF-8 strings, some of them JSON."""

import json
from collections.abc import Sequence

from ledger.canonical import canonical_json, refuse_deep
from ledger.errors import LedgerError


def strings(items: Sequence[str]) -> str:
    """A JSON list of strings."""
    return canonical_json(list(items)).decode()


def text(answer: bytes, name: str) -> str:
    """Text that transaction ``name`` answered. Raises LedgerError if it is none."""
    try:
        return answer.decode()
    except ValueError:
        raise LedgerError(f"{name}: the chaincode's answer is not UTF-8") from None


def parse(answer: bytes, name: str) -> object:
    """JSON that transaction ``name`` answered. Raises LedgerError if it is none."""
    try:
        refuse_deep(answer)
        parsed: object = json.loads(answer)
    except (ValueError, LedgerError):
        raise LedgerError(f"{name}: the chaincode's answer is not JSON") from None
    return parsed


def text_of_leaf(leaf: bytes, what: str) -> str:
    """A leaf as an argument. Raises LedgerError if it is not UTF-8."""
    try:
        return leaf.decode()
    except ValueError:
        raise LedgerError(f"{what}: a leaf is the canonical JSON of an envelope, this is not UTF-8") from None


def leaf_of(text: str, what: str) -> bytes:
    """A leaf from a result. Raises LedgerError for a lone surrogate, which JSON can say and UTF-8 cannot."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise LedgerError(f"{what}: the chaincode answered text that is not Unicode") from None
