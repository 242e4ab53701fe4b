"""Who may speak in a run: the registry that admits events."""

from ledger import dsse
from ledger.errors import LedgerError
from ledger.events import REGISTER, Event, read_event, read_leaf


class Registry:
    """Who may speak in a run: one key an organization, one organization a key, one run.

    Attributes
    ----------
    run
        Id of the run; fixed by the first event where it is not given.
    keys
        Public keys in hex by key id.
    """

    def __init__(self, run: str | None = None) -> None:
        self.run = run
        self.keys: dict[str, str] = {}
        self._key_of: dict[str, str] = {}  # organization -> key id
        self._organization_of: dict[str, str] = {}  # key id -> organization

    def copy(self) -> "Registry":
        """An independent copy, to try a batch on."""
        other = Registry(self.run)
        other.keys = dict(self.keys)
        other._key_of = dict(self._key_of)
        other._organization_of = dict(self._organization_of)
        return other

    @property
    def organizations(self) -> dict[str, str]:
        """Key id of every registered organization."""
        return dict(self._key_of)

    def admit(self, envelope: dsse.Envelope) -> Event:
        """Check an envelope against the registry; a REGISTER event enters its key.

        Raises
        ------
        LedgerError
            As :func:`read_event`; or another run, another organization's key, a name or key that is taken.
        """
        event = read_event(envelope, self.keys)
        self.enter(event)
        return event

    def admit_leaf(self, leaf: bytes) -> Event:
        """:meth:`admit` for a leaf of the log; as in :func:`read_leaf`, the event does not hold it again."""
        event = read_leaf(leaf, self.keys)
        self.enter(event)
        return event

    def enter(self, event: Event) -> None:
        """Apply an event whose signature was checked. Raises LedgerError as :meth:`admit`."""
        where = f"{event.type} of {event.organization}"
        if self.run is not None and event.run != self.run:
            raise LedgerError(f"{where}: belongs to run {event.run!r}, this is {self.run!r}; a replay from elsewhere?")
        if event.type == REGISTER:
            if self._key_of.get(event.organization, event.key_id) != event.key_id:
                raise LedgerError(f"{where}: the name is registered with another key")
            if self._organization_of.get(event.key_id, event.organization) != event.organization:
                owner = self._organization_of[event.key_id]
                raise LedgerError(f"{where}: the key is registered by {owner}")
            self._key_of[event.organization] = event.key_id
            self._organization_of[event.key_id] = event.organization
            self.keys[event.key_id] = event.body["public_key"]
        elif self._key_of.get(event.organization) != event.key_id:
            owner = self._organization_of.get(event.key_id, "nobody")
            raise LedgerError(f"{where}: signed with the key of {owner}")
        self.run = event.run
