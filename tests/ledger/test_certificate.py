import base64
import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest
from fake_run import COHORT, RUN
from removal_run import REQUEST, RemovalRun, removal_run, tree_of

from ledger import certificate as ct
from ledger import checkpoint
from ledger import events as ev
from ledger.canonical import canonical_json, parse_canonical, sha256_hex
from ledger.dsse import pae
from ledger.errors import LedgerError
from ledger.identity import COORDINATOR, load_or_create
from ledger.manifest_proof import EMPTY_ROOT
from ledger.publication import publish_from
from ledger.removal import ORGANIZATION, Entry, Removal, Removed, Request, Shard
from ledger.report import Report
from ledger.verify_certificate import RunLog, verify_certificate

OTHER = sha256_hex(b"another digest")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> RemovalRun:
    return removal_run(tmp_path_factory.mktemp("removal"))


def outcome(report: Report) -> dict[str, str]:
    return {check.name: check.status for check in report.checks}


def stated(made: RemovalRun, **changes: Any) -> Report:
    """Outcome of a certificate that says something else, correctly signed and not logged."""
    data = ct.build(dataclasses.replace(made.removal, **changes), [made.run.identities["bank"]])
    return verify_certificate(data, trust=made.keys)


def test_the_whole_of_it_holds_with_keys_and_log(made):
    report = verify_certificate(made.certificate, trust=made.keys, log=made.log, min_auditors=1)
    assert report.ok
    assert [name for name, status in outcome(report).items() if status != "ok"] == ["anchor"]


def test_it_holds_by_itself_and_says_what_is_not_known(made):
    report = verify_certificate(made.certificate)
    assert report.ok
    assert [name for name, status in outcome(report).items() if status == "skipped"] == ["closure", "anchor"]
    assert any("run's own claim" in line for line in report.not_checked)


@pytest.mark.slow
def test_one_changed_byte_anywhere_is_found(made):
    data = made.certificate
    for place in [*range(400), *range(400, len(data) - 400, 61), *range(len(data) - 400, len(data))]:
        changed = bytearray(data)
        changed[place] ^= 1
        assert not verify_certificate(bytes(changed), trust=made.keys).ok, place


@pytest.mark.parametrize("data", [b"", b"{}", b"[1]", b"\xff", b'{"envelope":{},"format":"x","publication":null}'])
def test_garbage_is_a_failed_check(data):
    report = verify_certificate(data)
    assert outcome(report) == {"form": "fail"}
    assert len(report.not_checked) == 7


def test_it_is_an_in_toto_statement_in_a_dsse_envelope_that_other_tools_can_read(made):
    envelope = json.loads(made.certificate)["envelope"]
    payload = base64.b64decode(envelope["payload"])
    statement = json.loads(payload)
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["predicateType"] == "https://trustchain-ray.org/unlearning/v1"
    assert statement["subject"][0] == {"name": "model", "digest": {"sha256": made.removal.model["new"]}}
    assert pae(envelope["payloadType"], payload).startswith(b"DSSEv1 28 application/vnd.in-toto+json ")
    assert len(envelope["signatures"]) == 2
    assert "." not in json.dumps(statement["predicate"]["steps"])


def test_nothing_of_a_record_stands_in_it(made):
    payload = base64.b64decode(json.loads(made.certificate)["envelope"]["payload"])
    everything = made.certificate + payload
    for text in (b"loan", b"person", b"bank-3", *(salt for salt in made.salts.values())):
        assert text not in everything
    assert made.commitment("bank-3").encode() in payload


def test_building_and_reading_are_inverse(made):
    certificate = ct.parse(made.certificate)
    assert certificate.removal == made.removal
    assert certificate.digest == ct.parse(made.signed).digest
    assert ct.is_certificate(made.certificate)
    assert not ct.is_certificate(canonical_json({"files": {}}))


def test_a_signature_counts_once_and_by_whom_it_is(made, tmp_path):
    assert ct.counter_sign(made.signed, made.run.identities["clinic"]) == made.signed
    alone = ct.build(made.removal, [made.run.identities["bank"]])
    assert "counter-signed by nobody" in verify_certificate(alone, trust=made.keys).checks[2].detail
    few = verify_certificate(alone, trust=made.keys, min_auditors=1)
    assert few.failure is not None
    assert "0 organizations that count, not 1" in few.failure.detail
    by_clinic = verify_certificate(ct.build(made.removal, [made.run.identities["clinic"]]), trust=made.keys)
    assert by_clinic.failure is not None
    assert "not signed by bank" in by_clinic.failure.detail
    stranger = ct.counter_sign(made.signed, load_or_create("stranger", tmp_path))
    unknown = verify_certificate(stranger, trust=made.keys)
    assert unknown.failure is not None
    assert "unknown key" in unknown.failure.detail
    with pytest.raises(LedgerError, match="none twice"):
        ct.build(made.removal, [made.run.identities["bank"]] * 2)


