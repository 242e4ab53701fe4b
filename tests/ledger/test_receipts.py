import dataclasses
import json
from typing import Any

import pytest
from fake_run import COHORT
from removal_run import FORGOTTEN, RemovalRun, record, removal_run

from ledger import events as ev
from ledger.canonical import canonical_json, parse_canonical
from ledger.errors import LedgerError
from ledger.identity import load_or_create
from ledger.receipts import Receipt, check_receipt, entry_of, issue, opening_of, parse, without_openings
from ledger.report import Report
from ledger.verify_certificate import RunLog


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> RemovalRun:
    return removal_run(tmp_path_factory.mktemp("receipts"))


def outcome(report: Report) -> dict[str, str]:
    return {check.name: check.status for check in report.checks}


def detail(report: Report) -> str:
    assert report.failure is not None
    return f"{report.failure.name}: {report.failure.detail}"


def of_somebody(made: RemovalRun, name: str, who: str = "bank", tree: str = "bank") -> bytes:
    entry = entry_of(COHORT, made.trees[tree], [made.commitment(name)])
    return issue(made.run.identities[who], made.run.run, [entry], [opening_of(made.salts[name], record(name))])


def test_a_person_sees_that_the_records_were_in_and_are_gone(made):
    report = check_receipt(made.receipt, trust=made.keys, log=made.log, certificates=[made.certificate])
    assert set(outcome(report).values()) == {"ok"}


def test_before_a_removal_the_receipt_says_so(made):
    report = check_receipt(made.receipt, trust=made.keys, log=made.log)
    assert report.ok
    assert outcome(report)["removal"] == "skipped"


def test_with_the_receipt_alone_only_its_form_and_openings_are_known(made):
    report = check_receipt(made.receipt)
    assert report.ok
    expected = {"form": "ok", "signature": "skipped", "openings": "ok", "log": "skipped", "removal": "skipped"}
    assert outcome(report) == expected


def test_somebody_elses_removal_does_not_remove_my_record(made):
    mine = of_somebody(made, "bank-5")
    report = check_receipt(mine, trust=made.keys, log=made.log, certificates=[made.certificate])
    assert detail(report).startswith("removal: cohort 'all': 1 of 1 records are not removed")


def test_who_was_never_removed_is_still_in_whoever_else_was_removed(made):
    mine = of_somebody(made, "bank-5")
    report = check_receipt(mine, trust=made.keys, log=made.log, of_run=[made.certificate])
    assert report.ok
    assert report.checks[-1].detail == "all 1 records are in the run, none is removed"
    until = [event.type for event in made.log.events].index(ev.UNLEARN_REQUEST)
    before = check_receipt(made.receipt, log=RunLog(made.log.events[:until], made.run.manifest))
    assert before.checks[-1].detail.startswith("all 2 records are in the run")


def test_of_a_person_of_whom_some_records_are_removed_both_are_said(made):
    names = [FORGOTTEN[0], "bank-5"]
    entry = entry_of(COHORT, made.trees["bank"], [made.commitment(name) for name in names])
    data = issue(made.run.identities["bank"], made.run.run, [entry])
    report = check_receipt(data, trust=made.keys, log=made.log, of_run=[made.certificate])
    assert report.ok
    assert report.checks[-1].detail == "of 2 records 1 removed, 1 in the run"


def test_a_shard_that_changed_in_a_way_that_nobody_shows_tells_nothing(made):
    last = [event for event in made.log.events if event.type == ev.SHARD_MANIFEST][-1]
    log = RunLog([*made.log.events, dataclasses.replace(last, body={**last.body, "root": "5" * 64})], made.run.manifest)
    report = check_receipt(of_somebody(made, "bank-5"), log=log, of_run=[made.certificate])
    assert report.ok
    assert outcome(report)["removal"] == "skipped"
    assert "its shard changed since" in report.checks[-1].detail


def test_a_receipt_of_a_root_that_the_run_did_not_use_is_found(made):
    aside = made.trees["bank"].removed([made.commitment("bank-1")])
    entry = entry_of(COHORT, aside, [made.commitment("bank-5")])
    data = issue(made.run.identities["bank"], made.run.run, [entry])
    assert "the run was not trained on what was confirmed" in detail(check_receipt(data, log=made.log))
    elsewhere = issue(made.run.identities["bank"], "another run", [entry])
    assert "is of run 'another run'" in detail(check_receipt(elsewhere, log=made.log))


