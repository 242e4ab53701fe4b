"""Verification of the certificates of removals that lie in a run."""

from ledger import layout
from ledger.audit import Audit, Fault, Skip
from ledger.certificate import parse
from ledger.errors import LedgerError
from ledger.verify_certificate import RunLog, verify_certificate


def check_certificates(audit: Audit) -> str:
    """Every certificate holds, by the run's own log; every removal that the log calls executed has one."""
    names = layout.certificate_files(audit.run_dir)
    whole = audit.whole_log and bool(audit.manifest)
    log = RunLog(audit.events, audit.manifest, audit.merkle) if whole else None
    known: set[str] = set()
    for name in names:
        try:
            data = layout.read_file(audit.run_dir, name)
        except LedgerError as error:
            raise Fault(name, str(error)) from None
        report = verify_certificate(
            data, name=name, trust=audit.options.trust, log=log, min_auditors=audit.options.min_auditors
        )
        if report.failure is not None:
            raise Fault(name, f"{report.failure.name}: {report.failure.detail}")
        certificate = parse(data)
        if audit.run and certificate.removal.run != audit.run:
            raise Fault(name, f"is of run {certificate.removal.run!r}, the log of {audit.run!r}")
        known.add(certificate.digest)
        skipped = [check.name for check in report.checks if check.status == "skipped" and check.name != "anchor"]
        if skipped:
            audit.notes.append(f"of {name}: {', '.join(skipped)}")
    if lacking := sorted(position for digest, position in audit.links.executed.items() if digest not in known):
        if audit.seal is not None and not audit.options.partial:
            raise Fault(layout.CERTIFICATES, f"has no certificate of the removal that event {lacking[0]} executed")
        audit.notes.append(f"{len(lacking)} removals that were executed: their certificates are not here")
    if not names and (lacking or not whole):
        raise Skip("no certificate of a removal is here")
    if audit.links.under_way:
        audit.notes.append("a removal that is under way: it is withdrawn, and has no certificate yet")
    return f"{len(names)} certificates hold" if names else "nothing was removed from this run"
