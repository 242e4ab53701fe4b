"""Measure the ledger: ``python -m benchmarks.ledger [--out FILE]``.

Prints a table and writes JSON: events a second through the service, proofs at a million events, gas of an
anchor, time to verify a run.
"""

import argparse
import datetime
import json
import os
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ledger import events as ev
from ledger.bundle import export
from ledger.canonical import canonical_json, sha256_hex, write_atomic
from ledger.embedded import EmbeddedEvm
from ledger.identity import Identity, load_or_create, public_document
from ledger.log import SqliteLog
from ledger.merkle import MerkleLog, leaf_hash, verify_inclusion
from ledger.service import LedgerService
from ledger.verify import verify_run
from ledger.verify_events import verify_event

RUN = "benchmark"
COHORT = "all"


def median_ms(action: Callable[[], object], repeats: int) -> float:
    """Median time of a call in milliseconds."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e3


def register(identity: Identity, run_dir: Path) -> dict[str, Any]:
    """Publish an identity and state it."""
    document = canonical_json(public_document(identity))
    path = run_dir / "identities" / f"{identity.name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(document)
    body = {name: public_document(identity)[name] for name in ("organization", "key_id", "public_key")}
    return ev.make_event(identity, RUN, ev.REGISTER, {**body, "document": sha256_hex(document)})


def update_body(number: int) -> dict[str, Any]:
    """An update event's body, as a run states it."""
    digest = sha256_hex(str(number).encode())
    return {"round": number, "cohort": COHORT, "base": digest, "update": digest, "weight": 100, "steps": 48}


def append_and_verify(count: int, batch: int) -> dict[str, Any]:
    """A run of ``count`` updates: signed, submitted (fsync), moved to the log (fsync); then verified."""
    with tempfile.TemporaryDirectory(prefix="ledger-bench-") as folder:
        run_dir = Path(folder) / "run"
        names = ["coordinator", *(f"org{n}" for n in range(8))]
        who = {name: load_or_create(name, Path(folder) / "keys") for name in names}
        organizations = names[1:]
        run_dir.mkdir()
        (run_dir / "config.yaml").write_text("benchmark: true\n")
        manifest = {
            "run": RUN,
            "version": 1,
            "organizations": organizations,
            "cohorts": {COHORT: organizations},
            "initial": {COHORT: "0" * 64},
        }
        (run_dir / "manifest.json").write_bytes(canonical_json(manifest))
        stated = {
            "manifest": sha256_hex((run_dir / "manifest.json").read_bytes()),
            "config": sha256_hex((run_dir / "config.yaml").read_bytes()),
        }
        service = LedgerService(run_dir, RUN, who["coordinator"], None)
        service.submit([register(identity, run_dir) for identity in who.values()])
        service.submit([ev.make_event(who["coordinator"], RUN, ev.RUN_MANIFEST, stated)])
        service.pump()

        start = time.perf_counter()
        done = 0
        while done < count:
            numbers = range(done, min(done + batch, count))
            envelopes = [ev.make_event(who[organizations[n % 8]], RUN, ev.UPDATE, update_body(n)) for n in numbers]
            refused = service.submit(envelopes)
            assert not refused, refused[0]
            done += service.pump(batch)
        seconds = time.perf_counter() - start
        size = service.status()["size"]
        service.sign_head()
        note = service.newest_checkpoint()
        service.close()
        log_bytes = (run_dir / "ledger" / "log.sqlite").stat().st_size

        start = time.perf_counter()
        report = verify_run(run_dir)
        verify_seconds = time.perf_counter() - start
        assert report.ok, report.failure

        log = SqliteLog(run_dir / "ledger" / "log.sqlite", read_only=True)
        source = random.Random(1)
        sqlite_ms = median_ms(lambda: log.inclusion_proof(source.randrange(size)), 200)
        index = source.randrange(len(names) + 1, size)
        leaf, proof = log.leaf(index), log.inclusion_proof(index)
        log.close()
        keys = {name: identity.public_hex for name, identity in who.items()}
        assert note is not None
        event_ms = median_ms(lambda: verify_event(leaf, index, proof, note, RUN, keys), 200)
        one = Path(folder) / "one.tar"
        export(run_dir, one, [index])
        assert verify_run(one).ok
        bundle_ms = median_ms(lambda: verify_run(one), 50)
    return {
        "events": size,
        "batch": batch,
        "events_per_second": round(count / seconds),
        "bytes_per_event": round(log_bytes / size),
        "sqlite_inclusion_proof_ms": round(sqlite_ms, 3),
        "verify_seconds": round(verify_seconds, 2),
        "verify_events_per_second": round(size / verify_seconds),
        "verify_one_event_ms": round(event_ms, 2),
        "verify_bundle_of_one_event_ms": round(bundle_ms, 1),
    }


