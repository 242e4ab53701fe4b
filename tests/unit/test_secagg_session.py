"""A session from end to end: the bits of the plain merge, whoever drops out, and one transcript."""

import hashlib
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from secagg_parties import NAMES, Parties, identity_of

from ledger.identity import COORDINATOR, Identity
from trustchain_ray.errors import TrustChainError
from trustchain_ray.merge import FRACTION_BITS, LIMIT, apply_step, weighted_sum
from trustchain_ray.secure_aggregation import Server, Session, TooFew, default_threshold
from trustchain_ray.secure_aggregation.stages import STAGES


def plain(parties: Parties, members: list[str]) -> tuple[bytes, int]:
    updates, weights = [parties.updates[n] for n in members], [parties.weights[n] for n in members]
    sums, total = weighted_sum(updates, weights)
    return sums.tobytes(), total


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(st.data())
def test_the_sum_is_the_plain_merge_of_those_whose_input_arrived(data: st.DataObject):
    count = data.draw(st.integers(3, 7))
    threshold = data.draw(st.integers(default_threshold(count), count))
    weights = [data.draw(st.sampled_from([1, 2, 4, 6, 30, 301])) for _ in range(count)]
    parties = Parties(count, data.draw(st.integers(1, 6)), data.draw(st.integers(0, 99)), threshold, weights)
    for update in parties.updates.values():
        update[0] = data.draw(st.sampled_from([LIMIT, -LIMIT, 0.0, 2.0**-FRACTION_BITS]))
    alive, drop, summed, failed = list(NAMES[:count]), {}, [], ""
    for stage in STAGES:
        drop[stage] = tuple(data.draw(st.lists(st.sampled_from(alive), max_size=2, unique=True)))
        alive = [name for name in alive if name not in drop[stage]]
        if len(alive) < threshold:
            failed = stage
            break
        summed = alive if stage == "input" else summed
    if failed:
        with pytest.raises(TooFew, match=rf"only {len(alive)} members .* their {failed}, {threshold} are") as error:
            parties.run(drop)
        assert error.value.missing == tuple(n for n in NAMES[:count] if n not in alive)
        assert parties.server.result is None
        return
    result = parties.run(drop)
    assert (result.sums.tobytes(), result.total) == plain(parties, summed)
    assert list(result.weights) == list(result.inputs) == summed
    assert result.dropped == [n for n in NAMES[:count] if n not in summed]
    for name, client in parties.clients.items():
        assert client.transcript == (result.transcript if name in alive else None)
        assert client.revealed == (name in alive)
        if name in alive:
            assert client.result == hashlib.sha256(result.sums.astype("<i8").tobytes()).hexdigest()


@pytest.mark.parametrize("stage", STAGES)
def test_one_of_four_may_drop_out_at_any_stage(stage: str):
    parties = Parties(4, size=1000)
    result = parties.run({stage: ("birch",)})
    arrived = [n for n in parties.updates if n != "birch" or stage in ("alive", "reveal")]
    assert (result.sums.tobytes(), result.total) == plain(parties, arrived)


def test_dropouts_at_every_stage_of_one_session():
    parties = Parties(7, size=100)
    with pytest.raises(TooFew, match=r"missing: amber, birch, cedar; repeat the round"):
        parties.run({"keys": ("amber",), "shares": ("birch",), "input": ("cedar",)})
    parties = Parties(7, size=100, seed=1)
    result = parties.run({"shares": ("birch",), "alive": ("cedar",)})
    assert (result.sums.tobytes(), result.total) == plain(parties, [n for n in parties.updates if n != "birch"])


def test_too_few_answers_leave_the_stage_open_for_the_late():
    parties = Parties(3)
    replies = parties.until("input")
    for name in ("amber", "birch"):
        parties.server.receive(name, replies[name])
    with pytest.raises(TooFew, match=r"missing: cedar"):
        parties.server.close()
    assert (parties.server.stage, parties.server.waiting) == ("input", ["cedar"])
    messages = parties.receive({"cedar": replies["cedar"]})
    messages = parties.receive(parties.answers(messages))
    assert parties.finish(parties.answers(messages)).dropped == []


def test_the_merged_model_has_the_bits_of_the_plain_step():
    parties = Parties(5, size=2000)
    base = np.random.default_rng(3).normal(0, 0.1, 2000).astype(np.float32)
    result = parties.run()
    expected = apply_step(base, list(parties.updates.values()), list(parties.weights.values()), 0.7)
    merged = (result.sums * (0.7 / (result.total * 2**FRACTION_BITS)) + base).astype(np.float32)
    assert merged.tobytes() == expected.tobytes()


