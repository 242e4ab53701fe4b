"""All parties of secure sums in one process: every message goes through its bytes, and can be dropped or changed."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ledger.identity import COORDINATOR, Identity
from trustchain_ray.secure_aggregation import Client, Message, Result, Server, Session, default_threshold
from trustchain_ray.secure_aggregation.messages import Buffers, Content, state
from trustchain_ray.secure_aggregation.stages import STAGES, list_kind

NAMES = ("amber", "birch", "cedar", "delta", "ember", "fjord", "grove")


def content_of(message: Message) -> Content:
    """What a statement says, unchecked."""
    return Content(**json.loads(message.statement.payload))


def identity_of(name: str) -> Identity:
    """The same key for the same name in every test."""
    return Identity(name, Ed25519PrivateKey.from_private_bytes(hashlib.sha256(name.encode()).digest()))


class Parties:
    """A coordinator and its members in one session, with randomness of a fixed seed."""

    def __init__(
        self,
        count: int = 4,
        size: int = 5,
        seed: int = 0,
        threshold: int = 0,
        weights: Iterable[int] | None = None,
        signed: Mapping[str, int] | None = None,
        **fields: Any,
    ):
        names = NAMES[:count]
        self.registered = {name: identity_of(name).public_hex for name in (*names, COORDINATOR)}
        members = {name: self.registered[name] for name in names}
        about = {"run": "r", "cohort": "all", "round": 1, "attempt": 0, **fields}
        threshold = threshold or default_threshold(count)
        coordinator = self.registered[COORDINATOR]
        self.session = Session(**about, size=size, threshold=threshold, members=members, coordinator=coordinator)
        self.server = Server(self.session, identity_of(COORDINATOR), signed)
        draws = np.random.default_rng(seed)
        self.updates = {name: draws.normal(0, 0.01, size).astype(np.float32) for name in names}
        self.weights = dict(zip(names, weights or range(3, 3 + count), strict=True))
        self.entropy = np.random.default_rng([seed, 1]).bytes
        self.clients = {name: self.client(name) for name in names}
        self.sent: dict[str, dict[str, Message]] = {}

    def client(self, name: str) -> Client:
        return Client(
            identity_of(name), self.registered, self.updates[name], self.weights[name], entropy=self.entropy
        )

    def answers(self, messages: Mapping[str, Message], drop: tuple[str, ...] = ()) -> dict[str, Message]:
        """What the members answer, after a trip through bytes both ways."""
        replies = {}
        for name, message in messages.items():
            if name not in drop:
                reply = self.clients[name].answer(Message.from_bytes(message.to_bytes()))
                assert reply is not None
                replies[name] = Message.from_bytes(reply.to_bytes())
        return replies

    def until(self, stage: str, drop: Mapping[str, tuple[str, ...]] | None = None) -> dict[str, Message]:
        """Run all stages before `stage`; the members' answers in it, which the server has not seen.

        Parameters
        ----------
        drop : members that fall silent, by stage.
        """
        messages = self.server.open() if self.server.stage is None else {}
        for current in STAGES:
            replies = self.answers(messages, (drop or {}).get(current, ()))
            self.sent[current] = replies
            if current == stage:
                return replies
            messages = self.receive(replies)
        raise AssertionError(f"no stage {stage}")

    def receive(self, replies: Mapping[str, Message]) -> dict[str, Message]:
        """Hand answers to the server and close the stage."""
        for name, reply in replies.items():
            self.server.receive(name, reply)
        return self.server.close()

    def finish(self, replies: Mapping[str, Message]) -> Result:
        """The last stage, and its end at the members that stayed."""
        for name, message in self.receive(replies).items():
            assert self.clients[name].answer(Message.from_bytes(message.to_bytes())) is None
        assert self.server.result is not None
        return self.server.result

    def run(self, drop: Mapping[str, tuple[str, ...]] | None = None) -> Result:
        """A whole session."""
        return self.finish(self.until("reveal", drop))

    def forged(self, message: Message, buffers: Buffers | None = None, **changes: Any) -> Message:
        """A message changed by its own sender, who signs what it sends."""
        content = replace(content_of(message), **changes)
        buffers = message.buffers if buffers is None else buffers
        about = (content.kind, content.session, content.after, content.body, buffers)
        return Message(state(identity_of(content.sender), *about), message.members, buffers)

    def listed(
        self, stage: str, replies: Mapping[str, Message], names: Iterable[str], after: str = "", **body: object
    ) -> Message:
        """The list of a stage with these members alone, as a dishonest coordinator signs it."""
        members = tuple(replies[name].statement for name in sorted(names))
        digests = {name: replies[name].statement.digest for name in names}
        after = after or content_of(next(iter(replies.values()))).after
        coordinator = identity_of(COORDINATOR)
        about = {"statements": digests, **body}
        return Message(state(coordinator, list_kind(stage), self.session.digest, after, about, {}), members)
