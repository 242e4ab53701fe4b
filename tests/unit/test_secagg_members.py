"""Members that cheat, repeat themselves or come late: each is found and named, and the others go on."""

from collections.abc import Callable

import numpy as np
import pytest
from secagg_parties import Parties, content_of, identity_of

from trustchain_ray.errors import TrustChainError
from trustchain_ray.secure_aggregation import Message, Misbehaved, client
from trustchain_ray.secure_aggregation.messages import Statement
from trustchain_ray.secure_aggregation.shamir import SHARE_BYTES


def refused(parties: Parties, name: str, message: Message, why: str, party: str = "") -> None:
    """The server refuses a message, says who is to answer for it, and still waits for the member."""
    before = parties.server.waiting
    with pytest.raises(Misbehaved, match=why) as error:
        parties.server.receive(name, message)
    assert error.value.party == (party or name)
    assert str(error.value).startswith(f"secure aggregation: {error.value.party} ")
    assert parties.server.waiting == before


@pytest.mark.parametrize("stage", ["keys", "shares", "input", "alive", "reveal"])
def test_a_wrong_signature_is_refused_at_every_stage(stage: str):
    parties = Parties(4)
    replies = parties.until(stage)
    good = replies["amber"]
    stranger = identity_of("stranger").sign(good.statement.payload)
    bad = Message(Statement(good.statement.payload, stranger), buffers=good.buffers)
    refused(parties, "amber", bad, r"in the name of amber whose signature does not hold")


@pytest.mark.parametrize("stage", ["keys", "shares", "input", "alive", "reveal"])
def test_a_message_of_another_round_is_refused_at_every_stage(stage: str):
    old, parties = Parties(4, round=1), Parties(4, round=2)
    replayed = old.until(stage)["birch"]
    parties.until(stage)
    refused(parties, "birch", replayed, r"birch that was signed for another round")


def test_a_message_of_another_attempt_is_refused():
    old, parties = Parties(4), Parties(4, attempt=1)
    replayed = old.until("input")["birch"]
    parties.until("input")
    refused(parties, "birch", replayed, r"signed for another round")


def test_a_member_cannot_speak_for_another():
    parties = Parties(4)
    replies = parties.until("keys")
    refused(parties, "amber", replies["birch"], r"amber delivered a statement of birch")
    stranger = parties.forged(replies["amber"], sender="stranger")
    refused(parties, "amber", stranger, r"'stranger', who has no say here")


def test_who_dropped_out_cannot_come_back():
    parties = Parties(4)
    late = parties.until("keys")["delta"]
    messages = parties.receive({name: parties.sent["keys"][name] for name in ("amber", "birch", "cedar")})
    refused(parties, "delta", late, r"sent 'keys' of delta when 'shares' was due: too late, or a replay")
    replies = parties.answers(messages)
    own = parties.forged(late, kind="shares", after=content_of(replies["amber"]).after)
    refused(parties, "delta", own, r"shares of delta, who had dropped out before")


def test_the_same_message_again_counts_once():
    parties = Parties(3)
    replies = parties.until("input")
    parties.server.receive("amber", replies["amber"])
    parties.server.receive("amber", replies["amber"])
    messages = parties.receive(replies)
    result = parties.finish(parties.answers(parties.receive(parties.answers(messages))))
    expected = sum(w * np.rint(parties.updates[n] * 2.0**24) for n, w in parties.weights.items())
    np.testing.assert_array_equal(result.sums, expected)


def test_two_different_share_sets_of_one_member_are_found():
    parties = Parties(4)
    replies = parties.until("shares")
    parties.server.receive("amber", replies["amber"])
    body = content_of(replies["amber"]).body
    second = parties.forged(replies["amber"], body={**body, "seed": "ab" * 32})
    refused(parties, "amber", second, r"amber signed two different shares")


@pytest.mark.parametrize("length", [0, 8, 39, 41, 48])
def test_a_masked_input_of_another_length_is_refused(length: int):
    parties = Parties(4)
    good = parties.until("input")["amber"]
    refused(parties, "amber", parties.forged(good, {"values": bytes(length)}), rf"{length} bytes, not 8 for each of 5")


def test_a_buffer_that_was_not_signed_is_refused():
    parties = Parties(4)
    good = parties.until("input")["amber"]
    cases = (({"values": bytes(40)}, "other 'values'"), ({}, "other buffers"), ({"x": b""}, "other buffers"))
    for buffers, why in cases:
        refused(parties, "amber", Message(good.statement, buffers=buffers), why)


@pytest.mark.parametrize("field", ["mask_key", "share_key"])
def test_a_key_of_low_order_is_refused(field: str):
    parties = Parties(4)
    good = parties.until("keys")["amber"]
    body = content_of(good).body
    refused(parties, "amber", parties.forged(good, body={**body, field: "00" * 32}), r"public key of low order")


def test_a_key_of_another_member_or_used_twice_is_refused():
    parties = Parties(4)
    replies = parties.until("keys")
    parties.server.receive("birch", replies["birch"])
    own, others = content_of(replies["amber"]).body, content_of(replies["birch"]).body
    copied = parties.forged(replies["amber"], body={**own, "mask_key": others["share_key"]})
    refused(parties, "amber", copied, r"public key that was already used")
    twice = parties.forged(replies["amber"], body={**own, "mask_key": own["share_key"]})
    refused(parties, "amber", twice, r"public key that was already used")


@pytest.mark.parametrize("signed", [2, 4])
def test_a_weight_other_than_the_signed_one_is_refused(signed: int):
    parties = Parties(4, signed={"amber": signed})
    refused(parties, "amber", parties.until("keys")["amber"], rf"stated the weight 3; it signed {signed} before")


