"""Competition: organizations of one market lose when their rivals gain (the cross-silo case).

loss_i = competition * mean_{j != i} b_j. The four potential games stay potential games: the loss of i changes
with another's action in the same way as the loss of that other changes with the action of i. Under the public
good the weights become v_i - competition * mean_{j != i} v_j and have to stay positive.
"""

from envs.arrays import Floats
from envs.game import GameConfig


def losses(game: GameConfig, benefits: Floats) -> Floats:
    """Return what each organization loses to its rivals, (..., organizations) like the benefits."""
    rivals = max(len(game.organizations) - 1, 1)
    others: Floats = benefits.sum(axis=-1, keepdims=True) - benefits
    return game.competition * others / rivals
