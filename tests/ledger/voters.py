"""A run whose model the members of a consortium released on the contract, and from which two records are removed."""

from dataclasses import dataclass
from pathlib import Path

from anvil import Anvil
from consortium import COORDINATOR, KEYS, PATIENT
from fake_run import RUN
from removal_run import COHORT, FIRST_ROUND, FORGOTTEN, Ask, CohortRun, Withdrawn, model_digest

from ledger.contract_approvals import ContractBallot
from ledger.decisions import RELEASE, Decision, Standing, of_model
from ledger.federation import Federation
from ledger.keys_ethereum import LocalKey
from ledger.rpc_chain import RpcChain
from ledger.verify_certificate import RunLog
from ledger.verify_document import read_run_log


@dataclass
class Removed:
    """The run and its log after the removal; `old` and `new` are the digests of its models."""

    run: CohortRun
    begun: Withdrawn
    log: RunLog
    old: str
    new: str

    @property
    def certificate(self) -> Path:
        return self.run.certificate_path(self.begun)


def vote(
    node: Anvil, contract: str, folder: Path, log: RunLog, decision: Decision, key: LocalKey
) -> tuple[Standing, list[str]]:
    """One member's approval on the contract: how far the decision is, and what was done."""
    done: list[str] = []
    federation = Federation(node.url, contract, key, patience_s=PATIENT)
    return ContractBallot(federation, folder, log, decision, key).approve(done.append), done


def removed_run(base: Path, node: Anvil, contract: str) -> Removed:
    """Train, anchor, have two members release the model, then remove two records of the bank."""
    run = CohortRun(base)
    run.begin(
        lambda folder: RpcChain(folder, node.url, COORDINATOR, RUN, contract=contract, patience_s=PATIENT)
    )
    run.submit([run.released(run.newest())])
    run.service.sign_head()
    assert run.service.drain()
    old, log = model_digest(run), read_run_log(run.dir)
    for key in KEYS[:2]:
        vote(node, contract, base / "released", log, of_model(log, RELEASE), key)
    begun = run.remove([Ask("bank", FORGOTTEN)], {COHORT: FIRST_ROUND}, auditor="clinic")
    return Removed(run, begun, read_run_log(run.dir), old, model_digest(run))
