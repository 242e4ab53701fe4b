"""The transactions of ``ledger/chaincode`` that the client uses, over a world state in memory.

What the fake gateway simulates with; refusals and messages are the chaincode's.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ledger import checkpoint, merkle
from ledger.errors import LedgerError
from ledger.events import REGISTER, Event, read_event
from ledger.identity import COORDINATOR, key_id_of

MAX_LEAF_BYTES = 128 * 1024
MAX_BATCH = 2000


class Refused(Exception):
    """The chaincode says no."""


@dataclass
class World:
    """What a channel holds: values with their versions, private values, hashes of them."""

    state: dict[str, tuple[Any, int]] = field(default_factory=dict)
    private: dict[tuple[str, str], bytes] = field(default_factory=dict)
    hashes: dict[tuple[str, str], str] = field(default_factory=dict)
    policies: dict[str, int] = field(default_factory=dict)
    """Endorsements that a change of the key needs (state-based endorsement)."""


@dataclass
class Transaction:
    """A simulated transaction: who submits it, what it reads and writes."""

    world: World
    msp: str
    admin: bool
    transient: dict[str, bytes]
    members: Sequence[str]
    reads: dict[str, int] = field(default_factory=dict)
    writes: dict[str, Any] = field(default_factory=dict)
    private_writes: dict[tuple[str, str], bytes | None] = field(default_factory=dict)
    new_policies: dict[str, int] = field(default_factory=dict)
    event: tuple[str, dict[str, Any]] | None = None

    def get(self, key: str) -> Any:
        value, version = self.world.state.get(key, (None, 0))
        self.reads[key] = version
        return value

    def put(self, key: str, value: Any) -> None:
        self.writes[key] = value

    def call(self, name: str, arguments: Sequence[str]) -> str:
        """Run a transaction. Raises Refused."""
        method = getattr(self, f"do_{name}", None)
        if method is None:
            raise Refused(f"You've asked to invoke a function that does not exist: {name}")
        try:
            result = method(*arguments)
        except LedgerError as error:
            raise Refused(str(error)) from None
        return "" if result is None else str(result)

    # Organizations

    def do_RegisterOrganization(self, name: str, key_id: str, public_key: str, document: str) -> None:
        what = f"organization {name}"
        known = self.get(f"organization/{name}")
        if known is not None:
            for wrong, message in (
                (known["revoked"], f"is revoked ({known['revoked']})"),
                (known["msp"] != self.msp, f"the name is registered by {known['msp']}"),
                (known["keyId"] != key_id, "the name is registered with another key"),
                (known["document"] != document, "is registered with another document"),
            ):
                if wrong:
                    raise Refused(f"{what}: {message}")
            return
        owner = self.get(f"owner/{key_id}")
        if owner is not None:
            raise Refused(f"{what}: the key is registered by {owner}")
        entry = {"name": name, "keyId": key_id, "publicKey": public_key, "document": document}
        self.put(f"organization/{name}", {**entry, "msp": self.msp, "revoked": "", "revokedIn": {}})
        self.put(f"owner/{key_id}", name)

    def do_RevokeOrganization(self, name: str, reason: str, run: str) -> None:
        known = self.get(f"organization/{name}")
        what = f"organization {name}"
        if known is None:
            raise Refused(f"{what}: is not registered")
        if run:
            self.concluded("organization-revocation", run, known["keyId"], what)
            self.put(f"organization/{name}", {**known, "revokedIn": {**known["revokedIn"], run: reason}})
        elif self.msp != known["msp"] or not self.admin:
            raise Refused(f"{what}: only an administrator of {known['msp']} may revoke it in every run")
        else:
            self.put(f"organization/{name}", {**known, "revoked": reason})

    def do_ListOrganizations(self) -> str:
        names = sorted(key for key in self.world.state if key.startswith("organization/"))
        return json.dumps([self.get(name) for name in names])

    # Runs and rounds

    def run(self, run: str) -> dict[str, Any]:
        opened: dict[str, Any] | None = self.get(f"run/{run}")
        if opened is None:
            raise Refused(f"run {run}: is not open; its coordinator opens it with OpenRun")
        return opened

    def sequenced(self, run: str) -> dict[str, Any]:
        opened = self.run(run)
        if opened["sequencer"] != self.msp:
            raise Refused(f"run {run}: only {opened['sequencer']} may do this, not {self.msp}")
        return opened

    def do_OpenRun(self, run: str, coordinator: str, k: str, msps: str) -> None:
        made = {"coordinator": coordinator, "k": int(k), "msps": sorted(json.loads(msps)), "sequencer": self.msp}
        opened = self.get(f"run/{run}")
        if opened is None:
            self.put(f"run/{run}", made)
            self.put(f"size/{run}", 0)
        elif opened != made:
            raise Refused(f"run {run}: is open already, by {opened['sequencer']}, with other settings")

    def do_OpenRound(self, run: str, number: str, base: str) -> None:
        self.sequenced(run)
        known = self.get(f"round/{run}/{number:0>12}")
        if known is None:
            self.put(f"round/{run}/{number:0>12}", {"base": base, "digest": "", "number": int(number)})
        elif known["base"] != base:
            state = "closed" if known["digest"] else "opened"
            raise Refused(f'round "{number}" of run {run}: was {state} with another base')

    def do_CloseRound(self, run: str, number: str, digest: str) -> None:
        self.sequenced(run)
        known = self.get(f"round/{run}/{number:0>12}")
        if known is None:
            raise Refused(f'round "{number}" of run {run}: was never opened')
        if known["digest"] not in ("", digest):
            raise Refused(f'round "{number}" of run {run}: was closed with another digest')
        self.put(f"round/{run}/{number:0>12}", {**known, "digest": digest})

    def do_GetRounds(self, run: str) -> str:
        keys = sorted(key for key in self.world.state if key.startswith(f"round/{run}/"))
        return json.dumps([self.get(key) for key in keys])

    # The log

    def do_AppendEvents(self, run: str, start_text: str, leaves_json: str) -> str:
        opened = self.sequenced(run)
        leaves: list[str] = json.loads(leaves_json)
        start, size = int(start_text), self.get(f"size/{run}")
        if len(leaves) > MAX_BATCH:
            raise Refused(f"run {run}: events: {len(leaves)} entries; at most {MAX_BATCH} are taken at once")
        if start > size:
            raise Refused(f"run {run}: event {start} cannot be appended, the log has {size}; send what lies between")
        for index, leaf in enumerate(leaves[: size - start], start):
            if self.get(f"event/{run}/{index}") != leaf:
                raise Refused(f"event {index} of run {run}: is already another")
        fresh = leaves[size - start :]
        for index, leaf in enumerate(fresh, size):
            try:
                event = self.admit(leaf, run, opened)
            except (Refused, LedgerError) as error:
                raise Refused(f"event {index} of run {run}: {error}") from None
            slot = f"slot/{run}/{event.organization}/{event.key}"
            if slot in self.writes or self.get(slot) is not None:
                used = f'{event.organization} has used the key "{event.key}" already'
                raise Refused(f"event {index} of run {run}: {used}")
            self.put(slot, str(index))
            self.put(f"event/{run}/{index}", leaf)
        if fresh:
            self.put(f"size/{run}", size + len(fresh))
            self.event = ("events", {"count": len(fresh), "run": run, "start": size})
        return json.dumps({"size": size + len(fresh)})

    def admit(self, leaf: str, run: str, opened: dict[str, Any]) -> Event:
        if len(leaf.encode()) > MAX_LEAF_BYTES:
            size = len(leaf.encode())
            raise Refused(f"{size} bytes; a leaf may have {MAX_LEAF_BYTES}, put digests into it")
        keys = {entry["keyId"]: entry["publicKey"] for entry in json.loads(self.do_ListOrganizations())}
        for entry in (value for key, value in self.writes.items() if key.startswith("organization/")):
            keys[entry["keyId"]] = entry["publicKey"]
        keys[key_id_of(opened["coordinator"])] = opened["coordinator"]
        event = read_event(json.loads(leaf), keys)
        if event.run != run:
            raise Refused(f'belongs to run "{event.run}"; a replay from elsewhere?')
        if event.organization == COORDINATOR:
            return event
        known = self.writes.get(f"organization/{event.organization}") or self.get(f"organization/{event.organization}")
        if known is None and event.type == REGISTER:
            body = event.body
            self.do_RegisterOrganization(event.organization, body["key_id"], body["public_key"], body["document"])
            return event
        if known is None:
            raise Refused(f"{event.organization} is not registered; append its REGISTER event first")
        reason = known["revoked"] or known["revokedIn"].get(run, "")
        if reason:
            raise Refused(f"{event.organization} is revoked ({reason})")
        if known["keyId"] != event.key_id:
            raise Refused(f"{event.organization} is registered with another key")
        return event

    def do_GetSize(self, run: str) -> str:
        self.run(run)
        return str(self.get(f"size/{run}"))

    def do_GetEvents(self, run: str, start: str, count: str) -> str:
        self.run(run)
        end = min(int(start) + int(count), self.get(f"size/{run}"))
        return json.dumps([self.get(f"event/{run}/{index}") for index in range(int(start), end)], ensure_ascii=False)

    def do_PutHead(self, run: str, note: str, proof_json: str) -> None:
        opened = self.run(run)
        head = checkpoint.read(note, run, opened["coordinator"], {})
        size = self.get(f"size/{run}")
        last_note = self.get(f"head/{run}")
        if last_note is not None:
            last = checkpoint.read(last_note, run, opened["coordinator"], {})
            if (last.size, last.root) == (head.size, head.root):
                return
            what = f"head of run {run}: {head.size} events"
            if head.size < last.size:
                raise Refused(f"{what}; the last head has {last.size}, a log never shrinks")
            proof = [bytes.fromhex(part) for part in json.loads(proof_json)]
            try:
                merkle.verify_consistency(last.size, last.root, head.size, head.root, proof)
            except LedgerError:
                raise Refused(f"{what} that do not extend the last head of {last.size}") from None
        if head.size > size:
            raise Refused(f"head of run {run}: {head.size} events; the log here has {size}, append them first")
        self.put(f"head/{run}", note)
        self.event = ("head", {"root": head.root.hex(), "run": run, "size": head.size})

    def do_GetHead(self, run: str) -> str:
        return self.get(f"head/{run}") or ""

    # Approvals and models

    def do_Propose(self, kind: str, run: str, digest: str) -> None:
        opened = self.run(run)
        key = f"approval/{kind}/{run}/{digest}"
        if self.get(key) is None:
            self.put(key, "proposed")
            self.new_policies[key] = opened["k"]

    def do_Endorse(self, kind: str, run: str, digest: str) -> None:
        self.proposed(kind, run, digest)
        self.put(f"vote/{kind}/{run}/{digest}/{self.msp}", True)

    def do_Conclude(self, kind: str, run: str, digest: str) -> None:
        opened = self.run(run)
        if self.proposed(kind, run, digest) == "concluded":
            return
        votes = self.votes(kind, run, digest)
        if len(votes) < opened["k"]:
            given = f"has {len(votes)} of {opened['k']} votes ({', '.join(votes) or 'none'})"
            raise Refused(f"approval {kind} of {digest[:16]} in run {run}: {given}")
        self.put(f"approval/{kind}/{run}/{digest}", "concluded")

    def do_GetApproval(self, kind: str, run: str, digest: str) -> str:
        state = self.proposed(kind, run, digest)
        return json.dumps({"k": self.run(run)["k"], "state": state, "votes": self.votes(kind, run, digest)})

    def proposed(self, kind: str, run: str, digest: str) -> str:
        if self.msp not in self.run(run)["msps"]:
            raise Refused(f"approval {kind} of {digest[:16]}: {self.msp} is not a member of run {run}")
        state = self.get(f"approval/{kind}/{run}/{digest}")
        if state is None:
            raise Refused(f"approval {kind} of {digest[:16]} in run {run}: was not proposed")
        return str(state)

    def votes(self, kind: str, run: str, digest: str) -> list[str]:
        return [msp for msp in self.run(run)["msps"] if self.get(f"vote/{kind}/{run}/{digest}/{msp}")]

    def concluded(self, kind: str, run: str, digest: str, what: str) -> None:
        if self.get(f"approval/{kind}/{run}/{digest}") != "concluded":
            raise Refused(f"{what}: needs a concluded approval {kind} of {digest} in run {run}")

    def do_RevokeModel(self, run: str, digest: str, reason: str) -> None:
        self.concluded("model-revocation", run, digest, f"model {digest[:16]} of run {run}")
        self.put(f"model-revocation/{run}/{digest}", reason)

    def do_GetModelStatus(self, run: str, digest: str) -> str:
        if self.get(f"model-revocation/{run}/{digest}") is not None:
            return "revoked"
        return "released" if self.get(f"approval/model-release/{run}/{digest}") == "concluded" else "unknown"

    # Private data

    def owned(self, collection: str, key: str) -> tuple[str, str]:
        owner = collection.removeprefix("shards_")
        if collection != "requests" and owner not in self.members:
            raise Refused(f'private "{collection}": unknown collection; known: requests, shards_<MSP>')
        if collection != "requests" and owner != self.msp:
            raise Refused(f"private {collection}/{key}: only {owner} may see or change it, not {self.msp}")
        return collection, key

    def do_PutPrivate(self, collection: str, key: str) -> None:
        place = self.owned(collection, key)
        if not self.transient.get("value"):
            raise Refused(f'private {collection}/{key}: the transient field "value" is missing or empty')
        self.private_writes[place] = self.transient["value"]

    def do_GetPrivate(self, collection: str, key: str) -> str:
        return self.world.private.get(self.owned(collection, key), b"").decode()

    def do_PurgePrivate(self, collection: str, key: str) -> None:
        self.private_writes[self.owned(collection, key)] = None

    def do_GetPrivateHash(self, collection: str, key: str) -> str:
        return self.world.hashes.get((collection, key), "")

    def commit(self) -> None:
        """Apply the writes to the world."""
        for key, value in self.writes.items():
            self.world.state[key] = (value, self.world.state.get(key, (None, 0))[1] + 1)
        for place, secret in self.private_writes.items():
            if secret is None:
                self.world.private.pop(place, None)
                self.world.hashes.pop(place, None)
            else:
                self.world.private[place] = secret
                self.world.hashes[place] = hashlib.sha256(secret).hexdigest()
        self.world.policies.update(self.new_policies)
