"""What the steps of a verification share: findings, and the state that later steps rely on."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ledger.errors import LedgerError
from ledger.events import Event
from ledger.heads import AnchorStore, TreeHead
from ledger.merkle import MerkleLog
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
    """

    merges: dict[str, list[Event]] = field(default_factory=dict)
    checkpoints: dict[str, Event] = field(default_factory=dict)
    release: Event | None = None
    last_round: int = 0


@dataclass
class Audit:
    """State of one verification, filled step by step.

    Attributes
    ----------
    run_dir
        The run directory.
    seal
        The seal, where there is one.
    missing
        Files that the seal names and that are gone; allowed only for pruned rounds.
    events
        All events in order, checked, without their leaves.
    keys
        Key id of each organization, and public keys by key id.
    """

    run_dir: Path
    seal: Seal | None = None
    missing: set[str] = field(default_factory=set)
    run: str = ""
    events: list[Event] = field(default_factory=list)
    merkle: MerkleLog = field(default_factory=MerkleLog)
    organizations: dict[str, str] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    manifest: dict[str, Any] = field(default_factory=dict)
    links: Links = field(default_factory=Links)
    store: AnchorStore | None = None
    heads: list[TreeHead] = field(default_factory=list)
