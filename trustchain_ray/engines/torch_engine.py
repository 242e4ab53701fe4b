"""The torch engine: one process, the canonical deterministic program."""

import os
from collections.abc import Callable, Sequence

import torch

from trustchain_ray import forms
from trustchain_ray.adapter import Tensors
from trustchain_ray.config import Config
from trustchain_ray.engines.base import AdapterModel
from trustchain_ray.errors import UsageError
from trustchain_ray.metrics import Metrics
from trustchain_ray.models import load_model, load_tokenizer
from trustchain_ray.privacy.gradients import PrivateGradient
from trustchain_ray.privacy.steps import PrivateSteps
from trustchain_ray.rows import TokenRow

# From row numbers (of `rows`), losses ``(n,)`` and counted tokens ``(n,)`` to the scalar that is minimised.
Objective = Callable[[Sequence[int], torch.Tensor, torch.Tensor], torch.Tensor]


def deterministic(threads: int) -> None:
    """Settings under which the same rows give the same bits on the same hardware class."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    torch.backends.cuda.matmul.allow_tf32 = False


class TorchEngine:
    """LoRA training by plain PyTorch; a step is a function of its rows, the adapter and the config."""

    def __init__(self, config: Config, base: str, device: str = "cpu") -> None:
        deterministic(config.training.threads)
        form = forms.get(config.model.lora.form)
        self.training, self.tokenizer = config.training, load_tokenizer(base)
        self.adapter = AdapterModel(
            load_model(config, base, device),
            self.tokenizer.pad_token_id,
            config.model.task,
            config.training.batch_size,
            device,
            form.TRAINS_A,
        )
        self.shapes = self.adapter.shapes
        self.fresh_head = self.adapter.fresh_head
        self.memory = self.adapter.memory
        self.loaded: dict[str, tuple[int, ...]] = {}  # shapes, by name: a lower rank is padded

    @torch.no_grad()
    def load(self, tensors: Tensors, alpha: float, residual: Tensors | None = None) -> None:
        self.adapter.set_scale(alpha, tensors)
        for name, tensor in tensors.items():
            self.adapter.parameters[name].copy_(self.adapter.padded(name, tensor))
            self.loaded[name] = tensor.shape
        if residual is not None:
            self.adapter.add_residual(residual)

    def tensors(self, names: Sequence[str]) -> Tensors:
        return {name: self.adapter.parameters[name].detach().float().cpu().numpy().copy() for name in names}

    def train(
        self,
        rows: Sequence[TokenRow],
        steps: Sequence[Sequence[int]],
        rates: Sequence[float],
        only: Sequence[str] | None = None,
        objective: Objective | None = None,
        after_step: Callable[[int], bool] | None = None,
        private: PrivateSteps | None = None,
    ) -> list[float]:
        """As :meth:`Engine.train`. `objective` replaces the sum of losses over the batch size, micro-batch by
        micro-batch; `after_step` gets the number of steps done, and True from it ends the training.

        With `private` the gradient of every step is clipped and noised before the optimizer sees it. The losses
        that are returned are not private: they must not leave the organization then.

        Raises
        ------
        UsageError
            `private` with an `objective` or with `training.max_grad_norm`.
        TrustChainError
            `private` with a model whose records cannot be told apart; see :class:`PrivateGradient`.
        """
        adapter, training = self.adapter, self.training
        private_gradient = self._private_gradient(private, only, objective) if private else None
        parameters = adapter.trainable(only)
        optimizer = torch.optim.AdamW(parameters, lr=training.lr, weight_decay=training.weight_decay)
        losses: list[float] = []
        for step, rate in zip(steps, rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate
            for parameter in parameters:  # an empty step has zero gradients and still moves the moments
                parameter.grad = torch.zeros_like(parameter)
            total = 0.0
            if private_gradient:
                total = private_gradient.step(rows, step, len(losses))
            else:
                for start in range(0, len(step), training.micro_batch):
                    part = step[start : start + training.micro_batch]
                    each, _, tokens = adapter.record_losses([rows[i] for i in part], adapter.model)
                    loss = each.sum() / adapter.divisor if objective is None else objective(part, each, tokens)
                    loss.backward()
                    total += float(loss.detach())
            if training.max_grad_norm:
                torch.nn.utils.clip_grad_norm_(parameters, training.max_grad_norm)
            optimizer.step()
            losses.append(total)
            if after_step and after_step(len(losses)):
                break
        return losses

    def _private_gradient(
        self, private: PrivateSteps, only: Sequence[str] | None, objective: Objective | None
    ) -> PrivateGradient:
        if objective is not None:
            raise UsageError(f"privacy.dp={private.mode}: another objective cannot be clipped by record")
        if self.training.max_grad_norm:
            raise UsageError(
                f"training.max_grad_norm={self.training.max_grad_norm:g} with privacy.dp={private.mode}: the noised "
                "gradient is not clipped again; leave it 0 and set privacy.clip"
            )
        names = self.adapter.parameters if only is None else only
        trained = [name for name in names if self.adapter.parameters[name].requires_grad]
        return PrivateGradient(self.adapter, trained, self.loaded, private, self.training.micro_batch)

    def evaluate(self, rows: Sequence[TokenRow], batch: int = 32) -> Metrics:
        return self.adapter.evaluate(rows, batch, self.adapter.model)
