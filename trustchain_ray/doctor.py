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
        found["bfloat16"] = (
            "emulated on the CPU, several times slower than float32" if emulates_bfloat16() else "native"
        )
    from trustchain_ray.keystore import home

    found["home"] = str(home())
    return found


def emulates_bfloat16(info: str = "/proc/cpuinfo") -> bool:
    """Whether this machine's processor has no instructions for bfloat16; False where that cannot be read."""
    try:
        with open(info, encoding="utf-8") as lines:
            flags = next((line for line in lines if line.startswith("flags")), "")
    except OSError:
        return False
    return bool(flags) and not {"avx512_bf16", "amx_bf16"} & set(flags.split())
