"""Write the artifacts of the contracts: ``python -m ledger.contracts.compile`` (needs vyper)."""

import functools
import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
CONTRACTS = ("Anchor", "Federation")
EVM_VERSION = "paris"
"""Oldest fork whose opcodes suffice: the bytecode runs on every chain of today."""


def artifact_path(name: str) -> Path:
    """Where the artifact of a contract lies."""
    return FOLDER / f"{name}.json"


@functools.cache
def load_artifact(name: str) -> dict[str, Any]:
    """The committed artifact of a contract, as :func:`compile_contract` makes it."""
    content: dict[str, Any] = json.loads(artifact_path(name).read_text())
    return content


def compile_contract(name: str) -> dict[str, Any]:
    """Compile a contract of this folder.

    Returns
    -------
    dict
        ``abi``; ``bytecode`` (deployment code without arguments) and ``runtime`` (deployed code without the
        immutables behind it), 0x hex; ``selectors`` (4 bytes by signature) and ``topics`` (32 bytes by
        signature of the event), so that a reader needs no Keccak; ``compiler``, ``evm_version``.
    """
    import vyper
    from vyper.compiler.settings import OptimizationLevel, Settings
    from vyper.utils import keccak256

    settings = Settings(evm_version=EVM_VERSION, optimize=OptimizationLevel.GAS)
    output = vyper.compile_code(
        (FOLDER / f"{name}.vy").read_text(),
        output_formats=["abi", "bytecode", "bytecode_runtime", "method_identifiers"],
        settings=settings,
        no_bytecode_metadata=True,
    )
    events = [
        f"{entry['name']}({','.join(field['type'] for field in entry['inputs'])})"
        for entry in output["abi"]
        if entry["type"] == "event"
    ]
    return {
        "abi": output["abi"],
        "bytecode": output["bytecode"],
        "compiler": f"vyper {vyper.__version__.split('+')[0]}",
        "evm_version": EVM_VERSION,
        "runtime": output["bytecode_runtime"],
        "selectors": output["method_identifiers"],
        "topics": {event: "0x" + keccak256(event.encode()).hex() for event in events},
    }


def main() -> None:
    """Write the artifacts beside the sources."""
    for name in CONTRACTS:
        artifact_path(name).write_text(json.dumps(compile_contract(name), indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