def proofs(count: int, seed: int) -> dict[str, Any]:
    """Inclusion proofs in a tree of ``count`` leaves, in memory."""
    log = MerkleLog()
    start = time.perf_counter()
    for number in range(count):
        log.append(leaf_hash(number.to_bytes(8, "big")))
    build = time.perf_counter() - start
    source = random.Random(seed)
    root = log.root()

    def prove_and_check() -> None:
        index = source.randrange(count)
        verify_inclusion(leaf_hash(index.to_bytes(8, "big")), index, count, log.inclusion_proof(index), root)

    return {
        "events": count,
        "append_us": round(build / count * 1e6, 2),
        "root_ms": round(median_ms(log.root, 200), 4),
        "inclusion_made_and_verified_ms": round(median_ms(prove_and_check, 2000), 4),
        "consistency_made_ms": round(median_ms(lambda: log.consistency_proof(source.randrange(1, count)), 500), 4),
    }


def gas(anchors: int, seed: int) -> dict[str, Any]:
    """Gas and time of anchors on the embedded chain, and the time to execute it again."""
    source = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="ledger-bench-") as folder:
        chain = EmbeddedEvm(folder)
        prev, used, times = bytes(32), [], []
        for seq in range(1, anchors + 1):
            root = source.randbytes(32)
            start = time.perf_counter()
            used.append(chain.anchor(root, seq * 1000, seq, prev).gas_used)
            times.append(time.perf_counter() - start)
            prev = root
        chain.close()
        start = time.perf_counter()
        assert EmbeddedEvm(folder, read_only=True).head().seq == anchors
        reopened = time.perf_counter() - start
    return {
        "anchors": anchors,
        "first_gas": used[0],
        "next_gas_max": max(used[1:]),
        "anchor_ms": round(statistics.median(times) * 1e3, 1),
        "reopen_seconds": round(reopened, 2),
    }


def machine() -> dict[str, Any]:
    """Class of the machine: processor, cores, Python."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return {"cpu": model, "cores": os.cpu_count(), "python": platform.python_version()}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "ledger.json")
    parser.add_argument("--events", type=int, default=100_000, help="events appended and verified")
    parser.add_argument("--leaves", type=int, default=1_000_000, help="leaves of the tree for proofs")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    result = {
        "machine": machine(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "seed": arguments.seed,
        "log": append_and_verify(arguments.events, 1000),
        "merkle": proofs(arguments.leaves, arguments.seed),
        "anchor": gas(50, arguments.seed),
    }
    log, merkle, anchor = result["log"], result["merkle"], result["anchor"]
    rows = [
        ("events/s: signed, checked, appended, 2 fsyncs a batch", log["events_per_second"], ">= 2000"),
        (f"inclusion proof made and verified, {merkle['events']:,} events (ms)",
         merkle["inclusion_made_and_verified_ms"], "< 1"),
        ("gas of an anchor after the first", anchor["next_gas_max"], "<= 45000"),
        (f"verify a run of {log['events']:,} events (s)", log["verify_seconds"], "< 20 at 100,000"),
        ("verify one event with its proofs (ms)", log["verify_one_event_ms"], "< 50"),
        ("verify a bundle file of one event (ms)", log["verify_bundle_of_one_event_ms"], "< 50"),
        ("execute a chain of 50 anchors again (s)", anchor["reopen_seconds"], "< 3"),
    ]  # fmt: skip
    for name, value, target in rows:
        print(f"{name:<62} {value:>10} {target:>18}")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(arguments.out, (json.dumps(result, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
