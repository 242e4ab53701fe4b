"""An EVM node through web3, with its many ways to fail made into few."""

import importlib
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeVar

from ledger.contracts.compile import load_artifact
from ledger.errors import LedgerError, Unavailable
from ledger.jsonrpc import BUSY, check_url, is_busy, redact, shown
from ledger.rpc import in_ranges

T = TypeVar("T")


class Answer(Enum):
    """What a node does with a transaction that it is sent."""

    TAKEN = "taken"
    """It is in the node's pool, now or already."""
    OLD_NONCE = "old nonce"
    """A transaction of this nonce is in a block."""
    UNDERPRICED = "underpriced"
    """It bids too little: for the pool, for the next block, or to replace another one."""
    POOR = "poor"
    """The account cannot pay for it."""


# Words of geth, reth and anvil, Nethermind, Besu, Erigon, in the order in which they must be looked for.
_ANSWERS = (
    (Answer.TAKEN, re.compile(r"already ?known|already imported|already exists|known transaction", re.IGNORECASE)),
    (Answer.OLD_NONCE, re.compile(r"nonce (is )?too low|old ?nonce|nonce.*below", re.IGNORECASE)),
    (
        Answer.UNDERPRICED,
        re.compile(
            r"underpriced|fee ?too ?low|price too low|price below|less than block base fee|replacement ?not ?allowed"
            r"|fee ?cap|maxfeepergas",
            re.IGNORECASE,
        ),
    ),
    (Answer.POOR, re.compile(r"insufficient ?(funds|balance)|upfront cost|enough funds", re.IGNORECASE)),
)


@dataclass(frozen=True)
class Block:
    """Number, hash, and base fee in wei (None: a chain without EIP-1559) of a block."""

    number: int
    hash: str
    base_fee: int | None


@dataclass(frozen=True)
class Mined:
    """A transaction in a block; ``success`` is false if it was reverted."""

    block: int
    block_hash: str
    gas_used: int
    success: bool


@dataclass(frozen=True)
class Logged:
    """An event of the anchor contract."""

    seq: int
    size: int
    root: bytes
    tx: str
    block: int
    block_hash: str


