"""How the events of a run fit together: chains of merges, releases, and what removals withdraw and replay.

Every cohort has a chain of MERGE events. A withdrawal (UNLEARN_WITHDRAWN) takes off all from a round on; the finished
ones among them stay open until they are replayed, one after the other, under the id of the removal. Until then the
cohort stands in no release and takes part in no other round. Updates that a replay keeps, rather than trains again, are
among those that the withdrawn merges took. An approximate method withdraws no adapter: it adds one merge on top of the
chain, in the last round.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ledger import events as ev
from ledger.audit import Links
from ledger.errors import LedgerError
from ledger.events import Event
from ledger.removal import EXACT_METHODS, ORGANIZATION

_OF_TRAINING = frozenset({ev.DECISION, ev.UPDATE, ev.MERGE, ev.CHECKPOINT, ev.REWARD_SETTLEMENT})
"""Types that follow the end of a run only where they are part of a removal."""


@dataclass(frozen=True)
class _Removal:
    """A withdrawal: its place in the log, what it withdrew, and whether its method leaves something of the records."""

    position: int
    cohorts: Mapping[str, int]
    left: frozenset[str]
    approximate: bool


class LinkState:
    """Goes through the events of a log in order.

    Parameters
    ----------
    manifest
        Of the run.
    events
        All events, in order, their signatures checked.
    """

    def __init__(self, manifest: Mapping[str, Any], events: Sequence[Event]) -> None:
        self.manifest = manifest
        self.links = Links(merges={name: [] for name in manifest["cohorts"]})
        self._position = -1
        self._complete = -1
        self._release = -1
        self._open: dict[str, list[int]] = {name: [] for name in manifest["cohorts"]}  # withdrawn, not replayed
        self._withdrawn: dict[str, list[Event]] = {}  # MERGE events by file
        self._requests: dict[str, Event] = {}
        self._removals: dict[str, _Removal] = {}
        self._served: set[str] = set()  # requests that were withdrawn, and those that were executed
        self._executed: set[str] = set()
        self._revoked: set[str] = set()
        self._left: dict[str, str] = {}  # removal by organization
        self._finished: dict[str | None, int] = {}  # last round with a CHECKPOINT, by removal (None: training)
        # (organization, round, cohort, base, update, weight, replay) -> position
        self._updates: dict[tuple[str, int, str, str, str, int, str | None], int] = {}
        self._keepable: set[tuple[str | None, str, int, str, str, str, int]] = set()  # removal, then as above
        # (organization, round, cohort, update); None: whatever it sent
        self._refused = {
            (e.body["organization"], e.body["round"], e.body["cohort"], e.body.get("update"))
            for e in events
            if e.type == ev.REFUSED
        }
        self._handlers: dict[str, Callable[[Event], None]] = {
            ev.UPDATE: self._update,
            ev.MERGE: self._merge,
            ev.CHECKPOINT: self._checkpoint,
            ev.MODEL_RELEASE: self._model_release,
            ev.RUN_COMPLETE: self._run_complete,
            ev.UNLEARN_REQUEST: self._unlearn_request,
            ev.UNLEARN_WITHDRAWN: self._unlearn_withdrawn,
            ev.UNLEARN_EXEC: self._unlearn_exec,
            ev.MODEL_REVOKED: self._model_revoked,
        }

    def see(self, event: Event) -> None:
        """Take the next event in. Raises LedgerError where it does not fit those before it."""
        self._position += 1
        if event.type in _OF_TRAINING and event.replay is None and self._complete >= 0:
            raise LedgerError(f"{event.type} of round {event.round}: comes after RUN_COMPLETE, and is of no removal")
        if event.replay is not None and event.replay not in self._removals:
            raise LedgerError(
                f"{event.type} of round {event.round}: is of removal {event.replay[:16]}, which withdrew nothing so far"
            )
        handler = self._handlers.get(event.type)
        if handler is not None:
            handler(event)

    def finished(self, note: Callable[[str], None]) -> Links:
        """What the events say of the run's files.

        Raises
        ------
        LedgerError
            The newest released model is revoked.
        """
        self._check_newest_release(note)
        links = self.links
        names = {event.body["file"] for chain in links.merges.values() for event in chain}
        links.withdrawn = {
            file: {event.body["adapter"] for event in merges}
            for file, merges in self._withdrawn.items()
            if file not in names
        }
        links.under_way = not self._served <= self._executed
        return links

    def _check_newest_release(self, note: Callable[[str], None]) -> None:
        release = self.links.release
        if release is None or release.body["model_digest"] not in self._revoked:
            return
        model = release.body["model_digest"][:16]
        if self._last_withdrawal() > self._release:
            note(f"which model to use: {model} is revoked, and none was released since; a removal is under way")
        else:
            raise LedgerError(f"the newest MODEL_RELEASE is of model {model}, which is revoked")

    def _last_withdrawal(self) -> int:
        return max((removal.position for removal in self._removals.values()), default=-1)

    def _update(self, event: Event) -> None:
        body = event.body
        slot = (event.organization, body["round"], body["cohort"], body["base"], body["update"], body["weight"])
        if body.get("kept") and (event.replay, *slot) not in self._keepable:
            raise LedgerError(
                f"UPDATE of {event.organization} in round {body['round']}: keeps an update of cohort "
                f"{body['cohort']!r} that was in no adapter when the removal began"
            )
        self._updates.setdefault((*slot, event.replay), self._position)

    def _merge(self, event: Event) -> None:
        body = event.body
        round_, cohort = body["round"], body["cohort"]
        where = f"MERGE of cohort {cohort!r} in round {round_}"
        members = self.manifest["cohorts"].get(cohort)
        if members is None:
            raise LedgerError(f"{where}: the manifest has no such cohort")
        if event.replay is None:
            self._place_in_training(where, cohort, round_)
        else:
            self._place_in_replay(where, cohort, round_, event.replay)
        if self.manifest.get("secure_aggregation") and body["inputs"] and "transcript" not in body:
            raise LedgerError(f"{where}: names no secure sum; the manifest says that all of them are")
        base = self._adapter(cohort)
        if body["base"] != base:
            raise LedgerError(f"{where}: starts from {body['base'][:16]}, the adapter before it is {base[:16]}")
        seen: set[str] = set()
        for entry in body["inputs"]:
            organization, update = entry["organization"], entry["update"]
            if organization not in members:
                raise LedgerError(f"{where}: {organization} is not a member of the cohort")
            if organization in seen:
                raise LedgerError(f"{where}: {organization} is merged twice")
            seen.add(organization)
            self._check_left(where, organization, event.replay)
            slot = (organization, round_, cohort)
            if (*slot, update) in self._refused or (*slot, None) in self._refused:
                raise LedgerError(f"{where}: takes an update of {organization} that was refused")
            self._check_signed(where, (*slot, body["base"], update, entry["weight"]), event.replay)
        self.links.merges[cohort].append(event)
        self.links.last_round = max(self.links.last_round, round_)

    def _place_in_training(self, where: str, cohort: str, round_: int) -> None:
        """The next round of a cohort, or one that a resumed run repeats. Raises LedgerError."""
        chain = self.links.merges[cohort]
        if self._open[cohort]:
            raise LedgerError(f"{where}: round {self._open[cohort][0]} of the cohort is withdrawn, and not replayed")
        # A resumed run repeats the rounds after its last checkpoint: the later attempt counts.
        while chain and chain[-1].body["round"] >= round_ > self._finished.get(None, -1):
            chain.pop()
        if chain and chain[-1].body["round"] >= round_:
            raise LedgerError(f"{where}: comes after round {chain[-1].body['round']}, which is finished")

    def _place_in_replay(self, where: str, cohort: str, round_: int, replay: str) -> None:
        """The next withdrawn round of a cohort, or the last round for an approximate method. Raises LedgerError."""
        removal, chain, waiting = self._removals[replay], self.links.merges[cohort], self._open[cohort]
        # A replay that was cut short repeats what it did not finish: the later attempt counts.
        done = self._finished.get(replay, -1)
        while chain and chain[-1].replay == replay and chain[-1].body["round"] >= round_ > done:
            last = chain.pop().body["round"]
            if cohort in removal.cohorts:
                waiting.insert(0, last)
        if removal.approximate and cohort not in removal.cohorts:
            last = chain[-1].body["round"] if chain else 0
            if waiting or not chain or round_ != last or chain[-1].replay == replay:
                raise LedgerError(f"{where}: an approximate removal changes the last adapter, of round {last}, once")
        elif cohort not in removal.cohorts:
            raise LedgerError(f"{where}: removal {replay[:16]} did not withdraw the cohort")
        elif not waiting or waiting[0] != round_:
            due = f"round {waiting[0]} is the next one" if waiting else "no round is left"
            raise LedgerError(f"{where}: {due} to be replayed")
        else:
            waiting.pop(0)

    def _check_left(self, where: str, organization: str, replay: str | None) -> None:
        left = self._left.get(organization)
        if left is not None and not (left == replay and self._removals[left].approximate):
            raise LedgerError(f"{where}: takes an update of {organization}, which has left the run")

    def _check_signed(self, where: str, slot: tuple[str, int, str, str, str, int], replay: str | None) -> None:
        organization, round_, cohort, _, update, _ = slot
        if (*slot, replay) not in self._updates:
            if replay is not None and (*slot, None) in self._updates:
                raise LedgerError(f"{where}: takes an update of {organization} from before the records were removed")
            raise LedgerError(f"{where}: {organization} signed no update {update[:16]} of that base and weight")
        since = [r.position for r in self._removals.values() if r.cohorts.get(cohort, round_ + 1) <= round_]
        if replay is not None and self._updates[*slot, replay] < max(since, default=-1):
            raise LedgerError(f"{where}: takes an update of {organization} from before the records were removed")

    def _checkpoint(self, event: Event) -> None:
        file, round_ = event.body["file"], event.body["round"]
        self._finished[event.replay] = max(self._finished.get(event.replay, -1), round_)
        self.links.checkpoints[file] = event
        self.links.superseded.discard(file)

    def _adapter(self, cohort: str) -> str:
        """Digest of the cohort's newest adapter."""
        chain = self.links.merges[cohort]
        digest: str = chain[-1].body["adapter"] if chain else self.manifest["initial"][cohort]
        return digest

    def _model_release(self, event: Event) -> None:
        if self._complete > self._last_withdrawal():
            raise LedgerError("MODEL_RELEASE: comes after RUN_COMPLETE, and nothing was withdrawn since")
        for cohort, digest in event.body["adapters"].items():
            if cohort not in self.links.merges:
                raise LedgerError(f"MODEL_RELEASE: the manifest has no cohort {cohort!r}")
            if waiting := self._open[cohort]:
                raise LedgerError(
                    f"MODEL_RELEASE: holds cohort {cohort!r}, whose round {waiting[0]} is withdrawn, and not replayed"
                )
            if digest != self._adapter(cohort):
                raise LedgerError(
                    f"MODEL_RELEASE: holds {digest[:16]} of cohort {cohort!r}, its newest adapter is "
                    f"{self._adapter(cohort)[:16]}"
                )
        self.links.release, self._release = event, self._position

    def _run_complete(self, event: Event) -> None:
        said, release = event.body, self.links.release
        if self._complete >= 0:
            raise LedgerError("RUN_COMPLETE: the run was complete before")
        if release is None or release.body["model_digest"] != said["model_digest"]:
            raise LedgerError("RUN_COMPLETE names another model than the last MODEL_RELEASE")
        if said["rounds"] < self.links.last_round:
            raise LedgerError(f"RUN_COMPLETE counts {said['rounds']} rounds, merges go to {self.links.last_round}")
        self._complete = self._position

    def _unlearn_request(self, event: Event) -> None:
        self._requests.setdefault(event.body["request"], event)

    def _unlearn_withdrawn(self, event: Event) -> None:
        body = event.body
        where = f"UNLEARN_WITHDRAWN of removal {body['removal'][:16]}"
        if body["removal"] in self._removals:
            raise LedgerError(f"{where}: comes twice")
        for request in body["requests"]:
            if request not in self._requests:
                raise LedgerError(f"{where}: serves request {request[:16]}, which nobody signed before it")
        self._served.update(body["requests"])
        asked = [self._requests[request].body for request in body["requests"]]
        left = frozenset(said["organization"] for said in asked if said["scope"] == ORGANIZATION)
        approximate = any(said["method"] not in EXACT_METHODS for said in asked)
        self._removals[body["removal"]] = _Removal(self._position, body["cohorts"], left, approximate)
        self._left |= {organization: body["removal"] for organization in left if organization not in self._left}
        self._revoked |= set(body["models"])
        for cohort, first in sorted(body["cohorts"].items()):
            if cohort not in self._open:
                raise LedgerError(f"{where}: the manifest has no cohort {cohort!r}")
            self._withdraw(where, body["removal"], cohort, first)
        # A round that training had not finished is repeated after the removal.
        for chain in self.links.merges.values():
            while chain and self._is_attempt(chain[-1]):
                chain.pop()

    def _withdraw(self, where: str, removal: str, cohort: str, first: int) -> None:
        chain, waiting = self.links.merges[cohort], self._open[cohort]
        if not waiting and (not chain or chain[-1].body["round"] < first):
            raise LedgerError(f"{where}: cohort {cohort!r} has no adapter from round {first} on")
        taken: set[int] = set()
        while chain and chain[-1].body["round"] >= first:
            merge = chain.pop()
            self._withdrawn.setdefault(merge.body["file"], []).append(merge)
            if not self._is_attempt(merge):
                taken.add(merge.body["round"])
                where_from = (merge.body["round"], cohort, merge.body["base"])
                self._keepable |= {
                    (removal, entry["organization"], *where_from, entry["update"], entry["weight"])
                    for entry in merge.body["inputs"]
                }
        self._open[cohort] = sorted(taken.union(waiting))
        for file, checkpoint in self.links.checkpoints.items():
            if checkpoint.body["round"] >= first:
                self.links.superseded.add(file)

    def _is_attempt(self, merge: Event) -> bool:
        """Whether a merge is of a round that training has not finished."""
        return merge.replay is None and bool(merge.body["round"] > self._finished.get(None, -1))

    def _unlearn_exec(self, event: Event) -> None:
        for request in event.body["requests"]:
            if request not in self._served:
                raise LedgerError(f"UNLEARN_EXEC: request {request[:16]} was not withdrawn before it")
        self._executed.update(event.body["requests"])
        self.links.executed[event.body["certificate"]] = self._position

    def _model_revoked(self, event: Event) -> None:
        self._revoked.add(event.body["model_digest"])
