"""Inclusion receipts: an organization confirms which records of a person are in a run. Needs no cluster."""

from collections.abc import Sequence
from pathlib import Path

from ledger.canonical import write_atomic
from ledger.errors import LedgerError
from ledger.events import SHARD_MANIFEST
from ledger.identity import Identity, load
from ledger.receipts import Entry, Opening, entry_of, issue, opening_of
from ledger.removal import RECORD, TEST, TRAIN
from trustchain_ray.begun import read_begun
from trustchain_ray.cohorts import records_of
from trustchain_ray.config import Config
from trustchain_ray.custody import Asked, Custody, Shard, matching, statement_of_record
from trustchain_ray.data import Holdings, Record, load_holdings
from trustchain_ray.errors import TrustChainError, UsageError
from trustchain_ray.forgetting.amendments import Amendments
from trustchain_ray.forgetting.history import History
from trustchain_ray.keystore import keystore, retired_identity
from trustchain_ray.run_directory import RunDirectory, explain_writes


def issue_receipt(folder: Path, organization: str, scope: str, ids: Sequence[str]) -> tuple[bytes, int]:
    """A receipt of what an organization's records of a run, as they are now, hold of a person.

    The run may be at work; nothing of it is changed.

    Parameters
    ----------
    folder
        The run directory.
    scope
        `subject` or `record`: what the ids are of.

    Returns
    -------
    tuple
        The receipt, and the number of records in it.

    Raises
    ------
    UsageError
        Not a run, or an organization or id that is not in it (any more).
    TrustChainError
        Records and key of the organization do not lie here, or the records are not those that the run's log names.
    """
    begun = read_begun(RunDirectory(folder))
    run, config, history = begun.run, begun.config, History.read(folder, begun.manifest)
    amended = Amendments.read(run)
    _check_member(organization, history, amended)
    if not begun.keeps(organization):
        raise TrustChainError(
            f"organization {organization!r} keeps the salts of this run elsewhere (they are not in {begun.custodies}); "
            "issue the receipt there"
        )
    identity = _identity(config, run, organization)
    custody, everything = begun.custody(organization), load_holdings(config, organization)
    kept = custody.kept(custody.held(everything))
    asked = Asked(scope, tuple(dict.fromkeys(ids)))
    _check_known(asked, custody, everything, kept, str(run.path))
    entries: list[Entry] = []
    openings: list[Opening] = []
    for shard, records in _shards(config, history, organization, kept).items():
        mine = matching(asked, records)
        if mine:
            entry, opened = _confirm(custody, history, shard, records, mine)
            entries.append(entry)
            openings += opened
    return issue(identity, begun.manifest["run"], entries, openings), len(openings)


def write_receipt(path: Path, data: bytes) -> None:
    """Write a receipt whole, readable by its owner alone. Raises TrustChainError."""
    with explain_writes(path):
        write_atomic(path, data, 0o600)


def _check_member(organization: str, history: History, amended: Amendments) -> None:
    left = [name for name in history.manifest["organizations"] if name not in amended.left]
    if organization not in left:
        gone = "has left the run" if organization in amended.left else "is not in the run"
        raise UsageError(f"organization {organization!r} {gone}; there are {', '.join(left)}")


def _identity(config: Config, run: RunDirectory, organization: str) -> Identity:
    """The key with which the organization registered. Raises TrustChainError where another one lies here."""
    registered, folder = run.read_json(f"identities/{organization}.json")["key_id"], keystore(config)
    try:
        identity = retired_identity(organization, folder, registered) or load(organization, folder)
    except LedgerError as error:
        raise TrustChainError(str(error)) from None
    if identity.key_id != registered:
        raise TrustChainError(
            f"{keystore(config)}: the key of {organization} is not the one that it registered in this run; "
            "point TRUSTCHAIN_HOME or run.keystore to the right one"
        )
    return identity


def _check_known(asked: Asked, custody: Custody, everything: Holdings, kept: Holdings, run: str) -> None:
    """Every id is there, and neither was removed nor is being removed. Raises UsageError."""

    def names(holdings: Holdings) -> set[str]:
        records = matching(asked, [*holdings.train, *holdings.test])
        return {record.id if asked.scope == RECORD else record.subject for record in records}

    for name in sorted(set(asked.ids) - names(kept)):
        if name in names(custody.held(everything)):
            raise UsageError(f"{asked.scope} {name!r} is being removed; go on with that: trustchain unlearn {run}")
        # of a subject the source alone can tell, where it still delivers what was removed
        gone = asked.scope == RECORD and any(custody.erased(split, [name]) for split in (TRAIN, TEST))
        if gone or name in names(everything):
            raise UsageError(f"{asked.scope} {name!r} was removed from {run}: there is nothing to confirm")
        raise UsageError(
            f"{asked.scope} {name!r} is not held by organization {custody.organization!r}; "
            f"see: trustchain unlearn {run} --list"
        )


def _shards(config: Config, history: History, organization: str, kept: Holdings) -> dict[Shard, list[Record]]:
    """The organization's records by shard."""
    own = [cohort for cohort, members in history.manifest["cohorts"].items() if organization in members]
    found: dict[Shard, list[Record]] = {}
    for cohort in sorted(own):
        chosen = records_of(config.federation, config.run.key, organization, cohort, kept.train)
        found[cohort, TRAIN] = [kept.train[i] for i in chosen]
    return {**found, ("", TEST): list(kept.test)}


def _confirm(
    custody: Custody, history: History, shard: Shard, records: Sequence[Record], mine: Sequence[Record]
) -> tuple[Entry, list[Opening]]:
    """What a receipt says of one shard. Raises TrustChainError where the log does not have the shard as it is here."""
    cohort, split = shard
    roots = [
        event.body["root"]
        for event in history.events
        if event.type == SHARD_MANIFEST
        and (event.organization, event.body["cohort"], event.body["split"]) == (custody.organization, cohort, split)
    ]
    try:
        salts = custody.salts(split, mine)
        custody.salts(split, records)  # none is made here: a record that has no salt was not in the run
        tree = custody.tree(split, records)
    except KeyError:
        tree = None
    if tree is None or not roots or tree.root != roots[-1]:
        where = f"cohort {cohort!r}" if cohort else "the test records"
        raise TrustChainError(
            f"organization {custody.organization!r}: its records of {where} are not those of the run's log; "
            "restore its data"
        )
    openings = [opening_of(salt, statement_of_record(record)) for salt, record in zip(salts, mine, strict=True)]
    return entry_of(cohort, tree, [opening.commitment for opening in openings], split), openings
