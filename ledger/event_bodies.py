"""What the bodies of events may hold: kinds of fields, and what lies inside them."""

import re
from collections.abc import Mapping
from typing import Any

from ledger.canonical import is_digest
from ledger.errors import LedgerError
from ledger.identity import COORDINATOR, check_name, key_id_of

DIGEST, STR, INT, BOOL, DICT, LIST = "digest", "str", "int", "bool", "dict", "list"
DIGESTS = "list of different digests"
TRACE = "list of digests"
NAMED = "table of digests"
ROUNDS = "table of rounds, counted from 1"
_PYTHON_TYPE = {STR: str, BOOL: bool, DICT: dict, LIST: list}

EFFORTS = frozenset({"0", "1/2", "1"})
SCOPES = ("record", "subject", "organization")
SPLITS = ("train", "test")
_SHARE = re.compile(r"0\.\d{6}|1\.000000", re.ASCII)


def is_kind(value: object, kind: str) -> bool:
    """Whether ``value`` is of a kind; integers are never negative."""
    if kind == DIGEST:
        return is_digest(value)
    if kind == INT:
        return type(value) is int and value >= 0
    if kind in (DIGESTS, TRACE):
        if not isinstance(value, list) or not all(is_digest(item) for item in value):
            return False
        return kind == TRACE or len(set(value)) == len(value)
    if kind == NAMED:
        return isinstance(value, dict) and all(is_digest(item) for item in value.values())
    if kind == ROUNDS:
        return isinstance(value, dict) and all(type(item) is int and item >= 1 for item in value.values())
    return type(value) is _PYTHON_TYPE[kind]


def check_fields(body: Mapping[str, Any], required: Mapping[str, str], optional: Mapping[str, str]) -> None:
    """Fields that must be there, and those that may, are of their kinds; others are allowed. Raises LedgerError."""
    for name in required:
        if name not in body:
            raise LedgerError(f"body lacks {name!r}")
    for name, wanted in {**optional, **required}.items():
        if name in body and not is_kind(body[name], wanted):
            raise LedgerError(f"body.{name} is not a {wanted}: {str(body[name])[:80]!r}")


def check_update(organization: str, body: Mapping[str, Any]) -> None:
    """Only a removal has an update stated again. Raises LedgerError."""
    if body.get("kept") and "replay" not in body:
        raise LedgerError("is kept, and of no removal")


def check_audit(organization: str, body: Mapping[str, Any]) -> None:
    """It is about another organization than the one that signs it. Raises LedgerError."""
    if check_name(body["organization"]) == organization or organization == COORDINATOR:
        raise LedgerError("another organization than the audited one signs it")


def check_decision(organization: str, body: Mapping[str, Any]) -> None:
    """The effort is a known one. Raises LedgerError."""
    if body["effort"] not in EFFORTS:
        raise LedgerError(f"effort {body['effort']!r} is none of {', '.join(sorted(EFFORTS))}")


def check_key_rotation(organization: str, body: Mapping[str, Any]) -> None:
    """Key and key id belong together, and it is not the log's own key. Raises LedgerError."""
    if organization == COORDINATOR:
        raise LedgerError("a log keeps its key: the coordinator's new key signs new runs")
    _check_new_key(body)


def check_key_decision(organization: str, body: Mapping[str, Any]) -> None:
    """What others decided on an organization's key: each approval names its key. Raises LedgerError."""
    if check_name(body["organization"]) == COORDINATOR:
        raise LedgerError("a log keeps its key: nobody revokes or replaces the coordinator's in a run")
    for entry in body["approvals"]:
        if not isinstance(entry, dict) or entry.keys() != {"keyid", "sig"} or not is_digest(entry["keyid"]):
            raise LedgerError("every approval needs exactly keyid (digest) and sig")
    if "public_key" in body:
        _check_new_key(body)


def _check_new_key(body: Mapping[str, Any]) -> None:
    if key_id_of(body["public_key"]) != body["key_id"]:
        raise LedgerError("key_id is not the digest of public_key")


def check_merge(organization: str, body: Mapping[str, Any]) -> None:
    """Inputs say whose update they are, and may say how much of it was taken (`share`); a merge of nothing leaves the
    adapter as it is. Raises LedgerError."""
    for entry in body["inputs"]:
        if (
            not isinstance(entry, dict)
            or not is_kind(entry.get("organization"), STR)
            or not is_digest(entry.get("update"))
            or not is_kind(entry.get("weight"), INT)
        ):
            raise LedgerError("every input needs organization, update (digest) and weight (int)")
        if "share" in entry and not (isinstance(entry["share"], str) and _SHARE.fullmatch(entry["share"])):
            raise LedgerError(f"share {str(entry['share'])[:80]!r} is no number from 0 to 1 with six decimals")
    if not body["inputs"] and body["adapter"] != body["base"]:
        raise LedgerError("takes no update, and names another adapter than its base")
    if "transcript" in body:
        # More than two thirds of a session's members: with fewer, a coordinator can show two groups different lists.
        summed, threshold = len(body["inputs"]), body.get("threshold", 0)
        if not 3 <= threshold <= summed or 2 * summed >= 3 * threshold:
            raise LedgerError(f"is a secure sum of {summed} updates with the threshold {threshold}: that is not safe")


def check_shard_manifest(organization: str, body: Mapping[str, Any]) -> None:
    """A shard of a cohort, or the organization's test records, by the organization itself. Raises LedgerError."""
    if organization == COORDINATOR:
        raise LedgerError("the organization that holds the shard signs it")
    if body["split"] not in SPLITS or (body["split"] == "test") != (body["cohort"] == ""):
        raise LedgerError("split is train, of a cohort, or test, where cohort is empty")


def check_unlearn_request(organization: str, body: Mapping[str, Any]) -> None:
    """A known scope, and signed by whose records they are. Raises LedgerError."""
    check_name(body["organization"])
    if body["scope"] not in SCOPES:
        raise LedgerError(f"scope {body['scope'][:80]!r} is none of {', '.join(SCOPES)}")
    allowed = {body["organization"], *([COORDINATOR] if body["scope"] == "organization" else [])}
    if organization not in allowed:
        raise LedgerError(f"is about records of {body['organization']}, who must sign it")


def check_unlearn_withdrawn(organization: str, body: Mapping[str, Any]) -> None:
    """It serves a request. Raises LedgerError."""
    if not body["requests"]:
        raise LedgerError("serves no request")


def check_unlearn_exec(organization: str, body: Mapping[str, Any]) -> None:
    """It serves a request, and replays no more than there was. Raises LedgerError."""
    if not body["requests"]:
        raise LedgerError("serves no request")
    if body["steps_replayed"] > body["steps_total"]:
        raise LedgerError(f"{body['steps_replayed']} of {body['steps_total']} steps were replayed")
