"""Certificates for mutual TLS between the nodes of a Ray cluster: an own authority, and a folder for every node.

Ray reads `RAY_USE_TLS`, `RAY_TLS_SERVER_CERT`, `RAY_TLS_SERVER_KEY` and `RAY_TLS_CA_CERT` in every process, and every
node is server and client at once (ray/_common/tls_utils.py; src/ray/rpc in its C++ part).
"""

import datetime
import ipaddress
import os
import re
import secrets
import stat
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ledger.canonical import write_atomic
from trustchain_ray.errors import TrustChainError, UsageError

AUTHORITY_DAYS = 3650
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")


def make_certificates(out: Path, hosts: Sequence[str], days: int, place: str = "") -> list[Path]:
    """Make, or renew, the certificates of nodes.

    Parameters
    ----------
    out
        Folder of the authority (`ca.crt`, `ca.key`), which is made once and used again. Each node gets a folder in it
        with `ca.crt`, `node.crt`, `node.key` and `ray.env`; keys have mode 0600.
    hosts
        One for each node: its address or name, or several, joined by `+`; the first one names the folder.
    days
        A node's certificate is valid so long.
    place
        Folder on the nodes to which a node's folder is copied, for `ray.env`; empty: where it is made.

    Returns
    -------
    list
        The nodes' folders.

    Raises
    ------
    UsageError
        A host is none, or `days` is not within the authority's.
    TrustChainError
        The authority's files are damaged, or others can read its key.
    """
    nodes = [_names(host) for host in hosts]
    if not nodes or not 1 <= days <= AUTHORITY_DAYS:
        raise UsageError(f"keys tls: name --hosts, and --days from 1 to {AUTHORITY_DAYS}")
    out.mkdir(mode=0o700, parents=True, exist_ok=True)
    authority, key = _authority(out)
    folders = []
    for names in nodes:
        folder = out / names[0]
        folder.mkdir(mode=0o700, exist_ok=True)
        node_key = generate_private_key(SECP256R1())
        certificate = _certificate(names, node_key, authority, key, days)
        write_atomic(folder / "ca.crt", authority.public_bytes(serialization.Encoding.PEM))
        write_atomic(folder / "node.key", _pem(node_key), 0o600)
        write_atomic(folder / "node.crt", certificate.public_bytes(serialization.Encoding.PEM))
        write_atomic(folder / "ray.env", environment(Path(place) if place else folder.resolve()).encode())
        folders.append(folder)
    return folders


def environment(folder: Path) -> str:
    """Lines for a shell to source before `ray start`, and before a driver: the variables that Ray reads."""
    values = {
        "RAY_USE_TLS": "1",
        "RAY_TLS_SERVER_CERT": folder / "node.crt",
        "RAY_TLS_SERVER_KEY": folder / "node.key",
        "RAY_TLS_CA_CERT": folder / "ca.crt",
    }
    return "".join(f"export {name}='{value}'\n" for name, value in values.items())


def _names(host: str) -> list[str]:
    names = host.split("+")
    for name in names:
        if _address(name) is None and _HOST.fullmatch(name) is None:
            raise UsageError(f"keys tls: --hosts {host!r}: {name!r} is neither an address nor a host name")
    return names


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None


def _authority(out: Path) -> tuple[x509.Certificate, EllipticCurvePrivateKey]:
    crt, pem = out / "ca.crt", out / "ca.key"
    if not crt.exists() and not pem.exists():
        key = generate_private_key(SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"TrustChain Ray {secrets.token_hex(4)}")])
        made = (
            _builder(name, name, key, AUTHORITY_DAYS)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(authority=True), critical=True)
            .sign(key, hashes.SHA256())
        )
        write_atomic(pem, _pem(key), 0o600)
        write_atomic(crt, made.public_bytes(serialization.Encoding.PEM))
    try:
        if stat.S_IMODE(os.stat(pem).st_mode) & 0o077:
            raise TrustChainError(f"{pem}: others can read this private key; run: chmod 600 {pem}")
        loaded = serialization.load_pem_private_key(pem.read_bytes(), None)
        certificate = x509.load_pem_x509_certificate(crt.read_bytes())
    except (OSError, ValueError, TypeError) as error:
        raise TrustChainError(f"{out}: the authority's ca.crt and ca.key cannot be read: {error}") from None
    if not isinstance(loaded, EllipticCurvePrivateKey) or loaded.public_key() != certificate.public_key():
        raise TrustChainError(f"{out}: ca.key is not the key of ca.crt; restore both, or begin with an empty folder")
    return certificate, loaded


def _certificate(
    names: list[str],
    key: EllipticCurvePrivateKey,
    authority: x509.Certificate,
    authority_key: EllipticCurvePrivateKey,
    days: int,
) -> x509.Certificate:
    # Ray's processes of one node reach each other by the loopback address.
    shown = list(dict.fromkeys([*names, "localhost", "127.0.0.1"]))
    alternatives: list[x509.GeneralName] = []
    for name in shown:
        address = _address(name)
        alternatives.append(x509.DNSName(name) if address is None else x509.IPAddress(address))
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0][:64])])
    return (
        _builder(subject, authority.subject, key, days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(authority=False), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
        )
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .sign(authority_key, hashes.SHA256())
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, key: EllipticCurvePrivateKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))  # clocks of nodes differ
        .not_valid_after(now + datetime.timedelta(days=days))
    )


def _usage(authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(key: EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
