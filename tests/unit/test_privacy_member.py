"""Privacy at one organization: what it promises, what a round costs, what a repeat and a replay draw."""

from pathlib import Path

import numpy as np
import pytest

from trustchain_ray.config import Config
from trustchain_ray.data import Record
from trustchain_ray.errors import TrustChainError
from trustchain_ray.privacy.member import MemberPrivacy
from trustchain_ray.privacy.noise import gaussian

BASE, OTHER = "a" * 64, "b" * 64
RECORDS = {"all": [Record(f"r{i}", f"p{i // 4}", "", f"text {i}") for i in range(200)]}


def member(tmp_path: Path, dp: str = "record", **values: float) -> MemberPrivacy:
    config = Config()
    config.run.keystore = str(tmp_path / "keys")
    config.federation.rounds, config.federation.local_steps = 4, 5
    config.privacy.dp = dp
    for name, value in values.items():
        setattr(config.privacy, name, value)
    return MemberPrivacy(config, tmp_path / "custody", "run", "bank", RECORDS, {"all": 0.05})


def test_the_budget_lasts_for_the_whole_run_and_no_longer(tmp_path: Path) -> None:
    privacy = member(tmp_path, epsilon=3.0, max_removals=0)
    for number in range(1, 5):
        assert privacy.affordable("all", number, BASE, 5) == 5
        privacy.charge("all", number, BASE, 5)
    assert 2.9 < float(privacy.spent()["epsilon"]) <= 3.0
    assert privacy.affordable("all", 5, BASE, 5) < 5
    assert privacy.unaffordable({"all": [5, 5]}) == ["all"]


def test_expected_replays_are_paid_for_in_advance(tmp_path: Path) -> None:
    privacy = member(tmp_path, epsilon=3.0, max_removals=1)
    for number in range(1, 5):
        privacy.charge("all", number, BASE, 5)
    assert privacy.unaffordable({"all": [5] * 4}) == []
    for number in range(1, 5):
        privacy.charge("all", number, BASE, 5, generation=7)
    assert privacy.unaffordable({"all": [5]}) == ["all"]


def test_a_repeated_round_is_charged_once_and_the_account_outlives_the_process(tmp_path: Path) -> None:
    privacy = member(tmp_path)
    privacy.charge("all", 1, BASE, 5)
    once = privacy.spent()
    privacy.charge("all", 1, BASE, 5)
    assert privacy.spent() == once
    again = member(tmp_path)
    assert (again.spent(), again.describe()) == (once, privacy.describe())
    again.charge("all", 1, OTHER, 5)  # from another adapter it is another release
    assert float(again.spent()["epsilon"]) > float(once["epsilon"])
    path = tmp_path / "custody" / "bank.privacy.json"
    assert path.stat().st_mode & 0o777 == 0o600
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(TrustChainError, match="is damaged"):
        member(tmp_path)


def test_a_repeat_takes_the_steps_that_were_paid_and_no_more(tmp_path: Path) -> None:
    """The round in which the budget runs out is cut short; after a crash it is cut short again, not completed free."""
    privacy = member(tmp_path, epsilon=3.0, max_removals=0)
    for number in range(1, 5):
        privacy.charge("all", number, BASE, 5 if number < 4 else 2)
    privacy.charge("all", 5, BASE, privacy.affordable("all", 5, BASE, 5))
    assert 0 < privacy.affordable("all", 5, BASE, 5) < 5
    for again in (privacy, member(tmp_path, epsilon=3.0, max_removals=0)):
        assert [again.affordable("all", number, BASE, 5) for number in (1, 4)] == [5, 2]


