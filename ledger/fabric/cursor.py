"""The place in a channel's events up to which they were handled, in a file."""

from dataclasses import dataclass
from pathlib import Path

from ledger.canonical import canonical_json, parse_canonical, write_atomic
from ledger.errors import LedgerError

_KINDS = {"block": int, "chaincode": str, "channel": str, "run": str, "tx": str}


@dataclass(frozen=True)
class Cursor:
    """A cursor file, bound to one run on one channel.

    Attributes
    ----------
    path
        Canonical JSON, replaced atomically; missing: nothing was handled.
    channel, chaincode, run
        Whose events it counts.
    """

    path: Path
    channel: str
    chaincode: str
    run: str

    def load(self) -> tuple[int, str]:
        """Block and transaction id of the last event handled; ``(0, "")`` if there is none.

        Raises
        ------
        LedgerError
            The file cannot be read, is no cursor, or that of another run or channel.
        """
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return 0, ""
        except OSError as error:
            raise LedgerError(f"{self.path}: the cursor cannot be read: {error.strerror}") from None
        try:
            content = parse_canonical(data)
        except LedgerError as error:
            raise LedgerError(f"{self.path}: not a cursor ({error}); remove it to replay all events") from None
        if not isinstance(content, dict) or {name: type(value) for name, value in content.items()} != _KINDS:
            raise LedgerError(f"{self.path}: a cursor needs {', '.join(_KINDS)}; remove it to replay all events")
        if (content["channel"], content["chaincode"], content["run"]) != (self.channel, self.chaincode, self.run):
            raise LedgerError(
                f"{self.path}: is the cursor of run {content['run']} ({content['chaincode']} on {content['channel']}), "
                f"not of {self.run}; give every run a file of its own"
            )
        return content["block"], content["tx"]

    def save(self, block: int, tx: str) -> None:
        """Store the last event handled. Raises LedgerError if the file cannot be written."""
        place = {"channel": self.channel, "chaincode": self.chaincode, "run": self.run}
        write_atomic(self.path, canonical_json({**place, "block": block, "tx": tx}))
