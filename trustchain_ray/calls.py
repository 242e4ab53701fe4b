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


def get(reference: Any, timeout: float | None = None) -> Any:
    """The answer of a call; raises what the call raised, or TimeoutError after `timeout` seconds."""
    if isinstance(reference, Answer):
        if reference.error is not None:
            raise reference.error
        return reference.value
    return ray.get(reference, timeout=timeout)


def wait(references: Sequence[Any], timeout: float) -> tuple[list[Any], list[Any]]:
    """Calls that have answered, and those that have not after `timeout` seconds."""
    here = [reference for reference in references if isinstance(reference, Answer)]
    if there := [reference for reference in references if not isinstance(reference, Answer)]:
        done, late = ray.wait(there, num_returns=len(there), timeout=timeout)
        return [*here, *done], list(late)
    return here, []
