"""What a differentially private step costs against a plain one: time and memory, medians of one run.

    python -m benchmarks.privacy_steps

A classification with the pretrained MiniLM (TRUSTCHAIN_MINILM) and a causal model (TRUSTCHAIN_BASE; else one made
from a config). Plain and private calls take turns in one process, on the same rows; times are processor times of one
thread, which other work on the machine changes little. Memory is the peak of a process of its own for each, after a
plain warm-up step in both: as a whole, and what it grew by after the model was loaded. With --device cuda times are
those of the clock and memory is PyTorch's.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import parser, table, write
from trustchain_ray.config import Config
from trustchain_ray.privacy.steps import PrivateSteps

ROOT = Path(__file__).parents[1]
KEY = bytes(range(32))
BATCH, LENGTHS = 32, (24, 64)


def main() -> None:
    arguments = parser("privacy_steps", __doc__)
    arguments.add_argument("--device", default="cpu")
    arguments.add_argument("--calls", type=int, default=5, help="calls of each kind that are timed")
    arguments.add_argument("--steps", type=int, default=2, help="steps of a call")
    arguments.add_argument("--peak", nargs=3, metavar=("MODEL", "FORM", "MODE"), help="print the peak of one process")
    options = arguments.parse_args()
    if options.peak:
        model, form, mode = options.peak
        print(json.dumps(peak(model, form, mode, options.device)))
        return
    results: dict[str, Any] = {}
    for model in ("classification", "causal"):
        for form in ("ffa", "fedavg"):
            times = timed(model, form, options)
            peaks = {mode: _peak_of_a_process(model, form, mode, options.device) for mode in ("plain", "record")}
            results[f"{model}, {form}"] = {
                **times,
                "peak_mib": {mode: round(values[1] / 2**20, 1) for mode, values in peaks.items()},
                "peak_ratio": peaks["record"][1] / peaks["plain"][1],
                "growth_ratio": _growth(peaks["record"]) / _growth(peaks["plain"]),
            }
    rows = [
        [
            name,
            r["values"],
            *(f"{r['ms'][mode]:.1f}" for mode in ("plain", "record", "subject")),
            *(f"{r['ratio'][mode]:.2f}" for mode in ("record", "subject")),
            *(f"{r[memory]:.2f}" for memory in ("peak_ratio", "growth_ratio")),
        ]
        for name, r in results.items()
    ]
    header = ["model, form", "trained", "plain ms", "record ms", "subject ms"]
    print(table([*header, "record x", "subject x", "peak x", "growth x"], rows))
    write(options.out, {"batch": BATCH, "lengths": LENGTHS, "device": options.device, "seed": 0, "results": results})


def timed(model: str, form: str, options: Any) -> dict[str, Any]:
    """Median milliseconds of a step of each kind, calls taking turns."""
    engine, rows = prepared(model, form, options.device)
    clock = time.process_time if options.device == "cpu" else time.perf_counter
    steps, rates = [list(range(BATCH))] * options.steps, [1e-3] * options.steps
    seconds: dict[str, list[float]] = {"plain": [], "record": [], "subject": []}
    for turn in range(-1, options.calls):  # the first turn warms up
        for mode, taken in seconds.items():
            began = clock()
            engine.train(rows, steps, rates, private=private(mode))
            if turn >= 0:
                taken.append((clock() - began) / options.steps)
    medians = {mode: statistics.median(taken) for mode, taken in seconds.items()}
    return {
        "values": sum(p.numel() for p in engine.adapter.trainable()),
        "ms": {mode: value * 1e3 for mode, value in medians.items()},
        "ratio": {mode: medians[mode] / medians["plain"] for mode in ("record", "subject")},
    }


def peak(model: str, form: str, mode: str, device: str) -> tuple[int, int]:
    """Memory of this process in bytes: with the model loaded, and the most it was in a few steps of one kind."""
    engine, rows = prepared(model, form, device)
    loaded = engine.memory()
    engine.train(rows, [list(range(BATCH))], [1e-3])
    engine.train(rows, [list(range(BATCH))] * 4, [1e-3] * 4, private=private(mode))
    if device == "cpu":
        # Not ru_maxrss: a process inherits that of the one that started it.
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return loaded["resident"], 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    return loaded["cuda_peak"], engine.memory()["cuda_peak"]


def _growth(memory: tuple[int, int]) -> int:
    return memory[1] - memory[0]


def _peak_of_a_process(model: str, form: str, mode: str, device: str) -> tuple[int, int]:
    command = [sys.executable, "-m", "benchmarks.privacy_steps", "--peak", model, form, mode, "--device", device]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    loaded, most = json.loads(done.stdout.splitlines()[-1])
    return loaded, most


def private(mode: str) -> PrivateSteps | None:
    """Steps of a mode; a subject has four records."""
    subjects = [f"s{i // 4}" for i in range(BATCH)] if mode == "subject" else []
    return None if mode == "plain" else PrivateSteps(mode, 1.0, 1.0, KEY, subjects=subjects)


def prepared(model: str, form: str, device: str) -> tuple[Any, list[Any]]:
    """A torch engine and rows of random tokens."""
    from trustchain_ray.engines.torch_engine import TorchEngine
    from trustchain_ray.models import make_base, unpack_base
    from trustchain_ray.rows import TokenRow

    config = Config()
    config.model.task, config.model.lora.form = model, form
    config.training.batch_size = config.training.micro_batch = BATCH
    if model == "classification":
        base = os.environ["TRUSTCHAIN_MINILM"]
        config.model.labels, config.model.lora.targets = ["no", "yes"], ["query", "value"]
    else:
        base = os.environ.get("TRUSTCHAIN_BASE") or unpack_base(make_base(config, []))
    with tempfile.TemporaryFile() as quiet:
        saved = os.dup(2)
        os.dup2(quiet.fileno(), 2)  # the loader reports the new head
        try:
            engine = TorchEngine(config, base, device)
        finally:
            os.dup2(saved, 2)
    draws = np.random.default_rng(0)
    lengths = draws.integers(*LENGTHS, BATCH, endpoint=True)
    vocabulary = engine.adapter.model.get_input_embeddings().num_embeddings
    rows = [
        TokenRow(draws.integers(5, vocabulary, n).astype(np.int32), n if model == "classification" else n // 2, i % 2)
        for i, n in enumerate(lengths)
    ]
    return engine, rows


if __name__ == "__main__":
    main()
