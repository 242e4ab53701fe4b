"""Checks on updates: a good one passes, every way to be wrong is refused with its reason."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ledger.events import make_event, read_event
from ledger.identity import COORDINATOR, Identity, load_or_create
from trustchain_ray.adapter import Layout, Tensors, digest
from trustchain_ray.checks import MALFORMED, Refused, check_original, check_statement, check_update
from trustchain_ray.config import Config
from trustchain_ray.exchange import CohortTask, Reply, Update
from trustchain_ray.federation import CohortRound, Federation
from trustchain_ray.statements import statement_of
from trustchain_ray.worker import Packed

RUN, ROUND, COHORT, BASE, WEIGHT = "run-1", 4, "all", "ab" * 32, 120


@pytest.fixture(scope="module")
def north(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    return load_or_create("north", tmp_path_factory.mktemp("keys"))


@pytest.fixture
def south(tmp_path: Path) -> Identity:
    return load_or_create("south", tmp_path)


@pytest.fixture
def tensors(adapter_of: Callable[..., Tensors]) -> Tensors:
    return adapter_of(0, head=True)


def signed(identity: Identity, tensors: Tensors, run: str = RUN, kind: str = "UPDATE", **changes: Any) -> Update:
    """An update with its statement; `changes` replace what the statement says."""
    body = {
        "round": ROUND,
        "cohort": COHORT,
        "base": BASE,
        "update": digest(tensors),
        "weight": WEIGHT,
        "steps": 10,
    } | changes
    return Update(COHORT, Packed.of(tensors), make_event(identity, run, kind, body), body["weight"])


def examine(update: Update, identity: Identity, agreed: Tensors, max_norm: float = 1e3) -> None:
    check_update(
        update,
        "north",
        ROUND,
        CohortTask(COHORT, None, BASE),
        Layout.of(agreed),
        {identity.key_id: identity.public_hex},
        RUN,
        max_norm,
        WEIGHT,
    )


def test_a_sound_update_passes(north: Identity, tensors: Tensors):
    examine(signed(north, tensors), north, tensors)
    norm = float(np.sqrt(sum((t.astype(float) ** 2).sum() for t in tensors.values())))
    examine(signed(north, tensors), north, tensors, max_norm=norm * 1.0001)
    with pytest.raises(Refused, match=r"norm .* is above trust\.max_update_norm="):
        examine(signed(north, tensors), north, tensors, max_norm=norm * 0.9999)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"round": ROUND - 1}, f"replayed: signed for round {ROUND - 1} of all"),
        ({"round": ROUND + 1}, "replayed: signed for round"),
        ({"cohort": "shard_1"}, f"replayed: signed for round {ROUND} of shard_1"),
        ({"base": "cd" * 32}, "trained from another adapter"),
        ({"weight": WEIGHT + 1}, f"weight {WEIGHT + 1} is not within the registered {WEIGHT}"),
        ({"weight": 0}, "weight 0 is not within"),
        ({"update": "ef" * 32}, "do not match the signed digest"),
        ({"run": "run-0"}, "signed as UPDATE of north in run run-0"),
        ({"kind": "DECISION", "effort": "1"}, "signed as DECISION of north"),
        ({"replay": "ab" * 32}, "signed as part of removal abababababababab, not the training"),
    ],
)
def test_a_statement_about_something_else(north: Identity, tensors: Tensors, changes: dict[str, Any], reason: str):
    with pytest.raises(Refused, match=reason):
        examine(signed(north, tensors, **changes), north, tensors)


def test_a_statement_with_the_key_of_another_one(north: Identity, tensors: Tensors):
    """The log takes a key once: with another one's, the update would be merged and never be logged."""
    update, other = signed(north, tensors), signed(north, tensors, steps=9)
    event = read_event(update.envelope, {north.key_id: north.public_hex})
    key = read_event(other.envelope, {north.key_id: north.public_hex}).key
    envelope = make_event(north, RUN, "UPDATE", dict(event.body), key=key)
    with pytest.raises(Refused, match="its idempotency key is not the one of what it says"):
        examine(replace(update, envelope=envelope), north, tensors)


