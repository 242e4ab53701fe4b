"""Payoff rules, one file each. A rule is two functions: `benefits` and the `funds` that pay for them."""

from collections.abc import Callable
from dataclasses import dataclass

from envs.arrays import Floats
from envs.game import GameConfig, Payoff
from envs.payoffs import equal_split, leave_one_out, proportional_split, public_good, shapley
from envs.profiles import Profiles


@dataclass(frozen=True)
class PayoffRule:
    """The two functions of a payoff rule; shapes in `envs.payoffs.public_good`."""

    benefits: Callable[[GameConfig, Profiles, Floats], Floats]
    funds: Callable[[GameConfig, Profiles, Floats], Floats]


RULES = {
    Payoff.PUBLIC_GOOD: PayoffRule(public_good.benefits, public_good.funds),
    Payoff.LEAVE_ONE_OUT: PayoffRule(leave_one_out.benefits, leave_one_out.funds),
    Payoff.SHAPLEY: PayoffRule(shapley.benefits, shapley.funds),
    Payoff.EQUAL_SPLIT: PayoffRule(equal_split.benefits, equal_split.funds),
    Payoff.PROPORTIONAL_SPLIT: PayoffRule(proportional_split.benefits, proportional_split.funds),
}
