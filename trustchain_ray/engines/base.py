"""What an engine is, and what both engines share: the loss, evaluation, and the adapter's tensors."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as functional
from peft import get_peft_model_state_dict

from trustchain_ray.adapter import LORA_A, LORA_B, Tensors
from trustchain_ray.metrics import Metrics
from trustchain_ray.rows import TokenRow, collate


class Engine(Protocol):
    """A model with its adapter, resident for the whole run."""

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of all tensors of the adapter (A, B and head) by PEFT name."""

    def fresh_head(self) -> Tensors:
        """The initial tensors of a head that is trained in full (empty for a causal model)."""

    def load(self, tensors: Tensors, alpha: float, residual: Tensors | None = None) -> None:
        """Put tensors into the adapter, also into every master copy; `residual` (B A) into the base."""

    def tensors(self, names: Sequence[str]) -> Tensors:
        """Copies of the named tensors as float32."""

    def train(
        self,
        rows: Sequence[TokenRow],
        steps: Sequence[Sequence[int]],
        rates: Sequence[float],
        only: Sequence[str] | None = None,
    ) -> list[float]:
        """One optimizer step for each list of row indices, with a new optimizer; the loss of each step.

        `only` names the tensors to train; the others stay as they were loaded.
        """

    def evaluate(self, rows: Sequence[TokenRow], batch: int = 32) -> Metrics:
        """Metrics of the loaded adapter over rows, in their order."""

    def memory(self) -> dict[str, int]:
        """Resident and, on a GPU, peak allocated bytes."""

    tokenizer: Any


