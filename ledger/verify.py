"""Check a run directory or a bundle: ``verify_run`` goes through the steps and stops at the first that fails.

Needs neither Ray nor torch, and changes no file of the run.
"""

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ledger import (
    bundle,
    layout,
    verify_anchors,
    verify_files,
    verify_log,
    verify_private,
    verify_removals,
    verify_trust,
)
from ledger.audit import Audit, Fault, Options, Skip
from ledger.errors import LedgerError
from ledger.private import PrivateChain
from ledger.report import Check, Report


@dataclass(frozen=True)
class Step:
    """A step: its name, the file it is mainly about, what it does, and what is known once it is in order."""

    name: str
    about: str
    run: Callable[[Audit], str]
    shows: str


STEPS = [
    Step("seal", layout.SEAL, verify_files.check_seal,
         "the files are those with which the coordinator closed the run"),
    Step("log", layout.LOG, verify_log.check_log,
         "every event is signed by who states it, and has its place in the log"),
    Step("manifest", layout.MANIFEST, verify_files.check_manifest,
         "manifest and configuration are those with which the run began"),
    Step("identities", layout.IDENTITIES, verify_files.check_identities,
         "the identity documents are those that were registered"),
    Step("keys", layout.LOG, verify_trust.check_keys,
         "the keys belong to the organizations that they name"),
    Step("links", layout.LOG, verify_log.check_links,
         "every merge took only updates that members signed, each on the adapter before it"),
    Step("rounds", "rounds", verify_files.check_rounds,
         "the adapters of the rounds are those that were logged"),
    Step("model", layout.MODEL, verify_files.check_model,
         "the model is the one that was released"),
    Step("tree heads", layout.ANCHORS, verify_anchors.check_heads,
         "the log only grew from one signed checkpoint to the next"),
    Step("witnesses", layout.ANCHORS, verify_anchors.check_witnesses,
         "other organizations saw the same log"),
    Step("anchors", layout.BLOCKS, verify_anchors.check_anchors,
         "the public chain has the checkpoints"),
    Step("private chain", layout.PRIVATE, verify_private.check_private,
         "the organizations' private chain holds the same log"),
    Step("certificates", layout.CERTIFICATES, verify_removals.check_certificates,
         "every removal that was executed has a certificate, and it holds"),
]  # fmt: skip
"""Each may rely on those before it."""

OWN_MODEL = Step("your model", layout.MODEL, verify_files.check_own_model,
                 "the model that you have is the released one")  # fmt: skip


def verify_run(
    target: str | Path,
    on_check: Callable[[Check], None] | None = None,
    *,
    partial: bool = False,
    trust: Mapping[str, str] | None = None,
    model: str | Path | None = None,
    min_witnesses: int = 0,
    min_auditors: int = 0,
    rpc_url: str | None = None,
    fabric: Callable[[str], PrivateChain] | None = None,
) -> Report:
    """Check everything that a run directory, or a bundle, lets a stranger check.

    Parameters
    ----------
    target
        A run directory, or a file of :func:`ledger.bundle.export`.
    on_check
        Called with each check when it is done.
    partial
        The directory is a part of a run: what needs a missing file is skipped. A bundle is always a part.
    trust
        Public keys in hex by organization, known from elsewhere (:func:`ledger.verify_trust.read_trust`).
    model
        A model folder or adapter file that is to be the released one.
    min_witnesses
        Organizations that must have cosigned the newest tree head; with ``trust``, only those named there count.
    min_auditors
        Organizations, other than its issuers, that must have counter-signed every certificate; counted likewise.
    rpc_url
        A node of the public chain to ask. It must answer, then.
    fabric
        Opens the private chain for the run of a given id, to compare the log with. It must answer, then.

    Returns
    -------
    Report
        Never raises on what the files hold: that makes a failed check.
    """
    path = Path(target)
    report = Report(str(target), "bundle" if path.is_file() else "run")
    with contextlib.ExitStack() as resources:
        if report.kind == "bundle":
            partial = True
            try:
                path = resources.enter_context(unpacked(path))
            except LedgerError as error:
                report.checks.append(Check("bundle", "fail", str(error), str(target)))
                report.not_checked += [step.shows for step in STEPS]
                if on_check is not None:
                    on_check(report.checks[0])
                return report
        own = Path(model) if model is not None else None
        audit = Audit(path, Options(partial, trust, own, min_witnesses, min_auditors, rpc_url, fabric))
        _go_through(STEPS + [OWN_MODEL] * (own is not None), audit, report, on_check)
    return report


@contextlib.contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """Content of a bundle in a folder that is gone afterwards. Raises LedgerError as :func:`ledger.bundle.unpack`."""
    with tempfile.TemporaryDirectory(prefix="trustchain-bundle-") as folder:
        bundle.unpack(path, folder)
        yield Path(folder)


def _go_through(steps: list[Step], audit: Audit, report: Report, on_check: Callable[[Check], None] | None) -> None:
    for number, step in enumerate(steps):
        check = _outcome(step, audit)
        report.checks.append(check)
        if check.status == "ok":
            report.checked.append(step.shows)
        elif check.status == "skipped":
            report.not_checked.append(f"{step.shows}: {check.detail}")
        report.not_checked += audit.notes
        audit.notes.clear()
        if on_check is not None:
            on_check(check)
        if check.status == "fail":
            report.not_checked += [later.shows for later in steps[number + 1 :]]
            return


def _outcome(step: Step, audit: Audit) -> Check:
    try:
        return Check(step.name, "ok", step.run(audit))
    except Skip as skip:
        return Check(step.name, "skipped", str(skip))
    except Fault as fault:
        return Check(step.name, "fail", str(fault), fault.file)
    except LedgerError as error:
        return Check(step.name, "fail", str(error), step.about)
    except Exception as error:  # whatever garbage in a file may still set off is a finding about that file
        detail = f"{step.about}: cannot be checked: {type(error).__name__}: {error}"
        return Check(step.name, "fail", detail, step.about)
