"""What a run does between two rounds: whom it expels, and what it goes on without."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from trustchain_ray.config import Config
from trustchain_ray.errors import TrustChainError
from trustchain_ray.federation import Federation
from trustchain_ray.forgetting import while_training
from trustchain_ray.forgetting.inbox import take_up


def run_of(planted: dict[str, set[int]]) -> Any:
    config = Config()
    config.trust.expel = 1
    return SimpleNamespace(
        config=config, names=sorted(planted), spared=set(), reputation=SimpleNamespace(planted=planted)
    )


@pytest.fixture
def removed(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Who was asked to be removed, in turn; who is named `stays` cannot be."""
    asked: list[list[str]] = []

    def remove(federation: Any, asks: list[Any], *_: Any) -> None:
        asked.append([ask.organization for ask in asks])
        if "stays" in asked[-1]:
            raise TrustChainError("it does not answer")
        federation.names = [name for name in federation.names if name not in asked[-1]]

    monkeypatch.setattr(while_training, "_remove", remove)
    monkeypatch.setattr(while_training, "_is_begun", lambda federation: False)
    return asked


def test_planters_are_expelled_together_so_that_the_others_pay_for_one_replay(removed: list[list[str]]) -> None:
    federation = run_of({"a": {1}, "b": {1}, "c": set()})
    assert while_training.expel_planters(federation, lambda text: None) == 1
    assert removed == [["a", "b"]]
    assert federation.names == ["c"]
    assert while_training.expel_planters(federation, lambda text: None) == 0


def test_one_that_cannot_be_removed_protects_no_other(removed: list[list[str]]) -> None:
    federation, said = run_of({"a": {1}, "c": set(), "stays": {2}}), list[str]()
    assert while_training.expel_planters(federation, said.append) == 1
    assert removed == [["a", "stays"], ["a"], ["stays"]]
    assert (federation.names, federation.spared) == (["c", "stays"], {"stays"})
    assert said[1:] == ["  not removed together: it does not answer", "  not removed: it does not answer"]
    assert while_training.expel_planters(federation, said.append) == 0, "tried once"


@pytest.mark.parametrize("begun", [False, True])
def test_a_request_that_fails_ends_the_training_only_if_it_was_begun(tmp_path: Path, begun: bool) -> None:
    inbox = tmp_path / "removals" / "inbox"
    inbox.mkdir(parents=True)
    (inbox / "1.json").write_text('{"asks": [{"scope": "record", "ids": ["r"]}], "method": "replay", "options": {}}')

    def handle(*_: Any) -> dict[str, Any]:
        raise TrustChainError("organization 'a': no answer")

    if begun:
        with pytest.raises(TrustChainError, match="no answer"):
            take_up(tmp_path, handle, lambda: begun)
    else:
        assert take_up(tmp_path, handle, lambda: begun) == 1
    assert "no answer" in (tmp_path / "removals" / "outcomes" / "1.json").read_text()


@pytest.mark.parametrize(("dp", "rate"), [("none", 16 / 100), ("record", 16 / 200)])
def test_private_sampling_rates_stay_as_records_go(dp: str, rate: float) -> None:
    federation = Federation.__new__(Federation)
    federation.config = Config()
    federation.config.privacy.dp, federation.config.training.batch_size = dp, 16
    federation.manifest = {"sampling_rates": {"a": {"all": repr(16 / 200)}}}
    federation.counts = {"a": {"all": 100}}
    assert federation.rate_of("a", "all") == pytest.approx(rate)
