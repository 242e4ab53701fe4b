import secrets

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger.errors import LedgerError
from ledger.manifest_proof import EMPTY_ROOT, deletion, presence
from ledger.manifest_tree import EMPTY, ManifestTree, bit, leaf_hash, node_hash

# Keys that share long prefixes, and end alike: paths of all lengths up to 256 bits.
KEYS = st.builds(
    lambda start, fill, end: (bytes([start]) + bytes([fill]) * 30 + bytes([end])).hex(),
    st.integers(0, 3), st.sampled_from([0, 255]), st.integers(0, 3),
)  # fmt: skip
SETS = st.sets(KEYS, max_size=14)


def naive_root(keys: list[bytes], depth: int = 0) -> bytes:
    """The definition, word by word."""
    if not keys:
        return EMPTY
    if len(keys) == 1:
        return leaf_hash(keys[0])
    halves = [[key for key in keys if bit(key, depth) == side] for side in (0, 1)]
    return node_hash(naive_root(halves[0], depth + 1), naive_root(halves[1], depth + 1))


def root_of(commitments: set[str]) -> str:
    return naive_root(sorted(bytes.fromhex(commitment) for commitment in commitments)).hex()


def random_tree(count: int) -> tuple[list[str], ManifestTree]:
    names = sorted(secrets.token_hex(32) for _ in range(count))
    return names, ManifestTree.of(names)


