"""The plan of a privacy budget: noise, epsilon and signal of every member, from the records on this machine."""

import dataclasses
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trustchain_ray.cohorts import cohorts_of, records_of
from trustchain_ray.config import Config
from trustchain_ray.data import load_holdings, load_public, organization_names
from trustchain_ray.privacy.account import epsilon
from trustchain_ray.privacy.member import mechanism
from trustchain_ray.privacy.pld import Charge
from trustchain_ray.privacy.signal import noise_warning, step_noise, step_warning
from trustchain_ray.sampling import sampling_rate


@dataclass(frozen=True)
class Member:
    """A row of the plan; `noise` in clip norms, `noise_to_signal` of a step's mean gradient."""

    organization: str
    cohort: str
    units: int
    rate: float
    steps: int
    delta: float
    noise: float
    epsilon: float | None
    with_removals: float | None
    noise_to_signal: float


def plan(config: Config) -> dict[str, Any]:
    """Noise, steps, epsilon and noise-to-signal of every member, from the records on this machine.

    Returns
    -------
    dict
        `members`: rows of :class:`Member`; `values`: number of trained values; `warning`, or None.
    """
    settings, names = config.privacy, organization_names(config)
    cohorts, composed, made = cohorts_of(config.federation, names), settings.dp != "paper", {}
    for name in names:
        train = load_holdings(config, name).train
        own = {c: [train[i] for i in records_of(config.federation, config.run.key, name, c, train)]
               for c, organizations in cohorts.items() if name in organizations}  # fmt: skip
        own = {cohort: records for cohort, records in own.items() if records}
        rates = {c: sampling_rate(config.training, len(records)) for c, records in own.items()}
        made[name] = mechanism(config, own, rates)
    divisor = 1 if settings.dp == "organization" else config.training.batch_size
    values, members = trained_values(config), []  # the model is loaded last: what is impossible is refused at once
    for name, its in made.items():
        for cohort in its.units:
            charge = Charge(its.rates[cohort], its.noise[cohort], its.releases)
            again = Charge(charge.rate, charge.noise, charge.steps * (1 + settings.max_removals))
            members.append(
                Member(
                    name, cohort, its.units[cohort], charge.rate, charge.steps, its.delta, charge.noise,
                    epsilon((charge,), its.delta) if composed else None,
                    epsilon((again,), its.delta) if composed else None,
                    step_noise(charge.noise, values, divisor),
                )
            )  # fmt: skip
    rows = [asdict(member) for member in members]
    warning = None
    if settings.dp == "organization":
        warning = noise_warning(max(member.noise for member in members), values, len(names))
    else:
        together = max(len(organizations) for organizations in cohorts.values())
        most = max(members, key=lambda member: member.noise_to_signal)
        warning = step_warning(settings.dp, most.noise_to_signal, together, config.training.batch_size, most.units)
    return {"dp": settings.dp, "budget": settings.epsilon, "values": values, "members": rows, "warning": warning}


def trained_values(config: Config) -> int:
    """Number of values that training changes: LoRA factors and head."""
    from trustchain_ray import forms
    from trustchain_ray.adapter import LORA_A
    from trustchain_ray.engines.base import AdapterModel
    from trustchain_ray.models import load_model, make_base, quietly

    with quietly(), tempfile.TemporaryDirectory() as folder:
        base = config.model.base
        if base == "made":
            made = dataclasses.replace(config.model.made, warmup_steps=0)
            bare = dataclasses.replace(config, model=dataclasses.replace(config.model, made=made))
            base = folder
            for name, data in make_base(bare, load_public(config, config.data.public)).items():
                Path(folder, name).write_bytes(data)
        trains_a = forms.get(config.model.lora.form).TRAINS_A
        adapter = AdapterModel(load_model(config, base, "cpu"), 0, config.model.task, 1, "cpu", trains_a)
        sizes = adapter.shapes().items()
    total = 0
    for name, shape in sizes:
        if trains_a or not name.endswith(LORA_A):
            count = 1
            for size in shape:
                count *= size
            total += count
    return total
