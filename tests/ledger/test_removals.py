"""Removals as the log tells them: what verify_run and verify_certificate accept, and what they find."""

import shutil

import pytest
from fake_run import COHORT
from removal_run import Ask, CohortRun, Withdrawn, model_digest, read_events, tree_of

from ledger import events as ev
from ledger import layout
from ledger.errors import LedgerError
from ledger.identity import COORDINATOR
from ledger.manifest_proof import EMPTY_ROOT
from ledger.report import Report
from ledger.verify import verify_run
from ledger.verify_certificate import RunLog, verify_certificate

BOTH = ["bank", "clinic"]
BY_SHARD = {"shard_0": BOTH, "shard_1": BOTH}
BY_BOTH = {"bank_0": ["bank"], "bank_1": ["bank"], "clinic_0": ["clinic"]}


def trained(tmp_path, cohorts=None, *, complete=True, rounds=3) -> CohortRun:
    run = CohortRun(tmp_path) if cohorts is None else CohortRun(tmp_path, cohorts)
    run.begin(rounds=rounds)
    if complete:
        run.finish()
    return run


def outcome(report: Report) -> dict[str, str]:
    assert report.ok, report.failure
    return {check.name: check.status for check in report.checks}


def finding(run: CohortRun) -> str:
    if not (run.dir / layout.SEAL).exists():
        run.service.seal()
    report = verify_run(run.dir)
    assert report.failure is not None
    return f"{report.failure.file}: {report.failure.detail}"


def assert_in_order(run: CohortRun, *removals: Withdrawn) -> None:
    """The run holds, sealed, and so does every certificate, each with all that can be checked."""
    run.service.seal()
    checks = outcome(verify_run(run.dir))
    assert {checks[name] for name in ("seal", "links", "rounds", "model", "certificates")} == {"ok"}
    log = RunLog(read_events(run), run.manifest, tree_of(run))
    keys = {name: identity.public_hex for name, identity in run.identities.items()}
    for begun in removals:
        report = verify_certificate(run.certificate_path(begun).read_bytes(), trust=keys, log=log)
        assert [name for name, status in outcome(report).items() if status != "ok"] == ["anchor"]


def new_of(run: CohortRun, begun: Withdrawn) -> dict[str, bool]:
    """Of the closure's nodes whether they were made again."""
    return {f"{e.kind} {e.name}": e.new is not None for e in run.stated(begun).closure}


def test_a_cohort_is_replayed(tmp_path):
    run = trained(tmp_path, BY_SHARD)
    begun = run.remove([Ask("bank", ["bank-0", "bank-2"])], {"shard_0": 2}, auditor="clinic")
    assert_in_order(run, begun)
    assert "adapter shard_1@3" not in new_of(run, begun)
    assert new_of(run, begun) == dict.fromkeys(new_of(run, begun), True) | {"evaluation 2": False}


def test_cohorts_are_replayed_from_different_rounds(tmp_path):
    run = trained(tmp_path, BY_SHARD)
    begun = run.remove([Ask("bank", ["bank-0"]), Ask("clinic", ["clinic-1"])], {"shard_0": 3, "shard_1": 2})
    assert_in_order(run, begun)
    assert {"adapter shard_0@2", "adapter shard_1@2"} & set(new_of(run, begun)) == {"adapter shard_1@2"}


def removed_and_kept(run: CohortRun, ask: Ask, kept: dict[str, str | None]) -> Withdrawn:
    begun = run.withdraw([ask], {COHORT: 2})
    run.interim(begun)
    run.replay(begun, kept)
    run.certify(begun)
    return begun


def test_updates_that_a_removal_does_not_change_are_kept(tmp_path):
    run = trained(tmp_path)
    first = removed_and_kept(run, Ask("bank", ["bank-3"]), {"clinic": None})
    second = removed_and_kept(run, Ask("clinic", ["clinic-3"]), {"bank": first.removal})
    assert_in_order(run, first, second)
    kept = [(e.organization, e.round, e.replay) for e in read_events(run) if e.body.get("kept")]
    assert kept == [("clinic", 2, first.removal), ("bank", 2, second.removal)]


