"""The participation game: organizations that choose whether and how much to train together.

Read `envs.game` for what a game is, `envs.participation` for the PettingZoo environment, `envs.batched` for
thousands of games at once, `envs.oracles` and `envs.best_response` for the exact answers.
"""

from envs.batched import BatchedParticipation
from envs.errors import GameError
from envs.game import GameConfig, OrganizationType, Payoff
from envs.participation import env, parallel_env
from envs.surface import ClosedFormSurface, MeasuredSurface, SurfacePoint

__all__ = [
    "BatchedParticipation",
    "ClosedFormSurface",
    "GameConfig",
    "GameError",
    "MeasuredSurface",
    "OrganizationType",
    "Payoff",
    "SurfacePoint",
    "env",
    "parallel_env",
]
