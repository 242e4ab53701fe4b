"""Verification of the files: seal, manifest, identities, rounds, model."""

import contextlib
from pathlib import Path
from typing import Any

from ledger import events as ev
from ledger import layout
from ledger.audit import Audit, Fault, Skip
from ledger.canonical import is_digest, parse_canonical, safetensors_digest
from ledger.errors import LedgerError
from ledger.events import Event
from ledger.identity import COORDINATOR, check_name, key_id_of
from ledger.identity_document import lineage_of, read_identity
from ledger.log import SqliteLog
from ledger.seal import read_seal


def check_seal(audit: Audit) -> str:
    """The seal's signature, and the digest of every file that it names; nothing unnamed in ``ledger/``."""
    run_dir = audit.run_dir
    key = _sealing_key(audit)
    if not audit.has(layout.SEAL):
        complete, under_way = _progress(audit)
        if under_way:
            raise Skip("not sealed: a removal is under way")
        if complete and not audit.options.partial:
            raise Fault(layout.SEAL, "is missing, though the run is complete: resume the run to seal it")
        raise Skip("the seal is not here" if complete else "not sealed: run not complete")
    if key is None:
        raise Skip("nothing here, and no --trust, says what the coordinator's key is")
    try:
        seal = read_seal(layout.read_file(run_dir, layout.SEAL), {key_id_of(key): key})
    except LedgerError as error:
        raise Fault(layout.SEAL, str(error)) from None
    for name, digest in seal.files.items():
        if not audit.has(name) and name.startswith("rounds/") and not audit.options.partial:
            audit.missing.add(name)
        elif audit.lacks(name):
            audit.absent.add(name)
        elif audit.file_digest(name) != digest:
            raise Fault(name, "was changed after the run was sealed")
    for name in (layout.LOG, layout.MANIFEST, layout.CONFIG, *layout.identity_files(run_dir)):
        if name not in seal.files:
            raise Fault(name, "is not named by the seal")
    for name in layout.files_under(run_dir, layout.LEDGER):
        if name != layout.SEAL and name not in seal.files:
            raise Fault(name, "was added after the run was sealed")
    audit.seal = seal
    if audit.absent:
        audit.notes.append(f"{len(audit.absent)} sealed files: they are not here, {_some(audit.absent)}")
    here = len(seal.files) - len(audit.missing) - len(audit.absent)
    return f"{here} of {len(seal.files)} files, as sealed by {key_id_of(key)[:16]}"


def _some(names: set[str]) -> str:
    shown = sorted({name.split("/")[0] + "/" if name.startswith("rounds/") else name for name in names})
    return ", ".join(shown[:5]) + (f" and {len(shown) - 5} more" if len(shown) > 5 else "")


def _sealing_key(audit: Audit) -> str | None:
    """The coordinator's key; the log, which is checked later, must register the same."""
    if not audit.lacks(f"{layout.IDENTITIES}/{COORDINATOR}.json"):
        return str(_identity(audit, COORDINATOR)["public_key"])
    with contextlib.suppress(LedgerError):  # a log that cannot be read is the next step's finding
        log = SqliteLog(audit.run_dir / layout.LOG, read_only=True)
        try:
            registry = log.registry
            return registry.keys.get(registry.organizations.get(COORDINATOR, ""))
        finally:
            log.close()
    return audit.public_key(COORDINATOR)


def _progress(audit: Audit) -> tuple[bool, bool]:
    """Whether the run is complete, and whether a removal was asked for and is not executed yet."""
    with contextlib.suppress(Exception):  # a log that cannot be read is the next step's finding
        log = SqliteLog(audit.run_dir / layout.LOG, read_only=True)
        try:
            keys = log.keys()
            asked = {ev.read_event(e, keys).body["request"] for _, e in log.events(ev.UNLEARN_REQUEST)}
            for _, envelope in log.events(ev.UNLEARN_EXEC):
                asked.difference_update(ev.read_event(envelope, keys).body["requests"])
            return any(True for _ in log.events(ev.RUN_COMPLETE)), bool(asked)
        finally:
            log.close()
    return False, False


def check_manifest(audit: Audit) -> str:
    """Manifest and config are the files that the RUN_MANIFEST event names; the manifest says what it must."""
    audit.need(layout.MANIFEST)
    stated = [event for event in audit.events if event.type == ev.RUN_MANIFEST]
    if len(stated) != 1 and audit.whole_log:
        raise Fault(layout.LOG, f"holds {len(stated)} RUN_MANIFEST events, not one")
    checked = [name for name in (layout.MANIFEST, layout.CONFIG) if stated and not audit.lacks(name)]
    for name, wanted in ((layout.MANIFEST, "manifest"), (layout.CONFIG, "config")):
        if name in checked and audit.file_digest(name) != stated[0].body[wanted]:
            raise Fault(name, "is not the file that the RUN_MANIFEST event names")
    try:
        audit.manifest = _parse_manifest(layout.read_file(audit.run_dir, layout.MANIFEST))
        if audit.events and audit.manifest["run"] != audit.run:
            raise LedgerError(f"is of run {audit.manifest['run']!r}, the log of {audit.run!r}")
    except LedgerError as error:
        raise Fault(layout.MANIFEST, str(error)) from None
    if not stated:
        raise Skip("no RUN_MANIFEST event is here to compare it with")
    if layout.CONFIG not in checked:
        audit.notes.append(f"{layout.CONFIG}: it is not here")
    organizations, cohorts = len(audit.manifest["organizations"]), len(audit.manifest["cohorts"])
    what = "manifest and config" if layout.CONFIG in checked else "manifest"
    canaries = "; an audit run with canaries, not for release" if "audit" in audit.manifest else ""
    return f"{what} as logged; {organizations} organizations, {cohorts} cohorts{canaries}"


