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
the participation that was recorded, and a certificate says so.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ledger import events as ev
from ledger.canonical import canonical_json, is_digest, sha256_hex
from ledger.errors import LedgerError
from ledger.events import Event

MANIFEST, BASE, FROZEN, SHARD, UPDATE, ADAPTER = "manifest", "base", "frozen", "shard", "update", "adapter"
CHECKPOINT, EVALUATION, REWARD, PRIVACY, MODEL = "checkpoint", "evaluation", "reward", "privacy", "model"

SHARD_MANIFEST = "SHARD_MANIFEST"
"""Event in which an organization commits to the records of one of its shards."""

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
    """Nodes in an order of computation, and the models that were revoked (position of the event by digest)."""

    nodes: list[Node] = field(default_factory=list)
    revoked: dict[str, int] = field(default_factory=dict)

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


def shard_name(organization: str, cohort: str) -> str:
    """Name of a shard's node."""
    return f"{organization}/{cohort}"


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
    builder = _Builder(manifest)
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
        were superseded (a repeated round, an earlier replay). Of models all that were not revoked before.

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
    live = [node for node in nodes if node.index in reached and newest[node.kind, node.name] == node.index]
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


class _Builder:
    """Goes through the events and remembers what the next ones can refer to."""

    def __init__(self, manifest: Mapping[str, Any]) -> None:
        self.graph = Graph()
        self._adapters: dict[str, list[Node]] = {}  # by cohort, in order
        self._updates: dict[tuple[str, str, int, str], Node] = {}  # organization, cohort, round, digest
        self._shards: dict[str, Node] = {}  # newest version by name
        self._rounds: dict[tuple[str, int], dict[str, Node]] = {}  # kind, round -> newest by name
        self._finished: set[int] = set()
        self._waiting: list[tuple[int, Event]] = []
        self._setup: list[Node] = []
        self._models = 0
        self._handlers = {
            ev.RUN_MANIFEST: self._run_manifest,
            SHARD_MANIFEST: self._shard_manifest,
            ev.UPDATE: self._update,
            ev.MERGE: self._merge,
            ev.CHECKPOINT: self._checkpoint,
            ev.EVALUATION: self._evaluation,
            ev.REWARD_SETTLEMENT: self._reward_settlement,
            ev.PRIVACY_SPEND: self._privacy_spend,
            ev.MODEL_RELEASE: self._model_release,
            ev.MODEL_REVOKED: self._model_revoked,
        }
        for kind in (BASE, FROZEN):
            if is_digest(manifest.get(kind)):
                self._setup.append(self._add(kind, kind, manifest[kind], 0, -1))
        for cohort in sorted(manifest["cohorts"]):
            initial = self._add(ADAPTER, f"{cohort}@0", manifest["initial"][cohort], 0, -1, self._setup)
            self._adapters[cohort] = [initial]

    def see(self, position: int, event: Event) -> None:
        handler = self._handlers.get(event.type)
        # An evaluation runs behind the next round's training, and may be logged before its own round is.
        if event.type == ev.EVALUATION and "adapters" not in event.body and event.round not in self._finished:
            self._waiting.append((position, event))
        elif handler is not None:
            handler(position, event)

    def finish(self) -> None:
        for position, event in self._waiting:
            self._evaluation(position, event)
        self._waiting.clear()

    def _run_manifest(self, position: int, event: Event) -> None:
        self._add(MANIFEST, MANIFEST, event.body["manifest"], 0, position, self._setup)

    def _shard_manifest(self, position: int, event: Event) -> None:
        cohort = event.body["cohort"] if event.body["split"] == "train" else TEST
        name = shard_name(event.organization, cohort)
        self._shards[name] = self._add(SHARD, name, event.body["root"], 0, position)

    def _update(self, position: int, event: Event) -> None:
        body, who = event.body, event.organization
        parents = [*self._setup, self._shard(who, body["cohort"]), self._adapter(event, body["cohort"], body["base"])]
        name = f"{who}/{body['cohort']}@{body['round']}"
        node = self._add(UPDATE, name, body["update"], body["round"], position, parents)
        self._updates[who, body["cohort"], body["round"], body["update"]] = node

    def _merge(self, position: int, event: Event) -> None:
        body, cohort = event.body, event.body["cohort"]
        parents = [self._adapter(event, cohort, body["base"])]
        for entry in body["inputs"]:
            update = self._updates.get((entry["organization"], cohort, body["round"], entry["update"]))
            if update is None:
                raise _unknown(event, f"update {entry['update'][:16]} of {entry['organization']}")
            parents.append(update)
        node = self._add(ADAPTER, f"{cohort}@{body['round']}", body["adapter"], body["round"], position, parents)
        self._adapters[cohort].append(node)

    def _checkpoint(self, position: int, event: Event) -> None:
        round_ = event.body["round"]
        parents = [*self._standing(round_), *self._of_round(round_, UPDATE), *self._of_round(round_, REWARD)]
        self._add(CHECKPOINT, str(round_), event.body["digest"], round_, position, parents)
        self._finished.add(round_)
        ready = [waiting for waiting in self._waiting if waiting[1].round in self._finished]
        self._waiting = [waiting for waiting in self._waiting if waiting not in ready]
        for waiting in ready:
            self._evaluation(*waiting)

    def _evaluation(self, position: int, event: Event) -> None:
        body, round_ = event.body, event.body["round"]
        named = body.get("adapters")
        if isinstance(named, dict):
            parents = [self._adapter(event, cohort, digest) for cohort, digest in sorted(named.items())]
        else:
            parents = self._standing(round_)
        digest = sha256_hex(canonical_json(body))
        self._add(EVALUATION, str(round_), digest, round_, position, [*parents, *self._tests()])

    def _reward_settlement(self, position: int, event: Event) -> None:
        round_ = event.body["round"]
        # It measures coalitions of the round's updates, each merged into the adapters before the round.
        parents = [*self._standing(round_ - 1), *self._of_round(round_, UPDATE), *self._tests()]
        self._add(REWARD, str(round_), sha256_hex(canonical_json(event.body)), round_, position, parents)

    def _privacy_spend(self, position: int, event: Event) -> None:
        own = [node for name, node in self._shards.items() if name.startswith(f"{event.organization}/")]
        round_ = event.round or 0
        digest = sha256_hex(canonical_json(event.body))
        self._add(PRIVACY, f"{event.organization}@{round_}", digest, round_, position, own)

    def _model_release(self, position: int, event: Event) -> None:
        body = event.body
        self._models += 1
        parents = [self._adapter(event, cohort, digest) for cohort, digest in sorted(body["adapters"].items())]
        round_ = max((parent.round for parent in parents), default=0)
        self._add(MODEL, str(self._models), body["model_digest"], round_, position, [*self._setup, *parents])

    def _model_revoked(self, position: int, event: Event) -> None:
        self.graph.revoked.setdefault(event.body["model_digest"], position)

    def _adapter(self, event: Event, cohort: str, digest: str) -> Node:
        """The newest adapter of a cohort with this digest."""
        found = next((node for node in reversed(self._adapters.get(cohort, [])) if node.digest == digest), None)
        if found is None:
            raise _unknown(event, f"adapter {digest[:16]} of cohort {cohort!r}")
        return found

    def _standing(self, round_: int) -> list[Node]:
        """For each cohort the newest adapter of the last round up to this one."""
        chains = self._adapters.values()
        return [max((n for n in chain if n.round <= round_), key=lambda n: (n.round, n.index)) for chain in chains]

    def _of_round(self, round_: int, kind: str) -> list[Node]:
        """The newest nodes of a kind in a round, one for each name."""
        return list(self._rounds.get((kind, round_), {}).values())

    def _shard(self, organization: str, cohort: str) -> Node:
        name = shard_name(organization, cohort)
        if name not in self._shards:
            self._shards[name] = self._add(SHARD, name, NOT_COMMITTED, 0, -1)
        return self._shards[name]

    def _tests(self) -> list[Node]:
        return [node for name, node in sorted(self._shards.items()) if name.endswith(f"/{TEST}")]

    def _add(
        self, kind: str, name: str, digest: str, round_: int, event: int, parents: Collection[Node] = ()
    ) -> Node:
        indices = tuple(sorted({parent.index for parent in parents}))
        node = Node(len(self.graph.nodes), kind, name, digest, round_, event, indices)
        self.graph.nodes.append(node)
        self._rounds.setdefault((kind, round_), {})[name] = node
        return node