class Board(Federation):
    """As much of a federation as looks at answers."""

    def __init__(self, coordinator: Identity, north: Identity, tensors: Tensors) -> None:
        self.config, self.id, self.identity, self.initial = Config(), RUN, coordinator, tensors
        self.config.federation.local_steps = 10
        document = {"key_id": north.key_id, "public_key": north.public_hex}
        self.registrations = {"north": {"document": document}}
        self.cohorts, self.counts = {COHORT: ["north"]}, {"north": {COHORT: WEIGHT // 10}}
        self.progress = lambda text: None
        self.rounds = {COHORT: CohortRound(CohortTask(COHORT, None, BASE), set())}

    def look(self, *updates: Any, **reply: Any) -> list[dict[str, Any]]:
        return self.accept_updates(ROUND, "north", Reply("north", {}, list(updates), 0.0, **reply), self.rounds)


@pytest.fixture
def board(north: Identity, tensors: Tensors, tmp_path: Path) -> Board:
    return Board(load_or_create(COORDINATOR, tmp_path), north, tensors)


def test_what_a_replay_keeps_and_what_it_trains_again_are_not_mistaken(board: Board, north: Identity, tensors: Tensors):
    removal = "ab" * 32
    kept, trained = (signed(north, tensors, replay=removal, **says) for says in ({"kept": True}, {}))
    for update, asked in ((kept, False), (trained, True)):
        reply = Reply("north", {}, [update], 0.0)
        [event] = board.accept_updates(ROUND, "north", reply, board.rounds, removal, kept=asked)
        assert "kept from before" in statement_of(event)["body"]["reason"]
    assert board.accept_updates(ROUND, "north", reply, board.rounds, removal) == [trained.envelope]


def test_an_update_of_another_form_is_refused_and_the_round_goes_on(board: Board, north: Identity, tensors: Tensors):
    good = signed(north, tensors)
    short = replace(good, update=Packed(good.update.layout, good.update.buffer[:5]))
    for bad in (short, replace(good, update=None), replace(good, envelope=[]), replace(good, seconds="1")):
        [event] = board.look(bad)
        assert statement_of(event)["type"] == "REFUSED"
    with pytest.raises(MALFORMED):
        board.look(good, None)
    assert not board.rounds[COHORT].accepted, "its envelope would not be in the log"
    assert board.look(good) == [good.envelope]


@pytest.mark.parametrize("withheld", [False, True])
def test_of_two_answers_for_a_cohort_the_first_counts(board: Board, north: Identity, tensors: Tensors, withheld: bool):
    good = signed(north, tensors)
    if withheld:
        [event] = board.look(good, withheld={COHORT: "its norm"})
        assert statement_of(event)["type"] == "REFUSED"
        assert not board.rounds[COHORT].accepted
    else:
        assert board.look(good, good, replace(good, weight=1)) == [good.envelope]
        assert list(board.rounds[COHORT].accepted) == ["north"]


def test_a_forged_signature(north: Identity, tensors: Tensors):
    update = signed(north, tensors)
    other = signed(north, tensors, steps=11).envelope["signatures"]
    with pytest.raises(Refused, match=r"^signature: "):
        examine(replace(update, envelope=update.envelope | {"signatures": other}), north, tensors)
    for envelope in ({}, None, {"payload": 1}, update.envelope | {"more": 1}):
        with pytest.raises(Refused, match=r"^signature: "):
            examine(replace(update, envelope=envelope), north, tensors)  # type: ignore[arg-type]


def test_another_organizations_signature(north: Identity, south: Identity, tensors: Tensors):
    with pytest.raises(Refused, match=r"signature: .*not registered"):
        examine(signed(south, tensors), north, tensors)
    with pytest.raises(Refused, match="signed as UPDATE of south"):
        examine(signed(south, tensors), south, tensors)


def test_a_weight_that_differs_from_the_signed_one(north: Identity, tensors: Tensors):
    update = signed(north, tensors)
    for weight in (WEIGHT - 1, float(WEIGHT), True, str(WEIGHT), None):
        with pytest.raises(Refused, match=r"weight .* is not within"):
            examine(replace(update, weight=weight), north, tensors)  # type: ignore[arg-type]
    one = signed(north, tensors, weight=1)
    with pytest.raises(Refused, match="weight True"):
        examine(replace(one, weight=True), north, tensors)


def test_other_names_and_shapes(north: Identity, tensors: Tensors):
    name = "layer0.lora_A.weight"
    for wrong in (
        {n: t for n, t in tensors.items() if n != name},
        tensors | {"extra": np.zeros(1, np.float32)},
        tensors | {name: tensors[name].T.copy()},
        tensors | {name: tensors[name][:1].copy()},
        {},
    ):
        with pytest.raises(Refused, match="names or shapes differ"):
            examine(signed(north, wrong), north, tensors)
    good = signed(north, tensors)
    for buffer in (good.update.buffer[:-1], good.update.buffer[None], np.zeros(0, np.float32)):
        with pytest.raises(Refused, match="names or shapes differ"):
            examine(replace(good, update=replace(good.update, buffer=buffer)), north, tensors)


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int32, ">f4"])
def test_another_type(north: Identity, tensors: Tensors, dtype: Any):
    good = signed(north, tensors)
    other = replace(good.update, buffer=good.update.buffer.astype(dtype))
    with pytest.raises(Refused, match="expected float32"):
        examine(replace(good, update=other), north, tensors)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (np.nan, "holds NaN or infinity"),
        (np.inf, "holds NaN or infinity"),
        (-np.inf, "holds NaN or infinity"),
        (64.5, "a value of 64.5 is beyond the fixed-point range of 64"),
        (-1e30, "beyond the fixed-point range"),
    ],
)
def test_values_that_cannot_be_merged(north: Identity, tensors: Tensors, value: float, reason: str):
    for position in (0, -1):
        tensors["layer1.lora_B.weight"].flat[position] = value
        with pytest.raises(Refused, match=reason):
            examine(signed(north, tensors), north, tensors)


