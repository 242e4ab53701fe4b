"""What the federation shows its organizations of finished rounds, and what it owes them for a round."""

from collections.abc import Callable, Collection, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from envs import GameError, Payoff
from envs.arrays import Floats
from envs.game import GameConfig
from envs.payoffs.competition import losses
from envs.shapley import leave_one_out, shapley
from envs.stage_game import action_costs
from trustchain_ray.config import Config
from trustchain_ray.errors import TrustChainError
from trustchain_ray.keys import derive
from trustchain_ray.participation import EFFORTS, Shown, run_game

Value = Callable[[frozenset[str]], float]
"""Measured quality, in [0, 1], of the model that a coalition's updates of the round make."""


class Settlement:
    """Keeps what was played and measured, and settles rounds.

    Parameters
    ----------
    config
        `participation.settle_every` says which rounds are settled; 0: none.
    records
        Training records of every organization (the manifest's).

    Attributes
    ----------
    shown
        What the next round's decisions may rest on.
    last
        Body of the last settlement that was made here.
    """

    def __init__(self, config: Config, records: Mapping[str, int]) -> None:
        self._config, self._names = config, list(records)
        self.shown, self.last = Shown(), dict[str, Any]()
        self._game: GameConfig | None = None
        if config.participation.settle_every:
            self._game = run_game(config, records)

    def note(self, efforts: Mapping[str, Fraction]) -> None:
        """Remember what was played in a round; who is not named played 0."""
        played = {name: efforts.get(name, EFFORTS[0]) for name in self._names}
        self.shown = Shown((*self.shown.played, played), self.shown.quality)

    def due(self, number: int) -> bool:
        """Whether round `number` is settled: every so many rounds, and the last one."""
        every = self._config.participation.settle_every
        return every > 0 and (number % every == 0 or number == self._config.federation.rounds)

    def settle(
        self, number: int, efforts: Mapping[str, Fraction], value: Value, tested: Collection[int]
    ) -> dict[str, Any]:
        """Pay for a round by what each contribution really changed.

        Parameters
        ----------
        number
            The round, from 1.
        efforts
            Of the organizations whose updates were merged.
        value
            Asked for the coalitions that the payoff rule needs: 2^k for Shapley of k <= 8 participants, sampled
            orders (GTG-Shapley) beyond, k + 2 for leave-one-out, two for the others.
        tested
            Records on which each organization measures quality.

        Returns
        -------
        dict
            Body of REWARD_SETTLEMENT. Money is in strings of six decimals, by organization: `payments` by the rule,
            which no declared cost enters; `costs` as declared and `losses` to competition, for information; `chance`,
            what quality's standard error is worth: a measured contribution below it may be luck.

        Raises
        ------
        TrustChainError
            A coalition's quality is not finite: its model diverged.
        """
        assert self._game is not None
        game, players = self._game, sorted(name for name, effort in efforts.items() if effort)
        try:
            before, after = value(frozenset()), value(frozenset(players))
            if not np.isfinite([before, after]).all():
                raise GameError(f"the quality is {after} (before the round {before})")
            benefits = _benefits(game, self._config, number, players, efforts, after - before, value)
        except GameError as error:
            raise TrustChainError(f"round {number} cannot be settled: {error}") from None
        actions = [EFFORTS.index(efforts.get(name, EFFORTS[0])) for name in game.names]
        costs = action_costs(game)[actions, range(len(actions))]
        self.recall({"quality": repr(after)})
        self.last = {
            "round": number,
            "rule": game.payoff.value,
            "game": game.digest(),
            "quality_before": _money(before),
            "quality": repr(after),
            "chance": _money(game.reward * _standard_error(after, tested)),
            "payments": _table(game.names, benefits),
            "costs": _table(game.names, costs),
            "losses": _table(game.names, losses(game, benefits)),
        }
        return self.last

    def recall(self, body: Mapping[str, Any]) -> None:
        """Take a settlement as known: the quality that it measured is shown from now on."""
        self.shown = Shown(self.shown.played, float(body["quality"]))


def net_payoff(body: Mapping[str, Any], name: str) -> float:
    """What a settled round was worth to an organization: its payment less its cost and its loss to rivals, money."""
    return float(body["payments"][name]) - float(body["losses"][name]) - float(body["costs"][name])


def _benefits(
    game: GameConfig,
    config: Config,
    number: int,
    players: Sequence[str],
    efforts: Mapping[str, Fraction],
    gain: float,
    value: Value,
) -> Floats:
    """(organizations,), money: the payoff rules of `envs.payoffs` on measured coalitions."""
    rule, benefits = game.payoff, np.zeros(len(game.names))
    if rule is Payoff.PUBLIC_GOOD:
        return gain * np.array([float(one.value) for one in game.organizations])
    if not players:
        return benefits
    rows = [game.names.index(name) for name in players]

    def worth(coalition: frozenset[int]) -> float:
        return value(frozenset(players[i] for i in coalition))

    if rule is Payoff.LEAVE_ONE_OUT:
        benefits[rows] = game.reward * leave_one_out(worth, len(players)).values
    elif rule is Payoff.SHAPLEY:
        seed = int.from_bytes(derive(config.run.key, "settlement", number)[:4], "little")
        benefits[rows] = game.reward * shapley(worth, len(players), seed).values
    elif rule is Payoff.EQUAL_SPLIT:
        benefits[rows] = game.reward / len(players)
    else:
        brought = np.array(
            [float(efforts[n]) * game.organizations[i].data_quality * game.organizations[i].records
             for n, i in zip(players, rows, strict=True)]
        )  # fmt: skip
        benefits[rows] = game.reward * brought / max(float(brought.sum()), 1e-300)
    return benefits


def _standard_error(quality: float, tested: Collection[int]) -> float:
    """Of a quality that is the mean over organizations of the share of their records that is right (binomial)."""
    counts = [count for count in tested if count]
    share = min(max(quality, 0.0), 1.0)
    return float(np.sqrt(share * (1 - share) * sum(1 / n for n in counts))) / len(counts) if counts else 0.0


def _table(names: Sequence[str], amounts: Floats) -> dict[str, str]:
    return {name: _money(float(amount)) for name, amount in zip(names, amounts, strict=True)}


def _money(amount: float) -> str:
    return f"{amount:.6f}"