def test_the_result_names_the_digests_of_the_masked_inputs():
    parties = Parties(3)
    result = parties.run()
    sent = {name: bytes(message.buffers["values"]) for name, message in parties.sent["input"].items()}
    assert result.inputs == {name: hashlib.sha256(data).hexdigest() for name, data in sent.items()}
    total = sum(np.frombuffer(data, "<u8") for data in sent.values())
    assert not (total.view(np.int64) == result.sums).any()  # the self masks alone hide the sum


def test_the_transcript_changes_with_whatever_is_said():
    transcripts = {
        Parties(4).run().transcript,
        Parties(4, round=2).run().transcript,
        Parties(4, attempt=1).run().transcript,
        Parties(4, cohort="other").run().transcript,
        Parties(4, run="other").run().transcript,
        Parties(4, seed=1).run().transcript,
        Parties(4, weights=[3, 4, 5, 7]).run().transcript,
        Parties(4).run({"reveal": ("amber",)}).transcript,
    }
    assert len(transcripts) == 8
    assert Parties(4).run().transcript in transcripts


def test_bytes_are_about_twice_those_of_the_plain_updates():
    parties = Parties(4, size=100_000)
    messages, moved = parties.server.open(), 0
    while parties.server.stage:
        replies = parties.answers(messages)
        moved += sum(len(m.to_bytes()) for m in (*messages.values(), *replies.values()))
        messages = parties.receive(replies)
    moved += sum(len(m.to_bytes()) for m in messages.values())
    assert 2.0 < moved / (4 * 4 * 100_000) < 2.2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"threshold": 2}, r"a threshold of 2 of 4 members .* set 3 to 4"),
        ({"threshold": 2, "members": {n: identity_of(n).public_hex for n in NAMES[:3]}}, r"2 of 3 .* set 3 to 3"),
        ({"threshold": 5}, r"a threshold of 5 of 4 members"),
        ({"round": -1}, r"round -1"),
        ({"attempt": -1}, r"attempt -1"),
        ({"size": 0}, r"at least one value"),
        ({"coordinator": identity_of("amber").public_hex}, r"a public key of its own"),
        ({"coordinator": "ab"}, r"64 hex digits"),
        ({"members": {n: identity_of(n).public_hex for n in NAMES[:2]}}, r"2 members are too few.*take 3 or more"),
        ({"members": dict.fromkeys(NAMES[:3], "ab" * 32)}, r"a public key of its own"),
        ({"members": {n: identity_of(n).public_hex for n in ("a b", "c", "d")}}, r"organization name 'a b'"),
        ({"members": {n: identity_of(n).public_hex for n in (COORDINATOR, "c", "d")}}, r"the coordinator is no member"),
    ],
)
def test_a_session_that_is_not_safe_is_refused(changes: dict[str, object], message: str):
    session = Parties(4).session
    values = {name: getattr(session, name) for name in session.__dataclass_fields__}
    with pytest.raises(TrustChainError, match=message):
        Session(**{**values, **changes})


@pytest.mark.parametrize(("members", "threshold"), [(3, 3), (4, 3), (5, 4), (6, 5), (20, 14)])
def test_the_default_threshold_is_just_above_two_thirds(members: int, threshold: int):
    assert default_threshold(members) == threshold
    assert 3 * (threshold - 1) <= 2 * members < 3 * threshold


def test_only_the_coordinator_of_the_session_runs_it():
    with pytest.raises(TrustChainError, match=r"its coordinator's identity"):
        Server(Parties(3).session, identity_of("amber"))
    with pytest.raises(TrustChainError, match=r"its coordinator's identity"):
        Server(Parties(3).session, Identity(COORDINATOR, identity_of("amber")._private))
    server = Parties(3).server
    with pytest.raises(TrustChainError, match=r"no stage is open"):
        server.close()
    server.open()
    with pytest.raises(TrustChainError, match=r"opened before"):
        server.open()


def test_a_member_shows_and_saves_no_secret():
    parties = Parties(3)
    parties.until("shares")
    client = parties.clients["amber"]
    for secret in (client._seed, client._mask_key.private_bytes_raw(), client._share_key.private_bytes_raw()):
        assert secret.hex() not in repr(client)
    with pytest.raises(TypeError):
        pickle.dumps(client)


def test_weights_too_large_for_an_exact_sum_are_refused_by_both_sides():
    parties = Parties(3, weights=[2**22, 2**22 - 1, 2])
    replies = parties.until("keys")
    with pytest.raises(TrustChainError, match=r"federation\.weights=equal"):
        parties.receive(replies)


def test_a_member_refuses_an_update_or_weight_that_cannot_be_summed():
    parties = Parties(3)
    parties.updates["amber"][1] = np.nan
    with pytest.raises(TrustChainError, match=r"not finite"):
        parties.clients["amber"].answer(parties.server.open()["amber"])
    parties.weights["amber"] = 0
    with pytest.raises(TrustChainError, match=r"amber has the weight 0"):
        parties.client("amber")

