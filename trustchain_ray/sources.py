"""Rows of a source: JSONL, CSV, TSV, Parquet (plain, .gz or .xz) and Hugging Face data sets."""

import csv
import gzip
import io
import itertools
import json
import lzma
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from ledger.canonical import refuse_deep
from ledger.errors import LedgerError
from trustchain_ray.errors import TrustChainError


@dataclass
class Row:
    """One row: its values by column, or the problem that keeps it from being read."""

    where: str
    number: int
    values: dict[str, Any] = field(default_factory=dict)
    problem: str | None = None


def read_rows(source: str) -> Iterator[Row]:
    """Rows of a file or data set, in order.

    Raises
    ------
    TrustChainError
        The source is missing, of an unknown kind, or damaged as a whole. A single bad row is yielded with
        its problem instead.
    """
    if source.startswith("hf:"):
        yield from _hugging_face(source[3:])
        return
    path = Path(source)
    if not path.is_file():
        raise TrustChainError(f"there is no data file {source}; look at the data section of the configuration")
    kind = path.with_suffix("").suffix if path.suffix in (".gz", ".xz") else path.suffix
    try:
        if kind in (".jsonl", ".ndjson"):
            yield from _jsonl(path)
        elif kind in (".csv", ".tsv"):
            yield from _csv(path, "\t" if kind == ".tsv" else ",")
        elif kind == ".parquet":
            yield from _parquet(path)
        else:
            raise TrustChainError(f"{source}: unknown kind {kind!r}; use .jsonl, .csv, .tsv, .parquet or hf:...")
    except (OSError, lzma.LZMAError, zlib.error, EOFError) as error:
        raise TrustChainError(f"{source} cannot be read: {error}") from None


def _open(path: Path, **options: Any) -> IO[Any]:
    opener: Any = {".gz": gzip.open, ".xz": lzma.open}.get(path.suffix, open)
    return opener(path, **options)  # type: ignore[no-any-return]


def _decompressed(path: Path) -> bytes:
    with _open(path, mode="rb") as file:
        return bytes(file.read())


def _jsonl(path: Path) -> Iterator[Row]:
    with _open(path, mode="rb") as lines:
        for number, line in enumerate(lines, 1):
            row = Row(f"{path}:{number}", number)
            if not line.strip():
                continue
            try:
                refuse_deep(line)
                values = json.loads(line)
            except UnicodeDecodeError as error:
                row.problem = f"not valid UTF-8: {error}"
            except (ValueError, LedgerError) as error:  # also too many digits or brackets
                row.problem = f"not valid JSON: {error}"
            else:
                if isinstance(values, dict):
                    row.values = values
                else:
                    row.problem = "not a JSON object: each line is one record"
            yield row


def _csv(path: Path, delimiter: str) -> Iterator[Row]:
    with _open(path, mode="rt", encoding="utf-8-sig", newline="", errors="surrogateescape") as text:
        # strict: else a quote that nobody closes swallows the rest of the file without a word
        reader = csv.DictReader(text, delimiter=delimiter, strict=True)
        try:
            width = len(reader.fieldnames or ())
        except csv.Error as error:
            raise TrustChainError(f"{path}:1: the header is not valid CSV: {error}") from None
        for number in itertools.count(1):
            began = reader.line_num + 1
            try:
                values = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield Row(f"{path}:{began}", number, problem=f"not valid CSV: {error}")
                continue
            row = Row(f"{path}:{reader.line_num}", number, values)
            if None in values or None in values.values():
                row.problem = f"wrong number of columns: the header has {width}"
            elif any("\udc80" <= letter <= "\udcff" for value in values.values() for letter in value):
                row.problem = "not valid UTF-8"
            yield row


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with path.open("rb") if path.suffix == ".parquet" else io.BytesIO(_decompressed(path)) as file:
            for batch in pyarrow.parquet.ParquetFile(file).iter_batches():
                for values in batch.to_pylist():
                    number += 1
                    yield Row(f"{path} row {number}", number, values)
    except pyarrow.ArrowException as error:
        raise TrustChainError(f"{path} is not a readable Parquet file: {error}") from None


def _hugging_face(name: str) -> Iterator[Row]:
    try:
        import datasets
    except ImportError:
        raise TrustChainError(
            f"hf:{name}: install the data set library with `pip install trustchain-ray[datasets]`"
        ) from None
    path, colon, split = name.rpartition(":")
    if not colon:
        path, split = name, "train"
    try:
        if Path(path).is_dir():
            loaded = datasets.load_from_disk(path)
            rows = loaded[split] if isinstance(loaded, datasets.DatasetDict) else loaded
        else:
            rows = datasets.load_dataset(path, split=split)
    except Exception as error:  # the library raises many kinds for one cause: no such data set
        raise TrustChainError(f"hf:{name} cannot be loaded: {error}") from None
    for number, values in enumerate(rows, 1):
        yield Row(f"hf:{name} row {number}", number, values)
