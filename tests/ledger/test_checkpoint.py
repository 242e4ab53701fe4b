"""Checkpoints: against published vectors of the C2SP family, and against everything that a forger may try."""

import base64
import hashlib

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st

from ledger import checkpoint
from ledger.checkpoint import COSIGNATURE, ED25519, Signature
from ledger.dsse import check_signature
from ledger.errors import LedgerError
from ledger.identity import Identity, load_or_create

# golang.org/x/mod/sumdb/note, note_test.go
GO_SEED = base64.b64decode("AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz")[1:]
GO_KEY = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
GO_TEXT = (
    "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
)
GO_LINE = (
    "— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
)

# filippo.io/torchwood, cmd/litewitness/testdata: a checkpoint of a sigsum log
SIGSUM_KEY = "52c05edad1bf5feffa81354faae59a655d9a9a1a793ed2f62c39c26c0be2aecd"
SIGSUM_NOTE = (
    "sigsum.org/v1/tree/985ea163f5af026723561354f51f2ebcdcf2af809ce254ccfb64aa9aadd80f90\n"
    "1\n"
    "KgAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n"
    "\n"
    "— sigsum.org/v1/tree/985ea163f5af026723561354f51f2ebcdcf2af809ce254ccfb64aa9aadd80f90 "
    "7BKT0gOfNZ1J0So9unY3BZtm2YkPIoNYM/dce0Z2avJDs8dxN6ts9bOSwwrVrbjm6P9K3ZxpK6jJngOG6YvGGzV/lwo=\n"
)

# c2sp.org/tlog-cosignature, the example; its public keys are not published
SPEC_NOTE = (
    "example.com/behind-the-sofa\n"
    "20852163\n"
    "CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n"
    "\n"
    "— example.com/behind-the-sofa "
    "Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=\n"
    "— witness.example.com/w1 "
    "jWbPPwAAAABkGFDLEZMHwSRaJNiIDoe9DYn/zXcrtPHeolMI5OWXEhZCB9dlrDJsX3b2oyin1nPZqhf5nNo0xUe+mbIUBkBIfZ+qnA==\n"
)

RUN = "small-42"
ROOT = hashlib.sha256(b"root").digest()
TIME = 1_700_000_000
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]))


@pytest.fixture
def keys(tmp_path):
    return {name: load_or_create(name, tmp_path) for name in ("coordinator", "bank", "clinic")}


def public(keys, *names):
    return {name: keys[name].public_hex for name in names}


def cosigned(keys, *names):
    note = checkpoint.sign(keys["coordinator"], RUN, 7, ROOT)
    for number, name in enumerate(names):
        note = checkpoint.add(note, checkpoint.cosign(keys[name], note, TIME + number))
    return note


def read(keys, note, run=RUN):
    return checkpoint.read(note, run, keys["coordinator"].public_hex, public(keys, "bank", "clinic"))


def test_go_makes_the_same_key_and_the_same_signature_line():
    identity = Identity("PeterNeumann", Ed25519PrivateKey.from_private_bytes(GO_SEED))
    assert checkpoint.verifier_key("PeterNeumann", identity.public_hex) == GO_KEY
    key_id = checkpoint.key_id_of("PeterNeumann", identity.public_hex, ED25519)
    assert Signature("PeterNeumann", key_id, identity.sign(GO_TEXT.encode())).line == GO_LINE


def test_a_published_witness_key_has_its_key_id():
    """transparency-dev/formats, note_cosigv1_test.go."""
    published = "remora.n621.de+da77ade7+BOvN63jn/bLvkieywe8R6UYAtVtNbZpXh34x7onlmtw2"
    name, _, material = published.split("+", 2)
    key = base64.b64decode(material)
    assert key[0] == COSIGNATURE
    assert checkpoint.verifier_key(name, key[1:].hex(), COSIGNATURE) == published


def test_a_checkpoint_of_a_sigsum_log_holds():
    note = checkpoint.parse(SIGSUM_NOTE)
    (line,) = note.signatures
    assert (note.size, note.root) == (1, b"\x2a" + bytes(31))
    assert line.key_id == checkpoint.key_id_of(note.origin, SIGSUM_KEY, ED25519)
    check_signature(SIGSUM_KEY, line.data, note.body.encode())
    assert note.body + "\n" + line.line == SIGSUM_NOTE