def test_an_update_that_read_the_records_cannot_be_kept(tmp_path):
    run = trained(tmp_path)
    begun = removed_and_kept(run, Ask("bank", ["bank-3"]), {"bank": None, "clinic": None})
    run.service.seal()
    log = RunLog(read_events(run), run.manifest, tree_of(run))
    report = verify_certificate(run.certificate_path(begun).read_bytes(), log=log)
    assert report.failure is not None
    assert "the new model comes from update bank/all@2, which read the records" in report.failure.detail


def test_an_update_that_an_earlier_removal_withdrew_cannot_be_kept(tmp_path):
    run = trained(tmp_path)
    removed_and_kept(run, Ask("bank", ["bank-3"]), {})
    removed_and_kept(run, Ask("clinic", ["clinic-3"]), {"bank": None})
    assert "keeps an update of cohort 'all' that was in no adapter when the removal began" in finding(run)


def test_nothing_but_a_removal_keeps_an_update(tmp_path):
    run = trained(tmp_path, complete=False)
    body = {"round": 3, "cohort": COHORT, "base": "1" * 64, "update": "2" * 64, "weight": 1, "steps": 1, "kept": True}
    with pytest.raises(LedgerError, match="is kept, and of no removal"):
        run.event("bank", ev.UPDATE, body)


def test_an_organization_leaves_cohorts_of_its_own(tmp_path):
    run = trained(tmp_path, BY_BOTH)
    begun = run.remove([Ask("bank")], {"bank_0": 1, "bank_1": 1}, "drop")
    assert_in_order(run, begun)
    assert not any(made for name, made in new_of(run, begun).items() if name.startswith(("adapter", "update")))
    assert not list(run.dir.glob("rounds/*/bank_*"))


def test_an_organization_leaves_a_cohort_that_others_share(tmp_path):
    run = trained(tmp_path)
    begun = run.remove([Ask("clinic")], {COHORT: 1})
    assert_in_order(run, begun)
    made = new_of(run, begun)
    assert (made["update bank/all@2"], made["update clinic/all@2"]) == (True, False)


def test_an_organization_that_is_absent_leaves_every_cohort(tmp_path):
    run = trained(tmp_path, BY_SHARD)
    begun = run.remove([Ask("clinic", signer=COORDINATOR)], {"shard_0": 1, "shard_1": 1})
    assert_in_order(run, begun)
    assert {e.new for e in run.stated(begun).closure if e.kind == "shard"} == {EMPTY_ROOT}


def test_records_that_no_step_read_withdraw_nothing(tmp_path):
    run = trained(tmp_path, BY_SHARD)
    model = model_digest(run)
    begun = run.withdraw([Ask("bank", ["bank-0"])], {"shard_0": 4})
    run.certify(begun)
    assert_in_order(run, begun)
    assert (model_digest(run), new_of(run, begun)) == (model, {"shard bank/shard_0": True})


def test_a_round_without_members_merges_nothing(tmp_path):
    run = trained(tmp_path, BY_BOTH)
    begun = run.remove([Ask("clinic")], {"clinic_0": 1})
    assert_in_order(run, begun)
    assert run.newest()["clinic_0"] == run.initial


def test_a_dropped_cohort_stays_out(tmp_path):
    run = trained(tmp_path, BY_SHARD)
    begun = run.remove([Ask("bank", ["bank-0"])], {"shard_0": 2}, "drop")
    assert_in_order(run, begun)
    run.open(anchored=False)
    run.submit([run.released(run.newest(), begun.removal)])  # with the adapter that was there before round 2
    assert "holds cohort 'shard_0', whose round 2 is withdrawn" in finding(run)


