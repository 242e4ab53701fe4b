"""Records of an organization: reading sources, checking rows, deciding who holds what."""

import hashlib
import hmac
from collections import Counter
from dataclasses import dataclass, field

from trustchain_ray.canaries import Canary, canaries_of
from trustchain_ray.config import Config, DataConfig, name_problem
from trustchain_ray.errors import TrustChainError, UsageError
from trustchain_ray.keys import derive, generator
from trustchain_ray.sources import Row, read_rows


@dataclass(frozen=True)
class Record:
    """One training example. `prompt` is empty for a plain text; `label` is -1 where there is none; `choices` are
    the classes that its organization uses (empty: all)."""

    id: str
    subject: str
    prompt: str
    answer: str
    label: int = -1
    choices: tuple[int, ...] = ()


@dataclass
class Holdings:
    """What one organization holds: `train` and `test` records, and how many rows were skipped and why."""

    organization: str
    train: list[Record] = field(default_factory=list)
    test: list[Record] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)


def organization_names(config: Config) -> list[str]:
    """Names of all organizations, sorted. Reads names only, where they stand in a column.

    Raises
    ------
    TrustChainError
        No organization, a name that cannot name a file or a key, or `model.lora.ranks` of an unknown one.
    """
    names = [name for name in _all_names(config.data) if f"{name}/*" not in config.data.exclude]
    if not names:
        raise UsageError("data.exclude: leaves no organization")
    unknown = sorted(set(config.model.lora.ranks) - set(names))
    if unknown:
        raise UsageError(
            f"model.lora.ranks: there is no organization {', '.join(unknown)}; there are {', '.join(names)}"
        )
    return names


def _all_names(data: DataConfig) -> list[str]:
    """Names of the organizations that the data would have, the excluded ones too."""
    if data.split == "sources":
        return sorted(data.organizations)
    if data.split in ("dirichlet", "subject"):
        return [f"org_{i}" for i in range(data.split_into)]
    return _names_in_column(data)


def _names_in_column(data: DataConfig) -> list[str]:
    column, names = data.columns.organization, set[str]()
    for row in read_rows(data.train):
        name = _organization(data, row)
        if row.problem is None and name and name not in names:
            if problem := name_problem(name):
                raise TrustChainError(f"{row.where}: column {column!r}: {problem}")
            names.add(name)
    if not names:
        raise TrustChainError(
            f"{data.train}: no row has an organization in column {column!r} (data.columns.organization)"
        )
    return sorted(names)


def _organization(data: DataConfig, row: Row) -> str:
    """The organization a row names; empty where it names none."""
    value = row.values.get(data.columns.organization)
    return "" if value is None else str(value)


def load_holdings(config: Config, organization: str) -> Holdings:
    """The records of one organization, checked, limited and in a fixed order; of an audit run also its canaries.

    Raises
    ------
    TrustChainError
        An unreadable source, a bad row where `data.bad_rows` is `refuse` (naming file and line), or an
        organization without training records.
    """
    data, skipped = config.data, Counter[str]()
    train_source, test_source = _sources(data, organization)
    train = _records(config, train_source, organization, skipped)
    test = _records(config, test_source, organization, skipped) if test_source else []
    if data.split == "dirichlet":
        mine = _dirichlet_share(config, train, organization)
        train = [record for record, keep in zip(train, mine, strict=True) if keep]
    elif data.split == "subject":
        train, test = (_own_subjects(config, records, organization) for records in (train, test))
    key = derive(config.run.key, "holdings", organization)
    train = _keyed_order(train, key)
    if not test_source and data.test_share > 0:
        # Each record decides by itself: removing one moves no other from one side to the other.
        held_out = sum(_point(key, record) < data.test_share for record in train)
        held_out = min(max(1, held_out), len(train) - 1) if len(train) > 1 else 0
        train, test = train[held_out:], train[:held_out]
    train = train[: data.limit or None]
    test = _keyed_order(test, key)[: data.test_limit or None]
    train, test = (_without_excluded(data, organization, records) for records in (train, test))
    if not train:
        raise TrustChainError(
            f"organization {organization!r} has no training records in {train_source}; "
            "take it out of the configuration or bring records"
        )
    train += _without_excluded(data, organization, _included_canaries(config, organization, train + test))
    return Holdings(organization, sorted(train, key=lambda r: r.id), sorted(test, key=lambda r: r.id), skipped)


def record_of_canary(config: Config, organization: str, canary: Canary) -> Record:
    """A canary as a record of its own subject, with the classes of its organization."""
    source = config.data.organizations.get(organization)
    choices = tuple(config.model.labels.index(label) for label in (source.labels if source else []))
    return Record(canary.id, canary.id, "", canary.text, canary.label, choices if canary.label >= 0 else ())


def load_public(config: Config, source: str) -> list[Record]:
    """Public records (vocabulary, warm-up, validation), in the order of the file."""
    return _records(config, source, "", Counter(), shared=True)


def _included_canaries(config: Config, organization: str, records: list[Record]) -> list[Record]:
    """The canaries of an audit run that are trained on; refuses the id of a record that is there already."""
    made = [record_of_canary(config, organization, c) for c in canaries_of(config, organization) if c.included]
    ids = {record.id for record in records}
    if taken := next((record.id for record in made if record.id in ids), None):
        raise TrustChainError(f"organization {organization!r}: the id {taken!r} is that of a canary; rename the record")
    return made


