"""Secure sums over members that die, cheat or come back: who is in the sum, who is named, and what is tried again."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from ray.exceptions import RayError
from secagg_parties import NAMES, content_of, identity_of

from ledger.identity import COORDINATOR, Identity, public_document
from ledger.identity_document import rotated_document
from ledger.key_events import rotation_event
from trustchain_ray import calls
from trustchain_ray.errors import TrustChainError
from trustchain_ray.merge import weighted_sum
from trustchain_ray.secure_aggregation.attempts import Attempts, SecureSum
from trustchain_ray.secure_aggregation.member import Answer, SecureMember
from trustchain_ray.secure_aggregation.messages import Message, state
from trustchain_ray.secure_aggregation.revealed import Revealed
from trustchain_ray.secure_aggregation.stages import ENCRYPTED_BYTES, STAGES

SIZE = 6
KEYS = {name: identity_of(name).public_hex for name in (*NAMES, COORDINATOR)}
Change = Callable[[Message], Message]


@dataclass
class Party:
    """A member of a run as the coordinator reaches it; it dies in a stage, or changes what it says in one."""

    member: SecureMember
    dies: str = ""
    change: dict[str, Change] | None = None
    attempts: int = 0

    def secure_join(self, cohort: str, data: bytes) -> Answer:
        self.attempts += 1
        return self._said(self.member.join(KEYS, {}, cohort, data))

    def secure_answer(self, cohort: str, data: bytes) -> Answer:
        return self._said(self.member.answer(cohort, data))

    def _said(self, answer: Answer) -> Answer:
        if not answer.get("message"):
            return answer
        message = Message.from_bytes(answer["message"])
        kind = content_of(message).kind
        if kind == self.dies:
            raise RayError("the actor died")
        if change := (self.change or {}).get(kind):
            message = change(message)
            self.member._clients["all"]._said[kind] = message.statement  # it stands by what it said
        return {"message": message.to_bytes()}


class Cohort:
    """Members with updates of one round, and the coordinator's side."""

    def __init__(self, folder: Path, count: int, number: int = 1, threshold: int = 0) -> None:
        draws = np.random.default_rng(count)
        self.number, self.names = number, NAMES[:count]
        self.updates = {name: draws.normal(0, 0.01, SIZE).astype(np.float32) for name in self.names}
        self.weights = {name: 2 + i for i, name in enumerate(self.names)}
        self.parties = {}
        for name in self.names:
            member = SecureMember(identity_of(name), "run", name.encode() * 8, folder / f"{name}.json")
            self.parties[name] = Party(member)
            self.train(name)
        self.attempts = Attempts("run", identity_of(COORDINATOR), KEYS, self.call, 5.0, threshold)

    def call(self, name: str, method: str, cohort: str, data: bytes) -> Any:
        return getattr(calls.Local(self.parties[name]), method).remote(cohort, data)

    def train(self, name: str, removal: str | None = None) -> None:
        member = self.parties[name].member
        member.begin()
        digest = member.keyed(self.updates[name].tobytes().hex())
        member.hold("all", self.number, removal, self.updates[name], self.weights[name], digest)

    def sum(self, *names: str) -> SecureSum:
        chosen = names or self.names
        return self.attempts.sum("all", self.number, SIZE, {name: self.weights[name] for name in chosen})

    def check(self, said: SecureSum, *names: str) -> None:
        """The result is the plain sum of these members, and of nobody else."""
        assert said.result is not None, said.reason
        assert sorted(said.result.weights) == sorted(names)
        sums, total = weighted_sum([self.updates[n] for n in names], [self.weights[n] for n in names])
        assert said.result.sums.tobytes() == sums.tobytes()
        assert said.result.total == total


def resigned(message: Message, buffers: dict[str, bytes]) -> Message:
    """The message with other buffers, signed by its sender."""
    said = content_of(message)
    statement = state(identity_of(said.sender), said.kind, said.session, said.after, said.body, buffers)
    return Message(statement, buffers=buffers)


def test_the_sum_is_the_plain_one_and_its_bytes_are_counted(tmp_path: Path):
    cohort = Cohort(tmp_path, 4)
    said = cohort.sum()
    cohort.check(said, *cohort.names)
    assert (said.attempt, said.threshold, said.refused, said.absent, said.reason) == (0, 3, {}, {}, "")
    assert said.sent > 4 * 8 * SIZE