class Node:
    """One EVM node. Building it connects to nothing.

    Every method raises ``Unavailable`` if the node does not answer now, and ``LedgerError`` if it refuses or is no
    node. Of its address, messages show scheme, host and port.

    Parameters
    ----------
    url
        ``http://`` or ``https://``.
    timeout_s
        Longest wait for one answer, in seconds.
    """

    def __init__(self, url: str, timeout_s: float) -> None:
        self._url = check_url(url)
        self.name = shown(url)
        _hide_in_logs(url)
        try:
            web3 = importlib.import_module("web3")
            self._errors: Any = importlib.import_module("web3.exceptions")
            requests = importlib.import_module("requests")
        except ImportError as error:
            raise LedgerError(f"an EVM node needs web3 ({error}): pip install 'trustchain-ray[evm]'") from None
        self._http_error = requests.exceptions.HTTPError
        self._network_errors = (requests.exceptions.RequestException, OSError)
        # Retries are the callers': those of web3 would hold a dead node's caller up for seconds.
        provider = web3.HTTPProvider(url, request_kwargs={"timeout": timeout_s}, exception_retry_configuration=None)
        # No middleware: it asks for the chain id before every estimate, and refuses the headers of
        # proof-of-authority chains, which have more extra data.
        self._eth: Any = web3.Web3(provider, middleware=[]).eth
        self._contracts: dict[tuple[str, str], Any] = {}

    def chain_id(self) -> int:
        """EIP-155 chain id."""
        return int(self._ask("eth_chainId", lambda: self._eth.chain_id))

    def block(self, name: int | str) -> Block | None:
        """A block by number or tag; None if the node has none."""
        try:
            found = self._ask("eth_getBlockByNumber", lambda: self._eth.get_block(name))
        except self._errors.BlockNotFound:
            return None
        return Block(int(found["number"]), _hex(found["hash"]), found.get("baseFeePerGas"))

    def latest(self) -> Block:
        """The newest block."""
        block = self.block("latest")
        if block is None:
            raise Unavailable(f"{self.name}: has no block yet; is it still synchronising?")
        return block

    def final_block(self, latest: int, confirmations: int) -> int:
        """Number of the newest final block: the ``finalized`` tag, or ``confirmations`` where it is unknown."""
        try:
            block = self.block("finalized")
        except Unavailable:
            raise
        except LedgerError:
            block = None
        return block.number if block else latest - confirmations + 1

    def nonce(self, account: str, tag: str = "latest") -> int:
        """Number of transactions of an account, with those in the pool if ``tag`` is ``pending``."""
        return int(
            self._ask("eth_getTransactionCount", lambda: self._eth.get_transaction_count(checksum(account), tag))
        )

    def balance(self, account: str) -> int:
        """Wei of an account."""
        return int(self._ask("eth_getBalance", lambda: self._eth.get_balance(checksum(account))))

    def code(self, address: str) -> bytes:
        """Deployed code; empty where no contract is."""
        return bytes(self._ask("eth_getCode", lambda: self._eth.get_code(checksum(address))))

    def fees(self) -> tuple[int, int | None]:
        """Tip and base fee in wei; where the chain has no base fee, the gas price and None."""
        base_fee = self.latest().base_fee
        if base_fee is None:
            return int(self._ask("eth_gasPrice", lambda: self._eth.gas_price)), None
        try:
            tip = self._ask("eth_maxPriorityFeePerGas", lambda: self._eth.max_priority_fee)
        except Unavailable:
            raise
        except LedgerError:
            return 10**9, base_fee
        return int(tip), base_fee

    def read(self, contract: str, artifact: str, function: str, *arguments: Any) -> Any:
        """Result of a view function of a contract of :mod:`ledger.contracts`, on the newest state."""
        call = self._contract(contract, artifact).functions[function](*_checksums(arguments))
        return self._ask(f"{artifact}.{function}", call.call)

    def encode(self, contract: str, artifact: str, function: str, *arguments: Any) -> bytes:
        """Input of a transaction that calls a function of a contract of :mod:`ledger.contracts`."""
        return bytes.fromhex(self._contract(contract, artifact).encode_abi(function, args=_checksums(arguments))[2:])

    def deployment(self, artifact: str, *arguments: Any) -> bytes:
        """Input of a transaction that makes a contract of :mod:`ledger.contracts`."""
        content = load_artifact(artifact)
        factory = self._eth.contract(abi=content["abi"], bytecode=content["bytecode"])
        return bytes.fromhex(factory.constructor(*_checksums(arguments)).data_in_transaction[2:])

    def estimate(self, sender: str, to: str | None, data: bytes, value: int = 0) -> int:
        """Gas that a transaction takes on the newest state. A revert is a LedgerError with its reason."""
        call = {"from": sender, "data": data, "value": value, **({"to": checksum(to)} if to else {})}
        return int(self._ask("eth_estimateGas", lambda: self._eth.estimate_gas(call)))

    def receipt(self, tx: str) -> Mined | None:
        """The block of a transaction; None: it is in no block."""
        try:
            found = self._ask("eth_getTransactionReceipt", lambda: self._eth.get_transaction_receipt(tx))
        except self._errors.TransactionNotFound:
            return None
        return Mined(
            int(found["blockNumber"]), _hex(found["blockHash"]), int(found["gasUsed"]), int(found["status"]) == 1
        )

    def knows(self, tx: str) -> bool:
        """Whether a transaction is in a block or in the node's pool."""
        try:
            self._ask("eth_getTransactionByHash", lambda: self._eth.get_transaction(tx))
        except self._errors.TransactionNotFound:
            return False
        return True

    def send(self, raw: bytes) -> Answer:
        """Send a signed transaction. Sending it again is harmless."""
        try:
            self._ask("eth_sendRawTransaction", lambda: self._eth.send_raw_transaction(raw))
        except Unavailable:
            raise
        except LedgerError as error:
            for answer, words in _ANSWERS:
                if words.search(str(error)):
                    return answer
            raise
        return Answer.TAKEN

    def anchored(self, contract: str, start: int, last: int) -> list[Logged]:
        """Events of the anchor contract in a range of blocks."""
        event = self._contract(contract, "Anchor").events.Anchored

        def query(first: int, end: int) -> list[Logged]:
            logs = self._ask("eth_getLogs", lambda: event.get_logs(from_block=first, to_block=end))
            return [
                Logged(
                    int(log["args"]["seq"]),
                    int(log["args"]["size"]),
                    bytes(log["args"]["root"]),
                    _hex(log["transactionHash"]),
                    int(log["blockNumber"]),
                    _hex(log["blockHash"]),
                )
                for log in logs
                if not log.get("removed")
            ]

        return in_ranges(start, last, query)

    def _contract(self, address: str, artifact: str) -> Any:
        key = (checksum(address), artifact)
        if key not in self._contracts:
            self._contracts[key] = self._eth.contract(key[0], abi=load_artifact(artifact)["abi"])
        return self._contracts[key]

    def _ask(self, what: str, question: Callable[[], T]) -> T:
        errors = self._errors
        try:
            return question()
        except (errors.BlockNotFound, errors.TransactionNotFound):
            raise  # answers, which the callers understand
        except errors.ContractLogicError as error:
            raise LedgerError(f"{self.name}: the contract refuses: {self._clean(error)}") from None
        except errors.Web3RPCError as error:
            reply = error.rpc_response or {}
            told = reply.get("error") or {}
            message, code = (told.get("message"), told.get("code")) if isinstance(told, dict) else (told, None)
            text = f"{self.name}: {what}: {redact(str(message or error.message), self._url)}"
            if is_busy(code, text):
                raise Unavailable(text) from None
            raise LedgerError(text) from None
        except self._http_error as error:
            status = getattr(error.response, "status_code", 0)
            if status in BUSY:
                raise Unavailable(f"{self.name}: answers HTTP {status}; try again later") from None
            raise LedgerError(f"{self.name}: answers HTTP {status}; check the address and its key") from None
        except (errors.TimeExhausted, errors.RequestTimedOut, errors.TooManyRequests, *self._network_errors) as error:
            # Not the message: it quotes the address, with its key.
            reason = "timed out" if "Timeout" in type(error).__name__ else type(error).__name__
            raise Unavailable(f"{self.name}: does not answer ({reason}); is the node running?") from None
        except (errors.Web3Exception, ValueError, KeyError, TypeError, AttributeError) as error:
            raise LedgerError(
                f"{self.name}: {what}: the answer makes no sense ({type(error).__name__}: {self._clean(error)}); "
                "is this the address of a node?"
            ) from None

    def _clean(self, error: Exception) -> str:
        return redact(str(getattr(error, "message", None) or error), self._url).removeprefix("execution reverted: ")


