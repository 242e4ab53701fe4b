"""The log against other implementations: Go's checksum database and transparency.dev, and the RFC's own recursion.

``interop/vectors.json`` is what the Go program beside it makes with ``golang.org/x/mod/sumdb`` and transparency.dev's
cosignatures. Where ``INTEROP`` names that program (``go mod tidy && go build`` in ``interop/``), it also checks fresh
proofs and notes of ours.
"""

import base64
import json
import os
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from witnessed import witnessed_run

from ledger import checkpoint, heads, layout
from ledger.checkpoint import COSIGNATURE
from ledger.errors import LedgerError
from ledger.identity import Identity
from ledger.log import SqliteLog
from ledger.merkle import MerkleLog, leaf_hash, node_hash, verify_consistency, verify_inclusion

VECTORS = json.loads((Path(__file__).parent / "interop" / "vectors.json").read_text())


def hashes(texts):
    return [bytes.fromhex(text) for text in texts]


@pytest.fixture(scope="module")
def go_log():
    log = MerkleLog()
    for leaf in VECTORS["Leaves"]:
        log.append(leaf_hash(leaf.encode()))
    return log


# Vectors of the Go program


def test_inclusion_proofs_are_those_of_go(go_log):
    assert len(VECTORS["Inclusion"]) == 78
    for vector in VECTORS["Inclusion"]:
        index, size = vector["Index"], vector["Size"]
        leaf, root, proof = bytes.fromhex(vector["Leaf"]), bytes.fromhex(vector["Root"]), hashes(vector["Proof"])
        verify_inclusion(leaf, index, size, proof, root)
        assert (go_log.node(0, index), go_log.root(size)) == (leaf, root)
        assert go_log.inclusion_proof(index, size) == proof


def test_consistency_proofs_are_those_of_go(go_log):
    assert len(VECTORS["Consistency"]) == 66
    for vector in VECTORS["Consistency"]:
        size1, size2, proof = vector["Size1"], vector["Size2"], hashes(vector["Proof"])
        verify_consistency(size1, bytes.fromhex(vector["Root1"]), size2, bytes.fromhex(vector["Root2"]), proof)
        assert go_log.consistency_proof(size1, size2) == proof


def test_checkpoints_and_cosignatures_of_go_are_read():
    assert len(VECTORS["Notes"]) == 3
    for vector in VECTORS["Notes"]:
        keys = {}
        for place, text in enumerate(vector["Keys"]):
            name, _, material = text.split("+", 2)
            keys[name] = base64.b64decode(material)[1:].hex()
            kind = COSIGNATURE if place else checkpoint.ED25519
            assert checkpoint.verifier_key(name, keys[name], kind) == text
        origin = checkpoint.parse(vector["Text"]).origin
        run = origin.removeprefix("trustchain/")
        said = checkpoint.read(vector["Text"], run, keys.pop(origin), keys)
        assert said.cosigners.keys() == {"bank", "clinic"}
        assert said.size == int(run.removeprefix("run-"))


def test_the_same_keys_make_the_same_notes_as_go():
    for vector in VECTORS["Notes"]:
        theirs = checkpoint.parse(vector["Text"])
        ours = checkpoint.sign(identity("coordinator", theirs.size), f"run-{theirs.size}", theirs.size, theirs.root)
        for name, seed, line in zip(("bank", "clinic"), (100, 101), theirs.signatures[1:], strict=True):
            time = int.from_bytes(line.data[:8], "big")
            ours = checkpoint.add(ours, checkpoint.cosign(identity(name, seed), ours, time))
        assert ours == vector["Text"]


def identity(name, seed):
    return Identity(name, Ed25519PrivateKey.from_private_bytes(bytes(31) + bytes([seed])))


# The program itself


def test_the_go_program_accepts_what_a_run_shows(tmp_path):
    program = os.environ.get("INTEROP")
    if not program:
        pytest.skip("INTEROP does not name the program: go mod tidy && go build in tests/ledger/interop")
    run = witnessed_run(tmp_path, anchored=False)
    log = SqliteLog(run.dir / layout.LOG, read_only=True)
    size = log.size
    given = {"Inclusion": [], "Consistency": [], "Notes": []}
    for index in range(size):
        leaf = leaf_hash(log.leaf(index)).hex()
        proof = [digest.hex() for digest in log.inclusion_proof(index)]
        given["Inclusion"].append(
            {"Index": index, "Size": size, "Leaf": leaf, "Root": log.root().hex(), "Proof": proof}
        )
    for before in range(1, size):
        proof = [digest.hex() for digest in log.consistency_proof(before)]
        roots = {"Root1": log.root(before).hex(), "Root2": log.root().hex()}
        given["Consistency"].append({"Size1": before, "Size2": size, "Proof": proof, **roots})
    log.close()
    for entry in heads.parse_store((run.dir / layout.ANCHORS).read_bytes()).entries:
        keys = [checkpoint.verifier_key(checkpoint.origin_of(run.service.run), run.coordinator.public_hex)]
        names = [line.name for line in checkpoint.parse(entry.checkpoint).signatures[1:]]
        keys += [checkpoint.verifier_key(name, run.identities[name].public_hex, COSIGNATURE) for name in names]
        given["Notes"].append({"Text": entry.checkpoint, "Keys": keys})

    def check(content):
        return subprocess.run([program, "check"], input=json.dumps(content), capture_output=True, text=True)

    done = check(given)
    assert done.stdout.split() == [str(len(given[kind])) for kind in ("Inclusion", "Consistency", "Notes")], done.stderr
    given["Inclusion"][3]["Index"] += 1
    assert check(given).returncode == 1


