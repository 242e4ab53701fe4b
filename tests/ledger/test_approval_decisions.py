"""What there is to decide about a run: read from its log, and refused where that does not bear it out."""

from pathlib import Path

import pytest
from removal_run import Ask, CohortRun, RemovalRun, removal_run

from ledger.certificate import parse
from ledger.decisions import (
    CERTIFICATE,
    RELEASE,
    REVOCATION,
    all_decisions,
    newest_certificate,
    of_certificate,
    of_model,
    reason_of,
)
from ledger.errors import LedgerError
from ledger.events import MODEL_RELEASE, MODEL_REVOKED, UNLEARN_EXEC
from ledger.log import SqliteLog
from ledger.merkle import leaf_hash
from ledger.verify_certificate import RunLog
from ledger.verify_document import read_run_log


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> RemovalRun:
    return removal_run(tmp_path_factory.mktemp("decisions"))


@pytest.fixture(scope="module")
def log(made: RemovalRun) -> RunLog:
    return read_run_log(made.run.dir)


def test_a_certificate_asks_for_itself_and_for_the_models_that_it_withdraws(made: RemovalRun, log: RunLog) -> None:
    found = of_certificate(log, made.certificate, "a.json", made.keys, 1)
    digest, removal = parse(made.certificate).digest, made.removal
    assert [(one.kind, one.digest) for one in found] == [
        (CERTIFICATE, digest), *((REVOCATION, model) for model in removal.withdrawn),
    ]  # fmt: skip
    assert [log.events[one.event].type for one in found] == [UNLEARN_EXEC, *[MODEL_REVOKED] * len(removal.withdrawn)]
    assert newest_certificate(log) == digest


def test_a_certificate_that_does_not_verify_is_not_approved(made: RemovalRun, log: RunLog) -> None:
    place = made.certificate.index(b'"sig":"') + 12
    wrong = made.certificate[:place] + (b"A" if made.certificate[place:][:1] != b"A" else b"B")
    with pytest.raises(LedgerError, match=r"^a\.json: does not verify .*; not approved$"):
        of_certificate(log, wrong + made.certificate[place + 1 :], "a.json")
    with pytest.raises(LedgerError, match=r"\(signatures\): is counter-signed by 1 organizations that count, not 2"):
        of_certificate(log, made.certificate, "a.json", min_auditors=2)
    other = dict(made.keys, bank=made.keys["clinic"])
    with pytest.raises(LedgerError, match="another key of bank than the one that you trust"):
        of_certificate(log, made.certificate, "a.json", other)


def test_everything_that_is_to_be_decided(made: RemovalRun, log: RunLog) -> None:
    found = all_decisions(log)
    assert [one.event for one in found] == sorted(one.event for one in found)
    assert {(one.kind, one.digest) for one in found} == {
        (CERTIFICATE, parse(made.certificate).digest),
        (RELEASE, made.removal.model["new"]),
        *((REVOCATION, model) for model in made.removal.withdrawn),
    }


def test_the_reason_is_the_leaf_hash_of_the_event(made: RemovalRun, log: RunLog) -> None:
    revoked = of_model(log, REVOCATION, made.removal.model["old"])
    file = SqliteLog(made.run.dir / "ledger" / "log.sqlite", read_only=True)
    try:
        assert reason_of(log, revoked) == leaf_hash(file.leaf(revoked.event)).hex()
    finally:
        file.close()


def test_a_model_is_named_by_its_first_digits(made: RemovalRun, log: RunLog) -> None:
    old, new = made.removal.model["old"], made.removal.model["new"]
    assert of_model(log, REVOCATION, old[:8]).digest == old
    assert of_model(log, RELEASE) == of_model(log, RELEASE, new)
    assert log.events[of_model(log, RELEASE).event].type == MODEL_RELEASE
    for kind, digest, reason in (
        (REVOCATION, "", "no model is named"),
        (REVOCATION, new, "0 of the log's MODEL_REVOKED events fit"),
        (RELEASE, "zz", "0 of the log's MODEL_RELEASE events fit"),
        (RELEASE, old, "the log revokes it"),
    ):
        with pytest.raises(LedgerError, match=reason):
            of_model(log, kind, digest)


def test_a_run_without_a_removal_has_no_certificate(tmp_path: Path) -> None:
    run = CohortRun(tmp_path)
    run.begin()
    log = read_run_log(run.dir)
    with pytest.raises(LedgerError, match="no removal that was executed"):
        newest_certificate(log)
    assert all_decisions(log) == []
    run.submit([run.released(run.newest())])
    run.withdraw([Ask("bank", ("bank-3",))], {"all": 2})
    assert [one.kind for one in all_decisions(read_run_log(run.dir))] == [REVOCATION]  # nothing is released now
