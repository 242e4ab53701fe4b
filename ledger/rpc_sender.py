"""Sign, keep, send and outbid the transactions of a run, each nonce once."""

import time

from ledger.errors import LedgerError
from ledger.keys_ethereum import Signer
from ledger.rpc_journal import Entry, Signed, Transactions
from ledger.rpc_node import Answer, Node
from ledger.rpc_opening import Opening
from ledger.rpc_transaction import GWEI, Bid, bid, sign_transaction

ANCHOR_GAS = 150_000
"""Limit of an anchor whose cost cannot be estimated, because the one before it is still pending."""

GAS_MARGIN = 1.25
"""Limit over estimate: the state may change until the transaction is in a block."""


class Sender:
    """Brings the entries of a journal into blocks.

    Parameters
    ----------
    node, signer, book, opening
        Where, for which account, from which journal, and how the log is opened.
    max_fee_wei
        Never bid more for a unit of gas.
    bump_after_s
        Seconds after which a transaction that no block takes bids more.
    """

    def __init__(
        self, node: Node, signer: Signer, book: Transactions, opening: Opening, max_fee_wei: int, bump_after_s: float
    ) -> None:
        self._node, self._signer, self._book, self._opening = node, signer, book, opening
        self._max_fee, self._bump_after_s = max_fee_wei, bump_after_s
        self._taken: dict[str, float] = {}  # hash of what the node has or had: monotonic time of the first sight

    def outstanding(self) -> list[Entry]:
        """What is in no block, in the order in which it must come."""
        return [entry for entry in self._book.entries() if entry.receipt is None]

    def cost(self) -> int:
        """Wei that the next anchor may cost at most, with the opening of the log if that is to come."""
        gas = ANCHOR_GAS
        if "contract" not in self._book.chain:
            call = self._opening.call(self._node, self._next_nonce())
            gas += self._estimate(call.to, call.data)
        return gas * bid(self._node, self._max_fee).max_fee

    def open(self) -> None:
        """Sign what makes the run's log, and keep it with the log's address."""
        nonce = self._next_nonce()
        call = self._opening.call(self._node, nonce)
        gas = self._estimate(call.to, call.data)
        entry = Entry(0, 0, bytes(32), bytes(32))
        self._sign(entry, call.to, call.data, nonce, gas, bid(self._node, self._max_fee), call.contract)

    def sign(self, entry: Entry) -> Signed:
        """Sign an anchor with the next nonce, and keep it.

        Raises
        ------
        Unavailable
            The node does not answer, or gas costs more than allowed.
        LedgerError
            The contract refuses the head: nothing was signed.
        """
        contract, data = self._anchor_call(entry)
        gas = ANCHOR_GAS
        if not any(other.seq < entry.seq for other in self.outstanding()):
            gas = self._estimate(contract, data)
        return self._sign(entry, contract, data, self._next_nonce(), gas, bid(self._node, self._max_fee))

    def push(self) -> None:
        """Send, in order, what the node has not taken yet; stop at the first that it does not want."""
        for entry in self.outstanding():
            if not entry.signed or entry.signed[-1].tx in self._taken:
                continue
            answer = self._node.send(entry.signed[-1].raw)
            if answer is Answer.TAKEN:
                self._taken[entry.signed[-1].tx] = time.monotonic()
            elif answer is not Answer.OLD_NONCE:
                return

    def forget(self) -> None:
        """The node may have lost its pool: everything is to be sent again."""
        self._taken.clear()

    def advance(self, entry: Entry, count: int) -> str | None:
        """Push one outstanding transaction on.

        Parameters
        ----------
        entry
            One of :meth:`outstanding`.
        count
            Number of the account's transactions that are in blocks.

        Returns
        -------
        str or None
            Why it cannot get into a block now; None: it can.

        Raises
        ------
        Unavailable
            As :meth:`sign`.
        LedgerError
            It never can.
        """
        if not entry.signed:  # another process of ours anchored it, and a reorganisation took it back
            return self._give(entry, self.sign(entry))
        newest = entry.signed[-1]
        if newest.nonce < count:
            return self._again(entry)
        if not any(self._node.knows(form.tx) for form in entry.signed):
            return self._give(entry, newest)
        if time.monotonic() - self._taken.setdefault(newest.tx, time.monotonic()) < self._bump_after_s:
            return None
        return self._give(entry, self._outbid(entry))

    def _give(self, entry: Entry, form: Signed) -> str | None:
        answer = self._node.send(form.raw)
        if answer is Answer.UNDERPRICED and self._may_outbid(form):
            form = self._outbid(entry)
            answer = self._node.send(form.raw)
        self._taken.setdefault(form.tx, time.monotonic())
        what = f"anchor {entry.seq}" if entry.seq else "the opening of the log"
        if answer is Answer.UNDERPRICED:
            return f"{self._node.name}: takes no bid of {form.bid.max_fee / GWEI:g} gwei for {what}; it will be raised"
        if answer is Answer.POOR:
            need = form.gas * form.bid.max_fee / GWEI
            return (
                f"account {self._signer.address} on chain {self._book.chain['chain_id']} cannot pay for {what} "
                f"({need:.0f} gwei at most); send it more"
            )
        return None

    def _may_outbid(self, form: Signed) -> bool:
        """At once where no block can take it, else at the pace of stuck ones: each poll would raise the fees."""
        base_fee = self._node.fees()[1]
        first = self._taken.setdefault(form.tx, float("-inf"))
        return (base_fee or 0) > form.bid.max_fee or time.monotonic() - first >= self._bump_after_s

    def _outbid(self, entry: Entry) -> Signed:
        """Sign it once more, with the same nonce and a higher bid."""
        newest = entry.signed[-1]
        fees = bid(self._node, self._max_fee, newest.bid)
        if entry.seq == 0:
            call = self._opening.call(self._node, newest.nonce)
            return self._sign(entry, call.to, call.data, newest.nonce, newest.gas, fees)
        return self._sign(entry, *self._anchor_call(entry), newest.nonce, newest.gas, fees)

    def _again(self, entry: Entry) -> str | None:
        """The nonce is used up and the chain has no such anchor: reverted, or another transaction took the nonce."""
        found = [mined for form in entry.signed if (mined := self._node.receipt(form.tx)) is not None]
        if any(mined.success for mined in found):
            return None  # in a block since it was looked for
        what = "was reverted" if found else "lost its nonce to another transaction"
        if entry.seq == 0:
            raise LedgerError(
                f"{self._node.name}: the transaction that opens the run's log {what}; "
                f"the account {self._signer.address} must belong to this run alone while it runs"
            )
        if self._book.opening is not None and self._book.opening.receipt is None:
            return None  # the log comes first
        seq, _, root = self._node.read(self._book.chain["contract"], "Anchor", "head")
        if (seq, root) == (entry.seq, entry.root):
            return None
        if seq >= entry.seq:
            raise LedgerError(f"{self._node.name}: anchor {entry.seq} {what}: the contract is at {seq} already")
        return self._give(entry, self.sign(entry))

    def _sign(
        self,
        entry: Entry,
        to: str | None,
        data: bytes,
        nonce: int,
        gas: int,
        fees: Bid,
        contract: str | None = None,
    ) -> Signed:
        raw, tx = sign_transaction(self._signer, self._book.chain["chain_id"], nonce, to, data, gas, fees)
        form = Signed(nonce, tx, raw, gas, fees)
        self._book.sign(entry, form, contract)
        return form

    def _next_nonce(self) -> int:
        return max(self._book.next_nonce(), self._node.nonce(self._signer.address, "pending"))

    def _estimate(self, to: str | None, data: bytes) -> int:
        return int(self._node.estimate(self._signer.address, to, data) * GAS_MARGIN)

    def _anchor_call(self, entry: Entry) -> tuple[str, bytes]:
        contract: str = self._book.chain["contract"]
        numbers = (entry.root, entry.size, entry.seq, entry.prev)
        return contract, self._node.encode(contract, "Anchor", "anchor", *numbers)
