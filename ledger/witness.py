"""Witnesses: organizations that cosign a checkpoint after they saw that the log only grew.

A coordinator that shows different histories to different organizations (a split view) gets no cosignature for the
second one from the same witness, and is found out as soon as two witnesses compare notes. Its own signatures are then
the evidence, which anybody can check.
"""

import contextlib
import fcntl
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ledger import checkpoint, merkle
from ledger.canonical import canonical_json, parse_canonical, sha256_hex, write_atomic
from ledger.checkpoint import Checkpoint
from ledger.errors import LedgerError
from ledger.identity import Identity


class Stale(LedgerError):
    """A checkpoint that is not longer than what the witness cosigned before.

    Attributes
    ----------
    size
        What the witness has.
    """

    def __init__(self, message: str, size: int) -> None:
        super().__init__(message)
        self.size = size


class NotConsistent(LedgerError):
    """A checkpoint of which nobody showed that it extends an earlier one: a bad proof, or a split view."""


class SplitView(NotConsistent):
    """The log signed two histories that exclude each other.

    Attributes
    ----------
    evidence
        For :func:`is_split_view`: ``run``, the notes ``first`` and ``second``, and the ``proof`` (hex).
    """

    def __init__(self, message: str, evidence: dict[str, Any]) -> None:
        super().__init__(message)
        self.evidence = evidence


@dataclass(frozen=True)
class Seen:
    """The newest checkpoint of a log that a witness cosigned."""

    log_key: str
    note: str
    size: int
    root: bytes


class Witness:
    """Cosigns checkpoints of any number of logs; what it cosigned is on the disk before the signature leaves.

    Parameters
    ----------
    identity
        The organization's.
    folder
        Where it keeps what it saw, a file a log; made if missing. Several processes may share it.

    Raises
    ------
    LedgerError
        The folder cannot be made.
    """

    def __init__(self, identity: Identity, folder: str | Path) -> None:
        self.identity = identity
        self.folder = Path(folder)
        self._lock = threading.Lock()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LedgerError(f"{self.folder}: cannot be made: {error.strerror}") from None

    def cosign(
        self, run: str, log_key: str, note: str, proof: Sequence[bytes] = (), old_size: int | None = None
    ) -> str:
        """Check that a checkpoint extends the last one of its log, and cosign it.

        Parameters
        ----------
        run
            The run.
        log_key
            The coordinator's public key in hex. The first one counts: a log does not change its key.
        note
            The checkpoint.
        proof
            RFC 9162 consistency proof from the last size; empty at the first time and for the same size. Where the
            last size is a power of two, the root of that subtree may stand before it, as the coordinator has it: it
            makes evidence of a split view.
        old_size
            From which size the proof leads; default: from the last one.

        Returns
        -------
        str
            One signature line, for :func:`ledger.checkpoint.add`.

        Raises
        ------
        Stale
            Smaller than the last size, or ``old_size`` is another one.
        SplitView
            The log signed two histories; the evidence is in the folder, as ``split-view-<run>.json``.
        NotConsistent
            The proof does not show that the log only grew.
        LedgerError
            Not a checkpoint of this log; or the disk is full.
        """
        said = checkpoint.read(note, run, log_key, {})
        with self._locked():
            last = self.latest(run)
            if last is not None and last.log_key != log_key:
                raise LedgerError(
                    f"witness {self.identity.name}: run {run!r} is known with coordinator key {last.log_key[:16]}, "
                    f"not {log_key[:16]}"
                )
            self._check(said, note, last, proof, old_size)
            if last is None or said.size > last.size:
                state = {"log_key": log_key, "note": note, "run": run}
                write_atomic(self._path("seen", run), canonical_json(state))
        return checkpoint.cosign(self.identity, note)

    def latest(self, run: str) -> Seen | None:
        """The newest checkpoint of a run that was cosigned here. Raises LedgerError if its file is damaged."""
        path = self._path("seen", run)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise LedgerError(f"{path}: cannot be read: {error.strerror}") from None
        try:
            state = parse_canonical(data)
            kinds = {"log_key": str, "note": str, "run": str}
            if not isinstance(state, dict) or {name: type(value) for name, value in state.items()} != kinds:
                raise LedgerError(f"needs exactly {', '.join(kinds)}")
            said = checkpoint.read(state["note"], run, state["log_key"], {})
        except (LedgerError, ValueError) as error:
            raise LedgerError(f"{path}: {error}; restore it: without it a split view would not be seen") from None
        return Seen(state["log_key"], state["note"], said.size, said.root)

    def _check(
        self, said: Checkpoint, note: str, last: Seen | None, proof: Sequence[bytes], old_size: int | None
    ) -> None:
        name = self.identity.name
        known = last.size if last is not None else 0
        if old_size not in (None, known):
            raise Stale(f"witness {name}: has run {said.run!r} up to {known} events, not {old_size}", known)
        if last is None:
            if proof or (said.size == 0 and said.root != merkle.EMPTY_ROOT):
                raise NotConsistent(f"witness {name}: the first checkpoint of run {said.run!r} takes no proof")
            return
        if said.size < last.size:
            raise Stale(f"witness {name}: has run {said.run!r} up to {last.size} events, not {said.size}", last.size)
        try:
            compare(said.run, last.log_key, last.note, note, proof)
        except SplitView as split:
            write_atomic(self._path("split-view", said.run), canonical_json(split.evidence))
            raise

    def _path(self, kind: str, run: str) -> Path:
        name = quote(run, safe="")
        return self.folder / f"{kind}-{name if len(name) <= 160 else sha256_hex(run.encode())}.json"

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """One at a time, also between processes: two checks must not overtake each other's writes."""
        with self._lock:
            descriptor = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                yield
            finally:
                os.close(descriptor)


