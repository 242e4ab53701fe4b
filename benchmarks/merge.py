"""How fast adapters merge, as a share of what the memory of this machine could do.

    python -m benchmarks.merge

16 adapters of 40 M float32 parameters. The bound: every input is read once and the result written once, at
the rate at which this machine reads as many arrays of the same size (measured in the same run).
"""

import os
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from benchmarks.common import parser, table, write
from trustchain_ray.merge import apply_step


def main() -> None:
    arguments = parser("merge", __doc__)
    arguments.add_argument("--adapters", type=int, default=16)
    arguments.add_argument("--parameters", type=int, default=40_000_000)
    arguments.add_argument("--repeats", type=int, default=5)
    options = arguments.parse_args()
    threads = os.cpu_count() or 1
    draws = np.random.default_rng(0)
    first = draws.standard_normal(options.parameters, np.float32) * np.float32(1e-2)
    terms = [first] + [np.roll(first, i + 1) for i in range(options.adapters - 1)]
    weights = list(range(100, 100 + options.adapters))
    base = np.zeros(options.parameters, np.float32)
    moved = (options.adapters + 2) * options.parameters * 4  # inputs and base read, result written
    merges, reads = [], []
    for _ in range(options.repeats):
        reads.append(_read_rate(terms, threads))
        began = time.perf_counter()
        apply_step(base, terms, weights, 1.0, threads)
        merges.append(moved / (time.perf_counter() - began) / 1e9)
    bandwidth, merge = float(np.median(reads)), float(np.median(merges))
    print(
        table(
            ["what", "GB/s"],
            [["reading", f"{bandwidth:.1f}"], ["merging", f"{merge:.1f}"], ["share", f"{merge / bandwidth:.0%}"]],
        )
    )
    write(
        options.out,
        {
            "adapters": options.adapters,
            "parameters": options.parameters,
            "threads": threads,
            "read_gb_s": bandwidth,
            "merge_gb_s": merge,
            "merge_seconds": moved / merge / 1e9,
            "share_of_bandwidth": merge / bandwidth,
            "seed": 0,
        },
    )


def _read_rate(arrays: list[np.ndarray], threads: int) -> float:
    """GB/s at which all threads together read the arrays once (a float32 maximum)."""
    began = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(np.max, [part for array in arrays for part in np.array_split(array, threads)]))
    return sum(array.nbytes for array in arrays) / (time.perf_counter() - began) / 1e9


if __name__ == "__main__":
    main()