def _parse_manifest(data: bytes) -> dict[str, Any]:
    manifest = parse_canonical(data)
    kinds = {"run": str, "organizations": list, "cohorts": dict, "initial": dict}
    if not isinstance(manifest, dict) or "version" not in manifest:
        raise LedgerError("needs run, version, organizations, cohorts and initial")
    for name, kind in kinds.items():
        if not isinstance(manifest.get(name), kind):
            raise LedgerError(f"{name} is missing or not a {kind.__name__}")
    organizations = [check_name(name) for name in manifest["organizations"]]
    if len(set(organizations)) != len(organizations) or COORDINATOR in organizations:
        raise LedgerError(f"organizations: a name occurs twice, or is {COORDINATOR!r}")
    for cohort, members in manifest["cohorts"].items():
        if not isinstance(members, list) or not all(name in organizations for name in members):
            raise LedgerError(f"cohorts: {cohort!r} is not a list of the organizations")
        if not is_digest(manifest["initial"].get(cohort)):
            raise LedgerError(f"initial: {cohort!r} has no digest")
    keep = manifest.get("keep_rounds", 0)
    if type(keep) is not int or keep < 0:
        raise LedgerError("keep_rounds is not a number of rounds")
    return manifest


def check_identities(audit: Audit) -> str:
    """The manifest's organizations and the coordinator are registered, with their published documents."""
    if not audit.organizations:
        for name in layout.identity_files(audit.run_dir):
            organization = Path(name).stem
            audit.documents[organization] = lineage_of(_identity(audit, organization))
        raise Skip("no REGISTER event is here to compare with")
    expected = set(audit.organizations)
    if audit.manifest:
        expected = {*audit.manifest["organizations"], COORDINATOR}
        odd = expected ^ set(audit.organizations)
        if odd:
            raise Fault(layout.LOG, f"registered organizations are not those of the manifest: {', '.join(sorted(odd))}")
    documents = {f"{layout.IDENTITIES}/{name}.json" for name in expected}
    for name in layout.identity_files(audit.run_dir):
        if name not in documents:
            raise Fault(name, "is of no organization of this run")
    # The last registration counts: an organization may publish its document again.
    stated = {event.organization: event for event in audit.events if event.type == ev.REGISTER}
    here = [name for name in sorted(expected) if not audit.lacks(f"{layout.IDENTITIES}/{name}.json")]
    if not here:
        raise Skip(f"{layout.IDENTITIES}/ is not here")
    for organization in here:
        name = f"{layout.IDENTITIES}/{organization}.json"
        document = _identity(audit, organization)
        body = stated[organization].body
        if (document["key_id"], document["public_key"]) != (body["key_id"], body["public_key"]):
            raise Fault(name, "shows another key than the one registered")
        shown, logged = lineage_of(document), audit.lineage(organization)
        if shown != logged[: len(shown)]:
            raise Fault(name, "shows other rotations than the log")
        if len(shown) < len(logged):
            audit.notes.append(f"the document of {organization}'s newest key: it is not published yet")
        if audit.file_digest(name) != body["document"]:
            raise Fault(name, "is not the file that the REGISTER event names")
    if len(here) < len(expected):
        audit.notes.append(f"identity documents of {', '.join(sorted(expected - set(here)))}: they are not here")
    return f"{len(here)} identity documents as registered"


def _identity(audit: Audit, organization: str) -> dict[str, Any]:
    """Read an identity document that agrees with itself. Raises Fault."""
    name = f"{layout.IDENTITIES}/{organization}.json"
    try:
        return read_identity(layout.read_file(audit.run_dir, name), organization)
    except LedgerError as error:
        raise Fault(name, str(error)) from None