@pytest.mark.parametrize(
    ("stage", "change"),
    [
        ("keys", lambda b: {**b, "weight": 0}),
        ("keys", lambda b: {**b, "weight": True}),
        ("keys", lambda b: {**b, "mask_key": "AB" * 32}),
        ("keys", lambda b: {**b, "more": 1}),
        ("shares", lambda b: {**b, "seed": "short"}),
        ("shares", lambda b: {**b, "shares": {n: p for n, p in b["shares"].items() if n != "birch"}}),
        ("shares", lambda b: {**b, "shares": {n: p[:1] for n, p in b["shares"].items()}}),
        ("shares", lambda b: {**b, "shares": []}),
        ("input", lambda b: {"weight": 2}),
        ("alive", lambda b: {"statements": {}}),
        ("reveal", lambda b: {"seed": "ab" * 32}),
    ],
)
def test_a_statement_of_the_wrong_form_is_refused(stage: str, change: Callable[[dict], dict]):
    parties = Parties(4)
    good = parties.until(stage)["amber"]
    refused(parties, "amber", parties.forged(good, body=change(content_of(good).body)), rf"signed {stage} of the wrong")


def test_shares_for_nobody_or_too_few_are_of_the_wrong_form():
    parties = Parties(4)
    good = parties.until("shares")["amber"]
    fewer = {name: data for name, data in good.buffers.items() if name != "delta"}
    for buffers in (fewer, {**good.buffers, "stranger": b""}):
        refused(parties, "amber", parties.forged(good, buffers), r"signed shares of the wrong form")


def test_encrypted_shares_of_another_length_are_refused():
    parties = Parties(4)
    good = parties.until("shares")["amber"]
    longer = {**good.buffers, "birch": bytes(good.buffers["birch"]) + b"x"}
    refused(parties, "amber", parties.forged(good, longer), r"encrypted shares that are not 82 bytes for each holder")


def test_a_wrong_share_at_the_end_names_its_holder_and_the_sum_is_still_found():
    parties = Parties(5)
    replies = parties.until("reveal")
    data = bytearray(bytes(replies["amber"].buffers["shares"]))
    data[2 * SHARE_BYTES + 5] ^= 1
    wrong = parties.forged(replies["amber"], {"shares": bytes(data)})
    refused(parties, "amber", wrong, r"revealed a share of cedar that is not the one that cedar committed to")
    short = parties.forged(replies["amber"], {"shares": bytes(data[:-1])})
    refused(parties, "amber", short, r"revealed 164 bytes of shares, not 33 for each")
    result = parties.finish({name: reply for name, reply in replies.items() if name != "amber"})
    expected = sum(w * np.rint(parties.updates[n] * 2.0**24) for n, w in parties.weights.items())
    np.testing.assert_array_equal(result.sums, expected)


def test_shares_that_are_swapped_between_the_secrets_are_refused():
    parties = Parties(4)
    held = {}
    replies = parties.until("alive", {"input": ("delta",)})
    held = dict(parties.clients["amber"]._held)
    messages = parties.receive(replies)
    good = parties.answers(messages)["amber"]
    for owner in ("birch", "delta"):  # for one the seed is due, for the other the mask key
        place = list(parties.session.names).index(owner) * SHARE_BYTES
        data = bytearray(bytes(good.buffers["shares"]))
        due = bytes(data[place : place + SHARE_BYTES])
        data[place : place + SHARE_BYTES] = next(share for share in held[owner] if share != due)
        refused(parties, "amber", parties.forged(good, {"shares": bytes(data)}), rf"a share of {owner} that is not")


@pytest.mark.parametrize("dropped", [(), ("delta",)], ids=["its seed", "its mask key"])
def test_shares_of_no_one_secret_name_their_owner(dropped: tuple[str, ...], monkeypatch: pytest.MonkeyPatch):
    parties = Parties(4)
    honest = client.split

    def split(secret, points, threshold, entropy):
        shares = honest(secret, points, threshold, entropy)
        if parties.dealing == "delta":
            shares[points[0]] = honest(bytes(32), points, threshold, entropy)[points[0]]
        return shares

    monkeypatch.setattr(client, "split", split)
    messages = parties.receive(parties.until("keys"))
    replies = {}
    for parties.dealing in messages:
        replies |= parties.answers({parties.dealing: messages[parties.dealing]})
    replies = parties.answers(parties.receive(replies), dropped)
    for _ in ("input", "alive"):
        replies = parties.answers(parties.receive(replies))
    with pytest.raises(Misbehaved, match=r"delta dealt shares that do not give back its secret") as error:
        parties.receive(replies)
    assert error.value.party == "delta"
    assert parties.server.result is None


def test_numbers_that_are_no_update_are_found_in_the_sum():
    parties = Parties(3)
    replies = parties.until("input")
    values = np.frombuffer(replies["amber"].buffers["values"], "<u8").copy()
    values[3] += np.uint64(2**55)
    replies["amber"] = parties.forged(replies["amber"], {"values": values.tobytes()})
    # The member itself knows what it sent: its own client would refuse the list, so it answers by hand.
    messages = parties.receive(replies)
    parties.clients["amber"]._said["input"] = replies["amber"].statement
    replies = parties.answers(parties.receive(parties.answers(messages)))
    for _ in range(2):
        with pytest.raises(TrustChainError, match=r"the sum is not one of valid updates.*nothing is merged"):
            parties.receive(replies)
    assert parties.server.result is None
