"""Manifest of a shard: a sparse Merkle tree of the commitments to its records.

Format
------
A set of commitments (256-bit keys) is a binary tree by their bits, from the highest down, in which a subtree of one key
is that key's leaf, at whatever depth::

    hash(no key)  = 32 zero bytes
    hash(one key) = SHA-256("trustchain.manifest.leaf.v1\\n" || key)
    hash(more)    = SHA-256("trustchain.manifest.node.v1\\n" || hash(keys with bit 0) || hash(keys with bit 1))

So the root is a function of the set alone, adding or removing a key changes about log2(n) hashes, and along a key's
bits every root has exactly one end: that key's leaf (it is present), another key's leaf, or nothing (it is absent).

A **proof** is the part of the tree that the keys in question pass through, in preorder: ``N`` an inner node, followed
by its two subtrees; ``E`` an empty subtree; ``L`` and 64 hex digits a key's leaf; ``H`` and 64 hex digits the hash of a
subtree through which none of the keys passes. Empty siblings take one character. The same proof serves for presence,
absence, and **deletion**: taking the keys out of the partial tree gives the new root, with every other subtree the same
on both sides, so that nothing else was added or removed. Where a deletion leaves one subtree alone, the proof must show
whether that is a leaf, which moves up, or an inner node, which stays.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

from ledger.canonical import is_digest
from ledger.errors import LedgerError

LEAF_TAG = b"trustchain.manifest.leaf.v1\n"
NODE_TAG = b"trustchain.manifest.node.v1\n"

EMPTY = bytes(32)
"""Hash of a tree without keys."""

DEPTH = 256

_Inner: TypeAlias = "tuple[bytes, _Tree, _Tree]"
_Tree: TypeAlias = "bytes | _Inner | None"
"""The key of a leaf, an inner node (hash, both subtrees), or nothing. Never changed, so that versions share parts."""


def leaf_hash(key: bytes) -> bytes:
    """Hash of a subtree that holds one key."""
    return hashlib.sha256(LEAF_TAG + key).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Hash of a subtree that holds more keys than one."""
    return hashlib.sha256(NODE_TAG + left + right).digest()


def bit(key: bytes, depth: int) -> int:
    """Bit of a key at a depth: 0 is the highest of the first byte."""
    return key[depth >> 3] >> (7 - (depth & 7)) & 1


def key_of(commitment: str) -> bytes:
    """Key of a commitment. Raises LedgerError unless it is 64 lower-case hex digits."""
    if not is_digest(commitment):
        raise LedgerError(f"manifest: {str(commitment)[:80]!r} is not a commitment (64 hex digits)")
    return bytes.fromhex(commitment)


@dataclass(frozen=True)
class ManifestTree:
    """The commitments of a shard. Changes give a new tree; the old one stays as it is.

    Attributes
    ----------
    size
        Number of commitments.
    """

    _tree: _Tree = None
    size: int = 0

    @classmethod
    def of(cls, commitments: Iterable[str]) -> "ManifestTree":
        """The tree of these commitments, in any order; one that comes twice counts once. Raises LedgerError."""
        keys = sorted({key_of(commitment) for commitment in commitments})
        return cls(_build(keys, 0, len(keys), 0), len(keys))

    @property
    def root(self) -> str:
        """Root, 64 hex digits."""
        return _hash(self._tree).hex()

    def __contains__(self, commitment: str) -> bool:
        key, tree = key_of(commitment), self._tree
        depth = 0
        while isinstance(tree, tuple):
            tree = tree[1 + bit(key, depth)]
            depth += 1
        return tree == key

    def __iter__(self) -> Iterator[str]:
        """Commitments, in order."""
        waiting: list[_Tree] = [self._tree]
        while waiting:
            tree = waiting.pop()
            if isinstance(tree, tuple):
                waiting += [tree[2], tree[1]]
            elif tree is not None:
                yield tree.hex()

    def added(self, commitment: str) -> "ManifestTree":
        """The tree with one more commitment; the same where it is present. Raises LedgerError."""
        if commitment in self:
            return self
        return ManifestTree(_add(self._tree, key_of(commitment), 0), self.size + 1)

    def removed(self, commitments: Iterable[str]) -> "ManifestTree":
        """The tree without these commitments.

        Raises
        ------
        LedgerError
            One of them is not in it, or is no commitment.
        """
        keys = self._keys(commitments)
        for key in keys:
            if key.hex() not in self:
                raise LedgerError(f"manifest: commitment {key.hex()} is not in the shard: was it removed before?")
        return ManifestTree(_remove(self._tree, keys, 0), self.size - len(keys))

    def proof(self, commitments: Iterable[str]) -> str:
        """Proof of which of these commitments are present, for :func:`~ledger.manifest_proof.presence`."""
        out: list[str] = []
        _prove(self._tree, self._keys(commitments), 0, out)
        return "".join(out)

    def deletion_proof(self, commitments: Iterable[str]) -> str:
        """Proof for :func:`~ledger.manifest_proof.deletion` that :meth:`removed` takes out these, and nothing else.

        Raises
        ------
        LedgerError
            As :meth:`removed`.
        """
        keys = self._keys(commitments)
        self.removed(commitments)
        out: list[str] = []
        _prove_deletion(self._tree, keys, 0, out)
        return "".join(out)

    @staticmethod
    def _keys(commitments: Iterable[str]) -> list[bytes]:
        return sorted({key_of(commitment) for commitment in commitments})


