"""The chains of a run, made from its configuration. Keys come from the environment or a keystore, never from YAML."""

import os
import re
from pathlib import Path

from ledger.errors import LedgerError
from ledger.keys_ethereum import Signer
from ledger.private import PrivateChain
from ledger.public import PublicChain
from trustchain_ray.config import Config, PublicChainConfig


def public_chain(config: Config, run_dir: str | Path, run: str) -> PublicChain | None:
    """The public chain of a run (`ledger.public`); None where the configuration has none.

    Raises
    ------
    LedgerError
        A library is missing, or the account's key cannot be had.
    """
    settings, folder = config.ledger.public, Path(run_dir) / "ledger" / "chain"
    if settings.kind == "none":
        return None
    if settings.kind == "embedded":
        from ledger.embedded import EmbeddedEvm

        return EmbeddedEvm(folder)
    from ledger.rpc_chain import RpcChain

    return RpcChain(
        folder,
        node_address(settings.rpc_url),
        signer(settings),
        run,
        chain_id=settings.chain_id or None,
        contract=settings.contract or None,
        confirmations=settings.confirmations,
        max_fee_wei=int(settings.max_fee_gwei * 10**9),
    )


def private_chain(config: Config, run: str) -> PrivateChain | None:
    """The private chain that a run shares with its organizations (`ledger.private`); None: the log file alone.

    Raises
    ------
    LedgerError
        A library is missing, or the profile or the MSP folder cannot be used.
    """
    settings = config.ledger.private
    if settings.kind == "sqlite":
        return None
    from ledger.fabric.chain import FabricChain

    return FabricChain(
        settings.profile,
        settings.msp,
        run,
        organization=settings.organization or None,
        channel=settings.channel,
        chaincode=settings.chaincode,
        deadline_s=settings.deadline_s,
        endorsing_organizations=settings.endorsers,
    )


def preflight(config: Config) -> None:
    """Find out before a run starts what would keep it from its chains; asks no node.

    Raises
    ------
    LedgerError
        A library, a key, a profile or an MSP folder is missing or cannot be used.
    """
    if config.ledger.public.kind == "rpc":
        node_address(config.ledger.public.rpc_url)
        signer(config.ledger.public)
    private = private_chain(config, "preflight")
    if private is not None:
        private.close()


def signer(settings: PublicChainConfig) -> Signer:
    """The account that pays and anchors: of a keystore file, of a signing hook, or of the environment."""
    from ledger.keys_ethereum import open_signer

    return open_signer(settings.key_env, settings.keystore, settings.signer)


def node_address(url: str) -> str:
    """Put environment variables (`$NAME`, `${NAME}`) into the address of a node, so that API keys stay out of files.

    Raises
    ------
    LedgerError
        A variable is not set.
    """

    def value(match: re.Match[str]) -> str:
        name = match.group(1) or match.group(2)
        if name not in os.environ:
            raise LedgerError(f"ledger.public.rpc_url: the environment variable {name} is not set")
        return os.environ[name]

    return re.sub(r"\$(?:\{(\w+)\}|(\w+))", value, url)
