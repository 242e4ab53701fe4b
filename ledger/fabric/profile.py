"""Connection profiles (JSON or YAML) as the Fabric samples and hfc use them, reduced to one peer."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ledger.errors import LedgerError

LOOPBACK = ("127.0.0.1", "localhost", "::1")
"""Hosts to which a connection without TLS is accepted."""

_PEM = "-----BEGIN "
_NAME_OPTIONS = ("ssl-target-name-override", "grpc.ssl_target_name_override", "hostnameOverride")


@dataclass(frozen=True)
class Peer:
    """Where a peer's Gateway service answers, and how it proves who it is.

    Attributes
    ----------
    name, organization, msp
        As the profile names them; ``msp`` is the MSP id.
    address
        ``host:port``.
    ca
        PEM certificates that may vouch for the peer's TLS certificate; None: no TLS, on the loopback only.
    hostname
        Name that the certificate must carry, where it is not the host of ``address``.
    client_cert, client_key
        PEM pair for mutual TLS, from the profile's ``client.tlsCerts.client``.
    """

    name: str
    organization: str
    msp: str
    address: str
    ca: bytes | None
    hostname: str | None = None
    client_cert: bytes | None = None
    client_key: bytes | None = field(default=None, repr=False)


def load_peer(path: str | Path, organization: str | None = None, peer: str | None = None) -> Peer:
    """Read the peer of an organization from a connection profile.

    Parameters
    ----------
    path
        JSON or YAML file. Relative paths in it are looked up in its folder, then in the working directory.
    organization
        Name or MSP id of an entry under ``organizations``; default ``client.organization``, or the only entry.
    peer
        Name of an entry under ``peers``; default the organization's first.

    Raises
    ------
    LedgerError
        The file cannot be read, or lacks what is needed; the message names the place.
    """
    path = Path(path)
    profile = _read(path)
    organizations = _table(profile, "organizations", path)
    name = organization or _text(profile.get("client", {}), "organization")
    if name is None:
        if len(organizations) != 1:
            raise LedgerError(f"{path}: client.organization is missing; say which of {_list(organizations)} you are")
        name = next(iter(organizations))
    by_msp = [key for key, entry in organizations.items() if isinstance(entry, dict) and entry.get("mspid") == name]
    name = by_msp[0] if name not in organizations and by_msp else name
    entry = _table(organizations, name, path, "organizations")
    msp = _text(entry, "mspid")
    if msp is None:
        raise LedgerError(f"{path}: organizations.{name}.mspid is missing")
    peers = _table(profile, "peers", path)
    own = entry.get("peers")
    own = own if isinstance(own, list) else []
    if peer is None:
        if not own:
            raise LedgerError(f"{path}: organizations.{name}.peers names no peer")
        peer = str(own[0])
    where = f"peers.{peer}"
    settings = _table(peers, peer, path, "peers")
    address, secure = _address(_text(settings, "url"), f"{path}: {where}.url")
    options = settings.get("grpcOptions")
    options = options if isinstance(options, dict) else {}
    hostname = next((str(options[key]) for key in _NAME_OPTIONS if options.get(key)), None)
    ca = _pem(settings.get("tlsCACerts"), path, f"{where}.tlsCACerts")
    if secure is None:
        secure = ca is not None
    if secure and ca is None:
        raise LedgerError(f"{path}: {where}.tlsCACerts is missing; give path or pem of the peer's TLS CA")
    if not secure and urlsplit(f"//{address}").hostname not in LOOPBACK:
        raise LedgerError(f"{path}: {where}.url: {address} would be spoken to without TLS; use grpcs:// and tlsCACerts")
    pair: object = profile
    for step in ("client", "tlsCerts", "client"):
        pair = pair.get(step) if isinstance(pair, dict) else None
    pair = pair if isinstance(pair, dict) else {}
    cert = _pem(pair.get("cert"), path, "client.tlsCerts.client.cert")
    key = _pem(pair.get("key"), path, "client.tlsCerts.client.key")
    if (cert is None) != (key is None):
        raise LedgerError(f"{path}: client.tlsCerts.client needs both cert and key")
    return Peer(peer, name, msp, address, ca if secure else None, hostname, cert, key)


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise LedgerError(f"{path}: the connection profile cannot be read: {error.strerror}") from None
    except ValueError:
        raise LedgerError(f"{path}: the connection profile is not UTF-8 text") from None
    try:
        profile = json.loads(text) if path.suffix == ".json" else _yaml(text)
    except (ValueError, RecursionError) as error:
        raise LedgerError(f"{path}: the connection profile is neither JSON nor YAML: {error}") from None
    if not isinstance(profile, dict):
        raise LedgerError(f"{path}: the connection profile is not a table")
    return profile


def _yaml(text: str) -> object:
    import yaml  # a JSON profile needs no YAML

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None


def _table(parent: Mapping[str, Any], name: str, path: Path, where: str = "") -> dict[str, Any]:
    value = parent.get(name)
    if value is None and where:
        raise LedgerError(f"{path}: {where} has no {name!r}; there are {_list(parent)}")
    if not isinstance(value, dict) or not value:
        raise LedgerError(f"{path}: {where + '.' if where else ''}{name} is missing or not a table")
    return value


def _text(table: object, name: str) -> str | None:
    value = table.get(name) if isinstance(table, dict) else None
    return value if isinstance(value, str) and value else None


def _list(names: Mapping[str, Any]) -> str:
    return ", ".join(sorted(map(str, names))) or "none"


def _address(url: str | None, where: str) -> tuple[str, bool | None]:
    """``host:port``, and whether TLS is asked for (None: the url does not say, as with hfc)."""
    if url is None:
        raise LedgerError(f"{where} is missing; for instance grpcs://localhost:7051")
    scheme, _, rest = url.rpartition("://")
    try:
        parts = urlsplit(f"//{rest}")
        complete = bool(parts.hostname and parts.port) and parts.netloc == rest and parts.username is None
    except ValueError:
        complete = False
    if scheme not in ("grpcs", "grpc", "") or not complete:
        raise LedgerError(f"{where}: {url!r} is not grpcs://host:port")
    return rest, {"grpcs": True, "grpc": False, "": None}[scheme]


def _pem(value: object, path: Path, where: str) -> bytes | None:
    """PEM text that stands in the profile, or in the file that it names."""
    if value is None:
        return None
    if isinstance(value, dict):
        pem = value.get("pem")
        if isinstance(pem, list) and all(isinstance(part, str) for part in pem):
            pem = "\n".join(pem)
        if isinstance(pem, str) and _PEM in pem:
            return pem.encode()
        value = value.get("path")
    if not isinstance(value, str) or not value:
        raise LedgerError(f"{path}: {where} needs path or pem")
    value = os.path.expanduser(value)
    for file in (path.parent / value, Path(value)):
        try:
            data = file.read_bytes()
        except OSError:
            continue
        if _PEM.encode() not in data:
            raise LedgerError(f"{path}: {where}: {file} holds no PEM text")
        return data
    raise LedgerError(f"{path}: {where}: {value} cannot be read")