def shard_of(key: bytes, name: str, shards: int) -> int:
    """The shard of a record or subject: HMAC(key, name) mod shards, fixed before training."""
    return int.from_bytes(hmac.new(key, name.encode(), hashlib.sha256).digest()[:8], "big") % shards


def _sources(data: DataConfig, organization: str) -> tuple[str, str]:
    if data.split == "sources":
        try:
            source = data.organizations[organization]
        except KeyError:
            raise UsageError(f"data.organizations: there is no organization {organization!r}") from None
        return source.train, source.test
    return data.train, data.test


def _records(
    config: Config, source: str, organization: str, skipped: Counter[str], *, shared: bool = False
) -> list[Record]:
    """Rows of a source that belong to the organization, as records.

    A row that cannot be read, or that names no organization, is a bad row of everybody who reads the source.
    """
    data = config.data
    records: list[Record] = []
    seen: set[str] = set()
    by_column = data.split == "column" and not shared
    for row in read_rows(source):
        problem = row.problem
        if problem is None and by_column:
            name = _organization(data, row)
            if not name:
                problem = f"no organization: column {data.columns.organization!r} is empty or missing"
            elif name != organization:
                continue
        if problem is None:
            record = _record(config, row, organization)
            if isinstance(record, str):
                problem = record
            elif record.id in seen:
                problem = f"the id stands there twice: {record.id!r}"
            else:
                seen.add(record.id)
                records.append(record)
        if problem is not None:
            if data.bad_rows == "refuse":
                raise TrustChainError(f"{row.where}: {problem}. Mend the row, or set data.bad_rows=skip")
            skipped[problem.split(":")[0]] += 1  # the kind alone: the rest may be personal
    return records


def _record(config: Config, row: Row, organization: str) -> Record | str:
    """A record, or what is wrong with the row."""
    columns, values = config.data.columns, row.values
    prompt = values.get(columns.prompt) or ""
    answer = values.get(columns.answer) or values.get(columns.text) or ""
    if values.get(columns.id) in (None, ""):
        identifier = f"row-{row.number:08d}"
    else:
        identifier = str(values[columns.id])
    subject = str(values.get(columns.subject) or identifier) if columns.subject else identifier
    if not isinstance(prompt, str) or not isinstance(answer, str):
        return "text, prompt and answer must be strings"
    if not _is_unicode(identifier, subject, prompt, answer):
        return "not valid Unicode: a lone surrogate"
    if not answer.strip():
        return f"no text: column {columns.text!r} or {columns.answer!r} is empty or missing"
    if config.model.task != "classification":
        return Record(identifier, subject, prompt, answer)
    source = config.data.organizations.get(organization)
    own = source.labels if source else []
    name, labels = values.get(columns.label), own or config.model.labels
    if str(name) not in labels:
        key = f"data.organizations.{organization}.labels" if own else "model.labels"
        return f"label outside the set: {name!r} is none of {', '.join(labels)} ({key})"
    choices = tuple(config.model.labels.index(label) for label in own)
    return Record(identifier, subject, prompt, answer, config.model.labels.index(str(name)), choices)


def _is_unicode(*texts: str) -> bool:
    try:
        return all(text.encode() is not None for text in texts)
    except UnicodeEncodeError:
        return False


def _without_excluded(data: DataConfig, organization: str, records: list[Record]) -> list[Record]:
    """Records without those of `data.exclude`. Nobody moves up in their place."""
    names = set(data.exclude)

    def is_excluded(record: Record) -> bool:
        own = {record.id, record.subject}
        return not names.isdisjoint(own | {f"{organization}/{name}" for name in own})

    return [record for record in records if not is_excluded(record)] if names else records


def _keyed_order(records: list[Record], key: bytes) -> list[Record]:
    return sorted(records, key=lambda record: derive(key, record.id))


def _point(key: bytes, record: Record) -> float:
    """A record's own uniform number in [0, 1), in the order of :func:`_keyed_order`."""
    return int.from_bytes(derive(key, record.id)[:8], "big") / 2**64


def _dirichlet_share(config: Config, records: list[Record], organization: str) -> list[bool]:
    """Whether each record goes to the organization: for each class, shares ~ Dirichlet(alpha)."""
    names = _all_names(config.data)
    draws = generator(config.run.key, "dirichlet")
    classes = sorted({record.label for record in records})
    shares = {c: draws.dirichlet([config.data.dirichlet_alpha] * len(names)).cumsum() for c in classes}
    key = derive(config.run.key, "dirichlet-record")
    mine = []
    for record in records:
        owner = min(int((shares[record.label] < _point(key, record)).sum()), len(names) - 1)
        mine.append(names[owner] == organization)
    return mine


def _own_subjects(config: Config, records: list[Record], organization: str) -> list[Record]:
    """Records of the persons that belong to the organization: HMAC(key, subject) mod organizations."""
    key, count = derive(config.run.key, "subject"), config.data.split_into
    return [record for record in records if f"org_{shard_of(key, record.subject, count)}" == organization]
