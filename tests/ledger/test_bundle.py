"""Bundles: a run, or a few of its events, in one file that a stranger can check and that hides nothing."""

import io
import json
import random
import subprocess
import tarfile

import pytest
from fake_run import RUN, FakeRun
from witnessed import witnessed_run

from ledger import bundle, heads, layout
from ledger import events as ev
from ledger.canonical import canonical_json, parse_canonical, sha256_hex
from ledger.cli import main
from ledger.errors import LedgerError
from ledger.log import SqliteLog
from ledger.verify import verify_run
from ledger.verify_events import SELECTION


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return witnessed_run(tmp_path_factory.mktemp("bundled"))


@pytest.fixture(scope="module")
def files(finished, tmp_path_factory):
    """Bundles of the run: the whole log, the log with the model, and one event."""
    folder = tmp_path_factory.mktemp("bundles")
    made = {name: folder / f"{name}.tar" for name in ("whole", "model", "one")}
    bundle.export(finished.dir, made["whole"])
    bundle.export(finished.dir, made["model"], model=True)
    bundle.export(finished.dir, made["one"], [index_of(finished, ev.UPDATE)])
    return made


def index_of(run, kind):
    log = SqliteLog(run.dir / layout.LOG, read_only=True)
    try:
        return next(index for index, _ in log.events(kind))
    finally:
        log.close()


def by_status(report, status):
    return {check.name for check in report.checks if check.status == status}


def members(path):
    with tarfile.open(path) as archive:
        return {member.name: archive.extractfile(member).read() for member in archive}


def keys_of(run):
    return {name: identity.public_hex for name, identity in run.identities.items()}


def test_a_bundle_of_the_whole_log_is_checked_like_the_run(finished, files):
    report = verify_run(files["whole"], trust=keys_of(finished), min_witnesses=1)
    assert report.ok, report.failure
    assert report.kind == "bundle"
    assert by_status(report, "skipped") == {"rounds", "model", "private chain"}
    assert "its 2 files are" in next(check.detail for check in report.checks if check.name == "model")

    report = verify_run(files["model"])
    assert by_status(report, "skipped") == {"keys", "rounds", "private chain"}


