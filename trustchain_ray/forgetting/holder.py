"""What an organization does when records of its are to be removed: find them, take them out, prove it, erase them."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ledger import certificate as ct
from ledger.events import SHARD_MANIFEST, UNLEARN_ATTEST, UNLEARN_REQUEST, make_event
from ledger.identity import Identity
from ledger.manifest_proof import EMPTY_ROOT
from ledger.removal import ORGANIZATION, TEST, TRAIN, Removal, Removed, removed_digest
from ledger.removal import Shard as ShardProof
from trustchain_ray.custody import Asked, Custody, Shard, matching, tags_of
from trustchain_ray.data import Holdings, Record
from trustchain_ray.errors import TrustChainError
from trustchain_ray.sampling import inclusion_steps


@dataclass(frozen=True)
class Wanted:
    """A request as it goes to an organization: its random id (64 hex digits), and what it wants removed."""

    request: str
    asked: Asked


@dataclass(frozen=True)
class Usage:
    """How an organization's members trained so far, by cohort, as the log has it.

    Attributes
    ----------
    rates
        Sampling rate.
    steps
        Steps that were trained and merged in each round, from round 1; 0 where it took no part.
    local_steps
        Steps of a round at effort 1.
    counts_matter
        Cohorts in which rates or weights depend on the number of records: every round depends on every record.
    """

    rates: Mapping[str, float]
    steps: Mapping[str, Sequence[int]]
    local_steps: int
    counts_matter: frozenset[str]


@dataclass(frozen=True)
class Part:
    """Records of one shard that are asked for.

    Attributes
    ----------
    records, left
        How many they are, and how many remain.
    first
        The first round that read one of them; 0: none did.
    """

    cohort: str
    split: str
    records: int
    left: int
    first: int


@dataclass(frozen=True)
class Found:
    """What an organization has of some requests; nothing is changed.

    Attributes
    ----------
    hits
        Records by request.
    missing
        Ids of a request that it does not hold.
    before
        Those among them that were removed from this run before.
    tags
        Content tags of what it found by id, under the request's key, for other organizations.
    """

    parts: list[Part]
    hits: dict[str, int]
    missing: dict[str, list[str]]
    before: dict[str, list[str]]
    tags: dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class Taken:
    """What was taken out: for the certificate, and the number of records that each cohort has left."""

    removed: dict[str, list[Removed]]
    shards: list[ShardProof]
    counts: dict[str, int]
    train: int


class Holder:
    """The records of one organization, from the point of view of removal.

    Parameters
    ----------
    held
        All records that were not removed from the run before, with those that are being removed.
    shards
        Which training records (their indices in ``held.train``) each cohort has.
    sampling_key
        Of the keyed Poisson sampling, by generation: 0 is training, any other a replay under privacy.
    sampled
        Rounds of a cohort that each generation trained, where replays sample anew; None: all have the plan of training.
    """

    def __init__(
        self,
        identity: Identity,
        run: str,
        custody: Custody,
        held: Holdings,
        shards: Mapping[str, Sequence[int]],
        sampling_key: Callable[[int], bytes],
        sampled: Callable[[str], Mapping[int, Collection[int]]] | None = None,
    ) -> None:
        self.identity, self.run, self.custody, self.held = identity, run, custody, held
        self.shards, self.sampling_key, self.sampled = shards, sampling_key, sampled

    def overview(self) -> dict[str, int]:
        """Number of records (training and test) by subject."""
        counts: dict[str, int] = {}
        for record in (*self.held.train, *self.held.test):
            counts[record.subject] = counts.get(record.subject, 0) + 1
        return counts

    def look(self, wanted: Sequence[Wanted], usage: Usage) -> Found:
        """What is here of the requests, and the first round that read it."""
        hits, missing, before, tags = {}, {}, {}, {}
        for one in wanted:
            asked = one.asked
            found = [r for records in (self.held.train, self.held.test) for r in matching(asked, records)]
            known = {r.id if asked.scope == "record" else r.subject for r in found}
            hits[one.request] = len(found)
            missing[one.request] = sorted(set(asked.ids) - known)
            gone = set().union(*(self.custody.erased(split, missing[one.request]) for split in (TRAIN, TEST)))
            before[one.request] = sorted(gone) if asked.scope == "record" else []
            named = [r for r in found if (r.id if asked.scope == "record" else r.subject) in asked.ids]
            tags[one.request] = tags_of(asked.key, named) if asked.key else ()
        parts = []
        for shard, records in self._selected(wanted).items():
            everything = self._records(shard)
            if records or any(one.asked.scope == ORGANIZATION for one in wanted):
                first = self._first_round(shard, records, usage)
                parts.append(Part(*shard, len(records), len(everything) - len(records), first))
        return Found(parts, hits, missing, before, tags)

    def reserve(self, removal: str, wanted: Sequence[Wanted], usage: Usage) -> Taken:
        """Take the records out from now on, durably; what the certificate says of them."""
        chosen = self._selected(wanted)
        everybody = [r for (_, split), records in chosen.items() for r in records if split == TRAIN]
        tests = [r for (_, split), records in chosen.items() for r in records if split == TEST]
        leaves = any(one.asked.scope == ORGANIZATION for one in wanted)
        self.custody.reserve(removal, everybody, tests)
        removed: dict[str, list[Removed]] = {one.request: [] for one in wanted}
        shards, counts = [], {}
        for shard, records in chosen.items():
            cohort, split = shard
            everything = self._records(shard)
            if split == TRAIN:
                counts[cohort] = len(everything) - len(records)
            if not records and not (leaves and everything):
                continue
            tree = self.custody.tree(split, everything)
            names = self.custody.commitments(split, records)
            for one in wanted:
                own = [] if leaves else sorted(self.custody.commitments(split, matching(one.asked, everything)))
                if own or leaves:
                    removed[one.request].append(Removed(cohort, own, split))
            new = EMPTY_ROOT if leaves else tree.removed(names).root
            proof = "" if leaves else tree.deletion_proof(names)
            first = self._first_round(shard, records, usage) or len(next(iter(usage.steps.values()), ())) + 1
            shards.append(ShardProof(self.identity.name, cohort, tree.root, new, first, proof, split))
        return Taken(removed, shards, counts, sum(counts.values()))

    def request_events(self, wanted: Sequence[Wanted], taken: Taken, method: str) -> list[dict[str, Any]]:
        """Signed UNLEARN_REQUEST events. Ids and contents of records are in none of them."""
        name, events = self.identity.name, []
        for one in wanted:
            if not taken.removed[one.request]:
                continue
            body = {
                "request": one.request,
                "organization": name,
                "scope": one.asked.scope,
                "method": method,
                "removed": removed_digest(taken.removed[one.request]),
            }
            events.append(make_event(self.identity, self.run, UNLEARN_REQUEST, body))
        return events

    def shard_events(
        self, kept: Holdings, generation: int, slots: Sequence[Shard] | None = None
    ) -> list[dict[str, Any]]:
        """Signed SHARD_MANIFEST events: commitments to the records that are kept, shard by shard.

        Parameters
        ----------
        generation
            0 at the start of the run, then the number of the removal that changed the shard.
        slots
            The shards; default: all.
        """
        here = {record.id for record in kept.train}
        tested = {record.id for record in kept.test}
        events = []
        for shard in slots if slots is not None else self._slots():
            alive = here if shard[1] == TRAIN else tested
            records = [record for record in self._records(shard) if record.id in alive]
            tree = self.custody.tree(shard[1], records)
            body = {
                "cohort": shard[0],
                "split": shard[1],
                "generation": generation,
                "records": tree.size,
                "root": tree.root,
            }
            events.append(make_event(self.identity, self.run, SHARD_MANIFEST, body))
        return events

    def sign_certificate(self, removal: Removal, signed: bytes | None, taken: Taken | None) -> bytes:
        """Sign a certificate of an own removal; it must say of the own records what was taken out here.

        Parameters
        ----------
        signed
            The certificate with the signatures of others, or None for the first issuer.

        Raises
        ------
        TrustChainError
            It says something else.
        """
        name = self.identity.name
        if taken is not None:
            said = {r.request: r.removed for r in removal.requests if r.organization == name}
            proofs = [asdict(shard) for shard in removal.shards if shard.organization == name]
            if said != {r: rows for r, rows in taken.removed.items() if rows} or proofs != [
                asdict(shard) for shard in taken.shards
            ]:
                raise TrustChainError(f"organization {name}: the certificate is not about what was taken out here")
        if signed is None:
            return ct.build(removal, [self.identity])
        return ct.counter_sign(signed, self.identity)

    def attest(self, certificate: bytes, steps: int, result: str) -> tuple[dict[str, Any], bytes]:
        """What re-executing a removal of others gave: a signed UNLEARN_ATTEST event, and the certificate, which is
        counter-signed where the result is `same`.

        Parameters
        ----------
        steps
            How many were trained again.

        Raises
        ------
        TrustChainError
            It is of another run, or this organization issued it.
        """
        parsed, name = ct.parse(certificate), self.identity.name
        if parsed.removal.run != self.run:
            raise TrustChainError(f"organization {name}: the certificate is of run {parsed.removal.run!r}")
        if name in parsed.removal.issuers:
            raise TrustChainError(f"organization {name}: issued the certificate; another organization must attest it")
        body = {"certificate": parsed.digest, "mode": "reexecute", "steps": steps, "result": result}
        event = make_event(self.identity, self.run, UNLEARN_ATTEST, body)
        return event, ct.counter_sign(certificate, self.identity) if result == "same" else certificate

    def _selected(self, wanted: Sequence[Wanted]) -> dict[Shard, list[Record]]:
        """Records that are asked for, by shard."""
        chosen: dict[Shard, list[Record]] = {}
        for shard in self._slots():
            records = self._records(shard)
            names = {record.id for one in wanted for record in matching(one.asked, records)}
            chosen[shard] = [record for record in records if record.id in names]
        return chosen

    def _slots(self) -> list[Shard]:
        return [*((cohort, TRAIN) for cohort in sorted(self.shards)), *([("", TEST)] if self.held.test else [])]

    def _records(self, shard: Shard) -> list[Record]:
        cohort, split = shard
        return list(self.held.test) if split == TEST else [self.held.train[i] for i in self.shards[cohort]]

    def _first_round(self, shard: Shard, records: Sequence[Record], usage: Usage) -> int:
        """The first round that read one of the records of a shard, from 1; 0: none did."""
        cohort, split = shard
        if split == TEST:
            return 0
        steps = usage.steps.get(cohort, ())
        trained = [number for number, count in enumerate(steps, 1) if count]
        if cohort in usage.counts_matter or len(records) == len(self._records(shard)):
            # All of them gone is another program, too: a member without records sends no update.
            return trained[0] if trained and records else 0
        total = usage.local_steps * len(steps)
        generations = self.sampled(cohort) if self.sampled is not None else {0: trained}
        first = 0
        for generation, rounds in generations.items():
            key = self.sampling_key(generation)
            for record in records:
                for step in inclusion_steps(key, record.id, usage.rates[cohort], total):
                    number, within = step // usage.local_steps + 1, step % usage.local_steps
                    if number in rounds and within < steps[number - 1]:
                        first = min(number, first) if first else number
                        break
        return first
