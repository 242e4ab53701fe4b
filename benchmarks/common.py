"""What every benchmark shares: the machine class, and a checked-in JSON result."""

import argparse
import datetime
import json
import os
import platform
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """The machine class of a result: processor, cores, memory, versions."""
    names = set()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        names = {line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")}
    found: dict[str, Any] = {
        "cpu": ", ".join(sorted(names)) or platform.processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "python": platform.python_version(),
    }
    try:
        import torch
    except ImportError:
        return found
    found["torch"] = str(torch.__version__)
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name(0)
    return found


def parser(name: str, about: str) -> argparse.ArgumentParser:
    """Arguments of a benchmark; `--out` is where the JSON goes."""
    arguments = argparse.ArgumentParser(description=about)
    arguments.add_argument("--out", type=Path, default=RESULTS / f"{name}.json")
    return arguments


def write(path: Path, result: dict[str, Any]) -> None:
    """Write a result with machine class and date."""
    path.parent.mkdir(parents=True, exist_ok=True)
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    path.write_text(json.dumps({"date": today, "machine": machine(), **result}, indent=2) + "\n", encoding="utf-8")
    print(f"written to {path}")


def continued(options: argparse.Namespace, part: str) -> tuple[dict[str, Any], Callable[[], None]]:
    """What the result file holds of one of its parts (nothing with `--fresh`), to be added to; and what writes it."""
    held: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {}
    done: dict[str, Any] = {} if options.fresh else held.get(part, {})

    def save() -> None:
        """Write what is measured so far, beside the other parts as they are now."""
        now = json.loads(options.out.read_text()) if options.out.exists() else {}
        write(options.out, {**now, part: done})

    return done, save


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, mean and sample standard deviation."""
    return {
        "median": statistics.median(values),
        "mean": statistics.fmean(values),
        "sd": statistics.stdev(values) if len(values) > 1 else 0.0,
    }


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows])


def quiet(line: str) -> None:
    """No progress."""
