"""How the steps of one training call are made private. No torch: an organization makes it, a worker uses it."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from trustchain_ray.errors import UsageError
from trustchain_ray.privacy.noise import SECRET_BYTES

STEP_MODES = ("record", "subject", "paper")


@dataclass(frozen=True)
class PrivateSteps:
    """Clipping and noise of the steps of one call.

    Attributes
    ----------
    mode
        `record`, `subject` or `paper`, as `privacy.dp`.
    clip
        Largest L2 norm of what one unit adds to a step.
    noise
        Standard deviation of the noise in multiples of `clip`; 0 clips alone.
    key
        Of :func:`trustchain_ray.privacy.noise.noise_key`. Never shown.
    first
        Number of the first step within the run: no two steps of a key may share a number.
    subjects
        Of each row, in the mode `subject`.

    Raises
    ------
    UsageError
        A value is impossible.
    """

    mode: str
    clip: float
    noise: float
    key: bytes = field(repr=False)
    first: int = 0
    subjects: Sequence[str] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        if self.mode not in STEP_MODES:
            raise UsageError(f"privacy.dp={self.mode}: steps can be made private by {', '.join(STEP_MODES)}")
        if not self.clip > 0 or self.noise < 0:
            raise UsageError(f"privacy.clip={self.clip:g} must be above 0, the noise {self.noise:g} not below")
        if len(self.key) != SECRET_BYTES:
            raise UsageError(f"a noise key has {SECRET_BYTES} bytes, not {len(self.key)}")
