"""The one exception of this package."""


class GameError(ValueError):
    """A participation game, a surface or a policy that cannot be used as given."""
