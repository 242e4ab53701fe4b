"""The published model: a standard PEFT adapter directory, written whole."""

import json
import shutil
from typing import Any

import numpy as np

from ledger.canonical import safetensors_digest, sha256_hex, write_atomic
from trustchain_ray.adapter import LORA_A, LORA_B, Tensors, layers, save_tensors
from trustchain_ray.config import Config
from trustchain_ray.run_directory import RunDirectory, explain_writes

MEAN = (
    "from trustchain_ray.pooling import pool_by_mean\n\n"
    "pool_by_mean(base_model)  # its head reads the mean of all tokens, not the first one\n"
)


def publish(config: Config, run: RunDirectory, tensors: Tensors, scale: float, form: str) -> dict[str, Any]:
    """Write `model/` so that ``PeftModel.from_pretrained(base, run/model)`` gives this model, after
    :func:`trustchain_ray.pooling.pool_by_mean` of the base with `model.pooling: mean`; its card says so.

    Parameters
    ----------
    tensors : PEFT tensors (A, B and head).
    scale : what B A is multiplied with, alpha / rank.

    Returns
    -------
    dict
        `model_digest` of the adapter and `files`: SHA-256 of every file by its path in the run directory.
    """
    tensors, rank = _one_rank(tensors)
    base = str(run.path / "base") if config.model.base == "made" else config.model.base
    settings = {
        "auto_mapping": None,
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "lora_alpha": scale * rank,
        "lora_dropout": 0.0,
        "modules_to_save": ["classifier", "score"] if config.model.task == "classification" else None,
        "peft_type": "LORA",
        "r": rank,
        "target_modules": sorted(config.model.lora.targets),
        "task_type": "SEQ_CLS" if config.model.task == "classification" else "CAUSAL_LM",
    }
    folder, partial = run.path / "model", run.path / ".model.partial"
    with explain_writes(folder):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        save_tensors(partial / "adapter_model.safetensors", tensors, {"format": "pt"})
        write_atomic(partial / "adapter_config.json", (json.dumps(settings, indent=2) + "\n").encode())
        card = _card(config, form).encode()
        write_atomic(partial / "README.md", card)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    names = sorted(path.name for path in folder.iterdir())
    return {
        "model_digest": safetensors_digest(folder / "adapter_model.safetensors"),
        "files": {f"model/{name}": sha256_hex((folder / name).read_bytes()) for name in names},
    }


def _one_rank(tensors: Tensors) -> tuple[Tensors, int]:
    """All layers at the largest rank among them: PEFT knows one `r`, and rows of zeros change nothing."""
    rank = max(t.shape[0] for name, t in tensors.items() if name.endswith(LORA_A))
    out = dict(tensors)
    for layer in layers(tensors):
        a, b = tensors[layer + LORA_A], tensors[layer + LORA_B]
        missing = rank - a.shape[0]
        out[layer + LORA_A] = np.pad(a, ((0, missing), (0, 0)))
        out[layer + LORA_B] = np.pad(b, ((0, 0), (0, missing)))
    return out, rank


def _card(config: Config, form: str) -> str:
    names = ", ".join(config.model.labels)
    audit = "\n**Not for release**: an audit run trained it on canaries, too.\n" if config.privacy.canaries else ""
    labels = f"\nLabels, in the order of the class indices: {names}.\n" if names else ""
    return (
        f"# {config.run.name}\n\nA LoRA adapter (form `{form}`) trained by a federation of organizations; "
        f"the log of the run says from what.\n{audit}{labels}\n"
        f"```python\nfrom peft import PeftModel\n{MEAN if config.model.pooling == 'mean' else ''}"
        "model = PeftModel.from_pretrained(base_model, this_folder)\n```\n"
    )