def _hash(tree: _Tree) -> bytes:
    if tree is None:
        return EMPTY
    return tree[0] if isinstance(tree, tuple) else leaf_hash(tree)


def joined(left: _Tree, right: _Tree) -> _Tree:
    """The tree of two subtrees: a lone leaf moves up, whatever else is there makes a node."""
    if left is None and not isinstance(right, tuple):
        return right
    if right is None and not isinstance(left, tuple):
        return left
    return (node_hash(_hash(left), _hash(right)), left, right)


def split(keys: list[bytes], begin: int, end: int, depth: int) -> int:
    """Where, in sorted keys that agree before a depth, those with bit 1 begin."""
    while begin < end:
        middle = (begin + end) >> 1
        if bit(keys[middle], depth):
            end = middle
        else:
            begin = middle + 1
    return begin


def _build(keys: list[bytes], begin: int, end: int, depth: int) -> _Tree:
    if end - begin <= 1:
        return keys[begin] if begin < end else None
    middle = split(keys, begin, end, depth)
    return joined(_build(keys, begin, middle, depth + 1), _build(keys, middle, end, depth + 1))


def _add(tree: _Tree, key: bytes, depth: int) -> _Tree:
    if tree is None:
        return key
    if not isinstance(tree, tuple):
        return _build(sorted((tree, key)), 0, 2, depth)
    if bit(key, depth):
        return joined(tree[1], _add(tree[2], key, depth + 1))
    return joined(_add(tree[1], key, depth + 1), tree[2])


def _remove(tree: _Tree, keys: list[bytes], depth: int) -> _Tree:
    """The tree without these keys, all of which are in it."""
    if not keys:
        return tree
    if not isinstance(tree, tuple):
        return None
    middle = split(keys, 0, len(keys), depth)
    return joined(_remove(tree[1], keys[:middle], depth + 1), _remove(tree[2], keys[middle:], depth + 1))


def _prove(tree: _Tree, keys: list[bytes], depth: int, out: list[str]) -> None:
    if tree is None:
        out.append("E")
    elif not keys:
        out.append(f"H{_hash(tree).hex()}")
    elif not isinstance(tree, tuple):
        out.append(f"L{tree.hex()}")
    else:
        out.append("N")
        middle = split(keys, 0, len(keys), depth)
        _prove(tree[1], keys[:middle], depth + 1, out)
        _prove(tree[2], keys[middle:], depth + 1, out)


def _prove_deletion(tree: _Tree, keys: list[bytes], depth: int, out: list[str]) -> _Tree:
    """Write the proof; return the tree without the keys."""
    if not isinstance(tree, tuple) or not keys:
        _prove(tree, keys, depth, out)
        return None if keys else tree
    out.append("N")
    middle = split(keys, 0, len(keys), depth)
    parts: list[tuple[list[str], _Tree]] = []
    for half, below in ((keys[:middle], tree[1]), (keys[middle:], tree[2])):
        written: list[str] = []
        parts.append((written, _prove_deletion(below, half, depth + 1, written)))
    (left_out, left), (right_out, right) = parts
    if left is None and not keys[middle:]:
        right_out[:] = _opened(right)
    elif right is None and not keys[:middle]:
        left_out[:] = _opened(left)
    out += left_out + right_out
    return joined(left, right)


def _opened(tree: _Tree) -> list[str]:
    """An untouched subtree, shown so far that it is seen to be a leaf, an inner node or empty."""
    if not isinstance(tree, tuple):
        return ["E" if tree is None else f"L{tree.hex()}"]
    return ["N", *("E" if below is None else f"H{_hash(below).hex()}" for below in tree[1:])]
