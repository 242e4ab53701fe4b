"""What an organization keeps about its records of one run, outside the run: salts, and what is being removed.

Format
------
`<keystore>/../custody/<run>/<organization>.sqlite` (:mod:`ledger.salts`; names are `train/<id>` and `test/<id>`), and
`<organization>.removal.json` while a removal is under way: its id and the names of the records that it takes out. Both
have mode 0600. When the removal is certified, the salts are destroyed and the second file is deleted.
"""

import dataclasses
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ledger.canonical import canonical_json, parse_canonical, write_atomic
from ledger.commitments import commit, content_tag
from ledger.errors import LedgerError
from ledger.manifest_tree import ManifestTree
from ledger.removal import ORGANIZATION, RECORD, TEST, TRAIN
from ledger.salts import SaltStore
from trustchain_ray.config import Config
from trustchain_ray.data import Holdings, Record
from trustchain_ray.errors import TrustChainError
from trustchain_ray.keystore import keystore

Shard = tuple[str, str]
"""Cohort and `train`, or an empty cohort and `test`."""


@dataclass(frozen=True)
class Asked:
    """What a request wants removed.

    Attributes
    ----------
    scope
        `record`, `subject` or `organization`.
    ids
        Of records or subjects.
    key, tags
        Content tags (:func:`ledger.commitments.content_tag`) by which other organizations find copies.
    """

    scope: str
    ids: tuple[str, ...] = ()
    key: bytes = b""
    tags: tuple[str, ...] = ()


def custody_folder(config: Config, run: str) -> Path:
    """Folder of the organizations of this keystore for one run."""
    return keystore(config).parent / "custody" / run


def statement_of_record(record: Record) -> dict[str, Any]:
    """Everything that training can read of a record, as JSON: what its commitment is to."""
    said: dict[str, Any] = {
        "id": record.id, "subject": record.subject, "prompt": record.prompt, "answer": record.answer,
    }  # fmt: skip
    if record.label >= 0:
        said["label"] = record.label
    if record.choices:
        said["choices"] = list(record.choices)
    return said


class Custody:
    """Salts, shard manifests and removals of one organization in one run.

    Parameters
    ----------
    folder
        See :func:`custody_folder`; made with mode 0700 when it is needed.
    """

    def __init__(self, folder: Path, run: str, organization: str) -> None:
        self.run, self.organization = run, organization
        self._salts_path = folder / f"{organization}.sqlite"
        self._pending_path = folder / f"{organization}.removal.json"
        self._store: SaltStore | None = None
        self._commitments: dict[str, str] = {}

    @property
    def pending(self) -> str | None:
        """Id of the removal that is under way."""
        return self._pending()[0]

    def held(self, holdings: Holdings) -> Holdings:
        """Holdings without the records that were removed from this run."""
        if not self._salts_path.exists():
            return holdings
        names = [*_names(TRAIN, holdings.train), *_names(TEST, holdings.test)]
        return _without(holdings, self.store.erased(names))

    def kept(self, held: Holdings) -> Holdings:
        """Of what is :meth:`held` the records that are not being removed."""
        return _without(held, set(self._pending()[1]))

    def commitments(self, split: str, records: Sequence[Record]) -> list[str]:
        """Commitments to records, in their order; salts are made where there are none."""
        names = _names(split, records)
        missing = [(n, r) for n, r in zip(names, records, strict=True) if n not in self._commitments]
        salts = self.store.salts([name for name, _ in missing])
        self._commitments |= {name: commit(salts[name], statement_of_record(record)) for name, record in missing}
        return [self._commitments[name] for name in names]

    def tree(self, split: str, records: Sequence[Record]) -> ManifestTree:
        """Manifest of a shard that holds these records."""
        return ManifestTree.of(self.commitments(split, records))

    def salts(self, split: str, records: Sequence[Record]) -> list[bytes]:
        """Salts of records that were committed to, in their order."""
        found = self.store.known(_names(split, records))
        return [found[name] for name in _names(split, records)]

    def reserve(self, removal: str, train: Sequence[Record], test: Sequence[Record]) -> None:
        """Take records out from now on, durably, as part of a removal. Again with the same ones: no-op.

        Raises
        ------
        TrustChainError
            Another removal is under way.
        """
        under_way, names = self._pending()
        wanted = sorted([*_names(TRAIN, train), *_names(TEST, test)])
        if under_way is not None and (under_way, names) != (removal, wanted):
            raise TrustChainError(f"{self._pending_path}: removal {under_way[:16]} is under way; finish it first")
        self._pending_path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomic(self._pending_path, canonical_json({"records": wanted, "removal": removal}), 0o600)

    def release(self, known: Collection[str]) -> bool:
        """Forget a reservation of a removal that nobody but this organization knows of: its records stay.

        Returns
        -------
        bool
            Whether there was one.
        """
        under_way = self.pending
        if under_way is None or under_way in known:
            return False
        self._pending_path.unlink()
        return True

    def erase(self, removal: str) -> int:
        """Destroy the salts of a removal's records, for good; how many this call destroyed."""
        under_way, names = self._pending()
        if under_way != removal:
            return 0
        destroyed = self.store.destroy(names) if names else 0
        for name in names:
            self._commitments.pop(name, None)
        self._pending_path.unlink()
        return destroyed

    def erased(self, split: str, ids: Sequence[str]) -> set[str]:
        """Those of the ids whose records were removed from this run before."""
        if not self._salts_path.exists():
            return set()
        gone = self.store.erased([f"{split}/{name}" for name in ids])
        return {name.split("/", 1)[1] for name in gone}

    @property
    def store(self) -> SaltStore:
        """The salts, opened at the first call."""
        if self._store is None:
            self._store = SaltStore(self._salts_path, self.run, self.organization)
        return self._store

    def _pending(self) -> tuple[str | None, list[str]]:
        if not self._pending_path.exists():
            return None, []
        try:
            said = parse_canonical(self._pending_path.read_bytes())
            return str(said["removal"]), [str(name) for name in said["records"]]
        except (LedgerError, OSError, KeyError, TypeError) as error:
            raise TrustChainError(f"{self._pending_path}: is damaged ({error}); restore it from a backup") from None


def matching(asked: Asked, records: Sequence[Record]) -> list[Record]:
    """Those of the records that a request names, by id, by subject, or by content."""
    if asked.scope == ORGANIZATION:
        return list(records)
    ids, tags = set(asked.ids), set(asked.tags)
    found = []
    for record in records:
        named = (record.id if asked.scope == RECORD else record.subject) in ids
        if named or (tags and content_tag(asked.key, content_of(record)) in tags):
            found.append(record)
    return found


def content_of(record: Record) -> dict[str, str]:
    """The text of a record, without id and subject, which differ between organizations."""
    return {"prompt": record.prompt, "answer": record.answer}


def tags_of(key: bytes, records: Sequence[Record]) -> tuple[str, ...]:
    """Content tags of records under a request key, sorted."""
    return tuple(sorted({content_tag(key, content_of(record)) for record in records}))


def _without(holdings: Holdings, gone: set[str]) -> Holdings:
    if not gone:
        return holdings
    train = [record for record in holdings.train if f"{TRAIN}/{record.id}" not in gone]
    test = [record for record in holdings.test if f"{TEST}/{record.id}" not in gone]
    return dataclasses.replace(holdings, train=train, test=test)


def _names(split: str, records: Sequence[Record]) -> list[str]:
    return [f"{split}/{record.id}" for record in records]
