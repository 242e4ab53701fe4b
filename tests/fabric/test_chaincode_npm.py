"""The chaincode's own tests, run by node as its authors run them."""

import json
import os
import shutil
import subprocess

import pytest

from ledger.fabric.network import chaincode
from ledger.fabric.network.layout import CHAINCODE_DIR


def test_the_chaincode_passes_its_own_tests() -> None:
    if shutil.which("npm") is None or shutil.which("node") is None:
        pytest.skip("npm is not installed: it runs the chaincode's tests")
    environment = {**os.environ, "NODE_PATH": str(chaincode.modules())}
    done = subprocess.run(
        ["npm", "test"], cwd=CHAINCODE_DIR, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    passed = next(line for line in done.stdout.splitlines() if line.startswith(("# pass ", "\u2139 pass ")))
    assert int(passed.split()[-1]) >= 80, "tests went missing"


def test_the_lock_file_names_no_private_registry() -> None:
    packages = json.loads((CHAINCODE_DIR / "package-lock.json").read_text())["packages"]
    named = [entry["resolved"] for entry in packages.values() if "resolved" in entry]
    assert all(address.startswith("https://registry.npmjs.org/") for address in named)
    assert all("integrity" in entry for path, entry in packages.items() if path)