def test_another_key_than_the_trusted_one_is_found(made, tmp_path):
    keys = {**made.keys, "bank": load_or_create("bank", tmp_path).public_hex}
    report = verify_certificate(made.certificate, trust=keys)
    assert report.failure is not None
    assert "another key of bank" in report.failure.detail


def _closure(made: RemovalRun, change: Callable[[Entry], Entry | None]) -> list[Entry]:
    return [entry for entry in map(change, made.removal.closure) if entry is not None]


CLAIMS: dict[str, tuple[str, Callable[[Removal], dict[str, Any]]]] = {
    "approximate method": ("approximate method", lambda r: {"method": "npo"}),
    "another hardware class": (
        "EXACT_BITWISE, but",
        lambda r: {"reproducibility": {**r.reproducibility, "class": "tolerance"}},
    ),
    "fresh noise": ("EXACT_BITWISE, but", lambda r: {"noise": "fresh"}),
    "unpaid noise": ("no privacy spend", lambda r: {"guarantee": "EXACT_DISTRIBUTION", "noise": "fresh"}),
    "unknown guarantee": ("unknown guarantee", lambda r: {"guarantee": "PERFECT"}),
    "more steps than there are": ("25 of 24", lambda r: {"steps": {"replayed": 25, "total": 24}}),
    "participation": ("participation", lambda r: {"participation": "decided anew"}),
    "no manifest": ("manifest is missing", lambda r: {"digests": {}}),
    "another model": ("not those of a model", lambda r: {"model": {**r.model, "old": OTHER}}),
    "model not withdrawn": ("withdrawn", lambda r: {"withdrawn": []}),
    "no start": ("start: is not one adapter", lambda r: {"start": []}),
    "late start": ("which the closure replaces", lambda r: {"start": [dataclasses.replace(r.start[0], round=2)]}),
}


@pytest.mark.parametrize("claim", CLAIMS)
def test_a_claim_that_the_rest_does_not_bear_is_refused(made, claim):
    reason, changes = CLAIMS[claim]
    report = stated(made, **changes(made.removal))
    assert report.failure is not None
    assert (report.failure.name, reason in report.failure.detail) == ("statement", True), report.failure.detail


def _shards(removal: Removal, **changes: Any) -> dict[str, Any]:
    return {"shards": [dataclasses.replace(removal.shards[0], **changes)]}


def _removed(removal: Removal, commitments: list[str]) -> dict[str, Any]:
    return {"requests": [dataclasses.replace(removal.requests[0], removed=[Removed(COHORT, commitments)])]}


DELETIONS: dict[str, tuple[str, Callable[[Removal], dict[str, Any]]]] = {
    "another new root": ("the root is not", lambda r: _shards(r, new_root=OTHER)),
    "another old root": ("does not lead to root", lambda r: _shards(r, old_root=OTHER)),
    "the root before": ("the root is not", lambda r: _shards(r, new_root=r.shards[0].old_root)),
    "no proof": ("malformed", lambda r: _shards(r, proof="")),
    "one record less": ("the root is not", lambda r: _removed(r, r.requests[0].removed[0].commitments[:1])),
    "no record": ("names no record", lambda r: _removed(r, [])),
    "unordered records": ("not in order", lambda r: _removed(r, r.requests[0].removed[0].commitments[::-1])),
    "no shard": ("are not those", lambda r: {"shards": []}),
    "a request twice": ("comes twice", lambda r: {"requests": r.requests * 2}),
    "another's records": (
        "clinic is not an issuer",
        lambda r: {"requests": [dataclasses.replace(r.requests[0], organization="clinic")]},
    ),
    "a shard missing from the closure": (
        "closure: its shards",
        lambda r: {"closure": [entry for entry in r.closure if entry.kind != "shard"]},
    ),
}


@pytest.mark.parametrize("case", DELETIONS)
def test_a_deletion_that_the_proof_does_not_show_is_refused(made, case):
    reason, changes = DELETIONS[case]
    report = stated(made, **changes(made.removal))
    assert report.failure is not None
    assert (report.failure.name, reason in report.failure.detail) == ("deletion", True), report.failure.detail


def test_a_whole_organization_leaves_an_empty_root(made):
    removal, old = made.removal, made.removal.shards[0].old_root
    closure = [dataclasses.replace(e, new=EMPTY_ROOT) if e.kind == "shard" else e for e in removal.closure]
    changes = {
        "requests": [Request(REQUEST, "bank", ORGANIZATION, [Removed(COHORT, [])])],
        "shards": [Shard("bank", COHORT, old, EMPTY_ROOT, 1, "")],
        "closure": closure,
    }
    assert outcome(stated(made, **changes))["deletion"] == "ok"
    kept = stated(made, **{**changes, "shards": removal.shards, "closure": removal.closure})
    assert kept.failure is not None
    assert "is not empty" in kept.failure.detail


