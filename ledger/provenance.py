"""The provenance graph: which artifact of a run was computed from which others, as the log tells it.

Format
------
A **node** is one artifact as one event states it: kind, name, digest, round, position of the event in the log. Kinds
and names: ``shard`` ``bank/all`` (training records; ``bank/*test`` its test records), ``adapter`` ``all@7`` (``all@0``:
the initial one), ``update`` ``bank/all@7``, ``checkpoint`` ``7``, ``evaluation`` ``7``, ``reward`` ``7``, ``privacy``
``bank@7``, ``model`` ``1`` (counted releases), besides ``manifest``, ``base`` and ``frozen``. An **edge** says that a
node was computed from another. Parents always come first, so that the order of the nodes is an order of computation.
Where an event states no digest of its own (scores, rewards, privacy spend), it is the SHA-256 of its body in canonical
JSON.

An update reads the shard of its member, and the adapter on which it was trained. Decisions are no nodes: a replay takes
the participation that was recorded, and a certificate says so. A removal (UNLEARN_WITHDRAWN) takes updates and adapters
out of use, from a round on, with the checkpoints, scores and rewards that hold or measure them; what is replayed comes
as new nodes of the same names.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ledger.errors import LedgerError
from ledger.events import Event
from ledger.graph import (
    ADAPTER,
    BASE,
    CHECKPOINT,
    EVALUATION,
    FROZEN,
    MANIFEST,
    MODEL,
    NOT_COMMITTED,
    PRIVACY,
    REWARD,
    SHARD,
    TEST,
    UPDATE,
    Graph,
    Node,
    shard_name,
)
from ledger.graph_builder import GraphBuilder

__all__ = [
    "ADAPTER", "BASE", "CHECKPOINT", "EVALUATION", "FROZEN", "MANIFEST", "MODEL", "NOT_COMMITTED", "PRIVACY", "REWARD",
    "SHARD", "TEST", "UPDATE", "Graph", "Node", "Source", "affected", "closure", "from_events", "shard_name",
]  # fmt: skip


@dataclass(frozen=True)
class Source:
    """What is to be forgotten, as far as the graph knows: records of a shard.

    Attributes
    ----------
    organization, cohort
        The member.
    root
        The newest root of the shard that held the records.
    round
        The first round that may have read them; 1 if that is not known.
    """

    organization: str
    cohort: str
    root: str
    round: int = 1


def from_events(events: Sequence[Event], manifest: Mapping[str, Any]) -> Graph:
    """Build the graph of a run.

    Parameters
    ----------
    events
        All events of the log, in order, their signatures checked.
    manifest
        The run's manifest: ``cohorts``, ``initial``, and where it has them ``base`` and ``frozen``.

    Raises
    ------
    LedgerError
        An event names an input that no earlier event states.
    """
    builder = GraphBuilder(manifest)
    for position, event in enumerate(events):
        builder.see(position, event)
    builder.finish()
    return builder.graph


def closure(graph: Graph, sources: Iterable[Source], until: int | None = None) -> list[Node]:
    """Everything that depends on the sources' records and is to be recomputed or withdrawn.

    Parameters
    ----------
    graph
        Of :func:`from_events`.
    sources
        Shards, each with its first round.
    until
        Position in the log of the withdrawal: later nodes do not count. Default: none does.

    Returns
    -------
    list of Node
        In an order of computation; the shards first. Of nodes of one kind and name only the newest: those before it
        were superseded (a repeated round, an earlier replay). What an earlier removal withdrew is not among them. Of
        models all that were not revoked before.

    Raises
    ------
    LedgerError
        A shard never had such a root.
    """
    nodes = [node for node in graph.nodes if until is None or node.event < until]
    sources = list(sources)
    shards = [_versions(nodes, source)[-1] for source in sources]
    reached = _reached(nodes, sources)
    newest = {(node.kind, node.name): node.index for node in nodes}
    gone = {index for index, position in graph.withdrawn.items() if until is None or position < until}
    live = [n for n in nodes if n.index in reached - gone and newest[n.kind, n.name] == n.index]
    revoked = {digest for digest, position in graph.revoked.items() if until is None or position < until}
    kept = [node for node in live if node.kind != MODEL or node.digest not in revoked]
    return sorted({node.index: node for node in shards}.values(), key=lambda node: node.index) + kept


def affected(graph: Graph, sources: Iterable[Source]) -> list[Node]:
    """Everything in the whole log that was computed from the sources' records, superseded or not, and withdrawn or not.

    What replaces the closure must have nothing of this among its ancestors.

    Raises
    ------
    LedgerError
        A shard never had such a root.
    """
    reached = _reached(graph.nodes, list(sources))
    return [node for node in graph.nodes if node.index in reached]


def _versions(nodes: Sequence[Node], source: Source) -> list[Node]:
    """Versions of a source's shard up to its root. Raises LedgerError where there is no such root."""
    name = shard_name(source.organization, source.cohort)
    versions = [node for node in nodes if (node.kind, node.name) == (SHARD, name)]
    while versions and versions[-1].digest != source.root:
        versions.pop()
    if not versions:
        raise LedgerError(f"closure: the log has no shard {name} with root {source.root[:16] or '(none)'}")
    return versions


def _reached(nodes: Sequence[Node], sources: Sequence[Source]) -> set[int]:
    first: dict[int, int] = {}  # version of a shard -> first round that may have read a record of a source
    for source in sources:
        # Earlier versions held the records, too: what was trained on them and is still in use depends on them.
        for version in _versions(nodes, source):
            first[version.index] = min(source.round, first.get(version.index, source.round))
    reached: set[int] = set()
    for node in nodes:
        # An update of an earlier round read the shard, but not yet the record.
        early = node.kind == UPDATE and any(node.round < first.get(parent, 0) for parent in node.parents)
        if any(parent in reached or (parent in first and not early) for parent in node.parents):
            reached.add(node.index)
    return reached