def test_an_approximate_method_changes_the_last_adapter(tmp_path):
    run = trained(tmp_path, BY_SHARD)
    begun = run.remove([Ask("bank", ["bank-0"])], {"shard_0": 2}, "ascent")
    assert_in_order(run, begun)
    kept = {e.name: e.new == e.old for e in run.stated(begun).closure if e.kind == "adapter"}
    assert kept == {"shard_0@2": True, "shard_0@3": False}


@pytest.mark.slow
def test_removals_follow_each_other(tmp_path):
    run = trained(tmp_path, BY_SHARD)
    first = run.remove([Ask("bank", ["bank-0"])], {"shard_0": 2})
    run.service.seal()
    run.open(anchored=False)
    again = run.remove([Ask("bank", ["bank-2"])], {"shard_0": 1})
    other = run.remove([Ask("clinic", ["clinic-0", "clinic-1"])], {"shard_0": 2, "shard_1": 3}, auditor="bank")
    assert_in_order(run, first, again, other)
    assert len({*first.models, *again.models, *other.models}) == len(first.models + again.models + other.models) > 2


def test_what_an_earlier_removal_dropped_is_not_dropped_again(tmp_path):
    run = trained(tmp_path, BY_SHARD)
    first = run.remove([Ask("bank", ["bank-0"])], {"shard_0": 2}, "drop")
    second = run.remove([Ask("clinic", ["clinic-0"]), Ask("bank", ["bank-1"])], {"shard_0": 1, "shard_1": 3})
    assert_in_order(run, first, second)
    names = set(new_of(run, second))
    assert "adapter shard_0@2" not in names  # gone since the first one
    assert {"adapter shard_0@1", "adapter shard_1@3"} <= names


def test_training_goes_on_after_a_removal(tmp_path):
    run = trained(tmp_path, BY_SHARD, complete=False, rounds=2)
    begun = run.remove([Ask("bank", ["bank-0"])], {"shard_0": 1})
    for round_ in (3, 4):
        run.train(round_)
    run.finish()
    after = run.remove([Ask("clinic", ["clinic-2"])], {"shard_0": 2})
    assert_in_order(run, begun, after)


def test_an_attempt_that_training_left_unfinished_is_not_replayed(tmp_path):
    run = trained(tmp_path, BY_SHARD, complete=False, rounds=2)
    run.submit([*run.merged("shard_0", 3, BOTH), *run.merged("shard_1", 3, BOTH)])  # killed before the checkpoint
    begun = run.withdraw([Ask("bank", ["bank-0"])], {"shard_0": 2})
    assert not (run.dir / "rounds/0003/shard_0.safetensors").exists()
    run.chain["shard_1"].pop(3)
    run.interim(begun)
    run.replay(begun)
    run.certify(begun)
    run.train(3)
    run.finish()
    assert_in_order(run, begun)


def test_a_replay_that_was_cut_short_is_repeated(tmp_path):
    run = trained(tmp_path, BY_SHARD)
    begun = run.withdraw([Ask("bank", ["bank-0"])], {"shard_0": 2})
    run.interim(begun)
    run.submit(run.merged("shard_0", 2, ["bank"], begun.removal))
    run.submit(run.merged("shard_0", 3, BOTH, begun.removal))
    del run.chain["shard_0"][2], run.chain["shard_0"][3]
    run.replay(begun)
    run.certify(begun)
    assert_in_order(run, begun)


def test_while_a_removal_is_under_way_the_run_says_so(tmp_path):
    run = trained(tmp_path, BY_SHARD)
    begun = run.withdraw([Ask("bank", ["bank-0"])], {"shard_0": 2})
    report = verify_run(run.dir)
    assert outcome(report)["seal"] == "skipped"
    assert any("is revoked, and none was released since" in line for line in report.not_checked)
    run.interim(begun)
    run.submit(run.merged("shard_0", 2, BOTH, begun.removal))
    (run.dir / "rounds/0003/shard_0.safetensors").write_bytes(b"written, and not logged yet")
    report = verify_run(run.dir)
    assert report.ok, report.failure
    assert any("under way" in line for line in report.not_checked)