def test_the_example_of_the_specification_is_taken_apart_and_put_together():
    note = checkpoint.parse(SPEC_NOTE)
    log, witness = note.signatures
    assert (note.origin, note.size, log.name) == ("example.com/behind-the-sofa", 20852163, note.origin)
    assert (len(log.data), len(witness.data)) == (64, 72)
    assert int.from_bytes(witness.data[:8], "big") == 1679315147  # "time 1679315147" in the text beside it
    assert note.body + "\n" + log.line + witness.line == SPEC_NOTE


def test_a_cosignature_is_what_the_specification_says(keys):
    """Byte by byte, with nothing of the module under test."""
    note = checkpoint.sign(keys["coordinator"], RUN, 7, ROOT)
    body = f"trustchain/{RUN}\n7\n{base64.b64encode(ROOT).decode()}\n"
    assert note.startswith(body + "\n— ")
    line = checkpoint.cosign(keys["bank"], note, TIME)
    dash, name, data = line.split(" ")
    raw = base64.b64decode(data)
    public_key = bytes.fromhex(keys["bank"].public_hex)
    assert (dash, name, line[-1]) == ("\u2014", "bank", "\n")
    assert raw[:4] == hashlib.sha256(b"bank\n\x04" + public_key).digest()[:4]
    assert raw[4:12] == TIME.to_bytes(8, "big")
    message = f"cosignature/v1\ntime {TIME}\n{body}".encode()
    Ed25519PublicKey.from_public_bytes(public_key).verify(raw[12:], message)


def test_a_checkpoint_says_what_was_signed_and_who_cosigned(keys):
    read_back = read(keys, cosigned(keys, "bank", "clinic"))
    assert (read_back.run, read_back.size, read_back.root) == (RUN, 7, ROOT)
    assert read_back.cosigners == {"bank": TIME, "clinic": TIME + 1}
    assert read(keys, cosigned(keys)).cosigners == {}


def test_adding_a_line_twice_changes_nothing(keys):
    note = cosigned(keys, "bank")
    assert checkpoint.add(note, checkpoint.cosign(keys["bank"], note, TIME)) == note
    assert checkpoint.add(note, checkpoint.cosign(keys["bank"], note, TIME + 60)) == note


def test_lines_of_unknown_keys_are_ignored(keys, tmp_path):
    stranger = load_or_create("stranger", tmp_path)
    other_bank = load_or_create("bank", tmp_path / "elsewhere")  # the name of a known key, but not its id
    note = cosigned(keys, "bank")
    for identity in (stranger, other_bank):
        note = checkpoint.add(note, checkpoint.cosign(identity, note))
    note = checkpoint.add(note, "\u2014 example.com/pq " + base64.b64encode(bytes(2428)).decode())
    assert read(keys, note).cosigners == {"bank": TIME}


def test_a_log_signature_under_the_witness_name_is_no_cosignature(keys):
    note = checkpoint.sign(keys["coordinator"], RUN, 7, ROOT)
    bank = keys["bank"]
    key_id = checkpoint.key_id_of("bank", bank.public_hex, ED25519)
    plain = Signature("bank", key_id, bank.sign(checkpoint.parse(note).body.encode()))
    assert read(keys, checkpoint.add(note, plain.line)).cosigners == {}


def test_a_known_key_with_a_bad_signature_is_an_error(keys):
    note = cosigned(keys, "bank")
    parsed = checkpoint.parse(note)
    log, witness = parsed.signatures
    for line, data in (
        (log, bytes([log.data[0] ^ 1]) + log.data[1:]),
        (witness, witness.data[:-1] + bytes([witness.data[-1] ^ 1])),
        (witness, (TIME + 1).to_bytes(8, "big") + witness.data[8:]),
        (witness, b"\xff" + witness.data[1:]),  # a time beyond 2**63
        (witness, witness.data + b"x"),
        (witness, witness.data[:40]),
        (log, log.data + b"x"),
    ):
        changed = note.replace(line.line, Signature(line.name, line.key_id, data).line)
        assert changed != note
        with pytest.raises(LedgerError, match=r"does not hold|not a time"):
            read(keys, changed)