@pytest.mark.parametrize("stage", STAGES)
def test_a_member_that_dies_in_a_stage_is_left_out_from_there_on(tmp_path: Path, stage: str):
    cohort = Cohort(tmp_path, 4)
    cohort.parties["birch"].dies = stage
    said = cohort.sum()
    assert said.attempt == 0
    if stage in ("alive", "reveal"):  # its masked input had come
        cohort.check(said, *cohort.names)
        assert said.absent == {}
    else:
        cohort.check(said, "amber", "cedar", "delta")
        assert said.absent == {"birch": "secure aggregation: the actor died"}
    assert said.refused == {}


def test_too_many_deaths_make_a_new_session_without_the_dead(tmp_path: Path):
    cohort = Cohort(tmp_path, 5)
    for name in ("amber", "birch"):
        cohort.parties[name].dies = "input"
    said = cohort.sum()
    cohort.check(said, "cedar", "delta", "ember")
    assert (said.attempt, said.threshold, sorted(said.absent)) == (1, 3, ["amber", "birch"])
    assert cohort.parties["cedar"].attempts == 2


@pytest.mark.parametrize(("count", "threshold", "need"), [(4, 0, 3), (5, 4, 4)])
def test_without_enough_members_there_is_no_sum_and_the_reason_is_told(
    tmp_path: Path, count: int, threshold: int, need: int
):
    cohort = Cohort(tmp_path, count, threshold=threshold)
    for name in cohort.names[:2]:
        cohort.parties[name].dies = "keys"
    said = cohort.sum()
    assert said.result is None
    assert f"{count - 2} members are left, {need} are needed" in said.reason
    assert said.reason.startswith(f"secure aggregation: only {count - 2} members answered with their keys")


def test_deaths_after_shares_were_given_away_are_the_end_of_it(tmp_path: Path):
    cohort = Cohort(tmp_path, 5)
    for name in ("amber", "birch"):
        cohort.parties[name].dies = "reveal"
    said = cohort.sum()
    assert said.result is None
    assert said.attempt == 0
    assert "only 3 members answered with their reveal, 4 are needed" in said.reason
    for name in ("amber", "birch"):
        cohort.parties[name].dies = ""
    assert cohort.sum("cedar", "delta", "ember").result is None
    cohort.check(cohort.sum(), *cohort.names)  # the same members: nothing new is shown


def test_an_input_of_the_wrong_length_names_its_sender(tmp_path: Path):
    cohort = Cohort(tmp_path, 4)
    cohort.parties["cedar"].change = {
        "input": lambda message: resigned(message, {"values": bytes(message.buffers["values"])[:-8]})
    }
    said = cohort.sum()
    cohort.check(said, "amber", "birch", "delta")
    digest, why = said.refused["cedar"]
    assert "cedar sent a masked input of 40 bytes" in why
    assert len(digest) == 64
    assert said.absent == {}


def test_bytes_that_are_no_message_name_their_sender(tmp_path: Path):
    cohort = Cohort(tmp_path, 4)
    cohort.parties["delta"].change = {"keys": lambda message: _Noise()}
    said = cohort.sum()
    cohort.check(said, "amber", "birch", "cedar")
    assert "not a message" in said.refused["delta"][1]


class _Noise:
    statement = None

    def to_bytes(self) -> bytes:
        return b"\x00\x00\x00\x05noise"


def test_a_weight_other_than_the_signed_one_is_refused(tmp_path: Path):
    cohort = Cohort(tmp_path, 4)
    weights = {**cohort.weights, "amber": 1}
    said = cohort.attempts.sum("all", 1, SIZE, weights)
    cohort.check(said, "birch", "cedar", "delta")
    assert "stated the weight 2; it signed 1 before" in said.refused["amber"][1]


def test_shares_that_open_for_nobody_are_laid_to_who_sent_them(tmp_path: Path):
    cohort = Cohort(tmp_path, 5)
    cohort.parties["ember"].change = {
        "shares": lambda message: resigned(message, dict.fromkeys(message.buffers, bytes(ENCRYPTED_BYTES)))
    }
    said = cohort.sum()
    cohort.check(said, "amber", "birch", "cedar", "delta")
    assert said.attempt == 1
    assert "ember encrypted shares" in said.refused["ember"][1]
    assert said.absent == {}


def test_a_single_accuser_is_not_believed(tmp_path: Path):
    """It stops, as it must; whom it accuses stays in the sum."""
    cohort = Cohort(tmp_path, 4)

    def spoil_one(message: Message) -> Message:
        return resigned(message, {**message.buffers, "amber": bytes(ENCRYPTED_BYTES)})

    cohort.parties["delta"].change = {"shares": spoil_one}
    said = cohort.sum()
    cohort.check(said, "birch", "cedar", "delta")
    assert said.refused == {}
    assert "delta encrypted shares for amber that do not open" in said.absent["amber"]


