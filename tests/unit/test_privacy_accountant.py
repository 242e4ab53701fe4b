"""The accountant against closed forms and against values of the accountant libraries."""

import math
from pathlib import Path

import pytest

from trustchain_ray.errors import TrustChainError, UsageError
from trustchain_ray.privacy import account
from trustchain_ray.privacy.account import Account, calibrate, epsilon, subject_rate
from trustchain_ray.privacy.pld import Charge, pld_epsilon
from trustchain_ray.privacy.rdp import rdp_epsilon

# (records, batch, steps) -> by noise multiplier (0.6, 0.8, 1, 1.5, 2): epsilon at delta = records ** -1.1 of
# dp-accounting 0.6.0, PLDAccountant and RdpAccountant, PoissonSampledDpEvent(GaussianDpEvent) composed `steps` times.
NOISES = (0.6, 0.8, 1.0, 1.5, 2.0)
LIBRARY = {
    (4000, 64, 313): (
        (5.71962, 2.47059, 1.42084, 0.68545, 0.45575),
        (6.98616, 3.06089, 1.72263, 0.78379, 0.51956),
    ),
    (4000, 256, 157): (
        (14.55896, 7.35771, 4.59888, 2.27316, 1.50094),
        (16.91859, 8.53065, 5.28230, 2.57322, 1.69226),
    ),
    (20_000, 256, 235): (
        (5.19370, 2.18140, 1.17909, 0.54641, 0.36318),
        (6.34884, 2.78732, 1.54068, 0.64184, 0.40775),
    ),
    (100_000, 1024, 293): (
        (5.54841, 2.31147, 1.20422, 0.54856, 0.36655),
        (6.66266, 2.92779, 1.62231, 0.67268, 0.41053),
    ),
}
GRID = [
    (Charge(batch / n, noise, steps), n**-1.1, pld[i], rdp[i])
    for (n, batch, steps), (pld, rdp) in LIBRARY.items()
    for i, noise in enumerate(NOISES)
]


@pytest.mark.parametrize(("charge", "delta", "pld", "rdp"), GRID)
def test_both_accountants_agree_with_dp_accounting(charge: Charge, delta: float, pld: float, rdp: float) -> None:
    ours = pld_epsilon([charge], delta)
    assert pld * 0.999 < ours < pld * 1.001
    # The library leaves out orders at which its series does not converge, so that ours may be lower.
    assert rdp * 0.99 < rdp_epsilon([charge], delta) < rdp * 1.001
    assert ours <= rdp <= 1.4 * ours


@pytest.mark.parametrize(
    ("charges", "delta", "library"),
    [
        ([Charge(0.01, 1.1, 1000)], 1e-5, 1.51537),
        ([Charge(0.01, 0.8, 1000), Charge(1.0, 5.0, 3), Charge(0.2, 3.0, 50)], 1e-6, 4.63036),
        ([Charge(0.5, 1.0, 10)], 1e-5, 10.45993),
        ([Charge(0.9, 4.0, 100)], 1e-5, 11.64199),
        ([Charge(0.016, 0.6, 313)], 1e-9, 12.20795),
        ([Charge(0.001, 5.0, 100_000)], 1e-6, 0.24617),  # value_discretization_interval=4e-6
    ],
)
def test_different_kinds_of_steps_compose_as_in_dp_accounting(
    charges: list[Charge], delta: float, library: float
) -> None:
    assert pld_epsilon(charges, delta) == pytest.approx(library, rel=1e-3)


def gaussian_delta(mu: float, budget: float) -> float:
    """Delta of one Gaussian release of sensitivity mu standard deviations (1805.06530, theorem 8)."""

    def below(z: float) -> float:
        return 0.5 * math.erfc(-z / math.sqrt(2))

    return below(mu / 2 - budget / mu) - math.exp(budget) * below(-mu / 2 - budget / mu)


