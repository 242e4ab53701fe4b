# ruff: noqa: RUF009 - `_f` makes a field, it is no default
"""Configuration of the participation game and of learning in it (section `participation`)."""

from collections.abc import Iterator
from dataclasses import dataclass, field, is_dataclass
from typing import Any

PAYOFFS = ("public_good", "leave_one_out", "shapley", "equal_split", "proportional_split")


def _f(default: Any, doc: str, *, path: bool = False, entries: type | None = None) -> Any:
    """A documented field; the metadata are those of `trustchain_ray.config`."""
    metadata = {"doc": doc, "path": path, "entries": entries}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    if is_dataclass(default) and isinstance(default, type):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class TermsConfig:
    data_quality: float = _f(1.0, "How much one of its records is worth to the model, 0 to 1.")
    unit_cost: float = _f(1e-4, "Money per record and full-effort round.")
    value: float = _f(1.0, "Money per unit of model quality and round.")
    privacy_price: float = _f(0.0, "Money per unit of epsilon.")
    replay_duty: float = _f(0.0, "Expected share of a full-effort round trained again later, to honour removals.")
    budget: float = _f(-1.0, "Full-effort rounds that it can afford, a multiple of 0.5; -1: all of them.")


@dataclass
class LearningConfig:
    env_steps: int = _f(48_000, "Rounds of the game to learn from, all organizations acting in each.")
    games: int = _f(64, "Games that are played side by side.")
    updates: int = _f(8, "Learner updates after one episode of all games.")
    batch_size: int = _f(128, "Rounds of an update, drawn uniformly from the buffer.")
    buffer: int = _f(20_000, "Rounds that the replay buffer holds.")
    hidden: list[int] = _f([64, 64], "Widths of the Q-network's hidden layers.")
    shared: bool = _f(False, "One network for all, which reads who it plays for; else one an organization.")
    lr: float = _f(1e-3, "Learning rate in the first half.")
    lr_end: float = _f(1e-4, "Learning rate at the end; it falls linearly over the second half.")
    epsilon: float = _f(0.5, "Share of rounds in which one organization tries a random action.")
    random_starts: float = _f(0.75, "Share of games that are played at random up to a random round.")
    target_every: int = _f(2_000, "Rounds between updates of the target network.")
    iterations: int = _f(20, "Checkpoints, and points of the learning curve.")
    seed: int = _f(0, "Which of several learnings under one `run.key`.")


@dataclass
class ParticipationConfig:
    payoff: str = _f(
        "leave_one_out",
        "What a round pays: public_good | leave_one_out | shapley | equal_split | proportional_split.",
    )
    reward: float = _f(0.0, "Money per unit of quality (or per round for the splits); 0: the sum of all values.")
    horizon: int = _f(0, "Rounds of a game; 0: federation.rounds.")
    discount: float = _f(0.95, "Discount per round.")
    competition: float = _f(0.0, "Share of the mean benefit of its rivals that an organization loses.")
    ranks: list[int] = _f([], "LoRA ranks to choose from; empty: model.lora.rank alone.")
    rank_cost: float = _f(0.0, "Compute grows as 1 + rank_cost * rank.")
    epsilon_per_round: float = _f(0.0, "Privacy spent in a full-effort round.")
    surface: str = _f("", "Measured response surface (JSON); empty: the closed form.", path=True)
    ceiling: float = _f(0.9, "Closed form: quality with endless data.")
    steepness: float = _f(0.0, "Closed form: per effective record; 0: all organizations reach 95 % of the ceiling.")
    rank_half: float = _f(0.0, "Closed form: rank at which a record counts half.")
    terms: TermsConfig = _f(TermsConfig, "Costs and values of an organization.")
    organizations: dict[str, TermsConfig] = _f(
        {}, "Organizations with terms of their own, all of them given anew.", entries=TermsConfig
    )
    cost_spread: float = _f(
        0.0, "Spread h of unit costs: evenly from 1 - h to 1 + h times the terms', in an order drawn by run.key."
    )
    policy: str = _f("", "Folder of learned policies, for `federation.participation: learned`.", path=True)
    schedule: str = _f("", "Schedule file, or run directory, for `federation.participation: file`.", path=True)
    settle_every: int = _f(
        0, "Measure contributions and settle rewards every so many rounds, and in the last; 0: never."
    )
    learning: LearningConfig = _f(LearningConfig, "Q-learning.")
    max_nash_conv: float = _f(0.05, "Refuse policies whose NashConv is a larger share of the payoff range.")


# In the form of the tables of `trustchain_ray.config`.
CHOICES = {"participation.payoff": PAYOFFS}
RANGES: tuple[tuple[str, float | None, float | None], ...] = (
    ("participation.reward", 0, None),
    ("participation.settle_every", 0, None),
    ("participation.horizon", 0, None),
    ("participation.discount", 0, 1),
    ("participation.competition", 0, None),
    ("participation.rank_cost", 0, None),
    ("participation.epsilon_per_round", 0, None),
    ("participation.ceiling", 1e-9, 1),
    ("participation.steepness", 0, None),
    ("participation.rank_half", 0, None),
    ("participation.max_nash_conv", 0, None),
    ("participation.cost_spread", 0, 1),
    ("participation.terms.data_quality", 0, 1),
    ("participation.terms.unit_cost", 0, None),
    ("participation.terms.value", 0, None),
    ("participation.terms.privacy_price", 0, None),
    ("participation.terms.replay_duty", 0, None),
    ("participation.terms.budget", -1, None),
    ("participation.learning.seed", 0, None),
    ("participation.learning.env_steps", 1, None),
    ("participation.learning.games", 1, None),
    ("participation.learning.updates", 1, None),
    ("participation.learning.batch_size", 2, None),
    ("participation.learning.buffer", 1, None),
    ("participation.learning.lr", 1e-9, 1),
    ("participation.learning.lr_end", 1e-9, 1),
    ("participation.learning.epsilon", 0, 1),
    ("participation.learning.random_starts", 0, 1),
    ("participation.learning.target_every", 1, None),
    ("participation.learning.iterations", 1, None),
)


def problems(settings: ParticipationConfig) -> Iterator[str]:
    """Yield what `CHOICES` and `RANGES` cannot say; the game itself checks the organizations' terms."""
    if not settings.learning.hidden or min(settings.learning.hidden) < 1:
        yield f"participation.learning.hidden={settings.learning.hidden}: give at least one positive width"
