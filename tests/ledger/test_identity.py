import os
import stat
import subprocess
import sys

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key

from ledger import dsse
from ledger.errors import LedgerError
from ledger.identity import load, load_or_create, public_document


def test_the_key_is_made_once_and_kept(tmp_path):
    first = load_or_create("bank", tmp_path / "keys")
    assert load_or_create("bank", tmp_path / "keys").public_hex == first.public_hex
    assert load("bank", tmp_path / "keys").key_id == first.key_id
    path = tmp_path / "keys" / "bank.pem"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert os.listdir(path.parent) == ["bank.pem"]


def test_processes_that_race_get_one_key(tmp_path):
    script = "import sys; from ledger.identity import load_or_create; print(load_or_create('bank', sys.argv[1]).key_id)"
    running = [
        subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    outputs = {process.communicate()[0] for process in running}
    assert all(process.returncode == 0 for process in running)
    assert len(outputs) == 1
    assert os.listdir(tmp_path) == ["bank.pem"]


def test_the_private_key_is_never_shown(tmp_path):
    identity = load_or_create("bank", tmp_path)
    secret = identity._private.private_bytes(
        serialization.Encoding.Raw, serialization.PrivateFormat.Raw, serialization.NoEncryption()
    )
    for text in (repr(identity), str(identity), f"{identity}", str(public_document(identity))):
        assert secret.hex() not in text
        assert "_private" not in text
        assert "PrivateKey" not in text


def test_a_key_that_others_can_read_is_refused(tmp_path):
    load_or_create("bank", tmp_path)
    (tmp_path / "bank.pem").chmod(0o640)
    with pytest.raises(LedgerError, match="chmod 600"):
        load("bank", tmp_path)


def test_links_and_other_files_are_refused(tmp_path):
    load_or_create("bank", tmp_path)
    (tmp_path / "clinic.pem").symlink_to(tmp_path / "bank.pem")
    (tmp_path / "gone.pem").symlink_to(tmp_path / "nowhere")
    (tmp_path / "folder.pem").mkdir()
    for name in ("clinic", "gone"):
        with pytest.raises(LedgerError, match="symbolic link"):
            load_or_create(name, tmp_path)
    with pytest.raises(LedgerError, match="not a regular file"):
        load("folder", tmp_path)
    with pytest.raises(LedgerError, match="has no key here"):
        load("insurer", tmp_path)


def test_other_keys_are_refused(tmp_path):
    pem = generate_private_key(SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    for content in (pem, b"", b"garbage"):
        path = tmp_path / "bank.pem"
        path.write_bytes(content)
        path.chmod(0o600)
        with pytest.raises(LedgerError, match=r"bank\.pem: holds"):
            load("bank", tmp_path)


@pytest.mark.parametrize("name", ["", "../bank", "a/b", ".hidden", "-x", "a" * 65, "bänk", "a\n"])
def test_bad_names_are_refused(tmp_path, name):
    with pytest.raises(LedgerError, match="organization name"):
        load_or_create(name, tmp_path)


def test_pre_authentication_encoding():
    # the example of the DSSE protocol page
    expected = b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    assert dsse.pae("http://example.com/HelloWorld", b"hello world") == expected


def test_an_envelope_is_verified(tmp_path):
    identity = load_or_create("bank", tmp_path)
    keys = {identity.key_id: identity.public_hex}
    envelope = dsse.sign(b"payload", "text/plain", identity)
    assert dsse.verify(envelope, keys) == (b"payload", identity.key_id)
    with pytest.raises(LedgerError, match="unknown key"):
        dsse.verify(envelope, {})
    with pytest.raises(LedgerError, match="does not hold"):
        dsse.verify({**envelope, "payloadType": "text/html"}, keys)
    with pytest.raises(LedgerError, match="does not hold"):
        dsse.verify({**envelope, "payload": "cGF5bG9hZQ=="}, keys)
    other = load_or_create("clinic", tmp_path)
    with pytest.raises(LedgerError, match="does not hold"):
        dsse.verify(envelope, {identity.key_id: other.public_hex})


def test_malformed_envelopes_are_refused(tmp_path):
    identity = load_or_create("bank", tmp_path)
    keys = {identity.key_id: identity.public_hex}
    good = dsse.sign(b"abcd", "text/plain", identity)
    signature = good["signatures"][0]
    bad = [
        None,
        [],
        {},
        {**good, "more": 1},
        {**good, "payload": 1},
        {**good, "payloadType": None},
        {**good, "signatures": []},
        {**good, "signatures": [signature, signature]},
        {**good, "signatures": [{**signature, "keyid": 1}]},
        {**good, "signatures": [{"sig": signature["sig"]}]},
        {**good, "signatures": [{**signature, "sig": ""}]},
        {**good, "signatures": [{**signature, "sig": "!"}]},
        {**good, "payload": "YWJjZA"},  # no padding
        {**good, "payload": "YWJjZB=="},  # bits beyond the end are set
        {**good, "payload": "YWJj\nZA=="},
        {**good, "payload": "é"},
    ]
    for envelope in bad:
        with pytest.raises(LedgerError, match="envelope"):
            dsse.verify(envelope, keys)
