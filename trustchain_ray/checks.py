"""Checks on an update before it is merged: who signed it, for which round, and whether it is sound."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ledger.errors import LedgerError
from ledger.events import Event, default_key, read_event
from trustchain_ray.adapter import Layout, digest
from trustchain_ray.exchange import CohortTask, Update
from trustchain_ray.merge import LIMIT
from trustchain_ray.worker import Packed

MALFORMED = (AttributeError, IndexError, KeyError, TypeError, ValueError)
"""What looking at an answer raises that is not made as answers are."""


class Refused(Exception):
    """An update that is not merged; the text is the reason that is logged."""

    def __init__(self, reason: str) -> None:
        # A reason quotes what the sender wrote: it must not grow beyond what one event may hold.
        super().__init__(reason if len(reason) <= 500 else reason[:500] + "...")


def check_own(
    kind: str,
    envelope: dict[str, Any],
    organization: str,
    number: int,
    keys: dict[str, str],
    run: str,
    removal: str | None = None,
) -> None:
    """Refuse a statement beside the updates that the organization did not sign for this round.

    Parameters
    ----------
    kind : DECISION or PRIVACY_SPEND, the type that it must have.
    removal : of which removal's replay it is part; None: of the training.

    Raises
    ------
    Refused
        With the reason.
    """
    what = kind.lower().replace("_", " ")
    try:
        event = read_event(envelope, keys)
    except LedgerError as error:
        raise Refused(f"{what}: {error}") from None
    if (event.type, event.run, event.organization) != (kind, run, organization):
        raise Refused(f"{what}: signed as {event.type} of {event.organization} in run {event.run}")
    if event.round != number:
        raise Refused(f"{what}: signed for round {event.round}")
    _check_place(event, removal)


def _check_place(event: Event, removal: str | None) -> None:
    """Refuse what the log would not take or not understand: another event's key, a part of another removal."""
    if event.key != default_key(event.type, event.organization, event.body):
        raise Refused(f"{event.type}: its idempotency key is not the one of what it says")
    if event.body.get("replay") != removal:
        raise Refused(f"{event.type}: signed as part of {_removal(event.body.get('replay'))}, not {_removal(removal)}")


def _removal(name: Any) -> str:
    return "the training" if name is None else f"removal {str(name)[:16]}"


def check_original(update: Update, update_digest: str, accepted: Mapping[str, str]) -> None:
    """Refuse a copy of another member's update of the same round: a free rider's.

    Parameters
    ----------
    update_digest : its digest, as signed and checked.
    accepted : digests of the updates that the cohort has accepted in this round, by organization.

    Raises
    ------
    Refused
        Naming whose update it is. Updates that change nothing are alike without being copied.
    """
    for name, other in accepted.items():
        if other == update_digest and update.update.buffer.any():
            raise Refused(f"it is the update of {name}, bit for bit: a copy brings nothing and is not paid for")


def check_update(
    update: Update,
    organization: str,
    number: int,
    task: CohortTask,
    layout: Layout,
    keys: dict[str, str],
    run: str,
    max_norm: float,
    max_weight: int,
    removal: str | None = None,
    kept: bool = False,
) -> str:
    """Refuse a forged, replayed, mis-shaped, oversized, non-finite or too large update.

    Parameters
    ----------
    layout : names and shapes that an update of this member must have.
    keys : public keys (hex) by key id that may sign for this organization: its own, nobody else's.
    max_weight : the largest weight this member may claim: its registered records times its steps.
    removal, kept : of which removal's replay it is part; whether it states again what the replay leaves as it was.

    Returns
    -------
    The digest of the update, as signed.

    Raises
    ------
    Refused
        With the reason.
    """
    said = check_statement(update, organization, number, task, keys, run, max_weight, removal, kept)
    check_values(update.update, layout, max_norm)
    if digest(update.update.tensors()) != said:
        raise Refused("its bytes do not match the signed digest")
    return said


def check_statement(
    update: Update,
    organization: str,
    number: int,
    task: CohortTask,
    keys: dict[str, str],
    run: str,
    max_weight: int,
    removal: str | None = None,
    kept: bool = False,
) -> str:
    """What can be checked of an update without its values: who signed it, for which round and adapter, and its weight.

    See :func:`check_update` for parameters and what is returned and raised.
    """
    try:
        event = read_event(update.envelope, keys)
    except LedgerError as error:
        raise Refused(f"signature: {error}") from None
    body = event.body
    if event.type != "UPDATE" or event.run != run or event.organization != organization:
        raise Refused(f"signed as {event.type} of {event.organization} in run {event.run}, not as its own update")
    if body["round"] != number or body["cohort"] != task.cohort:
        raise Refused(f"replayed: signed for round {body['round']} of {body['cohort']}")
    if body["base"] != task.digest:
        raise Refused("trained from another adapter than this round's")
    if type(update.weight) is not int or body["weight"] != update.weight or not 0 < update.weight <= max_weight:
        raise Refused(f"weight {update.weight} is not within the registered {max_weight}")
    _check_place(event, removal)
    if body.get("kept", False) is not kept:
        raise Refused("says of an update that was trained now that it is kept from before, or the other way round")
    figures = [*update.losses, update.seconds, update.records, update.resident]
    if not all(type(figure) in (int, float) for figure in figures):
        raise Refused("its losses, seconds, records or bytes are no numbers")
    return str(body["update"])


def check_values(update: Packed, layout: Layout, max_norm: float) -> None:
    """Whether the values of an update can be merged: by the coordinator, or by the member itself before it masks them.

    Parameters
    ----------
    layout : names and shapes that it must have.
    max_norm : largest L2 norm.

    Raises
    ------
    Refused
        With the reason.
    """
    if update.layout != layout or update.buffer.shape != (layout.size,):
        raise Refused("names or shapes differ from the agreed adapter")
    if update.buffer.dtype != np.float32:
        raise Refused(f"type {update.buffer.dtype}, expected float32")
    largest = float(np.abs(update.buffer).max(initial=0.0))
    if not np.isfinite(largest):
        raise Refused("holds NaN or infinity")
    if largest > LIMIT:
        raise Refused(f"a value of {largest:.3g} is beyond the fixed-point range of {LIMIT:g}")
    norm = float(np.linalg.norm(update.buffer.astype(np.float64)))
    if norm > max_norm:
        raise Refused(f"norm {norm:.4g} is above trust.max_update_norm={max_norm:g}")