def compare(run: str, log_key: str, first: str, second: str, proof: Sequence[bytes] = ()) -> None:
    """Compare two checkpoints of a log, as two witnesses that met have them.

    Parameters
    ----------
    run, log_key
        The log: its run, and the coordinator's public key in hex.
    first, second
        The notes; in any order.
    proof
        Consistency proof from the smaller size to the larger one, from whoever has the log; empty for equal sizes.
        As in :meth:`Witness.cosign`.

    Raises
    ------
    SplitView
        The log signed two histories; the exception holds the evidence.
    NotConsistent
        The proof fits neither.
    LedgerError
        A note is not a checkpoint of this log.
    """
    (old, old_note), (new, new_note) = sorted(
        ((checkpoint.read(note, run, log_key, {}), note) for note in (first, second)), key=lambda pair: pair[0].size
    )
    refused = NotConsistent(f"run {run!r}: nobody showed that the log of {new.size} events extends that of {old.size}")
    try:
        roots = _roots(old, new, proof)
    except LedgerError:
        raise refused from None
    if _exclude(old, new, roots):
        evidence = {"first": old_note, "proof": [digest.hex() for digest in proof], "run": run, "second": new_note}
        raise SplitView(
            f"split view: the coordinator of run {run!r} signed two histories, of {old.size} and {new.size} events",
            evidence,
        )
    if roots != (old.root, new.root):
        raise refused


def is_split_view(evidence: Mapping[str, Any], log_key: str) -> bool:
    """Whether two notes show that the log signed two histories that exclude each other.

    Parameters
    ----------
    evidence
        Of :class:`SplitView`, or the content of ``split-view-<run>.json``.
    log_key
        The coordinator's public key in hex.

    Raises
    ------
    LedgerError
        It is malformed, or the notes are not signed by that key.
    """
    if {name: type(value) for name, value in evidence.items()} != {
        "first": str, "proof": list, "run": str, "second": str,
    }:  # fmt: skip
        raise LedgerError("evidence: needs exactly first, proof, run and second")
    try:
        proof = [bytes.fromhex(digest) for digest in evidence["proof"]]
    except (TypeError, ValueError):
        raise LedgerError("evidence: the proof is not a list of hex digests") from None
    notes = (checkpoint.read(evidence[name], evidence["run"], log_key, {}) for name in ("first", "second"))
    old, new = sorted(notes, key=lambda said: said.size)
    try:
        return _exclude(old, new, _roots(old, new, proof))
    except LedgerError:
        return False


def _roots(old: Checkpoint, new: Checkpoint, proof: Sequence[bytes]) -> tuple[bytes, bytes]:
    """Roots of the first ``old.size`` and of all leaves of the larger tree, by the proof. Raises LedgerError."""
    if old.size in (0, new.size):
        if proof:
            raise LedgerError("these sizes take no proof")
        known = new.root if new.size else merkle.EMPTY_ROOT
        return (known if old.size else merkle.EMPTY_ROOT), known
    try:
        return merkle.consistency_roots(old.size, new.size, proof)
    except LedgerError:
        # In the RFC's form the root of a complete old tree is not in the proof: then it is taken for granted.
        return merkle.consistency_roots(old.size, new.size, [old.root, *proof])


def _exclude(old: Checkpoint, new: Checkpoint, roots: tuple[bytes, bytes]) -> bool:
    """Whether no log has both heads: the larger tree is the signed one, and its beginning has another root."""
    return roots[1] == new.root and roots[0] != old.root
