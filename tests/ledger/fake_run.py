"""A small but complete run, made through the real service, with real files."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ledger import events as ev
from ledger.canonical import canonical_json, safetensors_digest, sha256_hex
from ledger.dsse import Envelope
from ledger.embedded import EmbeddedEvm
from ledger.identity import COORDINATOR, Identity, load_or_create, public_document
from ledger.private import PrivateChain
from ledger.public import PublicChain
from ledger.service import LedgerService

RUN = "test-run"
ORGANIZATIONS = ("bank", "clinic")
COHORT = "all"
FILES_METADATA = {"format": "pt"}


def write_safetensors(path: Path, tensors: dict[str, tuple[str, list[int], bytes]]) -> str:
    """Write the format by hand; return the digest of the tensors."""
    header: dict[str, Any] = {"__metadata__": FILES_METADATA}
    data = b""
    for name, (dtype, shape, raw) in sorted(tensors.items()):
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(len(head).to_bytes(8, "little") + head + data)
    return safetensors_digest(path)


def adapter(path: Path, value: int) -> str:
    """An adapter of two small tensors, different for each value."""
    return write_safetensors(
        path,
        {
            "layer.lora_B": ("F32", [2, 3], bytes([value % 256]) * 24),
            "layer.lora_A": ("BF16", [3], value.to_bytes(6, "little")),
        },
    )


class FakeRun:
    """Drives a :class:`LedgerService` as the coordinator of a real run would.

    Every file is real; only the tensors mean nothing.
    """

    service: LedgerService

    def __init__(self, run_dir: Path, keys_dir: Path, *, keep_rounds: int = 0, run: str = RUN) -> None:
        self.dir, self.run = run_dir, run
        self.identities = {name: load_or_create(name, keys_dir) for name in (COORDINATOR, *ORGANIZATIONS)}
        self.coordinator = self.identities[COORDINATOR]
        self.initial = sha256_hex(b"initial")
        self.manifest: dict[str, Any] = {
            "run": run,
            "version": 1,
            "organizations": list(ORGANIZATIONS),
            "cohorts": {COHORT: list(ORGANIZATIONS)},
            "initial": {COHORT: self.initial},
            "keep_rounds": keep_rounds,
        }
        (run_dir / "identities").mkdir(parents=True, exist_ok=True)
        (run_dir / "config.yaml").write_text("rounds: 3\nledger:\n  anchor_every: 1\n")
        self.base = self.initial

    def open(
        self, *, anchored: bool = True, anchor_every: int = 1, chains: tuple[PublicChain, PrivateChain] | None = None
    ) -> LedgerService:
        own = EmbeddedEvm(self.dir / "ledger" / "chain") if anchored and chains is None else None
        public, private = chains or (own, None)
        self.service = LedgerService(self.dir, self.run, self.coordinator, public, anchor_every, private)
        if self.service.public is not None:
            self.service.public.connect()
        return self.service

    def event(self, who: str, type: str, body: dict[str, Any], key: str | None = None) -> Envelope:
        return ev.make_event(self.identities[who], self.run, type, body, key=key)

    def register(self, identity: Identity) -> Envelope:
        document = canonical_json(public_document(identity))
        (self.dir / "identities" / f"{identity.name}.json").write_bytes(document)
        body = {
            "organization": identity.name,
            "key_id": identity.key_id,
            "public_key": identity.public_hex,
            "document": sha256_hex(document),
        }
        return ev.make_event(identity, self.run, ev.REGISTER, body)

    def opening(self) -> list[Envelope]:
        (self.dir / "manifest.json").write_bytes(canonical_json(self.manifest))
        body = {
            "manifest": sha256_hex((self.dir / "manifest.json").read_bytes()),
            "config": sha256_hex((self.dir / "config.yaml").read_bytes()),
        }
        registers = [self.register(identity) for identity in self.identities.values()]
        return [*registers, self.event(COORDINATOR, ev.RUN_MANIFEST, body)]

    def update(self, who: str, round_: int, base: str | None = None, weight: int = 10) -> dict[str, Any]:
        digest = sha256_hex(f"{who} {round_}".encode())
        return {
            "round": round_,
            "cohort": COHORT,
            "base": base or self.base,
            "update": digest,
            "weight": weight,
            "steps": 4,
        }

    def merge(self, round_: int, inputs: Sequence[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
        name = f"rounds/{round_:04d}/{COHORT}.safetensors"
        digest = adapter(self.dir / name, round_)
        return {
            "round": round_,
            "cohort": COHORT,
            "base": self.base,
            "inputs": [
                {"organization": who, "update": body["update"], "weight": body["weight"]} for who, body in inputs
            ],
            "adapter": digest,
            "file": name,
            "file_sha256": sha256_hex((self.dir / name).read_bytes()),
        }

    def checkpoint(self, round_: int) -> Envelope:
        name = f"rounds/{round_:04d}/round.json"
        (self.dir / name).write_bytes(canonical_json({"round": round_}))
        digest = sha256_hex((self.dir / name).read_bytes())
        return self.event(COORDINATOR, ev.CHECKPOINT, {"round": round_, "file": name, "digest": digest})

    def round(self, round_: int) -> list[Envelope]:
        updates = [(who, self.update(who, round_)) for who in ORGANIZATIONS]
        merge = self.merge(round_, updates)
        made = [self.event(who, ev.DECISION, {"round": round_, "effort": "1"}) for who in ORGANIZATIONS]
        made += [self.event(who, ev.UPDATE, body) for who, body in updates]
        made.append(self.event(COORDINATOR, ev.MERGE, merge))
        made.append(self.event(COORDINATOR, ev.EVALUATION, {"round": round_, "scores": {"federated": "0.61"}}))
        made.append(self.checkpoint(round_))
        self.base = merge["adapter"]
        return made

    def release(self) -> Envelope:
        digest = adapter(self.dir / "model" / "adapter_model.safetensors", 99)
        (self.dir / "model" / "adapter_config.json").write_text('{"r": 8}\n')
        names = ("model/adapter_config.json", "model/adapter_model.safetensors")
        body = {
            "model_digest": digest,
            "files": {name: sha256_hex((self.dir / name).read_bytes()) for name in names},
            "adapters": {COHORT: self.base},
        }
        return self.event(COORDINATOR, ev.MODEL_RELEASE, body)

    def complete(self, rounds: int) -> list[Envelope]:
        release = self.release()
        digest = safetensors_digest(self.dir / "model" / "adapter_model.safetensors")
        done = {"rounds": rounds, "model_digest": digest}
        return [release, self.event(COORDINATOR, ev.RUN_COMPLETE, done)]

    def submit(self, envelopes: Sequence[Envelope]) -> None:
        assert (rejected := self.service.submit(envelopes)) == [], rejected
        self.service.pump()
        assert self.service.drain(), self.service.status()


def whole_run(run_dir: Path, keys_dir: Path, *, rounds: int = 3, anchored: bool = True) -> FakeRun:
    """A finished and sealed run."""
    run = FakeRun(run_dir, keys_dir)
    run.open(anchored=anchored)
    run.submit(run.opening())
    for round_ in range(1, rounds + 1):
        run.submit(run.round(round_))
    run.submit(run.complete(rounds))
    run.service.seal()
    return run
