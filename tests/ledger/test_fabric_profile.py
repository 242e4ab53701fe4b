"""Connection profiles as the Fabric samples and hfc have them, and MSP folders."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("google.protobuf", reason="pip install 'trustchain-ray[fabric]'")

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from fabric_certificates import authority, issue, write_user

from ledger.errors import LedgerError
from ledger.fabric import wire
from ledger.fabric.profile import load_peer
from ledger.fabric.signer import ORDERS, load_signer, tls_pair

CA = authority("tlsca.org1.example.com")
PEM = CA.pem.decode()

SAMPLES = f"""---
name: test-network-org1
version: 1.0.0
client:
  organization: Org1
  connection: {{timeout: {{peer: {{endorser: '300'}}}}}}
organizations:
  Org1:
    mspid: Org1MSP
    peers:
    - peer0.org1.example.com
    certificateAuthorities:
    - ca.org1.example.com
peers:
  peer0.org1.example.com:
    url: grpcs://localhost:7051
    tlsCACerts:
      pem: |
{"".join(f"          {line}" for line in PEM.splitlines(keepends=True))}
    grpcOptions:
      ssl-target-name-override: peer0.org1.example.com
      hostnameOverride: peer0.org1.example.com
"""


def write(folder: Path, profile: dict[str, Any]) -> Path:
    path = folder / "network.json"
    path.write_text(json.dumps(profile))
    return path


def hfc() -> dict[str, Any]:
    """As in network.json of fabric-sdk-py: paths, no scheme, options by their gRPC names."""
    return {
        "name": "sample-network",
        "organizations": {
            "org1.example.com": {"mspid": "Org1MSP", "peers": ["peer0.org1.example.com"]},
            "org2.example.com": {"mspid": "Org2MSP", "peers": ["peer0.org2.example.com"]},
        },
        "peers": {
            "peer0.org2.example.com": {
                "url": "10.0.0.7:9051",
                "grpcOptions": {"grpc.ssl_target_name_override": "peer0.org2.example.com"},
                "tlsCACerts": {"path": "crypto/ca.crt"},
            }
        },
    }


def test_a_profile_of_the_samples_is_read(tmp_path: Path) -> None:
    (tmp_path / "connection-org1.yaml").write_text(SAMPLES)
    peer = load_peer(tmp_path / "connection-org1.yaml")
    assert (peer.name, peer.organization, peer.msp) == ("peer0.org1.example.com", "Org1", "Org1MSP")
    assert (peer.address, peer.hostname) == ("localhost:7051", "peer0.org1.example.com")
    assert peer.ca is not None
    assert x509.load_pem_x509_certificate(peer.ca) == CA.certificate


@pytest.mark.parametrize("organization", ["org2.example.com", "Org2MSP"])
def test_a_profile_of_hfc_is_read_by_name_or_msp(tmp_path: Path, organization: str) -> None:
    (tmp_path / "crypto").mkdir()
    (tmp_path / "crypto" / "ca.crt").write_bytes(CA.pem)
    peer = load_peer(write(tmp_path, hfc()), organization)
    assert (peer.address, peer.hostname, peer.msp) == ("10.0.0.7:9051", "peer0.org2.example.com", "Org2MSP")
    assert peer.ca == CA.pem


def test_a_client_pair_for_mutual_tls_is_read(tmp_path: Path) -> None:
    pair = issue(CA, "client", unit=None)
    client = {"tlsCerts": {"client": {"cert": {"pem": pair.pem.decode()}, "key": {"pem": pair.key_pem.decode()}}}}
    profile = {**hfc(), "client": {"organization": "Org2MSP", **client}}
    profile["peers"]["peer0.org2.example.com"]["tlsCACerts"] = {"pem": [PEM]}
    peer = load_peer(write(tmp_path, profile))
    assert (peer.client_cert, peer.client_key) == (pair.pem, pair.key_pem)
    assert "PRIVATE" not in repr(peer)
    del client["tlsCerts"]["client"]["key"]
    profile["client"].update(client)
    with pytest.raises(LedgerError, match="needs both cert and key"):
        load_peer(write(tmp_path, profile))


def broken(**changes: Any) -> dict[str, Any]:
    """The hfc profile with changes in the entry of the peer."""
    profile = hfc()
    entry = profile["peers"]["peer0.org2.example.com"]
    entry.update({"tlsCACerts": {"pem": PEM}, **changes})
    return profile


@pytest.mark.parametrize(
    ("profile", "organization", "reason"),
    [
        (broken(), None, "client.organization is missing; say which of org1.example.com, org2.example.com"),
        (broken(), "Org9", "organizations has no 'Org9'"),
        (broken(), "Org1MSP", "peers has no 'peer0.org1.example.com'"),
        (broken(url=None), "Org2MSP", r"peers.peer0.org2.example.com.url is missing"),
        (broken(url="https://a:1"), "Org2MSP", "is not grpcs://host:port"),
        (broken(url="grpcs://a"), "Org2MSP", "is not grpcs://host:port"),
        (broken(url="grpcs://a:99999"), "Org2MSP", "is not grpcs://host:port"),
        (broken(url="grpcs://u@a:7/x"), "Org2MSP", "is not grpcs://host:port"),
        (broken(url="grpc://10.0.0.7:9051"), "Org2MSP", "without TLS; use grpcs://"),
        (broken(url="grpcs://a:1", tlsCACerts=None), "Org2MSP", "tlsCACerts is missing"),
        (broken(tlsCACerts={"path": "gone.pem"}), "Org2MSP", "gone.pem cannot be read"),
        (broken(tlsCACerts={"path": "network.json"}), "Org2MSP", "holds no PEM text"),
        (broken(tlsCACerts={}), "Org2MSP", "needs path or pem"),
        ({"organizations": {"A": {"mspid": "A"}}, "peers": {"p": {}}}, None, "organizations.A.peers names no peer"),
        ({"organizations": {"A": {"peers": ["p"]}}, "peers": {"p": {}}}, None, "organizations.A.mspid is missing"),
        ({"organizations": {"A": 3}}, "A", "organizations.A is missing or not a table"),
        ({"client": [], "organizations": []}, None, "organizations is missing or not a table"),
        ([], None, "is not a table"),
    ],
)
def test_what_is_wrong_with_a_profile_is_named(
    tmp_path: Path, profile: Any, organization: str | None, reason: str
) -> None:
    with pytest.raises(LedgerError, match=reason):
        load_peer(write(tmp_path, profile), organization)


def test_a_file_that_is_no_profile_is_named(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="cannot be read"):
        load_peer(tmp_path / "gone.yaml")
    (tmp_path / "bad.yaml").write_text("a: [1,")
    with pytest.raises(LedgerError, match="neither JSON nor YAML"):
        load_peer(tmp_path / "bad.yaml")
    (tmp_path / "bad.json").write_bytes(b"\xff")
    with pytest.raises(LedgerError, match="not UTF-8"):
        load_peer(tmp_path / "bad.json")


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1()], ids=lambda curve: curve.name)
def test_signatures_hold_and_have_a_low_s(tmp_path: Path, curve: ec.EllipticCurve) -> None:
    user = issue(CA, "User1", curve=curve)
    signer = load_signer(write_user(tmp_path, user), "Org1MSP")
    identity = wire.parse(wire.SerializedIdentity, signer.identity)
    assert (identity.mspid, identity.id_bytes) == ("Org1MSP", user.pem)
    for number in range(40):  # half of all signatures have a high s before it is lowered
        signature = signer.sign(b"%d" % number)
        assert decode_dss_signature(signature)[1] <= ORDERS[curve.name] // 2
        user.key.public_key().verify(signature, b"%d" % number, ec.ECDSA(hashes.SHA256()))


def test_the_key_is_neither_shown_nor_pickled(tmp_path: Path) -> None:
    signer = load_signer(write_user(tmp_path, issue(CA, "User1")), "Org1MSP")
    assert "key" not in repr(signer).lower()
    with pytest.raises(TypeError):
        pickle.dumps(signer)


def test_the_key_is_found_among_others(tmp_path: Path) -> None:
    msp = write_user(tmp_path, issue(CA, "User1"))
    other = msp / "keystore" / "another_sk"
    other.write_bytes(issue(CA, "User2").key_pem)
    other.chmod(0o600)
    assert load_signer(msp, "Org1MSP").subject
    (msp / "keystore" / "priv_sk").unlink()
    with pytest.raises(LedgerError, match="holds no key that belongs to cert"):
        load_signer(msp, "Org1MSP")


def test_a_folder_that_gives_no_identity_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="give a user's MSP folder"):
        load_signer(tmp_path / "gone", "Org1MSP")
    with pytest.raises(LedgerError, match="not now; enrol again"):
        load_signer(write_user(tmp_path / "old", issue(CA, "User1", days=(-9, -1))), "Org1MSP")
    with pytest.raises(LedgerError, match="P-256 or P-384"):
        load_signer(write_user(tmp_path / "k1", issue(CA, "User1", curve=ec.SECP256K1())), "Org1MSP")
    msp = write_user(tmp_path / "two", issue(CA, "User1"))
    (msp / "signcerts" / "second.pem").write_bytes(CA.pem)
    with pytest.raises(LedgerError, match="exactly one certificate, there are 2"):
        load_signer(msp, "Org1MSP")
    msp = write_user(tmp_path / "text", issue(CA, "User1"))
    (msp / "signcerts" / "cert.pem").write_text("text")
    with pytest.raises(LedgerError, match="not a PEM certificate"):
        load_signer(msp, "Org1MSP")


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    pair = issue(CA, "User1")
    msp = write_user(tmp_path, pair, pair)
    assert tls_pair(msp) == (pair.pem, pair.key_pem)
    (tmp_path / "tls" / "client.key").chmod(0o644)
    with pytest.raises(LedgerError, match="others can read this private key"):
        tls_pair(msp)
    (msp / "keystore" / "priv_sk").chmod(0o640)
    with pytest.raises(LedgerError, match=r"others can read this private key \(mode 0640\)"):
        load_signer(msp, "Org1MSP")


def test_a_key_of_another_kind_is_passed_over(tmp_path: Path) -> None:
    msp = write_user(tmp_path, issue(CA, "User1"))
    path = msp / "keystore" / "priv_sk"
    path.write_bytes(
        Ed25519PrivateKey.generate().private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    with pytest.raises(LedgerError, match="holds no key that belongs"):
        load_signer(msp, "Org1MSP")
