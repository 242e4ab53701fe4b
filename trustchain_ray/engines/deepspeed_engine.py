"""The DeepSpeed engine: ZeRO stages 0 to 3 over the ranks of a worker group, the torch engine's mathematics.

No bitwise claim is made: gradients are summed over ranks in the order of the communication library.
"""

import logging
import os
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch

from trustchain_ray import forms
from trustchain_ray.adapter import Tensors
from trustchain_ray.config import Config
from trustchain_ray.engines.base import AdapterModel
from trustchain_ray.errors import TrustChainError
from trustchain_ray.metrics import Metrics
from trustchain_ray.models import load_model, load_tokenizer
from trustchain_ray.rows import TokenRow

PERSISTENT_BELOW = 100_000  # ZeRO-3 keeps parameters of fewer elements whole on every rank (its own default)


class DeepSpeedEngine:
    """LoRA training by DeepSpeed; every method is called on all ranks with the same arguments.

    Parameters
    ----------
    config, base, device
        As of the torch engine. `device` is `cpu` (gloo) or `cuda:0` (nccl).
    rank, world_size
        With several ranks MASTER_ADDR and MASTER_PORT must be set; a single rank needs no address.

    Raises
    ------
    TrustChainError
        DeepSpeed is not installed, several ranks would share a GPU, or this process is already a rank of
        another group.
    """

    def __init__(self, config: Config, base: str, device: str = "cpu", rank: int = 0, world_size: int = 1) -> None:
        if device.startswith("cuda") and world_size > 1 and config.resources.gpus_per_worker < 1:
            raise TrustChainError(
                f"resources.gpus_per_worker={config.resources.gpus_per_worker:g} with resources.workers="
                f"{world_size}: NCCL refuses two ranks on one GPU; use whole GPUs, or workers=1"
            )
        self.deepspeed = _join(device, rank, world_size)
        torch.set_num_threads(config.training.threads)
        self.rank, self.world_size, self.device = rank, world_size, device
        self.training, self.tokenizer = config.training, load_tokenizer(base)
        self.partitioned = config.training.zero_stage == 3
        pad = self.tokenizer.pad_token_id
        # Under ZeRO-3 the model is loaded into host memory and partitioned from there, one parameter after
        # another: the whole never lies on a device. The adapter's maps are built before, from full tensors.
        self.adapter = AdapterModel(
            load_model(config, base, "cpu" if self.partitioned else device),
            pad,
            config.model.task,
            config.training.batch_size,
            device,
            forms.get(config.model.lora.form).TRAINS_A,
        )
        self.padding = TokenRow(np.asarray([pad], np.int32), 1, 0)
        parameters = self.adapter.trainable()
        settings = _settings(config, sum(p.numel() for p in parameters), self.adapter.autocast)
        if self.partitioned:
            self.deepspeed.zero.Init(module=self.adapter.model, config_dict_or_path=settings)
            for buffer in self.adapter.model.buffers():
                buffer.data = buffer.data.to(device)
        decay = config.training.weight_decay
        optimizer = torch.optim.AdamW(parameters, lr=config.training.lr, weight_decay=decay)
        self.engine = self.deepspeed.initialize(
            model=self.adapter.model, optimizer=optimizer, config=settings, dist_init_required=False
        )[0]
        self.shapes = self.adapter.shapes
        self.fresh_head = self.adapter.fresh_head
        self.memory = self.adapter.memory

    @torch.no_grad()
    def load(self, tensors: Tensors, alpha: float, residual: Tensors | None = None) -> None:
        self.adapter.set_scale(alpha, tensors)
        self._put(tensors)
        if residual is not None:
            for layer, module in self.adapter.lora.items():
                with self._gathered([module.base_layer.weight], writes=True):
                    if self.rank == 0 or not self.partitioned:
                        self.adapter.add_residual_to(layer, residual)

    @torch.no_grad()
    def tensors(self, names: Sequence[str]) -> Tensors:
        parameters = self.adapter.parameters
        with self._gathered([parameters[name] for name in names]):
            out = {name: parameters[name].detach().float().cpu().numpy().copy() for name in names}
        for name, tensor in out.items():
            if tensor.shape != self.adapter.sizes[name]:  # a part must never be sent as the whole
                raise AssertionError(f"{name} was gathered as {tensor.shape}, not {self.adapter.sizes[name]}")
        return out

    def train(
        self,
        rows: Sequence[TokenRow],
        steps: Sequence[Sequence[int]],
        rates: Sequence[float],
        only: Sequence[str] | None = None,
    ) -> list[float]:
        adapter = self.adapter
        trained = {name for name, parameter in adapter.parameters.items() if parameter.requires_grad}
        others = sorted(trained - set(trained if only is None else only))
        # Without a gradient AdamW moves a tensor by its weight decay alone; what that moves is put back.
        kept = self.tensors(others) if self.training.weight_decay else {}
        self._forget_moments()
        losses: list[torch.Tensor] = []
        with ExitStack() as stack:
            for name in others:
                hook: Any = adapter.parameters[name].register_hook(torch.zeros_like)
                stack.callback(hook.remove)
            for step, rate in zip(steps, rates, strict=True):
                losses.append(self._step(rows, step, rate, len(losses)))
                if kept:
                    self._put(kept)
        total = torch.stack(losses) if losses else torch.zeros(0)
        if self.world_size > 1 and losses:
            torch.distributed.all_reduce(total)
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()  # another organization may share the GPU until the next round
        return [float(loss) for loss in total.cpu()]

    def evaluate(self, rows: Sequence[TokenRow], batch: int = 32) -> Metrics:
        return self.adapter.evaluate(rows, batch, self.engine)

    def _step(self, rows: Sequence[TokenRow], step: Sequence[int], rate: float, number: int) -> torch.Tensor:
        """One optimizer step; the part of its loss that is this rank's, float64 scalar.

        Rank r takes rows r, r + world_size, ...; all ranks make the same number of passes, padded with a row
        of weight zero, since every pass communicates. DeepSpeed averages gradients over the ranks.
        """
        for group in self.engine.optimizer.param_groups:
            group["lr"] = rate
        micro = self.training.micro_batch
        own = [rows[i] for i in step[self.rank :: self.world_size]]
        most = len(step[:: self.world_size])
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for start in range(0, max(1, most), micro):
            part = own[start : start + micro]
            self.engine.set_gradient_accumulation_boundary(start + micro >= most)
            losses = self.adapter.record_losses(part or [self.padding], self.engine)[0]
            loss = losses.sum() * (1.0 / self.adapter.divisor if part else 0.0)
            self.engine.backward(loss * self.world_size)
            total += loss.detach()
        self.engine.step()
        if not self.engine.was_step_applied():
            raise TrustChainError(
                f"step {number} of the call has a gradient that is not finite (loss {float(total):g}); "
                "lower training.lr or set training.max_grad_norm"
            )
        return total

    def _put(self, tensors: Tensors) -> None:
        """Copy tensors into the model and, under ZeRO, into the master copies that a step starts from."""
        parameters = self.adapter.parameters
        with torch.no_grad(), self._gathered([parameters[name] for name in tensors], writes=True):
            for name, tensor in tensors.items():
                parameters[name].copy_(self.adapter.padded(name, tensor))
        if self.training.zero_stage:
            self.engine.optimizer.refresh_fp32_params()

    def _gathered(self, parameters: Sequence[torch.nn.Parameter], writes: bool = False) -> Any:
        """Whole parameters inside the context under ZeRO-3; what rank 0 writes, all ranks have afterwards."""
        return self.deepspeed.zero.GatheredParameters(
            list(parameters), modifier_rank=0 if writes else None, enabled=self.partitioned
        )

    def _forget_moments(self) -> None:
        """A new optimizer: moments and step count zero, in place, since ZeRO keeps references to them."""
        optimizer = getattr(self.engine.optimizer, "optimizer", self.engine.optimizer)
        for state in optimizer.state.values():
            for tensor in state.values():
                tensor.zero_()


