"""The run's key: every random choice is derived from it by HMAC-SHA256, never from a global generator."""

import hashlib
import hmac

import numpy as np


def derive(key: bytes | str, *path: object) -> bytes:
    """32 bytes for one purpose, e.g. ``derive(run_key, "sampling", "hospital_a", 0)``."""
    secret = key.encode() if isinstance(key, str) else key
    message = "\x00".join(str(part) for part in path).encode()
    return hmac.new(secret, message, hashlib.sha256).digest()


def generator(key: bytes | str, *path: object) -> np.random.Generator:
    """A counter-based generator (Philox) for one purpose."""
    return np.random.Generator(np.random.Philox(key=int.from_bytes(derive(key, *path)[:16], "big")))


def torch_seed(key: bytes | str, *path: object) -> int:
    """A 63-bit seed for a `torch.Generator`."""
    return int.from_bytes(derive(key, *path)[:8], "big") >> 1
