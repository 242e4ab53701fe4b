"""`trustchain chain approve`: two members, each with a configuration of its own, on a Fabric channel and a contract."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("web3")
pytest.importorskip("grpc")

from anvil import SECRETS, Anvil, account
from consortium import deploy
from fabric_consortium import MSPS, Consortium
from voters import Removed, removed_run

from ledger.bundle import export
from ledger.canonical import parse_canonical
from ledger.federation import Federation
from trustchain_ray.chain import approval_hint
from trustchain_ray.chain_config import load_chains
from trustchain_ray.cli import main

pytestmark = pytest.mark.slow
COORDINATOR = 4  # of the anvil accounts, as `consortium` deploys


@pytest.fixture(scope="module")
def node() -> Iterator[Anvil]:
    node = Anvil().start()
    yield node
    node.kill()


@pytest.fixture(scope="module")
def contract(node: Anvil) -> str:
    return deploy(node)


@pytest.fixture(scope="module")
def removed(node: Anvil, contract: str, tmp_path_factory: pytest.TempPathFactory) -> Removed:
    return removed_run(tmp_path_factory.mktemp("approve"), node, contract)


@dataclass
class Member:
    """One member at its command line."""

    config: Path
    secret: str
    monkeypatch: pytest.MonkeyPatch
    capsys: pytest.CaptureFixture[str]

    def run(self, *arguments: str, code: int = 0) -> tuple[str, str]:
        self.monkeypatch.setenv("TRUSTCHAIN_ETH_KEY", self.secret)
        assert main(["chain", *arguments, "-c", str(self.config)]) == code
        said = self.capsys.readouterr()
        assert self.secret not in said.out + said.err
        return said.out, said.err

    def approve(self, *arguments: str) -> dict[str, Any]:
        out, _ = self.run("approve", *arguments, "--json")
        return dict(json.loads(out.splitlines()[-1]))


@pytest.fixture
def members(
    node: Anvil, contract: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[list[Member]]:
    consortium, snapshot = Consortium(tmp_path), node.rpc("evm_snapshot")
    consortium.opened()
    made = []
    for number, msp in enumerate(MSPS):
        private = {"kind": "fabric", "profile": str(consortium.profile()), "msp": str(consortium.user(msp))}
        public = {"kind": "rpc", "rpc_url": node.url, "contract": contract}
        chains = {"private": {**private, "organization": msp, "deadline_s": 5.0}, "public": public}
        config = tmp_path / f"chains-{number}.yaml"
        config.write_text(json.dumps({"ledger": chains}))  # JSON is YAML
        made.append(Member(config, SECRETS[number], monkeypatch, capsys))
    yield made
    consortium.close()
    node.rpc("evm_revert", snapshot)


def states(result: dict[str, Any]) -> list[tuple[str, str, str]]:
    return [(row["chain"], row["kind"], row["state"]) for row in result["approvals"]]


def test_two_members_approve_the_newest_removal_and_a_second_call_changes_nothing(
    members: list[Member], removed: Removed, tmp_path: Path
) -> None:
    run, shared = str(removed.run.dir), ["--approvals", str(tmp_path / "approvals")]
    first = members[0].approve(run, *shared)
    assert states(first) == [
        ("private", "unlearning-certificate", "proposed"),
        ("private", "model-revocation", "proposed"),
        ("public", "model-revocation", "proposed"),
    ]
    assert (first["missing"], len(first["done"])) == (3, 5)
    again, _ = members[0].run("approve", run, *shared)
    assert "nothing to do" in again
    # the other member has a bundle of the log, names the certificate, and knows the keys from elsewhere
    export(removed.run.dir, tmp_path / "log.bundle")
    pins = ["--trust", str(removed.run.dir / "identities"), "--min-auditors", "1"]
    second = members[1].approve(str(tmp_path / "log.bundle"), str(removed.certificate), *pins, *shared)
    assert [state for _, _, state in states(second)] == ["concluded", "revoked", "revoked"]
    assert second["missing"] == 0
    out, _ = members[0].run("status", run, *shared, "--json")
    rows = json.loads(out.splitlines()[-1])["approvals"]
    assert {(row["chain"], row["kind"], row["state"]) for row in rows} == {
        ("private", "unlearning-certificate", "concluded"),
        ("private", "model-revocation", "revoked"),
        ("private", "model-release", "none"),
        ("public", "model-revocation", "revoked"),
        ("public", "model-release", "none"),
    }
    assert "2 of 2: Org1MSP, Org2MSP" in out


@pytest.mark.long
def test_from_training_through_a_removal_to_the_approval_of_both(
    node: Anvil, contract: str, alone: Any, config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, chains = str(tmp_path / "run"), tmp_path / "chains.yaml"
    public = {"kind": "rpc", "rpc_url": node.url, "contract": contract}
    chains.write_text(json.dumps({"ledger": {"public": public}}))

    def command(who: int, *arguments: str) -> dict[str, Any]:
        monkeypatch.setenv("TRUSTCHAIN_ETH_KEY", SECRETS[who])
        return dict(json.loads(alone.run(*arguments, "--json")[0].splitlines()[-1]))

    def approved(*arguments: str) -> list[list[tuple[str, str, str]]]:
        """States after each of two members has approved."""
        options = ("-c", str(chains), "--approvals", str(tmp_path / "approvals"))
        return [states(command(who, "chain", "approve", run, *arguments, *options)) for who in (0, 1)]

    settings = ["resources.mode=pooled", *(f"ledger.public.{name}={value}" for name, value in public.items())]
    trained = command(COORDINATOR, "train", "-c", config, "--run", run, *settings)
    release = [[("public", "model-release", state)] for state in ("proposed", "released")]
    assert approved("--release") == release
    removed = command(COORDINATOR, "unlearn", run, "--record", "alpha-3", "--organization", "alpha")
    assert removed["old_model_digest"] == trained["model_digest"]
    verb, place, certificate = removed["approve"].split(" -c ")[0].split()[2:]
    assert (verb, place) == ("approve", run)
    revoked = [[("public", "model-revocation", state)] for state in ("proposed", "revoked")]
    assert approved(certificate) == revoked
    assert approved("--release") == release
    report = command(0, "verify", run, "--rpc-url", node.url)
    assert report["ok"]
    assert "approvals" in {check["name"] for check in report["checks"] if check["status"] == "ok"}


def test_a_release_is_approved_the_same_way_and_the_revoked_model_is_not(
    members: list[Member], removed: Removed, tmp_path: Path
) -> None:
    run, shared = str(removed.run.dir), ["--approvals", str(tmp_path / "approvals")]
    assert members[0].approve(run, "--release", *shared)["missing"] == 2
    both = members[1].approve(run, "--release", "--model", removed.new[:12], *shared)
    assert states(both) == [("private", "model-release", "concluded"), ("public", "model-release", "released")]
    _, error = members[0].run("approve", run, "--release", "--model", removed.old, *shared, code=1)
    assert "the log revokes it" in error
    revoked = members[0].approve(run, "--revoke", "--model", removed.old, *shared)
    assert [kind for _, kind, _ in states(revoked)] == ["model-revocation"] * 2


def test_a_certificate_that_does_not_verify_reaches_no_chain(
    members: list[Member], removed: Removed, tmp_path: Path
) -> None:
    before, start, after = removed.certificate.read_text().partition('"sig":"')
    wrong = tmp_path / "wrong.json"
    wrong.write_text(before + start + ("B" if after[0] == "A" else "A") + after[1:])
    _, error = members[0].run("approve", str(removed.run.dir), str(wrong), code=1)
    assert error.startswith(f"error: {wrong}: does not verify")
    assert error.count("\n") == 1
    out, _ = members[0].run("status", str(removed.run.dir), "--approvals", str(tmp_path / "approvals"), "--json")
    assert {row["state"] for row in json.loads(out.splitlines()[-1])["approvals"]} == {"none"}


def test_who_is_no_member_and_a_chain_that_is_down_are_one_message(
    members: list[Member], removed: Removed, tmp_path: Path
) -> None:
    run, shared = str(removed.run.dir), ["--approvals", str(tmp_path / "approvals")]
    members[0].secret = SECRETS[3]
    _, error = members[0].run("approve", run, *shared, "--set", "ledger.private.kind=sqlite", code=1)
    assert "is no member of the consortium" in error
    assert error.count("\n") == 1
    down = ["--set", "ledger.public.rpc_url=http://127.0.0.1:9", "ledger.private.kind=sqlite"]
    _, error = members[1].run("approve", run, *shared, *down, code=1)
    assert error.startswith("error: http://127.0.0.1:9: does not answer")
    assert not (tmp_path / "approvals").exists()


def test_a_wrong_signature_in_another_members_file_is_named(
    members: list[Member], removed: Removed, tmp_path: Path
) -> None:
    shared = ["--approvals", str(tmp_path / "approvals"), "--set", "ledger.private.kind=sqlite"]
    members[0].run("approve", str(removed.run.dir), *shared)
    (path,) = (tmp_path / "approvals").rglob("*.json")
    signature = parse_canonical(path.read_bytes())["signature"]
    path.write_text(path.read_text().replace(signature, signature[:-4] + "001b"))
    _, error = members[1].run("approve", str(removed.run.dir), *shared, code=1)
    assert error.startswith(f"error: {path}: approval of Revoke by")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--set", "ledger.private.kind=sqlite", "ledger.public.contract=''"], "set ledger.private.kind=fabric"),
        (["--set", "ledger.private.msp=''"], "ledger.private.msp: `ledger.private.kind: fabric` needs it"),
        (["--set", "ledger.private.kind=other"], "choose one of sqlite, fabric"),
        (["--model", "ab"], "name a certificate, or --release or --revoke"),
        (["certificates/0001.json", "--release"], "name a certificate, or --release or --revoke"),
        (["missing.json"], "missing.json: cannot be read"),
    ],
)
def test_what_makes_no_sense_is_refused(
    members: list[Member], removed: Removed, arguments: list[str], reason: str
) -> None:
    _, error = members[0].run("approve", str(removed.run.dir), *arguments, code=2)
    assert reason in error


def test_a_bundle_needs_the_members_own_chains_and_folder(
    members: list[Member], removed: Removed, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = tmp_path / "log.bundle"
    export(removed.run.dir, bundle)
    assert main(["chain", "approve", str(bundle)]) == 2
    assert "name your own chains with -c" in capsys.readouterr().err
    _, error = members[0].run("approve", str(bundle), "--set", "ledger.private.kind=sqlite", code=2)
    assert "--approvals DIR" in error
    assert main(["chain", "approve", str(tmp_path)]) == 2
    assert "there is no run and no bundle here" in capsys.readouterr().err


def test_a_file_with_nothing_but_chains_deploys_a_consortium(
    node: Anvil, removed: Removed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chains = tmp_path / "chains.yaml"
    chains.write_text(f"ledger: {{public: {{kind: rpc, rpc_url: {node.url}}}}}\n")
    founders = [
        f"--member={account(number).address}={removed.run.dir}/identities/{name}.json"
        for number, name in enumerate(("bank", "clinic"))
    ]
    monkeypatch.setenv("TRUSTCHAIN_ETH_KEY", SECRETS[0])
    assert main(["chain", "deploy", "-c", str(chains), *founders, "--json"]) == 0
    made = json.loads(capsys.readouterr().out.splitlines()[-1])
    deployed = Federation(node.url, made["ledger.public.contract"])
    assert [member.account for member in deployed.members()] == [account(number).address for number in (0, 1)]
    assert (deployed.threshold(), made["members"]) == (2, 2)


def test_a_removal_names_the_command_where_members_approve(members: list[Member]) -> None:
    config = load_chains([str(members[0].config)])
    assert approval_hint(config, "runs/a", "runs/a/certificates/0001.json") == (
        "trustchain chain approve runs/a runs/a/certificates/0001.json -c YOUR_CHAINS.yaml"
    )
    alone = load_chains([str(members[0].config)], ["ledger.private.kind=sqlite", "ledger.public.contract=''"])
    assert approval_hint(alone, "runs/a", "c.json") == ""
