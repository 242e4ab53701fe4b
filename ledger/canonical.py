"""Canonical bytes: JSON (RFC 8785, no floats), digests of named tensors, atomic files."""

import contextlib
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from ledger.errors import LedgerError

MAX_INT = 2**53 - 1
"""Largest integer that every JSON reader keeps exactly (RFC 8785, section 3.2.2.3)."""

TENSORS_TAG = b"trustchain.tensors.v1\n"
"""Domain tag of :func:`tensors_digest`: its hashes can be taken for nothing else."""

MAX_HEADER_BYTES = 100_000_000
"""Largest header the safetensors format allows."""

ITEM_SIZE = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1,
    "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4,
    "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip
"""Bytes per element of every dtype of safetensors that is accepted."""

_HEX_DIGEST = re.compile(r"[0-9a-f]{64}")

_Where = tuple[Any, str | int] | None  # (place of the parent, key or index): cheap until it is shown

MAX_DEPTH = 64
"""Deepest nesting of JSON that is read or written."""

_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"')
_BRACKET = re.compile(rb"[\[\]{}]")

TensorEntry = tuple[str, tuple[int, ...], bytes | memoryview]
"""A tensor: dtype as in safetensors, shape, little-endian bytes."""


def canonical_json(obj: Any) -> bytes:
    """Encode ``obj`` as RFC 8785 canonical JSON.

    Parameters
    ----------
    obj
        Nested dict, list, str, bool, None and int with ``|n| < 2**53``.

    Returns
    -------
    bytes
        UTF-8; keys in UTF-16 order, no white space.

    Raises
    ------
    LedgerError
        A float (write it as a string), an integer out of range, a key that is no string, a lone surrogate,
        or any other type.
    """
    try:
        ordered = _ordered(obj, None, 0)
        return _ENCODER.encode(ordered).encode()
    except UnicodeEncodeError:
        raise LedgerError("canonical JSON: a string holds a lone surrogate; it is not valid Unicode") from None


def _ordered(obj: Any, where: _Where, depth: int) -> Any:
    """Copy of ``obj`` with sorted keys, after checking every type; ``where`` is for messages."""
    kind = type(obj)
    if depth > MAX_DEPTH:
        raise LedgerError("canonical JSON: the value is nested too deeply, or contains itself")
    if kind is str or kind is bool or obj is None:
        return obj
    if kind is int:
        if -MAX_INT <= obj <= MAX_INT:
            return obj
        raise LedgerError(f"canonical JSON: {_path(where)}: integer {obj} is not within 2**53; use a string")
    if kind is dict:
        try:
            # Code point order is UTF-16 order unless a key lies beyond the basic plane.
            names = sorted(obj) if "".join(obj).isascii() else sorted(obj, key=lambda k: k.encode("utf-16-be"))
        except TypeError:
            raise LedgerError(f"canonical JSON: {_path(where)}: a key is not a string") from None
        return {name: _ordered(obj[name], (where, name), depth + 1) for name in names}
    if kind is list:
        return [_ordered(item, (where, i), depth + 1) for i, item in enumerate(obj)]
    if kind is float:
        raise LedgerError(f"canonical JSON: {_path(where)}: floats are refused ({obj!r}); write it as a string")
    raise LedgerError(f"canonical JSON: {_path(where)}: {kind.__name__} is not a JSON type (list, not tuple)")


def _path(where: _Where) -> str:
    """Spell out a place in a document, like ``scores.bank[2]``."""
    if where is None:
        return "value"
    parent, step = where
    if isinstance(step, int):
        return f"{'' if parent is None else _path(parent)}[{step}]"
    return step if parent is None else f"{_path(parent)}.{step}"


def parse_canonical(data: bytes) -> Any:
    """Parse bytes that must be exactly the canonical JSON of what they say.

    Raises
    ------
    LedgerError
        Not JSON, a float, a duplicate key, or any spelling other than the canonical one.
    """
    refuse_deep(data)
    try:
        text = data.decode()
        obj, end = _DECODER.raw_decode(text)
    except ValueError as error:  # bad UTF-8, bad JSON, integers with thousands of digits
        raise LedgerError(f"not JSON: {error}") from None
    if end != len(text):
        raise LedgerError(f"canonical JSON: not in canonical form (RFC 8785): more follows character {end}")
    try:
        again = _encoded_again(obj, data)
    except UnicodeEncodeError:
        raise LedgerError("canonical JSON: a string holds a lone surrogate; it is not valid Unicode") from None
    if again != data:
        duplicate = _first_duplicate(data)
        reason = f"key {duplicate!r} occurs twice" if duplicate is not None else "not in canonical form (RFC 8785)"
        raise LedgerError(f"canonical JSON: {reason}")
    return obj


