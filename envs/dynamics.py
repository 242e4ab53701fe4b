"""How a game moves from round to round, for one game or for thousands.

All functions work on arrays whose last axis is the organizations and whose leading axes are games. They
only look up tables, compare integers and divide elementwise: a game gives the same bits alone or in a batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from envs.arrays import Floats, Ints, Observations
from envs.errors import GameError
from envs.payoffs.values import model_values
from envs.profiles import action_efforts, action_ranks
from envs.stage_game import StageGame, action_costs

PRIVATE = (
    "effort_last",
    "rank_last",
    "reward_last",
    "mean_effort",
    "budget_left",
    "records",
    "data_quality",
    "cost",
    "value",
)
PUBLIC = ("quality_last", "participation_last", "participation_mean", "time")
FEATURES = PRIVATE + PUBLIC


@dataclass(frozen=True)
class State:
    """All that the future of a game depends on.

    Attributes
    ----------
    round
        Rounds played.
    last
        (..., organizations): actions played in the last round, 0 before the first.
    spent
        (..., organizations): effort spent so far, in half-effort units.
    """

    round: int
    last: Ints
    spent: Ints


class Dynamics:
    """The transition and observation functions of a game.

    Parameters
    ----------
    stage
        The tabulated round.
    """

    def __init__(self, stage: StageGame) -> None:
        game = stage.game
        self.stage = stage
        self.game = game
        self.units: Ints = np.rint(2 * action_efforts(game)).astype(np.int64)
        self.budget: Ints = np.array(
            [
                2 * game.horizon if one.budget is None else min(int(2 * one.budget), 2 * game.horizon)
                for one in game.organizations
            ],
            dtype=np.int64,
        )
        self._strides = [int(stride) for stride in stage.profiles.strides]

    @cached_property
    def _type_features(self) -> Floats:
        """(organizations, 4): records, data quality, cost, value; all but quality over the largest."""
        game = self.game
        records = np.array([float(one.records) for one in game.organizations])
        quality = np.array([float(one.data_quality) for one in game.organizations])
        cost, value = action_costs(game)[2], model_values(game)
        return np.stack(
            [records / records.max(), quality, cost / (cost.max() or 1.0), value / (value.max() or 1.0)],
            axis=1,
        )

    @cached_property
    def _action_features(self) -> Floats:
        """(actions, 2): effort, and rank over the largest rank."""
        return np.stack([action_efforts(self.game), action_ranks(self.game) / self.game.ranks[-1]], axis=1)

    def start(self, games: tuple[int, ...] = ()) -> State:
        """Return the state before the first round; `games` is the shape of the leading axes."""
        shape = (*games, len(self.game.organizations))
        return State(0, np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64))

    def profile(self, actions: Ints) -> Ints:
        """Return the row of each joint action in the stage game's tables, (...)."""
        index = actions[..., 0] * self._strides[0]
        for column, stride in enumerate(self._strides[1:], start=1):
            index = index + actions[..., column] * stride
        return np.asarray(index, dtype=np.int64)

    def affordable(self, state: State, wanted: Ints) -> Ints:
        """Return the actions that the budgets allow: full effort falls to half, half to out."""
        left = self.budget - state.spent
        half = np.where((left == 1) & (self.units[wanted] == 2), wanted - 1, wanted)
        return np.where(left <= 0, 0, half)

    def step(self, state: State, wanted: Ints) -> tuple[State, Floats]:
        """Play one round.

        Parameters
        ----------
        state
            Before the round.
        wanted
            (..., organizations): actions asked for, in [0, action_count).

        Returns
        -------
        The state after the round, and the rewards, (..., organizations) in [-1, 1].
        """
        played = self.affordable(state, wanted)
        rewards = self.stage.rewards[self.profile(played)]
        return State(state.round + 1, played, state.spent + self.units[played]), rewards

    def observe(self, state: State) -> Observations:
        """Return (..., organizations, features) float32 in [0, 1], columns as in `FEATURES`."""
        game = self.game
        profile = self.profile(state.last)
        view = np.empty((*state.last.shape, len(FEATURES)), dtype=np.float32)
        view[..., 0:2] = self._action_features[state.last]
        view[..., 2] = (self.stage.rewards[profile] + 1.0) / 2.0
        view[..., 3] = state.spent / (2 * max(state.round, 1))
        view[..., 4] = (self.budget - state.spent) / (2 * game.horizon)
        view[..., 5:9] = self._type_features
        everyone = 2 * len(game.organizations)
        view[..., 9] = self.stage.quality[profile][..., None]
        view[..., 10] = self.units[state.last].sum(axis=-1, keepdims=True) / everyone
        view[..., 11] = state.spent.sum(axis=-1, keepdims=True) / (everyone * max(state.round, 1))
        view[..., 12] = state.round / game.horizon
        return view

    def done(self, state: State) -> bool:
        """Return whether the horizon is reached."""
        return state.round >= self.game.horizon

    def check_actions(self, wanted: Ints) -> None:
        """Refuse actions outside the action space, naming the organization.

        Raises
        ------
        GameError
            Where the array is not integer, has another width, or holds an unknown action.
        """
        if not np.issubdtype(wanted.dtype, np.integer) or wanted.shape[-1:] != self.budget.shape:
            raise GameError(
                f"actions: shape {wanted.shape} of {wanted.dtype}, give integers with a last axis of "
                f"{len(self.budget)} organizations"
            )
        bad = np.argwhere((wanted < 0) | (wanted >= self.game.action_count))
        if len(bad):
            raise GameError(
                f"actions: organization {self.game.names[bad[0][-1]]!r} asks for action "
                f"{wanted[tuple(bad[0])]}, give 0 to {self.game.action_count - 1}"
            )
