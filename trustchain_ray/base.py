"""The base model of a run: a name that workers load by themselves, or the files of a model made from the config."""

from collections.abc import Callable
from typing import Any

import ray

from trustchain_ray.config import Config
from trustchain_ray.data import load_public
from trustchain_ray.run_directory import RunDirectory


def prepare_base(config: Config, run: RunDirectory, progress: Callable[[str], None], local: bool = False) -> Any:
    """A folder or hub id; or, for a made base that other machines may need, a reference to its files in a list.

    A made base is made once, in a Ray task (the driver needs no torch) unless all is `local`, and kept in `base/` of
    the run.
    """
    if config.model.base != "made":
        return config.model.base
    folder = run.path / "base"
    if not (folder / "config.json").is_file():
        progress("making the base model from public records")
        files = _make_base(config) if local else ray.get(ray.remote(_make_base).remote(config))
        for name in sorted(files, key=lambda n: n == "config.json"):  # config.json last: it marks the whole
            run.write(f"base/{name}", files[name])
    if local:
        return str(folder)
    return [ray.put({path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()})]


def _make_base(config: Config) -> dict[str, bytes]:
    import torch

    from trustchain_ray.models import make_base

    torch.set_num_threads(config.training.threads)
    return make_base(config, load_public(config, config.data.public))
