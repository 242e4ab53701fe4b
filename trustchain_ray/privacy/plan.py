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
from trustchain_ray.privacy.signal import noise_warning, step_noise
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
        `members`: rows of :class:`Member`; `values`: number of trained values; `warning` (``dp: organization``).
    """
    values, settings, names = trained_values(config), config.privacy, organization_names(config)
    cohorts, composed, members = cohorts_of(config.federation, names), settings.dp != "paper", []
    for name in names:
        train = load_holdings(config, name).train
        own = {c: [train[i] for i in records_of(config.federation, config.run.key, name, c, train)]
               for c, organizations in cohorts.items() if name in organizations}  # fmt: skip
        own = {cohort: records for cohort, records in own.items() if records}
        made = mechanism(config, own, {c: sampling_rate(config.training, len(records)) for c, records in own.items()})
        for cohort in own:
            charge = Charge(made.rates[cohort], made.noise[cohort], made.releases)
            again = Charge(charge.rate, charge.noise, charge.steps * (1 + settings.max_removals))
            members.append(
                Member(
                    name, cohort, made.units[cohort], charge.rate, charge.steps, made.delta, charge.noise,
                    epsilon((charge,), made.delta) if composed else None,
                    epsilon((again,), made.delta) if composed else None,
                    step_noise(charge.noise, values, config.training.batch_size),
                )
            )  # fmt: skip
    rows = [asdict(member) for member in members]
    warning = None
    if settings.dp == "organization":
        warning = noise_warning(max(member.noise for member in members), values, len(names))
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
