"""Public good: every organization enjoys the common model, whether it took part or not.

b_i = v_i * (A(e) - A(0)). A weighted potential game with weights v_i and potential A(e) - sum_i c_i / v_i;
free riding makes its equilibria fall short of the welfare optimum (2103.03228).
"""

from envs.arrays import Floats
from envs.game import GameConfig
from envs.payoffs.values import model_values
from envs.profiles import Profiles


def benefits(game: GameConfig, profiles: Profiles, gain: Floats) -> Floats:
    """Return the benefit of each organization in each profile.

    Parameters
    ----------
    game, profiles
        The game and its joint actions.
    gain
        (profiles,): quality above the base model's.

    Returns
    -------
    (profiles, organizations), money.
    """
    return gain[:, None] * model_values(game)


def funds(game: GameConfig, profiles: Profiles, gain: Floats) -> Floats:
    """Return the money that pays for the benefits, (profiles,): the model's value itself, no transfer."""
    return gain * float(model_values(game).sum())