# RFC 9162, section 2.1, as it is written: recursion over lists of leaves


def split(count):
    k = 1
    while 2 * k < count:
        k *= 2
    return k


def mth(leaves):
    """MTH(D[n]), 2.1.1; of leaf hashes."""
    if len(leaves) == 1:
        return leaves[0]
    k = split(len(leaves))
    return node_hash(mth(leaves[:k]), mth(leaves[k:]))


def path(m, leaves):
    """PATH(m, D[n]), 2.1.3.1."""
    if len(leaves) == 1:
        return []
    k = split(len(leaves))
    if m < k:
        return [*path(m, leaves[:k]), mth(leaves[k:])]
    return [*path(m - k, leaves[k:]), mth(leaves[:k])]


def subproof(m, leaves, whole):
    """SUBPROOF(m, D[n], b), 2.1.4.1."""
    if m == len(leaves):
        return [] if whole else [mth(leaves)]
    k = split(len(leaves))
    if m <= k:
        return [*subproof(m, leaves[:k], whole), mth(leaves[k:])]
    return [*subproof(m - k, leaves[k:], False), mth(leaves[:k])]


def root_by_path(leaf, m, count, proof):
    """The root to which PATH leads: the recursion backwards; None if it does not fit."""
    if count == 1:
        return leaf if not proof else None
    if not proof:
        return None
    k = split(count)
    below = root_by_path(leaf, m, k, proof[:-1]) if m < k else root_by_path(leaf, m - k, count - k, proof[:-1])
    if below is None:
        return None
    return node_hash(below, proof[-1]) if m < k else node_hash(proof[-1], below)


def roots_by_subproof(m, count, whole, old, proof):
    """Roots of the first m and of all leaves to which SUBPROOF leads; None if it does not fit."""
    if m == count:
        if whole:
            return (old, old) if not proof else None
        return (proof[0], proof[0]) if len(proof) == 1 else None
    if not proof:
        return None
    k = split(count)
    if m <= k:
        found = roots_by_subproof(m, k, whole, old, proof[:-1])
        return found and (found[0], node_hash(found[1], proof[-1]))
    found = roots_by_subproof(m - k, count - k, False, old, proof[:-1])
    return found and (node_hash(proof[-1], found[0]), node_hash(proof[-1], found[1]))


def log_of(count):
    log, leaves = MerkleLog(), [leaf_hash(number.to_bytes(4, "big")) for number in range(count)]
    for leaf in leaves:
        log.append(leaf)
    return log, leaves


@given(st.integers(1, 200).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n - 1))))
def test_inclusion_proofs_are_those_of_the_rfcs_recursion(case):
    count, index = case
    log, leaves = log_of(count)
    proof = log.inclusion_proof(index)
    assert proof == path(index, leaves)
    assert log.root() == mth(leaves) == root_by_path(leaves[index], index, count, proof)


@given(st.integers(2, 200).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n - 1))))
def test_consistency_proofs_are_those_of_the_rfcs_recursion(case):
    count, before = case
    log, leaves = log_of(count)
    proof = log.consistency_proof(before)
    assert proof == subproof(before, leaves, True)
    roots = mth(leaves[:before]), mth(leaves)
    assert (log.root(before), log.root()) == roots == roots_by_subproof(before, count, True, roots[0], proof)


@pytest.mark.slow
@given(st.data())
def test_both_verifiers_agree_on_any_proof(data):
    """True, cut, padded and mixed up: what one takes, the other takes."""
    count = data.draw(st.integers(2, 40))
    log, leaves = log_of(count)
    index, before = data.draw(st.integers(0, count - 1)), data.draw(st.integers(1, count - 1))
    pool = [*log.inclusion_proof(index), *log.consistency_proof(before), bytes(32)]
    noise = data.draw(st.lists(st.sampled_from(pool), max_size=8))
    for proof in (noise, log.inclusion_proof(index)[: data.draw(st.integers(0, 6))]):
        said = root_by_path(leaves[index], index, count, proof) == log.root()
        assert accepted(verify_inclusion, leaves[index], index, count, proof, log.root()) == said
    old, new = log.root(before), log.root()
    for proof in (noise, log.consistency_proof(before)[: data.draw(st.integers(0, 6))]):
        said = roots_by_subproof(before, count, True, old, proof) == (old, new)
        assert accepted(verify_consistency, before, old, count, new, proof) == said


def accepted(verify, *arguments):
    try:
        verify(*arguments)
    except LedgerError:
        return False
    return True
