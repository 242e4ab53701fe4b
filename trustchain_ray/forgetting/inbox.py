"""Requests that reach a run while it trains: the training process takes them up between two rounds.

Format
------
`removals/inbox/<id>.json` in the run directory, mode 0600: what is asked for, by ids. The process that trains deletes
it and writes `removals/outcomes/<id>.json`: the result, or why it was refused.
"""

import json
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ledger.canonical import canonical_json, write_atomic
from trustchain_ray.errors import TrustChainError, UsageError
from trustchain_ray.forgetting.plan import Ask
from trustchain_ray.run_directory import explain_writes

Handle = Callable[[list[Ask], str, dict[str, str]], dict[str, Any]]
"""Carries a request out; its result."""


def leave(run: Path, asks: Sequence[Ask], method: str, options: Mapping[str, str]) -> str:
    """Leave a request for the process that trains; its id."""
    name = secrets.token_hex(8)
    folder = run / "removals" / "inbox"
    with explain_writes(folder):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        asked = [{**asdict(ask), "ids": list(ask.ids)} for ask in asks]
        content = {"asks": asked, "method": method, "options": dict(options)}
        write_atomic(folder / f"{name}.json", canonical_json(content), 0o600)
    return name


def withdraw_request(run: Path, name: str) -> bool:
    """Take a request back that nobody has taken up; whether it was still there."""
    path = run / "removals" / "inbox" / f"{name}.json"
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    return True


def outcome(run: Path, name: str) -> dict[str, Any] | None:
    """What became of a request; None: nothing yet.

    Raises
    ------
    UsageError, TrustChainError
        It was refused, or failed.
    """
    path = run / "removals" / "outcomes" / f"{name}.json"
    if not path.is_file():
        return None
    said: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if "refused" in said:
        raise (UsageError if said["usage"] else TrustChainError)(said["refused"])
    return said


def take_up(run: Path, handle: Handle, begun: Callable[[], bool]) -> int:
    """Carry out all requests that wait, in the order in which they came; how many there were.

    A request that fails is refused with the reason; the removal itself, once `begun`, must be finished.

    Raises
    ------
    TrustChainError
        A removal was begun and could not be carried out: training cannot go on.
    """
    inbox = (run / "removals" / "inbox").glob("*.json")
    waiting = sorted(inbox, key=lambda path: (path.stat().st_mtime_ns, path.name))
    for path in waiting:
        said: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        asks = [Ask(**{**ask, "ids": tuple(ask["ids"])}) for ask in said["asks"]]
        try:
            result = handle(asks, said["method"], said["options"])
        except UsageError as error:
            result = {"refused": str(error), "usage": True}
        except TrustChainError as error:
            result = {"refused": str(error), "usage": False}
            if begun():
                _answer(run, path, result)
                raise
        _answer(run, path, result)
    return len(waiting)


def _answer(run: Path, path: Path, result: dict[str, Any]) -> None:
    folder = run / "removals" / "outcomes"
    with explain_writes(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / path.name, json.dumps(result).encode())
        path.unlink(missing_ok=True)


def await_outcome(run: Path, name: str, is_free: Callable[[], bool], poll_s: float = 0.5) -> dict[str, Any] | None:
    """Wait for the outcome of a request.

    Parameters
    ----------
    is_free
        Whether the process that trained has ended.

    Returns
    -------
    dict or None
        The result; None: that process ended without taking the request up, which is taken back.
    """
    while True:
        if (result := outcome(run, name)) is not None:
            return result
        if is_free():
            if withdraw_request(run, name):
                return None
            raise TrustChainError(f"{run}: the training process ended while it worked on the request; run it again")
        time.sleep(poll_s)
