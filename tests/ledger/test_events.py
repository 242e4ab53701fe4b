import base64

import pytest

from ledger import dsse
from ledger import events as ev
from ledger.canonical import canonical_json, parse_canonical
from ledger.errors import LedgerError
from ledger.identity import load_or_create, public_document
from ledger.registry import Registry

RUN = "r"
D = "ab" * 32


@pytest.fixture
def bank(tmp_path):
    return load_or_create("bank", tmp_path)


@pytest.fixture
def clinic(tmp_path):
    return load_or_create("clinic", tmp_path)


def register(identity, run=RUN, **changes):
    document = public_document(identity)
    body = {name: document[name] for name in ("organization", "key_id", "public_key")} | {"document": D} | changes
    return ev.make_event(identity, run, ev.REGISTER, body)


def decision(identity, run=RUN, round_=1, key=None):
    return ev.make_event(identity, run, ev.DECISION, {"round": round_, "effort": "1/2"}, key=key)


def resigned(identity, content):
    return dsse.sign(canonical_json(content), ev.PAYLOAD_TYPE, identity)


def test_an_event_comes_back(bank):
    envelope = decision(bank)
    event = ev.read_event(envelope, {bank.key_id: bank.public_hex})
    assert (event.type, event.organization, event.run, event.round) == (ev.DECISION, "bank", RUN, 1)
    assert event.key.startswith("DECISION/bank/")
    assert event.leaf == ev.leaf_bytes(envelope)
    assert parse_canonical(event.leaf) == envelope


def test_the_default_key_is_of_the_body(bank):
    keys = {bank.key_id: bank.public_hex}
    one, same, other = (ev.read_event(decision(bank, round_=n), keys).key for n in (1, 1, 2))
    assert one == same != other


def test_a_forged_event_is_refused(bank, clinic):
    keys = {bank.key_id: bank.public_hex}
    envelope = decision(bank)
    content = parse_canonical(base64.b64decode(envelope["payload"]))
    content["body"]["effort"] = "0"
    forged = {**envelope, "payload": base64.b64encode(canonical_json(content)).decode()}
    with pytest.raises(LedgerError, match=r"DECISION of bank: .*does not hold"):
        ev.read_event(forged, keys)
    with pytest.raises(LedgerError, match="not registered"):
        ev.read_event(decision(clinic), keys)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"type": "VOTE"}, "unknown type"),
        ({"type": []}, "unknown type"),
        ({"run": ""}, "run"),
        ({"time": -1}, "time"),
        ({"time": True}, "time"),
        ({"key": ""}, "idempotency key"),
        ({"key": "k" * 257}, "idempotency key"),
        ({"organization": "../x"}, "organization name"),
        ({"body": []}, "body"),
        ({"body": {"round": 1}}, "lacks 'effort'"),
        ({"body": {"round": "1", "effort": "1"}}, "round is not a int"),
        ({"body": {"round": -1, "effort": "1"}}, "round is not a int"),
        ({"body": {"round": True, "effort": "1"}}, "round is not a int"),
        ({"body": {"round": 1, "effort": "2"}}, "effort"),
        ({"more": 1}, "needs exactly"),
        ({"type": ev.RUN_COMPLETE, "body": {"rounds": 1, "model_digest": D}}, "only the coordinator"),
    ],
)
def test_malformed_events_are_refused(bank, change, reason):
    keys = {bank.key_id: bank.public_hex}
    content = parse_canonical(base64.b64decode(decision(bank)["payload"])) | change
    with pytest.raises(LedgerError, match=reason):
        ev.read_event(resigned(bank, content), keys)


def test_merge_and_release_are_checked_inside(tmp_path):
    coordinator = load_or_create("coordinator", tmp_path)
    merge = {"round": 1, "cohort": "c", "base": D, "adapter": D, "file": "f"}
    for inputs in (
        [1],
        [{}],
        [{"organization": "a", "update": D, "weight": "1"}],
        [{"organization": "a", "weight": 1}],
    ):
        with pytest.raises(LedgerError, match="every input"):
            ev.make_event(coordinator, RUN, ev.MERGE, {**merge, "inputs": inputs})
    body = {"model_digest": D, "files": {"a": "b"}, "adapters": {}}
    with pytest.raises(LedgerError, match="files"):
        ev.make_event(coordinator, RUN, ev.MODEL_RELEASE, body)


