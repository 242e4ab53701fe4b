"""Messages as bytes: what comes out is what went in, and nothing else is read."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from secagg_parties import Parties

from ledger.canonical import canonical_json
from trustchain_ray.errors import TrustChainError
from trustchain_ray.secure_aggregation import Message
from trustchain_ray.secure_aggregation.messages import Statement

statements = st.builds(Statement, st.binary(max_size=40), st.binary(min_size=64, max_size=64))
messages = st.builds(
    Message,
    statements,
    st.lists(statements, max_size=3).map(tuple),
    st.dictionaries(st.text(max_size=5).filter(lambda s: s.isprintable()), st.binary(max_size=40), max_size=3),
)


@settings(deadline=None)
@given(messages)
def test_a_message_survives_its_bytes(message: Message):
    again = Message.from_bytes(message.to_bytes())
    assert (again.statement, again.members) == (message.statement, message.members)
    assert {name: bytes(data) for name, data in again.buffers.items()} == message.buffers


@settings(deadline=None)
@given(messages, st.data())
def test_shorter_or_longer_bytes_are_no_message(message: Message, data: st.DataObject):
    whole = message.to_bytes()
    cut = data.draw(st.integers(0, len(whole) - 1))
    for changed in (whole[:cut], whole + b"x"):
        with pytest.raises(TrustChainError, match=r"secure aggregation: "):
            Message.from_bytes(changed)


@settings(deadline=None)
@given(st.binary(max_size=60))
def test_arbitrary_bytes_are_no_message(data: bytes):
    with pytest.raises(TrustChainError, match=r"secure aggregation: "):
        Message.from_bytes(data)


@pytest.mark.parametrize(
    "header",
    [
        [],
        {"buffers": []},
        {"buffers": [], "statements": []},
        {"buffers": [], "statements": [-64]},
        {"buffers": [], "statements": [True]},
        {"buffers": [["a"]], "statements": [0]},
        {"buffers": [["a", 0], ["a", 0]], "statements": [0]},
        {"buffers": [[1, 0]], "statements": [0]},
        {"buffers": [["a", -1]], "statements": [1]},
    ],
)
def test_a_header_of_another_form_is_refused(header: object):
    data = canonical_json(header)
    with pytest.raises(TrustChainError, match=r"needs lists of statements and buffers"):
        Message.from_bytes(len(data).to_bytes(4, "big") + data + bytes(64))


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_changed_byte_is_refused_and_changes_nothing(data: st.DataObject):
    parties = Parties(3)
    replies = parties.until("shares")
    whole = replies["amber"].to_bytes()
    place, bit = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(0, 7))
    changed = bytearray(whole)
    changed[place] ^= 1 << bit
    with pytest.raises(TrustChainError, match=r"secure aggregation: "):
        parties.server.receive("amber", Message.from_bytes(bytes(changed)))
    assert parties.server.waiting == ["amber", "birch", "cedar"]
    parties.server.receive("amber", replies["amber"])
    assert parties.server.waiting == ["birch", "cedar"]