def test_checking_a_bundle_leaves_nothing_behind(files, tmp_path, monkeypatch):
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    moved = tmp_path / "received"
    moved.write_bytes(files["one"].read_bytes())
    assert verify_run(moved).ok
    moved.write_bytes(files["one"].read_bytes()[:9000])
    assert not verify_run(moved).ok
    assert list((tmp_path / "scratch").iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["received", "scratch"]


def test_a_bundle_of_one_event_proves_it(finished, files):
    report = verify_run(files["one"], trust=keys_of(finished), min_witnesses=1)
    assert report.ok, report.failure
    assert by_status(report, "skipped") == {"links", "rounds", "model", "private chain", "certificates"}
    held = parse_canonical(members(files["one"])[SELECTION])
    kinds = [json.loads(ev.dsse.parts_of(entry["leaf"].encode())[0])["type"] for entry in held["events"]]
    assert kinds == ["REGISTER"] * 3 + ["RUN_MANIFEST", "UPDATE", "MODEL_RELEASE", "RUN_COMPLETE"]
    details = {check.name: check.detail for check in report.checks}
    assert details["log"].startswith(f"7 of {held['size']} events")
    assert "digests of its 2 files are" in details["model"]
    assert f"the other {held['size'] - 7} events: they are not here" in report.not_checked
    assert layout.LOG not in members(files["one"])


def test_events_can_be_chosen_by_type(finished, tmp_path):
    path = tmp_path / "merges.tar"
    made = bundle.export(finished.dir, path, [0], ["MERGE", "EVALUATION"], model=True)
    held = parse_canonical(members(path)[SELECTION])
    assert (made.events, made.size) == (len(held["events"]), held["size"])
    assert made.events == 3 + 1 + 2 + 2 + 2
    report = verify_run(path)
    assert report.ok, report.failure
    assert "model" in by_status(report, "ok")


def test_a_model_can_be_compared_with_a_bundle_of_its_release(finished, files, tmp_path):
    assert "your model" in by_status(verify_run(files["one"], model=finished.dir / "model"), "ok")
    own = tmp_path / "own.safetensors"
    own.write_bytes((finished.dir / "rounds" / "0001" / "all.safetensors").read_bytes())
    assert verify_run(files["one"], model=own).failure.name == "your model"


def test_the_same_run_makes_the_same_bytes(finished, files, tmp_path):
    bundle.export(finished.dir, tmp_path / "again.tar")
    assert (tmp_path / "again.tar").read_bytes() == files["whole"].read_bytes()


def test_any_tar_unpacks_a_bundle(finished, files, tmp_path):
    found = members(files["model"])
    listed = parse_canonical(found.pop(bundle.LIST))
    assert listed == {"files": {name: sha256_hex(data) for name, data in found.items()}, "format": bundle.FORMAT}
    for name, data in found.items():
        assert data == (finished.dir / name).read_bytes()
    subprocess.run(["tar", "-xf", files["model"], "-C", tmp_path], check=True)
    assert verify_run(tmp_path, partial=True).ok


@pytest.mark.parametrize("name", ["whole", "one"])
def test_every_changed_byte_is_found(files, tmp_path, name):
    source = random.Random(5)
    data = files[name].read_bytes()
    path = tmp_path / "changed.tar"
    positions = source.sample(range(len(data)), 60) + list(range(0, 512, 17)) + [len(data) - 1]
    for position in positions:
        changed = bytearray(data)
        changed[position] ^= source.randrange(1, 256)
        path.write_bytes(changed)
        failure = verify_run(path).failure
        assert failure is not None, position
        assert failure.name == "bundle", (position, failure)
    for changed in (data[:-1], data + b"\0", data[:5000], data[:512], b"", data + data, b"SQLite format 3\0" * 99):
        path.write_bytes(changed)
        assert verify_run(path).failure.name == "bundle"


@pytest.mark.slow
def test_a_bundle_made_anew_with_other_content_is_found(finished, files, tmp_path):
    """Whoever changes a file and lists its new digest still has no signature for it."""
    source = random.Random(6)
    for kind in ("model", "one"):
        found = members(files[kind])
        found.pop(bundle.LIST)
        for name, data in found.items():
            for _ in range(2):
                changed = bytearray(data)
                changed[source.randrange(len(data))] ^= 1 << source.randrange(8)
                path = rewritten(tmp_path, {**found, name: bytes(changed)})
                report = verify_run(path)
                assert report.failure is not None, name
                assert report.failure.file == name, report.failure


def rewritten(folder, found):
    """A bundle in order, of these files."""
    path = folder / "rewritten.tar"
    sources = {}
    for number, (name, data) in enumerate(sorted(found.items())):
        sources[name] = folder / f"source{number}"
        sources[name].write_bytes(data)
    bundle._write(path, sources)
    return path


def test_proofs_of_chosen_events_are_checked(files, tmp_path):
    found = members(files["one"])
    found.pop(bundle.LIST)
    held = parse_canonical(found[SELECTION])
    register, update = held["events"][0], held["events"][4]

    def finding(change):
        copy = parse_canonical(found[SELECTION])
        change(copy)
        report = verify_run(rewritten(tmp_path, {**found, SELECTION: canonical_json(copy)}))
        return report.failure and (report.failure.file, report.failure.detail)

    assert finding(lambda copy: None) is None
    changes = [
        lambda copy: copy["events"][4].update(index=update["index"] + 1),
        lambda copy: copy["events"][4].update(proof=update["proof"][:-1]),
        lambda copy: copy["events"][4].update(proof=register["proof"]),
        lambda copy: copy["events"][4].update(leaf=register["leaf"]),
        lambda copy: copy["events"][4].update(leaf=update["leaf"] + " "),
        lambda copy: copy["events"][4].update(proof=[1]),
        lambda copy: copy["events"].pop(0),  # the coordinator's REGISTER event
        lambda copy: copy["events"].reverse(),
        lambda copy: copy["events"].append(copy["events"][-1]),
        lambda copy: copy.update(run="other"),
        lambda copy: copy.update(size=copy["size"] - 1),
        lambda copy: copy.update(extra=1),
    ]
    for change in changes:
        file, _ = finding(change)
        assert file == SELECTION
    for change in (lambda copy: copy["consistency"].pop(), lambda copy: copy["consistency"][0].pop()):
        file, detail = finding(change)
        assert file == layout.ANCHORS
        assert "consistency proof" in detail


def test_an_event_of_another_run_does_not_pass(files, tmp_path, finished):
    other = FakeRun(tmp_path / "run", tmp_path / "keys")
    other.open(anchored=False)
    other.submit(other.opening())
    other.service.seal()
    bundle.export(other.dir, tmp_path / "other.tar", [3])
    foreign = members(tmp_path / "other.tar")
    found = members(files["one"])
    found.pop(bundle.LIST)
    report = verify_run(rewritten(tmp_path, {**found, SELECTION: foreign[SELECTION]}))
    assert report.failure is not None


def hostile(path, *changes):
    """An archive with one strange member behind a proper beginning."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        names = [change.name for change in changes]
        data = canonical_json({"files": {name: sha256_hex(b"x") for name in names}, "format": bundle.FORMAT})
        first = tarfile.TarInfo(bundle.LIST)
        first.size = len(data)
        archive.addfile(first, io.BytesIO(data))
        for change in changes:
            archive.addfile(change, io.BytesIO(b"x") if change.size else None)
    return path


def member(name, size=1, **changes):
    info = tarfile.TarInfo(name)
    info.size = size
    for attribute, value in changes.items():
        setattr(info, attribute, value)
    return info


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (member("../outside"), "inside the run directory"),
        (member("/etc/outside"), "inside the run directory"),
        (member("a/../../outside"), "inside the run directory"),
        (member("link", 0, type=tarfile.SYMTYPE, linkname="/etc/passwd"), "not in the form"),
        (member("link", 0, type=tarfile.LNKTYPE, linkname="bundle.json"), "not in the form"),
        (member("device", 0, type=tarfile.CHRTYPE), "not in the form"),
        (member("folder", 0, type=tarfile.DIRTYPE), "not in the form"),
        (member("pipe", 0, type=tarfile.FIFOTYPE), "not in the form"),
        (member("file", mode=0o4755), "not in the form"),
        (member("file", uid=1), "not in the form"),
        (member("file", mtime=1), "not in the form"),
        (member("file", uname="root"), "not in the form"),
    ],
)  # fmt: skip
def test_nothing_but_plain_files_is_unpacked_and_only_inside(tmp_path, change, reason):
    path = hostile(tmp_path / "hostile.tar", change)
    folder = tmp_path / "in" / "side"
    folder.mkdir(parents=True)
    with pytest.raises(LedgerError, match=reason):
        bundle.unpack(path, folder)
    assert not (tmp_path / "in" / "outside").exists()
    assert list(folder.iterdir()) == []


def test_names_that_clash_or_repeat_are_refused(tmp_path):
    for number, changes in enumerate(([member("a"), member("a/b")], [member("a"), member("a")], [member("b")])):
        path = hostile(tmp_path / f"{number}.tar", *changes)
        if number == 2:
            path.write_bytes(path.read_bytes().replace(b'"b":', b'"c":'))
        (tmp_path / str(number)).mkdir()
        with pytest.raises(LedgerError):
            bundle.unpack(path, tmp_path / str(number))


def test_a_bundle_that_is_too_large_is_refused(files, tmp_path, monkeypatch):
    monkeypatch.setattr(bundle, "MAX_BUNDLE_BYTES", 1000)
    with pytest.raises(LedgerError, match="larger than 1000 bytes"):
        bundle.unpack(files["whole"], tmp_path)


def test_a_run_at_work_can_be_exported(tmp_path):
    run = FakeRun(tmp_path / "run", tmp_path / "keys")
    run.open()
    run.submit(run.opening())
    with pytest.raises(LedgerError, match=r"no tree head is signed yet|not covered yet"):
        bundle.export(run.dir, tmp_path / "early.tar", [3])
    run.submit(run.round(1))
    run.submit([run.event("bank", ev.DECISION, {"round": 2, "effort": "1"})])
    size = run.service.status()["size"]
    for events in (None, [size - 2]):
        path = tmp_path / "at-work.tar"
        bundle.export(run.dir, path, events)
        report = verify_run(path)
        assert report.ok, report.failure
        assert {"seal"} < by_status(report, "skipped")
        assert "tree heads" in by_status(report, "ok")
    with pytest.raises(LedgerError, match=rf"event {size - 1} is not covered yet"):
        bundle.export(run.dir, tmp_path / "late.tar", [size - 1])
    run.service.close()


def test_what_cannot_be_exported_is_said(finished, tmp_path):
    for arguments, reason in (
        ((finished.dir, tmp_path / "x.tar", [999]), "there is no event 999"),
        ((finished.dir, tmp_path / "x.tar", [-1]), "there is no event -1"),
        ((finished.dir, tmp_path / "x.tar", None, ["MERGER"]), "MERGER: no such type"),
        ((tmp_path / "nowhere", tmp_path / "x.tar"), "is missing"),
        ((finished.dir, tmp_path / "nowhere" / "x.tar"), "cannot be written"),
    ):
        with pytest.raises(LedgerError, match=reason):
            bundle.export(*arguments)
    assert list(tmp_path.iterdir()) == []


def test_export_on_the_command_line(finished, tmp_path, capsys):
    path = tmp_path / "run.tar"
    assert main(["export", str(finished.dir), "-o", str(path), "--event", "4", "--type", "MERGE", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["file"], said["events"]) == (str(path), 9)
    assert main(["verify", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kind"] == "bundle"
    assert main(["export", str(finished.dir), "-o", str(path)]) == 0
    assert "next    python -m ledger verify" in capsys.readouterr().out
    path.write_bytes(b"x")
    assert main(["verify", str(path)]) == 1
    assert "is cut short" in capsys.readouterr().out
    assert main(["export", str(tmp_path), "-o", str(path)]) == 2


def test_heads_and_receipts_come_along(finished, files):
    store = heads.parse_store(members(files["one"])[layout.ANCHORS])
    assert store.run == RUN
    assert all(entry.receipt is not None for entry in store.entries)
    read = heads.read_heads(store, finished.coordinator.public_hex, lambda size: keys_of(finished))
    assert len(read[-1].cosigners) == 1
