"""The work folder beside a surface: every finished training and valuation, so that nothing is done twice."""

import json
from pathlib import Path
from typing import Any

from ledger.canonical import sha256_hex
from trustchain_ray.adapter import load_tensors, serialise
from trustchain_ray.config_files import to_yaml
from trustchain_ray.errors import TrustChainError, UsageError
from trustchain_ray.manifest import check_same
from trustchain_ray.run_directory import RunDirectory
from trustchain_ray.worker import Packed

Result = dict[str, Any]


def work_folder(out: Path) -> Path:
    """Where the trainings of a surface lie."""
    return out.with_name(out.name + ".work")


def free_name(folder: str, name: str) -> Path:
    """The first free `<folder>/<name>.json`, `<name>-2.json`, ...: surfaces never overwrite each other."""
    number = 1
    while True:
        out = Path(folder) / f"{name}{'' if number == 1 else f'-{number}'}.json"
        if not out.exists() and not work_folder(out).exists():
            return out
        number += 1


class Store:
    """Results by name, each written whole or not at all. Made with :meth:`create` or :meth:`open`; `close` unlocks."""

    def __init__(self, run: RunDirectory) -> None:
        self.run = run

    @classmethod
    def create(cls, out: Path, config: Any, settings: Result) -> "Store":
        """A new work folder.

        Raises
        ------
        UsageError
            The surface or its work folder is there already.
        """
        for path in (out, work_folder(out)):
            if path.exists():
                raise UsageError(f"{path} exists already; go on with it by --resume {out}, or choose another --out")
        run = RunDirectory.create(work_folder(out))
        store = cls(run)
        store.keep_settings(settings)
        run.write("config.yaml", to_yaml(config).encode())  # last: it marks what can be resumed
        return store

    @classmethod
    def open(cls, out: Path) -> "Store":
        """The work folder of a surface that was begun.

        Raises
        ------
        UsageError
            There is none.
        """
        if not (work_folder(out) / "config.yaml").is_file():
            raise UsageError(f"{out} cannot be resumed: {work_folder(out)} holds no begun measurement")
        return cls(RunDirectory.open(work_folder(out)))

    @property
    def config_file(self) -> str:
        return str(self.run.path / "config.yaml")

    def settings(self) -> Result:
        """What was asked for when the measurement began."""
        return dict(self._read(self.run.path / "settings.json"))

    def keep_settings(self, settings: Result) -> None:
        """What a resume goes on with."""
        self.run.write("settings.json", _json(settings))

    def agree(self, identity: Result) -> None:
        """Keep what the results are a function of; refuse to go on when it changed.

        Raises
        ------
        TrustChainError
            Naming each part that differs: base, records, hardware class.
        """
        path = self.run.path / "identity.json"
        if path.is_file():
            check_same(self._read(path), identity, str(self.run.path))
        else:
            self.run.write("identity.json", _json(identity))

    def load(self, name: str, states: bool = False) -> Result | None:
        """A finished result, with its cohort states where asked for; None where it is not finished."""
        path = self._path(name)
        if not path.is_file():
            return None
        result: Result = self._read(path)["result"]
        if states and "states" in result:
            result["states"] = {c: Packed.of(load_tensors(self.run.path / f)) for c, f in result["states"].items()}
        return result

    def save(self, name: str, result: Result) -> None:
        """Keep a result under its name."""
        kept = dict(result)
        if "states" in kept:
            files = {c: f"states/{_file(f'{name} {c}')}.safetensors" for c in kept["states"]}
            for cohort, packed in kept["states"].items():
                self.run.write(files[cohort], serialise(packed.tensors()))
            kept["states"] = files
        self.run.write(f"results/{_file(name)}.json", _json({"name": name, "result": kept}))

    def close(self) -> None:
        self.run.unlock()

    def _path(self, name: str) -> Path:
        return self.run.path / "results" / f"{_file(name)}.json"

    def _read(self, path: Path) -> Any:
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise TrustChainError(f"{path} is missing or damaged: {error}; remove it to have it done again") from None


def _file(name: str) -> str:
    return sha256_hex(name.encode())[:32]


def _json(value: Any) -> bytes:
    return (json.dumps(value, sort_keys=True) + "\n").encode()
