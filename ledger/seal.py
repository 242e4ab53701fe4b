"""The seal of a finished run: a signed list of the digests of its files, so that every byte counts."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ledger import dsse, events, layout
from ledger.canonical import canonical_json, is_digest, parse_canonical
from ledger.errors import LedgerError
from ledger.events import Event
from ledger.identity import Identity
from ledger.log import SqliteLog

PAYLOAD_TYPE = "application/vnd.trustchain.seal+json"


@dataclass(frozen=True)
class Seal:
    """What the coordinator vouches for at the end.

    Attributes
    ----------
    run
        Id of the run.
    size, root
        Of the log, as in a tree head.
    files
        SHA-256 by name relative to the run directory.
    """

    run: str
    size: int
    root: str
    files: dict[str, str]


def vouched_files(run_dir: Path, log: SqliteLog) -> set[str]:
    """Files outside ``ledger/`` that the log vouches for and that are on the disk: pruned and withdrawn ones are not.

    Certificates are not among them: each vouches for itself, and organizations may counter-sign it later.
    """
    keys = log.keys()

    def read(kind: str) -> list[tuple[int, Event]]:
        return [(position, events.read_event(envelope, keys)) for position, envelope in log.events(kind)]

    names = {layout.MANIFEST, layout.CONFIG, *layout.identity_files(run_dir)}
    names.update(event.body["file"] for _, event in read(events.CHECKPOINT))
    adapters: dict[tuple[str, int], str] = {}  # file by cohort and round
    for _, event in sorted([*read(events.MERGE), *read(events.UNLEARN_WITHDRAWN)], key=lambda row: row[0]):
        if event.type == events.MERGE:
            adapters[event.body["cohort"], event.body["round"]] = event.body["file"]
        else:
            first = event.body["cohorts"]
            adapters = {slot: file for slot, file in adapters.items() if slot[1] < first.get(slot[0], slot[1] + 1)}
    names.update(adapters.values())
    for _, release in read(events.MODEL_RELEASE)[-1:]:
        names.update(release.body["files"])
    return {name for name in names if (run_dir / name).is_file()}


def make_seal(run_dir: Path, names: Iterable[str], seal: Mapping[str, str | int], identity: Identity) -> bytes:
    """Digest ``names`` and everything in ``ledger/``, and sign the list.

    Parameters
    ----------
    names
        Files relative to the run directory.
    seal
        ``run``, ``size`` and ``root`` of the closed log.

    Returns
    -------
    bytes
        Content of ``ledger/seal.json``.

    Raises
    ------
    LedgerError
        A file is missing or cannot be read.
    """
    own = [name for name in layout.files_under(run_dir, layout.LEDGER) if name != layout.SEAL]
    files = {name: layout.file_digest(run_dir, name) for name in sorted({*names, *own})}
    return canonical_json(dsse.sign(canonical_json({**seal, "files": files}), PAYLOAD_TYPE, identity))


def read_seal(data: bytes, keys: Mapping[str, str]) -> Seal:
    """Check a seal's form and signature. Raises LedgerError."""
    envelope = parse_canonical(data)
    payload, _ = dsse.verify(envelope, keys)
    if envelope["payloadType"] != PAYLOAD_TYPE:
        raise LedgerError(f"seal: payload type is {envelope['payloadType']!r}")
    content = parse_canonical(payload)
    kinds = {"run": str, "size": int, "root": str, "files": dict}
    if not isinstance(content, dict) or {name: type(value) for name, value in content.items()} != kinds:
        raise LedgerError(f"seal: needs exactly {', '.join(kinds)}")
    if not is_digest(content["root"]) or not all(is_digest(value) for value in content["files"].values()):
        raise LedgerError("seal: root and file digests must be 64 hex digits")
    return Seal(**content)