def with_log(made: RemovalRun, events: list[Any] | None = None, **changes: Any) -> Report:
    """Outcome beside the run's log, where the log agrees with what is said."""
    data = ct.build(dataclasses.replace(made.removal, **changes), [made.run.identities["bank"]])
    digest = ct.parse(data).digest
    shown = list(made.log.events) if events is None else events
    for place, event in enumerate(shown):
        if event.type in (ev.UNLEARN_EXEC, ev.UNLEARN_ATTEST):
            shown[place] = dataclasses.replace(event, body={**event.body, "certificate": digest})
    return verify_certificate(data, log=RunLog(shown, made.run.manifest))


def test_the_log_gives_the_closure_and_what_is_left_out_or_added_is_found(made):
    assert with_log(made).ok
    for left_out in ("evaluation 3", "update clinic/all@3", "checkpoint 2"):
        closure = _closure(made, lambda e, name=left_out: None if f"{e.kind} {e.name}" == name else e)
        report = with_log(made, closure=closure)
        assert report.failure is not None
        assert f"lacks {left_out}" in report.failure.detail
    added = [*made.removal.closure, Entry("checkpoint", "1", OTHER, None)]
    report = with_log(made, closure=added)
    assert report.failure is not None
    assert "names too much: checkpoint 1" in report.failure.detail


def test_a_new_artifact_that_was_never_logged_is_found(made):
    def lie(entry: Entry) -> Entry:
        return dataclasses.replace(entry, new=OTHER) if (entry.kind, entry.name) == ("adapter", "all@3") else entry

    report = with_log(made, closure=_closure(made, lie))
    assert report.failure is not None
    assert "the log has no adapter all@3" in report.failure.detail


def test_a_later_first_round_than_the_closure_can_bear_is_found(made):
    report = with_log(made, **_shards(made.removal, round=3))
    assert report.failure is not None
    assert "names too much" in report.failure.detail
    start = [dataclasses.replace(made.removal.start[0], digest=OTHER)]
    report = with_log(made, start=start)
    assert report.failure is not None
    assert "no such adapter of cohort 'all' in round 1" in report.failure.detail


def test_a_new_model_that_was_computed_from_the_old_adapter_is_found(made):
    old = next(entry.old for entry in made.removal.closure if (entry.kind, entry.name) == ("adapter", "all@3"))
    events = list(made.log.events)
    last = max(place for place, event in enumerate(events) if event.type == ev.MODEL_RELEASE)
    events[last] = dataclasses.replace(events[last], body={**events[last].body, "adapters": {COHORT: old}})
    report = with_log(made, events)
    assert report.failure is not None
    assert "the new model comes from" in report.failure.detail


def test_a_replay_that_read_the_shard_before_the_records_left_it_is_found(made):
    events = list(made.log.events)
    place = max(place for place, event in enumerate(events) if event.type == "SHARD_MANIFEST")
    release = max(place for place, event in enumerate(events) if event.type == ev.MODEL_RELEASE)
    events.insert(release + 1, events[place])
    del events[place]
    report = with_log(made, events)
    assert report.failure is not None
    assert "update bank/all@2, which read the records" in report.failure.detail


def test_records_that_no_step_read_change_no_model(made):
    shard = [entry for entry in made.removal.closure if entry.kind == "shard"]
    model = {"old": made.removal.model["new"], "new": made.removal.model["new"]}
    nothing = {"closure": shard, "model": model, "start": [], "steps": {"replayed": 0, "total": 24}, "withdrawn": []}
    assert outcome(stated(made, **nothing))["deletion"] == "ok"
    report = stated(made, **{**nothing, "model": made.removal.model})
    assert report.failure is not None
    assert "not those of a model" in report.failure.detail


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (ev.UNLEARN_REQUEST, "no UNLEARN_REQUEST"),
        (ev.UNLEARN_WITHDRAWN, "no UNLEARN_WITHDRAWN"),
        (ev.UNLEARN_EXEC, "no UNLEARN_EXEC"),
        (ev.MODEL_REVOKED, "no MODEL_REVOKED"),
    ],
)
def test_every_step_of_a_removal_must_be_logged(made, kind, reason):
    report = with_log(made, [event for event in made.log.events if event.type != kind])
    assert report.failure is not None
    assert (report.failure.name, reason in report.failure.detail) == ("events", True)


