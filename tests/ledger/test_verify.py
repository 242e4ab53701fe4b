import json
import random
import shutil
import sqlite3
import subprocess
import sys

import pytest
from fake_run import COHORT, FakeRun, adapter, whole_run

from ledger import events as ev
from ledger import layout
from ledger.canonical import canonical_json, sha256_hex
from ledger.cli import main
from ledger.identity import load_or_create
from ledger.verify import verify_run

D = "ab" * 32


def files_of(run_dir):
    return layout.files_under(run_dir, ".")


def failing_file(run_dir):
    report = verify_run(run_dir)
    return report.failure.file if report.failure else None


def snapshot(run_dir):
    return {name: (run_dir / name).read_bytes() for name in files_of(run_dir)}


def test_a_finished_run_is_in_order(run_dir):
    before = snapshot(run_dir)
    seen = []
    report = verify_run(run_dir, seen.append)
    assert report.ok, report.failure
    statuses = {check.name: check.status for check in report.checks}
    assert [name for name, status in statuses.items() if status != "ok"] == ["keys", "witnesses", "private chain"]
    assert set(statuses.values()) == {"ok", "skipped"}
    assert len(report.checked) == 10
    assert seen == report.checks
    assert snapshot(run_dir) == before


@pytest.mark.slow
def test_every_flipped_byte_is_found_and_its_file_named(run_dir):
    """Random positions in every file, one byte changed at a time."""
    source = random.Random(20240607)
    names = files_of(run_dir)
    assert {"ledger/log.sqlite", "ledger/anchors.json", "ledger/chain/blocks.log", "ledger/seal.json"} < set(names)
    assert {"manifest.json", "config.yaml", "identities/bank.json", "rounds/0002/all.safetensors"} < set(names)
    for name in names:
        path = run_dir / name
        data = path.read_bytes()
        for position in source.sample(range(len(data)), min(len(data), 40)):
            changed = bytearray(data)
            changed[position] ^= source.randrange(1, 256)
            path.write_bytes(changed)
            assert failing_file(run_dir) == name, (name, position)
        path.write_bytes(data)
    assert verify_run(run_dir).ok


@pytest.mark.slow
def test_the_log_is_checked_even_where_a_seal_would_fit(run_dir, sealed):
    """Whoever holds the coordinator's key can seal again, but cannot change what was signed."""
    source = random.Random(7)
    names = [
        "ledger/log.sqlite",
        "ledger/anchors.json",
        "ledger/chain/blocks.log",
        "manifest.json",
        "config.yaml",
    ]
    names += ["identities/bank.json", "rounds/0002/all.safetensors", "rounds/0001/round.json"]
    names += ["model/adapter_model.safetensors", "model/adapter_config.json"]
    seal = json.loads((run_dir / layout.SEAL).read_bytes())
    for name in names:
        path = run_dir / name
        data = path.read_bytes()
        for position in source.sample(range(len(data)), min(len(data), 6)):
            changed = bytearray(data)
            changed[position] ^= 1 << source.randrange(8)
            path.write_bytes(changed)
            reseal(run_dir, sealed.coordinator, seal)
            report = verify_run(run_dir)
            if name == "ledger/log.sqlite" and report.ok:
                continue  # a byte of SQLite's free space: only the true seal vouches for it
            assert report.failure is not None, (name, position)
            assert report.failure.file == name, (name, position, report.failure)
        path.write_bytes(data)


def reseal(run_dir, coordinator, seal):
    from ledger import dsse
    from ledger.canonical import parse_canonical
    from ledger.dsse import payload_of
    from ledger.seal import PAYLOAD_TYPE

    content = parse_canonical(payload_of(seal)[0])
    content["files"] = {name: sha256_hex((run_dir / name).read_bytes()) for name in content["files"]}
    envelope = dsse.sign(canonical_json(content), PAYLOAD_TYPE, coordinator)
    (run_dir / layout.SEAL).write_bytes(canonical_json(envelope))


