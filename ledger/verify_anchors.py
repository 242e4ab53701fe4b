"""Verification of tree heads: on the log, by witnesses, and on the public chain."""

from collections import Counter

from ledger import embedded, heads, layout, merkle
from ledger.audit import Audit, Fault, Skip
from ledger.embedded import EmbeddedEvm, PyEvmMissing
from ledger.errors import LedgerError
from ledger.identity import COORDINATOR
from ledger.public import FINALIZED, MINED, PENDING, Anchor


def check_heads(audit: Audit) -> str:
    """Every tree head: the coordinator's signature, and that the log is, or extends, what it names."""
    if not audit.has(layout.ANCHORS):
        if audit.seal is not None and audit.has(layout.CHAIN) and not audit.options.partial:
            raise Fault(layout.ANCHORS, "is missing, though the run has a chain")
        raise Skip("no signed tree head is here")
    key = audit.public_key(COORDINATOR)
    if key is None:
        raise Skip("nothing here, and no --trust, says what the coordinator's key is")
    try:
        store = heads.parse_store(layout.read_file(audit.run_dir, layout.ANCHORS))
        if audit.run and store.run != audit.run:
            raise LedgerError(f"is of run {store.run!r}, the log of {audit.run!r}")
        audit.run = audit.run or store.run
        audit.heads = heads.read_heads(store, key, audit.witness_keys)
        _check_row(audit)
    except LedgerError as error:
        raise Fault(layout.ANCHORS, str(error)) from None
    audit.store = store
    covered = audit.heads[-1].size if audit.heads else 0
    count = f" of {audit.merkle.size}" if audit.whole_log else ""
    return f"{len(audit.heads)} signed tree heads, covering {covered}{count} events"


def _check_row(audit: Audit) -> None:
    size, root = 0, heads.NO_ROOT.hex()
    if audit.consistency is not None and len(audit.consistency) != max(0, len(audit.heads) - 1):
        raise LedgerError(f"{len(audit.consistency)} consistency proofs between {len(audit.heads)} tree heads")
    for place, head in enumerate(audit.heads):
        where = f"tree head {head.seq}"
        if not size < head.size:
            raise LedgerError(f"{where}: size {head.size} is not above {size}")
        if audit.whole_log:
            if head.size > audit.merkle.size:
                raise LedgerError(f"{where}: size {head.size} is not within {size + 1} and {audit.merkle.size}")
            if audit.merkle.root(head.size).hex() != head.root:
                raise LedgerError(f"{where}: its root is not that of the log's first {head.size} events")
            if size:
                proof = audit.merkle.consistency_proof(size, head.size)
                merkle.verify_consistency(size, bytes.fromhex(root), head.size, bytes.fromhex(head.root), proof)
        elif size and audit.consistency is not None:
            proof = audit.consistency[place - 1]
            merkle.verify_consistency(size, bytes.fromhex(root), head.size, bytes.fromhex(head.root), proof)
        size, root = head.size, head.root
    if not audit.whole_log and audit.consistency is None and len(audit.heads) > 1:
        audit.notes.append("that each tree head extends the one before it: neither log nor proofs are here")


def check_witnesses(audit: Audit) -> str:
    """Cosignatures of the tree heads, by organizations of the run."""
    wanted, trust = audit.options.min_witnesses, audit.options.trust
    if audit.store is None:
        raise Skip("no signed tree head is here") if not wanted else Fault(layout.ANCHORS, "is needed for witnesses")
    newest = audit.heads[-1].cosigners if audit.heads else {}
    counted = sorted(name for name in newest if trust is None or name in trust)
    if len(counted) < wanted:
        known = "organization" if trust is None else "organization that you trust"
        raise Fault(layout.ANCHORS, f"the newest tree head is cosigned by {len(counted)} {known}s, not {wanted}")
    cosigned = sum(bool(head.cosigners) for head in audit.heads)
    if not cosigned:
        raise Skip("no organization cosigned a tree head")
    if not newest:
        audit.notes.append(f"what followed tree head {_last_cosigned(audit)}: no organization cosigned it")
    unseen = [name for name in audit.organizations if name != COORDINATOR and name not in newest]
    if newest and unseen:
        audit.notes.append(f"the newest tree head: {', '.join(sorted(unseen))} did not cosign it")
    return f"newest tree head cosigned by {', '.join(sorted(newest)) or 'nobody'}; {cosigned} of {len(audit.heads)} are"