def test_the_same_round_without_a_record_has_noise_and_sampling_of_its_own(tmp_path: Path) -> None:
    """Had it the noise of before, the difference of the two updates would be the record's gradients."""
    privacy = member(tmp_path)
    ids = [record.id for record in RECORDS["all"]]
    assert privacy.generation("all", ids) == privacy.generation("all", ids[::-1]) == 0
    without = privacy.generation("all", ids[1:])
    assert without != 0
    assert without % 2 == 0
    assert member(tmp_path).generation("all", ids[1:]) == without != privacy.generation("all", ids[2:])
    replay = privacy.generation("all", ids[1:], "ab" * 32)
    assert replay % 2 == 1
    keys = {str(privacy.steps("all", 1, BASE, [], g).key) for g in (0, without, replay)}  # type: ignore[union-attr]
    assert len(keys) == 3
    privacy.charge("all", 1, BASE, 5)
    once = float(privacy.spent()["epsilon"])
    privacy.charge("all", 1, BASE, 5, without)
    assert float(privacy.spent()["epsilon"]) > once
    privacy.charge("all", 1, BASE, 5, replay)
    assert privacy.trained_generation("all", 1, BASE) == without
    assert privacy.trained_generation("all", 2, BASE) is None
    assert privacy.rounds("all") == {0: {1}, without: {1}, replay: {1}}


def test_an_organization_is_charged_once_a_round_and_for_all_its_cohorts(tmp_path: Path) -> None:
    def shards(folder: Path, names: list[str]) -> MemberPrivacy:
        config = Config()
        config.run.keystore = str(folder / "keys")
        config.federation.rounds, config.federation.local_steps = 4, 5
        config.privacy.dp, config.privacy.max_removals = "organization", 0
        records = dict.fromkeys(names, RECORDS["all"])
        return MemberPrivacy(config, folder / "custody", "run", "bank", records, dict.fromkeys(names, 0.05))

    two = shards(tmp_path / "two", ["a", "b"])
    for number in range(1, 5):
        for cohort in ("a", "b"):
            assert two.affordable(cohort, number, BASE, 5) == 5
            two.charge(cohort, number, BASE, 5)
    assert 7.9 < float(two.spent()["epsilon"]) <= 8
    assert two.affordable("a", 5, BASE, 5) == 0
    one = shards(tmp_path / "one", ["a"])
    assert float(one.describe()["noise"]["a"]) < float(two.describe()["noise"]["a"])


def test_a_replay_draws_fresh_noise_and_a_repeat_the_same(tmp_path: Path) -> None:
    privacy = member(tmp_path)
    first, repeat = (privacy.steps("all", 1, BASE, []) for _ in range(2))
    replay = privacy.steps("all", 1, BASE, [], generation=9)
    assert first is not None
    assert repeat is not None
    assert replay is not None
    assert first.key == repeat.key != replay.key
    old, new = (gaussian(steps.key, 0, 10_000) for steps in (first, replay))
    # with equal noise the difference of two releases would be the record's own gradient and nothing else
    assert np.linalg.norm(old - new) == pytest.approx(np.sqrt(2 * 10_000), rel=0.05)
    assert abs(np.corrcoef(old, new)[0, 1]) < 0.05
    assert "key" not in repr(first)


def test_a_person_costs_more_than_a_record(tmp_path: Path) -> None:
    record = float(member(tmp_path / "record").describe()["noise"]["all"])
    subject = float(member(tmp_path / "subject", dp="subject").describe()["noise"]["all"])
    assert subject > 1.2 * record


def test_whole_updates_are_clipped_and_noised_where_the_unit_is_the_organization(tmp_path: Path) -> None:
    privacy = member(tmp_path, dp="organization", clip=0.5)
    assert privacy.steps("all", 1, BASE, []) is None
    update = np.full(1000, 1.0, np.float32)
    sent = privacy.update("all", 1, BASE, update)
    noise = float(privacy.describe()["noise"]["all"]) * 0.5
    assert np.std(sent) == pytest.approx(noise, rel=0.15)
    assert member(tmp_path / "other").update("all", 1, BASE, update) is update


def test_the_published_promise_holds_no_secret(tmp_path: Path) -> None:
    privacy = member(tmp_path, dp="record")
    said = privacy.describe()
    secret = next((tmp_path / "keys").glob("bank.noise")).read_bytes()
    assert secret.hex() not in str(said)
    assert set(said) == {"unit", "epsilon", "delta", "clip", "noise", "secret"}
    assert float(said["delta"]) == pytest.approx(200**-1.1)
