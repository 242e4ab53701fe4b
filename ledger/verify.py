"""Check a run directory or a bundle: ``verify_run`` goes through the steps and stops at the first that fails.

Needs neither Ray nor torch, and changes no file of the run.
"""

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from ledger import (
    bundle,
    layout,
    verify_anchors,
    verify_approvals,
    verify_files,
    verify_log,
    verify_private,
    verify_removals,
    verify_trust,
)
from ledger.audit import Audit, Options
from ledger.errors import LedgerError
from ledger.private import PrivateChain
from ledger.report import Check, Report
from ledger.steps import Step, go_through

STEPS: list[Step[Audit]] = [
    Step("seal", verify_files.check_seal,
         "the files are those with which the coordinator closed the run", layout.SEAL),
    Step("log", verify_log.check_log,
         "every event is signed by who states it, and has its place in the log", layout.LOG),
    Step("manifest", verify_files.check_manifest,
         "manifest and configuration are those with which the run began", layout.MANIFEST),
    Step("identities", verify_files.check_identities,
         "the identity documents are those that were registered", layout.IDENTITIES),
    Step("keys", verify_trust.check_keys,
         "the keys belong to the organizations that they name", layout.LOG),
    Step("links", verify_log.check_links,
         "every merge took only updates that members signed, each on the adapter before it", layout.LOG),
    Step("rounds", verify_files.check_rounds,
         "the adapters of the rounds are those that were logged", "rounds"),
    Step("model", verify_files.check_model,
         "the model is the one that was released", layout.MODEL),
    Step("tree heads", verify_anchors.check_heads,
         "the log only grew from one signed checkpoint to the next", layout.ANCHORS),
    Step("witnesses", verify_anchors.check_witnesses,
         "other organizations saw the same log", layout.ANCHORS),
    Step("anchors", verify_anchors.check_anchors,
         "the public chain has the checkpoints", layout.BLOCKS),
    Step("private chain", verify_private.check_private,
         "the organizations' private chain holds the same log", layout.PRIVATE),
    Step("certificates", verify_removals.check_certificates,
         "every removal that was executed has a certificate, and it holds", layout.CERTIFICATES),
]  # fmt: skip
"""Each may rely on those before it."""

APPROVALS = Step("approvals", verify_approvals.check_approvals,
                 "no chain that was asked revokes the model that the run releases", layout.LOG)  # fmt: skip
"""For a run with certificates of removals."""

OWN_MODEL = Step("your model", verify_files.check_own_model,
                 "the model that you have is the released one", layout.MODEL)  # fmt: skip


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
        removals = [APPROVALS] * bool(layout.certificate_files(path))
        go_through(STEPS + removals + [OWN_MODEL] * (own is not None), audit, report, on_check)
    return report


@contextlib.contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """Content of a bundle in a folder that is gone afterwards. Raises LedgerError as :func:`ledger.bundle.unpack`."""
    with tempfile.TemporaryDirectory(prefix="trustchain-bundle-") as folder:
        bundle.unpack(path, folder)
        yield Path(folder)
