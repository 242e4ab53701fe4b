"""Calling actors, or objects in this process in their place: short work needs no Ray cluster."""

from collections.abc import Sequence
from typing import Any

import ray


class Answer:
    """The result of a call in this process, in place of an object reference."""

    def __init__(self, value: Any = None, error: Exception | None = None) -> None:
        self.value, self.error = value, error


class Local:
    """An object that is called like an actor: `local.method.remote(...)` runs at once and gives an :class:`Answer`."""

    def __init__(self, thing: Any) -> None:
        self._thing = thing

    def __getattr__(self, name: str) -> "_Method":
        return _Method(getattr(self._thing, name))


class _Method:
    def __init__(self, method: Any) -> None:
        self._method = method

    def remote(self, *args: Any) -> Answer:
        try:
            return Answer(self._method(*args))
        except Exception as error:  # raised where the answer is taken, as with an actor
            return Answer(error=error)


def value(thing: Any) -> Any:
    """What a reference stands for; anything else is itself."""
    return get(thing) if isinstance(thing, Answer | ray.ObjectRef) else thing


def get(reference: Any, timeout: float | None = None) -> Any:
    """The answer of a call; raises what the call raised, or TimeoutError after `timeout` seconds."""
    if isinstance(reference, Answer):
        if reference.error is not None:
            raise reference.error
        return reference.value
    return ray.get(reference, timeout=timeout)


def wait(references: Sequence[Any], timeout: float, least: int | None = None) -> tuple[list[Any], list[Any]]:
    """Calls that have answered, as soon as `least` (default: all) have, or after `timeout` seconds; and the others."""
    least = len(references) if least is None else least
    here: list[Any] = [reference for reference in references if isinstance(reference, Answer)]
    there = [reference for reference in references if not isinstance(reference, Answer)]
    if there and len(here) < least:
        done, there = ray.wait(there, num_returns=least - len(here), timeout=timeout)
        here += done
    return here, list(there)


def reason_of(error: Exception) -> str:
    """The cause of a remote failure in one line."""
    cause = getattr(error, "cause", None) or error
    lines = [line for line in str(cause).strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(cause).__name__
