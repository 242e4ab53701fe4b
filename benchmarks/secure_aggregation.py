"""What a secure sum costs: time of all parties together, and bytes beside the plain merge.

    python -m benchmarks.secure_aggregation

All parties run in one process and share its cores; every message goes through its bytes. The members that drop out
do so after they dealt their shares, the dearest moment: the coordinator puts each one's mask key together again and
repeats its mask with every other member. Bytes are those of the members that stayed, both ways without the sum itself,
which comes back as the merged adapter in any case; plain is their update as float32.
"""

import os
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from benchmarks.common import parser, table, write
from ledger.identity import COORDINATOR, Identity
from trustchain_ray.merge import weighted_sum
from trustchain_ray.secure_aggregation import Client, Message, Result, Server, Session, default_threshold
from trustchain_ray.secure_aggregation.stages import INPUT


@dataclass
class Run:
    """One session: seconds of all parties together (clock and processor), by stage too, and bytes of who stayed."""

    result: Result
    seconds: float
    processor: float
    stages: dict[str, float]
    sent: int


def main() -> None:
    arguments = parser("secure_aggregation", __doc__)
    arguments.add_argument("--repeats", type=int, default=5)
    arguments.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options = arguments.parse_args()
    rows = [
        measure(members, parameters, dropped, options.repeats, options.threads)
        for members, parameters, dropped in ((4, 100_000, 0), (4, 100_000, 1), (20, 1_000_000, 0), (20, 1_000_000, 4))
    ]
    header = ["members", "dropped", "parameters", "seconds", "processor", "plain merge", "bytes / plain"]
    print(table(header, [[r[k] for k in ("members", "dropped", "parameters")] + _shown(r) for r in rows]))
    write(options.out, {"threads": options.threads, "repeats": options.repeats, "seed": 0, "rows": rows})


def measure(members: int, parameters: int, dropped: int, repeats: int, threads: int) -> dict[str, Any]:
    """Medians over the repeats; the sum is compared with the plain merge each time."""
    names = [f"org_{i:02d}" for i in range(members)]
    identities = {name: Identity(name, Ed25519PrivateKey.generate()) for name in (*names, COORDINATOR)}
    draws = np.random.default_rng(0)
    updates = {name: draws.standard_normal(parameters, np.float32) * np.float32(1e-2) for name in names}
    weights = {name: 100 + i for i, name in enumerate(names)}
    stay = names[dropped:]
    runs: list[Run] = []
    plain: list[float] = []
    weighted_sum([updates[name] for name in stay], [weights[name] for name in stay])  # a large merge compiles once
    for attempt in range(repeats):
        runs.append(session(identities, updates, weights, set(names[:dropped]), attempt, threads))
        began = time.perf_counter()
        sums, total = weighted_sum([updates[name] for name in stay], [weights[name] for name in stay], threads)
        plain.append(time.perf_counter() - began)
        if runs[-1].result.sums.tobytes() != sums.tobytes() or runs[-1].result.total != total:
            raise SystemExit("the secure sum is not the plain one")
    seconds = statistics.median(run.seconds for run in runs)
    return {
        "members": members,
        "dropped": dropped,
        "parameters": parameters,
        "threshold": default_threshold(members),
        "seconds": seconds,
        "seconds_worst": max(run.seconds for run in runs),
        "processor_seconds": statistics.median(run.processor for run in runs),
        "seconds_by_stage": {s: statistics.median(run.stages[s] for run in runs) for s in runs[0].stages},
        "plain_merge_seconds": statistics.median(plain),
        "bytes": runs[-1].sent,
        "bytes_plain": 4 * parameters * len(stay),
        "bytes_share_of_plain": runs[-1].sent / (4 * parameters * len(stay)),
    }


def session(
    identities: dict[str, Identity],
    updates: dict[str, np.ndarray],
    weights: dict[str, int],
    drop: set[str],
    attempt: int,
    threads: int,
) -> Run:
    """One session of all parties; `drop` fall silent before their masked input."""
    keys = {name: identity.public_hex for name, identity in identities.items()}
    registered = {name: keys[name] for name in updates}
    size = len(next(iter(updates.values())))
    threshold = default_threshold(len(updates))
    about = Session("benchmark", "all", 1, attempt, size, threshold, registered, keys[COORDINATOR])
    stages: dict[str, float] = {}
    sent = 0
    began = before = time.perf_counter()
    processor = time.process_time()
    server = Server(about, identities[COORDINATOR], threads=threads)
    # One thread a member: the pool already keeps all cores busy.
    clients = {n: Client(identities[n], keys, updates[n], weights[n], threads=1) for n in updates}

    def answer(name: str, data: bytes) -> bytes | None:
        reply = clients[name].answer(Message.from_bytes(data))
        return reply.to_bytes() if reply else None

    with ThreadPoolExecutor(threads) as pool:
        messages = server.open()
        while messages:
            stage = server.stage
            silent = drop if stage == INPUT else set()
            out = {name: message.to_bytes() for name, message in messages.items() if name not in silent}
            replies = dict(zip(out, pool.map(answer, out, out.values()), strict=True))
            sent += sum(len(data) for name, data in out.items() if name not in drop)
            for name, reply in replies.items():
                if reply is not None:
                    sent += len(reply) if name not in drop else 0
                    server.receive(name, Message.from_bytes(reply))
            messages = server.close() if stage else {}
            now = time.perf_counter()
            stages[stage or "end"], before = now - before, now
    if server.result is None:
        raise SystemExit("the session gave no result")
    return Run(server.result, time.perf_counter() - began, time.process_time() - processor, stages, sent)


def _shown(row: dict[str, Any]) -> list[str]:
    return [
        f"{row['seconds']:.3f}",
        f"{row['processor_seconds']:.3f}",
        f"{row['plain_merge_seconds']:.3f}",
        f"{row['bytes_share_of_plain']:.3f}",
    ]


if __name__ == "__main__":
    main()
