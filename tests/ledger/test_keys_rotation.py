"""Keys over the life of a run: rotated, revoked, admitted again; the log, the witnesses and a stranger follow."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_run import COHORT, FakeRun

from ledger import checkpoint
from ledger import events as ev
from ledger import key_decisions as decisions
from ledger.bundle import export
from ledger.canonical import canonical_json, sha256_hex
from ledger.errors import LedgerError
from ledger.identity import COORDINATOR, Identity, load_or_create, public_document
from ledger.identity_document import lineage_of, read_identity, rotated_document
from ledger.key_events import approve, decision, possession, rotation_event
from ledger.key_files import rotate
from ledger.registry import Registry
from ledger.report import Report
from ledger.verify import verify_run
from ledger.verify_trust import read_trust


class Rotating(FakeRun):
    """A run of which one organization rotates its key after round 1."""

    def __init__(self, base: Path, names: tuple[str, ...] = ("bank", "clinic")) -> None:
        super().__init__(base / "run", base / "keys")
        self.keys_dir = base / "keys"
        for name in names:
            self.identities.setdefault(name, load_or_create(name, self.keys_dir))
        self.manifest |= {"organizations": sorted(names), "cohorts": {COHORT: ["bank", "clinic"]}}

    def rotate(self, name: str = "bank") -> list[Any]:
        """KEY_ROTATION and REGISTER; the document is rewritten."""
        old, new = rotate(name, self.keys_dir)
        event = rotation_event(old, new, self.run)
        path = self.dir / "identities" / f"{name}.json"
        path.write_bytes(canonical_json(rotated_document(read_identity(path.read_bytes()), event)))
        self.identities[name] = new
        body = {"organization": name, "key_id": new.key_id, "public_key": new.public_hex}
        register = ev.make_event(new, self.run, ev.REGISTER, {**body, "document": sha256_hex(path.read_bytes())})
        return [event, register]

    def cosigned(self, who: Identity) -> list[str]:
        """The service's answer to a cosignature of the newest head."""
        head = self.service.sign_head()
        assert head is not None
        return self.service.cosign(head.seq, [checkpoint.cosign(who, self.service.newest_checkpoint() or "")])


@pytest.fixture(scope="module")
def rotated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Rotating, dict[str, Identity]]:
    """A sealed run in which bank rotated its key, and the identities as they were before."""
    run = Rotating(tmp_path_factory.mktemp("rotated"))
    before = dict(run.identities)
    run.open(anchored=False)
    run.submit([*run.opening(), *run.round(1)])
    assert run.cosigned(before["bank"]) == []
    run.submit(run.rotate())
    run.submit(run.round(2))
    assert "not by an organization" in run.cosigned(before["bank"])[0], "a retired key cosigns no new head"
    assert run.cosigned(run.identities["bank"]) == []
    run.submit(run.complete(2))
    run.service.seal()
    return run, before


def detail(report: Report, name: str) -> str:
    return next(check.detail for check in report.checks if check.name == name)


def test_a_run_with_a_rotated_key_is_verified(rotated: tuple[Rotating, dict[str, Identity]]):
    run, before = rotated
    report = verify_run(run.dir)
    assert report.ok, report.failure
    document = read_identity((run.dir / "identities" / "bank.json").read_bytes())
    assert lineage_of(document) == [before["bank"].public_hex, run.identities["bank"].public_hex]
    heads = json.loads((run.dir / "ledger" / "anchors.json").read_bytes())["anchors"]
    assert "2 of" in detail(report, "witnesses"), "the cosignature by the old key still counts for the old head"
    assert len(heads) >= 2


def test_a_pin_on_either_key_is_satisfied_and_the_report_says_so(rotated: tuple[Rotating, dict[str, Identity]]):
    run, before = rotated
    pins = {COORDINATOR: run.coordinator.public_hex, "bank": before["bank"].public_hex}
    old = verify_run(run.dir, trust=pins)
    assert old.ok, old.failure
    assert "rotated since, signed by the key that you trust: bank" in detail(old, "keys")
    new = verify_run(run.dir, trust={**pins, "bank": run.identities["bank"].public_hex})
    assert new.ok, new.failure
    assert "rotated" not in detail(new, "keys")
    other = verify_run(run.dir, trust={**pins, "bank": run.identities["clinic"].public_hex})
    assert not other.ok
    assert other.failure is not None
    assert "another key of bank" in other.failure.detail