def _last_cosigned(audit: Audit) -> int:
    return max(head.seq for head in audit.heads if head.cosigners)


def check_anchors(audit: Audit) -> str:
    """The public chain has the tree heads: an embedded one is executed again, any other asked at a node."""
    store, rpc_url = audit.store, audit.options.rpc_url
    if store is None:
        raise Skip("no signed tree head is here")
    if not store.chain:
        raise Skip("the tree heads are on no public chain")
    if store.chain.get("kind") == embedded.KIND:
        return _check_embedded(audit)
    states = _count([entry.receipt.status for entry in store.entries if entry.receipt is not None])
    if rpc_url is None:
        raise Skip(f"name a node of the chain with --rpc-url to ask; by the run's own claim: {states}")
    from ledger.rpc import read_anchors

    anchors = read_anchors(rpc_url, store.chain)
    _compare(audit, anchors, layout.ANCHORS)
    states = _count([anchor.receipt.status for anchor in anchors])
    return f"the node has {len(anchors)} of {len(audit.heads)} tree heads: {states or 'none'}"


def _count(states: list[str]) -> str:
    found = Counter(states)
    return ", ".join(f"{found[state]} {state}" for state in (FINALIZED, MINED, PENDING) if found[state])


def _check_embedded(audit: Audit) -> str:
    assert audit.store is not None
    audit.need(layout.BLOCKS)
    try:
        chain = EmbeddedEvm(audit.run_dir / layout.CHAIN, read_only=True)
    except PyEvmMissing as missing:
        raise Skip(str(missing)) from None
    except LedgerError as error:
        raise Fault(layout.BLOCKS, str(error).removeprefix(f"{audit.run_dir}/{layout.BLOCKS}: ")) from None
    if chain.describe() != audit.store.chain:
        raise Fault(layout.ANCHORS, "names another chain than the one in the run")
    anchors = chain.anchors()
    _compare(audit, anchors, layout.BLOCKS)
    last, newest = chain.head(), anchors[-1] if anchors else None
    if (last.seq, last.size) != ((newest.seq, newest.size) if newest else (0, 0)):
        raise Fault(layout.BLOCKS, "the contract's head is not its last event")
    if audit.options.rpc_url is not None:
        audit.notes.append("a node: the chain is embedded in the run, no node has it")
    audit.notes.append("when the tree heads were made: the chain is the run's own, and no stranger keeps it")
    return f"{len(anchors)} anchors on the embedded chain, all blocks executed again"


def _compare(audit: Audit, anchors: list[Anchor], where: str) -> None:
    """Each anchor is the head at its place, and each receipt says where; ``where`` has fewer, if it lacks some."""
    assert audit.store is not None
    if len(anchors) > len(audit.heads):
        raise Fault(
            layout.ANCHORS,
            f"lacks {len(anchors) - len(audit.heads)} tree heads that the chain has: an old copy, or the log was cut",
        )
    for head, entry, anchor in zip(audit.heads, audit.store.entries, anchors, strict=False):
        receipt = entry.receipt
        # Before it is final, a reorganisation may move an anchor to another block.
        settled = receipt is not None and (receipt.status == FINALIZED or where == layout.BLOCKS)
        moved = settled and receipt != anchor.receipt
        if not heads.same_head(head, anchor) or moved:
            raise Fault(layout.ANCHORS, f"anchor {head.seq} is not what the chain has")
    for entry in audit.store.entries[len(anchors) :]:
        if entry.receipt is not None and entry.receipt.status != PENDING:
            count = sum(e.receipt is not None and e.receipt.status != PENDING for e in audit.store.entries)
            raise Fault(where, f"the chain has {len(anchors)} anchors, {layout.ANCHORS} has {count}")
    lost = len(audit.heads) - len(anchors)
    if lost:
        audit.notes.append(f"the newest {lost} tree heads: the chain does not have them")
