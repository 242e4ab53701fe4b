"""A removal on the disk: what is to be done, how far it is. It holds commitments, never ids or records.

Format
------
`removals/0001/job.json` in the run directory, canonical JSON; written whole at every step. A removal that was killed at
any point is found here and gone on with.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ledger.removal import Removed, Shard
from trustchain_ray.errors import TrustChainError
from trustchain_ray.forgetting.holder import Taken
from trustchain_ray.run_directory import RunDirectory

BEGUN, WITHDRAWN, REPLAYED, CERTIFIED, DONE = "begun", "withdrawn", "replayed", "certified", "done"
"""Stages. Begun: organizations have taken the records out. Withdrawn: the model without the cohorts is published."""


@dataclass(frozen=True)
class Job:
    """One removal.

    Attributes
    ----------
    number, removal
        From 1; random id, 64 hex digits.
    method
        Of :data:`ledger.removal.METHODS`.
    requests
        Rows of ``request``, ``organization``, ``scope``.
    cohorts
        First withdrawn round of each cohort that is replayed or dropped.
    dropped
        Cohorts that are not replayed.
    left
        Organizations that leave.
    rounds
        Finished rounds when it began.
    counts
        Training records left, by organization and cohort.
    steps
        For every cohort and round (from 1), the recorded steps by organization.
    models
        Digests of the models that are withdrawn; the last one is the old model (empty before a release).
    until
        Size of the log before the withdrawal.
    events
        Envelopes to log at the withdrawal: requests and new shard manifests.
    options
        Of an approximate method.
    privacy
        What the privacy accounts said before, by organization; empty without privacy.
    facts
        Figures for certificate and report.
    """

    number: int
    removal: str
    method: str
    requests: list[dict[str, str]]
    cohorts: dict[str, int]
    dropped: list[str]
    left: list[str]
    rounds: int
    counts: dict[str, dict[str, int]]
    steps: dict[str, list[dict[str, int]]]
    models: list[str]
    taken: dict[str, dict[str, Any]]
    events: list[dict[str, Any]]
    options: dict[str, str] = field(default_factory=dict)
    privacy: dict[str, dict[str, str]] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)
    stage: str = BEGUN

    @property
    def folder(self) -> str:
        """Relative to the run directory."""
        return f"removals/{self.number:04d}"

    @property
    def certificate(self) -> str:
        """Path of the certificate, relative to the run directory."""
        return f"certificates/{self.number:04d}.json"

    def write(self, run: RunDirectory) -> "Job":
        """Make it durable; returns itself."""
        run.write_json(f"{self.folder}/job.json", asdict(self))
        return self

    def at(self, run: RunDirectory, stage: str, **facts: str) -> "Job":
        """The removal at its next stage, durably."""
        return replace(self, stage=stage, facts={**self.facts, **facts}).write(run)

    def taken_of(self, organization: str) -> Taken | None:
        """What was taken out at an organization."""
        said = self.taken.get(organization)
        if said is None:
            return None
        removed = {request: [Removed(**row) for row in rows] for request, rows in said["removed"].items()}
        return Taken(removed, [Shard(**row) for row in said["shards"]], said["counts"], said["train"])


def taken_row(taken: Taken) -> dict[str, Any]:
    """A :class:`Taken` for JSON."""
    return asdict(taken)


def jobs_of(run: RunDirectory) -> list[Job]:
    """All removals of a run, in order.

    Raises
    ------
    TrustChainError
        One of them cannot be read.
    """
    jobs = []
    for path in sorted(run.path.glob("removals/[0-9][0-9][0-9][0-9]/job.json")):
        name = str(path.relative_to(run.path))
        said: Mapping[str, Any] = run.read_json(name)
        try:
            jobs.append(Job(**said))
        except TypeError as error:
            raise TrustChainError(f"{path}: is not a removal of this version ({error})") from None
    return jobs
