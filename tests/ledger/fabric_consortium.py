"""Two organizations on a fake Fabric channel, with the files that their clients read."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fabric_certificates import CA_NAME, Pair, issue, write_user
from fake_gateway import FakeGateway

from ledger import events as ev
from ledger.canonical import sha256_hex
from ledger.events import leaf_bytes, make_event
from ledger.fabric.chain import FabricChain
from ledger.identity import COORDINATOR, Identity, load_or_create

RUN = "test-run"
MSPS = ("Org1MSP", "Org2MSP")


class Consortium:
    """Org1 and Org2; the peer is Org1's. ``chain()`` makes a client, ``leaf()`` a signed event."""

    def __init__(self, folder: Path, *, mutual: bool = False) -> None:
        self.folder = folder
        self.gateway = FakeGateway(*MSPS, mutual=mutual)
        self.coordinator = load_or_create(COORDINATOR, folder / "keys")
        self.bank = load_or_create("bank", folder / "keys")
        self._users = 0

    def profile(self, **changes: Any) -> Path:
        """A connection profile in JSON; ``changes`` go into the peer's entry."""
        peer: dict[str, Any] = {
            "url": f"grpcs://127.0.0.1:{self.gateway.port}",
            "tlsCACerts": {"pem": self.gateway.tls_ca.pem.decode()},
            "grpcOptions": {"ssl-target-name-override": CA_NAME},
        }
        organizations = {msp: {"mspid": msp, "peers": ["peer0"]} for msp in (*MSPS, "Org3MSP")}
        path = self.folder / f"connection-{len(list(self.folder.glob('connection-*')))}.json"
        path.write_text(json.dumps({"organizations": organizations, "peers": {"peer0": {**peer, **changes}}}))
        return path

    def user(self, msp: str = "Org1MSP", *, tls: bool = False, ca: Pair | None = None, **options: Any) -> Path:
        """MSP folder of a new user."""
        self._users += 1
        name = f"User{self._users}@{msp}"
        pair = issue(ca or self.gateway.cas[msp], name, **options)
        client = issue(self.gateway.tls_ca, name, unit=None) if tls else None
        return write_user(self.folder / name, pair, client)

    def chain(self, msp: str = "Org1MSP", user: Path | None = None, run: str = RUN, **options: Any) -> FabricChain:
        """A client of an organization."""
        profile = options.pop("profile", None) or self.profile()
        options.setdefault("deadline_s", 20.0)
        return FabricChain(profile, user or self.user(msp), run, organization=msp, **options)

    def opened(self, **options: Any) -> FabricChain:
        """A client of the coordinator, after it opened the run; two of two approve."""
        chain = self.chain(**options)
        chain.open_run(self.coordinator.public_hex, 2, MSPS)
        return chain

    def leaf(self, number: int, identity: Identity | None = None, run: str = RUN, text: str = "") -> bytes:
        """A leaf that differs for each number."""
        body = {"manifest": sha256_hex(f"{number}{text}".encode()), "config": sha256_hex(b"")}
        if identity is None:
            return leaf_bytes(make_event(self.coordinator, run, ev.RUN_MANIFEST, body, key=f"k{number}", time=number))
        return leaf_bytes(make_event(identity, run, ev.DECISION, {"round": number, "effort": "1"}, time=number))

    def register(self, identity: Identity) -> bytes:
        """REGISTER leaf of an organization."""
        body = {
            "organization": identity.name,
            "key_id": identity.key_id,
            "public_key": identity.public_hex,
            "document": sha256_hex(identity.name.encode()),
        }
        return leaf_bytes(make_event(identity, RUN, ev.REGISTER, body, time=0))

    def close(self) -> None:
        self.gateway.die()


MakeConsortium = Callable[..., Consortium]