def withdrawn(tmp_path, method="replay") -> tuple[CohortRun, Withdrawn]:
    run = trained(tmp_path, BY_SHARD)
    begun = run.withdraw([Ask("bank", ["bank-0"])], {"shard_0": 2}, method)
    run.interim(begun)
    return run, begun


def test_an_old_update_in_a_replay_is_found(tmp_path):
    run, begun = withdrawn(tmp_path)
    old = next(e for e in read_events(run) if e.type == ev.MERGE and (e.round, e.body["cohort"]) == (2, "shard_0"))
    run.submit(run.merged("shard_0", 2, BOTH, begun.removal, inputs=old.body["inputs"]))
    assert "takes an update of bank from before the records were removed" in finding(run)


def test_a_replayed_update_in_a_merge_of_training_is_found(tmp_path):
    run = trained(tmp_path, BY_SHARD, complete=False)
    begun = run.remove([Ask("bank", ["bank-0"])], {"shard_0": 2})
    run.last = 4
    *updates, _ = run.merged("shard_0", 4, BOTH, begun.removal)
    del run.chain["shard_0"][4]
    inputs = [ev.dsse.payload_of(update)[0] for update in updates]
    assert all(b'"replay"' in data for data in inputs)
    run.submit(updates)
    logged = [e for e in read_events(run) if e.type == ev.UPDATE][-2:]
    rows = [{"organization": e.organization, "update": e.body["update"], "weight": 10} for e in logged]
    run.submit(run.merged("shard_0", 4, BOTH, None, inputs=rows)[-1:])
    assert "signed no update" in finding(run)


def test_a_withdrawn_round_must_be_replayed_before_training_goes_on(tmp_path):
    run = trained(tmp_path, BY_SHARD, complete=False)
    begun = run.withdraw([Ask("bank", ["bank-0"])], {"shard_0": 2})
    run.submit(run.merged("shard_0", 2, BOTH, begun.removal))
    run.chain["shard_0"][3] = run.chain["shard_0"][2]
    run.submit(run.merged("shard_0", 4, BOTH))
    assert "round 3 of the cohort is withdrawn, and not replayed" in finding(run)


def test_a_round_that_is_left_out_of_a_replay_is_found(tmp_path):
    run, begun = withdrawn(tmp_path)
    run.chain["shard_0"][2] = run.chain["shard_0"][1]
    run.submit(run.merged("shard_0", 3, BOTH, begun.removal))
    assert "round 2 is the next one to be replayed" in finding(run)


def test_a_merge_of_an_organization_that_left_is_found(tmp_path):
    run = trained(tmp_path)
    begun = run.withdraw([Ask("clinic")], {COHORT: 1})
    run.submit(run.merged(COHORT, 1, BOTH, begun.removal))
    assert "takes an update of clinic, which has left the run" in finding(run)


def test_a_withdrawn_file_that_is_put_back_is_found(tmp_path):
    run = trained(tmp_path, BY_SHARD)
    file = run.dir / "rounds/0003/shard_0.safetensors"
    shutil.copy(file, tmp_path / "kept")
    begun = run.withdraw([Ask("bank", ["bank-0"])], {"shard_0": 2}, "drop")
    run.interim(begun)
    shutil.copy(tmp_path / "kept", file)
    found = "rounds/0003/shard_0.safetensors: was withdrawn, and still lies there"
    assert finding(run) == f"rounds/0003/shard_0.safetensors: {found}"
    file.unlink()
    run.open(anchored=False)
    run.certify(begun)
    assert_in_order(run, begun)
    file.write_bytes(b"any other content")  # nothing is under way any more
    assert finding(run).endswith(found)
    report = verify_run(run.dir)
    assert report.failure is not None
    assert report.failure.name == "rounds"


