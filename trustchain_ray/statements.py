"""What the events of a round say. Their signatures were checked when they were accepted."""

import base64
import json
from collections.abc import Mapping
from typing import Any

from ledger import events as ev


def statement_of(envelope: Mapping[str, Any]) -> dict[str, Any]:
    """What an event's envelope says."""
    statement: dict[str, Any] = json.loads(base64.b64decode(envelope["payload"]))
    return statement


def newest_merges(content: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Bodies of the MERGE events of a round that hold, by cohort.

    Parameters
    ----------
    content
        What `round.json` holds: a replay that an organization broke off can leave an earlier merge of a cohort in it.
    """
    said = [statement_of(envelope) for envelope in content["events"]]
    return {s["body"]["cohort"]: s["body"] for s in said if s["type"] == ev.MERGE}