def test_large_and_float_bodies_are_refused(bank):
    with pytest.raises(LedgerError, match="65536"):
        ev.make_event(bank, RUN, ev.DECISION, {"round": 1, "effort": "1", "note": "x" * ev.MAX_EVENT_BYTES})
    with pytest.raises(LedgerError, match="floats"):
        ev.make_event(bank, RUN, ev.DECISION, {"round": 1, "effort": "1", "score": 0.5})


def test_payloads_of_another_kind_or_spelling_are_refused(bank):
    keys = {bank.key_id: bank.public_hex}
    payload = base64.b64decode(decision(bank)["payload"])
    with pytest.raises(LedgerError, match="payload type"):
        ev.read_event(dsse.sign(payload, "text/plain", bank), keys)
    with pytest.raises(LedgerError, match="canonical form"):
        ev.read_event(dsse.sign(payload + b"\n", ev.PAYLOAD_TYPE, bank), keys)


def test_the_registry_binds_names_keys_and_run(bank, clinic, tmp_path):
    registry = Registry()
    with pytest.raises(LedgerError, match="not registered"):
        registry.admit(decision(bank))
    registry.admit(register(bank))
    registry.admit(register(bank))
    registry.admit(decision(bank))
    with pytest.raises(LedgerError, match="run 'other'"):
        registry.admit(decision(bank, run="other"))

    impostor = load_or_create("bank", tmp_path / "elsewhere")
    with pytest.raises(LedgerError, match="registered with another key"):
        registry.admit(register(impostor))
    twin = type(bank)("twin", bank._private)
    with pytest.raises(LedgerError, match="the key is registered by bank"):
        registry.admit(register(twin))
    with pytest.raises(LedgerError, match="signed with the key of bank"):
        registry.admit(decision(twin))
    registry.admit(register(clinic))
    assert registry.organizations == {"bank": bank.key_id, "clinic": clinic.key_id}


def test_a_registration_must_be_of_oneself(bank, clinic):
    registry = Registry()
    for changes in (
        {"organization": "clinic"},
        {"public_key": clinic.public_hex},
        {"key_id": clinic.key_id},
        {"key_id": clinic.key_id, "public_key": clinic.public_hex},
    ):
        with pytest.raises(LedgerError, match="REGISTER of bank"):
            registry.admit(register(bank, **changes))
    assert registry.keys == {}
    assert registry.run is None


SHARD = {"cohort": "c", "split": "train", "generation": 0, "records": 3, "root": D}
REQUEST = {"request": D, "organization": "bank", "scope": "subject", "method": "replay", "removed": D}
WITHDRAWN = {"removal": D, "requests": [D], "cohorts": {"c": 2}, "models": [D]}
EXECUTED = {
    "requests": [D], "certificate": D, "guarantee": "EXACT_BITWISE", "old_model_digest": D, "new_model_digest": D,
    "steps_replayed": 1, "steps_total": 2,
}  # fmt: skip
UPDATE = {"round": 1, "cohort": "c", "base": D, "update": D, "weight": 1, "steps": 2}
MERGE = {"round": 1, "cohort": "c", "base": D, "inputs": [], "adapter": D, "file": "f"}


def test_events_of_a_removal_are_taken(tmp_path):
    who = {name: load_or_create(name, tmp_path) for name in ("bank", "coordinator")}
    for name, kind, body in (
        ("bank", ev.SHARD_MANIFEST, SHARD),
        ("bank", ev.SHARD_MANIFEST, {**SHARD, "split": "test", "cohort": ""}),
        ("bank", ev.UNLEARN_REQUEST, REQUEST),
        ("coordinator", ev.UNLEARN_REQUEST, {**REQUEST, "scope": "organization"}),
        ("coordinator", ev.UNLEARN_WITHDRAWN, WITHDRAWN),
        ("coordinator", ev.UNLEARN_WITHDRAWN, {**WITHDRAWN, "cohorts": {}, "models": []}),
        ("coordinator", ev.MODEL_REVOKED, {"model_digest": D, "request": D, "reason": "records are removed"}),
        ("coordinator", ev.UNLEARN_EXEC, EXECUTED),
        ("bank", ev.UNLEARN_ATTEST, {"certificate": D, "mode": "reexecute", "steps": 3, "result": "same"}),
        ("bank", ev.UPDATE, {**UPDATE, "replay": D, "trace": [D, D]}),
        ("coordinator", ev.MERGE, {**MERGE, "replay": D}),
        ("coordinator", ev.EVALUATION, {"round": 1, "scores": {}, "replay": D, "adapters": {"c": D}}),
    ):
        envelope = ev.make_event(who[name], RUN, kind, body)
        event = ev.read_event(envelope, {identity.key_id: identity.public_hex for identity in who.values()})
        assert event.replay == body.get("replay")