def test_a_seal_does_not_name_withdrawn_files_nor_certificates(tmp_path):
    run = trained(tmp_path, BY_SHARD)
    begun = run.remove([Ask("bank", ["bank-0"])], {"shard_0": 2}, "drop")
    (run.dir / "rounds/0003/shard_0.safetensors").write_bytes(b"left over")
    run.service.seal()
    sealed = (run.dir / "ledger/seal.json").read_bytes()
    payload = ev.dsse.payload_of(ev.dsse.parse_canonical(sealed))[0]
    assert b"rounds/0003/shard_1.safetensors" in payload
    assert b"rounds/0003/shard_0.safetensors" not in payload
    assert run.certificate_path(begun).name.encode() not in payload


def test_a_revoked_model_as_the_newest_is_found(tmp_path):
    run = trained(tmp_path, BY_SHARD)
    old = next(e.body for e in read_events(run) if e.type == ev.MODEL_RELEASE)
    begun = run.withdraw([Ask("bank", ["bank-0"])], {"shard_0": 2})
    assert model_digest(run) == old["model_digest"]
    run.submit([run.event(COORDINATOR, ev.MODEL_RELEASE, {**old, "adapters": {}, "replay": begun.removal})])
    assert "which is revoked" in finding(run)


def test_a_replay_that_was_never_withdrawn_is_found(tmp_path):
    run = trained(tmp_path / "a", BY_SHARD, complete=False)
    run.submit(run.merged("shard_0", 4, BOTH, "ab" * 32))
    assert "UPDATE of round 4: is of removal abababab" in finding(run)
    run, begun = withdrawn(tmp_path / "b")
    run.submit(run.merged("shard_1", 3, BOTH, begun.removal))
    assert "did not withdraw the cohort" in finding(run)


def test_nothing_but_removals_follows_the_end(tmp_path):
    run = trained(tmp_path / "a", BY_SHARD)
    run.submit(run.merged("shard_0", 4, BOTH))
    assert "comes after RUN_COMPLETE, and is of no removal" in finding(run)
    run = trained(tmp_path / "b", BY_SHARD)
    run.submit([run.released(run.newest())])
    assert "nothing was withdrawn since" in finding(run)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"requests": ["cd" * 32]}, "which nobody signed before it"),
        ({"cohorts": {"shard_9": 1}}, "has no cohort 'shard_9'"),
        ({"cohorts": {"shard_0": 4}}, "has no adapter from round 4 on"),
    ],
)
def test_a_withdrawal_that_does_not_fit_is_found(tmp_path, body, reason):
    run, begun = withdrawn(tmp_path)
    run.replay(begun)
    said = {"removal": "ef" * 32, "requests": [begun.asks[0].request], "cohorts": {"shard_0": 2}, "models": []}
    run.submit([run.event(COORDINATOR, ev.UNLEARN_WITHDRAWN, {**said, **body})])
    assert reason in finding(run)


def test_an_executed_removal_needs_its_certificate(tmp_path):
    run = trained(tmp_path, BY_SHARD)
    begun = run.remove([Ask("bank", ["bank-0"])], {"shard_0": 2})
    run.service.seal()
    path = run.certificate_path(begun)
    path.rename(tmp_path / "aside")
    assert "has no certificate of the removal that event" in finding(run)
    (tmp_path / "aside").rename(path)
    data = bytearray(path.read_bytes())
    data[200] ^= 1
    path.write_bytes(data)
    report = verify_run(run.dir)
    assert report.failure is not None
    assert (report.failure.name, report.failure.file) == ("certificates", f"certificates/{path.name}")


def test_a_certificate_that_says_dropped_of_what_was_never_withdrawn_is_found(tmp_path):
    run = trained(tmp_path, BY_SHARD)
    begun = run.withdraw([Ask("bank", ["bank-0"])], {"shard_0": 2}, "ascent")
    run.edit(begun)
    said = [e if e.name != "shard_0@2" else type(e)(e.kind, e.name, e.old, None) for e in run.stated(begun).closure]
    run.certify(begun, closure=said)
    assert "adapter shard_0@2 is said to be dropped, and was never withdrawn" in finding(run)
