"""A run learns of rotated keys when it is opened again, keeps the key of its log, and admits members alone."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from ledger import consortium as papers
from ledger.canonical import parse_canonical, sha256_hex
from ledger.events import KEY_ROTATION, REGISTER, read_event
from ledger.identity import COORDINATOR, load_or_create, public_document, retired_path
from ledger.identity_document import lineage_of
from ledger.key_files import rotate
from ledger.log import SqliteLog
from trustchain_ray.config import Config, SourceConfig
from trustchain_ray.errors import TrustChainError
from trustchain_ray.federation import Federation
from trustchain_ray.keystore import coordinator_identity, keystore
from trustchain_ray.run_directory import RunDirectory
from trustchain_ray.run_keys import announce_rotations, check_members

NAMES = ("north", "south")


@pytest.fixture
def config(tmp_path: Path, config_of: Callable[..., Config]) -> Config:
    made = config_of()
    rows = [{"id": f"r{n}", "prompt": "say", "answer": "yes"} for n in range(4)]
    for name in NAMES:
        file = tmp_path / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        made.data.organizations[name] = SourceConfig(train=str(file), test=str(file))
    made.run.keystore = str(tmp_path / "home" / "keys")
    made.ledger.public.kind = "none"
    return made


def opened(config: Config, folder: Path) -> Federation:
    """The parties of a run in this process, with its ledger; nothing is trained."""
    federation = Federation(config, RunDirectory(folder), lambda line: None, local=True)
    federation._start_members()
    federation.open_ledger()
    return federation


@pytest.fixture
def begun(config: Config, tmp_path: Path) -> Path:
    """A run directory whose organizations are registered."""
    folder = tmp_path / "run"
    folder.mkdir()
    federation = opened(config, folder)
    events = []
    for name in (COORDINATOR, *NAMES):
        identity = federation.identity if name == COORDINATOR else load_or_create(name, keystore(config))
        document = public_document(identity)
        federation.run.write_json(f"identities/{name}.json", document)
        body = federation.registration(name, document)
        if name == COORDINATOR:
            events.append(federation.event("REGISTER", body))
        else:
            events.append(federation.answer(name, federation.members[name].call("sign_event", "REGISTER", body)))
    assert federation.ask_ledger("submit", events) == []
    federation.run.write_json("manifest.json", {"run": federation.id})
    federation.close()
    return folder


def logged(folder: Path) -> list[tuple[str, str]]:
    log = SqliteLog(folder / "ledger" / "log.sqlite", read_only=True)
    try:
        return [(e.type, e.organization) for _, envelope in log.events() for e in [read_event(envelope, log.keys())]]
    finally:
        log.close()


def reopened(config: Config, folder: Path) -> Federation:
    federation = opened(config, folder)
    try:
        assert announce_rotations(federation) == []
        federation.ask_ledger("flush")
    finally:
        federation.close()
    return federation


def test_a_rotated_key_is_announced_once(config: Config, begun: Path):
    reopened(config, begun)
    assert KEY_ROTATION not in {kind for kind, _ in logged(begun)}, "nothing changed so far"
    old, _ = rotate("north", keystore(config))
    rotate("north", keystore(config))  # a second time before the run was opened
    new = load_or_create("north", keystore(config))
    reopened(config, begun)
    assert logged(begun)[-2:] == [(KEY_ROTATION, "north"), (REGISTER, "north")]
    document = parse_canonical((begun / "identities" / "north.json").read_bytes())
    assert lineage_of(document) == [old.public_hex, new.public_hex]
    size = len(logged(begun))
    reopened(config, begun)
    assert len(logged(begun)) == size


def test_an_announcement_that_was_cut_short_goes_on(config: Config, begun: Path):
    rotate("south", keystore(config))
    before = (begun / "identities" / "south.json").read_bytes()
    reopened(config, begun)
    (begun / "identities" / "south.json").write_bytes(before)  # killed between the rotation and the document
    reopened(config, begun)
    assert logged(begun).count((KEY_ROTATION, "south")) == 1
    data = (begun / "identities" / "south.json").read_bytes()
    assert lineage_of(parse_canonical(data))[-1] == load_or_create("south", keystore(config)).public_hex
    log = SqliteLog(begun / "ledger" / "log.sqlite", read_only=True)
    *_, (_, last) = log.events(REGISTER)
    assert read_event(last, log.keys()).body["document"] == sha256_hex(data), "what is registered last is published"
    log.close()


def test_a_key_that_is_gone_is_named(config: Config, begun: Path):
    old, _ = rotate("north", keystore(config))
    retired_path("north", keystore(config), old.key_id).unlink()
    with pytest.raises(TrustChainError, match=r"organization 'north'.*neither here nor among the retired ones"):
        reopened(config, begun)


def test_a_private_chain_that_binds_names_to_keys_refuses_a_rotation(config: Config, begun: Path):
    rotate("north", keystore(config))
    federation = opened(config, begun)
    federation.config.ledger.private.kind = "fabric"
    with pytest.raises(TrustChainError, match="chaincode of the private chain"):
        announce_rotations(federation)
    federation.close()
    assert KEY_ROTATION not in {kind for kind, _ in logged(begun)}


def test_a_run_keeps_the_key_of_its_log(config: Config, begun: Path, tmp_path: Path):
    old, new = rotate(COORDINATOR, keystore(config))
    assert reopened(config, begun).identity.key_id == old.key_id
    assert coordinator_identity(config, tmp_path / "next").key_id == new.key_id


@pytest.fixture
def document(config: Config, tmp_path: Path) -> Path:
    """A consortium of north and south, in force."""
    who = {name: load_or_create(name, keystore(config)) for name in (*NAMES, COORDINATOR)}
    made = papers.found("care", 1, {name: who[name].public_hex for name in NAMES}, who[COORDINATOR].public_hex)
    for name in NAMES:
        made = papers.sign(made, who[name])
    papers.write(made, tmp_path / "consortium.json")
    config.trust.consortium = str(tmp_path / "consortium.json")
    return tmp_path / "consortium.json"


def test_members_alone_register(config: Config, document: Path):
    force = papers.read_consortium(document).force
    entry = check_members(config, dict(force.members), force.coordinator)
    assert entry == {"digest": force.digest, "name": "care", "version": "1"}
    assert check_members(config, {}, force.coordinator, entry) == entry
    other = load_or_create("stranger", keystore(config)).public_hex
    for keys, coordinator, reason in (
        ({"stranger": other}, force.coordinator, r"'stranger' is not admitted.*no member of that name.* admit stra"),
        ({"north": other}, force.coordinator, r"'north' is not admitted.*another key.* replace north="),
        (dict(force.members), other, "the coordinator's key"),
    ):
        with pytest.raises(TrustChainError, match=reason) as caught:
            check_members(config, keys, coordinator)
        assert str(document) in str(caught.value)


def test_a_resumed_run_takes_later_versions_and_no_other_consortium(config: Config, document: Path, tmp_path: Path):
    first = papers.read_consortium(document)
    entry = check_members(config, {}, first.force.coordinator)
    later = papers.sign(papers.propose(first, threshold=2), load_or_create("north", keystore(config)))
    papers.write(later, document)
    assert later.force.version == 2
    assert check_members(config, {}, first.force.coordinator, entry) == entry, "the manifest keeps what was agreed on"
    with pytest.raises(TrustChainError, match="does not descend from version 1"):
        check_members(config, {}, first.force.coordinator, {**entry, "digest": "0" * 64})
    document.unlink()
    with pytest.raises(TrustChainError, match=r"trust\.consortium: .*cannot be read"):
        check_members(config, {}, first.force.coordinator)


def test_without_a_consortium_anybody_registers(config: Config):
    assert check_members(config, {"stranger": "0" * 64}, "0" * 64) == {}