def test_chosen_events_and_documents_lead_from_key_to_key(
    rotated: tuple[Rotating, dict[str, Identity]], tmp_path: Path
):
    run, before = rotated
    export(run.dir, tmp_path / "some.bundle", types=[ev.UPDATE])
    pins = {COORDINATOR: run.coordinator.public_hex, "bank": before["bank"].public_hex}
    report = verify_run(tmp_path / "some.bundle", trust=pins)
    assert report.ok, report.failure
    assert "rotated since" in detail(report, "keys")
    assert read_trust(run.dir / "identities")["bank"] == run.identities["bank"].public_hex


def test_a_document_whose_rotations_do_not_hold_is_refused(rotated: tuple[Rotating, dict[str, Identity]]):
    run, _ = rotated
    document = json.loads((run.dir / "identities" / "bank.json").read_bytes())
    plain = public_document(run.identities["clinic"])
    for wrong in (
        {**document, "public_key": plain["public_key"], "key_id": plain["key_id"]},
        {**document, "rotations": [{**document["rotations"][0], "public_key": plain["public_key"]}]},
        {**document, "rotations": document["rotations"] * 2},
        {**document, "organization": "clinic"},
    ):
        with pytest.raises(LedgerError, match=r"rotation|does not hold|not registered"):
            read_identity(canonical_json(wrong))


@pytest.fixture
def run(tmp_path: Path) -> Rotating:
    """A run of three organizations, of which two train, with one round done."""
    made = Rotating(tmp_path, ("bank", "clinic", "lab"))
    made.open(anchored=False)
    made.submit([*made.opening(), *made.round(1)])
    return made


def refusals(run: Rotating, *envelopes: Any) -> list[str]:
    return [refused.reason for refused in run.service.submit(envelopes)]


def test_the_old_key_says_nothing_new_but_what_it_said_stays(run: Rotating):
    said = run.event("bank", ev.DECISION, {"round": 1, "effort": "1"})
    late = run.event("bank", ev.DECISION, {"round": 2, "effort": "1"})
    run.submit(run.rotate())
    size = run.service.size()
    assert refusals(run, said) == [], "what the log has may be sent again"
    assert run.service.size() == size
    assert "was rotated or revoked before" in refusals(run, late)[0]
    assert refusals(run, run.event("bank", ev.DECISION, {"round": 2, "effort": "1"})) == []


def test_an_outbox_with_a_rotation_is_read_again(run: Rotating, tmp_path: Path):
    last = run.event("bank", ev.DECISION, {"round": 2, "effort": "1/2"})
    assert run.service.submit([last, *run.rotate()]) == []
    outbox = (run.dir / "ledger" / "outbox.log").read_bytes()
    run.service.pump()
    run.service.close()
    (run.dir / "ledger" / "outbox.log").write_bytes(outbox)  # killed between log and outbox
    run.open(anchored=False)
    while run.service.pump():
        pass
    assert refusals(run, run.event("bank", ev.DECISION, {"round": 3, "effort": "1"})) == []


def test_rotations_that_prove_nothing_are_refused(run: Rotating):
    bank, clinic = run.identities["bank"], run.identities["clinic"]
    new = load_or_create("bank", run.keys_dir / "next")
    good = {"key_id": new.key_id, "public_key": new.public_hex, "possession": possession(new, RUN, bank.key_id)}
    other_run = possession(new, "another-run", bank.key_id)
    wrong = [
        ({**good, "possession": other_run}, "proof of possession"),
        ({**good, "possession": "AAAA"}, "proof of possession"),
        ({**good, "possession": possession(bank, RUN, bank.key_id)}, "proof of possession"),
    ]
    for body, reason in wrong:
        assert reason in refusals(run, ev.make_event(bank, RUN, ev.KEY_ROTATION, body))[0]
    # clinic takes bank's key: bank does not sign that it replaces clinic's
    stolen = {"key_id": bank.key_id, "public_key": bank.public_hex, "possession": good["possession"]}
    assert "proof of possession" in refusals(run, ev.make_event(clinic, RUN, ev.KEY_ROTATION, stolen))[0]
    with pytest.raises(LedgerError, match="key_id is not the digest"):
        ev.make_event(bank, RUN, ev.KEY_ROTATION, {**good, "key_id": clinic.key_id})
    with pytest.raises(LedgerError, match="a log keeps its key"):
        ev.make_event(run.coordinator, RUN, ev.KEY_ROTATION, good)
    assert refusals(run, ev.make_event(bank, RUN, ev.KEY_ROTATION, good)) == []
    back = {
        "key_id": bank.key_id, "public_key": bank.public_hex, "possession": possession(bank, RUN, new.key_id),
    }  # fmt: skip
    assert "is, or was, the one of bank" in refusals(run, ev.make_event(new, RUN, ev.KEY_ROTATION, back))[0]


