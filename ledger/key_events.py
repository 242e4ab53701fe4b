"""Statements about keys inside a run: an organization rotates its key, or the others revoke it and admit a new one.

KEY_ROTATION is signed with the old key and holds a proof of possession by the new one, so that nobody announces a key
of somebody else as its own. KEY_REVOKED and KEY_ADMITTED are for a key that is lost or stolen, which can sign for
nothing any more: more than half of the other organizations sign the decision, and the coordinator logs it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ledger import dsse
from ledger import events as ev
from ledger.canonical import canonical_json
from ledger.errors import LedgerError
from ledger.events import Event, make_event
from ledger.identity import Identity, key_id_of

POSSESSION_TYPE = "application/vnd.trustchain.key-possession+json"
DECISION_TYPE = "application/vnd.trustchain.key-decision+json"


def rotation_event(old: Identity, new: Identity, run: str) -> dsse.Envelope:
    """KEY_ROTATION of an organization in a run, signed with its old key.

    Raises
    ------
    LedgerError
        The two are not keys of one organization, or of the coordinator, which keeps its key.
    """
    if old.name != new.name or old.key_id == new.key_id:
        raise LedgerError(f"KEY_ROTATION of {old.name}: needs another key of the same organization")
    body = {
        "key_id": new.key_id,
        "public_key": new.public_hex,
        "possession": possession(new, run, old.key_id),
    }
    return make_event(old, run, ev.KEY_ROTATION, body)


def possession(new: Identity, run: str, replaces: str) -> str:
    """Signature of a new key, in base64, that it replaces the key with id ``replaces`` in a run."""
    message = _possession_message(run, new.name, replaces, new.key_id)
    return dsse.encode_base64(new.sign(message))


def check_possession(run: str, organization: str, replaces: str, key_id: str, public_hex: str, proof: str) -> None:
    """Raise LedgerError unless ``proof`` is of :func:`possession` with that key."""
    try:
        signature = dsse.decode_base64(proof, "possession")
        dsse.check_signature(public_hex, signature, _possession_message(run, organization, replaces, key_id))
    except LedgerError:
        raise LedgerError(
            f"the proof of possession does not hold: the new key {key_id[:16]} did not sign that it replaces "
            f"{replaces[:16]} of {organization} in run {run!r}"
        ) from None


def _possession_message(run: str, organization: str, replaces: str, key_id: str) -> bytes:
    said = {"key_id": key_id, "organization": organization, "replaces": replaces, "run": run}
    return dsse.pae(POSSESSION_TYPE, canonical_json(said))


def decision(run: str, organization: str, key_id: str, reason: str, new_key_id: str = "") -> dict[str, str]:
    """What organizations approve: that key ``key_id`` is revoked, or, with ``new_key_id``, replaced after that."""
    return {
        "key_id": key_id, "new_key_id": new_key_id, "organization": organization, "reason": reason, "run": run,
    }  # fmt: skip


def approve(identity: Identity, said: Mapping[str, str]) -> dict[str, str]:
    """An organization's approval of a :func:`decision`: ``keyid`` and ``sig``."""
    envelope = dsse.sign(canonical_json(dict(said)), DECISION_TYPE, identity)
    return dict(envelope["signatures"][0])


def decision_of(event: Event) -> dict[str, str]:
    """The decision that a KEY_REVOKED or KEY_ADMITTED event carries out."""
    body = event.body
    if event.type == ev.KEY_REVOKED:
        return decision(event.run, body["organization"], body["key_id"], body["reason"])
    return decision(event.run, body["organization"], body["replaces"], body["reason"], body["key_id"])


def needed_approvals(others: int) -> int:
    """Approvals that count where there are so many other organizations: more than half."""
    return others // 2 + 1


def check_approvals(
    said: Mapping[str, str], approvals: Sequence[Mapping[str, Any]], others: Mapping[str, str]
) -> list[str]:
    """Check the approvals of a decision.

    Parameters
    ----------
    said
        Of :func:`decision`.
    approvals
        Of :func:`approve`.
    others
        Public keys in hex, by name, of the organizations that may approve: all in force but the one concerned and the
        coordinator.

    Returns
    -------
    list of str
        Who approved.

    Raises
    ------
    LedgerError
        A signature does not hold, is of nobody who may approve, or of the same one twice; or they are too few.
    """
    names = {key_id_of(key): name for name, key in others.items()}
    message = dsse.pae(DECISION_TYPE, canonical_json(dict(said)))
    found: list[str] = []
    for entry in approvals:
        name = names.get(entry["keyid"])
        if name is None or name in found:
            raise LedgerError(f"approval by key {entry['keyid'][:16]}: it is of no other organization, or comes twice")
        try:
            dsse.check_signature(others[name], dsse.decode_base64(entry["sig"], "sig"), message)
        except LedgerError:
            raise LedgerError(f"approval of {name}: the signature does not hold for this decision") from None
        found.append(name)
    if len(found) < needed_approvals(len(others)):
        raise LedgerError(
            f"{len(found)} of {len(others)} other organizations approve; {needed_approvals(len(others))} must"
        )
    return sorted(found)
