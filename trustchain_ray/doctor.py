"""The verb `doctor`: what this machine and environment can do."""

import importlib.metadata
import importlib.util
import os
import platform


def examine() -> dict[str, str]:
    """Versions, devices and optional parts, by name."""
    found = {"python": platform.python_version(), "cpus": str(os.cpu_count())}
    for package in ("ray", "torch", "transformers", "peft", "deepspeed", "py-evm", "pettingzoo", "datasets"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "missing"
    if importlib.util.find_spec("torch"):
        import torch

        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        found["gpus"] = ", ".join(names) or "none"
    from trustchain_ray.keystore import home

    found["home"] = str(home())
    return found
