"""What a stranger may bring along, and what a stranger may lack: each step says what it could not check."""

import json
import shutil
from dataclasses import replace

import pytest
from fake_run import RUN, FakeRun, adapter
from witnessed import cosign, witnessed_run

from ledger import bundle, checkpoint, heads, layout
from ledger import events as ev
from ledger.audit import Audit, Fault, Options
from ledger.canonical import canonical_json, parse_canonical
from ledger.cli import main
from ledger.errors import LedgerError, Unavailable
from ledger.identity import load_or_create, public_document
from ledger.log import SqliteLog
from ledger.public import FINALIZED, MINED, PENDING
from ledger.verify import verify_run
from ledger.verify_anchors import _compare
from ledger.verify_events import verify_event
from ledger.verify_trust import read_trust


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return witnessed_run(tmp_path_factory.mktemp("witnessed"))


@pytest.fixture
def copy(finished, tmp_path):
    return shutil.copytree(finished.dir, tmp_path / "run")


def keys_of(run):
    return {name: identity.public_hex for name, identity in run.identities.items()}


def statuses(report):
    return {check.name: check.status for check in report.checks}


def detail(report, name):
    return next(check.detail for check in report.checks if check.name == name)


# What is lacking


def test_a_sealed_run_must_be_whole_unless_the_user_says_that_it_is_a_part(copy):
    shutil.rmtree(copy / "rounds")
    assert verify_run(copy).failure.file.startswith("rounds/")
    report = verify_run(copy, partial=True)
    assert report.ok, report.failure
    assert statuses(report)["rounds"] == "skipped"
    assert any(line.startswith("the adapters of the rounds") for line in report.not_checked)
    assert "4 sealed files: they are not here, rounds/" in report.not_checked


@pytest.mark.parametrize(
    ("gone", "skipped"),
    [
        (["model"], {"model"}),
        (["rounds", "model", "identities"], {"identities", "rounds", "model"}),
        (["config.yaml"], set()),
        (["manifest.json"], {"manifest", "links", "certificates"}),
        ([layout.CHAIN], {"anchors"}),
        ([layout.SEAL], {"seal"}),
        ([layout.ANCHORS], {"tree heads", "witnesses", "anchors"}),
        (["rounds", "model", "identities", "manifest.json", "config.yaml", layout.CHAIN, layout.ANCHORS, layout.SEAL],
         {"seal", "manifest", "identities", "links", "rounds", "model", "tree heads", "witnesses", "anchors",
          "certificates"}),
        ([layout.LOG], {"log", "manifest", "identities", "links", "rounds", "model", "certificates"}),
        (["rounds", "model", layout.LOG, "manifest.json", "config.yaml", layout.CHAIN, layout.SEAL],
         {"seal", "log", "manifest", "identities", "links", "rounds", "model", "anchors", "certificates"}),
    ],
)  # fmt: skip
def test_a_part_of_a_run_is_checked_as_far_as_it_goes(copy, gone, skipped):
    for name in gone:
        shutil.rmtree(copy / name) if (copy / name).is_dir() else (copy / name).unlink()
    report = verify_run(copy, partial=True)
    assert report.ok, report.failure
    always = {"keys", "private chain"}
    assert {name for name, status in statuses(report).items() if status == "skipped"} == skipped | always
    assert len(report.not_checked) >= len(skipped | always)
    assert not verify_run(copy).ok


