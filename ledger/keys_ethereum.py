"""The account that pays for anchors: its key in the environment, in a keystore file, or behind a signer hook.

A key never stands in a configuration file, is never printed, and cannot be pickled.
"""

import getpass
import importlib
import os
import stat
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn, Protocol

from ledger.errors import LedgerError, Unavailable

KEY_ENV = "TRUSTCHAIN_ETH_KEY"
"""Environment variable with the private key, or with the passphrase where a keystore file is given."""

CURVE_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
"""Order of secp256k1 (SEC 2, section 2.4.1)."""

MAX_KEYSTORE_BYTES = 1 << 16


class Signer(Protocol):
    """Signs for one account."""

    @property
    def address(self) -> str:
        """The account, 0x and 40 hex digits with EIP-55 checksum."""
        ...

    def sign(self, digest: bytes, message: Mapping[str, Any]) -> bytes:
        """Sign a 32-byte Keccak digest.

        Parameters
        ----------
        digest
            What is signed.
        message
            What it is the digest of, a transaction or EIP-712 typed data: a key service may look at it and refuse.

        Returns
        -------
        bytes
            65 bytes: r, s (in the lower half, EIP-2), recovery id 0 or 1.
        """
        ...


class LocalKey:
    """A private key in memory.

    Parameters
    ----------
    secret
        32 bytes, as a number from 1 to the curve's order.
    """

    def __init__(self, secret: bytes) -> None:
        if len(secret) != 32 or not 0 < int.from_bytes(secret, "big") < CURVE_ORDER:
            raise LedgerError("private key: needs 32 bytes, a number from 1 to the order of secp256k1")
        self._key = _library("eth_keys").keys.PrivateKey(secret)
        self.address: str = self._key.public_key.to_checksum_address()

    def sign(self, digest: bytes, message: Mapping[str, Any]) -> bytes:
        """As :meth:`Signer.sign`, deterministic (RFC 6979)."""
        signature: bytes = self._key.sign_msg_hash(digest).to_bytes()
        return signature

    def __repr__(self) -> str:
        return f"LocalKey({self.address})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a private key is not pickled")


class HookSigner:
    """A signer of the operator's own, for example a KMS, whose answers are checked.

    Parameters
    ----------
    name
        ``module:function``. The function, called without arguments, gives an object with ``address`` and
        ``sign(digest, message)`` as :class:`Signer` says; 64 bytes without recovery id, and a high s, are
        made complete here.
    """

    def __init__(self, name: str) -> None:
        module, colon, function = name.partition(":")
        if not colon or not module or not function:
            raise LedgerError(f"signer {name!r}: write it as module:function")
        try:
            self._signer = getattr(importlib.import_module(module), function)()
        except (ImportError, AttributeError) as error:
            raise LedgerError(f"signer {name!r}: cannot be loaded: {error}") from None
        self._name = name
        utils = _library("eth_utils")
        address = getattr(self._signer, "address", None)
        if not isinstance(address, str) or not utils.is_hex_address(address):
            raise LedgerError(f"signer {name!r}: its address is not 0x and 40 hex digits")
        self.address: str = utils.to_checksum_address(address)

    def sign(self, digest: bytes, message: Mapping[str, Any]) -> bytes:
        """As :meth:`Signer.sign`. Raises LedgerError if the answer is not the account's signature, or Unavailable."""
        try:
            raw = self._signer.sign(digest, message)
        except Exception as error:  # whatever a key service raises; its words may hold secrets
            raise Unavailable(f"signer {self._name!r}: does not sign now ({type(error).__name__})") from None
        if not isinstance(raw, bytes) or len(raw) not in (64, 65):
            raise LedgerError(f"signer {self._name!r}: gave no signature of 64 or 65 bytes")
        r, s = int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:64], "big")
        s = min(s, CURVE_ORDER - s)
        eth_keys = _library("eth_keys")
        for recovery in (0, 1):
            try:
                signature = eth_keys.keys.Signature(vrs=(recovery, r, s))
                key = signature.recover_public_key_from_msg_hash(digest)
            except (eth_keys.exceptions.BadSignature, eth_keys.exceptions.ValidationError):
                continue
            if key.to_checksum_address() == self.address:
                complete: bytes = signature.to_bytes()
                return complete
        raise LedgerError(f"signer {self._name!r}: its signature is not one of {self.address}")


def open_signer(key_env: str = KEY_ENV, keystore: str | Path = "", hook: str = "") -> Signer:
    """The account's signer, from the first source that is named: hook, keystore file, environment.

    Raises
    ------
    LedgerError
        The source is missing, unsafe or not a key; web3 is not installed.
    """
    if hook:
        return HookSigner(hook)
    if keystore:
        return from_keystore(keystore, key_env)
    return from_environment(key_env)


def from_environment(name: str = KEY_ENV) -> LocalKey:
    """The key in an environment variable: 64 hex digits, with or without 0x. Raises LedgerError."""
    text = os.environ.get(name, "").strip().removeprefix("0x")
    if not text:
        raise LedgerError(f"environment variable {name}: not set; put the account's private key there (64 hex digits)")
    try:
        return LocalKey(bytes.fromhex(text))
    except (ValueError, LedgerError):
        raise LedgerError(f"environment variable {name}: holds no private key (64 hex digits)") from None


def from_keystore(path: str | Path, passphrase_env: str = KEY_ENV) -> LocalKey:
    """The key in an encrypted JSON file (Web3 Secret Storage), as geth, Foundry and wallets write it.

    Parameters
    ----------
    path
        The file; only its owner may read it.
    passphrase_env
        Environment variable with the passphrase; where it is not set, the terminal is asked.

    Raises
    ------
    LedgerError
        No such file, a symbolic link, readable by others, no keystore, or the wrong passphrase.
    """
    path = Path(path)
    content = _read_private(path)
    passphrase = os.environ.get(passphrase_env)
    if passphrase is None:
        if not sys.stdin.isatty():
            raise LedgerError(f"{path}: needs its passphrase; put it into the environment variable {passphrase_env}")
        passphrase = getpass.getpass(f"Passphrase of {path}: ")
    account = _library("eth_account").Account
    try:
        return LocalKey(bytes(account.decrypt(content.decode(), passphrase)))
    except (ValueError, TypeError, KeyError, AttributeError, NotImplementedError):
        raise LedgerError(f"{path}: the passphrase is wrong, or this is no encrypted JSON key file") from None


def _read_private(path: Path) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        reason = "is a symbolic link; name the file itself" if path.is_symlink() else error.strerror
        raise LedgerError(f"{path}: cannot be read: {reason}") from None
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise LedgerError(f"{path}: is not a regular file")
        if mode & 0o077:
            raise LedgerError(
                f"{path}: others can read this key file (mode {stat.S_IMODE(mode):04o}); run: chmod 600 {path}"
            )
        return os.read(descriptor, MAX_KEYSTORE_BYTES)
    finally:
        os.close(descriptor)


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise LedgerError(f"an EVM account needs web3 ({error}): pip install 'trustchain-ray[evm]'") from None
