"""Bundles: what a stranger needs to check a run, or a few of its events, in one file.

A bundle is an uncompressed ustar archive that any ``tar`` unpacks, in one canonical form: ``bundle.json`` first, which
lists the SHA-256 of every other file, then those files in order of their names, with nothing in the headers but name
and size. The same run makes the same bytes, and a changed byte is found.
"""

import contextlib
import hashlib
import io
import os
import tarfile
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import IO

from ledger import events as ev
from ledger import heads, layout
from ledger.canonical import canonical_json, fsync_directory, is_digest, parse_canonical
from ledger.errors import LedgerError
from ledger.identity import COORDINATOR
from ledger.log import SqliteLog
from ledger.verify_events import SELECTION, Proven, Selection

FORMAT = "trustchain-bundle-1"
LIST = "bundle.json"

MAX_LIST_BYTES = 1 << 26
MAX_BUNDLE_BYTES = 1 << 35
"""Largest bundle that is unpacked, 32 GiB."""

_BLOCK = tarfile.BLOCKSIZE
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Exported:
    """What :func:`export` wrote: names of the files, and how many of how many events."""

    files: list[str]
    events: int
    size: int


def export(
    run_dir: str | Path,
    path: str | Path,
    events: Iterable[int] | None = None,
    types: Iterable[str] = (),
    *,
    model: bool = False,
) -> Exported:
    """Write a bundle of a run. The run may be at work; it is not changed.

    The bundle holds manifest, configuration, identities, log, signed tree heads with cosignatures and receipts, the
    blocks of an embedded chain, certificates of removals, and the seal.

    Parameters
    ----------
    run_dir
        The run.
    path
        The file to write.
    events
        Positions of the events that the bundle is to hold, each with an inclusion proof, instead of the whole log.
        Those that give them meaning come along: REGISTER, KEY_*, RUN_MANIFEST, the last MODEL_RELEASE, MODEL_REVOKED,
        and RUN_COMPLETE.
    types
        Events of these types, too, as above.
    model
        Put the files of the released model in, not only their digests.

    Raises
    ------
    LedgerError
        There is no run, no such event, no signed tree head that covers it, or the file cannot be written.
    """
    run_dir, path = Path(run_dir), Path(path)
    types = list(types)
    unknown = sorted(set(types) - ev.TYPES)
    if unknown:
        raise LedgerError(f"{', '.join(unknown)}: no such type of event; known: {', '.join(sorted(ev.TYPES))}")
    chosen = None if events is None and not types else set(events or ())
    with contextlib.ExitStack() as resources:
        folder = Path(resources.enter_context(tempfile.TemporaryDirectory(prefix="trustchain-export-")))
        sources = _still_files(run_dir, folder)
        log = SqliteLog(run_dir / layout.LOG, read_only=True)
        resources.callback(log.close)
        count = log.size
        if chosen is None:
            sources[layout.LOG] = run_dir / layout.LOG
            if layout.SEAL not in sources:
                sources[layout.LOG] = folder / "log.sqlite"
                log.copy_to(sources[layout.LOG])
        else:
            selection = _select(log, sources, chosen, types)
            count = len(selection.events)
            sources[SELECTION] = folder / SELECTION
            sources[SELECTION].write_bytes(canonical_json(selection.to_dict()))
        if model:
            sources.update(_model_files(run_dir, log))
        _write(path, sources)
        return Exported(sorted(sources), count, log.size)


def _still_files(run_dir: Path, folder: Path) -> dict[str, Path]:
    """The small files, by name; those that a run at work changes, as copies of one moment."""
    sources: dict[str, Path] = {}
    for name in (layout.MANIFEST, layout.CONFIG, *layout.identity_files(run_dir), layout.SEAL):
        if (run_dir / name).exists():
            sources[name] = layout.inside(run_dir, name)
    moving = [name for name in (layout.ANCHORS, layout.PRIVATE, layout.BLOCKS) if (run_dir / name).exists()]
    moving += layout.certificate_files(run_dir)
    for _ in range(10):
        before = {name: layout.read_file(run_dir, name) for name in moving}
        if before == {name: layout.read_file(run_dir, name) for name in moving}:
            for number, (name, data) in enumerate(before.items()):
                sources[name] = folder / f"{number}"
                sources[name].write_bytes(data)
            return sources
    raise LedgerError(f"{run_dir}: keeps changing while it is exported; try again")


def _select(log: SqliteLog, sources: Mapping[str, Path], chosen: set[int], types: Sequence[str]) -> Selection:
    signed = _tree_heads(log, sources)
    if not signed:
        raise LedgerError(f"{log.path}: no tree head is signed yet, so that no event can be proven; try again later")
    size = signed[-1].size
    for kind in {*ev.KEY_EVENTS, ev.RUN_MANIFEST, ev.RUN_COMPLETE, ev.MODEL_REVOKED, *types}:
        chosen |= {index for index, _ in log.events(kind) if index < size}
    chosen |= set([index for index, _ in log.events(ev.MODEL_RELEASE) if index < size][-1:])
    for index in sorted(chosen):
        if not 0 <= index < log.size:
            raise LedgerError(f"{log.path}: there is no event {index} in a log of {log.size}")
        if index >= size:
            raise LedgerError(f"{log.path}: event {index} is not covered yet: the newest tree head is of {size} events")
    return Selection(
        log.registry.run or "",
        size,
        [Proven(index, log.leaf(index), log.inclusion_proof(index, size)) for index in sorted(chosen)],
        [log.consistency_proof(a.size, b.size) for a, b in pairwise(signed)],
    )