def test_what_is_there_of_a_part_is_checked_strictly(copy):
    shutil.rmtree(copy / "rounds")
    for name in layout.files_under(copy, "."):
        data = (copy / name).read_bytes()
        for position in (0, len(data) // 2, len(data) - 1):
            changed = bytearray(data)
            changed[position] ^= 1
            (copy / name).write_bytes(changed)
            report = verify_run(copy, partial=True)
            assert report.failure is not None, (name, position)
            assert report.failure.file == name
        (copy / name).write_bytes(data)
    assert verify_run(copy, partial=True).ok


def test_nothing_can_be_smuggled_into_a_part(copy):
    (copy / layout.LOG).unlink()
    (copy / "ledger" / "extra").write_bytes(b"x")
    assert verify_run(copy, partial=True).failure.file == "ledger/extra"


def test_without_the_log_the_heads_are_still_the_coordinators(copy, finished, tmp_path):
    for name in (layout.LOG, layout.SEAL):
        (copy / name).unlink()
    report = verify_run(copy, partial=True)
    assert statuses(report)["tree heads"] == "ok"
    assert any("neither log nor proofs" in line for line in report.not_checked)
    shutil.rmtree(copy / "identities")
    report = verify_run(copy, partial=True)
    assert statuses(report)["tree heads"] == "skipped"
    assert "says what the coordinator's key is" in detail(report, "tree heads")
    report = verify_run(copy, partial=True, trust=keys_of(finished))
    assert statuses(report)["tree heads"] == statuses(report)["witnesses"] == "ok"
    stranger = load_or_create("coordinator", tmp_path / "other").public_hex
    assert verify_run(copy, partial=True, trust={"coordinator": stranger}).failure.file == layout.ANCHORS


# What is brought along: keys


def test_keys_that_are_known_are_compared(copy, finished, tmp_path):
    report = verify_run(copy, trust=keys_of(finished))
    assert statuses(report)["keys"] == "ok"
    assert not any("own claim" in line for line in report.not_checked)

    report = verify_run(copy, trust={"bank": keys_of(finished)["bank"]})
    assert statuses(report)["keys"] == "ok"
    assert any(line.startswith("the key of the coordinator: it is the run's own claim") for line in report.not_checked)
    assert any(line.startswith("the keys of clinic") for line in report.not_checked)

    for name in ("bank", "coordinator"):
        other = load_or_create(name, tmp_path / "elsewhere").public_hex
        report = verify_run(copy, trust={**keys_of(finished), name: other})
        assert report.failure.name == "keys"
        assert f"another key of {name}" in report.failure.detail
    assert "the run has no key of" in verify_run(copy, trust={"stranger": "ab" * 32}).failure.detail


def test_a_run_that_somebody_made_up_is_found_out_by_known_keys(tmp_path, finished):
    """Everything fits together; only the keys are not those of the organizations that it names."""
    forged = witnessed_run(tmp_path / "forged", rounds=1, anchored=False)
    assert verify_run(forged.dir).ok
    assert verify_run(forged.dir, trust=keys_of(finished)).failure.name == "keys"


def test_keys_come_from_documents_or_a_table(finished, tmp_path):
    keys = keys_of(finished)
    (tmp_path / "keys.json").write_text(json.dumps(keys, indent=2))
    assert read_trust(tmp_path / "keys.json") == keys
    assert read_trust(finished.dir / "identities") == keys
    assert read_trust(finished.dir / "identities" / "bank.json") == {"bank": keys["bank"]}

    folder = tmp_path / "documents"
    folder.mkdir()
    with pytest.raises(LedgerError, match="names no keys; put"):
        read_trust(folder)
    (folder / "a.json").write_bytes(canonical_json(public_document(finished.identities["bank"])) + b"\n")
    (folder / "b.json").write_text(json.dumps({"bank": "ab" * 32}))
    with pytest.raises(LedgerError, match="another key of bank"):
        read_trust(folder)
    document = public_document(finished.identities["bank"])
    for bad in ("", "[]", "[" * 500, '{"bank": 1}', '{"bank": "xy"}', '{"a b": "' + "ab" * 32 + '"}',
                json.dumps({**document, "public_key": "ab" * 32})):  # fmt: skip
        (tmp_path / "bad.json").write_text(bad)
        with pytest.raises(LedgerError, match=r"bad\.json: names no keys"):
            read_trust(tmp_path / "bad.json")
    with pytest.raises(LedgerError, match="cannot be read"):
        read_trust(tmp_path / "missing.json")


# What is brought along: witnesses


def test_cosigners_are_named_and_counted(copy, finished):
    report = verify_run(copy)
    assert "cosigned by bank" in detail(report, "witnesses")
    assert "the newest tree head: clinic did not cosign it" in report.not_checked
    assert verify_run(copy, min_witnesses=1).ok
    report = verify_run(copy, min_witnesses=2)
    assert report.failure.name == "witnesses"
    assert "cosigned by 1 organizations, not 2" in report.failure.detail
    # only those that one knows count
    assert not verify_run(copy, min_witnesses=1, trust={"clinic": keys_of(finished)["clinic"]}).ok
    assert verify_run(copy, min_witnesses=1, trust={"bank": keys_of(finished)["bank"]}).ok


def test_a_run_without_cosignatures_has_no_witnesses(run_dir):
    assert statuses(verify_run(run_dir))["witnesses"] == "skipped"
    assert verify_run(run_dir, min_witnesses=1).failure.name == "witnesses"


def test_a_forged_cosignature_is_found(tmp_path):
    run = FakeRun(tmp_path / "run", tmp_path / "keys")
    run.open(anchored=False)
    run.submit(run.opening())
    run.service.sign_head()
    cosign(run, "bank")
    run.service.close()
    store = heads.parse_store((run.dir / layout.ANCHORS).read_bytes())
    note = store.entries[-1].checkpoint
    old = checkpoint.parse(note).signatures[-1]
    forged = replace(old, data=old.data[:-1] + bytes([old.data[-1] ^ 1]))
    store.entries[-1] = heads.Entry(note.replace(old.line, forged.line))
    (run.dir / layout.ANCHORS).write_bytes(store.to_bytes())
    report = verify_run(run.dir)
    assert report.failure.file == layout.ANCHORS
    assert "the signature of bank does not hold" in report.failure.detail


# What is brought along: a model


@pytest.mark.slow
def test_a_model_of_ones_own_is_compared_with_the_released_one(copy, tmp_path):
    own = shutil.copytree(copy / "model", tmp_path / "own")
    (own / "README.md").write_text("mine")
    shutil.rmtree(copy / "model")
    report = verify_run(copy, partial=True, model=own)
    assert statuses(report)["your model"] == "ok"
    assert any("README.md" in line for line in report.not_checked)

    tensors = own / "adapter_model.safetensors"
    assert statuses(verify_run(copy, partial=True, model=tensors))["your model"] == "ok"
    adapter(tensors, 5)
    for target in (own, tensors):
        report = verify_run(copy, partial=True, model=target)
        assert report.failure.name == "your model"
        assert report.failure.file == str(tensors)
    tensors.unlink()
    assert "holds no adapter_model" in verify_run(copy, partial=True, model=own).failure.detail
    assert not verify_run(copy, partial=True, model=tmp_path / "nowhere").ok


# What is brought along: a private chain


class Ledger:
    """A private chain that holds a list of leaves, and nothing else."""

    def __init__(self, leaves, note=None, description=None):
        self.leaves, self.note, self.closed = leaves, note, False
        self.description = {"kind": "list"} if description is None else description

    def size(self):
        return len(self.leaves)

    def read(self, start, count):
        return self.leaves[start : start + count]

    def head(self):
        return self.note

    def describe(self):
        return self.description

    def close(self):
        self.closed = True


def leaves_of(run_dir):
    log = SqliteLog(run_dir / layout.LOG, read_only=True)
    try:
        return log.read(0, log.size)
    finally:
        log.close()


@pytest.mark.slow
def test_the_private_chain_must_hold_the_same_log(copy, finished, monkeypatch):
    monkeypatch.setattr("ledger.verify_private.BATCH", 4)
    leaves = leaves_of(copy)
    store = heads.parse_store((copy / layout.ANCHORS).read_bytes())
    for chain, status, reason in (
        (Ledger(leaves, store.entries[-1].checkpoint), "ok", f"holds the log's {len(leaves)} events, and a head of"),
        (Ledger(leaves[:5], store.entries[0].checkpoint), "ok", "5 events"),
        (Ledger([]), "ok", "0 events"),
        (Ledger([*leaves, b"{}"]), "fail", "an old copy, or the log was cut"),
        (Ledger([*leaves[:6], leaves[7], leaves[6]]), "fail", "event 6 is not the one"),
    ):
        report = verify_run(copy, fabric=lambda run, chain=chain: chain)
        assert statuses(report)["private chain"] == status
        assert reason in detail(report, "private chain")
        assert chain.closed


def test_another_head_on_the_private_chain_is_a_split_view(copy, finished):
    note = checkpoint.sign(finished.coordinator, RUN, 3, bytes(32))
    report = verify_run(copy, fabric=lambda run: Ledger(leaves_of(copy), note))
    assert "split view" in report.failure.detail


def test_a_private_chain_that_does_not_answer_was_asked_for(copy):
    def opened(run):
        raise Unavailable("peer0: does not answer")

    assert verify_run(copy, fabric=opened).failure.detail == "peer0: does not answer"


def test_what_the_run_says_of_its_private_chain_is_shown(tmp_path):
    run = FakeRun(tmp_path / "run", tmp_path / "keys")
    run.open(anchored=False)
    run.submit(run.opening())
    run.service.close()
    path = run.dir / layout.PRIVATE
    path.write_bytes(canonical_json({"chain": {"channel": "trustchain", "kind": "fabric"}, "heads": 0, "size": 3}))
    report = verify_run(run.dir)
    assert report.ok
    assert "it was not asked (channel trustchain, kind fabric)" in detail(report, "private chain")
    short = verify_run(run.dir, fabric=lambda run_id: Ledger(leaves_of(run.dir)[:2]))
    assert "has 2 events, not 3" in short.failure.detail
    path.write_bytes(canonical_json({"chain": {}, "size": 99}))
    assert verify_run(run.dir).failure.file == layout.PRIVATE


# The public chain


def anchored_audit(copy, finished):
    """An audit that has come to the anchors, and the anchors of its chain."""
    from ledger.embedded import EmbeddedEvm

    store = heads.parse_store((copy / layout.ANCHORS).read_bytes())
    signed = heads.read_heads(store, finished.coordinator.public_hex)
    audit = Audit(copy, Options(), run=RUN, store=store, heads=signed)
    return audit, EmbeddedEvm(copy / layout.CHAIN, read_only=True).anchors()


def test_a_node_is_compared_by_its_own_account_of_finality(copy, finished):
    audit, anchors = anchored_audit(copy, finished)
    _compare(audit, anchors, layout.ANCHORS)
    entries = audit.store.entries
    last = entries[-1]

    def receipt(**changes):
        entries[-1] = heads.Entry(last.checkpoint, replace(last.receipt, **changes))

    receipt(status=MINED, block=999, block_hash="0xab")  # moved by a reorganisation before it was final
    _compare(audit, anchors, layout.ANCHORS)
    receipt(status=FINALIZED, block=999)
    with pytest.raises(Fault, match="is not what the chain has"):
        _compare(audit, anchors, layout.ANCHORS)
    receipt(status=PENDING, block=0)
    _compare(audit, anchors[:-1], layout.ANCHORS)
    assert audit.notes == ["the newest 1 tree heads: the chain does not have them"]
    receipt(status=MINED)
    with pytest.raises(Fault, match=f"the chain has {len(anchors) - 1} anchors"):
        _compare(audit, anchors[:-1], layout.ANCHORS)


def test_a_chain_with_more_or_other_anchors_is_found(copy, finished):
    audit, anchors = anchored_audit(copy, finished)
    with pytest.raises(Fault, match="an old copy, or the log was cut"):
        _compare(audit, [*anchors, anchors[-1]], layout.ANCHORS)
    for changes in ({"root": bytes(32)}, {"size": 1}, {"seq": 9}, {"prev": b"x" * 32}):
        with pytest.raises(Fault, match="anchor 1 is not what the chain has"):
            _compare(audit, [replace(anchors[0], **changes), *anchors[1:]], layout.ANCHORS)


def test_a_chain_elsewhere_is_asked_only_by_request(copy, finished):
    """And a node that does not answer, when one was named, is no success."""
    store = heads.parse_store((copy / layout.ANCHORS).read_bytes())
    store.chain = {"chain_id": 31337, "contract": "0x" + "ab" * 20, "genesis": "0x" + "cd" * 32, "kind": "rpc"}
    (copy / layout.ANCHORS).write_bytes(store.to_bytes())
    (copy / layout.SEAL).unlink()
    report = verify_run(copy, partial=True)
    assert statuses(report)["anchors"] == "skipped"
    assert f"{len(store.entries)} FINALIZED" in detail(report, "anchors")
    report = verify_run(copy, partial=True, rpc_url="http://127.0.0.1:9")
    assert report.failure.name == "anchors"


# One event


def test_one_event_can_be_shown_with_nothing_but_its_proof(copy, finished):
    log = SqliteLog(copy / layout.LOG, read_only=True)
    store = heads.parse_store((copy / layout.ANCHORS).read_bytes())
    note = store.entries[-1].checkpoint
    size = checkpoint.parse(note).size
    keys = keys_of(finished)
    index = next(index for index, _ in log.events(ev.UPDATE))
    leaf, proof = log.leaf(index), log.inclusion_proof(index, size)
    event, said = verify_event(leaf, index, proof, note, RUN, keys)
    assert (event.type, event.organization, said.size) == ("UPDATE", "bank", size)
    assert said.cosigners.keys() == {"bank"}
    verify_event(log.leaf(0), 0, log.inclusion_proof(0, size), note, RUN, keys)  # a REGISTER event

    other = bytes(32).hex()
    for arguments, reason in (
        ((leaf, index + 1, proof, note, RUN, keys), "does not lead"),
        ((leaf, index, proof[:-1], note, RUN, keys), "does not lead"),
        ((log.leaf(index + 1), index, proof, note, RUN, keys), "does not lead"),
        ((leaf, index, proof, note, "other", keys), "is of 'trustchain/test-run'"),
        ((leaf, index, proof, note, RUN, {"bank": keys["bank"]}), "the key of the coordinator is needed"),
        ((leaf, index, proof, note, RUN, {"coordinator": keys["coordinator"]}), "is not registered"),
        ((leaf, index, proof, note, RUN, {**keys, "bank": keys["clinic"]}), "not registered"),
        ((leaf, index, proof, note, RUN, {**keys, "bank": keys["clinic"], "clinic": keys["bank"]}), "with the key of"),
        ((leaf, index, proof, note, RUN, {**keys, "coordinator": other}), "not signed by the log's key"),
        ((leaf.replace(b'"sig":"', b'"sig":"A', 1), index, proof, note, RUN, keys), "envelope"),
    ):
        with pytest.raises(LedgerError, match=reason):
            verify_event(*arguments)
    log.close()


# The command


def test_command_line_of_a_stranger(copy, finished, tmp_path, capsys):
    (tmp_path / "keys.json").write_text(json.dumps(keys_of(finished)))
    arguments = ["verify", str(copy), "--trust", str(tmp_path / "keys.json"), "--min-witnesses", "1"]
    assert main([*arguments, "--model", str(copy / "model"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["ok"]
    assert {"keys", "witnesses", "your model"} <= {c["name"] for c in said["checks"] if c["status"] == "ok"}
    assert said["checked"]
    assert said["not_checked"]
    assert main([*arguments[:-1], "2"]) == 1
    assert "NOT VERIFIED: ledger/anchors.json: the newest tree head" in capsys.readouterr().out
    shutil.rmtree(copy / "rounds")
    assert main(["verify", str(copy)]) == 1
    assert main(["verify", str(copy), "--partial"]) == 0
    out = capsys.readouterr().out
    assert "not checked:\n  - 4 sealed files: they are not here, rounds/" in out

    for wrong in (["--trust", str(tmp_path / "no")], ["--min-witnesses", "-1"], ["--fabric-profile", "x"]):
        assert main(["verify", str(copy), *wrong]) == 2
    assert parse_canonical(canonical_json(said)) == said


def test_chosen_events_do_not_stand_in_for_a_log_that_should_be_there(copy, tmp_path):
    bundle.export(copy, tmp_path / "one.tar", [3])
    (tmp_path / "out").mkdir()
    bundle.unpack(tmp_path / "one.tar", tmp_path / "out")
    shutil.copy(tmp_path / "out" / "events.json", copy)
    (copy / layout.SEAL).unlink()
    (copy / layout.LOG).unlink()
    assert verify_run(copy).failure.file == layout.LOG
    assert verify_run(copy, partial=True).ok
