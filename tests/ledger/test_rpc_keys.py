"""Keys of accounts: where they come from, and that they never show."""

import json
import os
import pickle

import pytest

pytest.importorskip("web3")

from anvil import SECRETS, account
from eth_account import Account

from ledger import keys_ethereum
from ledger.errors import LedgerError, Unavailable
from ledger.keys_ethereum import CURVE_ORDER, LocalKey, from_environment, from_keystore, open_signer
from ledger.rpc_transaction import GWEI, Bid, sign_transaction

PASSPHRASE = "correct horse"


@pytest.fixture
def keystore(tmp_path):
    path = tmp_path / "key.json"
    path.write_text(json.dumps(Account.encrypt(SECRETS[0], PASSPHRASE, iterations=2)))
    path.chmod(0o600)
    return path


def shown(error):
    return f"{error.value} {error.value!r} {error.value.__cause__!r}"


@pytest.mark.parametrize("prefix", ["", "0x"])
def test_the_environment_holds_the_key(monkeypatch, prefix):
    monkeypatch.setenv("SOME_KEY", prefix + SECRETS[0])
    assert from_environment("SOME_KEY").address == "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266"


@pytest.mark.parametrize("bad", ["", "0x", SECRETS[0][:-1], SECRETS[0] + "00", "zz" * 32, "00" * 32, "ff" * 32])
def test_a_bad_key_is_told_without_showing_it(monkeypatch, bad):
    monkeypatch.setenv("SOME_KEY", bad)
    with pytest.raises(LedgerError, match="environment variable SOME_KEY") as refused:
        from_environment("SOME_KEY")
    assert len(bad) < 4 or bad not in shown(refused)


def test_a_key_is_neither_shown_nor_pickled():
    key = account()
    assert SECRETS[0] not in repr(key) + str(key)
    assert key.address in repr(key)
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(key)


def test_a_keystore_file_is_opened_with_its_passphrase(keystore, monkeypatch):
    monkeypatch.setenv("SOME_PASSPHRASE", PASSPHRASE)
    assert from_keystore(keystore, "SOME_PASSPHRASE").address == account().address
    assert open_signer("SOME_PASSPHRASE", keystore).address == account().address


def test_a_wrong_passphrase_and_what_is_no_keystore_are_told(keystore, monkeypatch):
    monkeypatch.setenv("SOME_PASSPHRASE", "wrong and secret")
    with pytest.raises(LedgerError, match="the passphrase is wrong") as refused:
        from_keystore(keystore, "SOME_PASSPHRASE")
    assert "secret" not in shown(refused)
    for content in ("{}", "[]", "hello", SECRETS[1]):
        keystore.write_text(content)
        with pytest.raises(LedgerError, match="no encrypted JSON key file") as refused:
            from_keystore(keystore, "SOME_PASSPHRASE")
        assert SECRETS[1] not in shown(refused)


def test_without_passphrase_and_terminal_it_says_where_to_put_it(keystore, monkeypatch):
    monkeypatch.delenv("SOME_PASSPHRASE", raising=False)
    monkeypatch.setattr(keys_ethereum.sys.stdin, "isatty", lambda: False, raising=False)
    with pytest.raises(LedgerError, match=r"environment variable SOME_PASSPHRASE"):
        from_keystore(keystore, "SOME_PASSPHRASE")


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620])
def test_a_keystore_that_others_can_read_is_refused(keystore, monkeypatch, mode):
    monkeypatch.setenv("SOME_PASSPHRASE", PASSPHRASE)
    keystore.chmod(mode)
    with pytest.raises(LedgerError, match=r"others can read this key file .* chmod 600"):
        from_keystore(keystore, "SOME_PASSPHRASE")


def test_links_and_folders_are_no_keystores(keystore, tmp_path, monkeypatch):
    monkeypatch.setenv("SOME_PASSPHRASE", PASSPHRASE)
    (tmp_path / "link").symlink_to(keystore)
    os.mkfifo(tmp_path / "pipe", 0o600)
    for name, reason in (("link", "symbolic link"), ("pipe", "regular file"), ("none", "No such file")):
        with pytest.raises(LedgerError, match=reason):
            from_keystore(tmp_path / name, "SOME_PASSPHRASE")


