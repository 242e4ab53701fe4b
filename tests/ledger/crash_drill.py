"""Kills a ledger with two chains just before each of its durable writes and sendings, and goes on. Run by a test.

`python crash_drill.py FOLDER ANVIL_URL PROFILE MSP FIRST STRIDE`: a process of its own, because it forks, and gRPC must
not have been used before a fork. Prints the number of steps when every one of them was survived.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import anvil
import web3  # once here, not in every child
from conftest import DIED, die_before
from fake_run import FakeRun

from ledger.fabric.chain import FabricChain
from ledger.log import SqliteLog
from ledger.rpc_chain import RpcChain
from ledger.rpc_node import Node


def mark(owner: type, name: str, descriptor: int) -> None:
    """Make the moments just before and just after a call steps of their own."""
    real = getattr(owner, name)

    def call(*arguments: object) -> object:
        os.fsync(descriptor)
        answer = real(*arguments)
        os.fsync(descriptor)
        return answer

    setattr(owner, name, call)


def main(folder: Path, url: str, profile: str, msp: str, first: int, stride: int) -> int:
    """Steps ``first``, ``first + stride``, ... until a run comes to its end unharmed."""
    assert web3
    descriptor = os.open(folder, os.O_RDONLY)
    mark(Node, "send", descriptor)
    mark(FabricChain, "append_batch", descriptor)
    mark(FabricChain, "put_head", descriptor)

    def whole(run: FakeRun) -> None:
        chains = (
            RpcChain(run.dir / "ledger" / "chain", url, anvil.account(first % 5), run.run, patience_s=5.0),
            FabricChain(profile, msp, run.run, organization="Org1MSP"),
        )
        run.open(chains=chains)
        run.submit(run.opening() + run.round(1))
        run.submit(run.complete(1))
        run.service.seal()

    step, died = first, True
    while died:
        name = f"drill-{step}"
        pid = os.fork()
        if pid == 0:
            try:
                run = FakeRun(folder / name, folder / "keys", run=name)
                die_before(step)
                whole(run)
                os._exit(0)
            except BaseException as error:
                print(f"step {step}: {error!r}", file=sys.stderr, flush=True)
                os._exit(1)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert status in (0, DIED), f"step {step}: ended with {status}"
        died = status == DIED
        again = os.fork()
        if again == 0:
            try:
                run = FakeRun(folder / name, folder / "keys", run=name)
                whole(run)
                check(run, url, profile, msp)
                os._exit(0)
            except BaseException as error:
                print(f"going on after step {step}: {error!r}", file=sys.stderr, flush=True)
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(again, 0)[1]) == 0, f"after step {step}"
        step += stride
    return step - stride


def check(run: FakeRun, url: str, profile: str, msp: str) -> None:
    """Every event once, on the log and on Fabric, in one order; every head once on the public chain."""
    from ledger.verify import verify_run

    log = SqliteLog(run.dir / "ledger" / "log.sqlite", read_only=True)
    leaves = log.read(0, log.size)
    log.close()
    private = FabricChain(profile, msp, run.run, organization="Org1MSP")
    held = private.read(0, len(leaves) + 1)
    private.close()
    assert held == leaves, f"Fabric holds {len(held)} of {len(leaves)} events, or others"
    report = verify_run(run.dir, rpc_url=url)
    assert report.ok, report.failure
    anchors = next(check for check in report.checks if check.name == "anchors")
    assert anchors.status == "ok", anchors


if __name__ == "__main__":
    where, node, connection, user, start, every = sys.argv[1:]
    print(main(Path(where), node, connection, user, int(start), int(every)))