@pytest.mark.slow
@given(SETS, st.randoms())
@settings(max_examples=60, deadline=None)
def test_the_root_is_that_of_the_definition_whatever_the_order_of_changes(names, random):
    order = sorted(names)
    random.shuffle(order)
    tree = ManifestTree()
    for name in order:
        tree = tree.added(name).added(name)
    assert tree == ManifestTree.of(order)
    assert tree.root == root_of(names)
    assert list(tree) == sorted(names)
    assert tree.size == len(names)
    gone = set(order[: len(order) // 2])
    assert tree.removed(gone) == ManifestTree.of(names - gone)
    assert tree.root == root_of(names)  # the old one is as it was


@given(SETS, SETS)
@settings(max_examples=60, deadline=None)
def test_one_proof_tells_which_commitments_are_present_and_which_absent(names, asked):
    tree = ManifestTree.of(names)
    assert presence(tree.proof(asked), asked, tree.root) == {name: name in names for name in asked}


@pytest.mark.slow
@given(SETS, st.data())
@settings(max_examples=80, deadline=None)
def test_a_deletion_proof_leads_from_the_old_root_to_the_new_one_and_to_no_other(names, data):
    gone = data.draw(st.sets(st.sampled_from(sorted(names)))) if names else set()
    tree = ManifestTree.of(names)
    new = tree.removed(gone)
    proof = tree.deletion_proof(gone)
    deletion(proof, gone, tree.root, new.root)
    for other in (root_of(names - gone | {secrets.token_hex(32)}), tree.root if gone else EMPTY_ROOT[:-1] + "1"):
        with pytest.raises(LedgerError, match="root"):
            deletion(proof, gone, tree.root, other)
    for kept in sorted(names - gone)[:1]:  # silently taking one more out
        with pytest.raises(LedgerError):
            deletion(proof, gone, tree.root, tree.removed(gone | {kept}).root)


def test_single_deletions_one_after_the_other_lead_where_a_batch_leads():
    names, tree = random_tree(50)
    root = tree.root
    for name in names[10:20]:
        after = tree.removed([name])
        deletion(tree.deletion_proof([name]), [name], tree.root, after.root)
        tree = after
    batch = ManifestTree.of(names)
    deletion(batch.deletion_proof(names[10:20]), names[10:20], root, tree.root)


def test_every_changed_character_of_a_proof_is_found():
    names, tree = random_tree(40)
    gone = names[5:8]
    proof, new = tree.deletion_proof(gone), tree.removed(gone).root
    for place, char in enumerate(proof):
        for other in {"0", "f", "N", "E", "L", "H"} - {char}:
            with pytest.raises(LedgerError):
                deletion(proof[:place] + other + proof[place + 1 :], gone, tree.root, new)


@pytest.mark.parametrize("change", [lambda p: p[:-1], lambda p: p + "E", lambda p: "", lambda p: p.replace("L", "H")])
def test_a_proof_of_another_length_or_form_is_refused(change):
    names, tree = random_tree(9)
    with pytest.raises(LedgerError, match="manifest proof"):
        deletion(change(tree.deletion_proof(names[:1])), names[:1], tree.root, tree.removed(names[:1]).root)


def test_what_was_not_there_cannot_be_deleted():
    names, tree = random_tree(20)
    stranger = secrets.token_hex(32)
    with pytest.raises(LedgerError, match="was it removed before"):
        tree.deletion_proof([stranger])
    with pytest.raises(LedgerError, match="not under the old root"):
        deletion(tree.proof([stranger]), [stranger], tree.root, tree.root)
    with pytest.raises(LedgerError, match="does not cover"):
        presence(tree.proof(names[:1]), names[:2], tree.root)


def test_a_proof_that_hides_a_leaf_which_must_move_up_is_refused():
    a, b = "00" * 32, "01" + "00" * 31
    tree = ManifestTree.of([a, b])
    hidden = tree.deletion_proof([a]).replace(f"L{b}", f"H{leaf_hash(bytes.fromhex(b)).hex()}")
    lie = bytes.fromhex(b)
    root = leaf_hash(lie)
    for _ in range(8):
        root = node_hash(root, EMPTY)  # the leaf left where it was: a root that no set of commitments has
    for claimed in (root.hex(), ManifestTree.of([b]).root):
        with pytest.raises(LedgerError, match="hides"):
            deletion(hidden, [a], tree.root, claimed)


def test_a_leaf_in_a_wrong_place_or_left_alone_below_is_refused():
    a, b, c = ("00" + "11" * 31), ("80" + "11" * 31), ("ff" * 32)
    leaves = {name: leaf_hash(bytes.fromhex(name)) for name in (a, b, c)}
    wrong = node_hash(leaves[c], leaves[b]).hex()  # c stands on the side of bit 0
    with pytest.raises(LedgerError, match="not where its bits lead"):
        presence(f"NL{c}L{b}", [a], wrong)
    alone = node_hash(node_hash(leaves[a], EMPTY), leaves[b]).hex()
    with pytest.raises(LedgerError, match="not in canonical form"):
        presence(f"NNL{a}EL{b}", [a], alone)


def test_an_inner_node_cannot_be_shown_as_a_leaf():
    names, tree = random_tree(2)
    left, right = (leaf_hash(bytes.fromhex(name)) for name in names)
    assert node_hash(left, right) not in (leaf_hash(left + right), leaf_hash(bytes(32)))
    with pytest.raises(LedgerError, match="root"):
        presence(f"L{tree.root}", [names[0]], tree.root)


def test_depth_and_size_of_a_proof_are_limited(monkeypatch):
    a, b = "00" * 32, "00" * 31 + "01"
    tree = ManifestTree.of([a, b])
    assert presence(tree.proof([a]), [a], tree.root) == {a: True}  # 256 levels
    with pytest.raises(LedgerError, match="deeper"):
        presence("N" * 257 + "E" * 258, [a], tree.root)
    monkeypatch.setattr("ledger.manifest_proof.MAX_PROOF_CHARS", 100)
    with pytest.raises(LedgerError, match="at most 100"):
        presence(tree.proof([a]), [a], tree.root)


@pytest.mark.parametrize("name", ["", "00", "G" * 64, "AB" * 32, b"00" * 32, None])
def test_what_is_no_commitment_is_refused(name):
    with pytest.raises(LedgerError, match="not a commitment"):
        ManifestTree.of([name])
    with pytest.raises(LedgerError, match="not a commitment"):
        presence("E", [name], EMPTY_ROOT)


@pytest.mark.slow
def test_a_hundred_thousand_records_fit_and_one_deletion_touches_few_hashes():
    names, tree = random_tree(100_000)
    assert tree.size == 100_000
    proof = tree.deletion_proof(names[:1])
    assert len(proof) < 40 * 66
    deletion(proof, names[:1], tree.root, tree.removed(names[:1]).root)
    assert ManifestTree().root == EMPTY_ROOT == tree.removed(names).root