def _encoded_again(obj: Any, data: bytes) -> bytes:
    """Canonical JSON of what was parsed from ``data``, which has only JSON's types, and integers in range."""
    if not data.isascii():
        return canonical_json(obj)
    # Sorting by code points is sorting by UTF-16 for all keys that canonical ASCII can hold.
    return _SORTED_ENCODER.encode(obj).encode()


def refuse_deep(data: bytes) -> None:
    """Refuse JSON nested deeper than :data:`MAX_DEPTH` before it is parsed.

    The recursion limit is no guard: libraries raise it (py-evm to 100,000), and then the parser runs out of stack.

    Raises
    ------
    LedgerError
        It is nested too deeply.
    """
    if data.count(b"[") + data.count(b"{") <= MAX_DEPTH:
        return
    depth = 0
    for bracket in _BRACKET.finditer(_STRING.sub(b"", data)):
        depth += 1 if bracket[0] in b"[{" else -1
        if depth > MAX_DEPTH:
            raise LedgerError("JSON: nested too deeply")


def _refuse_float(text: str) -> NoReturn:
    raise LedgerError(f"canonical JSON: floats are refused ({text}); write it as a string")


def _bounded_int(text: str) -> int:
    number = int(text)
    if -MAX_INT <= number <= MAX_INT:
        return number
    raise LedgerError(f"canonical JSON: integer {text[:40]} is not within 2**53; use a string")


_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), check_circular=False)
_SORTED_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), check_circular=False, sort_keys=True)
_DECODER = json.JSONDecoder(parse_float=_refuse_float, parse_constant=_refuse_float, parse_int=_bounded_int)


def _first_duplicate(data: bytes) -> str | None:
    found: list[str] = []

    def look(pairs: list[tuple[str, Any]]) -> None:
        names = [name for name, _ in pairs]
        found.extend(name for name in names if names.count(name) > 1)

    json.loads(data, object_pairs_hook=look)
    return found[0] if found else None


def sha256_hex(data: bytes | memoryview) -> str:
    """SHA-256 of ``data`` as 64 lower-case hex digits."""
    return hashlib.sha256(data).hexdigest()


def is_digest(value: object) -> bool:
    """Whether ``value`` is a string of 64 lower-case hex digits."""
    return isinstance(value, str) and _HEX_DIGEST.fullmatch(value) is not None


def tensors_digest(tensors: Mapping[str, TensorEntry]) -> str:
    """Digest of named tensors, independent of the file they lie in.

    SHA-256 over :data:`TENSORS_TAG`, then for each name in sorted order the canonical JSON of
    ``{"dtype","name","shape"}`` and the little-endian bytes, each after its length (8 bytes, big-endian).

    Parameters
    ----------
    tensors
        Name to (dtype as in safetensors, shape, bytes).

    Returns
    -------
    str
        64 hex digits.

    Raises
    ------
    LedgerError
        Unknown dtype, or bytes that do not fit dtype and shape.
    """
    digest = hashlib.sha256(TENSORS_TAG)
    for name in sorted(tensors):
        dtype, shape, data = tensors[name]
        # One dimension of bytes, whatever array the buffer comes from: lengths below are in bytes.
        view = memoryview(data).cast("B") if memoryview(data).nbytes else memoryview(b"")
        expected = _tensor_bytes(name, dtype, shape)
        if view.nbytes != expected:
            raise LedgerError(f"tensor {name!r}: {dtype}{list(shape)} needs {expected} bytes, got {view.nbytes}")
        head = canonical_json({"dtype": dtype, "name": name, "shape": list(shape)})
        digest.update(len(head).to_bytes(8, "big"))
        digest.update(head)
        digest.update(view.nbytes.to_bytes(8, "big"))
        digest.update(view)
    return digest.hexdigest()


