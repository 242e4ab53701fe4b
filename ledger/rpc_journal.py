"""The journal of a run's transactions: what was signed, and what became of it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ledger.canonical import canonical_json, parse_canonical
from ledger.errors import LedgerError
from ledger.journal import Journal
from ledger.public import NO_BLOCK, PENDING, Anchor, Receipt
from ledger.rpc_transaction import Bid


@dataclass(frozen=True)
class Signed:
    """A signed transaction: its nonce, hash, bytes, gas limit and bid."""

    nonce: int
    tx: str
    raw: bytes
    gas: int
    bid: Bid


@dataclass
class Entry:
    """What one transaction is to do, and the forms in which it was signed.

    Attributes
    ----------
    seq
        Number of the anchor; 0: the log is opened.
    size, root, prev
        Of the anchor.
    signed
        The newest is the last; those of one nonce replace each other. Empty: another process of ours sent it.
    receipt
        Of the form that is in a block; None: none is.
    """

    seq: int
    size: int
    root: bytes
    prev: bytes
    signed: list[Signed] = field(default_factory=list)
    receipt: Receipt | None = None

    def standing(self) -> Receipt:
        """The receipt, or that of a pending transaction."""
        return self.receipt or Receipt(self.signed[-1].tx if self.signed else "0x", 0, NO_BLOCK, 0, PENDING)

    def anchor(self) -> Anchor:
        """As an anchor."""
        return Anchor(self.seq, self.size, self.root, self.prev, self.standing())


class Transactions:
    """All transactions of a run, one record of a :class:`~ledger.journal.Journal` for each change.

    Parameters
    ----------
    path
        The file; made if missing.

    Attributes
    ----------
    chain
        ``chain_id``, ``genesis``, ``account``, and once it is known ``contract``. It is written with the next record.
    opening
        The transaction that makes the log; None: there is none, or not yet.
    anchors
        Oldest first, without gaps.
    scanned
        All blocks up to this one are final and were read; -1: none.

    Raises
    ------
    LedgerError
        In use by another process, or damaged before its end.
    """

    def __init__(self, path: str | Path) -> None:
        self._journal = Journal(path)
        self.chain: dict[str, Any] = {}
        self._kept_chain: dict[str, Any] = {}
        self.opening: Entry | None = None
        self.anchors: list[Entry] = []
        self.scanned = -1
        try:
            for record in self._journal.records:
                self._apply(parse_canonical(record))
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            self.close()
            raise LedgerError(f"{path}: holds a record that makes no sense ({error}); restore it from a copy") from None
        except BaseException:
            self.close()
            raise
        self._journal.records = []

    def entries(self) -> list[Entry]:
        """The opening, if there is one, and the anchors."""
        return [*([self.opening] if self.opening else []), *self.anchors]

    def find(self, seq: int) -> Entry | None:
        """The anchor of a number, or None."""
        return self.anchors[seq - 1] if 0 < seq <= len(self.anchors) else None

    def next_nonce(self) -> int:
        """One above every nonce that was signed."""
        return max((form.nonce + 1 for entry in self.entries() for form in entry.signed), default=0)

    def sign(self, entry: Entry, form: Signed, contract: str | None = None) -> None:
        """Keep a signed transaction; on return it is on the disk. ``contract``: what it will make."""
        fees = {"max_fee": form.bid.max_fee, "tip": form.bid.tip, "legacy": form.bid.legacy}
        signed = {"nonce": form.nonce, "tx": form.tx, "raw": form.raw.hex(), "gas": form.gas}
        made = {"chain": {**self.chain, "contract": contract}} if contract else {}
        self._keep({"sign": {**_head(entry), **signed, **fees}, **made})

    def adopt(self, seq: int, size: int, root: bytes) -> None:
        """Keep an anchor that the chain has and this journal has not."""
        prev = self.anchors[-1].root if self.anchors else bytes(32)
        self._keep({"adopt": _head(Entry(seq, size, root, prev))})

    def note(self, receipts: dict[int, Receipt | None], scanned: int | None = None) -> None:
        """Keep what became of transactions. The chain can tell it again, so it does not wait for the disk."""
        rows = [[seq, *_row(receipt)] for seq, receipt in receipts.items()]
        scanned = self.scanned if scanned is None else max(scanned, self.scanned)
        if rows or (self.anchors and scanned != self.scanned):
            self._keep({"receipts": rows, "scanned": scanned}, sync=False)

    def close(self) -> None:
        """Close the file and give up its lock."""
        self._journal.close()

    def _keep(self, record: dict[str, Any], *, sync: bool = True) -> None:
        if self.chain != self._kept_chain:
            record = {"chain": self.chain, **record}
        self._journal.append([canonical_json(record)], sync=sync)
        self._apply(record)

    def _apply(self, record: dict[str, Any]) -> None:
        if "chain" in record:
            self.chain = self._kept_chain = record["chain"]
        head = record.get("sign") or record.get("adopt")
        if head:
            entry = self.opening if head["seq"] == 0 else self.find(head["seq"])
            if entry is None:
                entry = Entry(head["seq"], head["size"], bytes.fromhex(head["root"]), bytes.fromhex(head["prev"]))
                if entry.seq == 0:
                    self.opening = entry
                elif entry.seq == len(self.anchors) + 1:
                    self.anchors.append(entry)
                else:
                    raise ValueError(f"anchor {entry.seq} after {len(self.anchors)}")
            if "sign" in record:
                fees = Bid(head["max_fee"], head["tip"], head["legacy"])
                entry.signed.append(
                    Signed(head["nonce"], head["tx"], bytes.fromhex(head["raw"]), head["gas"], fees)
                )
        for seq, *row in record.get("receipts", ()):
            noted = self.opening if seq == 0 else self.anchors[seq - 1]
            if noted is not None:
                noted.receipt = Receipt(*row) if row else None
        self.scanned = record.get("scanned", self.scanned)


def _head(entry: Entry) -> dict[str, Any]:
    return {"seq": entry.seq, "size": entry.size, "root": entry.root.hex(), "prev": entry.prev.hex()}


def _row(receipt: Receipt | None) -> list[Any]:
    if receipt is None:
        return []
    return [receipt.tx, receipt.block, receipt.block_hash, receipt.gas_used, receipt.status]
