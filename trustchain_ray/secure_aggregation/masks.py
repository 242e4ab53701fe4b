"""Key agreement, the mask stream, and the encryption of shares between two members.

X25519 (RFC 7748) -> HKDF-SHA256 (RFC 5869) -> a key that is used for one thing in one session. A mask is the key's
AES-256-CTR stream read as little-endian 64-bit numbers: with AES instructions it is half as fast again as ChaCha20.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from ledger.canonical import canonical_json

_BLOCK = 1 << 15  # values of a block: it and its key stream stay in the second-level cache
_PER_CIPHER_BLOCK = 2  # 64-bit values of one AES block
_ZEROS = bytes(8 * _BLOCK)
_NONCE = bytes(12)  # each key encrypts one message: a constant nonce is never repeated under a key

Mask = tuple[bytes, int]
"""The 32-byte key of a mask stream, and +1 to add it or -1 to take it away."""


def public_bytes(private: X25519PrivateKey) -> bytes:
    """The 32 bytes of a key pair's public half."""
    return private.public_key().public_bytes_raw()


def agree(private: X25519PrivateKey, public: bytes) -> bytes | None:
    """The 32 bytes that two key pairs share, or None if `public` is a point of low order (RFC 7748, section 6.1)."""
    try:
        return private.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:
        return None


def derive_key(secret: bytes, context: str, purpose: str, names: Sequence[str]) -> bytes:
    """32 bytes for one purpose (HKDF-SHA256).

    Parameters
    ----------
    secret : 32 bytes: shared by two members, or one member's seed.
    context : digest of the session with all of its public keys: run, cohort, round, attempt, roster, threshold.
    purpose, names : what the key is for, and whose it is; bound to the key together with `context`.
    """
    info = canonical_json({"context": context, "names": list(names), "purpose": f"trustchain.secagg.v1 {purpose}"})
    return HKDF(hashes.SHA256(), 32, None, info).derive(secret)


def pair_mask(secret: bytes, context: str, name: str, peer: str) -> Mask:
    """The mask between `name` and `peer` as `name` applies it: the first by name adds it, the other takes it away."""
    first, second = sorted((name, peer))
    return derive_key(secret, context, "pair mask", (first, second)), 1 if name == first else -1


def self_mask(seed: bytes, context: str, name: str) -> Mask:
    """The mask that a member adds alone, so that a late input stays hidden after its pair masks are known."""
    return derive_key(seed, context, "self mask", (name,)), 1


def apply_masks(values: np.ndarray, masks: Sequence[Mask], threads: int = 1) -> None:
    """Add mask streams to `values` in place, mod 2**64.

    Parameters
    ----------
    values : uint64 array ``(n,)``, contiguous.
    threads : each works on a part of the vector; 0: all cores for a large one. The result does not depend on it.
    """
    if threads == 0:
        threads = min(os.cpu_count() or 1, max(1, values.size * len(masks) // (64 * _BLOCK)))
    step = -(-values.size // (threads * _PER_CIPHER_BLOCK)) * _PER_CIPHER_BLOCK
    ranges = [(start, min(start + step, values.size)) for start in range(0, values.size, max(step, 1))]
    if len(ranges) < 2:
        for start, end in ranges:
            _apply(values, masks, start, end)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(lambda part: _apply(values, masks, *part), ranges))


def _apply(values: np.ndarray, masks: Sequence[Mask], start: int, end: int) -> None:
    """Apply the masks to ``values[start:end]``; `start` is even: an AES block holds two values."""
    counter = (start // _PER_CIPHER_BLOCK).to_bytes(16, "big")
    streams = [(Cipher(AES(key), CTR(counter)).encryptor(), sign) for key, sign in masks]
    buffer = bytearray(len(_ZEROS) + 15)  # 15: what update_into may ask for beyond the input's length
    stream = np.frombuffer(buffer, "<u8", _BLOCK)
    for begin in range(start, end, _BLOCK):
        part = values[begin : min(begin + _BLOCK, end)]
        zeros = memoryview(_ZEROS)[: part.nbytes]
        for cipher, sign in streams:
            cipher.update_into(zeros, buffer)
            (np.add if sign > 0 else np.subtract)(part, stream[: part.size], out=part)


def encrypt(key: bytes, shares: bytes, context: str) -> bytes:
    """Encrypt the shares of one owner for one holder (ChaCha20-Poly1305); `key` is used for nothing else."""
    return ChaCha20Poly1305(key).encrypt(_NONCE, shares, context.encode())


def decrypt(key: bytes, ciphertext: bytes, context: str) -> bytes | None:
    """The shares, or None if they were not encrypted under this key for this session, or were changed."""
    try:
        return ChaCha20Poly1305(key).decrypt(_NONCE, ciphertext, context.encode())
    except InvalidTag:
        return None