def test_what_was_asked_for_is_what_was_done(made):
    for name, value in (("removed", OTHER), ("scope", "record"), ("organization", "clinic")):
        events = [
            dataclasses.replace(e, body={**e.body, name: value}) if e.type == ev.UNLEARN_REQUEST else e
            for e in made.log.events
        ]
        report = with_log(made, events)
        assert report.failure is not None
        assert "is not what bank asked for" in report.failure.detail


def test_an_auditor_who_got_something_else_is_heard(made):
    events = [
        dataclasses.replace(e, body={**e.body, "result": "adapter all@2 differs"}) if e.type == ev.UNLEARN_ATTEST else e
        for e in made.log.events
    ]
    report = with_log(made, events)
    assert report.failure is not None
    assert "clinic re-executed it and got something else: adapter all@2 differs" in report.failure.detail


def test_a_publication_of_another_certificate_or_log_is_found(made):
    other = ct.build(dataclasses.replace(made.removal, cost={"steps": "0.5"}), [made.run.identities["bank"]])
    content = parse_canonical(made.certificate)
    content["envelope"] = parse_canonical(other)["envelope"]
    report = verify_certificate(canonical_json(content), trust=made.keys)
    assert report.failure is not None
    assert "is of another certificate" in report.failure.detail
    tree = made.log.tree
    assert tree is not None
    tree._levels[0][-1] ^= 1
    split = verify_certificate(made.certificate, trust=made.keys, log=RunLog(made.log.events, made.run.manifest, tree))
    assert split.failure is not None
    assert "a split view" in split.failure.detail


def test_an_event_that_is_published_but_not_in_the_log_is_found(made):
    published = ct.parse(made.certificate).publication
    assert published is not None
    said = published[1]
    digest = ct.parse(made.certificate).digest
    body = {"certificate": digest, "mode": "reexecute", "steps": 99, "result": "same"}
    forged = canonical_json(made.run.event("clinic", ev.UNLEARN_ATTEST, body))
    last = said.selection.events[-1]
    assert b"UNLEARN_ATTEST" in base64.b64decode(json.loads(last.leaf)["payload"])
    events = [*said.selection.events[:-1], dataclasses.replace(last, leaf=forged)]
    selection = dataclasses.replace(said.selection, events=events)
    data = ct.publish(made.certificate, made.run.coordinator, selection, said.checkpoint, said.chain, said.receipt)
    report = verify_certificate(data, trust=made.keys)
    assert report.failure is not None
    assert "inclusion proof" in report.failure.detail


def test_a_node_of_the_public_chain_is_asked_for_the_checkpoint(tmp_path):
    pytest.importorskip("web3")
    from anvil import CHAIN_ID, Anvil, funded

    from ledger.rpc_chain import RpcChain

    node = Anvil("--slots-in-an-epoch", "1").start()
    try:
        account = funded(node)
        anchored = removal_run(
            tmp_path, lambda folder: RpcChain(folder, node.url, account, RUN, chain_id=CHAIN_ID, patience_s=20.0)
        )
        node.mine(3)
        report = verify_certificate(anchored.certificate, trust=anchored.keys, rpc_url=node.url)
        assert report.ok, report.failure
        assert "of 45 events: FINALIZED" in report.checks[-1].detail
        content = ct.parse(anchored.certificate).publication
        assert content is not None
        tree = tree_of(anchored.run)
        note = checkpoint.sign(anchored.run.coordinator, RUN, 44, tree.root(44))  # signed, and never anchored
        events = [dataclasses.replace(e, proof=tree.inclusion_proof(e.index, 44))
                  for e in content[1].selection.events if e.index < 44]  # fmt: skip
        selection = dataclasses.replace(content[1].selection, events=events, size=44)
        elsewhere = ct.publish(anchored.signed, anchored.run.coordinator, selection, note, content[1].chain)
        report = verify_certificate(elsewhere, trust=anchored.keys, rpc_url=node.url)
        assert report.failure is not None
        assert "the chain has no anchor of the log of 44 events" in report.failure.detail
    finally:
        node.kill()


def test_a_certificate_that_is_not_logged_yet_cannot_be_published(made):
    other = ct.build(dataclasses.replace(made.removal, cost={}), [made.run.identities["bank"]])
    with pytest.raises(LedgerError, match="does not cover UNLEARN_EXEC"):
        publish_from(made.run.dir, other, made.run.identities[COORDINATOR])


def test_a_float_is_refused_and_so_is_what_is_too_large(made, monkeypatch):
    with pytest.raises(LedgerError, match="floats are refused"):
        ct.build(dataclasses.replace(made.removal, cost={"steps": 0.5}), [made.run.identities["bank"]])
    monkeypatch.setattr(ct, "MAX_BYTES", 1000)
    with pytest.raises(LedgerError, match="split the batch"):
        ct.build(made.removal, [made.run.identities["bank"]])
    with pytest.raises(LedgerError, match="larger than 1000"):
        ct.parse(made.certificate)