@pytest.mark.slow
def test_garbage_gives_a_report_and_no_traceback(run_dir):
    source = random.Random(11)
    for sealed_state in (True, False):
        for name in files_of(run_dir):
            path = run_dir / name
            data = path.read_bytes()
            for _ in range(4):
                cut = data[: source.randrange(len(data))]
                for changed in (
                    cut,
                    cut + source.randbytes(50),
                    source.randbytes(len(data)),
                    b"",
                    b"{}",
                    b"[" * 9999,
                ):
                    path.write_bytes(changed)
                    report = verify_run(run_dir)
                    assert report.failure is not None or not sealed_state, name
                    if sealed_state:
                        assert report.failure.file == name
                    for check in report.checks:
                        assert "cannot be checked" not in check.detail, check
            path.write_bytes(data)
        (run_dir / layout.SEAL).unlink(missing_ok=True)


@pytest.mark.parametrize("name", [layout.LOG, layout.ANCHORS, layout.BLOCKS, layout.SEAL, "manifest.json"])
def test_missing_files_are_named(run_dir, name):
    (run_dir / name).unlink()
    assert failing_file(run_dir) == name


@pytest.mark.parametrize(
    "name",
    ["config.yaml", "identities/clinic.json", "rounds/0001/all.safetensors", "model/adapter_config.json"],
)
def test_missing_run_files_are_named(run_dir, name):
    (run_dir / name).unlink()
    assert failing_file(run_dir) == name


@pytest.mark.parametrize(
    "name",
    [
        "model/extra.bin",
        "model/deep/extra.bin",
        "identities/eve.json",
        "ledger/extra",
        "ledger/log.sqlite-wal",
    ],
)
def test_files_that_nobody_vouches_for_are_named(run_dir, name):
    (run_dir / name).parent.mkdir(exist_ok=True)
    (run_dir / name).write_bytes(b"x")
    assert failing_file(run_dir) == name


def test_links_are_not_followed(run_dir, tmp_path):
    for name in ("config.yaml", "rounds/0001", "ledger/log.sqlite", "model/adapter_config.json"):
        path = run_dir / name
        aside = tmp_path / "aside"
        path.rename(aside)
        path.symlink_to(aside)
        report = verify_run(run_dir)
        assert report.failure is not None
        assert report.failure.file is not None
        assert report.failure.file.startswith(name)
        path.unlink()
        aside.rename(path)
    assert verify_run(run_dir).ok


def unfinished(tmp_path, *, anchored=False, **options):
    run = FakeRun(tmp_path / "run", tmp_path / "keys", **options)
    run.open(anchored=anchored)
    run.submit(run.opening())
    return run


def finding(run):
    run.service.close()
    report = verify_run(run.dir)
    return (report.failure.file, report.failure.detail) if report.failure else None


def test_an_unfinished_run_is_checked_as_far_as_it_goes(tmp_path):
    run = unfinished(tmp_path, anchored=True)
    run.submit(run.round(1))
    before = snapshot(run.dir)
    report = verify_run(run.dir)  # while the writer has it open
    assert report.ok, report.failure
    details = {check.name: (check.status, check.detail) for check in report.checks}
    assert details["seal"] == ("skipped", "not sealed: run not complete")
    assert details["model"][0] == "skipped"
    assert details["anchors"][0] == "ok"
    assert snapshot(run.dir) == before
    assert finding(run) is None


def test_a_run_without_a_chain_says_so(tmp_path):
    run = whole_run(tmp_path / "run", tmp_path / "keys", rounds=1, anchored=False)
    report = verify_run(run.dir)
    assert report.ok
    assert {check.name: check.status for check in report.checks}["anchors"] == "skipped"


def test_interrupted_attempts_are_left_behind(tmp_path):
    run = unfinished(tmp_path)
    run.submit(run.round(1))
    base = run.base
    lost = run.round(2)[:-1]  # killed before the checkpoint of round 2
    run.submit(lost)
    run.base = base
    updates = [("bank", run.update("bank", 2, weight=3))]  # this time the clinic stays away
    merge = run.merge(2, updates)
    absent = {"round": 2, "organization": "clinic", "reason": "deadline"}
    run.submit([run.event(who, ev.UPDATE, body) for who, body in updates])
    run.submit([run.event("coordinator", ev.ABSENT, absent), run.event("coordinator", ev.MERGE, merge)])
    run.submit([run.checkpoint(2)])
    run.base = merge["adapter"]
    run.submit(run.round(3))
    assert finding(run) is None