@pytest.mark.parametrize(("noise", "steps"), [(1.0, 1), (2.0, 1), (5.0, 30), (20.0, 1000), (0.5, 1)])
def test_full_batches_compose_to_one_gaussian_release(noise: float, steps: int) -> None:
    found = pld_epsilon([Charge(1.0, noise, steps)], 1e-6)
    # An upper bound, but for rounding, and a tight one.
    assert gaussian_delta(math.sqrt(steps) / noise, found) < 1.001e-6
    assert gaussian_delta(math.sqrt(steps) / noise, found * 0.999) > 1e-6


def test_epsilon_grows_with_steps_and_rate_and_falls_with_noise_and_delta() -> None:
    base = pld_epsilon([Charge(0.02, 1.0, 200)], 1e-5)
    assert 0 == pld_epsilon([], 1e-5) == pld_epsilon([Charge(0.02, 1.0, 0)], 1e-5) == rdp_epsilon([], 1e-5)
    assert base < pld_epsilon([Charge(0.02, 1.0, 201)], 1e-5)
    assert base < pld_epsilon([Charge(0.021, 1.0, 200)], 1e-5)
    assert base > pld_epsilon([Charge(0.02, 1.01, 200)], 1e-5)
    assert base > pld_epsilon([Charge(0.02, 1.0, 200)], 1.1e-5)
    assert pld_epsilon([Charge(0.001, 50.0, 1)], 0.1) == 0.0


@pytest.mark.parametrize(
    ("target", "delta", "rate", "steps", "library"),
    [
        # dp-accounting 0.6.0, calibrate_dp_mechanism
        (1.0, 4000**-1.1, 0.064, 157, 2.73),
        (3.0, 4000**-1.1, 0.064, 157, 1.26),
        (8.0, 4000**-1.1, 0.064, 157, 0.77),
        (3.0, 20_000**-1.1, 0.0128, 235, 0.72),
        (8.0, 1e-5, 1.0, 20, 2.68),
    ],
)
def test_the_calibrated_noise_is_the_least_that_keeps_to_the_budget(
    target: float, delta: float, rate: float, steps: int, library: float
) -> None:
    noise = calibrate(target, delta, rate, steps)
    assert noise == pytest.approx(library, abs=0.006)
    assert epsilon((Charge(rate, noise, steps),), delta) <= target
    assert epsilon((Charge(rate, noise * 0.999, steps),), delta) > target


@pytest.mark.slow
def test_expected_removals_are_paid_for_in_advance() -> None:
    once, thrice = calibrate(3.0, 1e-5, 0.02, 100), calibrate(3.0, 1e-5, 0.02, 100, removals=2)
    assert thrice == calibrate(3.0, 1e-5, 0.02, 300) > once


def test_impossible_charges_and_budgets_are_refused() -> None:
    with pytest.raises(UsageError, match=r"sampling rate of 1\.2"):
        Charge(1.2, 1.0, 1)
    with pytest.raises(UsageError, match="sampling rate of 0 "):
        Charge(0.0, 1.0, 1)
    with pytest.raises(UsageError, match=r"noise multiplier of 0\.01: less than 0\.05"):
        Charge(0.1, 0.01, 1)
    with pytest.raises(UsageError, match="noise multiplier of nan"):
        Charge(0.1, math.nan, 1)
    with pytest.raises(UsageError, match="cannot be taken back"):
        Charge(0.1, 1.0, -1)
    with pytest.raises(UsageError, match="from 1e-10 to below 1"):
        pld_epsilon([Charge(0.1, 1.0, 1)], 1e-11)
    with pytest.raises(UsageError, match=r"privacy\.epsilon=-1: a budget must be above 0"):
        calibrate(-1.0, 1e-5, 0.1, 10)
    with pytest.raises(UsageError, match=r"privacy\.epsilon=0\.001: 10000 steps .* more than 10000 clip norms"):
        calibrate(1e-3, 1e-9, 1.0, 10_000)


