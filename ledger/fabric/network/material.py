"""What cryptogen does not write: connection profiles, and a certificate with a Fabric attribute."""

import datetime
import json
import os
import shutil
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from ledger.canonical import write_atomic
from ledger.fabric.network.layout import CHANNEL, ORGANIZATIONS, Layout, domain, peer_name

ATTRIBUTES = x509.ObjectIdentifier("1.2.3.4.5.6.7.8.1")
"""Certificate extension in which Fabric keeps attributes."""
COORDINATOR_USER = "Coordinator"


def write_profiles(folder: Path, layout: Layout, host: str | None = None) -> None:
    """Write ``connection-<organization>.yaml`` of every organization.

    The content is JSON, which is YAML as well. Each profile names both peers, so that a client can go on
    where its own is down.

    Parameters
    ----------
    folder
        Folder of the network, on this machine.
    layout
        Addresses of the nodes.
    host
        Host at which clients reach the nodes; default: as in the layout.
    """
    for organization in ORGANIZATIONS:
        profile = connection_profile(folder, layout, organization, host)
        write_atomic(profile_path(folder, organization), json.dumps(profile, indent=2).encode() + b"\n")


def profile_path(folder: Path, organization: str) -> Path:
    """Where the connection profile of an organization lies."""
    return folder / f"connection-{organization}.yaml"


def connection_profile(folder: Path, layout: Layout, organization: str, host: str | None) -> dict[str, Any]:
    """Connection profile in the format of the Fabric samples and of hfc."""
    organizations = folder / "organizations"

    def node(address: str, scheme: str, name: str, authority: Path) -> dict[str, Any]:
        port = address.rpartition(":")[2]
        return {
            "url": f"{scheme}://{host}:{port}" if host else f"{scheme}://{address}",
            "tlsCACerts": {"pem": authority.read_text()},
            "grpcOptions": {"ssl-target-name-override": name, "hostnameOverride": name},
        }

    peers = {
        peer_name(member): node(
            layout.addresses[f"peer{member[-1]}"], "grpcs", peer_name(member),
            organizations / "peerOrganizations" / domain(member) / "tlsca" / f"tlsca.{domain(member)}-cert.pem",
        )
        for member in ORGANIZATIONS
    }  # fmt: skip
    orderer_authority = organizations / "ordererOrganizations/example.com/tlsca/tlsca.example.com-cert.pem"
    return {
        "name": f"trustchain-{organization}",
        "version": "1.0.0",
        "client": {"organization": organization.capitalize(), "connection": {"timeout": {"peer": {"endorser": "300"}}}},
        "organizations": {
            member.capitalize(): {"mspid": msp, "peers": [peer_name(member)], "certificateAuthorities": []}
            for member, msp in ORGANIZATIONS.items()
        },
        "peers": peers,
        "orderers": {
            "orderer.example.com": node(layout.addresses["orderer"], "grpcs", "orderer.example.com", orderer_authority)
        },
        "certificateAuthorities": {},
        "channels": {CHANNEL: {"orderers": ["orderer.example.com"], "peers": {name: {} for name in peers}}},
    }


def issue_coordinator(folder: Path, organization: str) -> None:
    """Issue a client certificate with ``trustchain.role=coordinator`` from the organization's CA key.

    The user ``Coordinator`` gets an MSP folder and TLS keys like those that cryptogen writes; where it stands
    already, nothing happens.
    """
    home = folder / "organizations" / "peerOrganizations" / domain(organization)
    pattern = home / "users" / f"User1@{domain(organization)}"
    made = home / "users" / f"{COORDINATOR_USER}@{domain(organization)}"
    if made.exists():
        return
    authority = x509.load_pem_x509_certificate((home / "ca" / f"ca.{domain(organization)}-cert.pem").read_bytes())
    signer = serialization.load_pem_private_key((home / "ca" / "priv_sk").read_bytes(), password=None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)  # cryptogen's default
    key = ec.generate_private_key(ec.SECP256R1())
    name = f"{COORDINATOR_USER}@{domain(organization)}"
    attributes = json.dumps({"attrs": {"trustchain.role": "coordinator"}}).encode()
    identifier = authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    certificate = (
        x509.CertificateBuilder()
        .subject_name(
            x509.Name(
                [
                    x509.NameAttribute(x509.NameOID.ORGANIZATIONAL_UNIT_NAME, "client"),
                    x509.NameAttribute(x509.NameOID.COMMON_NAME, name),
                ]
            )
        )
        .issuer_name(authority.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(authority.not_valid_before_utc)
        .not_valid_after(authority.not_valid_before_utc + datetime.timedelta(days=3650))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
        .add_extension(x509.UnrecognizedExtension(ATTRIBUTES, attributes), critical=False)
        .sign(signer, hashes.SHA256())
    )
    unfinished = made.with_name(f".{made.name}")
    shutil.rmtree(unfinished, ignore_errors=True)
    shutil.copytree(pattern, unfinished)
    for old in (*(unfinished / "msp/signcerts").iterdir(), *(unfinished / "msp/keystore").iterdir()):
        old.unlink()
    write_atomic(
        unfinished / "msp" / "signcerts" / f"{name}-cert.pem", certificate.public_bytes(serialization.Encoding.PEM)
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with open(os.open(unfinished / "msp/keystore/priv_sk", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(private)
    os.replace(unfinished, made)

