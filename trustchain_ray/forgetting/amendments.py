"""What removals have changed of a run's terms: who left, which cohorts are withdrawn, how many records are left."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from trustchain_ray.errors import TrustChainError
from trustchain_ray.forgetting.job import DONE, Job, jobs_of
from trustchain_ray.run_directory import RunDirectory


@dataclass(frozen=True)
class Amendments:
    """The sum of a run's removals.

    Attributes
    ----------
    known
        Ids of all removals.
    left
        Organizations that are out.
    dropped
        Cohorts that are out for good.
    counts
        Training records by organization and cohort, where a removal changed them.
    unfinished
        The removal that is under way.
    """

    known: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    unfinished: Job | None = None

    @classmethod
    def read(cls, run: RunDirectory) -> "Amendments":
        """Of the removals in a run directory."""
        jobs = jobs_of(run)
        counts: dict[str, dict[str, int]] = {}
        for job in jobs:
            for name, changed in job.counts.items():
                counts.setdefault(name, {}).update(changed)
        return cls(
            [job.removal for job in jobs],
            sorted({name for job in jobs for name in job.left}),
            sorted({cohort for job in jobs for cohort in job.dropped}),
            counts,
            next((job for job in jobs if job.stage != DONE), None),
        )

    @property
    def withdrawn(self) -> Mapping[str, int]:
        """Cohorts that are being replayed, and the first round that is."""
        return self.unfinished.cohorts if self.unfinished is not None else {}

    def cohorts(self, agreed: Mapping[str, list[str]]) -> dict[str, list[str]]:
        """Cohorts and members that are left of those agreed on."""
        left = {c: [name for name in names if name not in self.left] for c, names in agreed.items()}
        return {c: names for c, names in left.items() if names and c not in self.dropped}

    def records(self, agreed: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, int]]:
        """Training records by organization and cohort that are left of those of the manifest."""
        return {n: {**counts, **self.counts.get(n, {})} for n, counts in agreed.items() if n not in self.left}

    def check(self, registered: Mapping[str, Mapping[str, int]], where: str) -> None:
        """Refuse to go on with other numbers of records than removals have left.

        Raises
        ------
        TrustChainError
            Naming organization and cohort.
        """
        for name, expected in self.counts.items():
            for cohort, count in expected.items():
                if name in registered and registered[name].get(cohort) != count:
                    raise TrustChainError(
                        f"{where}: organization {name!r} brings {registered[name].get(cohort)} records to cohort "
                        f"{cohort!r}, {count} were left after the last removal; restore its data"
                    )
