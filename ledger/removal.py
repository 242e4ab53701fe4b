"""What a certificate of removal states: an in-toto Statement v1 whose predicate says what was removed, and how.

Numbers that are not integers stand as strings. Records appear only as commitments whose salts were destroyed.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from ledger.canonical import canonical_json, parse_canonical, sha256_hex
from ledger.errors import LedgerError
from ledger.manifest_proof import EMPTY_ROOT
from ledger.provenance import ADAPTER, MODEL, SHARD, UPDATE, Graph, Node
from ledger.shape import DICT, DIGEST, INT, LIST, STR, fields, rows

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://trustchain-ray.org/unlearning/v1"

EXACT_BITWISE, EXACT_DISTRIBUTION = "EXACT_BITWISE", "EXACT_DISTRIBUTION"
CERTIFIED, APPROXIMATE = "CERTIFIED", "APPROXIMATE"
GUARANTEES = (EXACT_BITWISE, EXACT_DISTRIBUTION, CERTIFIED, APPROXIMATE)

RECORD, SUBJECT, ORGANIZATION = "record", "subject", "organization"
SCOPES = (RECORD, SUBJECT, ORGANIZATION)

EXACT_METHODS = ("replay", "drop", "retrain")
METHODS = (*EXACT_METHODS, "perturb", "ascent", "graddiff", "npo", "simnpo")

BITWISE, TOLERANCE = "bitwise", "tolerance"
"""Reproducibility classes: replayed in the hardware class of the run, or in another one."""

TRAIN, TEST = "train", "test"


@dataclass(frozen=True)
class Removed:
    """Records of one shard that a request takes out.

    Attributes
    ----------
    cohort, split
        The shard: cohort and ``train``, or an empty cohort and ``test``.
    commitments
        In order, none twice; empty where a whole organization leaves.
    """

    cohort: str
    commitments: list[str]
    split: str = TRAIN


@dataclass(frozen=True)
class Request:
    """A request that this removal serves.

    Attributes
    ----------
    request
        Random id, 64 hex digits: it says nothing about the person.
    organization
        Whose records they are.
    scope
        One of :data:`SCOPES`.
    """

    request: str
    organization: str
    scope: str
    removed: list[Removed]


@dataclass(frozen=True)
class Shard:
    """A shard before and after.

    Attributes
    ----------
    round
        The first round that may have read one of the records; what came before stays.
    proof
        Of :meth:`~ledger.manifest_tree.ManifestTree.deletion_proof`; empty where the whole shard goes.
    """

    organization: str
    cohort: str
    old_root: str
    new_root: str
    round: int
    proof: str
    split: str = TRAIN


@dataclass(frozen=True)
class Entry:
    """A node of the closure (:func:`ledger.provenance.closure`): its digests before and after.

    ``new`` is None where it was dropped, and ``old`` where an approximate method keeps it.
    """

    kind: str
    name: str
    old: str
    new: str | None


@dataclass(frozen=True)
class Start:
    """The adapter from which a cohort was replayed: that of a round before the first use, 0 for the initial one."""

    cohort: str
    round: int
    digest: str


@dataclass(frozen=True)
class Removal:
    """The predicate of a certificate.

    Attributes
    ----------
    run
        Id of the run.
    issuers
        Who must sign, in order of names: the organizations whose records they were, or the coordinator for one that
        left.
    guarantee, method
        One of :data:`GUARANTEES`, of :data:`METHODS`.
    reproducibility
        ``class`` (:data:`BITWISE`, :data:`TOLERANCE`) and ``environments``, digests by organization.
    participation
        ``recorded``: the replay took each organization's effort from the log.
    noise
        ``none``, or ``fresh`` where privacy noise was drawn anew.
    digests
        Of ``manifest``, ``code``, ``base`` and whatever else the run committed to.
    keys
        Commitments to keys by purpose: SHA-256 of the run's key derivations, of a fresh noise key.
    steps
        ``replayed`` and ``total`` training steps, over all members.
    privacy
        Rows of ``organization``, ``epsilon_before``, ``epsilon_after``, ``delta``.
    cost, timings, checks
        Figures as strings: shares, seconds, metrics.
    model
        ``old`` and ``new`` digest.
    withdrawn
        Digests of all models that must not be used any more, in order.
    """

    run: str
    issuers: list[str]
    guarantee: str
    method: str
    reproducibility: dict[str, Any]
    digests: dict[str, str]
    keys: dict[str, str]
    requests: list[Request]
    shards: list[Shard]
    closure: list[Entry]
    start: list[Start]
    steps: dict[str, int]
    model: dict[str, str]
    withdrawn: list[str]
    privacy: list[dict[str, str]] = field(default_factory=list)
    cost: dict[str, str] = field(default_factory=dict)
    timings: dict[str, str] = field(default_factory=dict)
    checks: dict[str, str] = field(default_factory=dict)
    noise: str = "none"
    participation: str = "recorded"


def removed_digest(removed: Iterable[Removed]) -> str:
    """What an UNLEARN_REQUEST event says in place of the commitments: SHA-256 of their canonical JSON."""
    return sha256_hex(canonical_json([asdict(entry) for entry in removed]))


def entries_of(graph: Graph, closure: Iterable[Node], until: int) -> list[Entry]:
    """What became of each node of a closure, as the log has it.

    Parameters
    ----------
    graph, closure
        Of :mod:`ledger.provenance`, after the removal was executed.
    until
        Position of the withdrawal, as it was given to :func:`ledger.provenance.closure`.

    Returns
    -------
    list of Entry
        With the newest digest that was logged after the withdrawal. The last model gives way to the newest one; of
        models released before it, and of what was not made again, nothing is left. A shard without a newer version is
        empty now. Updates and adapters that were not withdrawn (by an approximate method) stay.
    """
    newest = {(node.kind, node.name): node.digest for node in graph.nodes if node.event > until}
    model = next((node.digest for node in reversed(graph.nodes) if node.kind == MODEL and node.event > until), None)
    nodes = list(closure)
    last = max((node.index for node in nodes if node.kind == MODEL), default=-1)
    entries = []
    for node in nodes:
        new = newest.get((node.kind, node.name), EMPTY_ROOT if node.kind == SHARD else None)
        if new is None and node.kind in (UPDATE, ADAPTER) and node.index not in graph.withdrawn:
            new = node.digest
        if node.kind == MODEL:
            new = model if node.index == last else None
        entries.append(Entry(node.kind, node.name, node.digest, new))
    return entries


def statement_of(removal: Removal) -> bytes:
    """The in-toto statement, in canonical JSON. Raises LedgerError on a value that JSON cannot hold."""
    subject: list[dict[str, Any]] = [{"name": "model", "digest": {"sha256": removal.model["new"]}}]
    subject += [
        {"name": f"{entry.kind} {entry.name}", "digest": {"sha256": entry.new}}
        for entry in removal.closure
        if entry.new is not None and entry.kind not in (MODEL, SHARD)
    ]
    return canonical_json(
        {
            "_type": STATEMENT_TYPE,
            "predicate": asdict(removal),
            "predicateType": PREDICATE_TYPE,
            "subject": subject,
        }
    )


_PREDICATE = {
    "run": STR, "issuers": LIST, "guarantee": STR, "method": STR, "reproducibility": DICT, "digests": DICT,
    "keys": DICT, "requests": LIST, "shards": LIST, "closure": LIST, "start": LIST, "steps": DICT, "model": DICT,
    "withdrawn": LIST, "privacy": LIST, "cost": DICT, "timings": DICT, "checks": DICT, "noise": STR,
    "participation": STR,
}  # fmt: skip
_REQUEST = {"request": DIGEST, "organization": STR, "scope": STR, "removed": LIST}
_REMOVED = {"cohort": STR, "split": STR, "commitments": LIST}
_SHARD = {
    "organization": STR, "cohort": STR, "split": STR, "old_root": DIGEST, "new_root": DIGEST, "round": INT,
    "proof": STR,
}  # fmt: skip
_ENTRY = {"kind": STR, "name": STR, "old": DIGEST, "new": "digest?"}
_START = {"cohort": STR, "round": INT, "digest": DIGEST}
_PRIVACY = {"organization": STR, "epsilon_before": STR, "epsilon_after": STR, "delta": STR}


def read_statement(data: bytes) -> Removal:
    """Read a statement, strictly. Raises LedgerError unless it is exactly what :func:`statement_of` writes."""
    kinds = {"_type": STR, "predicate": DICT, "predicateType": STR, "subject": LIST}
    content = fields(parse_canonical(data), kinds, "statement")
    if (content["_type"], content["predicateType"]) != (STATEMENT_TYPE, PREDICATE_TYPE):
        raise LedgerError(f"statement: is not an in-toto Statement v1 of {PREDICATE_TYPE}")
    said = fields(content["predicate"], _PREDICATE, "predicate")
    requests = [
        Request(**{**row, "removed": [Removed(**entry) for entry in rows(row["removed"], _REMOVED, "removed")]})
        for row in rows(said["requests"], _REQUEST, "requests")
    ]
    fields(said["reproducibility"], {"class": STR, "environments": DICT}, "reproducibility")
    fields(said["steps"], {"replayed": INT, "total": INT}, "steps")
    fields(said["model"], {"old": DIGEST, "new": DIGEST}, "model")
    rows(said["privacy"], _PRIVACY, "privacy")
    removal = Removal(
        **{
            **said,
            "requests": requests,
            "shards": [Shard(**row) for row in rows(said["shards"], _SHARD, "shards")],
            "closure": [Entry(**row) for row in rows(said["closure"], _ENTRY, "closure")],
            "start": [Start(**row) for row in rows(said["start"], _START, "start")],
        }
    )
    if statement_of(removal) != data:
        raise LedgerError("statement: its subjects are not the new model and the recomputed artifacts of its closure")
    return removal