def check_rounds(audit: Audit) -> str:
    """Files of rounds are what MERGE and CHECKPOINT events name; only pruned ones may be missing."""
    links = audit.links
    checked = pruned = absent = 0
    # Of merges that wrote to the same file the newest counts.
    merges = {(cohort, event.body["file"]): event for cohort, chain in links.merges.items() for event in chain}
    for event in [*merges.values(), *links.checkpoints.values()]:
        name = event.body["file"]
        try:
            layout.check_file_name(name)
        except LedgerError as error:
            raise Fault(layout.LOG, str(error)) from None
        if event.type == ev.CHECKPOINT and name in links.superseded and (links.under_way or not audit.has(name)):
            audit.missing.discard(name)
            continue
        if not audit.has(name) and (audit.options.partial or _is_pruned(audit, event)):
            if _is_pruned(audit, event):
                pruned += 1
            else:
                absent += 1
            audit.missing.discard(name)
            continue
        if event.type == ev.MERGE:
            _check_adapter(audit, event)
        elif audit.file_digest(name) != event.body["digest"]:
            raise Fault(name, f"is not the file that the CHECKPOINT of round {event.body['round']} names")
        checked += 1
    _check_withdrawn(audit)
    if audit.missing:
        raise Fault(min(audit.missing), "is missing, though the seal names it")
    if not checked and not pruned:
        raise Skip(f"none of {absent} files of rounds is here" if absent else "no file of a round is known here")
    if absent:
        audit.notes.append(f"{absent} files of rounds: they are not here")
    return f"{checked} files as logged" + (f", {pruned} skipped (pruned)" if pruned else "")


def _check_withdrawn(audit: Audit) -> None:
    """Files of withdrawn adapters that nothing replaced are gone. Raises Fault."""
    for name, digests in sorted(audit.links.withdrawn.items()):
        try:
            layout.check_file_name(name)
        except LedgerError as error:
            raise Fault(layout.LOG, str(error)) from None
        if not audit.has(name):
            continue
        found = ""
        with contextlib.suppress(LedgerError):
            found = safetensors_digest(layout.inside(audit.run_dir, name))
        # While a replay is at work, a file may be written shortly before its MERGE is logged.
        if found in digests or not audit.links.under_way:
            raise Fault(name, "was withdrawn, and still lies there")


def _is_pruned(audit: Audit, event: Event) -> bool:
    keep = audit.manifest.get("keep_rounds", 0)
    return bool(keep > 0 and event.body["round"] <= audit.links.last_round - keep)


def _check_adapter(audit: Audit, event: Event) -> None:
    name, body = event.body["file"], event.body
    try:
        digest = safetensors_digest(layout.inside(audit.run_dir, name))
    except LedgerError as error:
        raise Fault(name, str(error).removeprefix(f"{audit.run_dir}/{name}: ")) from None
    where = f"the MERGE of cohort {body['cohort']!r} in round {body['round']}"
    if digest != body["adapter"]:
        raise Fault(name, f"holds other tensors than {where} names")
    if "file_sha256" in body and audit.file_digest(name) != body["file_sha256"]:
        raise Fault(name, f"is another file than {where} names")


def check_model(audit: Audit) -> str:
    """The released model: every file as the last MODEL_RELEASE event names it, and no other."""
    files, digest = _released(audit)
    absent = [name for name in files if audit.lacks(name)]
    if len(absent) == len(files):
        raise Skip(f"{layout.MODEL}/ is not here; the digests of its {len(files)} files are")
    for name, wanted in files.items():
        if name not in absent and audit.file_digest(name) != wanted:
            raise Fault(name, "is not the file that the MODEL_RELEASE event names")
    for name in layout.files_under(audit.run_dir, layout.MODEL):
        if name not in files:
            raise Fault(name, "is not named by the MODEL_RELEASE event")
    if absent:
        audit.notes.append(f"{len(absent)} files of the model: they are not here")
    return f"{len(files) - len(absent)} files of model {digest[:16]} as released"


def _released(audit: Audit) -> tuple[dict[str, str], str]:
    """SHA-256 of the model's files by name, and its digest, by the last MODEL_RELEASE event."""
    release = audit.links.release
    if release is None:
        raise Skip("no model is released yet" if audit.whole_log else "no MODEL_RELEASE event is here")
    files: dict[str, str] = release.body["files"]
    if layout.ADAPTER not in files:
        raise Fault(layout.ADAPTER, "is not named by the MODEL_RELEASE event")
    for name in files:
        if not name.startswith(f"{layout.MODEL}/"):
            raise Fault(layout.LOG, f"MODEL_RELEASE names {name!r}, which is not in {layout.MODEL}/")
    return files, release.body["model_digest"]


def check_own_model(audit: Audit) -> str:
    """A model folder or adapter file from elsewhere is the released one."""
    own = audit.options.model
    assert own is not None
    files, digest = _released(audit)
    if own.is_file():
        if safetensors_digest(own) != digest:
            raise Fault(str(own), f"holds other tensors than the released model {digest[:16]}")
        return f"{own} holds the tensors of model {digest[:16]}"
    other: list[str] = []
    for name in layout.files_under(own, "."):
        wanted = files.get(f"{layout.MODEL}/{name}")
        if wanted is None:
            other.append(name)
        elif layout.file_digest(own, name) != wanted:
            raise Fault(str(own / name), "is not the released file")
    if not (own / Path(layout.ADAPTER).name).is_file():
        raise Fault(str(own), f"holds no {Path(layout.ADAPTER).name}")
    if other:
        audit.notes.append(f"{len(other)} files in {own} that belong to no release: {_some(set(other))}")
    return f"{own} is model {digest[:16]}"
