"""Put a certificate's place in the log beside it, from a run directory."""

from dataclasses import asdict
from pathlib import Path

from ledger import certificate as ct
from ledger import events as ev
from ledger import heads, layout
from ledger.errors import LedgerError
from ledger.events import Event
from ledger.identity import Identity
from ledger.log import SqliteLog
from ledger.verify_events import Proven, Selection

_TYPES = (
    *ev.KEY_EVENTS, ev.RUN_MANIFEST, ev.UNLEARN_REQUEST, ev.UNLEARN_WITHDRAWN, ev.UNLEARN_EXEC, ev.UNLEARN_ATTEST,
    ev.MODEL_REVOKED,
)  # fmt: skip


def publish_from(run_dir: str | Path, data: bytes, coordinator: Identity) -> bytes:
    """Publish a certificate with the newest signed checkpoint of its run; repeat it when there is a newer one.

    Parameters
    ----------
    run_dir
        The run; it may be at work, and is not changed.
    data
        The certificate.
    coordinator
        Signs the publication.

    Returns
    -------
    bytes
        The certificate with the events of its removal, each with an inclusion proof, the checkpoint, and the anchor's
        receipt where there is one.

    Raises
    ------
    LedgerError
        The certificate is malformed, or no signed checkpoint covers its UNLEARN_EXEC event yet: anchor first.
    """
    run_dir, certificate = Path(run_dir), ct.parse(data)
    store = heads.parse_store(layout.read_file(run_dir, layout.ANCHORS))
    if not store.entries:
        raise LedgerError(f"{run_dir}: no checkpoint is signed yet, so that no event can be proven; anchor first")
    entry = store.entries[-1]
    log = SqliteLog(run_dir / layout.LOG, read_only=True)
    try:
        size = heads.read_heads(store, coordinator.public_hex)[-1].size
        keys = log.keys()
        chosen: list[int] = []
        executed = False
        for kind in _TYPES:
            for index, envelope in log.events(kind):
                event = ev.read_event(envelope, keys)
                if index < size and _belongs(event, certificate):
                    chosen.append(index)
                    executed = executed or kind == ev.UNLEARN_EXEC
        if not executed:
            raise LedgerError(
                f"{run_dir}: the newest checkpoint, of {size} events, does not cover UNLEARN_EXEC yet; anchor first"
            )
        proven = [Proven(index, log.leaf(index), log.inclusion_proof(index, size)) for index in sorted(chosen)]
    finally:
        log.close()
    receipt = asdict(entry.receipt) if entry.receipt is not None else {}
    selection = Selection(certificate.removal.run, size, proven, [])
    return ct.publish(data, coordinator, selection, entry.checkpoint, store.chain, receipt)


def _belongs(event: Event, certificate: ct.Certificate) -> bool:
    body, requests = event.body, {request.request for request in certificate.removal.requests}
    if event.type == ev.UNLEARN_REQUEST:
        return body["request"] in requests
    if event.type == ev.UNLEARN_WITHDRAWN:
        return not requests.isdisjoint(body["requests"])
    if event.type in (ev.UNLEARN_EXEC, ev.UNLEARN_ATTEST):
        return bool(body["certificate"] == certificate.digest)
    if event.type == ev.MODEL_REVOKED:
        return body["model_digest"] in certificate.removal.withdrawn
    return True
