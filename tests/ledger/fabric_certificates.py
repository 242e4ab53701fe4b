"""Certificate authorities of organizations for tests, and the files that cryptogen would make of them."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

CA_NAME = "localhost"
ATTRIBUTES = x509.ObjectIdentifier("1.2.3.4.5.6.7.8.1")
"""Extension in which Fabric's CA puts attributes, as JSON."""


@dataclass
class Pair:
    """A certificate and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        return self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )


def authority(name: str) -> Pair:
    """A self-signed certificate authority."""
    return _issue(name, None)


def issue(
    ca: Pair,
    name: str,
    *,
    unit: str | None = "client",
    host: str | None = None,
    attributes: dict[str, str] | None = None,
    curve: ec.EllipticCurve | None = None,
    days: tuple[int, int] = (-1, 30),
) -> Pair:
    """A certificate of ``ca``: for a server where ``host`` is given, else for a client of an organizational unit."""
    return _issue(name, ca, unit=unit, host=host, attributes=attributes, curve=curve, days=days)


def _issue(
    name: str,
    ca: Pair | None,
    *,
    unit: str | None = None,
    host: str | None = None,
    attributes: dict[str, str] | None = None,
    curve: ec.EllipticCurve | None = None,
    days: tuple[int, int] = (-1, 30),
) -> Pair:
    key = ec.generate_private_key(curve or ec.SECP256R1())
    parts = [x509.NameAttribute(NameOID.COMMON_NAME, name)]
    if unit:
        parts.append(x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, unit))
    subject = x509.Name(parts)
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(ca.certificate.subject if ca else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + timedelta(days=days[0]))
        .not_valid_after(now + timedelta(days=days[1]))
        .add_extension(x509.BasicConstraints(ca=ca is None, path_length=None), critical=True)
    )
    if host:
        names = [x509.DNSName(host), x509.IPAddress(ip_address("127.0.0.1"))]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    if attributes:
        value = json.dumps({"attrs": attributes}).encode()
        builder = builder.add_extension(x509.UnrecognizedExtension(ATTRIBUTES, value), critical=False)
    return Pair(builder.sign(ca.key if ca else key, hashes.SHA256()), key)


def write_user(folder: Path, user: Pair, tls: Pair | None = None) -> Path:
    """An MSP folder as cryptogen lays it out; returns its path. ``tls``: the client's pair for mutual TLS."""
    msp = folder / "msp"
    for name, file, data in (
        ("signcerts", "cert.pem", user.pem),
        ("keystore", "priv_sk", user.key_pem),
    ):
        (msp / name).mkdir(parents=True)
        (msp / name / file).write_bytes(data)
    (msp / "keystore" / "priv_sk").chmod(0o600)
    if tls is not None:
        (folder / "tls").mkdir()
        (folder / "tls" / "client.crt").write_bytes(tls.pem)
        (folder / "tls" / "client.key").write_bytes(tls.key_pem)
        (folder / "tls" / "client.key").chmod(0o600)
    return msp
