"""What the log says of a run so far, for whoever plans a removal: recorded steps, artifacts, models."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ledger import events as ev
from ledger import layout, provenance
from ledger.events import Event, read_event
from ledger.log import SqliteLog


@dataclass(frozen=True)
class History:
    """All events of a log, in order, and the manifest."""

    events: Sequence[Event]
    manifest: dict[str, Any]

    @classmethod
    def read(cls, run_dir: Path, manifest: dict[str, Any]) -> "History":
        """Of a run directory; everything that was submitted must be in the log."""
        log = SqliteLog(run_dir / layout.LOG, read_only=True)
        try:
            keys = log.keys()
            return cls([read_event(envelope, keys) for _, envelope in log.events()], manifest)
        finally:
            log.close()

    @cached_property
    def graph(self) -> provenance.Graph:
        """The provenance graph."""
        return provenance.from_events(self.events, self.manifest)

    def steps(self, rounds: int) -> dict[str, list[dict[str, int]]]:
        """For every cohort and round (from 1), the steps of the merged updates by organization."""
        trained: dict[tuple[str, str, int, str], int] = {}
        newest: dict[tuple[str, int], dict[str, int]] = {}
        for event in self.events:
            body = event.body
            if event.type == ev.UPDATE:
                trained[event.organization, body["cohort"], body["round"], body["update"]] = body["steps"]
            elif event.type == ev.MERGE:
                slot = (body["cohort"], body["round"])
                newest[slot] = {
                    entry["organization"]: trained[entry["organization"], *slot, entry["update"]]
                    for entry in body["inputs"]
                }
        return {
            cohort: [newest.get((cohort, number), {}) for number in range(1, rounds + 1)]
            for cohort in self.manifest["cohorts"]
        }

    def models(self) -> list[str]:
        """Digests of released models that were not revoked, in order; the last one is the model."""
        revoked = {event.body["model_digest"] for event in self.events if event.type == ev.MODEL_REVOKED}
        released = [e.body["model_digest"] for e in self.events if e.type == ev.MODEL_RELEASE]
        return [digest for digest in dict.fromkeys(released) if digest not in revoked]

    def withdrawal(self, removal: str) -> int | None:
        """Position of a removal's UNLEARN_WITHDRAWN event."""
        for position, event in enumerate(self.events):
            if event.type == ev.UNLEARN_WITHDRAWN and event.body["removal"] == removal:
                return position
        return None

    def adapter(self, cohort: str, number: int) -> str:
        """Digest of the newest adapter of a cohort in a round; 0: the initial one."""
        name = f"{cohort}@{number}"
        found = [n for n in self.graph.nodes if (n.kind, n.name) == (provenance.ADAPTER, name)]
        return found[-1].digest
