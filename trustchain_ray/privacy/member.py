"""Privacy at one organization: noise for its members' steps, and the account that says how much is left.

Format
------
`<organization>.privacy.json` in the custody folder of the run: the :class:`Account`, and which rounds it has been
charged for, for how many steps. A round that is repeated from the same adapter on the same records draws the same noise
and is charged once.

Generations
-----------
Noise, sampling and charges are of a generation: 0 while a cohort has the records with which the run began; after a
removal of own records an even number that follows from the records that are left; in a replay an odd one that follows
from the removal. So a round that is trained again without a record, whatever became of the first time, has noise of its
own: with the same noise the difference of the two updates would be the record's gradients.
"""

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ledger.canonical import canonical_json, parse_canonical, sha256_hex, write_atomic
from ledger.errors import LedgerError
from trustchain_ray.config import Config
from trustchain_ray.data import Record
from trustchain_ray.errors import TrustChainError
from trustchain_ray.keystore import keystore
from trustchain_ray.privacy.account import Account, calibrate, per_step_noise, subject_rate
from trustchain_ray.privacy.noise import commitment, load_or_create_secret, noise_key
from trustchain_ray.privacy.pld import Charge
from trustchain_ray.privacy.settings import resolved_delta
from trustchain_ray.privacy.signal import private_update
from trustchain_ray.privacy.steps import STEP_MODES, PrivateSteps

COMPOSED = "over all steps"
"""What a PRIVACY_SPEND event says of an epsilon that holds for the run so far."""


@dataclass(frozen=True)
class Slot:
    """A round of a cohort that was charged: its generation, the first half of its adapter's digest, its steps."""

    cohort: str
    number: int
    generation: int
    base: str
    steps: int

    def is_of(self, cohort: str, number: int, base: str) -> bool:
        """Whether it is one of this round from this adapter."""
        return (self.cohort, self.number, self.base) == (cohort, number, base[:32])


@dataclass(frozen=True)
class Mechanism:
    """What keeps an organization's units within the budget.

    Attributes
    ----------
    units
        Records, or subjects, of each cohort.
    rates
        Probability that a step (for whole updates: a round) reads anything of one unit, by cohort.
    noise
        Noise multiplier, by cohort.
    releases
        Steps that the run takes; for whole updates: rounds, of all cohorts that an organization is in.
    """

    delta: float
    units: dict[str, int]
    rates: dict[str, float]
    noise: dict[str, float]
    releases: int


def mechanism(config: Config, records: Mapping[str, Sequence[Record]], rates: Mapping[str, float]) -> Mechanism:
    """The mechanism of `privacy.*` for the training records and sampling rates of an organization's cohorts.

    Raises
    ------
    UsageError
        Settings that protect nobody, or that no noise can keep to.
    """
    settings, federation = config.privacy, config.federation
    whole = settings.dp == "organization"
    units = {c: len({r.subject for r in rows} if settings.dp == "subject" else rows) for c, rows in records.items()}
    smallest = 1 if whole else min(units.values())
    delta = 1e-5 if whole and not settings.delta else resolved_delta(settings.delta, smallest)
    # an organization is in all its cohorts: their releases add up
    releases = federation.rounds * len(records) if whole else federation.rounds * federation.local_steps
    read = {c: 1.0 if whole else rates[c] for c in records}
    if settings.dp == "subject":
        most = {c: max(Counter(r.subject for r in rows).values()) for c, rows in records.items()}
        read = {c: subject_rate(rates[c], count) for c, count in most.items()}

    def noise_for(rate: float) -> float:
        if settings.noise_multiplier:
            return settings.noise_multiplier
        if settings.dp == "paper":
            return per_step_noise(settings.epsilon, delta)
        return calibrate(settings.epsilon, delta, rate, releases, settings.max_removals)

    return Mechanism(delta, units, read, {c: noise_for(rate) for c, rate in read.items()}, releases)


