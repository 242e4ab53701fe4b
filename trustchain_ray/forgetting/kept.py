"""Updates of the first replayed round that a removal does not change: they are stated again, not trained again.

An update is a function of the adapter that it began with and of its member's records. In the first round of a replay
the adapter is the recorded one, so the update of a member that lost none of its cohort's records is the recorded one,
too. Where it was kept (`federation.keep_updates`) its member signs it again, as part of the removal; the verifier has
it depend on all that the first statement of it depends on. Not under privacy noise, which is drawn anew.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from ledger.removal import TRAIN
from trustchain_ray.adapter import Tensors, digest, load_tensors
from trustchain_ray.errors import TrustChainError
from trustchain_ray.exchange import Reply, Update
from trustchain_ray.federation import CohortRound, Federation
from trustchain_ray.forgetting.job import Job
from trustchain_ray.manifest import program_digest
from trustchain_ray.round_writer import update_file
from trustchain_ray.statements import newest_merges, statement_of
from trustchain_ray.worker import Packed


@dataclass(frozen=True)
class Kept:
    """A recorded update whose file is whole: its tensors and what its member stated."""

    tensors: Tensors
    envelope: dict[str, Any]

    @property
    def body(self) -> Mapping[str, Any]:
        body: Mapping[str, Any] = statement_of(self.envelope)["body"]
        return body


def _merged(content: Mapping[str, Any], cohort: str) -> dict[str, dict[str, Any]]:
    """Of a round's content the envelopes of the updates that the newest merge of a cohort took, by organization."""
    merge = newest_merges(content).get(cohort)
    if merge is None:
        return {}
    said = [(statement_of(envelope), envelope) for envelope in content["events"]]
    signed = {
        (s["organization"], s["body"]["update"]): envelope
        for s, envelope in said
        if s["type"] == "UPDATE" and s["body"]["cohort"] == cohort and s["body"]["base"] == merge["base"]
    }
    inputs = [(entry["organization"], entry["update"]) for entry in merge["inputs"]]
    return {name: signed[name, update] for name, update in inputs}


def kept_updates(federation: Federation, cohort: str, number: int, touched: Collection[str]) -> dict[str, Kept]:
    """Updates of a cohort's round that a removal leaves as they are, and that are here, by organization.

    Parameters
    ----------
    number
        The first round that is replayed.
    touched
        Organizations that lose records of the cohort, or leave.
    """
    config, found = federation.config, dict[str, Kept]()
    if config.privacy.dp != "none" or config.trust.secure_aggregation or config.federation.keep_updates == "none":
        return found
    if federation.manifest.get("program") != program_digest():
        return found  # what is trained again is so by one program
    content = federation.run.read_json(f"rounds/{number:04d}/round.json")
    for name, envelope in _merged(content, cohort).items():
        path = federation.run.round_folder(number) / update_file(cohort, name)
        if name in touched or not path.is_file():
            continue
        try:
            kept = Kept(load_tensors(path), envelope)
        except (TrustChainError, OSError, ValueError):
            continue  # damaged: it is trained again
        if digest(kept.tensors) == kept.body["update"]:
            found[name] = kept
    return found


def touched_by(job: Job, cohort: str) -> set[str]:
    """Organizations that lose training records of a cohort by a removal, or leave."""
    rows = [(shard["organization"], shard) for part in job.taken.values() for shard in part["shards"]]
    return {*job.left, *(name for name, shard in rows if (shard["cohort"], shard["split"]) == (cohort, TRAIN))}


def state_again(
    federation: Federation, job: Job, number: int, cohort: str, rounds: dict[str, CohortRound]
) -> tuple[set[str], list[dict[str, Any]]]:
    """Have members state again what a replay keeps of its first round; who did, and the events.

    Who works in another hardware class now than its update was trained in trains again.
    """
    done, events = set(), list[dict[str, Any]]()
    now, then = federation.environments(), federation.manifest["environments"]
    for name, kept in kept_updates(federation, cohort, number, touched_by(job, cohort)).items():
        task = rounds[cohort].task
        if kept.body["base"] != task.digest or now.get(name) != then.get(name):
            continue
        call = federation.members[name].call("state_again", kept.envelope, job.removal)
        envelope = federation.answer(name, call)
        if envelope is not None:
            update = Update(cohort, Packed.of(kept.tensors), envelope, kept.body["weight"])
            said = Reply(name, {}, [update], 0.0)
            events += federation.accept_updates(number, name, said, rounds, job.removal, kept=True)
            done.add(name)
    return done, events
