"""Which points a surface has: ranks, and joint efforts of the organizations."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from trustchain_ray.config import Config
from trustchain_ray.errors import UsageError
from trustchain_ray.keys import generator
from trustchain_ray.robust.settings import MEAN

MAX_POINTS = 20_000
Efforts = tuple[Fraction, ...]  # one an organization, in the order of their names; 0 is out


@dataclass(frozen=True)
class Point:
    """One training to be valued: a joint effort at a rank, and which repeat of it."""

    efforts: Efforts
    rank: int
    repeat: int

    def text(self) -> str:
        """A name for files and messages, e.g. ``rank 8 repeat 0 efforts 1,0,1/2``."""
        return f"rank {self.rank} repeat {self.repeat} efforts {','.join(map(str, self.efforts))}"


def parse_ranks(text: str) -> tuple[int, ...]:
    """LoRA ranks of `--ranks`, rising.

    Raises
    ------
    UsageError
        Not a list of different whole numbers of at least 1.
    """
    try:
        ranks = [int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"--ranks {text}: give whole numbers, such as 2,4,8") from None
    if min(ranks) < 1 or len(set(ranks)) != len(ranks):
        raise UsageError(f"--ranks {text}: give different ranks of at least 1, such as 2,4,8")
    return tuple(sorted(ranks))


def parse_efforts(text: str, local_steps: int) -> tuple[Fraction, ...]:
    """Effort levels of `--efforts`, rising; 0 (staying out) always belongs to them.

    Raises
    ------
    UsageError
        An effort that is no number in [0, 1], stands there twice, or of which no local step is left; or none above 0.
    """
    try:
        given = [Fraction(part.strip()) for part in text.split(",")]
    except (ValueError, ZeroDivisionError):
        raise UsageError(f"--efforts {text}: give numbers from 0 to 1, such as 0,1/2,1") from None
    for effort in given:
        if not 0 <= effort <= 1:
            raise UsageError(f"--efforts {text}: {effort} is outside [0, 1]")
        if effort and int(local_steps * effort) < 1:
            raise UsageError(
                f"--efforts {text}: effort {effort} of federation.local_steps={local_steps} is no step at all; "
                "take more local steps or a larger effort"
            )
    if len(set(given)) != len(given) or not any(given):
        raise UsageError(f"--efforts {text}: give different efforts, at least one of them above 0")
    return tuple(sorted({Fraction(0), *given}))


def joint_efforts(names: Sequence[str], levels: Sequence[Fraction], coalitions: str, key: str) -> list[Efforts]:
    """The joint efforts to measure, without the empty one.

    Parameters
    ----------
    levels : effort levels, rising, the first is 0.
    coalitions : `all`, or how many joint efforts (text of a number). The whole federation at the largest effort, each
        organization alone and all but each come first, then a keyed draw.

    Raises
    ------
    UsageError
        Fewer than two organizations, a number that is none, or more joint efforts than can be listed.
    """
    count = len(names)
    if count < 2:
        raise UsageError(
            f"measure: {count} organization(s) ({', '.join(names)}); a surface over coalitions needs at least two"
        )
    total = len(levels) ** count - 1
    if coalitions == "all":
        if total > MAX_POINTS:
            raise UsageError(
                f"measure: {count} organizations with {len(levels)} efforts have {total} joint efforts; "
                "give --coalitions K, or --efforts 0,1"
            )
        return sorted(point for point in itertools.product(levels, repeat=count) if any(point))
    if not coalitions.isdecimal() or not 1 <= int(coalitions) <= MAX_POINTS:
        raise UsageError(f"--coalitions {coalitions}: give `all`, or a number of joint efforts from 1 to {MAX_POINTS}")
    wanted, top, out = min(int(coalitions), total), levels[-1], levels[0]
    whole = (top,) * count
    chosen = [whole]
    chosen += [tuple(top if i == j else out for j in range(count)) for i in range(count)]
    chosen += [tuple(out if i == j else top for j in range(count)) for i in range(count)]
    chosen = list(dict.fromkeys(chosen))[:wanted]
    draws = generator(key, "measure", "coalitions")
    seen = set(chosen)
    while len(chosen) < wanted:
        point = tuple(levels[int(i)] for i in draws.integers(0, len(levels), count))
        if any(point) and point not in seen:
            seen.add(point)
            chosen.append(point)
    return sorted(chosen)


def check_measurable(config: Config, mode: str) -> None:
    """Refuse configurations whose points would not be comparable.

    Raises
    ------
    UsageError
        Own ranks of organizations, an engine that cannot swap adapters, or a rule on updates where there are none.
    """
    if config.model.lora.ranks:
        raise UsageError("model.lora.ranks: all organizations of a point train at one rank; leave own ranks out")
    if config.training.engine == "deepspeed":
        raise UsageError("training.engine=deepspeed: measure swaps adapters in one process; use engine torch")
    for key in ("rule", "across"):
        if mode == "merged" and (rule := getattr(config.trust, key)) != MEAN:
            raise UsageError(
                f"trust.{key}={rule} with --mode merged: organizations that train alone are merged by the plain mean, "
                f"and the rule would have nothing to work on; use --mode federated, or trust.{key}=mean"
            )


