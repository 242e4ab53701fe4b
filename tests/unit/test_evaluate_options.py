"""Settings of `evaluate --forgetting --set`."""

import pytest

from trustchain_ray.config import Config
from trustchain_ray.errors import UsageError
from trustchain_ray.evaluate.options import measurement_of
from trustchain_ray.forgetting.metrics.relearning import Relearning


def test_values_reach_the_settings() -> None:
    pairs = [
        "records=7", "new_tokens=5", "min_k=0.2", "quantisations=nf4", "margin.loss=0.1", "relearn.lr=0.01",
        "relearn.slack=-0.5",
    ]  # fmt: skip
    found = measurement_of(pairs, Config())
    settings = found.settings
    assert (found.records, settings.new_tokens, settings.min_k) == (7, 5, 0.2)
    assert (settings.quantisations, settings.margins) == (("nf4",), {"loss": 0.1})
    assert settings.relearning == Relearning(lr=0.01, slack=-0.5)


def test_generated_answers_are_no_longer_than_answers_can_be() -> None:
    config = Config()
    config.model.max_length = 48
    assert measurement_of([], config).settings.new_tokens == 48
    config.model.max_length = 4096
    assert measurement_of([], config).settings.new_tokens == 200


def test_parts_can_be_left_out() -> None:
    settings = measurement_of(["quantisations=none"], Config(), relearn=False).settings
    assert (settings.quantisations, settings.relearning) == ((), None)


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ("speed=3", "there is no 'speed'; there are records"),
        ("relearn.speed=3", "there is no 'relearn.speed'"),
        ("margin.accuracy=1", "there is no 'margin.accuracy'"),
        ("records=0", "must be at least 1"),
        ("records", "invalid literal"),
        ("new_tokens=-1", "must be at least 0"),
        ("min_k=1.5", "must be above 0 and at most 1"),
        ("min_k=nan", "must be above 0"),
        ("margin.loss=0", "must be above 0"),
        ("relearn.lr=inf", "must be finite"),
        ("quantisations=int2", "'int2' is none of int8, nf4, none"),
    ],
)
def test_what_cannot_be_set_is_named(pair: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as refused:
        measurement_of([pair], Config())
    assert str(refused.value).startswith(f"--set {pair}: ")


def test_a_classification_has_no_text_for_rouge() -> None:
    config = Config()
    config.model.task, config.model.labels = "classification", ["no", "yes"]
    assert measurement_of([], config).settings.new_tokens == 0
    with pytest.raises(UsageError, match="this run's model is a classification"):
        measurement_of(["new_tokens=10"], config)
