"""Verification against the private chain: the organizations hold the same log."""

from typing import Any

from ledger import checkpoint, layout
from ledger.audit import Audit, Fault, Skip
from ledger.canonical import parse_canonical
from ledger.errors import LedgerError
from ledger.identity import COORDINATOR
from ledger.log import SqliteLog
from ledger.private import PrivateChain

BATCH = 1000
"""Leaves asked for at once."""


def check_private(audit: Audit) -> str:
    """The private chain's leaves are those of the log, and its newest head is one of the log."""
    if not audit.has(layout.PRIVATE) and audit.options.fabric is None:
        none = not audit.options.partial or (audit.seal is not None and layout.PRIVATE not in audit.seal.files)
        raise Skip("the run has no private chain" if none else f"{layout.PRIVATE} is not here")
    said = _read_private(audit)
    if audit.options.fabric is None:
        where = ", ".join(f"{name} {value}" for name, value in sorted(said["chain"].items()) if isinstance(value, str))
        raise Skip(
            f"it was not asked ({where}); by the run's own claim it has {said['size']} events. "
            "Members can ask with --fabric-profile"
        )
    if not audit.whole_log:
        raise Skip(f"{layout.LOG} is not here to compare with")
    chain = audit.options.fabric(audit.run)
    try:
        return _ask(audit, chain, said)
    finally:
        chain.close()


def _ask(audit: Audit, chain: PrivateChain, said: dict[str, Any]) -> str:
    if said["chain"] and said["chain"] != chain.describe():
        audit.notes.append("that the private chain asked is the one that the run names: it describes itself otherwise")
    size = chain.size()
    if size < said["size"]:
        raise Fault(layout.PRIVATE, f"the private chain has {size} events, not {said['size']}")
    if size > audit.merkle.size:
        raise Fault(
            layout.LOG, f"has {audit.merkle.size} events, the private chain {size}: an old copy, or the log was cut"
        )
    _compare(audit, chain, size)
    if size < audit.merkle.size:
        audit.notes.append(f"the newest {audit.merkle.size - size} events: the private chain does not have them")
    return f"the private chain holds the log's {size} events{_check_head(audit, chain)}"


def _read_private(audit: Audit) -> dict[str, Any]:
    if not audit.has(layout.PRIVATE):
        return {"chain": {}, "size": 0}
    try:
        said = parse_canonical(layout.read_file(audit.run_dir, layout.PRIVATE))
        if not isinstance(said, dict) or not isinstance(said.get("chain"), dict) or type(said.get("size")) is not int:
            raise LedgerError("needs chain and size")
        if audit.whole_log and not 0 <= said["size"] <= audit.merkle.size:
            raise LedgerError(f"size {said['size']} is not within the log of {audit.merkle.size}")
    except LedgerError as error:
        raise Fault(layout.PRIVATE, str(error)) from None
    return said


def _compare(audit: Audit, chain: PrivateChain, size: int) -> None:
    log = SqliteLog(audit.run_dir / layout.LOG, read_only=True)
    try:
        for start in range(0, size, BATCH):
            count = min(BATCH, size - start)
            here, there = log.read(start, count), chain.read(start, count)
            if here != there:
                pairs = zip(here, there, strict=False)
                place = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(here), len(there)))
                raise Fault(layout.LOG, f"event {start + place} is not the one that the private chain holds")
    finally:
        log.close()


def _check_head(audit: Audit, chain: PrivateChain) -> str:
    note, key = chain.head(), audit.public_key(COORDINATOR)
    if note is None or key is None:
        return ""
    said = checkpoint.read(note, audit.run, key, {})
    if said.size > audit.merkle.size or audit.merkle.root(said.size) != said.root:
        raise Fault(layout.LOG, f"is another than that of the private chain's head of {said.size} events: a split view")
    return f", and a head of {said.size}"