def merged(run, round_=1, **changes):
    updates = [(who, run.update(who, round_)) for who in ("bank", "clinic")]
    run.submit([run.event(who, ev.UPDATE, body) for who, body in updates])
    body = run.merge(round_, updates) | changes
    run.submit([run.event("coordinator", ev.MERGE, body)])
    return body


def test_a_base_that_is_not_the_adapter_before_it(tmp_path):
    run = unfinished(tmp_path)
    merged(run, base=D)
    file, detail = finding(run)
    assert file == layout.LOG
    assert "starts from abababab" in detail


def test_an_input_that_nobody_signed(tmp_path):
    for number, change in enumerate(({"weight": 11}, {"update": D}, {"organization": "eve"})):
        run = unfinished(tmp_path / str(number))
        body = run.merge(1, [("bank", run.update("bank", 1))])
        run.submit([run.event("bank", ev.UPDATE, run.update("bank", 1))])
        body["inputs"][0] |= change
        run.submit([run.event("coordinator", ev.MERGE, body)])
        file, detail = finding(run)
        assert file == layout.LOG
        assert "signed no update" in detail or "not a member" in detail


def test_an_update_of_another_round_or_base_does_not_count(tmp_path):
    for number, change in enumerate(({"round": 2}, {"base": D}, {"cohort": "other"})):
        run = unfinished(tmp_path / str(number))
        update = run.update("bank", 1)
        run.submit([run.event("bank", ev.UPDATE, update | change)])
        run.submit([run.event("coordinator", ev.MERGE, run.merge(1, [("bank", update)]))])
        assert "signed no update" in finding(run)[1]


def test_an_update_merged_twice(tmp_path):
    run = unfinished(tmp_path)
    update = run.update("bank", 1)
    run.submit([run.event("bank", ev.UPDATE, update)])
    run.submit([run.event("coordinator", ev.MERGE, run.merge(1, [("bank", update), ("bank", update)]))])
    assert "merged twice" in finding(run)[1]


def test_a_refused_update_that_is_merged(tmp_path):
    for number, extra in enumerate(({}, {"update": sha256_hex(b"bank 1")})):
        run = unfinished(tmp_path / str(number))
        body = {"round": 1, "organization": "bank", "cohort": COHORT, "reason": "NaN"} | extra
        run.submit([run.event("coordinator", ev.REFUSED, body)])
        merged(run)
        assert "was refused" in finding(run)[1]
    run = unfinished(tmp_path / "other")
    body = {"round": 1, "organization": "bank", "cohort": COHORT, "reason": "NaN", "update": D}
    run.submit([run.event("coordinator", ev.REFUSED, body)])
    merged(run)
    assert finding(run) is None  # another update of it was refused


def test_a_round_that_comes_back_after_its_checkpoint(tmp_path):
    run = unfinished(tmp_path)
    run.submit(run.round(1))
    run.submit(run.round(2))
    merged(run, 1, base=run.base)
    assert "which is finished" in finding(run)[1]


def test_an_unknown_cohort(tmp_path):
    run = unfinished(tmp_path)
    merged(run, cohort="other")
    assert "no such cohort" in finding(run)[1]


def test_another_adapter_on_the_disk(tmp_path):
    run = unfinished(tmp_path)
    body = merged(run)
    adapter(run.dir / body["file"], 77)
    file, detail = finding(run)
    assert file == body["file"]
    assert "other tensors" in detail


def test_file_names_cannot_leave_the_run(tmp_path):
    for number, name in enumerate(("../outside.safetensors", "/etc/hostname", "rounds//x", "a/./b")):
        run = unfinished(tmp_path / str(number))
        merged(run, file=name)
        assert "inside the run directory" in finding(run)[1]


