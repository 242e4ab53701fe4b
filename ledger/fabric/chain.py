"""The log of a run on Hyperledger Fabric, through the chaincode of ``ledger/chaincode``."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ledger.canonical import sha256_hex
from ledger.errors import LedgerError, Unavailable
from ledger.fabric import values
from ledger.fabric.cursor import Cursor
from ledger.fabric.gateway import LAG_S, Gateway
from ledger.fabric.profile import load_peer
from ledger.fabric.signer import load_signer, tls_pair
from ledger.merkle import MerkleLog, leaf_hash
from ledger.private import ChainEvent, PrivateChain

BATCH_EVENTS = 1000
"""Most events in one transaction."""
BATCH_BYTES = 2_000_000
"""Most bytes of leaves in one transaction, unless one leaf alone is larger."""
PAGE = 500
"""Leaves asked for at once: even the largest fit into one message."""
STREAM_S = 60.0
"""An event stream is opened anew after this time, in seconds: a peer that hangs is found out."""


class FabricChain(PrivateChain):
    """One run's log on a Fabric channel, by way of one peer. Nothing is connected before the first call.

    Parameters
    ----------
    profile
        Connection profile, JSON or YAML; see :func:`ledger.fabric.profile.load_peer`.
    msp_dir
        MSP folder of the user who signs; mutual TLS takes ``../tls/client.{crt,key}`` where they exist and the
        profile names no pair.
    run
        Id of the run.
    organization, peer
        Entries of the profile; defaults as :func:`~ledger.fabric.profile.load_peer`.
    channel, chaincode
        Names on the network.
    deadline_s
        Longest duration of one transaction, in seconds.
    endorsing_organizations
        MSP ids that endorse what is public, all at the same time. Default: the peer finds out by service discovery
        who must, and asks the others only after its own organization has endorsed.

    Raises
    ------
    LedgerError
        Profile or MSP folder cannot be used.
    """

    def __init__(
        self,
        profile: str | Path,
        msp_dir: str | Path,
        run: str,
        *,
        organization: str | None = None,
        peer: str | None = None,
        channel: str = "trustchain",
        chaincode: str = "trustchain",
        deadline_s: float = 15.0,
        endorsing_organizations: Sequence[str] = (),
    ) -> None:
        if deadline_s <= 0:
            raise LedgerError(f"Fabric: a deadline of {deadline_s} s is none; give seconds above 0")
        self.run = run
        self._endorsers = tuple(endorsing_organizations)
        node = load_peer(profile, organization, peer)
        signer = load_signer(msp_dir, node.msp)
        named = (node.client_cert, node.client_key) if node.client_cert and node.client_key else None
        self._gateway = Gateway(node, signer, channel, chaincode, named or tls_pair(msp_dir), deadline_s)
        self._tree = MerkleLog()

    # The log

    def open_run(self, coordinator: str, k: int, msps: Sequence[str]) -> None:
        """Open the run for the coordinator's public key (hex); ``k`` of ``msps`` (empty: the own one) approve."""
        self._submit("OpenRun", self.run, coordinator, str(k), values.strings(msps or [self.describe()["msp"]]))

    def size(self) -> int:
        """Number of leaves that the chain holds."""
        return self._size()

    def append_batch(self, start: int, leaves: Sequence[bytes]) -> int:
        """Append leaves at ``start``; see :class:`~ledger.private.PrivateChain`. Large batches are split."""
        texts = [values.text_of_leaf(leaf, f"event {start + i} of run {self.run}") for i, leaf in enumerate(leaves)]
        if not texts:
            return self.size()
        size = start
        for begin, end in _pieces(leaves):
            self._await_peers(start + begin)
            result = self._submit("AppendEvents", self.run, str(start + begin), values.strings(texts[begin:end]))
            answer = values.parse(result, "AppendEvents")
            if not isinstance(answer, dict) or type(answer.get("size")) is not int:
                raise LedgerError(f"run {self.run}: AppendEvents answered no size")
            size = answer["size"]
        return size

    def read(self, start: int, count: int) -> list[bytes]:
        """Leaves ``[start, start + count)``, fewer where the log ends."""
        if start < 0 or count < 0:
            raise LedgerError(f"run {self.run}: events {start} to {start + count} cannot be read")
        leaves: list[bytes] = []
        while len(leaves) < count:
            wanted = min(PAGE, count - len(leaves))
            answer = self._gateway.evaluate("GetEvents", self.run, str(start + len(leaves)), str(wanted))
            page = values.parse(answer, "GetEvents")
            if not isinstance(page, list) or len(page) > wanted or not all(isinstance(leaf, str) for leaf in page):
                raise LedgerError(f"run {self.run}: GetEvents answered no list of {wanted} leaves")
            first = start + len(leaves)
            leaves += [values.leaf_of(text, f"event {first + i} of run {self.run}") for i, text in enumerate(page)]
            if len(page) < wanted:
                break
        return leaves

    def prove(self, index: int, size: int) -> list[bytes]:
        """RFC 9162 inclusion proof over the leaves that the chain holds; they are read once and hashed here."""
        missing = size - self._tree.size
        if missing > 0:
            for leaf in self.read(self._tree.size, missing):
                self._tree.append(leaf_hash(leaf))
        return self._tree.inclusion_proof(index, size)

    def put_head(self, note: str, proof: Sequence[bytes]) -> None:
        """Store a signed checkpoint with the consistency proof from the last one."""
        self._submit("PutHead", self.run, note, values.strings([part.hex() for part in proof]))

    def head(self) -> str | None:
        """The last signed checkpoint."""
        return values.text(self._gateway.evaluate("GetHead", self.run), "GetHead") or None

    # Private data

    def put_private(self, collection: str, key: str, value: bytes) -> str:
        """Store UTF-8 text (at most 1 MiB, with its own salt) in ``requests`` or ``shards_<MSP id>``.

        Returns the SHA-256 that the channel sees; raises LedgerError if it is not that of ``value``.
        """
        self._gateway.submit("PutPrivate", collection, key, transient={"value": value})
        return self._matching_hash(collection, key, value)

    def get_private(self, collection: str, key: str) -> bytes:
        """A private value, checked against the hash on the channel."""
        value = self._gateway.evaluate("GetPrivate", collection, key)
        if not value and self.private_hash(collection, key):
            raise Unavailable(f"private {collection}/{key}: has not reached this peer yet")
        if not value:
            raise LedgerError(f"private {collection}/{key}: there is none, or it was purged")
        self._matching_hash(collection, key, value)
        return value

    def purge_private(self, collection: str, key: str) -> None:
        """Remove the current and all former values from every peer (Fabric 2.5 and newer)."""
        self._gateway.submit("PurgePrivate", collection, key)

    def private_hash(self, collection: str, key: str) -> str:
        """SHA-256 (hex) of a private value, for every organization; empty if there is none."""
        return values.text(self._gateway.evaluate("GetPrivateHash", collection, key), "GetPrivateHash")

    # Events

    def subscribe(self, cursor: str | Path, wait_s: float | None = None) -> Iterator[ChainEvent]:
        """Events of this run from the cursor on; see :class:`~ledger.private.PrivateChain`."""
        place = Cursor(Path(cursor), self._gateway.channel, self._gateway.chaincode, self.run)
        block, tx = place.load()
        while True:
            quiet = True
            for event in self._gateway.events(block, tx, STREAM_S if wait_s is None else wait_s):
                if self._is_ours(event):
                    yield event
                    place.save(event.block, event.tx)
                block, tx, quiet = event.block, event.tx, False
            self._gateway.evaluate("GetHead", self.run)  # silence may be a peer that hangs: this call tells
            if wait_s is not None and quiet:
                return

    def _submit(self, name: str, *arguments: str) -> bytes:
        """Submit a transaction that is public: the organizations that endorse it see all of it."""
        return self._gateway.submit(name, *arguments, organizations=self._endorsers)

    def _size(self, *organizations: str) -> int:
        answer = values.text(self._gateway.evaluate("GetSize", self.run, organizations=organizations), "GetSize")
        if not answer.isascii() or not answer.isdigit():
            raise LedgerError(f"run {self.run}: GetSize answered {answer[:80]!r}, not a size")
        return int(answer)

    def _await_peers(self, size: int) -> None:
        """Wait until the peers of all endorsers hold ``size`` leaves, or for :data:`LAG_S`.

        One that lags a block behind refuses a batch, and the work of all others on it was in vain.
        """
        end = time.monotonic() + LAG_S
        for msp in self._endorsers:
            while self._size(msp) < size:
                if time.monotonic() > end:
                    return
                time.sleep(0.01)

    def _is_ours(self, event: ChainEvent) -> bool:
        content = values.parse(event.payload, f"event {event.name}")
        return not isinstance(content, dict) or content.get("run") == self.run

    # Organizations, rounds, approvals, models: one method a transaction

    def register_organization(self, name: str, key_id: str, public_key: str, document: str) -> None:
        """Vouch, as this MSP, for an organization's Ed25519 key (hex) and the digest of its document."""
        self._submit("RegisterOrganization", name, key_id, public_key, document)

    def revoke_organization(self, name: str, reason: str, *, everywhere: bool = False) -> None:
        """Refuse the organization's events from now on: in this run after an approval ``organization-revocation``
        of its key id, or ``everywhere`` by an administrator of the MSP that vouches for it."""
        self._submit("RevokeOrganization", name, reason, "" if everywhere else self.run)

    def organizations(self) -> list[dict[str, Any]]:
        """All registered organizations: name, keyId, publicKey, document, msp, revoked, revokedIn."""
        answer = values.parse(self._gateway.evaluate("ListOrganizations"), "ListOrganizations")
        return list(answer) if isinstance(answer, list) else []

    def open_round(self, number: int, base: str) -> None:
        """Open a round on the digest of its base. Again: no-op."""
        self._submit("OpenRound", self.run, str(number), base)

    def close_round(self, number: int, digest: str) -> None:
        """Close a round with the digest of its result. Again: no-op."""
        self._submit("CloseRound", self.run, str(number), digest)

    def rounds(self) -> list[dict[str, Any]]:
        """Rounds in order: number, base, digest (empty while open)."""
        answer = values.parse(self._gateway.evaluate("GetRounds", self.run), "GetRounds")
        return list(answer) if isinstance(answer, list) else []

    def propose(self, kind: str, digest: str) -> None:
        """Open an approval: model-release, unlearning-certificate, model-revocation or organization-revocation."""
        self._submit("Propose", kind, self.run, digest)

    def endorse(self, kind: str, digest: str) -> None:
        """Record this MSP's vote."""
        self._submit("Endorse", kind, self.run, digest)

    def conclude(self, kind: str, digest: str) -> None:
        """Conclude an approval that has its votes; peers of k organizations must endorse this transaction."""
        self._submit("Conclude", kind, self.run, digest)

    def approval(self, kind: str, digest: str) -> dict[str, Any]:
        """State of an approval: k, state (proposed or concluded), votes (MSP ids)."""
        answer = values.parse(self._gateway.evaluate("GetApproval", kind, self.run, digest), "GetApproval")
        return dict(answer) if isinstance(answer, dict) else {}

    def find_approval(self, kind: str, digest: str) -> dict[str, Any] | None:
        """As :meth:`approval`; None: nobody proposed it."""
        try:
            return self.approval(kind, digest)
        except Unavailable:
            raise
        except LedgerError as error:
            if str(error).endswith(": was not proposed"):  # the chaincode's words (lib/approvals.js)
                return None
            raise

    def revoke_model(self, digest: str, reason: str) -> None:
        """Revoke a model after a concluded approval ``model-revocation``."""
        self._submit("RevokeModel", self.run, digest, reason)

    def model_status(self, digest: str) -> str:
        """``released``, ``revoked`` or ``unknown``."""
        return values.text(self._gateway.evaluate("GetModelStatus", self.run, digest), "GetModelStatus")

    def describe(self) -> dict[str, Any]:
        """Kind, channel, chaincode, run, and the MSP and peer by which this client goes."""
        peer = self._gateway.peer
        return {
            "kind": "fabric",
            "channel": self._gateway.channel,
            "chaincode": self._gateway.chaincode,
            "run": self.run,
            "msp": peer.msp,
            "peer": peer.name,
        }

    def close(self) -> None:
        """Close the connection."""
        self._gateway.close()

    def _matching_hash(self, collection: str, key: str, value: bytes) -> str:
        shown = self.private_hash(collection, key)
        if shown != sha256_hex(value):
            raise LedgerError(f"private {collection}/{key}: the channel's hash is that of another value")
        return shown


def _pieces(leaves: Sequence[bytes]) -> Iterator[tuple[int, int]]:
    """Cut a batch so that every piece keeps :data:`BATCH_EVENTS` and :data:`BATCH_BYTES`: (begin, end)."""
    begin = weight = 0
    for i, leaf in enumerate(leaves):
        if i > begin and (i - begin == BATCH_EVENTS or weight + len(leaf) > BATCH_BYTES):
            yield begin, i
            begin, weight = i, 0
        weight += len(leaf)
    yield begin, len(leaves)
