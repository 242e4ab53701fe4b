"""The gRPC connection to a peer: TLS, mutual TLS, made late and made again."""

import contextlib
import os
import queue
import threading
from collections.abc import Iterator

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from ledger.errors import LedgerError
from ledger.fabric import wire
from ledger.fabric.profile import Peer

MAX_MESSAGE_BYTES = 100 * 1024 * 1024
"""Largest message, as peers have it by default."""
GRACE_S = 2.0
"""How long after its deadline a call is given up without gRPC, which loses the end of one now and then (1.85: where a
connection breaks while a call begins)."""


class Connection:
    """Opened at the first use, and again in a process that was forked after it. Safe for threads.

    Parameters
    ----------
    peer
        Where to, and whose certificates to trust.
    client_tls
        PEM certificate and key for mutual TLS.

    Attributes
    ----------
    certificate_hash
        SHA-256 of the client certificate's DER bytes: binds proposals to the TLS connection. Empty without one.
    """

    def __init__(self, peer: Peer, client_tls: tuple[bytes, bytes] | None) -> None:
        self._peer = peer
        self._client_tls = client_tls if peer.ca is not None else None
        self.certificate_hash = _hash(self._client_tls[0]) if self._client_tls else b""
        self._lock = threading.Lock()
        self._channel: grpc.Channel | None = None
        self._pid = 0

    def channel(self) -> grpc.Channel:
        """The open connection. gRPC's threads do not survive a fork: none is open before the first call."""
        with self._lock:
            if self._channel is None or self._pid != os.getpid():
                self._channel, self._pid = self._connect(), os.getpid()
            return self._channel

    def close(self) -> None:
        """Close the connection; a later use opens it again."""
        with self._lock:
            channel, self._channel = self._channel, None
        if channel is not None and self._pid == os.getpid():
            channel.close()

    def _connect(self) -> grpc.Channel:
        options: list[tuple[str, str | int]] = [
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 5_000),
            ("grpc.max_reconnect_backoff_ms", 2_000),
            ("grpc.keepalive_time_ms", 120_000),  # peers refuse less than a minute
            ("grpc.use_local_subchannel_pool", 1),  # another client's failed attempts do not delay this one's
        ]
        if self._peer.ca is None:
            return grpc.insecure_channel(self._peer.address, options)
        if self._peer.hostname:
            options.append(("grpc.ssl_target_name_override", self._peer.hostname))
        certificate, key = self._client_tls or (None, None)
        credentials = grpc.ssl_channel_credentials(self._peer.ca, key, certificate)
        return grpc.secure_channel(self._peer.address, credentials, options)


def responses(stream: grpc.Call) -> Iterator[wire.Message]:
    """Responses of a stream until the call is over, even where its iterator is not told (see :data:`GRACE_S`).

    What is lost at the end comes again with the next stream: the position of the reader has not moved.
    """
    inbox: queue.SimpleQueue[wire.Message] = queue.SimpleQueue()

    def pump() -> None:
        with contextlib.suppress(grpc.RpcError):  # the stream itself tells how it ended
            for response in stream:
                inbox.put(response)
        inbox.put(None)

    threading.Thread(target=pump, name="fabric-events", daemon=True).start()
    while True:
        try:
            response = inbox.get(timeout=GRACE_S)
        except queue.Empty:
            if stream.is_active():
                continue
            return
        if response is None:
            return
        yield response


def _hash(pem: bytes) -> bytes:
    try:
        return x509.load_pem_x509_certificate(pem).fingerprint(hashes.SHA256())
    except ValueError as error:
        raise LedgerError(f"client TLS certificate: not a PEM certificate: {error}") from None