def _tree_heads(log: SqliteLog, sources: Mapping[str, Path]) -> list[heads.TreeHead]:
    key = log.registry.keys.get(log.registry.organizations.get(COORDINATOR, ""))
    if layout.ANCHORS not in sources or key is None:
        return []
    return heads.read_heads(heads.parse_store(sources[layout.ANCHORS].read_bytes()), key)


def _model_files(run_dir: Path, log: SqliteLog) -> dict[str, Path]:
    names: list[str] = []
    for _, envelope in log.events(ev.MODEL_RELEASE):
        names = list(ev.read_event(envelope, log.keys()).body["files"])
    if not names:
        raise LedgerError(f"{run_dir}: no model is released yet")
    return {name: layout.inside(run_dir, name) for name in names}


def _write(path: Path, sources: Mapping[str, Path]) -> None:
    temporary = ""
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), 0o644)
            digests = {name: _digest(source) for name, source in sources.items()}
            _write_member(file, LIST, io.BytesIO(canonical_json({"files": digests, "format": FORMAT})))
            for name in sorted(sources):
                with sources[name].open("rb") as source:
                    _write_member(file, name, source)
            file.write(bytes(_ending(file.tell())))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        fsync_directory(path.parent)
    except OSError as error:
        raise LedgerError(f"{path}: cannot be written: {error.strerror}") from None
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_member(file: IO[bytes], name: str, source: IO[bytes]) -> None:
    size = source.seek(0, os.SEEK_END)
    source.seek(0)
    file.write(_header(name, size))
    while chunk := source.read(_CHUNK):
        file.write(chunk)
    file.write(bytes(-size % _BLOCK))


def _header(name: str, size: int) -> bytes:
    """The one header that a file of this name and size may have. Raises LedgerError if there is none."""
    info = tarfile.TarInfo(name)
    info.size = size
    try:
        header = info.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict")
    except (ValueError, UnicodeError):
        raise LedgerError(f"bundle: {name[:120]!r} is no name that an archive can hold") from None
    return header


def _ending(length: int) -> int:
    """Zero bytes behind the last file: two blocks, and up to a whole record."""
    return 2 * _BLOCK + -(length + 2 * _BLOCK) % tarfile.RECORDSIZE


def unpack(path: str | Path, folder: str | Path) -> list[str]:
    """Take the files out of a bundle; only regular files, and only in the folder.

    Parameters
    ----------
    path
        The bundle.
    folder
        An empty folder.

    Returns
    -------
    list of str
        Names of the files.

    Raises
    ------
    LedgerError
        It is not a bundle, is damaged or too large, or the disk is full.
    """
    path, folder = Path(path), Path(folder)
    try:
        if path.stat().st_size > MAX_BUNDLE_BYTES:
            raise LedgerError(f"is larger than {MAX_BUNDLE_BYTES} bytes")
        with path.open("rb") as file:
            return _unpack(file, folder)
    except LedgerError as error:
        raise LedgerError(f"{path}: {error}") from None
    except OSError as error:
        raise LedgerError(f"{path}: cannot be unpacked: {error.strerror}") from None


def _unpack(file: IO[bytes], folder: Path) -> list[str]:
    name, size = _read_header(file)
    if name != LIST or size > MAX_LIST_BYTES:
        raise LedgerError(f"is not a bundle: it does not begin with {LIST}")
    content = parse_canonical(_read(file, size))
    _read_padding(file, size)
    if not isinstance(content, dict) or content.keys() != {"files", "format"} or content["format"] != FORMAT:
        raise LedgerError(f"is not a bundle of format {FORMAT}")
    files = content["files"]
    if not isinstance(files, dict) or not all(is_digest(digest) for digest in files.values()):
        raise LedgerError(f"{LIST}: files is not a table of digests")
    for wanted in sorted(files):
        layout.check_file_name(wanted)
        name, size = _read_header(file)
        if name != wanted:
            raise LedgerError(f"holds {name!r} where {wanted!r} belongs")
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        with target.open("xb") as out:
            for start in range(0, size, _CHUNK):
                chunk = _read(file, min(_CHUNK, size - start))
                digest.update(chunk)
                out.write(chunk)
        _read_padding(file, size)
        if digest.hexdigest() != files[wanted]:
            raise LedgerError(f"{wanted} is not as {LIST} has it")
    rest = _ending(file.tell())
    if file.read(rest + 1) != bytes(rest):
        raise LedgerError("does not end where it should")
    return sorted(files)


def _read_header(file: IO[bytes]) -> tuple[str, int]:
    block = _read(file, _BLOCK)
    try:
        info = tarfile.TarInfo.frombuf(block, "ascii", "strict")
    except (tarfile.HeaderError, UnicodeError):
        raise LedgerError("is not a bundle, or is damaged") from None
    # One spelling only: so it is a regular file, and nothing hides in the header.
    if info.size < 0 or _header(info.name, info.size) != block:
        raise LedgerError("is not in the form of a bundle")
    return info.name, info.size


def _read(file: IO[bytes], count: int) -> bytes:
    data = file.read(count)
    if len(data) != count:
        raise LedgerError("is cut short")
    return data


def _read_padding(file: IO[bytes], size: int) -> None:
    if any(_read(file, -size % _BLOCK)):
        raise LedgerError("is not in the form of a bundle")
