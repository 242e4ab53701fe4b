"""Verification of tree heads, and of their anchors on the public chain."""

from ledger import embedded, heads, layout, merkle
from ledger.audit import Audit, Fault, Skip
from ledger.embedded import EmbeddedEvm, PyEvmMissing
from ledger.errors import LedgerError
from ledger.verify_log import coordinator_key


def check_heads(audit: Audit) -> str:
    """Every anchored head: the coordinator's signature, its place in the row, and that the log extends it."""
    if not (audit.run_dir / layout.ANCHORS).exists():
        if audit.seal is not None and (audit.run_dir / layout.CHAIN).exists():
            raise Fault(layout.ANCHORS, "is missing, though the run has a chain")
        raise Skip("the run has no anchors")
    try:
        store = heads.parse_store(layout.read_file(audit.run_dir, layout.ANCHORS))
        if store.run != audit.run:
            raise LedgerError(f"is of run {store.run!r}, the log of {audit.run!r}")
        key = coordinator_key(audit)
        audit.heads = [heads.read_head(envelope, key) for envelope, _ in store.entries]
        _check_row(audit)
    except LedgerError as error:
        raise Fault(layout.ANCHORS, str(error)) from None
    audit.store = store
    covered = audit.heads[-1].size if audit.heads else 0
    return f"{len(audit.heads)} signed tree heads, covering {covered} of {audit.merkle.size} events"


def _check_row(audit: Audit) -> None:
    size, root = 0, heads.NO_ROOT.hex()
    log = audit.merkle
    for seq, head in enumerate(audit.heads, 1):
        where = f"tree head {seq}"
        if (head.run, head.seq, head.prev) != (audit.run, seq, root):
            raise LedgerError(f"{where}: is head {head.seq} of run {head.run!r}, or does not follow the one before it")
        if not size < head.size <= log.size:
            raise LedgerError(f"{where}: size {head.size} is not within {size + 1} and {log.size}")
        if log.root(head.size).hex() != head.root:
            raise LedgerError(f"{where}: its root is not that of the log's first {head.size} events")
        if size:
            proof = log.consistency_proof(size, head.size)
            merkle.verify_consistency(size, bytes.fromhex(root), head.size, bytes.fromhex(head.root), proof)
        size, root = head.size, head.root
    if size:
        proof = log.consistency_proof(size)
        merkle.verify_consistency(size, bytes.fromhex(root), log.size, log.root(), proof)


def check_anchors(audit: Audit) -> str:
    """The embedded chain executed again: its head and its events are the anchored heads."""
    store = audit.store
    if store is None:
        raise Skip("the run has no anchors")
    if store.chain.get("kind") != embedded.KIND:
        raise Skip(f"the chain is of kind {store.chain.get('kind')!r}; only an embedded one can be checked offline")
    try:
        chain = EmbeddedEvm(audit.run_dir / layout.CHAIN, read_only=True)
    except PyEvmMissing as missing:
        raise Skip(str(missing)) from None
    except LedgerError as error:
        raise Fault(layout.BLOCKS, str(error).removeprefix(f"{audit.run_dir}/{layout.BLOCKS}: ")) from None
    if chain.describe() != store.chain:
        raise Fault(layout.ANCHORS, "names another chain than the one in the run")
    anchors = chain.anchors()
    for head, (_, receipt), anchor in zip(audit.heads, store.entries, anchors, strict=False):
        if not heads.matches(head, receipt, anchor):
            raise Fault(layout.ANCHORS, f"anchor {head.seq} is not what the chain has")
    if len(store.entries) > len(anchors):
        raise Fault(layout.BLOCKS, f"has {len(anchors)} anchors, {layout.ANCHORS} has {len(store.entries)}")
    _check_unrecorded(audit, chain)
    last = chain.head()
    newest = anchors[-1] if anchors else None
    if (last.seq, last.size) != ((newest.seq, newest.size) if newest else (0, 0)):
        raise Fault(layout.BLOCKS, "the contract's head is not its last event")
    return f"{len(anchors)} anchors on the embedded chain, all blocks executed again"


def _check_unrecorded(audit: Audit, chain: EmbeddedEvm) -> None:
    """A crash may leave one anchor on the chain that the store does not have: it must be of this log."""
    extra = chain.anchors()[len(audit.heads) :]
    if len(extra) > (0 if audit.seal is not None else 1):
        raise Fault(layout.ANCHORS, f"lacks {len(extra)} anchors that the chain has")
    for anchor in extra:
        if anchor.size > audit.merkle.size or audit.merkle.root(anchor.size) != anchor.root:
            raise Fault(layout.BLOCKS, f"anchor {anchor.seq} is not of this log")