def test_another_organizations_signature_does_not_count(made, tmp_path):
    entry = entry_of(COHORT, made.trees["bank"], [made.commitment("bank-5")])
    forged = issue(load_or_create("bank", tmp_path), made.run.run, [entry])
    assert "unknown key" in detail(check_receipt(forged, log=made.log))
    assert "unknown key" in detail(check_receipt(forged, trust=made.keys))
    keys = {"bank": load_or_create("bank", tmp_path).public_hex}
    assert "another key of bank" in detail(check_receipt(made.receipt, trust=keys, log=made.log))


def test_a_commitment_to_another_record_is_found(made):
    name = FORGOTTEN[0]
    entry = entry_of(COHORT, made.trees["bank"], [made.commitment(name)])
    wrong = dataclasses.replace(opening_of(made.salts[name], record(name)), record=record("bank-9"))
    data = issue(made.run.identities["bank"], made.run.run, [entry], [wrong])
    assert "is not to the record that stands beside it" in detail(check_receipt(data, trust=made.keys))
    both = entry_of(COHORT, made.trees["bank"], [made.commitment(name) for name in FORGOTTEN])
    some = issue(made.run.identities["bank"], made.run.run, [both], [opening_of(made.salts[name], record(name))])
    assert "1 commitments are not opened" in detail(check_receipt(some, trust=made.keys))


def test_without_its_openings_a_receipt_shows_nothing_of_the_person_and_still_holds(made):
    shown = without_openings(made.receipt)
    payload = json.dumps(vars(parse(shown)), default=str)
    for text in ("loan", "person", *FORGOTTEN, *(made.salts[name].hex() for name in FORGOTTEN)):
        assert text not in payload
    report = check_receipt(shown, trust=made.keys, log=made.log, certificates=[made.certificate])
    assert report.ok
    assert outcome(report)["openings"] == "skipped"


def test_one_changed_byte_is_found(made):
    for place in range(0, len(made.receipt), 13):
        changed = bytearray(made.receipt)
        changed[place] ^= 1
        assert not check_receipt(bytes(changed), trust=made.keys).ok, place


def test_a_certificate_that_does_not_hold_removes_nothing(made):
    content = parse_canonical(made.certificate)
    content["envelope"]["signatures"] = content["envelope"]["signatures"][:1]
    signers = {made.run.identities[name].key_id: name for name in ("bank", "clinic")}
    content["envelope"]["signatures"] = [
        line for line in parse_canonical(made.certificate)["envelope"]["signatures"] if signers[line["keyid"]] != "bank"
    ]
    report = check_receipt(made.receipt, trust=made.keys, certificates=[canonical_json(content)])
    assert "a certificate does not hold: signatures" in detail(report)


def test_a_shard_that_changed_again_is_pointed_out(made):
    last = [event for event in made.log.events if event.type == ev.SHARD_MANIFEST][-1]
    later = dataclasses.replace(last, body={**last.body, "root": "5" * 64})
    log = RunLog([*made.log.events, later], made.run.manifest)
    report = check_receipt(made.receipt, log=log, certificates=[made.certificate])
    assert report.ok
    assert any("its shard changed after these certificates" in line for line in report.not_checked)


def test_what_is_not_in_the_shard_is_not_confirmed(made):
    with pytest.raises(LedgerError, match="not in the shard"):
        entry_of(COHORT, made.trees["bank after"], [made.commitment("bank-3")])
    with pytest.raises(LedgerError, match="no record to confirm"):
        issue(made.run.identities["bank"], made.run.run, [])


def _with_entries(made: RemovalRun, change: Any) -> bytes:
    receipt: Receipt = parse(made.receipt)
    return issue(made.run.identities["bank"], made.run.run, [change(entry) for entry in receipt.entries])


def test_a_proof_that_does_not_hold_is_found(made):
    root = made.trees["bank after"].root
    moved = _with_entries(made, lambda entry: dataclasses.replace(entry, root=root))
    assert "does not lead to root" in detail(check_receipt(moved, trust=made.keys))
    absent = _with_entries(made, lambda entry: dataclasses.replace(
        entry, root=root, proof=made.trees["bank after"].proof(entry.commitments)))  # fmt: skip
    assert "is not under root" in detail(check_receipt(absent, trust=made.keys))
