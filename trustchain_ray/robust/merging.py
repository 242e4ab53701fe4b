"""Merges under `trust.rule` and `trust.across`: used where a round is run, replayed, measured and re-executed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from trustchain_ray import forms
from trustchain_ray.adapter import Layout, Tensors
from trustchain_ray.config import Config
from trustchain_ray.merge import apply_step
from trustchain_ray.robust.rules import choose
from trustchain_ray.robust.settings import MEAN


@dataclass(frozen=True)
class RobustMerge:
    """A cohort's next state, and how it came about.

    Attributes
    ----------
    shares
        By organization, as text with six decimals: how much of its update is in the merge
        (:class:`trustchain_ray.robust.rules.Chosen`). Empty under the plain mean, whose weights say it.
    stands
        How many hostile updates the rule stood; fewer than `trust.hostile` where too few updates came.
    """

    state: Tensors
    shares: dict[str, str] = field(default_factory=dict)
    stands: int = 0

    def share_of(self, organization: str) -> dict[str, str]:
        """What an input of a MERGE event says besides organization, update and weight."""
        return {"share": self.shares[organization]} if self.shares else {}


def merge_updates(
    config: Config, state: Tensors, updates: Mapping[str, tuple[Tensors, int]], step: float | None = None
) -> RobustMerge:
    """Merge a cohort's updates into its state.

    Parameters
    ----------
    updates
        Tensors and weight by organization, in any order; none leave the state as it is.
    step
        Of the merged change; None: `federation.server_step`. A step of its own belongs to an approximate removal,
        whose few updates come from who removes: they are averaged whatever the rule.
    """
    if not updates:
        return RobustMerge(state)
    trust, names = config.trust, sorted(updates)
    tensors, weights = [updates[n][0] for n in names], [updates[n][1] for n in names]
    if trust.rule == MEAN or step is not None:
        step = config.federation.server_step if step is None else step
        form: Any = forms.get(config.model.lora.form)
        return RobustMerge(form.merge(state, tensors, weights, step, config.model.lora.alpha))
    layout = Layout.of(state)
    chosen = choose(trust.rule, [layout.pack(one) for one in tensors], weights, trust.hostile, trust.mixing)
    merged = apply_step(layout.pack(state), chosen.terms, chosen.weights, config.federation.server_step)
    shares = {name: f"{share:.6f}" for name, share in zip(names, chosen.shares, strict=True)}
    return RobustMerge(layout.unpack(merged), shares, chosen.stands)


def merge_cohorts(config: Config, begin: Tensors, states: Sequence[Tensors], weights: Sequence[int]) -> Tensors:
    """The model: the cohorts' changes of the initial state, merged by `trust.across`.

    Parameters
    ----------
    begin
        The initial state.
    states, weights
        At least one cohort, in the order of their names.
    """
    form: Any = forms.get(config.model.lora.form)
    scale, trust = config.federation.merge_scale, config.trust
    if trust.across == MEAN or len(states) == 1:
        mean: Tensors = form.merge_cohorts(begin, states, weights, scale)
        return mean
    layout = Layout.of(begin)
    changes = [layout.pack(form.update(begin, state)) for state in states]
    chosen = choose(trust.across, changes, weights, trust.hostile)
    return layout.unpack(apply_step(layout.pack(begin), chosen.terms, chosen.weights, scale))
