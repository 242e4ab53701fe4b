"""What the actions of `trustchain chain` do."""

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ledger import layout
from ledger.canonical import parse_canonical
from ledger.errors import LedgerError
from ledger.heads import parse_store
from ledger.identity import Identity
from ledger.service import LedgerService
from trustchain_ray.chains import node_address, private_chain, public_chain, signer
from trustchain_ray.config import Config
from trustchain_ray.config_files import load_config
from trustchain_ray.errors import TrustChainError, UsageError
from trustchain_ray.keystore import coordinator_identity
from trustchain_ray.run_directory import RunDirectory


def status(path: Path) -> dict[str, Any]:
    """What the run's own files say: size of the log, heads, anchors by state, events on the private chain."""
    from ledger.log import SqliteLog

    log = SqliteLog(path / layout.LOG, read_only=True)
    size, run_id = log.size, log.registry.run
    log.close()
    result: dict[str, Any] = {"run": run_id, "events": size, "sealed": (path / layout.SEAL).is_file()}
    if (path / layout.ANCHORS).is_file():
        store = parse_store((path / layout.ANCHORS).read_bytes())
        states = ["NOT SENT" if entry.receipt is None else entry.receipt.status for entry in store.entries]
        result |= {"heads": len(states), "public chain": store.chain or "none"}
        if store.chain:
            result["anchors"] = {state: states.count(state) for state in dict.fromkeys(states)}
    if (path / layout.PRIVATE).is_file():
        sent = parse_canonical((path / layout.PRIVATE).read_bytes())
        result |= {"private chain": sent["chain"], "private backlog": size - sent["size"]}
    return result


def drain(path: Path, final_s: float) -> dict[str, Any]:
    """Bring everything to the chains of the run's configuration; a run that was sealed is sealed again.

    Parameters
    ----------
    final_s : wait so many seconds for the newest anchor to become final.

    Returns
    -------
    dict
        `drained`: whether the chains have everything now; and the ledger's status.
    """
    with at_rest(path, patience_s=0.0) as (ledger, config, _):
        drained = ledger.drain(config.ledger.drain_s)
        if drained and final_s > 0:
            _wait_for_finality(ledger, final_s)
    return {"drained": drained, **ledger.status()}


@contextlib.contextmanager
def at_rest(path: Path, patience_s: float | None = None) -> Iterator[tuple[LedgerService, Config, Identity]]:
    """The ledger of a run that nobody works on, with its chains; a run that was sealed is sealed again at the end.

    Parameters
    ----------
    patience_s : how long the chains may take at the seal; None: `ledger.drain_s`.

    Yields
    ------
    tuple
        The ledger, the run's configuration, and its coordinator's identity.
    """
    folder = RunDirectory.open(path)
    try:
        config = load_config([str(path / "config.yaml")], [])
        manifest = parse_canonical((path / layout.MANIFEST).read_bytes())
        sealed = (path / layout.SEAL).is_file()
        coordinator = coordinator_identity(config, path)
        ledger = LedgerService(
            path,
            manifest["run"],
            coordinator,
            public_chain(config, path, manifest["run"]),
            config.ledger.anchor_every,
            private_chain(config, manifest["run"]),
            config.ledger.private.approvals,
            config.ledger.private.members,
        )
        try:
            yield ledger, config, coordinator
            if sealed:
                ledger.seal(patience_s=config.ledger.drain_s if patience_s is None else patience_s)
        finally:
            ledger.close()
    finally:
        folder.unlock()


def deploy(config: Config, members: Sequence[str], threshold: int, coordinator: str) -> dict[str, Any]:
    """Deploy the consortium's contract; its address goes into `ledger.public.contract` of everybody's configuration.

    Parameters
    ----------
    members : each `ADDRESS=FILE`.
    threshold : members that must approve; 0: more than half.

    Raises
    ------
    UsageError
        The configuration names no node, or a member or the threshold is none.
    """
    from ledger.federation import NOBODY, Federation, member

    settings = config.ledger.public
    if settings.kind != "rpc":
        raise UsageError("chain deploy: set ledger.public.kind=rpc and ledger.public.rpc_url")
    founders = []
    for text in members:
        account, _, file = text.partition("=")
        try:
            document = parse_canonical(Path(file).read_bytes())
            founders.append(member(account, document["organization"], document["key_id"]))
        except (OSError, LedgerError, KeyError, TypeError) as error:
            raise UsageError(f"chain deploy: --member {text}: is not ADDRESS=FILE of an identity ({error})") from None
    if not 0 <= threshold <= len(founders):
        raise UsageError(f"chain deploy: --threshold {threshold}; there are {len(founders)} members")
    made = Federation.deploy(
        node_address(settings.rpc_url),
        signer(settings),
        founders,
        threshold or len(founders) // 2 + 1,
        coordinator or NOBODY,
        chain_id=settings.chain_id or None,
        max_fee_wei=int(settings.max_fee_gwei * 10**9),
    )
    return {"ledger.public.contract": made.contract, "members": len(founders), "threshold": made.threshold()}


def _wait_for_finality(ledger: LedgerService, seconds: float) -> None:
    end, delivery = time.monotonic() + seconds, ledger.public
    pause = threading.Event()
    while delivery is not None and time.monotonic() < end:
        newest = ledger.status()["anchor"]
        if newest is None or newest["status"] == "FINALIZED":
            return
        if not delivery.step():
            if delivery.refused:
                raise TrustChainError(f"the public chain refuses: {delivery.error}")
            pause.wait(0.2)