def _hex(value: Any) -> str:
    return "0x" + bytes(value).hex()


_LOGGERS = (
    "web3.manager.RequestManager",
    "web3.providers.HTTPProvider",
    "web3._utils.http_session_manager.HTTPSessionManager",
    "urllib3.connectionpool",
)
_hidden: set[str] = set()


class _WithoutAddress(logging.Filter):
    """Takes what is secret of a node's address out of debug messages."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self._url = url

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = redact(record.getMessage(), self._url), ()
        return True


def _hide_in_logs(url: str) -> None:
    """The libraries below write the whole address into their debug logs."""
    if url not in _hidden:
        _hidden.add(url)
        for name in _LOGGERS:
            logging.getLogger(name).addFilter(_WithoutAddress(url))


def checksum(address: str) -> str:
    """An address with EIP-55 checksum. Raises LedgerError if it is none, or mistyped (its checksum is wrong)."""
    utils = importlib.import_module("eth_utils")
    if not isinstance(address, str) or not utils.is_0x_prefixed(address) or not utils.is_hex_address(address):
        raise LedgerError(f"address {address!r}: needs 0x and 40 hex digits")
    mixed = address[2:] not in (address[2:].lower(), address[2:].upper())
    if mixed and not utils.is_checksum_address(address):
        raise LedgerError(f"address {address}: its checksum (EIP-55) is wrong; look for a typing error")
    return str(utils.to_checksum_address(address))


def _checksums(value: Any) -> Any:
    """Arguments of a contract with every address in the form that web3 insists on."""
    if isinstance(value, list | tuple):
        return [_checksums(item) for item in value]
    if isinstance(value, str) and len(value) == 42:
        return checksum(value)
    return value
