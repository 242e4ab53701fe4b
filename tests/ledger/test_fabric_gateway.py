"""The Gateway client when peers are wrong, slow, gone, or dishonest."""

import dataclasses
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("grpc", reason="pip install 'trustchain-ray[fabric]'")
pytest.importorskip("google.protobuf", reason="pip install 'trustchain-ray[fabric]'")

import grpc
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from fabric_certificates import authority
from fabric_consortium import MSPS, RUN, Consortium
from fake_gateway import VALID

from ledger.errors import LedgerError, Unavailable
from ledger.fabric import gateway as fabric_gateway
from ledger.fabric.chain import FabricChain
from ledger.fabric.signer import ORDERS, Signer
from ledger.private import Conflict

ROOT = Path(__file__).parents[2]
DIGEST = "ab" * 32


@pytest.fixture
def consortium(tmp_path: Path) -> Iterator[Consortium]:
    made = Consortium(tmp_path)
    yield made
    made.close()


def sign_with(chain: FabricChain, signer: Signer) -> None:
    chain._gateway.signer = signer


class HighS(Signer):
    """Signs as ECDSA allows and Fabric does not."""

    def sign(self, message: bytes) -> bytes:
        r, s = decode_dss_signature(super().sign(message))
        return encode_dss_signature(r, ORDERS["secp256r1"] - s)


def test_a_high_s_is_refused_by_the_peer(consortium: Consortium) -> None:
    chain = consortium.opened()
    signer = chain._gateway.signer
    sign_with(chain, HighS(signer.msp, signer.identity, signer.subject, signer._key))
    for call in (chain.size, lambda: chain.open_round(1, DIGEST)):
        with pytest.raises(LedgerError, match="access denied"):
            call()
    sign_with(chain, signer)
    assert chain.size() == 0


def test_a_signature_with_another_key_is_refused(consortium: Consortium) -> None:
    chain, other = consortium.opened(), consortium.chain("Org2MSP")
    signer, stolen = chain._gateway.signer, other._gateway.signer
    sign_with(chain, dataclasses.replace(signer, identity=stolen.identity))
    with pytest.raises(LedgerError, match="access denied"):
        chain.size()


def test_a_peer_with_the_wrong_certificate_is_not_spoken_to(consortium: Consortium) -> None:
    stranger = authority("stranger")
    for changes in (
        {"tlsCACerts": {"pem": stranger.pem.decode()}},
        {"grpcOptions": {"ssl-target-name-override": "peer0.org1.example.com"}},
    ):
        chain = consortium.chain(profile=consortium.profile(**changes))
        with pytest.raises(LedgerError, match=r"no TLS connection.*tlsCACerts") as refused:
            chain.size()
        assert not isinstance(refused.value, Unavailable)
    assert consortium.gateway.calls.total() == 0


def test_mutual_tls_needs_the_clients_certificate(tmp_path: Path) -> None:
    consortium = Consortium(tmp_path, mutual=True)
    chain = consortium.chain(user=consortium.user(tls=True))
    chain.open_run(consortium.coordinator.public_hex, 2, MSPS)
    assert chain.size() == 0
    calls = consortium.gateway.calls.total()
    with pytest.raises(LedgerError):
        consortium.chain(user=consortium.user()).size()
    assert consortium.gateway.calls.total() == calls
    consortium.close()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["Evaluate", "Endorse", "Submit", "CommitStatus"])
def test_a_peer_that_hangs_costs_a_deadline_and_no_more(consortium: Consortium, method: str) -> None:
    chain = consortium.opened(deadline_s=2.0)
    consortium.gateway.hang.add(method)
    with pytest.raises(Unavailable, match="did not answer in time"):
        chain.size() if method == "Evaluate" else chain.open_round(1, DIGEST)
    consortium.gateway.hang.clear()
    chain.open_round(1, DIGEST)
    assert [entry["number"] for entry in chain.rounds()] == [1]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["Submit", "CommitStatus"])
def test_after_a_lost_answer_the_same_envelope_is_submitted(consortium: Consortium, method: str) -> None:
    chain = consortium.opened(deadline_s=6.0)
    gateway = consortium.gateway
    gateway.lose[method] = 1
    before, endorsed = len(gateway.envelopes), gateway.calls["Endorse"]
    chain.open_round(1, DIGEST)
    sent = gateway.envelopes[before:]
    assert len(sent) == 2
    assert sent[0] == sent[1]
    assert gateway.calls["Endorse"] == endorsed + 1
    codes = [code for block in gateway.channel.blocks for _, code, _ in block.transactions]
    assert codes.count(VALID) == 2  # the run and the round, once each


