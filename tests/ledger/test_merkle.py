import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.errors import LedgerError
from ledger.merkle import (
    EMPTY_ROOT,
    MerkleLog,
    leaf_hash,
    node_hash,
    verify_consistency,
    verify_inclusion,
)

# The test vectors of the Certificate Transparency code (RFC 6962, same tree as RFC 9162).
LEAVES = [
    bytes.fromhex(text)
    for text in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
INCLUSION = {
    (0, 1): [],
    (0, 8): [
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ],
    (5, 8): [
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ],
    (2, 3): ["fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"],
    (1, 5): [
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    ],
}
CONSISTENCY = {
    (1, 1): [],
    (1, 8): [
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ],
    (6, 8): [
        "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ],
    (2, 5): [
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    ],
}


def build(leaves):
    log = MerkleLog()
    for leaf in leaves:
        log.append(leaf_hash(leaf))
    return log


def numbered(count):
    return [str(number).encode() for number in range(count)]


# A second implementation, word for word from RFC 9162, section 2.1.


def mth(leaves):
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return hashlib.sha256(b"\x00" + leaves[0]).digest()
    k = split(len(leaves))
    return hashlib.sha256(b"\x01" + mth(leaves[:k]) + mth(leaves[k:])).digest()


def split(n):
    k = 1
    while 2 * k < n:
        k *= 2
    return k


def path(m, leaves):
    if len(leaves) == 1:
        return []
    k = split(len(leaves))
    if m < k:
        return [*path(m, leaves[:k]), mth(leaves[k:])]
    return [*path(m - k, leaves[k:]), mth(leaves[:k])]


def subproof(m, leaves, whole):
    if m == len(leaves):
        return [] if whole else [mth(leaves)]
    k = split(len(leaves))
    if m <= k:
        return [*subproof(m, leaves[:k], whole), mth(leaves[k:])]
    return [*subproof(m - k, leaves[k:], False), mth(leaves[:k])]


def test_known_roots_and_proofs():
    log = build(LEAVES)
    assert log.root(0) == EMPTY_ROOT
    assert [log.root(size).hex() for size in range(1, 9)] == ROOTS
    for (index, size), proof in INCLUSION.items():
        assert [part.hex() for part in log.inclusion_proof(index, size)] == proof
    for (size1, size2), proof in CONSISTENCY.items():
        assert [part.hex() for part in log.consistency_proof(size1, size2)] == proof


def test_all_small_trees_agree_with_the_text_of_the_rfc():
    leaves = numbered(33)
    log = build(leaves)
    for size in range(34):
        root = mth(leaves[:size])
        assert log.root(size) == root
        for index in range(size):
            proof = log.inclusion_proof(index, size)
            assert proof == path(index, leaves[:size])
            verify_inclusion(leaf_hash(leaves[index]), index, size, proof, root)
        for smaller in range(size + 1):
            proof = log.consistency_proof(smaller, size)
            assert proof == (subproof(smaller, leaves[:size], True) if smaller else [])
            verify_consistency(smaller, mth(leaves[:smaller]), size, root, proof)


@pytest.mark.slow
@given(st.integers(1, 300), st.data())
def test_proofs_hold_and_only_where_they_belong(size, data):
    leaves = numbered(size)
    log, root = build(leaves), mth(leaves)
    index = data.draw(st.integers(0, size - 1))
    proof = log.inclusion_proof(index)
    verify_inclusion(leaf_hash(leaves[index]), index, size, proof, root)

    wrong = [
        (leaf_hash(b"other"), index, size, proof, root),
        (leaf_hash(leaves[index]), index, size, [*proof, bytes(32)], root),
        (leaf_hash(leaves[index]), index, size, proof, bytes(32)),
        (leaf_hash(leaves[index]), size, size, proof, root),
    ]
    if proof:
        at = data.draw(st.integers(0, len(proof) - 1))
        changed = [bytes([part[0] ^ 1]) + part[1:] if i == at else part for i, part in enumerate(proof)]
        wrong.append((leaf_hash(leaves[index]), index, size, changed, root))
        wrong.append((leaf_hash(leaves[index]), index, size, proof[:-1], root))
    if size > 1:
        elsewhere = (index + data.draw(st.integers(1, size - 1))) % size
        wrong.append((leaf_hash(leaves[index]), elsewhere, size, proof, root))
    for arguments in wrong:
        with pytest.raises(LedgerError, match="inclusion proof"):
            verify_inclusion(*arguments)


@given(st.integers(1, 300), st.data())
def test_consistency_holds_only_for_extensions(size, data):
    leaves = numbered(size)
    log = build(leaves)
    smaller = data.draw(st.integers(1, size))
    proof = log.consistency_proof(smaller)
    good = (smaller, log.root(smaller), size, log.root(), proof)
    verify_consistency(*good)

    other = build([*leaves[: smaller - 1], b"other", *leaves[smaller:]])
    wrong = [
        (smaller, other.root(smaller), size, log.root(), proof),
        (smaller, log.root(smaller), size, other.root(), proof),
        (smaller, other.root(smaller), size, log.root(), other.consistency_proof(smaller)),
        (smaller, log.root(smaller), size, log.root(), [*proof, bytes(32)]),
        (size + 1, log.root(smaller), size, log.root(), proof),
    ]
    if proof:
        wrong.append((smaller, log.root(smaller), size, log.root(), proof[:-1]))
        wrong.append((smaller, log.root(smaller), size, log.root(), []))
    for arguments in wrong:
        with pytest.raises(LedgerError, match="consistency proof"):
            verify_consistency(*arguments)


def test_appending_tells_the_new_subtrees():
    log = MerkleLog()
    made = [entry for number in range(11) for entry in log.append(leaf_hash(str(number).encode()))]
    assert sorted(made) == sorted(log.nodes())
    assert len(made) == 11 + 5 + 2 + 1
    assert log.node(1, 0) == node_hash(log.node(0, 0), log.node(0, 1))


def test_beyond_the_log():
    log = build(numbered(3))
    for call in (
        lambda: log.root(4),
        lambda: log.root(-1),
        lambda: log.inclusion_proof(3),
        lambda: log.inclusion_proof(-1),
        lambda: log.inclusion_proof(0, 4),
        lambda: log.consistency_proof(4),
        lambda: log.consistency_proof(1, 4),
    ):
        with pytest.raises(LedgerError):
            call()


def test_a_tree_made_at_once_is_the_one_made_leaf_by_leaf():
    leaves = [leaf_hash(bytes([number])) for number in range(70)]
    for size in range(71):
        log = MerkleLog()
        for leaf in leaves[:size]:
            log.append(leaf)
        made = MerkleLog.of(leaves[:size])
        assert list(made.nodes()) == list(log.nodes())
        made.append(leaves[0])
        log.append(leaves[0])
        assert (made.size, made.root()) == (log.size, log.root())
