"""Builds the provenance graph from the events of a run, one after the other."""

from collections.abc import Collection, Mapping
from typing import Any

from ledger import events as ev
from ledger.canonical import canonical_json, is_digest, sha256_hex
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


class GraphBuilder:
    """Goes through the events and remembers what the next ones can refer to."""

    def __init__(self, manifest: Mapping[str, Any]) -> None:
        self.graph = Graph()
        self._adapters: dict[str, list[Node]] = {}  # all by cohort, in order
        self._chains: dict[str, dict[int, Node]] = {}  # of them the newest by round, without those withdrawn
        self._open: dict[str, set[int]] = {}  # rounds that are withdrawn and not replayed, by cohort
        self._leaving: dict[str, str] = {}  # organization by request
        self._cohort_of: dict[int, str] = {}  # updates and adapters, by index
        self._updates: dict[tuple[str, str, int, str], Node] = {}  # organization, cohort, round, digest
        self._shards: dict[str, Node] = {}  # newest version by name
        self._rounds: dict[tuple[str, int], dict[str, Node]] = {}  # kind, round -> newest by name
        self._finished: set[int] = set()
        self._waiting: list[tuple[int, Event]] = []
        self._setup: list[Node] = []
        self._models = 0
        self._handlers = {
            ev.RUN_MANIFEST: self._run_manifest,
            ev.SHARD_MANIFEST: self._shard_manifest,
            ev.UPDATE: self._update,
            ev.MERGE: self._merge,
            ev.CHECKPOINT: self._checkpoint,
            ev.EVALUATION: self._evaluation,
            ev.REWARD_SETTLEMENT: self._reward_settlement,
            ev.PRIVACY_SPEND: self._privacy_spend,
            ev.MODEL_RELEASE: self._model_release,
            ev.MODEL_REVOKED: self._model_revoked,
            ev.UNLEARN_REQUEST: self._unlearn_request,
            ev.UNLEARN_WITHDRAWN: self._unlearn_withdrawn,
        }
        for kind in (BASE, FROZEN):
            if is_digest(manifest.get(kind)):
                self._setup.append(self._add(kind, kind, manifest[kind], 0, -1))
        for cohort in sorted(manifest["cohorts"]):
            initial = self._add(ADAPTER, f"{cohort}@0", manifest["initial"][cohort], 0, -1, self._setup)
            self._adapters[cohort], self._chains[cohort], self._open[cohort] = [initial], {0: initial}, set()

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
        if body.get("kept"):  # the same tensors: what they read before they have read
            earlier = self._updates.get((who, body["cohort"], body["round"], body["update"]))
            if earlier is None:
                raise _unknown(event, f"update {body['update'][:16]} that is kept")
            parents.append(earlier)
        name = f"{who}/{body['cohort']}@{body['round']}"
        node = self._add(UPDATE, name, body["update"], body["round"], position, parents)
        self._updates[who, body["cohort"], body["round"], body["update"]] = node
        self._cohort_of[node.index] = body["cohort"]

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
        self._chains[cohort][body["round"]] = node
        self._open[cohort].discard(body["round"])
        self._cohort_of[node.index] = cohort

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
        parents = [*self._standing(max(0, round_ - 1)), *self._of_round(round_, UPDATE), *self._tests()]
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

    def _unlearn_request(self, position: int, event: Event) -> None:
        if event.body["scope"] == "organization":
            self._leaving.setdefault(event.body["request"], event.body["organization"])

    def _unlearn_withdrawn(self, position: int, event: Event) -> None:
        first: dict[str, int] = event.body["cohorts"]
        if unknown := sorted(first.keys() - self._chains.keys()):
            raise LedgerError(f"provenance: UNLEARN_WITHDRAWN names cohort {unknown[0]!r}, which the manifest has not")
        gone: set[int] = set()
        for node in self.graph.nodes:
            if node.index in self.graph.withdrawn:
                continue
            cohort = self._cohort_of.get(node.index)
            if cohort is None:
                taken = node.kind in (CHECKPOINT, EVALUATION, REWARD) and not gone.isdisjoint(node.parents)
            else:
                taken = node.round >= first.get(cohort, node.round + 1)
            if taken:
                gone.add(node.index)
                self.graph.withdrawn[node.index] = position
                of_round = self._rounds[node.kind, node.round]
                if of_round.get(node.name) == node:
                    del of_round[node.name]
        # Who left tests no later model, and may not be there to say that its shards are empty.
        for request in event.body["requests"]:
            self._shards.pop(shard_name(self._leaving.get(request, ""), TEST), None)
        for cohort, start in first.items():
            chain = self._chains[cohort]
            self._open[cohort] |= {round_ for round_ in chain if round_ >= start} & self._finished
            self._chains[cohort] = {round_: node for round_, node in chain.items() if round_ < start}

    def _adapter(self, event: Event, cohort: str, digest: str) -> Node:
        """The newest adapter of a cohort with this digest."""
        found = next((node for node in reversed(self._adapters.get(cohort, [])) if node.digest == digest), None)
        if found is None:
            raise _unknown(event, f"adapter {digest[:16]} of cohort {cohort!r}")
        return found

    def _standing(self, round_: int) -> list[Node]:
        """For each cohort that stands in a round the newest adapter of the last round up to this one."""
        chains = [chain for cohort, chain in self._chains.items() if all(r > round_ for r in self._open[cohort])]
        return [chain.get(round_) or chain[max(r for r in chain if r <= round_)] for chain in chains]

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