def _tensor_bytes(name: str, dtype: object, shape: Sequence[object]) -> int:
    if not isinstance(dtype, str) or dtype not in ITEM_SIZE:
        raise LedgerError(f"tensor {name!r}: unknown dtype {dtype!r}; known: {', '.join(sorted(ITEM_SIZE))}")
    count = ITEM_SIZE[dtype]
    for size in shape:
        if type(size) is not int or not 0 <= size <= MAX_INT:
            raise LedgerError(f"tensor {name!r}: shape {list(shape)} is not a list of sizes")
        count *= size
    return count


def safetensors_entries(path: str | Path) -> tuple[dict[str, TensorEntry], dict[str, str]]:
    """Read a safetensors file, strictly, with the standard library alone.

    Parameters
    ----------
    path
        The file; it is read into memory once.

    Returns
    -------
    tuple
        Tensors by name (views into one buffer) and the metadata.

    Raises
    ------
    LedgerError
        Missing or truncated file, a header that is not valid JSON of the right form, a duplicate name, an
        unknown dtype, lengths that do not fit the shape, or tensors that overlap, leave gaps, or do not end
        with the file.
    """
    path = Path(path)
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise LedgerError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        return _parse_safetensors(raw)
    except LedgerError as error:
        raise LedgerError(f"{path}: {error}") from None


def _parse_safetensors(raw: bytes) -> tuple[dict[str, TensorEntry], dict[str, str]]:
    if len(raw) < 8:
        raise LedgerError("not a safetensors file: shorter than its 8-byte header length")
    length = int.from_bytes(raw[:8], "little")
    if length > min(MAX_HEADER_BYTES, len(raw) - 8):
        raise LedgerError(f"safetensors: header of {length} bytes does not fit the file of {len(raw)}")
    refuse_deep(raw[8 : 8 + length])
    try:
        header = json.loads(raw[8 : 8 + length].decode(), object_pairs_hook=_unique_names)
    except ValueError as error:
        raise LedgerError(f"safetensors: header is not JSON: {error}") from None
    if not isinstance(header, dict) or raw[8:9] != b"{":
        raise LedgerError("safetensors: header is not a JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise LedgerError("safetensors: __metadata__ is not a table of strings")

    data = memoryview(raw)[8 + length :]
    tensors: dict[str, TensorEntry] = {}
    spans: list[tuple[int, int, str]] = []
    for name, entry in header.items():
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise LedgerError(f"safetensors: tensor {name!r} needs exactly dtype, shape and data_offsets")
        shape, offsets = entry["shape"], entry["data_offsets"]
        if not isinstance(shape, list):
            raise LedgerError(f"safetensors: tensor {name!r}: shape is not a list")
        if not isinstance(offsets, list) or len(offsets) != 2 or any(type(x) is not int for x in offsets):
            raise LedgerError(f"safetensors: tensor {name!r}: data_offsets is not two integers")
        begin, end = offsets
        if end - begin != _tensor_bytes(name, entry["dtype"], shape):
            raise LedgerError(f"safetensors: tensor {name!r}: offsets {offsets} do not fit its dtype and shape")
        spans.append((begin, end, name))
        tensors[name] = (entry["dtype"], tuple(shape), data[max(begin, 0) : max(end, 0)])
    position = 0
    for begin, end, name in sorted(spans):
        if begin != position:
            raise LedgerError(f"safetensors: tensor {name!r} begins at {begin}, not at {position}: gap or overlap")
        position = end
    if position != len(data):
        raise LedgerError(f"safetensors: tensors end at {position} but the file holds {len(data)} bytes of data")
    return tensors, metadata


def _unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a name occurs twice")
    return table


def safetensors_digest(path: str | Path) -> str:
    """:func:`tensors_digest` of a safetensors file; its metadata does not count. Raises LedgerError."""
    return tensors_digest(safetensors_entries(path)[0])


def fsync_directory(directory: str | Path) -> None:
    """Make renames, new names and removals inside ``directory`` durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(path: str | Path, data: bytes, mode: int = 0o644) -> None:
    """Replace ``path`` by ``data``, durably: a crash leaves the old file or the new one, never a part.

    Raises
    ------
    LedgerError
        The file cannot be written (full disk, no permission); the old one is untouched.
    """
    path = Path(path)
    temporary = ""
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        fsync_directory(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise LedgerError(f"{path}: cannot be written: {error.strerror}; the old content is kept") from None
