"""Forms of the adapter: how it starts at a member, what an update is, how updates merge. One file each."""

from types import ModuleType

from trustchain_ray.forms import fedavg, ffa, flora, svd

_FORMS = {"ffa": ffa, "fedavg": fedavg, "flora": flora, "svd": svd}


def get(name: str) -> ModuleType:
    """The form of `model.lora.form`. Each has the functions of :mod:`trustchain_ray.forms.ffa`."""
    return _FORMS[name]
