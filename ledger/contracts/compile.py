"""Write ``Anchor.json`` from ``Anchor.vy``: ``python -m ledger.contracts.compile`` (needs vyper)."""

import json
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).with_name("Anchor.vy")
ARTIFACT = Path(__file__).with_name("Anchor.json")
EVM_VERSION = "paris"
"""Oldest fork whose opcodes suffice: the bytecode runs on every chain of today."""


def compile_anchor() -> dict[str, Any]:
    """Compile the contract.

    Returns
    -------
    dict
        ``abi``, ``bytecode`` (deployment code, 0x hex), ``compiler``, ``evm_version``.
    """
    import vyper
    from vyper.compiler.settings import OptimizationLevel, Settings

    settings = Settings(evm_version=EVM_VERSION, optimize=OptimizationLevel.GAS)
    output = vyper.compile_code(
        SOURCE.read_text(),
        output_formats=["abi", "bytecode"],
        settings=settings,
        no_bytecode_metadata=True,
    )
    return {
        "abi": output["abi"],
        "bytecode": output["bytecode"],
        "compiler": f"vyper {vyper.__version__.split('+')[0]}",
        "evm_version": EVM_VERSION,
    }


def main() -> None:
    """Write the artifact beside the source."""
    ARTIFACT.write_text(json.dumps(compile_anchor(), indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
