"""A coordinator that cheats: no member goes on with it, and no member ever gives both shares of another."""

import numpy as np
import pytest
from secagg_parties import NAMES, Parties, content_of, identity_of

from ledger.identity import COORDINATOR
from trustchain_ray.errors import TrustChainError
from trustchain_ray.secure_aggregation import Message, Misbehaved, Session
from trustchain_ray.secure_aggregation.masks import derive_key, encrypt
from trustchain_ray.secure_aggregation.messages import Statement, state
from trustchain_ray.secure_aggregation.shamir import SHARE_BYTES
from trustchain_ray.secure_aggregation.stages import MASK_KEY, SEED, commitment


def stops(parties: Parties, name: str, message: Message, why: str, party: str = COORDINATOR) -> None:
    """A member refuses a message, says who is to answer for it, and answers nothing more."""
    with pytest.raises(Misbehaved, match=why) as error:
        parties.clients[name].answer(Message.from_bytes(message.to_bytes()))
    assert error.value.party == party
    with pytest.raises(TrustChainError, match=rf"the session is over for {name}"):
        parties.clients[name].answer(message)


def test_a_made_up_member_is_found():
    parties = Parties(4)
    members = {**parties.session.members, "sybil": identity_of("sybil").public_hex}
    values = {name: getattr(parties.session, name) for name in parties.session.__dataclass_fields__}
    session = Session(**{**values, "members": members, "threshold": 4})
    announcement = Message(session.announce(identity_of(COORDINATOR)))
    stops(parties, "amber", announcement, r"a key for sybil that is not registered")


def test_a_member_with_another_key_than_the_registered_one_is_found():
    parties = Parties(4)
    parties.registered["birch"] = identity_of("other").public_hex
    stops(parties, "amber", parties.server.open()["amber"], r"a key for birch that is not registered")


def test_only_the_registered_coordinator_announces():
    parties = Parties(4)
    good = parties.server.open()["amber"].statement
    forged = parties.session.announce(identity_of("amber"))
    stops(parties, "amber", Message(forged), r"announced a session that does not hold")
    stops(parties, "birch", Message(Statement(good.payload[:-1] + b" }", good.signature)), r"does not hold")
    other = state(identity_of(COORDINATOR), "session", "", "", {}, {})
    stops(parties, "cedar", Message(other), r"announced a malformed session")


def test_a_session_without_the_member_is_refused():
    parties, without = Parties(5), Parties(4)
    stops(parties, "ember", without.server.open()["amber"], r"announced a session to ember that is without its key")


@pytest.mark.parametrize("stage", ["keys", "shares", "input", "alive", "reveal"])
def test_fewer_than_the_threshold_are_refused_at_every_stage(stage: str):
    parties = Parties(5)
    replies = parties.until(stage)
    stops(
        parties, "amber", parties.listed(stage, replies, NAMES[:3], sum="ab" * 32),
        rf"closed the {stage} with 3 members; the threshold is 4",
    )  # fmt: skip


@pytest.mark.parametrize("stage", ["keys", "shares", "input", "alive", "reveal"])
def test_a_member_that_was_left_out_finds_it(stage: str):
    parties = Parties(5)
    replies = parties.until(stage)
    left_out = parties.listed(stage, replies, NAMES[1:5], sum="ab" * 32)
    stops(parties, "amber", left_out, rf"left the {stage} of amber out: they were late, or were withheld")


def test_the_members_own_words_cannot_be_changed():
    parties, other = Parties(4), Parties(4, seed=1)
    replies, others = parties.until("keys"), other.until("keys")
    replies["amber"] = others["amber"]  # signed by it in the same session, but not what it said here
    stops(parties, "amber", parties.listed("keys", replies, NAMES[:4]), r"left the keys of amber out")


@pytest.mark.parametrize("stage", ["keys", "shares", "input", "alive", "reveal"])
def test_a_list_that_nobody_or_somebody_else_signed_is_refused(stage: str):
    parties = Parties(4)
    replies = parties.until(stage)
    good = parties.listed(stage, replies, NAMES[:4], sum="ab" * 32)
    unsigned = Message(Statement(good.statement.payload, bytes(64)), good.members)
    stops(parties, "amber", unsigned, r"name of coordinator whose signature does not hold")
    fewer = Message(good.statement, good.members[:-1])
    stops(parties, "birch", fewer, rf"sent other {stage} of members than its list states")
    forged = Message(good.statement, (Statement(good.members[0].payload, bytes(64)), *good.members[1:]))
    stops(parties, "cedar", forged, r"in the name of amber whose signature does not hold")