@pytest.mark.parametrize(
    ("who", "kind", "body", "reason"),
    [
        ("coordinator", ev.SHARD_MANIFEST, SHARD, "the organization that holds the shard signs it"),
        ("bank", ev.SHARD_MANIFEST, {**SHARD, "split": "test"}, "split is train, of a cohort, or test"),
        ("bank", ev.SHARD_MANIFEST, {**SHARD, "cohort": ""}, "split is train, of a cohort, or test"),
        ("bank", ev.SHARD_MANIFEST, {**SHARD, "split": "other"}, "split is train, of a cohort, or test"),
        ("bank", ev.SHARD_MANIFEST, {**SHARD, "root": "x"}, "root is not a digest"),
        ("bank", ev.UNLEARN_REQUEST, {**REQUEST, "scope": "everything"}, "scope 'everything' is none of"),
        ("bank", ev.UNLEARN_REQUEST, {**REQUEST, "organization": "clinic"}, "records of clinic, who must sign it"),
        ("coordinator", ev.UNLEARN_REQUEST, REQUEST, "records of bank, who must sign it"),
        ("bank", ev.UNLEARN_WITHDRAWN, WITHDRAWN, "only the coordinator"),
        ("coordinator", ev.UNLEARN_WITHDRAWN, {**WITHDRAWN, "requests": []}, "serves no request"),
        ("coordinator", ev.UNLEARN_WITHDRAWN, {**WITHDRAWN, "requests": [D, D]}, "list of different digests"),
        ("coordinator", ev.UNLEARN_WITHDRAWN, {**WITHDRAWN, "cohorts": ["c"]}, "table of rounds"),
        ("coordinator", ev.UNLEARN_WITHDRAWN, {**WITHDRAWN, "cohorts": {"c": 0}}, "table of rounds"),
        ("coordinator", ev.UNLEARN_WITHDRAWN, {**WITHDRAWN, "cohorts": {"c": True}}, "table of rounds"),
        ("coordinator", ev.UNLEARN_WITHDRAWN, {**WITHDRAWN, "models": ["m"]}, "list of different digests"),
        ("bank", ev.MODEL_REVOKED, {"model_digest": D, "request": D, "reason": ""}, "only the coordinator"),
        ("bank", ev.UNLEARN_EXEC, EXECUTED, "only the coordinator"),
        ("coordinator", ev.UNLEARN_EXEC, {**EXECUTED, "requests": []}, "serves no request"),
        ("coordinator", ev.UNLEARN_EXEC, {**EXECUTED, "steps_replayed": 3}, "3 of 2 steps"),
        ("bank", ev.UNLEARN_ATTEST, {"certificate": D, "mode": "all", "steps": -1, "result": ""}, "steps is not a int"),
        ("bank", ev.UPDATE, {**UPDATE, "replay": "x"}, "replay is not a digest"),
        ("bank", ev.UPDATE, {**UPDATE, "replay": None}, "replay is not a digest"),
        ("bank", ev.UPDATE, {**UPDATE, "trace": [D, "x"]}, "trace is not a list of digests"),
        ("coordinator", ev.MERGE, {**MERGE, "adapter": "cd" * 32}, "names another adapter than its base"),
        ("coordinator", ev.EVALUATION, {"round": 1, "scores": {}, "adapters": {"c": 1}}, "table of digests"),
        ("coordinator", ev.CHECKPOINT, {"round": 1, "file": "f", "digest": D, "replay": 1}, "replay is not a digest"),
    ],
)
def test_events_of_a_removal_are_checked_inside(tmp_path, who, kind, body, reason):
    with pytest.raises(LedgerError, match=reason):
        ev.make_event(load_or_create(who, tmp_path), RUN, kind, body)
