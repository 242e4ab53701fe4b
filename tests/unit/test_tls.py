"""Certificates for Ray's nodes: real handshakes, with both sides showing one."""

import contextlib
import shlex
import socket
import ssl
import stat
import threading
from pathlib import Path

import pytest

from trustchain_ray.errors import TrustChainError, UsageError
from trustchain_ray.tls import make_certificates


def context(folder: Path, server: bool) -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    made.load_verify_locations(folder / "ca.crt")
    made.load_cert_chain(folder / "node.crt", folder / "node.key")
    made.verify_mode = ssl.CERT_REQUIRED
    return made


def handshake(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> bytes:
    """What the client reads once both sides are content; ssl.SSLError or OSError where one is not."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with (
                contextlib.suppress(OSError),
                listener.accept()[0] as plain,
                server.wrap_socket(plain, server_side=True) as secured,
            ):
                secured.sendall(b"welcome")

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            with (
                socket.create_connection(listener.getsockname(), 10) as plain,
                client.wrap_socket(plain, server_hostname=name) as secured,
            ):
                return secured.recv(7)
        finally:
            thread.join()


def refused(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> bool:
    """Whether a side ends the connection; with TLS 1.3 the client may learn of it only when it reads."""
    try:
        return handshake(server, client, name) == b""
    except OSError:
        return True


def test_nodes_of_one_authority_know_each_other(tmp_path: Path):
    one, two = make_certificates(tmp_path / "tls", ["10.0.0.1", "node-2.example+10.0.0.2"], days=30)
    (three,) = make_certificates(tmp_path / "tls", ["node-3"], days=30)  # later, by the same authority
    assert [folder.name for folder in (one, two, three)] == ["10.0.0.1", "node-2.example", "node-3"]
    for name in ("10.0.0.2", "node-2.example", "127.0.0.1", "localhost"):
        assert handshake(context(two, True), context(three, False), name) == b"welcome"


def test_strangers_other_addresses_and_nobody_are_refused(tmp_path: Path):
    (node,) = make_certificates(tmp_path / "tls", ["10.0.0.1"], days=30)
    (stranger,) = make_certificates(tmp_path / "elsewhere", ["10.0.0.1"], days=30)
    nobody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    nobody.load_verify_locations(node / "ca.crt")
    foreign = context(stranger, False)
    foreign.load_verify_locations(node / "ca.crt")  # it believes the node, but the node must not believe it
    for client, name in (
        (context(stranger, False), "10.0.0.1"),
        (context(node, False), "10.0.0.9"),
        (nobody, "10.0.0.1"),
        (foreign, "10.0.0.1"),
    ):
        assert refused(context(node, True), client, name)
    assert not refused(context(node, True), context(node, False), "10.0.0.1")


def test_keys_are_for_their_owner_and_ray_finds_the_files(tmp_path: Path):
    (node,) = make_certificates(tmp_path / "tls", ["10.0.0.1"], days=30)
    for key in (tmp_path / "tls" / "ca.key", node / "node.key"):
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
    pairs = [shlex.split(line)[1].split("=", 1) for line in (node / "ray.env").read_text().splitlines()]
    names = {"RAY_USE_TLS", "RAY_TLS_SERVER_CERT", "RAY_TLS_SERVER_KEY", "RAY_TLS_CA_CERT"}
    assert {name for name, _ in pairs} == names
    assert all(Path(value).is_file() for name, value in pairs if name != "RAY_USE_TLS")
    (placed,) = make_certificates(tmp_path / "tls", ["10.0.0.2"], days=30, place="/etc/tls")
    assert "RAY_TLS_CA_CERT='/etc/tls/ca.crt'" in (placed / "ray.env").read_text()


def test_bad_requests_are_refused(tmp_path: Path):
    for hosts, days in (([], 30), (["a"], 0), (["a"], 100_000)):
        with pytest.raises(UsageError, match="--hosts"):
            make_certificates(tmp_path / "tls", hosts, days)
    for host in ("../up", "a b", "-x", "a+", ""):
        with pytest.raises(UsageError, match="neither an address nor a host name"):
            make_certificates(tmp_path / "tls", [host], 30)
    assert not (tmp_path / "tls").exists()
    make_certificates(tmp_path / "tls", ["a"], 30)
    (tmp_path / "tls" / "ca.key").chmod(0o644)
    with pytest.raises(TrustChainError, match="chmod 600"):
        make_certificates(tmp_path / "tls", ["a"], 30)
    (tmp_path / "tls" / "ca.key").unlink()
    with pytest.raises(TrustChainError, match="cannot be read"):
        make_certificates(tmp_path / "tls", ["a"], 30)
