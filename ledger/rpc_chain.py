"""A public chain behind any EVM node: anchors are signed, kept, sent, and followed until they are final."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ledger.errors import LedgerError, Unavailable
from ledger.keys_ethereum import Signer
from ledger.public import FINALIZED, MINED, Anchor, Head, Receipt
from ledger.rpc import CONFIRMATIONS, KIND, contract_start
from ledger.rpc_journal import Entry, Transactions
from ledger.rpc_node import Logged, Node, checksum
from ledger.rpc_opening import Opening
from ledger.rpc_sender import Sender
from ledger.rpc_transaction import GWEI


class RpcChain:
    """Anchors on an EVM chain (a :class:`~ledger.public.PublicChain`).

    A transaction is on the disk before it is sent, and the nonces are counted here, so that a kill at any instruction
    neither anchors twice nor leaves a nonce out. The account must belong to this run while it runs. Building the
    object connects to nothing: the node may be down.

    Parameters
    ----------
    directory
        Where ``transactions.log`` lies; made if missing.
    rpc_url
        The node. Messages show its scheme, host and port only.
    signer
        The account that pays and anchors.
    run
        Id of the run; names its log in a consortium contract.
    chain_id
        EIP-155 chain id that the node must have; None: whichever it has at the first contact.
    contract
        A consortium's ``Federation`` contract, where the run opens its log, or an ``Anchor`` contract of this account.
        None: the run makes an own one.
    confirmations
        Blocks that make an anchor final on a node that does not know the ``finalized`` tag.
    patience_s
        How long :meth:`anchor` waits for a block, in seconds.
    bump_after_s
        Seconds after which a transaction that no block takes bids more.
    max_fee_wei
        Never bid more for a unit of gas.
    timeout_s
        Longest wait for one answer of the node, in seconds.

    Raises
    ------
    LedgerError
        web3 is missing, the address is none, or the journal is in use or damaged.
    """

    def __init__(
        self,
        directory: str | Path,
        rpc_url: str,
        signer: Signer,
        run: str,
        *,
        chain_id: int | None = None,
        contract: str | None = None,
        confirmations: int = CONFIRMATIONS,
        patience_s: float = 0.2,
        bump_after_s: float = 60.0,
        max_fee_wei: int = 500 * GWEI,
        timeout_s: float = 10.0,
    ) -> None:
        self._node = Node(rpc_url, timeout_s)
        self._signer = signer
        self._opening = Opening(signer.address, run, checksum(contract) if contract else None)
        self._confirmations, self._patience_s = max(confirmations, 1), patience_s
        self._path = Path(directory) / "transactions.log"
        self._book = Transactions(self._path)
        account = self._book.chain.get("account", signer.address)
        if account != signer.address:
            self._book.close()
            raise LedgerError(f"{self._path}: is of account {account}, the key of {signer.address}; use the run's key")
        self._sender = Sender(self._node, signer, self._book, self._opening, max_fee_wei, bump_after_s)
        self._wanted_chain = chain_id
        self._met = False  # whether the node is the right one, since it last failed
        self._looked = False  # whether the chain's anchors were read in this process
        self._start: int | None = None  # block of the contract, once its code was compared

    def anchor(self, root: bytes, size: int, seq: int, prev: bytes) -> Receipt:
        """Anchor a tree head: sign it, keep it, send it, and wait a little for its block.

        Parameters
        ----------
        root, prev
            32-byte roots: the new head's, and that of the anchor before it (zero for the first).
        size
            Number of events under ``root``.
        seq
            Number of the anchor, from 1.

        Returns
        -------
        Receipt
            PENDING from the moment on in which the transaction is on the disk, whatever the node says then;
            :meth:`update` pushes it on. MINED, or FINALIZED, if it is in a block.

        Raises
        ------
        Unavailable
            The node does not answer, or gas costs more than allowed: nothing was signed.
        LedgerError
            The contract refuses the head, another head has this number, or the disk is full.
        """
        with self._watching():
            entry = self._book.find(seq)
            if entry is None:
                self._meet()
                if not self._looked:
                    self._look()
                    entry = self._book.find(seq)
            if entry is None:
                self._must_follow(size, seq, prev)
                entry = Entry(seq, size, root, prev)
                if "contract" not in self._book.chain:
                    self._sender.open()
                self._sender.sign(entry)
                entry = self._book.anchors[-1]
            elif (entry.size, entry.root, entry.prev) != (size, root, prev):
                raise LedgerError(f"anchor {seq}: another head of size {entry.size} was signed; a head never changes")
        if entry.receipt is None:
            # From here on the transaction is kept: that it cannot be sent now is for update() to tell.
            with contextlib.suppress(LedgerError), self._watching():
                self._meet()
                self._sender.push()
                self._wait(entry)
        return entry.standing()

    def update(self) -> list[Anchor]:
        """Read the chain, send again what it lost, bid more for what is stuck; all anchors, oldest first.

        Raises
        ------
        Unavailable
            The node does not answer, is behind, or a transaction cannot be paid for now. What could be read is in
            :meth:`anchors`.
        LedgerError
            Another chain, another contract, final blocks that are gone, or somebody else's anchors.
        """
        with self._watching():
            self._met = False  # a node can be exchanged behind its address
            self._meet()
            self._look()
            problems: list[str] = []
            outstanding = self._sender.outstanding()
            count = self._node.nonce(self._signer.address) if outstanding else 0
            for entry in outstanding:
                try:
                    problem = self._sender.advance(entry, count)
                except Unavailable as error:
                    problem = str(error)
                problems += [problem] if problem else []
            if problems:
                raise Unavailable(problems[0])
        return self.anchors()

    def anchors(self) -> list[Anchor]:
        """All anchors as last seen, oldest first; pending ones are the last."""
        return [entry.anchor() for entry in self._book.anchors]

    def head(self) -> Head:
        """The newest anchor in a block, as last seen."""
        mined = [entry for entry in self._book.anchors if entry.receipt]
        return Head(mined[-1].seq, mined[-1].size, mined[-1].root) if mined else Head(0, 0, bytes(32))

    def describe(self) -> dict[str, Any]:
        """Kind, chain id, genesis hash, contract, as far as they are known; nothing of the node's address."""
        chain = self._book.chain
        return {"kind": KIND} | {name: chain[name] for name in ("chain_id", "genesis", "contract") if name in chain}

    def check(self) -> None:
        """Ask whether the next anchor can work.

        Raises
        ------
        Unavailable
            The node does not answer now.
        LedgerError
            A wrong chain id, no contract or another one, another anchorer, or an account that cannot pay.
        """
        with self._watching():
            self._met = False
            self._meet()
            self._look()
            account, need = self._signer.address, self._sender.cost()
            has = self._node.balance(account)
            if has < need:
                raise LedgerError(
                    f"account {account} on chain {self._book.chain['chain_id']} holds {has / GWEI:.0f} gwei, the next "
                    f"anchor may cost {need / GWEI:.0f}; send it at least the difference"
                )

    def close(self) -> None:
        """Close the journal and give up its lock."""
        self._book.close()

    @contextlib.contextmanager
    def _watching(self) -> Iterator[None]:
        """After a failure the node may be another one, and may have lost its pool."""
        try:
            yield
        except Unavailable:
            self._met = False
            self._sender.forget()
            raise

    def _meet(self) -> None:
        """Compare the node's chain with ours, before anything is believed of it or sent to it."""
        if self._met:
            return
        node = self._node
        begun = self._book.chain if self._book.entries() else {}  # before the first transaction nothing binds us
        chain_id = node.chain_id()
        for wanted in (begun.get("chain_id"), self._wanted_chain):
            if wanted not in (None, chain_id):
                raise LedgerError(
                    f"{node.name}: has chain id {chain_id}, not {wanted}; check its address and the configured chain id"
                )
        block = node.block(0)
        if block is None:
            raise Unavailable(f"{node.name}: has no genesis block yet; is it still synchronising?")
        if begun.get("genesis", block.hash) != block.hash:
            raise LedgerError(
                f"{node.name}: its genesis block is {block.hash}, the run began on {begun['genesis']}: another chain, "
                "or a development node that was started afresh; bring the old one back, or begin a new run"
            )
        final = [entry.receipt for entry in self._book.anchors if entry.receipt and _is_final(entry)]
        if final:
            found = node.block(final[-1].block)
            if found is None:
                raise Unavailable(f"{node.name}: does not have block {final[-1].block} yet; is it still synchronising?")
            if found.hash != final[-1].block_hash:
                raise LedgerError(f"{node.name}: block {found.number} was final and is another now; use another node")
        if not begun:
            facts = {"account": self._signer.address, "chain_id": chain_id, "genesis": block.hash}
            existing = self._opening.existing(node)
            self._book.chain = {**facts, **({"contract": existing} if existing else {})}
        self._met = True

    def _look(self) -> None:
        """Read the contract's events above the last final block, and note what became of our transactions."""
        node, book = self._node, self._book
        latest = node.latest().number
        if latest < book.scanned:
            raise Unavailable(f"{node.name}: is at block {latest}, behind final block {book.scanned}; wait for it")
        final = min(node.final_block(latest, self._confirmations), latest)
        contract = book.chain.get("contract")
        logs: list[Logged] = []
        if contract is not None and self._contract_stands(contract):
            assert self._start is not None
            logs = node.anchored(contract, max(self._start, book.scanned + 1), latest)
        receipts = {log.seq: self._receipt_of(log, final) for log in logs}
        for entry in book.anchors:
            if entry.seq not in receipts and entry.receipt and entry.receipt.block > book.scanned:
                receipts[entry.seq] = None  # a reorganisation took it back
        if book.opening:
            receipts[0] = self._opening_receipt(book.opening, final)
        entries = {entry.seq: entry for entry in book.entries()}
        changed = {seq: receipt for seq, receipt in receipts.items() if entries[seq].receipt != receipt}
        book.note(changed, final)
        self._looked = True

    def _contract_stands(self, contract: str) -> bool:
        """Whether the contract is there, comparing its code until it is there for good."""
        opening = self._book.opening
        if self._start is not None and (opening is None or _is_final(opening)):
            return True  # otherwise a reorganisation may have moved it to another block
        code = self._node.code(contract)
        if not code and opening is not None:
            return False  # its transaction is pending
        self._start = contract_start(code, f"{self._node.name}: contract {contract}", self._signer.address)
        return True

    def _receipt_of(self, log: Logged, final: int) -> Receipt | None:
        book = self._book
        entry = book.find(log.seq)
        if entry is None:
            if log.seq != len(book.anchors) + 1:
                missing = len(book.anchors) + 1
                raise LedgerError(f"{self._node.name}: tells anchor {log.seq} but not {missing}; use another node")
            book.adopt(log.seq, log.size, log.root)
            entry = book.anchors[-1]
        if (entry.size, entry.root) != (log.size, log.root):
            raise LedgerError(
                f"{self._node.name}: anchor {log.seq} on the chain is of size {log.size} and not what this run signed; "
                f"who else uses the key of {self._signer.address}?"
            )
        status = FINALIZED if log.block <= final else MINED
        if entry.receipt and (entry.receipt.tx, entry.receipt.block_hash) == (log.tx, log.block_hash):
            gas_used = entry.receipt.gas_used
        else:
            mined = self._node.receipt(log.tx)
            if mined is None or mined.block_hash != log.block_hash:
                return None  # the chain changes under our eyes; the next look tells
            gas_used = mined.gas_used
        return Receipt(log.tx, log.block, log.block_hash, gas_used, status)

    def _opening_receipt(self, entry: Entry, final: int) -> Receipt | None:
        if _is_final(entry):
            return entry.receipt
        for form in entry.signed:
            mined = self._node.receipt(form.tx)
            if mined is not None and mined.success:
                status = FINALIZED if mined.block <= final else MINED
                return Receipt(form.tx, mined.block, mined.block_hash, mined.gas_used, status)
        return None

    def _must_follow(self, size: int, seq: int, prev: bytes) -> None:
        last = self._book.anchors[-1] if self._book.anchors else Entry(0, 0, bytes(32), bytes(32))
        if seq != last.seq + 1:
            raise LedgerError(f"anchor {seq}: seq is not the next; the newest is {last.seq}")
        if prev != last.root:
            raise LedgerError(f"anchor {seq}: prev is not the head")
        if size <= last.size:
            raise LedgerError(f"anchor {seq}: size does not grow ({last.size} to {size})")

    def _wait(self, entry: Entry) -> None:
        end = time.monotonic() + self._patience_s
        pause = 0.005
        while True:
            for form in reversed(entry.signed):
                mined = self._node.receipt(form.tx)
                if mined is not None:
                    if mined.success:
                        receipt = Receipt(form.tx, mined.block, mined.block_hash, mined.gas_used, MINED)
                        self._book.note({entry.seq: receipt})
                        if self._sender.outstanding():
                            self._look()  # what came before it is in a block, too
                    return
            if time.monotonic() + pause > end:
                return
            time.sleep(pause)
            pause = min(pause * 1.5, 0.05)


def _is_final(entry: Entry) -> bool:
    return entry.receipt is not None and entry.receipt.status == FINALIZED
