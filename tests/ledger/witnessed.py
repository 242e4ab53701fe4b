"""A finished run whose tree heads its organizations cosigned, as real organizations would."""

from pathlib import Path

from fake_run import ORGANIZATIONS, FakeRun

from ledger.witness import Witness


def cosign(run: FakeRun, *names: str) -> None:
    """Let organizations cosign every head that they did not see yet; each remembers what it saw."""
    service = run.service
    for head, entry in service.signed_heads():
        for name in names:
            witness = Witness(run.identities[name], run.dir.parent / "witnesses" / name)
            last = witness.latest(service.run)
            before = last.size if last is not None else 0
            if head.size > before:
                proof = service.consistency_proof(before, head.size) if before else []
                line = witness.cosign(service.run, service.log_key, entry.checkpoint, proof)
                assert service.cosign(head.seq, [line]) == []


def witnessed_run(base: Path, *, rounds: int = 2, anchored: bool = True) -> FakeRun:
    """Sealed; the bank cosigned every head, the clinic all but the newest."""
    run = FakeRun(base / "run", base / "keys")
    run.open(anchored=anchored)
    run.submit(run.opening())
    for round_ in range(1, rounds + 1):
        run.submit(run.round(round_))
        cosign(run, *ORGANIZATIONS)
    run.submit(run.complete(rounds))
    run.service.sign_head()
    cosign(run, "bank")
    run.service.seal()
    return run