RUN = "test-run"


def registry_at(run: Rotating) -> Registry:
    while run.service.pump():
        pass
    return run.service._log.registry


def decide(run: Rotating, made: decisions.KeyDecision, *names: str) -> list[str]:
    for name in names:
        made = decisions.approve(made, run.identities[name])
    return refusals(run, *made.events(run.coordinator))


def test_more_than_half_of_the_others_revoke_a_key(run: Rotating, tmp_path: Path):
    made = decisions.propose_revocation(registry_at(run), "bank", "laptop stolen")
    decisions.write_decision(made, tmp_path / "revocation.json")
    assert decisions.read_decision(tmp_path / "revocation.json") == made
    assert "1 of 2 other organizations approve; 2 must" in decide(run, made, "clinic")[0]
    with pytest.raises(LedgerError, match="does not approve this"):
        decisions.approve(made, run.identities["bank"])
    other = replace(made, decision={**made.decision, "reason": "we do not like it"})
    mixed = replace(made, approvals=decisions.approve(other, run.identities["lab"]).approvals)
    assert "approval of lab: the signature does not hold" in decide(run, mixed, "clinic")[0]
    twice = replace(made, approvals=(approve(run.identities["lab"], made.decision),) * 2)
    assert "comes twice" in decide(run, twice)[0]
    assert decide(run, made, "clinic", "lab") == []
    assert registry_at(run).revoked == ["bank"]
    late = run.event("bank", ev.DECISION, {"round": 2, "effort": "1"})
    assert "was rotated or revoked before" in refusals(run, late)[0]
    fresh = load_or_create("bank", run.keys_dir / "next")
    assert "without a key" in refusals(run, ev.make_event(fresh, RUN, ev.REGISTER, {
        **{name: public_document(fresh)[name] for name in ("organization", "key_id", "public_key")},
        "document": "0" * 64,
    }))[0]  # fmt: skip
    with pytest.raises(LedgerError, match="is revoked already"):
        decisions.propose_revocation(registry_at(run), "bank", "again")


def test_a_revoked_organization_comes_back_with_another_key(run: Rotating, tmp_path: Path):
    old = run.identities["bank"]
    registry = registry_at(run)
    with pytest.raises(LedgerError, match="a rotation needs no approvals"):
        decisions.propose_admission(registry, old, "because")
    assert decide(run, decisions.propose_revocation(registry, "bank", "stolen"), "clinic", "lab") == []
    with pytest.raises(LedgerError, match="was in the run before"):
        decisions.propose_admission(registry_at(run), old, "because")
    _, new = rotate("bank", run.keys_dir)
    made = decisions.propose_admission(registry_at(run), new, "shown in person")
    decisions.write_decision(made, tmp_path / "admission.json")
    assert decisions.read_decision(tmp_path / "admission.json") == made
    assert "must" in decide(run, made, "lab")[0]
    assert decide(run, made, "clinic", "lab") == []
    run.identities["bank"] = new
    (run.dir / "identities" / "bank.json").write_bytes(canonical_json(public_document(new)))
    run.submit([*run.round(2), *run.complete(2)])
    run.service.seal()
    report = verify_run(run.dir)
    assert report.ok, report.failure
    pins = {COORDINATOR: run.coordinator.public_hex}
    assert verify_run(run.dir, trust={**pins, "bank": new.public_hex}).ok
    refused = verify_run(run.dir, trust={**pins, "bank": old.public_hex})
    assert refused.failure is not None
    assert "others admitted the new one" in refused.failure.detail


def test_only_the_coordinator_logs_decisions_and_none_is_about_it(run: Rotating):
    said = decision(RUN, "bank", run.identities["bank"].key_id, "because")
    body = {"organization": "bank", "key_id": said["key_id"], "reason": "because", "approvals": []}
    with pytest.raises(LedgerError, match="only the coordinator may sign"):
        ev.make_event(run.identities["clinic"], RUN, ev.KEY_REVOKED, body)
    with pytest.raises(LedgerError, match="a log keeps its key"):
        ev.make_event(run.coordinator, RUN, ev.KEY_REVOKED, {**body, "organization": COORDINATOR})
    with pytest.raises(LedgerError, match="has no organization"):
        decisions.propose_revocation(registry_at(run), COORDINATOR, "because")


