"""The ledger with both chains: killed at any step, and through outages."""

import subprocess
import sys
from pathlib import Path

import pytest
from anvil import Anvil, account
from fake_run import FakeRun

from ledger.private import Conflict
from ledger.rpc_chain import RpcChain
from ledger.verify import verify_run

pytest.importorskip("grpc")

from fabric_consortium import Consortium


@pytest.fixture
def node():
    node = Anvil("--slots-in-an-epoch", "1").start()
    yield node
    node.kill()


@pytest.fixture
def consortium(tmp_path):
    made = Consortium(tmp_path)
    yield made
    made.close()


@pytest.mark.slow
@pytest.mark.parametrize("stride", [6, pytest.param(2, marks=pytest.mark.long)])
def test_killed_at_every_step_nothing_is_lost_and_nothing_is_there_twice(node, consortium, tmp_path, stride):
    drill = [sys.executable, str(Path(__file__).with_name("crash_drill.py")), str(tmp_path), node.url]
    chain = [str(consortium.profile()), str(consortium.user())]
    children = [
        subprocess.Popen(
            [*drill, *chain, str(first), str(stride)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for first in (0, stride // 2)
    ]
    for child in children:
        out, err = child.communicate(timeout=280)
        assert child.returncode == 0, err[-2000:]
        assert int(out) > 40


def test_a_private_chain_that_is_down_slows_nothing_down_and_drains_in_order(node, consortium, tmp_path):
    run = FakeRun(tmp_path / "run", tmp_path / "keys")
    private = consortium.chain(deadline_s=2.0)
    public = RpcChain(run.dir / "ledger" / "chain", node.url, account(), run.run, patience_s=5.0)
    run.open(chains=(public, private))
    consortium.gateway.die()
    for envelopes in (run.opening(), run.round(1), run.round(2), run.complete(2)):
        assert run.service.submit(envelopes) == []
        while run.service.pump():
            pass
    size = run.service.status()["size"]
    assert not run.service.drain(patience_s=0.0)
    status = run.service.status()
    assert status["public"]["backlog"] == 0  # the other chain does not wait
    assert (status["private"]["backlog"], status["private"]["refused"]) == (size, False)
    run.service.seal(patience_s=0.0)
    assert verify_run(run.dir).ok  # and says that the private chain lacks it
    consortium.gateway.restart()
    public = RpcChain(run.dir / "ledger" / "chain", node.url, account(), run.run, patience_s=5.0)
    run.open(chains=(public, consortium.chain()))
    run.service.seal()
    held = consortium.chain()
    assert (held.size(), len(held.read(0, size))) == (size, size)
    assert verify_run(run.dir, rpc_url=node.url, fabric=lambda name: consortium.chain(run=name)).ok


def test_a_revoked_organization_stops_the_delivery_and_is_told(node, consortium, tmp_path):
    run = FakeRun(tmp_path / "run", tmp_path / "keys")
    public = RpcChain(run.dir / "ledger" / "chain", node.url, account(), run.run, patience_s=5.0)
    run.open(chains=(public, consortium.chain()))
    run.submit(run.opening())
    admin = consortium.chain(user=consortium.user(unit="admin"))
    admin.revoke_organization("bank", "key lost", everywhere=True)
    assert run.service.submit(run.round(1)) == []
    run.service.pump()
    assert not run.service.drain(patience_s=1.0)
    status = run.service.status()["private"]
    assert status["refused"]
    assert "bank" in status["error"]
    assert "revoked" in status["error"]
    run.service.close()


def test_runs_that_begin_at_once_on_one_channel_conflict_and_go_on(node, consortium, tmp_path, monkeypatch):
    run = FakeRun(tmp_path / "run", tmp_path / "keys")
    private, conflicts = consortium.chain(), ["AppendEvents", "OpenRun"]
    submit = private._gateway.submit

    def first_comes_another(name, *arguments, **options):
        if name in conflicts:
            conflicts.remove(name)
            raise Conflict(f"{name}: MVCC_READ_CONFLICT")
        return submit(name, *arguments, **options)

    monkeypatch.setattr(private._gateway, "submit", first_comes_another)
    run.open(chains=(RpcChain(run.dir / "ledger" / "chain", node.url, account(), run.run, patience_s=5.0), private))
    run.submit(run.opening())
    assert conflicts == []
    assert run.service.status()["private"] == {"backlog": 0, "error": None, "refused": False}