def _settings(config: Config, trained: int, autocast: bool) -> dict[str, Any]:
    """The DeepSpeed configuration. Trained tensors stay float32 also on a bfloat16 base, which is autocast:
    DeepSpeed's own bf16 mode would round the adapter itself."""
    return {
        "train_micro_batch_size_per_gpu": 1,  # not what is fed: boundaries and divisor are our own
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.training.max_grad_norm,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {
            "stage": config.training.zero_stage,
            "reduce_bucket_size": max(trained, 1),  # the default is a buffer of 2 GB
            "stage3_param_persistence_threshold": PERSISTENT_BELOW,
        },
        "torch_autocast": {"enabled": autocast, "dtype": "bfloat16", "lower_precision_safe_modules": []},
        "timers": {"throughput": {"enabled": False}},  # it synchronises the device in every pass
    }


def _join(device: str, rank: int, world_size: int) -> Any:
    """Import DeepSpeed, make this process a rank of its group, and return the module."""
    cuda = device.startswith("cuda")
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if cuda else "cpu")
    os.environ.setdefault("LOCAL_RANK", "0")
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    try:
        import deepspeed
    except ImportError as error:
        raise TrustChainError(
            f"training.engine=deepspeed: {error}; install it with pip install 'trustchain-ray[deepspeed]'"
        ) from error
    deepspeed.utils.logger.setLevel(logging.WARNING)
    # DeepSpeed calls collectives by names that newer PyTorch versions call deprecated, in every pass.
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    # Otherwise the first collective on a CPU compiles this C++ op for most of a minute.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    distributed, backend = torch.distributed, "nccl" if cuda else "gloo"
    if not distributed.is_initialized() and world_size == 1:
        store = distributed.HashStore()  # type: ignore[attr-defined]
        distributed.init_process_group(backend, store=store, rank=0, world_size=1)
    deepspeed.init_distributed(backend, auto_mpi_discovery=False, rank=rank, world_size=world_size)
    if (distributed.get_rank(), distributed.get_world_size()) != (rank, world_size):
        raise TrustChainError(
            f"this process is already rank {distributed.get_rank()} of {distributed.get_world_size()}, "
            f"not {rank} of {world_size}: one worker group a process"
        )
    return deepspeed
