"""Verification of the files: seal, manifest, identities, rounds, model."""

import contextlib
from typing import Any

from ledger import events as ev
from ledger import layout
from ledger.audit import Audit, Fault, Skip
from ledger.canonical import is_digest, parse_canonical, safetensors_digest
from ledger.errors import LedgerError
from ledger.events import Event
from ledger.identity import COORDINATOR, check_name, key_id_of
from ledger.log import SqliteLog
from ledger.seal import read_seal


def check_seal(audit: Audit) -> str:
    """The seal's signature, and the digest of every file that it names; nothing unnamed in ``ledger/``."""
    run_dir = audit.run_dir
    document = _identity(audit, COORDINATOR)
    if not (run_dir / layout.SEAL).exists():
        if _is_complete(audit):
            raise Fault(layout.SEAL, "is missing, though the run is complete: resume the run to seal it")
        raise Skip("not sealed: run not complete")
    try:
        seal = read_seal(layout.read_file(run_dir, layout.SEAL), {document["key_id"]: document["public_key"]})
    except LedgerError as error:
        raise Fault(layout.SEAL, str(error)) from None
    for name, digest in seal.files.items():
        if name.startswith("rounds/") and not (run_dir / name).exists():
            audit.missing.add(name)
        elif _file_digest(audit, name) != digest:
            raise Fault(name, "was changed after the run was sealed")
    for name in (layout.LOG, layout.MANIFEST, layout.CONFIG, *layout.identity_files(run_dir)):
        if name not in seal.files:
            raise Fault(name, "is not named by the seal")
    for name in layout.files_under(run_dir, layout.LEDGER):
        if name != layout.SEAL and name not in seal.files:
            raise Fault(name, "was added after the run was sealed")
    audit.seal = seal
    return f"{len(seal.files) - len(audit.missing)} files as sealed by {document['key_id'][:16]}"


def _is_complete(audit: Audit) -> bool:
    with contextlib.suppress(Exception):  # a log that cannot be read is the next step's finding
        log = SqliteLog(audit.run_dir / layout.LOG, read_only=True)
        try:
            return any(True for _ in log.events(ev.RUN_COMPLETE))
        finally:
            log.close()
    return False


def check_manifest(audit: Audit) -> str:
    """Manifest and config are the files that the RUN_MANIFEST event names; the manifest says what it must."""
    stated = [event for event in audit.events if event.type == ev.RUN_MANIFEST]
    if len(stated) != 1:
        raise Fault(layout.LOG, f"holds {len(stated)} RUN_MANIFEST events, not one")
    for name, wanted in ((layout.MANIFEST, "manifest"), (layout.CONFIG, "config")):
        if _file_digest(audit, name) != stated[0].body[wanted]:
            raise Fault(name, "is not the file that the RUN_MANIFEST event names")
    try:
        audit.manifest = _parse_manifest(layout.read_file(audit.run_dir, layout.MANIFEST))
        if audit.manifest["run"] != audit.run:
            raise LedgerError(f"is of run {audit.manifest['run']!r}, the log of {audit.run!r}")
    except LedgerError as error:
        raise Fault(layout.MANIFEST, str(error)) from None
    organizations, cohorts = len(audit.manifest["organizations"]), len(audit.manifest["cohorts"])
    return f"manifest and config as logged; {organizations} organizations, {cohorts} cohorts"


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
    expected = {*audit.manifest["organizations"], COORDINATOR}
    registered = set(audit.organizations)
    if registered != expected:
        odd = ", ".join(sorted(registered ^ expected))
        raise Fault(layout.LOG, f"registered organizations are not those of the manifest: {odd}")
    documents = {f"{layout.IDENTITIES}/{name}.json" for name in expected}
    for name in layout.identity_files(audit.run_dir):
        if name not in documents:
            raise Fault(name, "is of no organization of this run")
    # The last registration counts: an organization may publish its document again.
    stated = {event.organization: event for event in audit.events if event.type == ev.REGISTER}
    for organization in sorted(expected):
        name = f"{layout.IDENTITIES}/{organization}.json"
        document = _identity(audit, organization)
        body = stated[organization].body
        if (document["key_id"], document["public_key"]) != (body["key_id"], body["public_key"]):
            raise Fault(name, "shows another key than the one registered")
        if _file_digest(audit, name) != body["document"]:
            raise Fault(name, "is not the file that the REGISTER event names")
    return f"{len(expected)} identity documents as registered"


def _identity(audit: Audit, organization: str) -> dict[str, str]:
    """Read an identity document that agrees with itself. Raises Fault."""
    name = f"{layout.IDENTITIES}/{organization}.json"
    try:
        document = parse_canonical(layout.read_file(audit.run_dir, name))
        if not isinstance(document, dict) or document.keys() != {
            "algorithm", "key_id", "organization", "public_key",
        }:  # fmt: skip
            raise LedgerError("needs exactly algorithm, key_id, organization and public_key")
        if document["algorithm"] != "ed25519" or document["organization"] != organization:
            raise LedgerError(f"is not the ed25519 identity of {organization}")
        if not is_digest(document["public_key"]) or key_id_of(document["public_key"]) != document["key_id"]:
            raise LedgerError("key_id is not the digest of public_key")
    except LedgerError as error:
        raise Fault(name, str(error)) from None
    return document


def check_rounds(audit: Audit) -> str:
    """Files of rounds are what MERGE and CHECKPOINT events name; only pruned ones may be missing."""
    links = audit.links
    checked = pruned = 0
    for event in [event for chain in links.merges.values() for event in chain] + list(links.checkpoints.values()):
        name = event.body["file"]
        if not (audit.run_dir / name).exists() and _is_pruned(audit, event):
            pruned += 1
            audit.missing.discard(name)
            continue
        if event.type == ev.MERGE:
            _check_adapter(audit, event)
        elif _file_digest(audit, name) != event.body["digest"]:
            raise Fault(name, f"is not the file that the CHECKPOINT of round {event.body['round']} names")
        checked += 1
    if audit.missing:
        raise Fault(min(audit.missing), "is missing, though the seal names it")
    if not checked and not pruned:
        raise Skip("no round is finished yet")
    return f"{checked} files as logged" + (f", {pruned} skipped (pruned)" if pruned else "")


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
    if "file_sha256" in body and _file_digest(audit, name) != body["file_sha256"]:
        raise Fault(name, f"is another file than {where} names")


def check_model(audit: Audit) -> str:
    """The released model: every file as the last MODEL_RELEASE event names it, and no other."""
    release = audit.links.release
    if release is None:
        raise Skip("no model is released yet")
    files = release.body["files"]
    if layout.ADAPTER not in files:
        raise Fault(layout.ADAPTER, "is not named by the MODEL_RELEASE event")
    for name, digest in files.items():
        if not name.startswith(f"{layout.MODEL}/"):
            raise Fault(layout.LOG, f"MODEL_RELEASE names {name!r}, which is not in {layout.MODEL}/")
        if _file_digest(audit, name) != digest:
            raise Fault(name, "is not the file that the MODEL_RELEASE event names")
    for name in layout.files_under(audit.run_dir, layout.MODEL):
        if name not in files:
            raise Fault(name, "is not named by the MODEL_RELEASE event")
    return f"{len(files)} files of model {release.body['model_digest'][:16]} as released"


def _file_digest(audit: Audit, name: str) -> str:
    try:
        return layout.file_digest(audit.run_dir, name)
    except LedgerError as error:
        raise Fault(name, str(error)) from None
