"""Shamir's secret sharing (How to Share a Secret, 1979) over the prime field of order 2**256 + 297.

Any `threshold` shares give the secret back; fewer are uniform and say nothing about it. The field is the smallest
that holds every 32-byte secret. Python's integers do not run in constant time: who can time a member's process to
the microsecond is outside the threat model.
"""

from collections.abc import Callable, Mapping, Sequence

from trustchain_ray.errors import TrustChainError

PRIME = 2**256 + 297
SECRET_BYTES = 32
SHARE_BYTES = 33

Entropy = Callable[[int], bytes]
"""Gives so many random bytes, like `secrets.token_bytes`."""


def split(secret: bytes, points: Sequence[int], threshold: int, entropy: Entropy) -> dict[int, bytes]:
    """Shares of a secret: values at `points` of a random polynomial of degree ``threshold - 1``.

    Parameters
    ----------
    secret : 32 bytes, the polynomial's value at 0.
    points : different positive integers below the field's order, one a holder.

    Returns
    -------
    Shares of 33 bytes (big-endian field elements), by point.
    """
    if len(secret) != SECRET_BYTES or not 1 <= threshold <= len(points):
        raise TrustChainError(f"{len(secret)} bytes cannot be split into {len(points)} shares, {threshold} sufficing")
    coefficients = [int.from_bytes(secret, "big"), *(_element(entropy) for _ in range(threshold - 1))]
    shares = {}
    for point in points:
        value = 0
        for coefficient in reversed(coefficients):
            value = (value * point + coefficient) % PRIME
        shares[point] = value.to_bytes(SHARE_BYTES, "big")
    return shares


def weights_at_zero(points: Sequence[int]) -> list[int]:
    """Lagrange's weights: a polynomial's value at 0 is their product with its values at `points`."""
    weights = []
    for i in points:
        numerator = denominator = 1
        for j in points:
            if j != i:
                numerator = numerator * j % PRIME
                denominator = denominator * (j - i) % PRIME
        weights.append(numerator * pow(denominator, -1, PRIME) % PRIME)
    return weights


def combine(shares: Mapping[int, bytes]) -> bytes | None:
    """The secret of exactly as many shares as the threshold, by point.

    Returns
    -------
    32 bytes, or None if these shares are of no 32-byte secret. Wrong shares can also give a wrong secret: the caller
    compares it with what was published of it.
    """
    values = [int.from_bytes(share, "big") for share in shares.values()]
    terms = zip(weights_at_zero(list(shares)), values, strict=True)
    secret = sum(weight * value for weight, value in terms) % PRIME
    return secret.to_bytes(SECRET_BYTES, "big") if secret < 2 ** (8 * SECRET_BYTES) else None


def _element(entropy: Entropy) -> int:
    """A uniform element of the field: 64 bits more than its order needs leave a bias below 2**-63."""
    return int.from_bytes(entropy(SHARE_BYTES + 7), "big") % PRIME
