"""What a re-execution gave: counts, differences, and what the report of the verification says of it."""

from dataclasses import asdict, dataclass, field
from typing import Any

from ledger.report import Check, Report
from trustchain_ray.forgetting.standing import MERGES, Difference, Merged, Recorded

NAME = "re-execution"


@dataclass
class Finding:
    """What re-executing one removal gave: steps that were trained again, and the first difference."""

    steps: int = 0
    difference: Difference | None = None


@dataclass
class Outcome:
    """What was done again, and what it gave.

    Attributes
    ----------
    steps, updates, merges
        How much was done again.
    left_out
        Updates or merges that could not be, since their adapter or updates were not kept.
    training_seconds
        Of the steps alone, as the workers measure them.
    inconclusive
        Why the digests cannot be compared; empty: they were.
    """

    steps: int = 0
    updates: int = 0
    merges: int = 0
    left_out: int = 0
    training_seconds: float = 0.0
    seconds: float = 0.0
    inconclusive: str = ""
    differences: list[Difference] = field(default_factory=list)
    findings: dict[str, Finding] = field(default_factory=dict)  # by removal
    audits: dict[str, Finding] = field(default_factory=dict)  # by organization
    audited: dict[str, str] = field(default_factory=dict)  # what was logged of them

    def note(self, recorded: Recorded, difference: Difference | None) -> None:
        """An update was trained again."""
        self.steps, self.updates = self.steps + recorded.steps, self.updates + 1
        if difference is not None:
            self.differences.append(difference)
        about = [self.audits.setdefault(recorded.organization, Finding())]
        if recorded.removal:
            about.append(self.findings.setdefault(recorded.removal, Finding()))
        for finding in about:
            finding.steps += recorded.steps
            finding.difference = finding.difference or difference

    def note_merge(self, merged: Merged, adapter: str) -> None:
        """A merge was computed again."""
        self.merges += 1
        if adapter != merged.adapter:
            difference = Difference("", merged.cohort, merged.round)
            self.differences.append(difference)
            if merged.removal in self.findings:
                finding = self.findings[merged.removal]
                finding.difference = finding.difference or difference

    def to_dict(self) -> dict[str, Any]:
        """For JSON; `same` is null where nothing could be compared."""
        compared = not self.inconclusive and bool(self.updates or self.merges)
        first = self.differences[0] if self.differences else None
        return {
            "steps": self.steps,
            "updates": self.updates,
            "merges": self.merges,
            "left_out": self.left_out,
            "same": not self.differences if compared else None,
            "first_difference": {**asdict(first), "text": str(first)} if first else None,
            "seconds": round(self.seconds, 3),
            "seconds_per_step": round(self.training_seconds / self.steps, 6) if self.steps else None,
        }

    def check(self, what: str) -> Check:
        """For the report of a verification."""
        done = f"{self.merges} merges of kept updates" if what == MERGES else (
            f"{self.steps} steps of {self.updates} updates, and {self.merges} merges of them"
        )  # fmt: skip
        if self.inconclusive:
            return Check(NAME, "skipped", f"cannot be compared bit by bit: {self.inconclusive}")
        if self.differences:
            more = f", and {len(self.differences) - 1} more" if len(self.differences) > 1 else ""
            return Check(NAME, "fail", f"gives something else than the log: {self.differences[0]}{more}; of {done}")
        if not self.updates and not self.merges:
            why = self._left_out(what) if self.left_out else "no training stands"
            return Check(NAME, "skipped", f"nothing could be done again: {why}")
        return Check(NAME, "ok", f"{done} give the logged digests again")

    def describe(self, report: Report, what: str) -> None:
        """Put the check, and what it shows or leaves open, into the report of a verification."""
        check = self.check(what)
        report.checks.append(check)
        if check.status == "skipped":
            report.not_checked.append(f"that training and merging give the logged digests: {check.detail}")
            return
        if check.status == "ok" and what == MERGES:
            report.checked.append("merging the kept updates again gives the logged adapters")
        elif check.status == "ok":
            share = "" if what == "all" else f" (a random share of {what})"
            report.checked.append(f"training again on the organizations' records gives the logged updates{share}")
        if self.left_out:
            report.not_checked.append(self._left_out(what))

    def _left_out(self, what: str) -> str:
        if what == MERGES:
            return f"{self.left_out} merges: what they took was not kept (federation.keep_updates, keep_rounds)"
        return f"{self.left_out} updates: the adapters before them were not kept (federation.keep_rounds)"