def test_a_list_of_another_round_is_refused():
    old, parties = Parties(4), Parties(4, round=2)
    replayed = old.listed("keys", old.until("keys"), NAMES[:4])
    parties.until("keys")
    stops(parties, "amber", replayed, r"sent a statement of coordinator that was signed for another round")


def test_a_list_that_follows_another_history_is_refused():
    parties = Parties(4)
    replies = parties.until("shares")
    other = parties.listed("shares", replies, NAMES[:4], after=parties.session.digest)
    stops(parties, "amber", other, r"closed the shares after other lists than those it showed here")


def test_keys_or_weights_that_the_server_should_have_refused_stop_the_member():
    parties = Parties(4)
    replies = parties.until("keys")
    bodies = {name: content_of(reply).body for name, reply in replies.items()}

    def with_delta(**changes: object) -> Message:
        forged = parties.forged(replies["delta"], body={**bodies["delta"], **changes})
        return parties.listed("keys", {**replies, "delta": forged}, NAMES[:4])

    stops(parties, "amber", with_delta(mask_key=bodies["amber"]["mask_key"]), r"already used", "delta")
    stops(parties, "birch", with_delta(share_key="00" * 32), r"of low order", "delta")
    with pytest.raises(TrustChainError, match=r"federation\.weights=equal"):
        parties.clients["cedar"].answer(with_delta(weight=2**23))


def test_different_lists_of_keys_are_found_by_the_next_message():
    parties = Parties(5)
    replies = parties.until("keys")
    one, two = parties.listed("keys", replies, NAMES[:5]), parties.listed("keys", replies, NAMES[:4])
    shares = {"amber": one, "birch": one, "cedar": two, "delta": two}
    answers = {name: parties.clients[name].answer(message) for name, message in shares.items()}
    mixed = parties.listed("shares", answers, NAMES[:4])
    stops(parties, "amber", mixed, r"cedar that answer another list than the one seen here")


def test_different_lists_of_the_living_to_different_members_give_no_share_away():
    """The attack that the consistency stage is for: ember is alive for some (its seed), dead for others (its key)."""
    parties = Parties(5)
    replies = parties.until("input")
    alive, dead = parties.listed("input", replies, NAMES[:5]), parties.listed("input", replies, NAMES[:4])
    shown = {"amber": alive, "birch": alive, "ember": alive, "cedar": dead, "delta": dead}
    confirmed = {name: parties.clients[name].answer(message) for name, message in shown.items()}
    some, others = ("amber", "birch", "ember"), ("cedar", "delta")
    assert len(some) < parties.session.threshold
    mixed = parties.listed("alive", confirmed, NAMES[:5])
    few = parties.listed("alive", confirmed, some)
    stops(parties, "amber", mixed, r"the alive of cedar that answer another list .*different members were shown")
    stops(parties, "birch", few, r"closed the alive with 3 members; the threshold is 4")
    others_list = parties.listed("alive", {n: confirmed[n] for n in others}, others)
    stops(parties, "cedar", others_list, r"closed the alive with 2 members")
    assert not any(client.revealed for client in parties.clients.values())


def test_a_member_gives_one_share_of_each_and_only_once():
    parties = Parties(5)
    replies = parties.until("alive", {"input": ("ember",)})
    held = {name: dict(parties.clients[name]._held) for name in replies}
    messages = parties.receive(replies)
    reveals = parties.answers(messages)
    for name, reveal in reveals.items():
        data = bytes(reveal.buffers["shares"])
        shares = [data[i : i + SHARE_BYTES] for i in range(0, len(data), SHARE_BYTES)]
        expected = [held[name][owner][0 if owner == "ember" else 1] for owner in NAMES[:5]]
        assert shares == expected
        assert len(data) == 5 * SHARE_BYTES
        with pytest.raises(Misbehaved, match=r"sent 'alive list' of coordinator when 'reveal list' was due"):
            parties.clients[name].answer(messages[name])


