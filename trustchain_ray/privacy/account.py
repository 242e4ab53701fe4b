"""The privacy account of an organization: what its units have been charged, and what the budget still affords."""

import functools
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ledger.canonical import canonical_json, parse_canonical, write_atomic
from ledger.errors import LedgerError
from trustchain_ray.errors import TrustChainError, UsageError
from trustchain_ray.privacy.pld import Charge, pld_epsilon
from trustchain_ray.privacy.rdp import rdp_epsilon
from trustchain_ray.privacy.settings import LEAST_NOISE

PRECISION = 1e-4  # relative, of a calibrated noise multiplier
MOST_NOISE = 1e4


def epsilon(charges: tuple[Charge, ...], delta: float) -> float:
    """Epsilon at `delta` of charges that all fall on the same units.

    Raises
    ------
    TrustChainError
        The privacy loss distribution gives more than the Rényi bound: one of the two accountants has a defect.
    """
    return _epsilon(_merged(charges), delta)


@functools.lru_cache(maxsize=4096)
def _epsilon(charges: tuple[Charge, ...], delta: float) -> float:
    tight, loose = pld_epsilon(charges, delta), rdp_epsilon(charges, delta)
    if tight > loose * 1.001 + 1e-6:
        raise TrustChainError(
            f"the accountants disagree: PLD gives epsilon {tight:.6g}, RDP only {loose:.6g}, at delta {delta:g} of "
            f"{[(c.rate, c.noise, c.steps) for c in charges]}; train no further and report this"
        )
    return tight


def _merged(charges: tuple[Charge, ...]) -> tuple[Charge, ...]:
    """Charges of one rate and noise as one, in a fixed order."""
    steps: dict[tuple[float, float], int] = {}
    for charge in charges:
        kind = (charge.rate, charge.noise)
        steps[kind] = steps.get(kind, 0) + charge.steps
    return tuple(Charge(*kind, number) for kind, number in sorted(steps.items()) if number)


def subject_rate(rate: float, records: int) -> float:
    """Probability that a step reads any of a subject's records, each of which is read with probability `rate`.

    Parameters
    ----------
    records : of the subject that has the most.
    """
    return -math.expm1(records * math.log1p(-rate)) if rate < 1 else 1.0


def calibrate(budget: float, delta: float, rate: float, steps: int, removals: int = 0) -> float:
    """The least noise multiplier at which all steps, and as many again for each removal, stay within the budget.

    Raises
    ------
    UsageError
        No noise below 10,000 clip norms is enough, or a value is impossible.
    """
    steps *= 1 + removals
    if budget <= 0:
        raise UsageError(f"privacy.epsilon={budget:g}: a budget must be above 0")

    def within(noise: float) -> bool:
        return pld_epsilon((Charge(rate, noise, steps),), delta) <= budget

    low, high = LEAST_NOISE, 1.0
    if within(high):
        while high > LEAST_NOISE and within(max(high / 2, LEAST_NOISE)):
            high = max(high / 2, LEAST_NOISE)
        low = max(high / 2, LEAST_NOISE)
    while not within(high):
        low, high = high, 2 * high
        if high > MOST_NOISE:
            raise UsageError(
                f"privacy.epsilon={budget:g}: {steps} steps at sampling rate {rate:g} and delta {delta:g} need noise "
                f"of more than {MOST_NOISE:g} clip norms; raise the budget, or train fewer steps"
            )
    while high > low * (1 + PRECISION):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if within(middle) else (middle, high)
    epsilon((Charge(rate, high, steps),), delta)  # the other accountant must agree
    return high


def per_step_noise(budget: float, delta: float) -> float:
    """The noise multiplier of `dp: paper`: ``sqrt(2 log(1.25 / delta)) / epsilon``, as 2312.17493 has it.

    It holds for one release alone, and is proved for epsilon below 1: nothing is composed over steps.

    Raises
    ------
    UsageError
        The budget is not above 0.
    """
    if budget <= 0:
        raise UsageError(f"privacy.epsilon={budget:g}: a budget must be above 0")
    return math.sqrt(2 * math.log(1.25 / delta)) / budget


