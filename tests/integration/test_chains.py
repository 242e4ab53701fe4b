"""Runs on two real-protocol chains: an EVM node, and a Fabric channel by its gateway service."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from anvil import SECRETS, Anvil

pytest.importorskip("grpc")

from fabric_consortium import Consortium

pytestmark = pytest.mark.slow


@pytest.fixture
def node() -> Iterator[Anvil]:
    node = Anvil("--slots-in-an-epoch", "1").start()
    yield node
    node.kill()


@pytest.fixture
def consortium(tmp_path: Path) -> Iterator[Consortium]:
    made = Consortium(tmp_path)
    yield made
    made.close()


def on_both(node: Anvil, consortium: Consortium) -> list[str]:
    return [
        "ledger.public.kind=rpc",
        f"ledger.public.rpc_url={node.url}",
        "ledger.private.kind=fabric",
        f"ledger.private.profile={consortium.profile()}",
        f"ledger.private.msp={consortium.user()}",
        "ledger.private.organization=Org1MSP",
        "ledger.private.deadline_s=3",
        "ledger.anchor_every=1",
        "federation.baselines=[]",
        "resources.mode=pooled",
    ]


def test_a_run_on_both_chains_and_what_a_stranger_checks(
    alone: Any, config: str, finished: dict[str, Any], node: Anvil, consortium: Consortium, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("TRUSTCHAIN_ETH_KEY", SECRETS[0])
    run = tmp_path / "run"
    settings, base = on_both(node, consortium), f"{finished['run']}/base"
    result = alone.train("-c", config, "--run", str(run), f"model.base={base}", *settings)
    assert result["model_digest"] == finished["model_digest"]  # chains change nothing in a model
    assert {name: chain["backlog"] for name, chain in result["chains"].items()} == {"private": 0, "public": 0}
    assert (result["witnesses"], result["unwilling"]) == (sorted(finished["witnesses"]), {})
    assert result["anchor"]["status"] in ("MINED", "FINALIZED")
    assert not any(SECRETS[0].encode() in path.read_bytes() for path in run.rglob("*") if path.is_file())

    assert json.loads(alone.run("chain", "status", str(run), "--json")[0].splitlines()[-1])["private backlog"] == 0
    channel = ["--fabric-profile", str(consortium.profile()), "--fabric-msp", str(consortium.user())]
    peers = [*channel, "--fabric-organization", "Org1MSP"]
    out, _ = alone.run("verify", str(run), "--json", "--rpc-url", node.url, "--min-witnesses", "2", *peers)
    checks = {check["name"]: check["status"] for check in json.loads(out.splitlines()[-1])["checks"]}
    assert (checks["anchors"], checks["private chain"], checks["witnesses"]) == ("ok", "ok", "ok")

    bundle = tmp_path / "run.bundle"
    alone.run("export", str(run), "-o", str(bundle))
    shutil.copytree(run / "model", tmp_path / "model")
    alone.run("verify", str(bundle), "--model", str(tmp_path / "model"), "--trust", str(run / "identities"))
    weights = tmp_path / "model" / "adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    out, _ = alone.run("verify", str(bundle), "--model", str(tmp_path / "model"), code=1)
    assert "adapter_model.safetensors" in out


@pytest.mark.long
def test_a_run_whose_chains_are_down_is_finished_and_drained_later(
    alone: Any, config: str, finished: dict[str, Any], node: Anvil, consortium: Consortium, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("TRUSTCHAIN_ETH_KEY", SECRETS[1])
    settings, base = on_both(node, consortium), f"{finished['run']}/base"
    node.kill()
    consortium.gateway.die()
    run = tmp_path / "run"
    result = alone.train("-c", config, "--run", str(run), f"model.base={base}", *settings, "ledger.drain_s=1")
    assert result["model_digest"] == finished["model_digest"]
    assert result["chains"]["private"]["backlog"] > result["log"]["size"] / 2
    assert result["chains"]["public"]["backlog"] >= 3
    assert not result["chains"]["public"]["refused"]
    alone.run("verify", str(run))
    alone.run("chain", "drain", str(run), code=1)

    node.start()
    consortium.gateway.restart()
    out, _ = alone.run("chain", "drain", str(run), "--json")
    drained = json.loads(out.splitlines()[-1])
    assert (drained["drained"], drained["sealed"]) == (True, True)
    assert drained["anchors"] == drained["heads"] == drained["anchor"]["seq"]
    alone.run("verify", str(run), "--rpc-url", node.url)


@pytest.mark.long
def test_what_would_keep_a_run_from_its_chains_is_said_before_it_starts(
    alone: Any, config: str, node: Anvil, consortium: Consortium, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRUSTCHAIN_ETH_KEY", raising=False)
    start = ["train", "-c", config, "--run", str(tmp_path / "run"), *on_both(node, consortium)]
    _, err = alone.run(*start, code=1)
    assert "TRUSTCHAIN_ETH_KEY" in err
    monkeypatch.setenv("TRUSTCHAIN_ETH_KEY", SECRETS[2])
    _, err = alone.run(*start, "ledger.private.msp=/nowhere", code=1)
    assert "/nowhere" in err
    _, err = alone.run(*start, "ledger.public.rpc_url=https://$NO_SUCH_NAME/", code=1)
    assert "NO_SUCH_NAME" in err
    assert not (tmp_path / "run").exists()
    _, err = alone.run(*start, "ledger.public.chain_id=5", code=1)
    assert "chain" in err
    assert "31337" in err
    assert SECRETS[2] not in err
