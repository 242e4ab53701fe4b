"""Check a file that stands for itself: a certificate of removal, or a receipt; with the run's log where it is here."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ledger import layout, verify_files, verify_log, verify_trust
from ledger.audit import Audit, Options, Skip
from ledger.certificate import MAX_BYTES
from ledger.errors import LedgerError
from ledger.receipts import check_receipt, is_receipt
from ledger.report import Check, Kind, Report
from ledger.verify import unpacked
from ledger.verify_certificate import RunLog, verify_certificate


def kind_of(path: Path) -> Kind:
    """What a file or folder is, by its first bytes; a damaged certificate counts as one."""
    if path.is_dir():
        return "run"
    data = _read(path, 1 << 20)
    if not data.startswith(b"{"):
        return "bundle"
    return "receipt" if is_receipt(data) else "certificate"


def read_run_log(target: str | Path, trust: Mapping[str, str] | None = None) -> RunLog:
    """The log of a run, verified, with its manifest; its other files are not looked at.

    Parameters
    ----------
    target
        A run directory, or a bundle of the whole log.
    trust
        Public keys in hex by organization, known from elsewhere.

    Raises
    ------
    LedgerError
        The log is not here as a whole, or something is wrong with it.
    """
    path = Path(target)
    with contextlib.ExitStack() as resources:
        if path.is_file():
            path = resources.enter_context(unpacked(path))
        audit = Audit(path, Options(trust=trust))
        for step in (verify_log.check_log, verify_files.check_manifest, verify_trust.check_keys,
                     verify_log.check_links):  # fmt: skip
            try:
                step(audit)
            except Skip:
                continue
            except LedgerError as error:
                raise LedgerError(f"{target}: {error}") from None
    return RunLog(audit.events, audit.manifest, audit.merkle)


def run_of(path: Path) -> Path | None:
    """The run in whose folder of certificates a file lies."""
    folder = path.absolute().parent
    return folder.parent if folder.name == layout.CERTIFICATES and (folder.parent / layout.LOG).exists() else None


def verify_document(
    path: Path,
    on_check: Callable[[Check], None] | None = None,
    *,
    run: str | Path | None = None,
    certificates: Sequence[str | Path] = (),
    trust: Mapping[str, str] | None = None,
    min_auditors: int = 0,
    rpc_url: str | None = None,
) -> Report:
    """Check a certificate, or a receipt and whether its records are in the run or removed.

    Parameters
    ----------
    path
        The file.
    on_check
        Called with each check when it is done.
    run
        The run, or a bundle of its whole log. Default: the run in which the file, or a certificate, lies.
    certificates
        For a receipt: certificates that are to remove all of its records. Those that lie in the run count besides.
    trust
        Public keys in hex by organization, known from elsewhere.
    min_auditors
        Organizations, other than the issuers, that must have counter-signed a certificate.
    rpc_url
        A node of the public chain to ask for a certificate's anchor.

    Returns
    -------
    Report
        Never raises on what the files hold: that makes a failed check.
    """
    kind = kind_of(path)
    found = [run_of(Path(name)) for name in (path, *certificates)]
    place = run if run is not None else next((folder for folder in found if folder is not None), None)
    try:
        log = None if place is None else read_run_log(place, trust)
        data = _read(path, MAX_BYTES + 1)
        if kind == "receipt":
            shown = [_read(Path(name), MAX_BYTES + 1) for name in certificates]
            lying = [] if place is None else _certificates_in(Path(place))
    except LedgerError as error:
        report = Report(str(path), kind, [Check("run", "fail", str(error), str(place or path))])
        if on_check is not None:
            on_check(report.checks[0])
        return report
    if kind == "receipt":
        return check_receipt(
            data, name=str(path), trust=trust, log=log, certificates=shown, of_run=lying, min_auditors=min_auditors,
            on_check=on_check,
        )  # fmt: skip
    return verify_certificate(
        data, name=str(path), trust=trust, log=log, min_auditors=min_auditors, rpc_url=rpc_url, on_check=on_check
    )


def _certificates_in(run: Path) -> list[bytes]:
    with contextlib.ExitStack() as resources:
        folder = resources.enter_context(unpacked(run)) if run.is_file() else run
        return [layout.read_file(folder, name) for name in layout.certificate_files(folder)]


def _read(path: Path, count: int) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(count)
    except OSError as error:
        raise LedgerError(f"{path}: cannot be read: {error.strerror}") from None
