"""Check a run directory: ``verify_run`` goes through the steps and stops at the first that fails.

Needs neither Ray nor torch, and changes no file of the run.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from ledger import layout, verify_anchors, verify_files, verify_log
from ledger.audit import Audit, Fault, Skip
from ledger.errors import LedgerError

Status = Literal["ok", "fail", "skipped"]

STEPS: list[tuple[str, str, Callable[[Audit], str]]] = [
    ("seal", layout.SEAL, verify_files.check_seal),
    ("log", layout.LOG, verify_log.check_log),
    ("manifest", layout.MANIFEST, verify_files.check_manifest),
    ("identities", layout.IDENTITIES, verify_files.check_identities),
    ("links", layout.LOG, verify_log.check_links),
    ("rounds", "rounds", verify_files.check_rounds),
    ("model", layout.MODEL, verify_files.check_model),
    ("tree heads", layout.ANCHORS, verify_anchors.check_heads),
    ("anchors", layout.BLOCKS, verify_anchors.check_anchors),
]
"""Name, the file it is mainly about, and the step; each may rely on those before it."""


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
    """Outcome of :func:`verify_run`; steps behind a failure are not reached and not listed."""

    run_dir: str
    checks: list[Check] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong; look at the skipped checks, too."""
        return self.failure is None

    @property
    def failure(self) -> Check | None:
        """The check that failed."""
        return next((check for check in self.checks if check.status == "fail"), None)

    def to_dict(self) -> dict[str, Any]:
        """For JSON: ``run_dir``, ``ok``, ``failure``, ``checks``."""
        return {
            "run_dir": self.run_dir,
            "ok": self.ok,
            "failure": asdict(self.failure) if self.failure else None,
            "checks": [asdict(check) for check in self.checks],
        }


def verify_run(run_dir: str | Path, on_check: Callable[[Check], None] | None = None) -> Report:
    """Check everything that a run directory lets a stranger check.

    Parameters
    ----------
    run_dir
        The run directory.
    on_check
        Called with each check when it is done.

    Returns
    -------
    Report
        Never raises on what the files hold: that makes a failed check.
    """
    audit = Audit(Path(run_dir))
    report = Report(str(run_dir))
    for name, about, step in STEPS:
        try:
            check = Check(name, "ok", step(audit))
        except Skip as skip:
            check = Check(name, "skipped", str(skip))
        except Fault as fault:
            check = Check(name, "fail", str(fault), fault.file)
        except LedgerError as error:
            check = Check(name, "fail", str(error), about)
        except Exception as error:  # whatever garbage in a file may still set off is a finding about that file
            check = Check(name, "fail", f"{about}: cannot be checked: {type(error).__name__}: {error}", about)
        report.checks.append(check)
        if on_check is not None:
            on_check(check)
        if check.status == "fail":
            break
    return report
