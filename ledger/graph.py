"""Nodes and edges of the provenance graph (:mod:`ledger.provenance`)."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from ledger.errors import LedgerError

MANIFEST, BASE, FROZEN, SHARD, UPDATE, ADAPTER = "manifest", "base", "frozen", "shard", "update", "adapter"
CHECKPOINT, EVALUATION, REWARD, PRIVACY, MODEL = "checkpoint", "evaluation", "reward", "privacy", "model"

TEST = "*test"
"""Stands for the cohort in the name of a shard of test records: no cohort can have this name."""

NOT_COMMITTED = ""
"""Digest of a shard to whose records the run did not commit."""


@dataclass(frozen=True)
class Node:
    """An artifact.

    Attributes
    ----------
    index
        Its number in the graph; parents have smaller ones.
    kind, name, digest
        See the top of this module.
    round
        1-based; 0 for what is there before the first.
    event
        Position of its event in the log; -1 for what the manifest states.
    parents
        What it was computed from, in order.
    """

    index: int
    kind: str
    name: str
    digest: str
    round: int
    event: int
    parents: tuple[int, ...] = ()


@dataclass
class Graph:
    """The artifacts of a run.

    Attributes
    ----------
    nodes
        In an order of computation.
    revoked
        Models that must not be used any more: position of the event by digest.
    withdrawn
        Nodes that a removal withdrew, and what measured or held them: position of UNLEARN_WITHDRAWN by index.
    """

    nodes: list[Node] = field(default_factory=list)
    revoked: dict[str, int] = field(default_factory=dict)
    withdrawn: dict[int, int] = field(default_factory=dict)

    def find(self, digest: str) -> list[Node]:
        """Nodes whose digest begins with ``digest`` (8 digits or more).

        Raises
        ------
        LedgerError
            Too short, or there is none.
        """
        found = [node for node in self.nodes if node.digest.startswith(digest)] if len(digest) >= 8 else []
        if not found:
            raise LedgerError(f"lineage: no artifact of the run has digest {digest!r}; give at least 8 hex digits")
        return found

    def ancestors(self, nodes: Iterable[Node]) -> list[Node]:
        """Everything that these nodes were computed from, without themselves."""
        wanted = {parent for node in nodes for parent in node.parents}
        for node in reversed(self.nodes):
            if node.index in wanted:
                wanted.update(node.parents)
        return [node for node in self.nodes if node.index in wanted]

    def descendants(self, nodes: Iterable[Node]) -> list[Node]:
        """Everything that was computed from these nodes, without themselves."""
        start = {node.index for node in nodes}
        reached = set(start)
        for node in self.nodes:
            if not reached.isdisjoint(node.parents):
                reached.add(node.index)
        return [node for node in self.nodes if node.index in reached - start]


def shard_name(organization: str, cohort: str) -> str:
    """Name of a shard's node."""
    return f"{organization}/{cohort}"
