"""Who may speak in a run: the registry that admits events."""

from collections.abc import Iterable

from ledger import dsse, key_events
from ledger.errors import LedgerError
from ledger.events import KEY_ADMITTED, KEY_EVENTS, KEY_REVOKED, KEY_ROTATION, REGISTER, Event, read_event, read_leaf
from ledger.identity import COORDINATOR


class Registry:
    """Who may speak in a run: at each position of the log one key an organization, one organization a key, one run.

    An organization's key counts for events after the one that enters it (REGISTER, KEY_ROTATION, KEY_ADMITTED), up to
    the one that ends it (KEY_ROTATION, KEY_REVOKED). A key that was ever in force never counts for anybody else.

    Attributes
    ----------
    run
        Id of the run; fixed by the first event where it is not given.
    keys
        Public keys in hex by key id: those in force, and those that were.
    """

    def __init__(self, run: str | None = None) -> None:
        self.run = run
        self.keys: dict[str, str] = {}
        self._key_of: dict[str, str] = {}  # organization -> key id in force
        self._organization_of: dict[str, str] = {}  # key id -> organization
        self._since: dict[str, list[tuple[int, str]]] = {}  # organization -> position and key id; "": none from there
        self._lineage: dict[str, list[str]] = {}  # organization -> key ids, each handed on by a rotation
        self._next = 0

    def copy(self) -> "Registry":
        """An independent copy, to try a batch on."""
        other = Registry(self.run)
        other.keys = dict(self.keys)
        other._key_of = dict(self._key_of)
        other._organization_of = dict(self._organization_of)
        other._since = {name: list(rows) for name, rows in self._since.items()}
        other._lineage = {name: list(ids) for name, ids in self._lineage.items()}
        other._next = self._next
        return other

    @property
    def organizations(self) -> dict[str, str]:
        """Key id of every registered organization; its last one where it is revoked."""
        return {name: ids[-1] for name, ids in self._lineage.items()}

    @property
    def revoked(self) -> list[str]:
        """Organizations without a key in force: theirs was revoked, and no other one admitted."""
        return sorted(name for name in self._lineage if name not in self._key_of)

    def keys_at(self, size: int) -> dict[str, str]:
        """Public keys in hex, by organization, that are in force after the first ``size`` events."""
        found: dict[str, str] = {}
        for name, rows in self._since.items():
            ids = [key_id for position, key_id in rows if position < size]
            if ids and ids[-1]:
                found[name] = self.keys[ids[-1]]
        return found

    def lineage(self, organization: str) -> list[str]:
        """Public keys in hex of an organization, oldest first: each but the last signed that the next follows it.

        A key that others admitted after a revocation begins anew.
        """
        return [self.keys[key_id] for key_id in self._lineage.get(organization, [])]

    def held(self, organization: str) -> list[str]:
        """Public keys in hex that an organization ever had in force and that were not revoked, oldest first."""
        rows = [key_id for _, key_id in self._since.get(organization, [])]
        return [
            self.keys[key_id]
            for place, key_id in enumerate(rows)
            if key_id and (place + 1 == len(rows) or rows[place + 1])
        ]

    def revoked_at(self, organization: str) -> list[int]:
        """Positions of the events that revoked a key of an organization."""
        return [position for position, key_id in self._since.get(organization, []) if not key_id]

    def read(self, envelope: dsse.Envelope) -> Event:
        """Check an envelope's signature, and that it is of this run and its signer's own key, in force or retired.

        Raises
        ------
        LedgerError
            As :func:`ledger.events.read_event`; or another run, or another organization's key.
        """
        event = read_event(envelope, self.keys)
        self._check_own(event)
        return event

    def admit(self, envelope: dsse.Envelope, position: int | None = None) -> Event:
        """Check an envelope against the registry; an event that enters or ends a key does so.

        Parameters
        ----------
        position
            Of the event in the log; default: behind the last one that was entered.

        Raises
        ------
        LedgerError
            As :meth:`read`; a name or key that is taken; a key that was rotated or revoked before; a rotation,
            revocation or admission that does not hold.
        """
        event = self.read(envelope)
        self.enter(event, position)
        return event

    def admit_leaf(self, leaf: bytes, position: int | None = None) -> Event:
        """:meth:`admit` for a leaf of the log; as in :func:`read_leaf`, the event does not hold it again."""
        event = read_leaf(leaf, self.keys)
        self.enter(event, position)
        return event

    def enter(self, event: Event, position: int | None = None) -> None:
        """Apply an event whose signature was checked. Raises LedgerError as :meth:`admit`."""
        self._check_own(event)
        where = f"{event.type} of {event.organization}"
        place = self._next if position is None else position
        try:
            if event.type == REGISTER:
                self._register(event, place)
            elif self._key_of.get(event.organization) != event.key_id:
                raise LedgerError(
                    f"its key {event.key_id[:16]} was rotated or revoked before; sign with the key that is in force"
                )
            elif event.type == KEY_ROTATION:
                self._rotate(event, place)
            elif event.type == KEY_REVOKED:
                self._revoke(event, place)
            elif event.type == KEY_ADMITTED:
                self._readmit(event, place)
        except LedgerError as error:
            raise LedgerError(f"{where}: {error}") from None
        self._next = place + 1
        self.run = event.run

    def _check_own(self, event: Event) -> None:
        where = f"{event.type} of {event.organization}"
        if self.run is not None and event.run != self.run:
            raise LedgerError(f"{where}: belongs to run {event.run!r}, this is {self.run!r}; a replay from elsewhere?")
        owner = self._organization_of.get(event.key_id)
        if event.type != REGISTER and owner != event.organization:
            raise LedgerError(f"{where}: signed with the key of {owner or 'nobody'}")

    def _register(self, event: Event, position: int) -> None:
        name, key_id = event.organization, event.key_id
        if self._organization_of.get(key_id, name) != name:
            raise LedgerError(f"the key is registered by {self._organization_of[key_id]}")
        if name not in self._lineage:
            self._lineage[name] = [key_id]
            self._hold(name, key_id, event.body["public_key"], position)
        elif self._key_of.get(name) != key_id:
            state = "is registered with another key" if name in self._key_of else "is without a key: it was revoked"
            raise LedgerError(f"the name {state}")

    def _rotate(self, event: Event, position: int) -> None:
        name, body = event.organization, event.body
        key_events.check_possession(
            event.run, name, event.key_id, body["key_id"], body["public_key"], body["possession"]
        )
        self._check_fresh(body["key_id"])
        self._lineage[name].append(body["key_id"])
        self._hold(name, body["key_id"], body["public_key"], position)

    def _revoke(self, event: Event, position: int) -> None:
        name, key_id = event.body["organization"], event.body["key_id"]
        if self._key_of.get(name) != key_id:
            raise LedgerError(f"{key_id[:16]} is not the key of {name} that is in force")
        key_events.check_approvals(key_events.decision_of(event), event.body["approvals"], self.others(name))
        del self._key_of[name]
        self._since[name].append((position, ""))

    def _readmit(self, event: Event, position: int) -> None:
        name, body = event.body["organization"], event.body
        if name not in self.revoked or self._lineage[name][-1] != body["replaces"]:
            raise LedgerError(f"{body['replaces'][:16]} is not a key of {name} that was revoked")
        key_events.check_possession(
            event.run, name, body["replaces"], body["key_id"], body["public_key"], body["possession"]
        )
        key_events.check_approvals(key_events.decision_of(event), body["approvals"], self.others(name))
        self._check_fresh(body["key_id"])
        self._lineage[name] = [body["key_id"]]
        self._hold(name, body["key_id"], body["public_key"], position)

    def others(self, organization: str) -> dict[str, str]:
        """Public keys in hex of who may decide on an organization's key: all others in force, but the coordinator."""
        return {
            name: self.keys[key_id]
            for name, key_id in self._key_of.items()
            if name not in (organization, COORDINATOR)
        }

    def _check_fresh(self, key_id: str) -> None:
        if key_id in self._organization_of:
            raise LedgerError(f"the key {key_id[:16]} is, or was, the one of {self._organization_of[key_id]}")

    def _hold(self, name: str, key_id: str, public_hex: str, position: int) -> None:
        self.keys[key_id] = public_hex
        self._key_of[name] = key_id
        self._organization_of[key_id] = name
        self._since.setdefault(name, []).append((position, key_id))


def registry_of(run: str, events: Iterable[tuple[int, Event]]) -> Registry:
    """The registry that events give, with their positions, whose signatures were checked and which are in order."""
    registry = Registry(run)
    for position, event in events:
        if event.type in KEY_EVENTS:
            registry.enter(event, position)
    return registry
