"""The five stages of a session, and what both sides check of the statements in each.

| stage | a member says | the coordinator's list, when it closes the stage |
|---|---|---|
| keys | its two public keys, its weight | who takes part |
| shares | shares of its seed and its mask key, one pair encrypted for each holder | who can be unmasked |
| input | its update under all masks | who is in the sum |
| alive | that it saw this list | that enough members saw the same |
| reveal | one share of each member: of the seed if its input is in the sum, else of the mask key | digest of the sum |

Every statement answers the coordinator's last one. Members of the next stage are those in the list of this one.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from ledger.canonical import MAX_INT, canonical_json, is_digest, sha256_hex
from ledger.identity import COORDINATOR
from trustchain_ray.secure_aggregation.errors import Misbehaved
from trustchain_ray.secure_aggregation.messages import Content, Message, Statement, read
from trustchain_ray.secure_aggregation.session import Session
from trustchain_ray.secure_aggregation.shamir import SHARE_BYTES

KEYS, SHARES, INPUT, ALIVE, REVEAL = STAGES = ("keys", "shares", "input", "alive", "reveal")
MASK_KEY, SEED = 0, 1
"""Place of the two secrets of a member wherever both are listed."""
ENCRYPTED_BYTES = 2 * SHARE_BYTES + 16
"""Shares of both for one holder, with the authentication tag."""


@dataclass(frozen=True)
class Stage:
    """A closed stage.

    Attributes
    ----------
    statements : the members' statements, by name.
    contents : what they say.
    body : of the coordinator's statement that closed it.
    digest : of that statement.
    """

    statements: Mapping[str, Statement]
    contents: Mapping[str, Content]
    body: Mapping[str, Any]
    digest: str

    @property
    def names(self) -> list[str]:
        """Members that answered, sorted."""
        return sorted(self.statements)


def list_kind(stage: str) -> str:
    """The kind of the coordinator's statement that closes a stage."""
    return f"{stage} list"


def commitment(context: str, owner: str, holder: str, secret: int, data: bytes) -> str:
    """What an owner publishes of a share before it is revealed, and of its seed (holder: itself): a SHA-256 hides 256
    random bits.

    Parameters
    ----------
    context : digest of the list of keys: a commitment holds for one session.
    secret : MASK_KEY or SEED.
    data : the 33 bytes of a share, or the 32 bytes of the seed.
    """
    head = {"context": context, "holder": holder, "length": len(data), "owner": owner, "secret": secret}
    return sha256_hex(canonical_json(head) + data)


def read_member(
    statement: Statement, deliverer: str, session: Session, stage: str, after: str, expected: Collection[str]
) -> Content:
    """Check a member's statement.

    Parameters
    ----------
    deliverer : who is to answer for it if its sender is not: a replay is the deliverer's, a wrong form the sender's.
    after : digest of the coordinator's statement that it must answer.
    expected : members of this stage.

    Raises
    ------
    Misbehaved
        Not signed by a member for this session, stage and history, or not of the form of its stage.
    """
    content = read(statement, deliverer, session.members, session.digest, stage)
    if content.after != after:
        raise Misbehaved(
            deliverer,
            f"sent the {stage} of {content.sender} that answer another list than the one seen here: different members "
            "were shown different lists",
        )
    if content.sender not in expected:
        raise Misbehaved(deliverer, f"sent the {stage} of {content.sender}, who had dropped out before")
    if not _FORMS[stage](content, set(expected)):
        raise Misbehaved(content.sender, f"signed {stage} of the wrong form")
    return content


def read_list(message: Message, session: Session, stage: str, after: str, expected: Collection[str]) -> Stage:
    """Check the coordinator's list of a stage and every statement in it.

    Parameters
    ----------
    after : digest of the coordinator's statement before; the members' statements answer the same.
    expected : members of this stage.

    Raises
    ------
    Misbehaved
        A statement that does not hold, another history, or fewer members than the threshold.
    """
    coordinator = {COORDINATOR: session.coordinator}
    content = read(message.statement, COORDINATOR, coordinator, session.digest, list_kind(stage))
    if content.after != after:
        raise Misbehaved(COORDINATOR, f"closed the {stage} after other lists than those it showed here")
    if stage == REVEAL and not is_digest(content.body.get("sum")):
        raise Misbehaved(COORDINATOR, "ended the session without the digest of the sum")
    statements, contents = {}, {}
    for statement in message.members:
        member = read_member(statement, COORDINATOR, session, stage, after, expected)
        statements[member.sender], contents[member.sender] = statement, member
    if content.body.get("statements") != {name: s.digest for name, s in statements.items()}:
        raise Misbehaved(COORDINATOR, f"sent other {stage} of members than its list states")
    if len(contents) < session.threshold:
        raise Misbehaved(
            COORDINATOR, f"closed the {stage} with {len(contents)} members; the threshold is {session.threshold}"
        )
    return Stage(statements, contents, content.body, message.statement.digest)


def check_public_keys(contents: Mapping[str, Content]) -> None:
    """Refuse a public key that occurs twice. Raises Misbehaved, naming the later of the two in the given order."""
    seen: set[str] = set()
    for name, content in contents.items():
        for key in (content.body["mask_key"], content.body["share_key"]):
            if key in seen:
                raise Misbehaved(name, "sent a public key that was already used")
            seen.add(key)


def _keys_form(content: Content, expected: set[str]) -> bool:
    body = content.body
    return (
        body.keys() == {"mask_key", "share_key", "weight"}
        and is_digest(body["mask_key"])
        and is_digest(body["share_key"])
        and type(body["weight"]) is int
        and 1 <= body["weight"] <= MAX_INT
        and not content.buffers
    )


def _shares_form(content: Content, expected: set[str]) -> bool:
    body = content.body
    return (
        body.keys() == {"seed", "shares"}
        and is_digest(body["seed"])
        and isinstance(body["shares"], dict)
        and body["shares"].keys() == expected
        and all(isinstance(pair, list) and len(pair) == 2 for pair in body["shares"].values())
        and all(is_digest(value) for pair in body["shares"].values() for value in pair)
        and content.buffers.keys() == expected - {content.sender}
    )


def _only_buffers(*names: str) -> Callable[[Content, set[str]], bool]:
    return lambda content, expected: not content.body and content.buffers.keys() == set(names)


_FORMS: dict[str, Callable[[Content, set[str]], bool]] = {
    KEYS: _keys_form,
    SHARES: _shares_form,
    INPUT: _only_buffers("values"),
    ALIVE: _only_buffers(),
    REVEAL: _only_buffers("shares"),
}