class MemberPrivacy:
    """The mechanism and the account of one organization in one run.

    Parameters
    ----------
    folder
        Custody folder of the run.
    records, rates
        Training records and sampling rate of each cohort, when the run begins. What follows from them (delta, noise)
        is a constant of the run from then on, kept in the file.

    Raises
    ------
    UsageError
        Settings that protect nobody, or that no noise can keep to.
    TrustChainError
        The account is damaged.
    """

    def __init__(
        self,
        config: Config,
        folder: Path,
        run: str,
        name: str,
        records: Mapping[str, Sequence[Record]],
        rates: Mapping[str, float],
    ) -> None:
        self._config, self.settings, self.run, self.name = config, config.privacy, run, name
        self.local_steps = config.federation.local_steps
        self._secret = load_or_create_secret(name, keystore(config))
        self._path = folder / f"{name}.privacy.json"
        if self._path.exists():
            self._load()
        else:
            self._begin({c: rows for c, rows in records.items() if rows}, rates)

    def describe(self) -> dict[str, Any]:
        """For the manifest: what the organization promises."""
        return {
            "unit": self.settings.dp,
            "epsilon": self._account.document()["epsilon"],
            "delta": self._account.document()["delta"],
            "clip": repr(self.settings.clip),
            "noise": {cohort: repr(noise) for cohort, noise in sorted(self._noise.items())},
            "secret": commitment(self._secret),
        }

    def generation(self, cohort: str, ids: Sequence[str], removal: str | None = None) -> int:
        """Of a round that is trained now.

        Parameters
        ----------
        ids
            Of the cohort's training records, as they are left.
        removal
            Whose replay it is part of, 64 hexadecimal digits; None: training.
        """
        if removal is not None:
            return int(removal[:12], 16) | 1
        now = _records_digest(ids)
        return 0 if now == self._begun.get(cohort, _records_digest([])) else (int(now[:12], 16) | 1) + 1

    def trained_generation(self, cohort: str, number: int, base: str) -> int | None:
        """In which a round was trained, last; None: it was not. That of a replay does not count."""
        found = [slot.generation for slot in self._charged if slot.is_of(cohort, number, base)]
        return next((generation for generation in reversed(found) if generation % 2 == 0), None)

    def affordable(self, cohort: str, number: int, base: str, steps: int, generation: int = 0) -> int:
        """How many of a round's steps the budget pays for; as many as before, where it was charged before."""
        if self.settings.dp == "paper":
            return steps
        if (slot := self._slot(cohort, number, base, generation)) is not None:
            return min(steps, slot.steps)
        paid = self._account.affordable(cohort, self._charge(cohort, steps))
        return steps if paid and self.settings.dp == "organization" else paid

    def unaffordable(self, rounds: Mapping[str, Sequence[int]]) -> list[str]:
        """Of cohorts whose rounds, of so many steps, are to be taken again, those that the budget does not pay for."""
        if self.settings.dp == "paper":
            return []
        account, short = copy.deepcopy(self._account), list[str]()
        for cohort, steps in sorted(rounds.items()):
            whole = self._charge(cohort, sum(steps))
            if self.settings.dp == "organization":
                whole = Charge(whole.rate, whole.noise, sum(1 for number in steps if number))
            if account.affordable(cohort, whole) == whole.steps:
                account.charge(cohort, whole)
            else:
                short.append(cohort)
        return short

    def charge(self, cohort: str, number: int, base: str, steps: int, generation: int = 0) -> None:
        """Enter a round into the account, durably, before it is trained."""
        if self.settings.dp != "paper" and self._slot(cohort, number, base, generation) is None:
            self._account.charge(cohort, self._charge(cohort, steps))
            self._charged.append(Slot(cohort, number, generation, base[:32], steps))
            self._save()

    def rounds(self, cohort: str) -> dict[int, set[int]]:
        """Rounds of a cohort that were charged, by the generation that trained them."""
        found: dict[int, set[int]] = {}
        for slot in self._charged:
            if slot.cohort == cohort:
                found.setdefault(slot.generation, set()).add(slot.number)
        return found

    def steps(
        self, cohort: str, number: int, base: str, subjects: Sequence[str], generation: int = 0
    ) -> PrivateSteps | None:
        """What makes the steps of a round private; None where it is not the steps that are noised."""
        if self.settings.dp not in STEP_MODES:
            return None
        key = noise_key(self._secret, self.run, f"{self.name}/{cohort}", generation, base)
        first = (number - 1) * self.local_steps
        return PrivateSteps(self.settings.dp, self.settings.clip, self._noise[cohort], key, first, subjects)

    def update(self, cohort: str, number: int, base: str, buffer: np.ndarray, generation: int = 0) -> np.ndarray:
        """An update as it may leave: clipped and noised as a whole where the unit is the organization."""
        if self.settings.dp != "organization":
            return buffer
        key = noise_key(self._secret, self.run, f"{self.name}/{cohort}", generation, base)
        return private_update(buffer, self.settings.clip, self._noise[cohort], key, number)

    def spent(self) -> dict[str, str]:
        """Body of a PRIVACY_SPEND event, without its round."""
        composed = self.settings.dp != "paper"
        return {
            "unit": self.settings.dp,
            "epsilon": f"{self._account.spent():.6f}" if composed else f"{self.settings.epsilon:.6f}",
            "delta": self._account.document()["delta"],
            "budget": self._account.document()["epsilon"],
            "composed": COMPOSED if composed else "no: it holds for one step",
        }

    def _begin(self, records: Mapping[str, Sequence[Record]], rates: Mapping[str, float]) -> None:
        made = mechanism(self._config, records, rates)
        self._rates, self._noise = made.rates, made.noise
        self._account = Account(self.settings.epsilon, made.delta, disjoint=self.settings.dp != "organization")
        self._charged: list[Slot] = []
        self._begun = {cohort: _records_digest([r.id for r in rows]) for cohort, rows in records.items()}
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._save()

    def _charge(self, cohort: str, steps: int) -> Charge:
        return Charge(self._rates[cohort], self._noise[cohort], 1 if self.settings.dp == "organization" else steps)

    def _slot(self, cohort: str, number: int, base: str, generation: int) -> Slot | None:
        """What was charged for a round in a generation, if it was."""
        slots = (slot for slot in self._charged if slot.is_of(cohort, number, base))
        return next((slot for slot in slots if slot.generation == generation), None)

    def _save(self) -> None:
        content = {
            "account": self._account.document(),
            "begun": self._begun,
            "charged": [[slot.cohort, slot.number, slot.generation, slot.base, slot.steps] for slot in self._charged],
            "noise": {cohort: repr(noise) for cohort, noise in self._noise.items()},
            "rates": {cohort: repr(rate) for cohort, rate in self._rates.items()},
        }
        try:
            write_atomic(self._path, canonical_json(content), 0o600)
        except LedgerError as error:
            raise TrustChainError(f"the privacy account: {error}") from None

    def _load(self) -> None:
        try:
            said = parse_canonical(self._path.read_bytes())
            self._account = Account.of_document(said["account"])
            self._charged = [Slot(str(c), int(n), int(g), str(b), int(s)) for c, n, g, b, s in said["charged"]]
            self._begun = {str(c): str(digest) for c, digest in said["begun"].items()}
            self._noise = {str(c): float(noise) for c, noise in said["noise"].items()}
            self._rates = {str(c): float(rate) for c, rate in said["rates"].items()}
        except (LedgerError, OSError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise TrustChainError(
                f"{self._path}: the privacy account is damaged ({error}); restore it: without it nobody knows what "
                "was spent"
            ) from None


def _records_digest(ids: Sequence[str]) -> str:
    return sha256_hex(canonical_json(sorted(ids)))
