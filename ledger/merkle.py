"""RFC 9162 Merkle tree: roots, inclusion and consistency proofs, in O(log n) each.

Every hash of a complete subtree is kept: ``node(level, index)`` covers the leaves
``[index * 2**level, (index + 1) * 2**level)``. The functions take that lookup, so that the tree may lie in
memory (:class:`MerkleLog`) or in a database.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence

from ledger.errors import LedgerError

Node = Callable[[int, int], bytes]
"""Hash of the complete subtree at (level, index)."""

EMPTY_ROOT = hashlib.sha256(b"").digest()
"""Root of a tree without leaves (RFC 9162, 2.1.1)."""


def leaf_hash(data: bytes) -> bytes:
    """Hash of a leaf: SHA-256 of 0x00 and the data (RFC 9162, 2.1.1)."""
    return hashlib.sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Hash of an inner node: SHA-256 of 0x01 and both children (RFC 9162, 2.1.1)."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def new_nodes(node: Node, size: int, leaf: bytes) -> list[tuple[int, int, bytes]]:
    """Complete subtrees that appear when a leaf hash is appended to a tree of ``size`` leaves.

    Returns
    -------
    list of (level, index, hash)
        From the leaf upwards; two on average.
    """
    made = [(0, size, leaf)]
    level, index, digest = 0, size, leaf
    while index & 1:
        digest = node_hash(node(level, index - 1), digest)
        level, index = level + 1, index >> 1
        made.append((level, index, digest))
    return made


def _subtree(node: Node, begin: int, end: int) -> bytes:
    """Root of the leaves [begin, end), where ``begin`` is a multiple of the span's power of two."""
    digest = None
    # The span is a row of complete subtrees, largest first; they fold from the right.
    while begin < end:
        level = (end & -end).bit_length() - 1
        while end - (1 << level) < begin:
            level -= 1
        end -= 1 << level
        part = node(level, end >> level)
        digest = part if digest is None else node_hash(part, digest)
    return EMPTY_ROOT if digest is None else digest


def root_of(node: Node, size: int) -> bytes:
    """Root of the first ``size`` leaves (RFC 9162, 2.1.1)."""
    return _subtree(node, 0, size)


def inclusion_path(node: Node, index: int, size: int) -> list[bytes]:
    """Inclusion proof of leaf ``index`` in the tree of ``size`` leaves (RFC 9162, 2.1.3.1).

    Raises
    ------
    LedgerError
        No such leaf.
    """
    if not 0 <= index < size:
        raise LedgerError(f"inclusion proof: there is no leaf {index} in a log of {size}")
    path: list[bytes] = []
    begin, end = 0, size
    while end - begin > 1:
        middle = begin + _split(end - begin)
        if index < middle:
            path.append(_subtree(node, middle, end))
            end = middle
        else:
            path.append(_subtree(node, begin, middle))
            begin = middle
    return path[::-1]


def consistency_path(node: Node, size1: int, size2: int) -> list[bytes]:
    """Proof that the tree of ``size1`` leaves is the beginning of that of ``size2`` (RFC 9162, 2.1.4.1).

    Raises
    ------
    LedgerError
        Unless ``0 <= size1 <= size2``.
    """
    if not 0 <= size1 <= size2:
        raise LedgerError(f"consistency proof: {size1} is not within 0 and {size2}")
    if size1 in (0, size2):
        return []
    path: list[bytes] = []
    begin, end, whole = 0, size2, True
    while size1 != end:
        middle = begin + _split(end - begin)
        if size1 <= middle:
            path.append(_subtree(node, middle, end))
            end = middle
        else:
            path.append(_subtree(node, begin, middle))
            begin, whole = middle, False
    if not whole:
        path.append(_subtree(node, begin, end))
    return path[::-1]


def _split(count: int) -> int:
    """Largest power of two below ``count``."""
    return 1 << ((count - 1).bit_length() - 1)


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> None:
    """Check an inclusion proof (RFC 9162, 2.1.3.2).

    Parameters
    ----------
    leaf
        Hash of the leaf, as :func:`leaf_hash`.
    index, size
        Its position, and the number of leaves under ``root``.

    Raises
    ------
    LedgerError
        The proof does not lead to the root.
    """
    if not 0 <= index < size:
        raise LedgerError(f"inclusion proof: there is no leaf {index} in a log of {size}")
    position, last, digest = index, size - 1, leaf
    for sibling in proof:
        if last == 0:
            raise LedgerError(f"inclusion proof of leaf {index}: too long for a log of {size}")
        if position & 1 or position == last:
            digest = node_hash(sibling, digest)
            while not position & 1 and position:
                position, last = position >> 1, last >> 1
        else:
            digest = node_hash(digest, sibling)
        position, last = position >> 1, last >> 1
    if last != 0 or digest != root:
        raise LedgerError(f"inclusion proof of leaf {index}: does not lead to the root of {size} leaves")


