"""Where the chaincode's dependencies lie, and how it is started."""

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from ledger.errors import LedgerError
from ledger.fabric.network.layout import CHAINCODE_DIR


def modules() -> Path:
    """Folder ``node_modules`` of the chaincode: beside it, else in the user's cache, installed there if missing.

    Raises
    ------
    LedgerError
        npm is missing, or cannot install what the lock file names.
    """
    beside = CHAINCODE_DIR / "node_modules"
    if beside.is_dir():
        return beside
    lock = (CHAINCODE_DIR / "package-lock.json").read_bytes()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trustchain"
    kept = cache / f"chaincode-{hashlib.sha256(lock).hexdigest()[:16]}"
    if not kept.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            install(Path(folder) / "chaincode")
            try:
                os.rename(Path(folder) / "chaincode", kept)
            except OSError:  # another process was faster
                if not kept.is_dir():
                    raise
    return kept / "node_modules"


def install(folder: Path) -> None:
    """Run ``npm ci`` of the chaincode's lock file in a new folder. Raises LedgerError."""
    folder.mkdir()
    for name in ("package.json", "package-lock.json"):
        shutil.copy(CHAINCODE_DIR / name, folder)
    npm = shutil.which("npm")
    if npm is None:
        raise LedgerError("npm is not installed; the chaincode needs node 20 or newer with npm")
    done = subprocess.run(
        [npm, "ci", "--omit=dev", "--ignore-scripts", "--no-audit", "--no-fund"],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if "error" in line] or ["it printed nothing"]
        raise LedgerError(f"npm ci of the chaincode failed: {lines[0].strip()}")


def command() -> list[str]:
    """The program that serves the chaincode. Raises LedgerError without node, or as :func:`modules`."""
    node = shutil.which("node")
    if node is None:
        raise LedgerError("node is not installed; the chaincode needs node 20 or newer")
    return [node, str(modules() / "fabric-shim" / "cli.js")]