def test_pruned_rounds_may_be_missing_and_others_not(tmp_path):
    run = unfinished(tmp_path, keep_rounds=2)
    for round_ in range(1, 5):
        run.submit(run.round(round_))
    shutil.rmtree(run.dir / "rounds" / "0001")
    shutil.rmtree(run.dir / "rounds" / "0002")
    run.submit(run.complete(4))
    run.service.seal()
    report = verify_run(run.dir)
    assert report.ok, report.failure
    assert "4 skipped (pruned)" in next(check.detail for check in report.checks if check.name == "rounds")
    shutil.rmtree(run.dir / "rounds" / "0003")
    assert failing_file(run.dir) == "rounds/0003/all.safetensors"


def test_rounds_may_also_be_pruned_after_the_seal(tmp_path):
    run = unfinished(tmp_path, keep_rounds=1)
    for round_ in (1, 2):
        run.submit(run.round(round_))
    run.submit(run.complete(2))
    run.service.seal()
    shutil.rmtree(run.dir / "rounds" / "0001")
    assert verify_run(run.dir).ok


def test_a_release_must_hold_the_newest_adapters(tmp_path):
    run = unfinished(tmp_path)
    run.submit(run.round(1))
    run.base = D
    run.submit([run.release()])
    assert "newest adapter is" in finding(run)[1]


def test_a_later_release_supersedes(tmp_path):
    run = unfinished(tmp_path)
    run.submit([*run.round(1), run.release()])
    (run.dir / "model" / "adapter_config.json").write_text("{}")
    run.submit(run.round(2))
    (run.dir / "model" / "adapter_model.safetensors").unlink()
    run.submit(run.complete(2))
    run.service.seal()
    assert verify_run(run.dir).ok


def test_the_end_must_name_the_released_model(tmp_path):
    run = unfinished(tmp_path)
    run.submit([*run.round(1), run.release()])
    run.submit([run.event("coordinator", ev.RUN_COMPLETE, {"rounds": 1, "model_digest": D})])
    run.service.seal()
    assert "another model" in verify_run(run.dir).failure.detail


def test_who_is_registered_must_be_in_the_manifest(tmp_path):
    run = unfinished(tmp_path)
    run.submit([run.register(load_or_create("eve", tmp_path / "keys"))])
    file, detail = finding(run)
    assert file == layout.LOG
    assert detail.endswith("eve")


def test_manifest_and_identities_must_be_as_logged(tmp_path):
    run = unfinished(tmp_path)
    (run.dir / "config.yaml").write_text("rounds: 4\n")
    assert finding(run)[0] == "config.yaml"
    run = unfinished(tmp_path / "b")
    run.register(load_or_create("bank", tmp_path / "elsewhere"))
    assert finding(run)[0] == "identities/bank.json"


def test_a_published_key_must_be_the_registered_one(tmp_path):
    """The organization itself registers one key and states the document of another."""
    run = FakeRun(tmp_path / "run", tmp_path / "keys")
    run.open(anchored=False)
    envelopes = run.opening()
    run.register(load_or_create("bank", tmp_path / "elsewhere"))
    stated = sha256_hex((run.dir / "identities" / "bank.json").read_bytes())
    bank = run.identities["bank"]
    body = {"organization": "bank", "key_id": bank.key_id, "public_key": bank.public_hex, "document": stated}
    run.submit([*envelopes, run.event("bank", ev.REGISTER, body)])
    assert finding(run) == (
        "identities/bank.json",
        "identities/bank.json: shows another key than the one registered",
    )