@dataclass
class Account:
    """Charges by member, and the budget of every unit.

    Attributes
    ----------
    epsilon, delta
        The budget.
    disjoint
        Whether every unit lies in one member alone, so that the worst member counts (parallel composition). False
        where a unit can lie in several, such as a subject with records in several shards: then all charges add up.
    charges
        By member.

    Examples
    --------
    >>> account = Account(epsilon=8.0, delta=1e-5)
    >>> account.charge("shard_0", Charge(rate=0.01, noise=1.1, steps=100))
    >>> round(account.spent(), 1)
    0.5
    """

    epsilon: float
    delta: float
    disjoint: bool = True
    charges: dict[str, tuple[Charge, ...]] = field(default_factory=dict)

    def charge(self, member: str, charge: Charge) -> None:
        """Record steps that were taken: training and replays alike."""
        self.charges[member] = _merged((*self.charges.get(member, ()), charge))

    def spent(self, member: str | None = None) -> float:
        """Epsilon so far, at `delta`, of the units of a member; of the worst member where none is named."""
        if not self.disjoint:
            return epsilon(self._all(), self.delta)
        members = self.charges if member is None else (member,)
        return max((epsilon(self.charges.get(name, ()), self.delta) for name in members), default=0.0)

    def affordable(self, member: str, charge: Charge) -> int:
        """How many of the steps of a charge the budget still pays for; all of them, if it can."""
        before = self.charges.get(member, ()) if self.disjoint else self._all()

        def within(steps: int) -> bool:
            return epsilon((*before, Charge(charge.rate, charge.noise, steps)), self.delta) <= self.epsilon

        if within(charge.steps):
            return charge.steps
        low, high = -1, charge.steps  # `low` steps are within the budget, `high` are not
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if within(middle) else (low, middle)
        return max(low, 0)

    def _all(self) -> tuple[Charge, ...]:
        return tuple(charge for member in sorted(self.charges) for charge in self.charges[member])

    def document(self) -> dict[str, Any]:
        """The account as canonical JSON can hold it; numbers that are no integers as their shortest decimals."""
        return {
            "charges": {
                member: [{"noise": repr(c.noise), "rate": repr(c.rate), "steps": c.steps} for c in charges]
                for member, charges in self.charges.items()
            },
            "delta": repr(self.delta),
            "disjoint": self.disjoint,
            "epsilon": repr(self.epsilon),
        }

    @classmethod
    def of_document(cls, document: Any) -> "Account":
        """The inverse of :meth:`document`.

        Raises
        ------
        TrustChainError
            It is none of an account.
        """
        try:
            charges = {
                str(member): tuple(Charge(float(c["rate"]), float(c["noise"]), int(c["steps"])) for c in entries)
                for member, entries in document["charges"].items()
            }
            return cls(float(document["epsilon"]), float(document["delta"]), bool(document["disjoint"]), charges)
        except (AttributeError, KeyError, TypeError, ValueError, UsageError) as error:
            raise TrustChainError(f"a privacy account is damaged: {type(error).__name__}: {error}") from None

    def save(self, path: Path) -> None:
        """Write the account whole, durably.

        Raises
        ------
        TrustChainError
            The file cannot be written.
        """
        try:
            write_atomic(path, canonical_json(self.document()))
        except LedgerError as error:
            raise TrustChainError(f"the privacy account: {error}") from None

    @classmethod
    def load(cls, path: Path) -> "Account":
        """Read an account.

        Raises
        ------
        TrustChainError
            The file is missing or damaged: nobody may train on as if nothing had been spent.
        """
        try:
            return cls.of_document(parse_canonical(path.read_bytes()))
        except OSError as error:
            raise TrustChainError(
                f"{path}: the privacy account cannot be read: {error.strerror}; without it nobody knows what was spent"
            ) from None
        except (LedgerError, TrustChainError) as error:
            raise TrustChainError(f"{path}: {error}") from None