KMS = """
from ledger.keys_ethereum import CURVE_ORDER, LocalKey
SEEN = []

class Kms:
    def __init__(self, secret, give):
        self._key, self._give = LocalKey(bytes.fromhex(secret)), give
        self.address = self._key.address.lower()

    def sign(self, digest, message):
        SEEN.append(message)
        return self._give(self._key.sign(digest, message))

def high(raw):
    return raw[:32] + (CURVE_ORDER - int.from_bytes(raw[32:64], "big")).to_bytes(32, "big")

def without_recovery_id():
    return Kms("%(secret)s", lambda raw: raw[:64])

def with_high_s():
    return Kms("%(secret)s", high)

def of_somebody_else():
    kms = Kms("%(secret)s", lambda raw: raw)
    kms._key = LocalKey(bytes.fromhex("%(other)s"))
    return kms

class Down:
    address = LocalKey(bytes.fromhex("%(secret)s")).address

    def sign(self, digest, message):
        raise ConnectionError("token SECRET is expired")

def down():
    return Down()

def short():
    return Kms("%(secret)s", lambda raw: raw[:10])

def text():
    return Kms("%(secret)s", lambda raw: raw.hex())

def nobody():
    return object()
"""


@pytest.fixture
def kms(tmp_path, monkeypatch):
    (tmp_path / "own_kms.py").write_text(KMS % {"secret": SECRETS[0], "other": SECRETS[1]})
    monkeypatch.syspath_prepend(tmp_path)
    yield
    keys_ethereum.sys.modules.pop("own_kms", None)


@pytest.mark.parametrize("function", ["without_recovery_id", "with_high_s"])
def test_a_signer_of_the_operators_own_signs_transactions(kms, function):
    signer = open_signer(hook=f"own_kms:{function}")
    fields = (31337, 3, "0x" + "12" * 20, b"\1", 50_000, Bid(2 * GWEI, GWEI))
    assert sign_transaction(signer, *fields) == sign_transaction(account(), *fields)
    import own_kms

    assert own_kms.SEEN[-1]["nonce"] == 3  # it can look at what it signs
    assert int.from_bytes(signer.sign(bytes(32), {})[32:64], "big") <= CURVE_ORDER // 2


@pytest.mark.parametrize(
    ("hook", "reason"),
    [
        ("own_kms:of_somebody_else", "is not one of 0xf39Fd6"),
        ("own_kms:short", "no signature of 64 or 65 bytes"),
        ("own_kms:text", "no signature of 64 or 65 bytes"),
        ("own_kms:nobody", "its address is not"),
        ("own_kms:missing", "cannot be loaded"),
        ("no_such_module:f", "cannot be loaded"),
        ("own_kms", "write it as module:function"),
    ],
)
def test_a_signer_that_does_not_do_its_work_is_told(kms, hook, reason):
    with pytest.raises(LedgerError, match=reason):
        open_signer(hook=hook).sign(bytes(32), {})


def test_a_signer_that_is_down_is_tried_again_later(kms):
    with pytest.raises(Unavailable, match="does not sign now") as refused:
        open_signer(hook="own_kms:down").sign(bytes(32), {})
    assert "SECRET" not in shown(refused)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("to", ["0x" + "34" * 20, None])
def test_transactions_are_what_another_implementation_signs(legacy, to):
    key = LocalKey(bytes.fromhex(SECRETS[2]))
    fees = Bid(3 * GWEI, 3 * GWEI if legacy else GWEI, legacy)
    raw, tx = sign_transaction(key, 1, 9, to, b"hello", 60_000, fees, value=5)
    fields = {"chainId": 1, "nonce": 9, "gas": 60_000, "value": 5, "data": b"hello", **({"to": to} if to else {})}
    if legacy:
        fields["gasPrice"] = fees.max_fee
    else:
        fields |= {"maxFeePerGas": fees.max_fee, "maxPriorityFeePerGas": fees.tip}
    signed = Account.sign_transaction(fields, SECRETS[2])
    assert (raw, tx) == (bytes(signed.raw_transaction), "0x" + bytes(signed.hash).hex())
