"""Go through the steps of a check one after the other, and stop at the first that fails."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from ledger.audit import Fault, Skip
from ledger.errors import LedgerError
from ledger.report import Check, Report


class _Noted(Protocol):
    notes: list[str]


State = TypeVar("State", bound=_Noted)


@dataclass(frozen=True)
class Step(Generic[State]):
    """A step: its name, what it does, what is known once it is in order, and the file that it is mainly about (empty:
    the target itself)."""

    name: str
    run: Callable[[State], str]
    shows: str
    about: str = ""


def go_through(
    steps: Sequence[Step[State]], state: State, report: Report, on_check: Callable[[Check], None] | None = None
) -> None:
    """Run the steps on a state and write the report; ``notes`` of the state is what a step could not check."""
    for number, step in enumerate(steps):
        check = _outcome(step, state, step.about or report.target)
        report.checks.append(check)
        if check.status == "ok":
            report.checked.append(step.shows)
        elif check.status == "skipped":
            report.not_checked.append(f"{step.shows}: {check.detail}")
        report.not_checked += state.notes
        state.notes.clear()
        if on_check is not None:
            on_check(check)
        if check.status == "fail":
            report.not_checked += [later.shows for later in steps[number + 1 :]]
            return


def _outcome(step: Step[State], state: State, file: str) -> Check:
    try:
        return Check(step.name, "ok", step.run(state))
    except Skip as skip:
        return Check(step.name, "skipped", str(skip))
    except Fault as fault:
        return Check(step.name, "fail", str(fault), fault.file)
    except LedgerError as error:
        return Check(step.name, "fail", str(error), file)
    except Exception as error:  # whatever garbage may still set off is a finding about the file
        about = f"{step.about}: " if step.about else ""
        return Check(step.name, "fail", f"{about}cannot be checked: {type(error).__name__}: {error}", file)
