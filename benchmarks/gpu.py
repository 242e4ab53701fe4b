"""LoRA on a GPU: tokens a second and peak memory of each engine and ZeRO stage against a plain PEFT loop.

    python -m benchmarks.gpu [--hidden 2048 --layers 16]

A Llama of 1 to 8 B parameters made from a config, bf16, rank 16 on all linear layers, sequences of 1,024 tokens. Every
case runs in a process of its own; the plain loop and the engines see the same rows. Two more cases: two
organizations that share the GPU, and the memory that a worker holds between rounds.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.common import parser, table, write

CASES = ("plain", "torch", "deepspeed-0", "deepspeed-1", "deepspeed-2", "deepspeed-3")


def main() -> None:
    arguments = parser("gpu", __doc__)
    arguments.add_argument("--hidden", type=int, default=2048)
    arguments.add_argument("--layers", type=int, default=16)
    arguments.add_argument("--length", type=int, default=1024)
    arguments.add_argument("--batch", type=int, default=8)
    arguments.add_argument("--steps", type=int, default=12)
    arguments.add_argument("--case", help="run one case in this process (used by the benchmark itself)")
    options = arguments.parse_args()
    if options.case:
        print(json.dumps(case(options)))
        return
    shape = [f"--{name}={getattr(options, name)}" for name in ("hidden", "layers", "length", "batch", "steps")]
    results = {name: run(name, shape) for name in CASES}
    results["two at a time"] = together(shape)
    plain = results["plain"]["tokens_per_s"]
    rows = [
        [
            name,
            f"{r['tokens_per_s']:,.0f}",
            f"{r['tokens_per_s'] / plain:.2f}",
            f"{r['peak_gb']:.1f}",
            f"{r['held_gb']:.1f}",
        ]
        for name, r in results.items()
    ]
    print(table(["case", "tokens/s", "of plain", "peak GB", "held between rounds GB"], rows))
    write(options.out, {"shape": shape, "cases": results})


def run(name: str, shape: list[str]) -> dict[str, Any]:
    return finish(start(name, shape))


def start(name: str, shape: list[str]) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "benchmarks.gpu", f"--case={name}", *shape]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def finish(process: "subprocess.Popen[str]") -> dict[str, Any]:
    out, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"a case ended with exit code {process.returncode}")
    result: dict[str, Any] = json.loads(out.splitlines()[-1])
    return result


def together(shape: list[str]) -> dict[str, Any]:
    """Two organizations on one GPU, each with a torch worker of its own."""
    both = [finish(process) for process in [start("torch", shape), start("torch", shape)]]
    return {key: sum(result[key] for result in both) for key in both[0]}


def case(options: Any) -> dict[str, Any]:
    """One engine, or the plain loop, on rows of random tokens."""
    import numpy as np
    import torch

    from trustchain_ray.config import Config
    from trustchain_ray.initial import fresh_adapter
    from trustchain_ray.models import load_model
    from trustchain_ray.rows import TokenRow

    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    config = Config()
    config.model.dtype, config.model.max_length = "bfloat16", options.length
    config.model.lora.rank, config.model.lora.alpha = 16, 32.0
    config.model.lora.targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    config.training.batch_size = config.training.micro_batch = options.batch
    config.resources.gpus_per_worker = 1.0
    base = random_llama(options.hidden, options.layers, options.length, device)
    draws = np.random.default_rng(0)
    rows = [TokenRow(draws.integers(3, 32000, options.length).astype(np.int32), 1, -1) for _ in range(options.batch)]
    steps, rates = [list(range(options.batch))] * options.steps, [1e-4] * options.steps
    if options.case == "plain":
        model = load_model(config, base, device)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("lora_B" in name)
        tokens = torch.tensor(np.stack([row.tokens for row in rows]).astype(np.int64), device=device)

        def train(count: int) -> None:
            optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
            for _ in range(count):
                with torch.autocast(device.split(":")[0], torch.bfloat16):
                    loss = model(input_ids=tokens, labels=tokens).loss
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    else:
        from trustchain_ray import engines

        name, _, stage = options.case.partition("-")
        config.training.engine, config.training.zero_stage = name, int(stage or 0)
        engine = engines.make(config, base, device, rank=0, world_size=1)
        engine.load(fresh_adapter(engine.shapes(), "gpu", "frozen", 16, "ffa"), 32.0)

        def train(count: int) -> None:
            engine.train(rows, steps[:count], rates[:count])

    train(2)
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    train(options.steps)
    if on_gpu:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    return {
        "tokens_per_s": options.steps * options.batch * options.length / seconds,
        "peak_gb": torch.cuda.max_memory_allocated() / 1e9 if on_gpu else 0.0,
        "held_gb": torch.cuda.memory_allocated() / 1e9 if on_gpu else 0.0,
    }


def random_llama(hidden: int, layers: int, length: int, device: str) -> str:
    """A folder with a randomly initialised bf16 Llama of 32,000 tokens, made once a shape."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

    folder = Path(tempfile.gettempdir()) / f"trustchain-llama-{hidden}-{layers}"
    if not (folder / "tokenizer.json").exists():
        from tokenizers import Tokenizer, models

        settings = LlamaConfig(
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=max(1, hidden // 64),
            num_key_value_heads=max(1, hidden // 64),
            intermediate_size=4 * hidden,
            vocab_size=32000,
            max_position_embeddings=length,
        )
        with torch.device(device):
            model = AutoModelForCausalLM.from_config(settings, dtype=torch.bfloat16)
        model.save_pretrained(folder)
        words = Tokenizer(models.WordLevel({"<pad>": 0, "<s>": 1, "</s>": 2}, unk_token="</s>"))
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=words, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
        )
        tokenizer.save_pretrained(folder)  # last: it marks the whole
    return str(folder)


if __name__ == "__main__":
    main()
