"""A consortium's document: k of the version before decide, and a stranger checks all of it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from ledger import consortium as papers
from ledger.canonical import canonical_json
from ledger.consortium import Consortium, found, parse, propose, sign
from ledger.errors import LedgerError
from ledger.identity import COORDINATOR, Identity, load_or_create
from ledger.verify_trust import read_trust

NAMES = ("bank", "clinic", "lab")


@pytest.fixture
def who(tmp_path: Path) -> dict[str, Identity]:
    return {name: load_or_create(name, tmp_path / "keys") for name in (*NAMES, "insurer", COORDINATOR)}


@pytest.fixture
def three(who: dict[str, Identity]) -> Consortium:
    """Three members, of whom two decide; in force."""
    made = found("health", 2, {name: who[name].public_hex for name in NAMES}, who[COORDINATOR].public_hex)
    for name in NAMES:
        made = sign(made, who[name])
    return made


def admitting(three: Consortium, who: dict[str, Identity]) -> Consortium:
    return propose(three, members={**three.force.members, "insurer": who["insurer"].public_hex})


def test_the_first_version_counts_when_all_signed_it(who: dict[str, Identity]):
    made = found("health", 2, {name: who[name].public_hex for name in NAMES}, who[COORDINATOR].public_hex)
    for name in NAMES:
        with pytest.raises(LedgerError, match=rf"version 1 counts when .*{name}.* signed it"):
            _ = made.force
        made = sign(made, who[name])
    assert made.force.version == 1
    with pytest.raises(LedgerError, match="none waits"):
        sign(made, who["bank"])


def test_a_version_counts_when_k_of_the_one_before_signed_it(three: Consortium, who: dict[str, Identity]):
    made = admitting(three, who)
    assert (made.force.version, made.missing()) == (1, 2)
    with pytest.raises(LedgerError, match="does not decide on version 2"):
        sign(made, who["insurer"])  # the newcomer has no say in its own admission
    made = sign(sign(made, who["bank"]), who["bank"])
    assert (made.force.version, made.missing()) == (1, 1)
    made = sign(made, who["lab"])
    assert made.force.version == 2
    assert sorted(made.force.members) == ["bank", "clinic", "insurer", "lab"]
    # now the newcomer decides, too, and one who was removed does not
    fewer = {name: key for name, key in made.force.members.items() if name != "bank"}
    made = sign(sign(propose(made, members=fewer, threshold=3), who["insurer"]), who["clinic"])
    assert (made.force.version, made.force.threshold) == (3, 3)
    with pytest.raises(LedgerError, match=r"key .* of bank does not decide"):
        sign(propose(made, threshold=1), who["bank"])


def test_a_replaced_key_decides_instead_of_the_old_one(three: Consortium, who: dict[str, Identity], tmp_path: Path):
    new = load_or_create("lab", tmp_path / "next")
    made = propose(three, members={**three.force.members, "lab": new.public_hex})
    made = sign(sign(made, who["bank"]), who["lab"])
    made = propose(made, threshold=1)
    with pytest.raises(LedgerError, match="of lab does not decide"):
        sign(made, who["lab"])
    assert sign(made, new).missing() == 1


def test_one_proposal_at_a_time(three: Consortium, who: dict[str, Identity]):
    made = sign(admitting(three, who), who["bank"])
    with pytest.raises(LedgerError, match="version 2 still waits"):
        propose(made, threshold=1)
    other = propose(made, threshold=1, instead=True)
    assert other.pending is not None
    assert (other.pending.threshold, other.signed_by(other.pending)) == (1, [])
    with pytest.raises(LedgerError, match="changes nothing"):
        propose(three, threshold=2)


def test_the_file_reads_as_it_was_written(three: Consortium, who: dict[str, Identity], tmp_path: Path):
    made = sign(admitting(three, who), who["bank"])
    papers.write(made, tmp_path / "consortium.json")
    assert papers.read_consortium(tmp_path / "consortium.json") == made
    trust = read_trust(tmp_path / "consortium.json")
    assert trust == three.force.keys, "a version that waits counts for nobody"
    assert trust[COORDINATOR] == who[COORDINATOR].public_hex


def test_every_changed_character_is_found(three: Consortium, who: dict[str, Identity]):
    made = sign(sign(admitting(three, who), who["bank"]), who["lab"])
    data = made.to_bytes()
    for place in range(0, len(data), 41):
        changed = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
        with pytest.raises((LedgerError, ValueError)):
            parse(changed)


def test_a_history_that_was_rewritten_is_refused(three: Consortium, who: dict[str, Identity]):
    made = sign(sign(admitting(three, who), who["bank"]), who["lab"])
    content = json.loads(made.to_bytes())

    def parsed(versions: list[object]) -> Consortium:
        return parse(canonical_json({**content, "versions": versions}))

    first, second = content["versions"]
    for versions, reason in (
        ([], "holds no version"),
        ([second], "does not follow"),
        ([first, second, second], "does not follow"),
        ([{**first, "signatures": first["signatures"][1:]}, second], "never signed by enough"),
        ([first, {**second, "signatures": [*second["signatures"], *second["signatures"]]}], "not in order"),
        ([first, {**second, "signatures": first["signatures"][:1]}], "does not hold"),
    ):
        with pytest.raises(LedgerError, match=reason):
            parsed(versions)
    last = made.versions[-1]
    takeover = replace(last, members={"insurer": who["insurer"].public_hex}, threshold=1)
    with pytest.raises(LedgerError, match="does not hold"):
        parse(Consortium([made.versions[0], takeover]).to_bytes())


def test_impossible_consortia_are_refused(who: dict[str, Identity]):
    keys = {name: who[name].public_hex for name in NAMES}
    coordinator = who[COORDINATOR].public_hex
    for threshold, members, reason in (
        (0, keys, "0 of 3 members cannot decide"),
        (4, keys, "4 of 3 members cannot decide"),
        (1, {**keys, "clinic": keys["bank"]}, "two names have the same key"),
        (1, {**keys, "clinic": coordinator}, "two names have the same key"),
        (1, {**keys, "../x": keys["bank"]}, "organization name"),
        (1, {"bank": "short"}, "no organization with a public key"),
        (1, {COORDINATOR: keys["bank"]}, "no organization with a public key"),
    ):
        with pytest.raises(LedgerError, match=reason):
            found("health", threshold, members, coordinator)
