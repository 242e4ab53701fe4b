"""What several integration tests look at."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from ledger.events import Event, read_event
from ledger.log import SqliteLog


def adapters_of(run: str) -> list[str]:
    """Digests of the cohort adapters of every round."""
    files = sorted(Path(run).glob("rounds/*/round.json"))
    return [json.dumps(json.loads(path.read_text())["adapters"]) for path in files]


def model_scores(config_file: str, run: str, organization: str = "alpha", base: str = "") -> dict[str, Any]:
    """Scores of the published model on an organization's test records, through plain PEFT in this process."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from trustchain_ray.config_files import load_config
    from trustchain_ray.data import load_holdings
    from trustchain_ray.engines.base import AdapterModel
    from trustchain_ray.models import load_tokenizer
    from trustchain_ray.rows import encode

    config = load_config([config_file], [])
    base = base or f"{run}/base"
    torch.set_num_threads(1)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), f"{run}/model").eval()
    tokenizer = load_tokenizer(base)
    rows = encode(load_holdings(config, organization).test, tokenizer, "causal", config.model.max_length)
    adapter = AdapterModel(model, tokenizer.pad_token_id, "causal", 1, "cpu", False)
    return adapter.evaluate(rows, 32, model).summary()


def events_of(run: str, kind: str) -> list[Event]:
    """The log's events of a type."""
    log = SqliteLog(Path(run) / "ledger" / "log.sqlite", read_only=True)
    try:
        return [read_event(envelope, log.keys()) for _, envelope in log.events(kind)]
    finally:
        log.close()


def drill(script: str, command: Any, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run a script of this folder with the command line's environment."""
    return subprocess.run(
        [sys.executable, str(Path(__file__).parent / script), *arguments],
        env=command.environment(),
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