def verify_consistency(size1: int, root1: bytes, size2: int, root2: bytes, proof: Sequence[bytes]) -> None:
    """Check a consistency proof (RFC 9162, 2.1.4.2); from an empty tree the proof is empty.

    Raises
    ------
    LedgerError
        The second tree does not extend the first.
    """
    wrong = LedgerError(f"consistency proof: the log of {size2} does not extend the log of {size1}")
    if not 0 <= size1 <= size2:
        raise LedgerError(f"consistency proof: {size1} is not within 0 and {size2}")
    if size1 in (0, size2):
        if proof or root1 != (EMPTY_ROOT if size1 == 0 else root2):
            raise wrong
        return
    path = [root1, *proof] if size1 & (size1 - 1) == 0 else proof
    if consistency_roots(size1, size2, path) != (root1, root2):
        raise wrong


def consistency_roots(size1: int, size2: int, path: Sequence[bytes]) -> tuple[bytes, bytes]:
    """Both roots to which a consistency proof leads (RFC 9162, 2.1.4.2).

    Where the second is the root of a tree, the first is that of its first ``size1`` leaves, whatever else was said
    of them: so a proof that leads to one signed root and past the other shows that the two do not belong together.

    Parameters
    ----------
    size1, size2
        ``0 < size1 < size2``.
    path
        The proof; where ``size1`` is a power of two, the root of that subtree, which the RFC leaves out, before it.

    Raises
    ------
    LedgerError
        The path has not the length that these sizes need.
    """
    wrong = LedgerError(f"consistency proof: {len(path)} hashes do not lead from {size1} to {size2} leaves")
    if not path:
        raise wrong
    first, second = size1 - 1, size2 - 1
    while first & 1:
        first, second = first >> 1, second >> 1
    digest1 = digest2 = path[0]
    for sibling in path[1:]:
        if second == 0:
            raise wrong
        if first & 1 or first == second:
            digest1, digest2 = node_hash(sibling, digest1), node_hash(sibling, digest2)
            while not first & 1 and first:
                first, second = first >> 1, second >> 1
        else:
            digest2 = node_hash(digest2, sibling)
        first, second = first >> 1, second >> 1
    if second != 0:
        raise wrong
    return digest1, digest2


class MerkleLog:
    """A Merkle tree in memory: 64 bytes a leaf."""

    def __init__(self) -> None:
        self._levels: list[bytearray] = [bytearray()]
        self.size = 0

    def node(self, level: int, index: int) -> bytes:
        """Hash of a complete subtree."""
        return bytes(self._levels[level][32 * index : 32 * index + 32])

    def nodes(self) -> Iterator[tuple[int, int, bytes]]:
        """All complete subtrees: level, index, hash."""
        for level, hashes in enumerate(self._levels):
            for index in range(len(hashes) // 32):
                yield level, index, self.node(level, index)

    def append(self, leaf: bytes) -> list[tuple[int, int, bytes]]:
        """Append a leaf hash; return the (level, index, hash) of the complete subtrees that it made."""
        made = new_nodes(self.node, self.size, leaf)
        for level, _, digest in made:
            if level == len(self._levels):
                self._levels.append(bytearray())
            self._levels[level] += digest
        self.size += 1
        return made

    @classmethod
    def of(cls, leaves: Sequence[bytes]) -> "MerkleLog":
        """The tree of these leaf hashes, as :meth:`append` makes it one by one, several times as fast."""
        log = cls()
        log.size = len(leaves)
        level: Sequence[bytes] = leaves
        log._levels = [bytearray(b"".join(level))]
        while len(level) > 1:
            level = [node_hash(a, b) for a, b in zip(level[::2], level[1::2], strict=False)]
            log._levels.append(bytearray(b"".join(level)))
        return log

    def root(self, size: int | None = None) -> bytes:
        """Root of the first ``size`` leaves (default: all). Raises LedgerError beyond the log."""
        size = self.size if size is None else size
        if not 0 <= size <= self.size:
            raise LedgerError(f"root: the log has {self.size} leaves, not {size}")
        return root_of(self.node, size)

    def inclusion_proof(self, index: int, size: int | None = None) -> list[bytes]:
        """Inclusion proof of leaf ``index`` in the first ``size`` leaves (default: all)."""
        return inclusion_path(self.node, index, self._known(size))

    def consistency_proof(self, size1: int, size2: int | None = None) -> list[bytes]:
        """Proof that the first ``size1`` leaves are the beginning of ``size2`` (default: all)."""
        return consistency_path(self.node, size1, self._known(size2))

    def _known(self, size: int | None) -> int:
        size = self.size if size is None else size
        if size > self.size:
            raise LedgerError(f"proof: the log has {self.size} leaves, not {size}")
        return size
