"""What a verification found."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Status = Literal["ok", "fail", "skipped"]
Kind = Literal["run", "bundle", "certificate", "receipt"]


@dataclass(frozen=True)
class Check:
    """Outcome of one step.

    Attributes
    ----------
    name
        The step.
    status
        ``ok``, ``fail`` or ``skipped`` (could not be checked, or there is nothing to check).
    detail
        What was checked, or what is wrong.
    file
        The file that is at fault, relative to the run directory.
    """

    name: str
    status: Status
    detail: str
    file: str | None = None


@dataclass
class Report:
    """Outcome of a verification; steps behind a failure are not reached and not listed in ``checks``.

    Attributes
    ----------
    target
        What was checked.
    kind
        ``run`` (a directory), ``bundle``, ``certificate`` or ``receipt`` (files).
    checks
        Outcomes of the steps, in order.
    checked
        What is known now.
    not_checked
        What is not known, and why.
    """

    target: str
    kind: Kind = "run"
    checks: list[Check] = field(default_factory=list)
    checked: list[str] = field(default_factory=list)
    not_checked: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong; look at ``not_checked``, too."""
        return self.failure is None

    @property
    def failure(self) -> Check | None:
        """The check that failed."""
        return next((check for check in self.checks if check.status == "fail"), None)

    def to_dict(self) -> dict[str, Any]:
        """For JSON: ``target``, ``kind``, ``ok``, ``failure``, ``checks``, ``checked``, ``not_checked``."""
        return {
            "target": self.target,
            "kind": self.kind,
            "ok": self.ok,
            "failure": asdict(self.failure) if self.failure else None,
            "checks": [asdict(check) for check in self.checks],
            "checked": self.checked,
            "not_checked": self.not_checked,
        }
