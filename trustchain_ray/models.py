"""The base model and its tokenizer: from a local folder, a hub id, or made from the config; LoRA by PEFT."""

import contextlib
import hashlib
import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import TaskType, get_peft_model
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
)
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from trustchain_ray.config import Config
from trustchain_ray.data import Record
from trustchain_ray.errors import TrustChainError
from trustchain_ray.keys import generator, torch_seed
from trustchain_ray.pooling import pool_by_mean
from trustchain_ray.rows import collate, encode

BaseFiles = dict[str, bytes]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def make_base(config: Config, public: Sequence[Record]) -> BaseFiles:
    """Make a small Llama and its tokenizer from the config, warmed up on public records.

    Returns
    -------
    The files of a Hugging Face model folder, by name. A function of the run's key, the config and the
    public records alone.
    """
    made = config.model.made
    tokenizer = _byte_level_bpe([f"{r.prompt}{r.answer}" for r in public], made.vocabulary)
    settings = LlamaConfig(
        hidden_size=made.hidden,
        num_hidden_layers=made.layers,
        num_attention_heads=made.heads,
        num_key_value_heads=made.heads,
        intermediate_size=made.intermediate,
        vocab_size=len(tokenizer),
        max_position_embeddings=config.model.max_length,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_seed(config.run.key, "made-model"))
        model = AutoModelForCausalLM.from_config(settings)
    _warm_up(config, model, tokenizer, public)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


def unpack_base(files: BaseFiles) -> str:
    """Put the files of a made base into a local folder named by their digest, once a machine; its path."""
    digest = hashlib.sha256()
    for name in sorted(files):
        digest.update(f"{name} {len(files[name])}\n".encode() + files[name])
    folder = Path(tempfile.gettempdir()) / f"trustchain-{os.getuid()}" / f"base-{digest.hexdigest()[:32]}"
    if not (folder / ".complete").exists():
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for name, data in files.items():
            partial = folder / f".{name}.{os.getpid()}"
            partial.write_bytes(data)
            partial.rename(folder / name)
        (folder / ".complete").touch()
    return str(folder)


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Load a model in a person's own process: without bars, without PEFT's warnings of names that change, and from
    then on without what transformers has to say short of errors."""
    disable_progress_bar()
    set_verbosity_error()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def load_tokenizer(base: str) -> Any:
    """The tokenizer of a base; a pad token is chosen where it has none."""
    tokenizer = _from_pretrained(AutoTokenizer, base)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    return tokenizer


def load_model(config: Config, base: str, device: str) -> Any:
    """The base model with a LoRA adapter of the largest configured rank, on a device.

    The frozen base has `model.dtype`, everything that is trained float32. Whatever is initialised anew (a
    classification head) comes from the run's key.
    """
    lora = config.model.lora
    classification = config.model.task == "classification"
    options: dict[str, Any] = {"num_labels": len(config.model.labels)} if classification else {}
    loader = AutoModelForSequenceClassification if classification else AutoModelForCausalLM
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_seed(config.run.key, "head"))
        settings = _without_dropout(_from_pretrained(AutoConfig, base, **options))
        model = _from_pretrained(loader, base, config=settings, dtype=DTYPES[config.model.dtype])
    if config.model.pooling == "mean":
        pool_by_mean(model)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    if model.config.pad_token_id is None:
        model.config.pad_token_id = load_tokenizer(base).pad_token_id
    rank = max([lora.rank, *lora.ranks.values()])
    try:
        model = get_peft_model(
            model,
            PeftLoraConfig(
                r=rank,
                lora_alpha=round(lora.alpha),  # only to build it: load() sets alpha / rank
                target_modules=list(lora.targets),
                lora_dropout=0.0,
                task_type=TaskType.SEQ_CLS if classification else TaskType.CAUSAL_LM,
            ),
        )
    except ValueError as error:
        linear = sorted({n.rsplit(".", 1)[-1] for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)})
        raise TrustChainError(
            f"model.lora.targets={list(lora.targets)} match no module of {base}; it has: {', '.join(linear)}"
        ) from error
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    if config.training.gradient_checkpointing:
        model.enable_input_require_grads()  # without it every lora_B silently stays zero
        model.gradient_checkpointing_enable()
    return model.to(device).train()


def base_digest(base: str) -> str:
    """SHA-256 over the weight and configuration files of a local base; the name itself for a hub id."""
    folder = Path(base)
    if not folder.is_dir():
        return f"hub:{base}"
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in (".safetensors", ".json") and path.is_file():
            digest.update(f"{path.name} {path.stat().st_size}\n".encode())
            with path.open("rb") as data:
                for block in iter(lambda: data.read(1 << 20), b""):
                    digest.update(block)
    return digest.hexdigest()


def _from_pretrained(loader: Any, base: str, **options: Any) -> Any:
    local = Path(base)
    if base.startswith(("/", ".")) and not local.is_dir():
        raise TrustChainError(f"model.base: there is no model folder {base}")
    if loader not in (AutoConfig, AutoTokenizer):
        options["use_safetensors"] = True
    try:
        return loader.from_pretrained(base, **options)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise TrustChainError(f"model.base: {base} cannot be loaded: {reason}") from error


def _without_dropout(settings: Any) -> Any:
    """All dropout of the base off: its masks come from a global generator, and the canonical program has none."""
    for part in [settings, *[v for v in vars(settings).values() if isinstance(v, PretrainedConfig)]]:
        for name, value in vars(part).items():
            if "drop" in name and isinstance(value, float):
                setattr(part, name, 0.0)
    return settings


def _byte_level_bpe(texts: list[str], vocabulary: int) -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def _warm_up(config: Config, model: Any, tokenizer: Any, public: Sequence[Record]) -> None:
    """Train all parameters on the public records for `model.made.warmup_steps`."""
    made = config.model.made
    if not made.warmup_steps:
        return
    rows = encode(public, tokenizer, "causal", config.model.max_length)
    draws = generator(config.run.key, "warm-up")
    optimizer = torch.optim.AdamW(model.parameters(), lr=made.warmup_lr)
    model.train()
    for step in range(made.warmup_steps):
        for group in optimizer.param_groups:
            group["lr"] = made.warmup_lr * min(1.0, 2.0 * (1.0 - step / made.warmup_steps))
        batch = collate([rows[i] for i in draws.integers(0, len(rows), made.warmup_batch)], tokenizer.pad_token_id)
        tokens, mask = torch.from_numpy(batch.tokens), torch.from_numpy(batch.mask)
        loss = model(input_ids=tokens, attention_mask=mask, labels=tokens.masked_fill(mask == 0, -100)).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