def test_the_largest_value_passes(north: Identity, tensors: Tensors):
    tensors["layer1.lora_B.weight"].flat[0] = -64.0
    examine(signed(north, tensors), north, tensors)


def test_bytes_changed_on_the_way(north: Identity, tensors: Tensors):
    update = signed(north, tensors)
    buffer = update.update.buffer.copy()
    buffer.view(np.uint32)[5] ^= 1
    with pytest.raises(Refused, match="its bytes do not match the signed digest"):
        examine(replace(update, update=replace(update.update, buffer=buffer)), north, tensors)


def test_a_reason_is_short_whatever_the_sender_wrote(north: Identity, tensors: Tensors):
    with pytest.raises(Refused, match="replayed") as caught:
        examine(signed(north, tensors, cohort="x" * 60_000), north, tensors)
    assert len(str(caught.value)) < 600


def test_a_copied_update_is_refused_and_an_empty_one_is_nobodys_copy(north: Identity, tensors: Tensors):
    update = signed(north, tensors)
    said = digest(tensors)
    check_original(update, said, {})
    check_original(update, said, {"south": "00" * 32})
    with pytest.raises(Refused, match="it is the update of south, bit for bit"):
        check_original(update, said, {"south": said})
    nothing = {name: np.zeros_like(tensor) for name, tensor in tensors.items()}
    check_original(signed(north, nothing), digest(nothing), {"south": digest(nothing)})


def test_without_its_values_who_signed_what_for_which_round_is_still_checked(north: Identity, tensors: Tensors):
    keys, task = {north.key_id: north.public_hex}, CohortTask(COHORT, None, BASE)
    said = signed(north, tensors, update="ef" * 32)
    empty = replace(said, update=Packed.of({}))
    assert check_statement(empty, "north", ROUND, task, keys, RUN, WEIGHT) == "ef" * 32
    with pytest.raises(Refused, match="weight"):
        check_statement(empty, "north", ROUND, task, keys, RUN, WEIGHT - 1)
    with pytest.raises(Refused, match="replayed"):
        check_statement(empty, "north", ROUND + 1, task, keys, RUN, WEIGHT)
    with pytest.raises(Refused, match="names or shapes differ"):
        examine(empty, north, tensors)
