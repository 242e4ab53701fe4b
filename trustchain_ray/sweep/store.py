"""What a sweep keeps: the rows of each point, written whole by the driver as they are reported."""

import json
import shutil
from pathlib import Path
from typing import Any

from trustchain_ray.config import Config
from trustchain_ray.config_files import to_yaml
from trustchain_ray.errors import TrustChainError, UsageError
from trustchain_ray.run_directory import RunDirectory
from trustchain_ray.sweep.trial import Row

CONFIG = "config.yaml"


class Store:
    """The folder of a sweep. Made with :meth:`create` or :meth:`open`; `close` unlocks it."""

    def __init__(self, folder: RunDirectory) -> None:
        self.folder = folder
        self.path = folder.path

    @classmethod
    def create(cls, path: Path, config: Config) -> "Store":
        """A new folder, locked for this process.

        Raises
        ------
        UsageError
            It exists and holds something.
        """
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise UsageError(f"{path} exists already; go on with it by --resume {path}, or choose another --out")
        path.mkdir(parents=True, exist_ok=True)
        folder = RunDirectory(path)
        folder.lock()
        folder.write(CONFIG, to_yaml(config).encode())
        return cls(folder)

    @classmethod
    def open(cls, path: Path) -> "Store":
        """A folder that was begun.

        Raises
        ------
        UsageError
            It is none.
        """
        if not (path / CONFIG).is_file():
            raise UsageError(f"{path} cannot be resumed: it has no {CONFIG}; `trustchain sweep` begins a sweep")
        folder = RunDirectory(path)
        folder.lock()
        return cls(folder)

    @property
    def config_file(self) -> str:
        return str(self.path / CONFIG)

    @property
    def work(self) -> Path:
        """Where trials have their own folders."""
        return self.path / "points"

    def load(self, name: str, game: str) -> tuple[Row, ...]:
        """Finished repeats of a point.

        Raises
        ------
        TrustChainError
            The file is damaged, or its game is not that of the configuration any more.
        """
        path = self._file(name)
        if not path.is_file():
            return ()
        try:
            rows = tuple(json.loads(path.read_text(encoding="utf-8"))["rows"])
            other = any(row["repeat"] == 0 and row["game"] != game for row in rows)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise TrustChainError(f"{path} is missing or damaged: {error}; remove it to have it done again") from None
        if other:
            raise TrustChainError(f"{path} is of another game: surface or records changed; begin a new sweep")
        return rows

    def save(self, name: str, values: dict[str, Any], rows: list[Row]) -> None:
        """Keep the finished repeats of a point."""
        content = json.dumps({"values": values, "rows": rows}, sort_keys=True, allow_nan=False)
        self.folder.write(f"done/{name}.json", content.encode() + b"\n")

    def write(self, name: str, text: str) -> None:
        self.folder.write(name, text.encode())

    def discard(self) -> None:
        """Remove the folder: nothing was begun in it."""
        shutil.rmtree(self.path)

    def close(self) -> None:
        self.folder.unlock()

    def _file(self, name: str) -> Path:
        return self.path / "done" / f"{name}.json"