def test_every_changed_character_is_refused(keys):
    """Except in the key ids and names of witnesses: those make an unknown line, and the cosigner is gone."""
    note = cosigned(keys, "bank")
    for position in range(len(note)):
        for char in ("A", "1", " ", "\n", "+", "\u2014", "="):
            changed = note[:position] + char + note[position + 1 :]
            if changed == note:
                continue
            try:
                found = read(keys, changed)
            except LedgerError:
                continue
            assert position >= note.rindex("\u2014"), (position, char)
            assert found.cosigners == {}, (position, char)


def test_another_run_or_another_coordinator_is_refused(keys):
    note = cosigned(keys, "bank")
    with pytest.raises(LedgerError, match="is of 'trustchain/small-42', not of 'trustchain/small-43'"):
        read(keys, note, "small-43")
    with pytest.raises(LedgerError, match="is not signed by the log's key"):
        checkpoint.read(note, RUN, keys["bank"].public_hex, {})


@pytest.mark.parametrize(
    "note",
    [
        "",
        "\n",
        "a\n1\nb\n",
        SPEC_NOTE.rstrip("\n"),
        SPEC_NOTE + "\n",
        SPEC_NOTE + "x\n",
        "x" + SPEC_NOTE[: SPEC_NOTE.index("\n\n") + 2],
        SPEC_NOTE.replace("20852163", "020852163"),
        SPEC_NOTE.replace("20852163", "-1"),
        SPEC_NOTE.replace("20852163", "9" * 17),
        SPEC_NOTE.replace("20852163", "\u0661"),
        SPEC_NOTE.replace("jxq2I=", "jxq2J="),  # not canonical base64
        SPEC_NOTE.replace("jxq2I=", "jxq2I=="),
        SPEC_NOTE.replace("CsUYapGG", "CsUY"),
        SPEC_NOTE.replace("jxq2I=\n", "jxq2I=\nextension\n"),
        SPEC_NOTE.replace("example.com/behind-the-sofa\n", "behind the sofa\n", 1),
        SPEC_NOTE.replace("example.com/behind-the-sofa\n", "\n", 1),
        SPEC_NOTE.replace("\u2014 witness", "- witness"),
        SPEC_NOTE.replace("witness.example", "wit+ness.example"),
        SPEC_NOTE.replace("witness.example.com/w1 ", "witness.example.com/w1  "),
        SPEC_NOTE.replace("\n", "\r\n"),
        SPEC_NOTE + "\u2014 short AAAA\n",
        SPEC_NOTE + "\u2014 x AAAAAAAA\n" * 99,
        SPEC_NOTE + "\u2014 x " + "A" * 70_000 + "\n",
        SPEC_NOTE + "\u2014 x\ud800 AAAAAAAA\n",
    ],
)
def test_malformed_notes_are_refused(note):
    with pytest.raises(LedgerError, match="checkpoint: "):
        checkpoint.parse(note)


def test_no_more_lines_than_a_note_may_have():
    note = SPEC_NOTE
    for number in range(98):
        note = checkpoint.add(note, f"\u2014 w{number} AAAAAAAA\n")
    assert len(checkpoint.parse(note).signatures) == checkpoint.MAX_SIGNATURES
    with pytest.raises(LedgerError, match="no more are taken"):
        checkpoint.add(note, "\u2014 last AAAAAAAA\n")
    with pytest.raises(LedgerError, match="not base64"):
        checkpoint.add(SPEC_NOTE, "\u2014 one AAAAAAAA\n\u2014 two AAAAAAAA\n")


@given(ANY_TEXT, ANY_TEXT)
def test_every_run_has_an_origin_of_its_own(one, other):
    assert (checkpoint.origin_of(one) == checkpoint.origin_of(other)) == (one == other)
    origin = checkpoint.origin_of(one)
    note = SPEC_NOTE.replace("example.com/behind-the-sofa", origin)
    assert checkpoint.parse(note).origin == origin


@given(st.integers(0, 2**53 - 1), st.binary(min_size=32, max_size=32), ANY_TEXT)
def test_what_is_signed_is_read(size, root, run):
    identity = Identity("coordinator", Ed25519PrivateKey.from_private_bytes(bytes(32)))
    note = checkpoint.sign(identity, run, size, root)
    assert checkpoint.read(note, run, identity.public_hex, {}) == checkpoint.Checkpoint(run, size, root)