def test_members_refuse_a_session_of_another_round_or_run(tmp_path: Path):
    cohort = Cohort(tmp_path, 3, number=4)
    for attempts, number in ((cohort.attempts, 3), (replace(cohort.attempts, run="other"), 4)):
        said = attempts.sum("all", number, SIZE, cohort.weights)
        assert said.result is None
        assert "holds an update of round 4 of all, the session is of round" in said.absent["amber"]


def test_a_member_that_lost_its_update_is_absent(tmp_path: Path):
    cohort = Cohort(tmp_path, 4)
    cohort.parties["amber"].member.begin()
    said = cohort.sum()
    cohort.check(said, "birch", "cedar", "delta")
    assert "amber holds no update of all any more" in said.absent["amber"]


def test_the_same_update_is_in_no_other_sum_but_one_of_each_removal(tmp_path: Path):
    """Also after a restart of the member, and when the training of a round is repeated."""
    cohort = Cohort(tmp_path, 5)
    cohort.check(cohort.sum(), *cohort.names)
    again = Cohort(tmp_path, 5)
    said = again.sum("amber", "birch", "cedar", "delta")
    assert said.result is None
    assert "could show an update" in said.absent["amber"]
    for name in again.names:
        again.train(name, removal="ab" * 32)
    again.check(again.sum("amber", "birch", "cedar", "delta"), "amber", "birch", "cedar", "delta")
    assert again.sum("amber", "birch", "cedar").result is None
    for name in again.names:
        again.train(name, removal="0" * 64)  # a re-execution: what was summed before, and nothing else
    again.check(again.sum(), *again.names)
    assert again.sum("amber", "birch", "cedar").result is None


def test_weights_that_no_session_can_sum_are_an_error(tmp_path: Path):
    cohort = Cohort(tmp_path, 3)
    for name, weight in zip(cohort.names, (2**23, 1, 1), strict=True):
        cohort.weights[name] = weight
        cohort.train(name)
    with pytest.raises(TrustChainError, match=r"federation\.weights=equal"):
        cohort.sum()


def test_a_key_that_changes_is_refused(tmp_path: Path):
    memory = Revealed(tmp_path / "amber.json")
    assert memory.pin({"amber": "aa" * 32}) == {"amber": "aa" * 32}
    assert Revealed(tmp_path / "amber.json").pin({"birch": "bb" * 32}).keys() == {"amber", "birch"}
    with pytest.raises(TrustChainError, match="the key of amber is another one"):
        Revealed(tmp_path / "amber.json").pin({"amber": "cc" * 32})
    assert (tmp_path / "amber.json").stat().st_mode & 0o777 == 0o600


def test_a_key_that_was_rotated_by_its_owner_is_followed(tmp_path: Path):
    old, new, thief = (Identity("amber", Ed25519PrivateKey.generate()) for _ in range(3))
    path = tmp_path / "amber.json"
    assert Revealed(path).pin({"amber": old.public_hex}) == {"amber": old.public_hex}
    document = rotated_document(public_document(old), rotation_event(old, new, "run"))
    forged = {**document, "public_key": thief.public_hex, "key_id": thief.key_id}
    for key, shown in ((new, {}), (thief, {"amber": document}), (thief, {"amber": forged}), (new, {"amber": forged})):
        with pytest.raises(TrustChainError, match="no rotation leads from one to the other"):
            Revealed(path).pin({"amber": key.public_hex}, shown)
    assert Revealed(path).pin({"amber": new.public_hex}, {"amber": document}) == {"amber": new.public_hex}
    assert Revealed(path).pin({"amber": new.public_hex}) == {"amber": new.public_hex}
    with pytest.raises(TrustChainError, match="no rotation leads"):
        Revealed(path).pin({"amber": old.public_hex}, {"amber": document})  # a retired key does not come back


@pytest.mark.parametrize("content", [b"", b"[]", b'{"keys":{}}', b'{"keys":{},"revealed":{"a":[]}}'])
def test_a_damaged_memory_is_refused(tmp_path: Path, content: bytes):
    (tmp_path / "amber.json").write_bytes(content)
    with pytest.raises(TrustChainError, match="memory of secure sums is damaged"):
        Revealed(tmp_path / "amber.json")


def test_a_keyed_digest_is_the_same_for_the_same_update_and_different_for_others(tmp_path: Path):
    def member(secret: bytes, run: str = "run") -> Any:
        return SecureMember(identity_of("amber"), run, secret, tmp_path / "amber.json")

    said = member(b"1" * 32).keyed("aa" * 32)
    assert said == member(b"1" * 32).keyed("aa" * 32) != "aa" * 32
    assert len({said, member(b"2" * 32).keyed("aa" * 32), member(b"1" * 32, "other").keyed("aa" * 32)}) == 3