def test_a_late_input_after_its_mask_key_was_revealed_stays_out():
    parties = Parties(5)
    replies = parties.until("input")
    late = replies.pop("ember")
    parties.receive(replies)
    with pytest.raises(Misbehaved, match=r"sent 'input' of ember when 'alive' was due"):
        parties.server.receive("ember", late)
    # Shown as alive in a second list, nobody confirms it: each member has confirmed one list.
    parties.clients["amber"].answer(parties.listed("input", replies, NAMES[:4]))
    again = parties.listed("input", {**replies, "ember": late}, NAMES[:5])
    stops(parties, "amber", again, r"sent 'input list' of coordinator when 'alive list' was due")


def test_altered_or_withheld_shares_name_the_coordinator():
    parties = Parties(4)
    messages = parties.receive(parties.until("shares"))
    good = messages["amber"]
    changed = bytearray(bytes(good.buffers["birch"]))
    changed[3] ^= 1
    altered = Message(good.statement, good.members, {**good.buffers, "birch": bytes(changed)})
    stops(parties, "amber", altered, r"coordinator altered the shares of birch for amber")
    fewer = {name: data for name, data in messages["cedar"].buffers.items() if name != "birch"}
    stops(parties, "cedar", Message(good.statement, good.members, fewer), r"coordinator withheld shares from cedar")


def shares_with(parties: Parties, replies: dict[str, Message], ciphertext: bytes, **changes: object) -> Message:
    """The list of shares for amber, in which birch signed another ciphertext for it."""
    forged = parties.forged(replies["birch"], {**replies["birch"].buffers, "amber": ciphertext}, **changes)
    replies = {**replies, "birch": forged}
    listed = parties.listed("shares", replies, NAMES[:4])
    buffers = {name: reply.buffers["amber"] for name, reply in replies.items() if name != "amber"}
    return Message(listed.statement, listed.members, buffers)


def test_shares_of_another_round_do_not_open_and_name_their_sender():
    old, parties = Parties(4), Parties(4, round=2)  # the same randomness, so the same share keys
    ciphertext = bytes(old.until("shares")["birch"].buffers["amber"])
    message = shares_with(parties, parties.until("shares"), ciphertext)
    stops(parties, "amber", message, r"birch encrypted shares for amber that do not open", "birch")


@pytest.mark.parametrize("length", [0, SHARE_BYTES, 2 * SHARE_BYTES, 2 * SHARE_BYTES + 1])
def test_other_shares_than_those_committed_to_name_their_sender(length: int):
    parties = Parties(4)
    replies = parties.until("shares")
    birch = parties.clients["birch"]
    key = derive_key(birch._agree(birch._share_key, "amber", "share_key"), birch._context, "shares", ("birch", "amber"))
    message = shares_with(parties, replies, encrypt(key, bytes(length), birch._context))
    stops(parties, "amber", message, r"birch sent amber other shares than it committed to", "birch")


def test_shares_that_are_too_long_to_be_revealed_name_their_sender():
    parties = Parties(4)
    replies = parties.until("shares")
    birch, context = parties.clients["birch"], parties.clients["birch"]._context
    key = derive_key(birch._agree(birch._share_key, "amber", "share_key"), context, "shares", ("birch", "amber"))
    pair = bytes(SHARE_BYTES), bytes(SHARE_BYTES + 1)
    committed = [commitment(context, "birch", "amber", secret, pair[secret]) for secret in (MASK_KEY, SEED)]
    body = content_of(replies["birch"]).body
    body = {**body, "shares": {**body["shares"], "amber": committed}}
    message = shares_with(parties, replies, encrypt(key, b"".join(pair), context), body=body)
    stops(parties, "amber", message, r"birch sent amber other shares than it committed to", "birch")


def test_a_member_stays_silent_after_an_error_of_its_own():
    parties = Parties(4)
    parties.updates["amber"][0] = np.inf
    message = parties.server.open()["amber"]
    with pytest.raises(TrustChainError, match="not finite"):
        parties.clients["amber"].answer(message)
    with pytest.raises(TrustChainError, match="the session is over for amber"):
        parties.clients["amber"].answer(message)


def test_the_end_states_the_sum():
    parties = Parties(3)
    replies = parties.until("reveal")
    stops(parties, "amber", parties.listed("reveal", replies, NAMES[:3]), r"without the digest of the sum")
