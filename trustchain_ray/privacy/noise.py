"""Gaussian noise from a secret of the organization: ChaCha20 streams that nobody without the secret can predict.

A published seed would be no privacy at all: whoever knows the noise subtracts it. Floating-point Gaussians also
give away low bits of what they are added to, since not every float can be drawn (Mironov 2012; 2112.05307 for
Box-Muller). Two things are done about that. Every value is half the sum of four independent draws, so that a
single draw cannot be solved for (2107.10138, section 4.3). And sums are rounded to a grid of powers of two before
the noise, the noise to the same grid: then what can come out does not depend on what went in (:func:`grid`).
It is a rounded, not an exact discrete Gaussian: its tails end beyond eight standard deviations of a draw.
"""

import contextlib
import math
import os
import secrets
import stat
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

from ledger.canonical import fsync_directory, sha256_hex
from ledger.identity import check_name
from trustchain_ray.errors import TrustChainError
from trustchain_ray.keys import derive

SECRET_BYTES = 32
GRID_BITS = 20
_DRAWS = 4
_BLOCK = 1 << 16  # pairs of values that are made at a time


def load_or_create_secret(name: str, directory: Path) -> bytes:
    """The 32 byte noise secret of an organization, made first if there is none.

    Parameters
    ----------
    directory
        The keystore; the file is `<name>.noise` in it, mode 0600.

    Raises
    ------
    TrustChainError
        A symbolic link, a file that others can read or of another length, or it cannot be written.
    """
    path = directory / f"{check_name(name)}.noise"
    try:
        if not path.is_symlink() and not path.exists():
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            _create(path)
        return _load(path)
    except OSError as error:
        reason = "is a symbolic link" if path.is_symlink() else error.strerror
        raise TrustChainError(f"{path}: the noise secret cannot be used: {reason}") from None


def _create(path: Path) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(SECRET_BYTES))
            file.flush()
            os.fsync(file.fileno())
        # A link fails where the name exists: of two processes the first one's secret counts for both.
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        os.unlink(temporary)
    fsync_directory(path.parent)


def _load(path: Path) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode) or mode & 0o077:
            raise TrustChainError(
                f"{path}: the noise secret must be a file that only its owner can read; run: chmod 600 {path}"
            )
        secret = os.read(descriptor, SECRET_BYTES + 1)
    finally:
        os.close(descriptor)
    if len(secret) != SECRET_BYTES:
        raise TrustChainError(
            f"{path}: a noise secret has {SECRET_BYTES} bytes, this file has not; restore it, or remove it to make "
            "a new one (runs that committed to the old one cannot be re-executed then)"
        )
    return secret


def commitment(secret: bytes) -> str:
    """What the run publishes of a noise secret: SHA-256 over a tag and the secret, in hex."""
    return sha256_hex(b"trustchain.noise.v1\n" + secret)


def noise_key(secret: bytes, run: str, member: str, generation: int, base: str) -> bytes:
    """The 32 byte key of the noise of a member's steps from one starting point.

    Parameters
    ----------
    generation
        0 in training, another number for every replay: with equal noise, the difference of the models before and
        after a removal would hold no noise, and give the removed records away.
    base
        Digest of the adapter that the steps start from: a round that is repeated from another one, after a fault,
        draws other noise; repeated from the same one it draws the same, and so reveals nothing more.
    """
    return derive(secret, "noise", run, member, generation, base)


def gaussian(key: bytes, step: int, size: int) -> np.ndarray:
    """Standard normal values of a step, float64 ``(size,)``: a function of key and step alone."""
    stream = Cipher(algorithms.ChaCha20(derive(key, "step", step), bytes(16)), mode=None).encryptor()
    out = np.empty(size)
    for start in range(0, size, 2 * _BLOCK):
        part = out[start : start + 2 * _BLOCK]
        pairs = -(-part.size // 2)
        raw = np.frombuffer(stream.update(bytes(2 * _DRAWS * pairs * 8)), "<u8").reshape(2, _DRAWS, pairs)
        uniform = ((raw >> 11) + 0.5) * 2.0**-53  # 53 bits, never 0
        radius, angle = np.sqrt(-2 * np.log(uniform[0])), 2 * math.pi * uniform[1]
        part[:pairs] = (radius * np.cos(angle)).sum(0) / math.sqrt(_DRAWS)
        part[pairs:] = (radius * np.sin(angle)).sum(0)[: part.size - pairs] / math.sqrt(_DRAWS)
    return out


def grid(deviation: float) -> float:
    """Spacing of the grid for noise of this standard deviation: a power of two, 2**20 to 2**21 of it a deviation."""
    return float(2.0 ** (math.floor(math.log2(deviation)) - GRID_BITS))
