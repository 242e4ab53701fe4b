"""What the model is worth to the organizations, read by the public good and by welfare."""

import numpy as np

from envs.arrays import Floats
from envs.game import GameConfig


def model_values(game: GameConfig) -> Floats:
    """Return each organization's value of one unit of quality, (organizations,), money a round."""
    return np.array([float(organization.value) for organization in game.organizations])