def test_a_later_call_goes_on_with_the_envelope_of_an_unanswered_one(consortium: Consortium) -> None:
    chain = consortium.opened(deadline_s=1.0)
    gateway = consortium.gateway
    gateway.hang.add("CommitStatus")
    before, endorsed = len(gateway.envelopes), gateway.calls["Endorse"]
    with pytest.raises(Unavailable, match="may still be committed: call again"):
        chain.append_batch(0, [consortium.leaf(0)])
    gateway.hang.clear()
    assert chain.append_batch(0, [consortium.leaf(0)]) == 1
    assert len(set(gateway.envelopes[before:])) == 1
    assert gateway.calls["Endorse"] == endorsed + 1


def test_of_racing_creates_one_wins_and_the_others_are_told(consortium: Consortium) -> None:
    chains = [consortium.opened(), *(consortium.chain() for _ in range(7))]
    consortium.gateway.channel.full = len(chains)  # all are endorsed before the first is committed
    outcomes: list[object] = []

    def create(chain: FabricChain, base: str) -> None:
        try:
            outcomes.append(chain.open_round(1, base))
        except LedgerError as error:
            outcomes.append(error)

    threads = [
        threading.Thread(target=create, args=(chain, f"{number:064x}")) for number, chain in enumerate(chains)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count(None) == 1
    lost = [outcome for outcome in outcomes if outcome is not None]
    assert all(isinstance(outcome, Conflict) for outcome in lost), lost
    assert "MVCC_READ_CONFLICT" in str(lost[0])
    assert len(chains[0].rounds()) == 1


def test_a_peer_that_lags_is_asked_again(consortium: Consortium, monkeypatch: pytest.MonkeyPatch) -> None:
    chain = consortium.opened()
    consortium.gateway.lag = 2
    chain.open_round(1, DIGEST)
    assert consortium.gateway.lag == 0
    consortium.gateway.lag = 1_000_000
    monkeypatch.setattr(fabric_gateway, "LAG_S", 0.2)
    with pytest.raises(Unavailable, match="Org2MSP refuses what others endorse: event 1 cannot be appended"):
        chain.open_round(2, DIGEST)


def test_named_organizations_must_all_be_there(consortium: Consortium) -> None:
    chain = consortium.opened(endorsing_organizations=MSPS)
    assert chain.append_batch(0, [consortium.leaf(0)]) == 1
    consortium.gateway.down.add("Org2MSP")
    with pytest.raises(Unavailable, match=r"failed to find any endorsing peers for org\(s\): Org2MSP"):
        chain.open_round(1, DIGEST)
    with pytest.raises(Unavailable, match="no combination of peers"):
        consortium.chain().open_round(1, DIGEST)


def test_the_same_client_goes_on_when_its_peer_is_back(consortium: Consortium) -> None:
    chain = consortium.opened(deadline_s=5.0)
    chain.append_batch(0, [consortium.leaf(0)])
    consortium.gateway.die()
    with pytest.raises(Unavailable, match="not available"):
        chain.append_batch(1, [consortium.leaf(1)])
    consortium.gateway.restart()
    for _ in range(200):
        try:
            assert chain.append_batch(1, [consortium.leaf(1)]) == 2
            break
        except Unavailable:
            threading.Event().wait(0.1)
    assert chain.size() == 2


def test_an_unknown_channel_or_chaincode_is_named(consortium: Consortium) -> None:
    consortium.opened()
    with pytest.raises(Unavailable, match="channel or chaincode have another name"):
        consortium.chain(channel="elsewhere").size()
    with pytest.raises(Unavailable, match="chaincode nothing in channel trustchain"):
        consortium.chain(chaincode="nothing").size()


def test_another_transaction_than_the_one_proposed_is_not_signed(consortium: Consortium) -> None:
    chain = consortium.opened()
    consortium.gateway.swap = True
    before = len(consortium.gateway.envelopes)
    with pytest.raises(LedgerError, match="prepared another transaction than the one proposed; not signed"):
        chain.open_round(1, DIGEST)
    assert len(consortium.gateway.envelopes) == before


def test_a_server_without_the_gateway_service_is_named(consortium: Consortium) -> None:
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    chain = consortium.chain(profile=consortium.profile(url=f"grpc://127.0.0.1:{port}"))
    with pytest.raises(LedgerError, match="has no Gateway service; it needs Fabric 2"):
        chain.size()
    server.stop(None)


FORK = """
import os, sys
from ledger.fabric.chain import FabricChain
profile, user, run = sys.argv[1:]
chain = FabricChain(profile, user, run, organization="Org1MSP", deadline_s=30)
children = []
for _ in range(2):
    pid = os.fork()
    if pid == 0:
        os._exit(0 if chain.size() == 1 else 1)
    children.append(pid)
codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
sys.exit(0 if codes == [0, 0] and chain.size() == 1 else 1)
"""


@pytest.mark.slow
def test_the_connection_is_made_after_a_fork(consortium: Consortium) -> None:
    consortium.opened().append_batch(0, [consortium.leaf(0)])
    arguments = [str(consortium.profile()), str(consortium.user()), RUN]
    done = subprocess.run(
        [sys.executable, "-c", FORK, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