def test_accountants_that_disagree_stop_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    charges = (Charge(0.0317, 1.03, 71),)
    monkeypatch.setattr(account, "rdp_epsilon", lambda charges, delta: 0.5 * rdp_epsilon(charges, delta))
    with pytest.raises(TrustChainError, match="the accountants disagree: PLD gives epsilon"):
        epsilon(charges, 1e-5)


def test_a_subject_with_many_records_is_sampled_more_often() -> None:
    assert subject_rate(0.1, 1) == pytest.approx(0.1)
    assert subject_rate(0.1, 3) == pytest.approx(1 - 0.9**3)
    assert subject_rate(1.0, 2) == 1.0


def test_disjoint_members_do_not_add_up_and_shared_units_do() -> None:
    apart, shared = Account(8.0, 1e-5), Account(8.0, 1e-5, disjoint=False)
    first, second = Charge(0.02, 1.0, 100), Charge(0.02, 1.0, 150)
    for ledger in (apart, shared):
        assert ledger.spent() == 0.0
        ledger.charge("shard_0", first)
        ledger.charge("shard_1", second)
    assert apart.spent("shard_0") == epsilon((first,), 1e-5)
    assert apart.spent() == apart.spent("shard_1") == epsilon((second,), 1e-5)
    assert shared.spent() == shared.spent("shard_0") == epsilon((Charge(0.02, 1.0, 250),), 1e-5)


def test_replays_are_charged_and_the_budget_affords_just_so_many_steps() -> None:
    ledger = Account(2.0, 1e-5)
    wanted = Charge(0.05, 1.0, 10_000)
    steps = ledger.affordable("shard_0", wanted)
    assert epsilon((Charge(0.05, 1.0, steps),), 1e-5) <= 2.0 < epsilon((Charge(0.05, 1.0, steps + 1),), 1e-5)
    assert ledger.affordable("shard_0", Charge(0.05, 1.0, 5)) == 5
    ledger.charge("shard_0", Charge(0.05, 1.0, steps - 3))
    assert ledger.affordable("shard_0", wanted) == 3
    ledger.charge("shard_0", Charge(0.05, 1.0, 3))  # a replay of three steps
    assert ledger.affordable("shard_0", wanted) == 0
    assert ledger.affordable("shard_1", wanted) == steps
    assert ledger.spent("shard_0") <= 2.0
    ledger.charge("shard_0", Charge(0.05, 1.0, 50))  # more than it had: nothing is affordable, and it says so
    assert ledger.affordable("shard_0", wanted) == 0
    assert ledger.spent() > 2.0


def test_an_account_survives_a_restart(tmp_path: Path) -> None:
    ledger = Account(8.0, 4000**-1.1, disjoint=False)
    ledger.charge("shard_0", Charge(64 / 4001, 0.8123456789, 12))
    ledger.charge("shard_0", Charge(64 / 4001, 0.8123456789, 8))
    ledger.charge("shard_1", Charge(0.5, 2.0, 3))
    ledger.save(tmp_path / "account.json")
    again = Account.load(tmp_path / "account.json")
    assert again == ledger
    assert again.charges["shard_0"] == (Charge(64 / 4001, 0.8123456789, 20),)
    assert again.spent() == ledger.spent()
    again.save(tmp_path / "second.json")
    assert (tmp_path / "second.json").read_bytes() == (tmp_path / "account.json").read_bytes()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"charges":{},"delta":"1e-05","disjoint":true}',
        '{"charges":{"a":[{"noise":"1.0","rate":"2.0","steps":1}]},"delta":"1e-05","disjoint":true,"epsilon":"8.0"}',
        '{"charges":{"a":[{"noise":"1.0","rate":"0.1"}]},"delta":"1e-05","disjoint":true,"epsilon":"8.0"}',
    ],
)
def test_a_damaged_account_is_never_taken_for_an_empty_one(tmp_path: Path, text: str) -> None:
    path = tmp_path / "account.json"
    path.write_text(text)
    with pytest.raises(TrustChainError, match=r"account\.json"):
        Account.load(path)
    with pytest.raises(TrustChainError, match="nobody knows what was spent"):
        Account.load(tmp_path / "missing.json")