class AdapterModel:
    """A PEFT model and the access to its tensors that both engines share."""

    def __init__(self, model: Any, pad_token: int, task: str, divisor: int, device: str, trains_a: bool) -> None:
        self.model, self.pad_token, self.task, self.divisor, self.device = model, pad_token, task, divisor, device
        self.autocast = next(model.parameters()).dtype == torch.bfloat16
        names = get_peft_model_state_dict(model, save_embedding_layers=False)
        by_pointer = {parameter.data_ptr(): parameter for parameter in model.parameters()}
        self.parameters: dict[str, torch.nn.Parameter] = {n: by_pointer[t.data_ptr()] for n, t in names.items()}
        for name, parameter in self.parameters.items():
            parameter.requires_grad_(trains_a or not name.endswith(LORA_A))
        # Taken now: ZeRO-3 leaves parameters empty between forward passes.
        self.sizes = {name: tuple(parameter.shape) for name, parameter in self.parameters.items()}
        self.head: Tensors = {
            name: parameter.detach().float().cpu().numpy().copy()
            for name, parameter in self.parameters.items()
            if not name.endswith((LORA_A, LORA_B))
        }
        self.lora = {
            n.removesuffix(LORA_B): _module(model, p) for n, p in self.parameters.items() if n.endswith(LORA_B)
        }
        self.originals: dict[str, torch.Tensor] = {}

    def trainable(self, only: Sequence[str] | None = None) -> list[torch.nn.Parameter]:
        """Trained parameters (or those of `only`) in the order of their names."""
        names = sorted(self.parameters) if only is None else sorted(only)
        return [self.parameters[name] for name in names if self.parameters[name].requires_grad]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return self.sizes

    def fresh_head(self) -> Tensors:
        return self.head

    def set_scale(self, alpha: float, tensors: Tensors) -> None:
        """alpha / rank of the tensors that are being loaded, whatever rank the model was built with."""
        for layer, module in self.lora.items():
            if layer + LORA_B in tensors:
                module.scaling["default"] = alpha / tensors[layer + LORA_B].shape[1]

    def add_residual(self, residual: Tensors) -> None:
        """Base weights = original + B A, always made anew from the original."""
        for layer in self.lora:
            self.add_residual_to(layer, residual)

    def add_residual_to(self, layer: str, residual: Tensors) -> None:
        """One layer of :meth:`add_residual`; the original is kept in host memory, which is less scarce."""
        weight = self.lora[layer].base_layer.weight
        if layer not in self.originals:
            self.originals[layer] = weight.detach().to("cpu", copy=True)
        original = self.originals[layer].to(weight.device)
        product = torch.from_numpy(residual[layer + LORA_B]) @ torch.from_numpy(residual[layer + LORA_A])
        weight.data.copy_((original.float() + product.to(weight.device)).to(weight.dtype))

    def padded(self, name: str, tensor: np.ndarray) -> torch.Tensor:
        """A tensor of a lower rank filled up with zeros, which stay zero in training."""
        shape = self.sizes[name]
        if tensor.shape != shape:
            full = np.zeros(shape, np.float32)
            full[tuple(slice(0, size) for size in tensor.shape)] = tensor
            tensor = full
        return torch.tensor(tensor, dtype=torch.float32)  # a copy: buffers from the object store are read-only

    def logits(self, rows: Sequence[TokenRow], forward: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """What the model says and what is right, float32 and int64.

        Classification: ``(rows, classes)`` with the classes that a record's organization does not use at -1e9,
        and labels ``(rows,)``. Causal: ``(rows, length - 1, vocabulary)``, and the next tokens
        ``(rows, length - 1)``, -100 where there is no loss.
        """
        batch = collate(rows, self.pad_token)
        tokens = torch.from_numpy(batch.tokens).to(self.device)
        mask = torch.from_numpy(batch.mask).to(self.device)
        with torch.autocast(self.device.split(":")[0], torch.bfloat16, enabled=self.autocast):
            logits = forward(input_ids=tokens, attention_mask=mask).logits
        if self.task == "classification":
            logits = logits.float()
            if any(row.choices for row in rows):
                logits = logits.masked_fill(self._barred(rows, logits.shape[1]), -1e9)
            return logits, torch.from_numpy(batch.labels).to(self.device)
        return logits[:, :-1].float(), torch.from_numpy(batch.targets).to(self.device)[:, 1:]

    def record_losses(self, rows: Sequence[TokenRow], forward: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Per record: loss ``(rows,)``, right tokens (or class) and counted tokens (or 1), int64 ``(rows,)``."""
        logits, targets = self.logits(rows, forward)
        if self.task == "classification":
            losses = functional.cross_entropy(logits, targets, reduction="none")
            return losses, (logits.argmax(-1) == targets).long(), torch.ones_like(targets)
        counted = targets != -100
        flat = functional.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), reduction="none", ignore_index=-100
        ).view_as(targets)
        tokens_of = counted.sum(1)
        losses = flat.sum(1) / tokens_of.clamp(min=1)
        return losses, ((logits.argmax(-1) == targets) & counted).sum(1), tokens_of

    def _barred(self, rows: Sequence[TokenRow], classes: int) -> torch.Tensor:
        """Classes that a record's organization does not use, bool ``(rows, classes)``."""
        barred = np.zeros((len(rows), classes), bool)
        for i, row in enumerate(rows):
            if row.choices:
                barred[i] = True
                barred[i, list(row.choices)] = False
        return torch.from_numpy(barred).to(self.device)

    @torch.no_grad()
    def evaluate(self, rows: Sequence[TokenRow], batch: int, forward: Any) -> Metrics:
        """Metrics over rows, in batches of rows of like length (a stable order, so sums are repeatable)."""
        total = Metrics()
        self.model.eval()
        order = sorted(range(len(rows)), key=lambda i: len(rows[i].tokens))
        for start in range(0, len(order), batch):
            losses, right, counted = self.record_losses([rows[i] for i in order[start : start + batch]], forward)
            total.records += len(losses)
            total.loss += float(losses.double().sum())
            total.correct += int((right == counted).sum())
            if self.task == "causal":
                total.tokens += int(counted.sum())
                total.correct_tokens += int(right.sum())
        self.model.train()
        return total

    def memory(self) -> dict[str, int]:
        import psutil

        out = {"resident": psutil.Process().memory_info().rss}
        if self.device.startswith("cuda"):
            out["cuda_peak"] = torch.cuda.max_memory_allocated()
            out["cuda_reserved"] = torch.cuda.memory_reserved()
        return out


def _module(model: Any, parameter: torch.nn.Parameter) -> Any:
    """The PEFT LoRA layer that holds a B."""
    for module in model.modules():
        if hasattr(module, "lora_B") and any(p is parameter for p in module.lora_B.parameters()):
            return module
    raise AssertionError("a LoRA B without its layer")