def test_a_forged_leaf_is_found(run_dir, sealed):
    """The database is rewritten, triggers and all, and sealed again."""
    seal = json.loads((run_dir / layout.SEAL).read_bytes())
    db = sqlite3.connect(run_dir / layout.LOG)
    for name in ("leaves_keep", "leaves_fixed", "nodes_keep", "nodes_fixed"):
        db.execute(f"DROP TRIGGER {name}")
    position, leaf = db.execute("SELECT idx, leaf FROM leaves WHERE type='UPDATE'").fetchone()
    original = (run_dir / layout.LOG).read_bytes()
    cases = [
        (
            "UPDATE leaves SET leaf=? WHERE idx=?",
            (leaf.replace(b'"sig":"', b'"sig":"A', 1), position),
            "event",
        ),
        ("UPDATE leaves SET leaf=? WHERE idx=?", (leaf + b" ", position), "canonical form"),
        ("UPDATE leaves SET type='MERGE' WHERE idx=?", (position,), "columns differ"),
        ("UPDATE leaves SET idx=1000 WHERE idx=?", (position,), "numbers have gaps"),
        ("DELETE FROM leaves WHERE idx=?", (position,), "numbers have gaps"),
        ("DELETE FROM leaves WHERE idx=(SELECT max(idx) FROM leaves)", (), "stored hash"),
        ("DELETE FROM nodes WHERE level=1 AND idx=?", (0,), "stored hash"),
        ("UPDATE nodes SET hash=zeroblob(32) WHERE level=0 AND idx=?", (position,), "stored hash"),
        ("INSERT INTO nodes VALUES (30, ?, zeroblob(32))", (0,), "stored hash"),
    ]
    for statement, arguments, reason in cases:
        db.execute(statement, arguments)
        db.commit()
        reseal(run_dir, sealed.coordinator, seal)
        report = verify_run(run_dir)
        assert report.failure is not None, statement
        assert report.failure.file == layout.LOG
        assert reason in report.failure.detail, (statement, report.failure.detail)
        db.close()
        (run_dir / layout.LOG).write_bytes(original)
        db = sqlite3.connect(run_dir / layout.LOG)
    db.close()


def test_a_cut_log_does_not_fit_its_anchors(tmp_path):
    """The coordinator starts over with a shorter log: the chain remembers."""
    run = unfinished(tmp_path, anchored=True)
    run.submit(run.round(1))
    run.service.close()
    (run.dir / layout.LOG).unlink()
    run.base = run.initial
    other = FakeRun(run.dir, tmp_path / "keys")
    log_only = other.opening()
    (run.dir / layout.ANCHORS).rename(tmp_path / "anchors.json")
    other.open(anchored=False)
    other.submit(log_only)
    other.service.close()
    (tmp_path / "anchors.json").rename(run.dir / layout.ANCHORS)
    file, detail = finding(other)
    assert file == layout.ANCHORS
    assert "tree head 1" in detail


def test_command_line(run_dir, capsys):
    assert main(["verify", str(run_dir)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines[:13]} == {"ok", "skipped"}
    assert lines[lines.index("checked:") + 1].startswith("  - the files are those")
    assert any("they are the run's own claim" in line for line in lines[lines.index("not checked:") :])
    assert lines[-1].startswith("VERIFIED, except")
    assert main(["verify", str(run_dir), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ok"] is True

    with (run_dir / "config.yaml").open("a") as file:
        file.write("#")
    assert main(["verify", str(run_dir)]) == 1
    assert "NOT VERIFIED: config.yaml: " in capsys.readouterr().out
    assert main(["verify", str(run_dir), "--json"]) == 1
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (found["ok"], found["failure"]["file"]) == (False, "config.yaml")


def test_wrong_usage(tmp_path, capsys):
    assert main(["verify", str(tmp_path / "nowhere")]) == 2
    assert main(["verify", str(tmp_path)]) == 2
    assert "no run here" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["verify"])


@pytest.mark.slow
def test_an_auditor_needs_little(run_dir):
    script = (
        "import sys; from ledger.cli import main; status = main(['verify', sys.argv[1]]);"
        "print(sorted({'ray', 'torch', 'numpy', 'trustchain_ray', 'envs'} & set(sys.modules)), status)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(run_dir)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[] 0"


@pytest.mark.slow
def test_without_py_evm_the_anchors_are_skipped_and_the_rest_is_checked(run_dir):
    script = (
        "import sys; sys.modules['eth'] = None; from ledger.cli import main; sys.exit(main(['verify', sys.argv[1]]))"
    )
    done = subprocess.run([sys.executable, "-c", script, str(run_dir)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "pip install 'trustchain-ray[embedded]'" in done.stdout
    assert "except what is not checked" in done.stdout


def test_importing_the_ledger_is_light():
    script = (
        "import sys, ledger.service, ledger.verify, ledger.embedded; print({'web3', 'eth', 'ray'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