def _unknown(event: Event, what: str) -> LedgerError:
    return LedgerError(f"provenance: {event.type} of round {event.round} names {what}, which no earlier event states")


def to_dict(graph: Graph, nodes: Collection[Node] | None = None) -> dict[str, Any]:
    """For JSON: ``nodes`` (default: all), each with its parents' numbers, and ``revoked``, digests of models."""
    shown = graph.nodes if nodes is None else nodes
    return {
        "nodes": [{**asdict(node), "parents": list(node.parents)} for node in shown],
        "revoked": sorted(graph.revoked),
    }


def to_text(graph: Graph, nodes: Collection[Node] | None = None) -> str:
    """One line for each node (default: all): kind, name, digest, and what it was computed from."""
    lines = []
    for node in graph.nodes if nodes is None else nodes:
        parents = ", ".join(f"{graph.nodes[p].kind} {graph.nodes[p].name}" for p in node.parents)
        revoked = "  REVOKED" if node.kind == MODEL and node.digest in graph.revoked else ""
        digest = node.digest[:16] or "not committed"
        lines.append(f"{node.kind:<11}{node.name:<28}{digest:<17}{'<- ' + parents if parents else ''}{revoked}")
    return "\n".join(line.rstrip() for line in lines)


def lineage_text(graph: Graph, digest: str) -> str:
    """What an artifact was computed from, and what was computed from it. Raises LedgerError as :meth:`Graph.find`."""
    found = graph.find(digest)
    parts = [("computed from", graph.ancestors(found)), ("artifact", found), ("used by", graph.descendants(found))]
    return "\n\n".join(f"{title}:\n{to_text(graph, nodes) if nodes else 'nothing'}" for title, nodes in parts)
