"""What the steps of a verification share: options, findings, and the state that later steps rely on."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ledger import layout
from ledger.errors import LedgerError
from ledger.events import Event
from ledger.heads import AnchorStore, TreeHead
from ledger.identity import COORDINATOR
from ledger.merkle import MerkleLog
from ledger.private import PrivateChain
from ledger.registry import Registry
from ledger.seal import Seal


class Fault(LedgerError):
    """Something is wrong with one file of the run.

    Parameters
    ----------
    file
        Name relative to the run directory.
    reason
        What is wrong.
    """

    def __init__(self, file: str, reason: str) -> None:
        super().__init__(reason if reason.startswith(file) else f"{file}: {reason}")
        self.file = file


class Skip(LedgerError):
    """A step has nothing to check, or cannot check it here; the text says why."""


@dataclass(frozen=True)
class Options:
    """What the person who verifies asks for, and brings along.

    Attributes
    ----------
    partial
        Files may be missing: what needs them is skipped. What is here is checked as strictly as ever.
    trust
        Public keys in hex by organization, known from elsewhere; None: none.
    model
        A model folder, or one safetensors file, that is to be the released one.
    min_witnesses
        Organizations that must have cosigned the newest checkpoint; with ``trust``, only those named there count.
    min_auditors
        Organizations that must have counter-signed every certificate, besides its issuers.
    rpc_url
        A node of the public chain to ask.
    fabric
        Opens the private chain to ask, for the run of a given id.
    """

    partial: bool = False
    trust: Mapping[str, str] | None = None
    model: Path | None = None
    min_witnesses: int = 0
    min_auditors: int = 0
    rpc_url: str | None = None
    fabric: Callable[[str], PrivateChain] | None = None


@dataclass
class Links:
    """What the events say of the run's files.

    Attributes
    ----------
    merges
        Per cohort the MERGE events that count: those of attempts that were cut short are left out.
    checkpoints
        The last CHECKPOINT event for each file.
    release
        The last MODEL_RELEASE event.
    last_round
        Number of the last merged round.
    withdrawn
        Digests of the adapters that were in a file, by its name, where all were withdrawn and none replaces them.
    superseded
        Files of checkpoints that hold something withdrawn and were not made again: they may be missing.
    executed
        Position of UNLEARN_EXEC by digest of the certificate.
    under_way
        Whether a removal has withdrawn something and is not executed yet.
    """

    merges: dict[str, list[Event]] = field(default_factory=dict)
    checkpoints: dict[str, Event] = field(default_factory=dict)
    release: Event | None = None
    last_round: int = 0
    withdrawn: dict[str, set[str]] = field(default_factory=dict)
    superseded: set[str] = field(default_factory=set)
    executed: dict[str, int] = field(default_factory=dict)
    under_way: bool = False


@dataclass
class Audit:
    """State of one verification, filled step by step.

    Attributes
    ----------
    run_dir
        The run directory, or what was taken out of a bundle.
    options
        Of the person who verifies.
    seal
        The seal, where there is one.
    missing
        Files that the seal names and that are gone; allowed only for pruned rounds.
    absent
        Files that the seal names and that are not in this part of the run.
    whole_log
        Whether ``events`` and ``merkle`` hold the whole log, not only chosen events.
    events
        Events in order, checked, without their leaves.
    registry
        Whose key counts where, as the log's events say.
    documents
        Public keys in hex by organization, as identity documents show them, where no log is here: oldest first, each
        rotated to the next.
    consistency
        Consistency proofs between successive tree heads, where chosen events stand for the log.
    notes
        What a step that is otherwise in order could not check.
    """

    run_dir: Path
    options: Options = field(default_factory=Options)
    seal: Seal | None = None
    missing: set[str] = field(default_factory=set)
    absent: set[str] = field(default_factory=set)
    whole_log: bool = False
    run: str = ""
    events: list[Event] = field(default_factory=list)
    merkle: MerkleLog = field(default_factory=MerkleLog)
    registry: Registry = field(default_factory=Registry)
    documents: dict[str, list[str]] = field(default_factory=dict)
    manifest: dict[str, Any] = field(default_factory=dict)
    links: Links = field(default_factory=Links)
    consistency: list[list[bytes]] | None = None
    store: AnchorStore | None = None
    heads: list[TreeHead] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def has(self, name: str) -> bool:
        """Whether something of that name is here; a link counts, so that it is found and refused."""
        path = self.run_dir / name
        return path.exists() or path.is_symlink()

    def lacks(self, name: str) -> bool:
        """Whether a file is missing, and that is allowed."""
        return self.options.partial and not self.has(name)

    def need(self, name: str) -> None:
        """Skip the step where a file is missing and that is allowed; where it is not, reading it is the fault."""
        if self.lacks(name):
            raise Skip(f"{name} is not here")

    @property
    def organizations(self) -> dict[str, str]:
        """Key id of each organization that the log registers."""
        return self.registry.organizations

    def lineage(self, organization: str) -> list[str]:
        """Public keys in hex that the run shows of an organization, oldest first, each rotated to the next."""
        return self.registry.lineage(organization) or self.documents.get(organization, [])

    def public_key(self, organization: str) -> str | None:
        """Public key in hex: as the log registers it, else as the verifying person knows it, else of its document; the
        newest one where a rotation leads on from it."""
        known = (self.options.trust or {}).get(organization)
        shown = self.lineage(organization)
        if organization in self.organizations or known is None or known in shown:
            return shown[-1] if shown else known
        return known

    def witness_keys(self, size: int) -> dict[str, str]:
        """Public keys in hex, by organization, with which a tree head of that size may be cosigned."""
        known = {**self.documents, **(self.options.trust or {})}.keys() - self.organizations.keys()
        others = {name: key for name in known if (key := self.public_key(name)) is not None}
        return {name: key for name, key in {**others, **self.registry.keys_at(size)}.items() if name != COORDINATOR}

    def file_digest(self, name: str) -> str:
        """SHA-256 of a file. Raises Fault if it cannot be read."""
        try:
            return layout.file_digest(self.run_dir, name)
        except LedgerError as error:
            raise Fault(name, str(error)) from None
