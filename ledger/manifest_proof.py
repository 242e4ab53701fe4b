"""Check proofs of presence, absence and deletion in the manifest of a shard (:mod:`ledger.manifest_tree`)."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from ledger.canonical import is_digest
from ledger.errors import LedgerError
from ledger.manifest_tree import DEPTH, EMPTY, bit, key_of, leaf_hash, node_hash, split

EMPTY_ROOT = EMPTY.hex()
"""Root of a shard without records."""

MAX_PROOF_CHARS = 1 << 25
"""Longest proof that is read; 100,000 deletions in a shard of a million take about half of it."""

_TOKEN = re.compile(r"[NE]|[HL][0-9a-f]{64}")


@dataclass(frozen=True)
class _Side:
    """A subtree before or after the deletion: its hash, and the key where it is a leaf; ``open``: the kind is known."""

    hash: bytes
    leaf: bytes | None = None
    open: bool = True


_NOTHING = _Side(EMPTY)


def presence(proof: str, commitments: Iterable[str], root: str) -> dict[str, bool]:
    """Which commitments a shard holds.

    Parameters
    ----------
    proof
        Of :meth:`~ledger.manifest_tree.ManifestTree.proof`.
    commitments
        In any order.
    root
        Of the shard, 64 hex digits.

    Returns
    -------
    dict
        True where the commitment is present, False where it is absent.

    Raises
    ------
    LedgerError
        The proof is malformed, does not cover one of them, or leads to another root.
    """
    walk = _Walk(proof, commitments, delete=False)
    walk.finish(root)
    return {key.hex(): key in walk.present for key in walk.keys}


def deletion(proof: str, commitments: Iterable[str], old_root: str, new_root: str) -> None:
    """Check that the shard of the new root is that of the old one without these commitments, and nothing else changed.

    Parameters
    ----------
    proof
        Of :meth:`~ledger.manifest_tree.ManifestTree.deletion_proof`.
    commitments
        All that were removed, in any order.
    old_root, new_root
        64 hex digits.

    Raises
    ------
    LedgerError
        The proof is malformed, one of them is not under the old root, or a root is another one.
    """
    walk = _Walk(proof, commitments, delete=True)
    after = walk.finish(old_root)
    for key in walk.keys:
        if key not in walk.present:
            raise LedgerError(f"manifest proof: commitment {key.hex()} is not under the old root {old_root[:16]}")
    if after.hash.hex() != new_root:
        raise LedgerError(f"manifest proof: without these commitments the root is not {new_root[:16]}")


class _Walk:
    """One pass over a proof: both roots at once."""

    def __init__(self, proof: str, commitments: Iterable[str], *, delete: bool) -> None:
        if not isinstance(proof, str) or len(proof) > MAX_PROOF_CHARS:
            raise LedgerError(f"manifest proof: is not a text of at most {MAX_PROOF_CHARS} characters")
        self.keys = sorted({key_of(commitment) for commitment in commitments})
        self.present: set[bytes] = set()
        self._proof, self._place, self._delete = proof, 0, delete

    def finish(self, root: str) -> _Side:
        """Read the whole proof, which must lead to ``root``; the tree after the deletion."""
        if not is_digest(root):
            raise LedgerError("manifest proof: the root is not 64 hex digits")
        before, after = self._subtree(b"", 0, self.keys)
        if self._place != len(self._proof):
            raise LedgerError("manifest proof: more follows after its end")
        if before.hash.hex() != root:
            raise LedgerError(f"manifest proof: does not lead to root {root[:16]}")
        return after

    def _subtree(self, path: bytes, depth: int, keys: list[bytes]) -> tuple[_Side, _Side]:
        """Read a subtree through which these keys pass; ``path``: its bits as bytes of 0 and 1."""
        match = _TOKEN.match(self._proof, self._place)
        if match is None:
            raise LedgerError(f"manifest proof: is cut short or malformed at character {self._place}")
        self._place = match.end()
        token = match[0]
        if token == "E":
            return _NOTHING, _NOTHING
        if token[0] == "H":
            return self._hidden(bytes.fromhex(token[1:]), keys)
        if token[0] == "L":
            return self._leaf(bytes.fromhex(token[1:]), path, keys)
        if depth == DEPTH:
            raise LedgerError("manifest proof: is deeper than a key has bits")
        middle = split(keys, 0, len(keys), depth)
        left, new_left = self._subtree(path + b"\0", depth + 1, keys[:middle])
        right, new_right = self._subtree(path + b"\1", depth + 1, keys[middle:])
        # A tree whose lone leaf has not moved up is not in canonical form: its root is not a function of its keys.
        if (left is _NOTHING and (right is _NOTHING or right.leaf)) or (right is _NOTHING and left.leaf):
            raise LedgerError("manifest proof: shows a tree that is not in canonical form")
        before = _Side(node_hash(left.hash, right.hash))
        return before, before if (left, right) == (new_left, new_right) else _joined(new_left, new_right)

    @staticmethod
    def _hidden(digest: bytes, keys: list[bytes]) -> tuple[_Side, _Side]:
        if keys:
            raise LedgerError(f"manifest proof: does not cover commitment {keys[0].hex()}")
        if digest == EMPTY:
            raise LedgerError("manifest proof: an empty subtree is written as a hash")
        side = _Side(digest, open=False)
        return side, side

    def _leaf(self, key: bytes, path: bytes, keys: list[bytes]) -> tuple[_Side, _Side]:
        if any(bit(key, depth) != step for depth, step in enumerate(path)):
            raise LedgerError(f"manifest proof: the leaf of {key.hex()} is not where its bits lead")
        side = _Side(leaf_hash(key), key)
        if key not in keys:
            return side, side
        self.present.add(key)
        return side, _NOTHING if self._delete else side


def _joined(left: _Side, right: _Side) -> _Side:
    """Subtree after a deletion: a lone leaf moves up, a lone inner node stays."""
    for side, other in ((left, right), (right, left)):
        if side is _NOTHING:
            if not other.open:
                raise LedgerError("manifest proof: hides whether what a deletion leaves alone is a leaf")
            if other is _NOTHING or other.leaf is not None:
                return other
    return _Side(node_hash(left.hash, right.hash))
