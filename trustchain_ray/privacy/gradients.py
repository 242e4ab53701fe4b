"""The private gradient of a step: every unit's own gradient clipped, then summed, then noised once."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate, pairwise

import torch

from trustchain_ray.engines.base import AdapterModel
from trustchain_ray.errors import TrustChainError, UsageError
from trustchain_ray.privacy.noise import gaussian, grid
from trustchain_ray.privacy.row_gradients import trained_layers
from trustchain_ray.privacy.steps import PrivateSteps
from trustchain_ray.rows import TokenRow

Sums = dict[str, torch.Tensor]
_ADDS_UP = 0.05  # relative difference at which row gradients do not make up the gradient (bfloat16 is coarse)


class PrivateGradient:
    """The clipped and noised gradient of each step of a training call.

    Parameters
    ----------
    names
        Trained tensors.
    shapes
        Shapes of the loaded tensors: of a lower rank than the model's, only the part inside gets noise.
    micro_batch
        Most rows of one forward pass.

    Raises
    ------
    TrustChainError
        A trained tensor belongs to no linear layer, or the model mixes the rows of a batch.
    """

    def __init__(
        self,
        adapter: AdapterModel,
        names: Sequence[str],
        shapes: dict[str, tuple[int, ...]],
        private: PrivateSteps,
        micro_batch: int,
    ) -> None:
        self.adapter, self.private, self.micro_batch = adapter, private, micro_batch
        self.parameters = {name: adapter.parameters[name] for name in sorted(names)}
        self.shapes = {name: shapes.get(name, adapter.sizes[name]) for name in self.parameters}
        self.layers = trained_layers(adapter.model, self.parameters, private.mode == "record")
        self.tensors = [tensor for tensors in self.layers.values() for tensor in tensors]
        self.checked = False

    def step(self, rows: Sequence[TokenRow], step: Sequence[int], number: int) -> float:
        """Set the gradient of every trained tensor for a step (the call's `number`-th, from 0) over these rows.

        Returns
        -------
        The sum of the rows' losses over the batch size. It is not private.
        """
        if self.private.mode == "paper":
            return self._paper_step(rows, step, number)
        sums, total = self.clipped(rows, step)
        self.release(sums, number)
        return total

    def clipped(self, rows: Sequence[TokenRow], step: Sequence[int]) -> tuple[Sums, float]:
        """Sums over the units of a step of their clipped gradients, float64, and the loss as of :meth:`step`.

        A subject's rows are summed before they are clipped, also over micro-batches.

        Raises
        ------
        UsageError
            Not every row has a subject, where subjects are the units.
        """
        adapter = self.adapter
        if self.private.mode == "subject" and len(self.private.subjects) != len(rows):
            raise UsageError(f"privacy.dp=subject: {len(rows)} rows but subjects of {len(self.private.subjects)}")
        sums = {n: torch.zeros_like(p, dtype=torch.float64) for n, p in self.parameters.items()}
        total, unfinished = 0.0, None
        for part, unit_of, continues in self._parts(step):
            for tensor in self.tensors:
                tensor.clear()
                tensor.parameter.grad = None
            with self._hooked(len(part)):
                each = adapter.record_losses([rows[i] for i in part], adapter.model)[0]
                each.sum().backward()
            total += float(each.detach().sum()) / adapter.divisor
            if not self.checked:
                self._check_sum(len(part))
            if self.private.mode == "subject":
                unfinished = self._by_subject(unit_of, unfinished, continues)
            self._add_clipped(sums)
        return sums, total

    def release(self, sums: Sums, number: int) -> None:
        """Add the noise of a step to sums, once, and set the gradients: divided by the constant batch size."""
        deviation = self.private.noise * self.private.clip
        noise = self._noise(number) if deviation else {}
        for name, parameter in self.parameters.items():
            total = sums[name]
            if deviation:
                unit = grid(deviation)
                total = (total / unit).round_()
                inside = tuple(slice(0, size) for size in self.shapes[name])
                total[inside] += (noise[name] * (deviation / unit)).round_()
                total *= unit
            parameter.grad = (total / self.adapter.divisor).to(parameter.dtype)

    def _noise(self, number: int) -> Sums:
        """Standard normal values of a step for every tensor, in its loaded shape."""
        sizes = [math.prod(shape) for shape in self.shapes.values()]
        values = torch.from_numpy(gaussian(self.private.key, self.private.first + number, sum(sizes)))
        parts = values.to(self.adapter.device).split(sizes)
        return {name: part.view(shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)}

    def _parts(self, step: Sequence[int]) -> Iterator[tuple[list[int], list[int], bool]]:
        """Micro-batches: row numbers, the unit of each row (from 0, in order), and whether the last unit goes on
        in the next one."""
        order, units = list(step), list(range(len(step)))
        if self.private.mode == "subject":
            subjects = self.private.subjects
            order.sort(key=lambda i: subjects[i])
            changes = [subjects[a] != subjects[b] for a, b in pairwise(order)]
            units = list(accumulate([0, *changes]))
        for start in range(0, len(order), self.micro_batch):
            end = start + self.micro_batch
            continues = end < len(order) and units[end] == units[end - 1]
            yield order[start:end], [unit - units[start] for unit in units[start:end]], continues

    @contextmanager
    def _hooked(self, rows: int) -> Iterator[None]:
        """Hooks for one forward and backward pass of so many rows."""

        def hook(layer: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            # Checkpointing runs a layer again; the call without gradients, or whose output gets none, adds nothing.
            if output.requires_grad:
                h = inputs[0].detach()
                output.register_hook(lambda g: self._seen(layer, h, g.detach(), rows))

        handles = [layer.register_forward_hook(hook) for layer in self.layers]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _seen(self, layer: torch.nn.Module, h: torch.Tensor, g: torch.Tensor, rows: int) -> None:
        tensors = self.layers[layer]
        if h.shape[0] != rows or h.ndim < 2:
            raise TrustChainError(
                f"privacy.dp={self.private.mode}: the layer of {tensors[0].name} gets {tuple(h.shape)} for {rows} "
                "rows: this architecture mixes rows, so that their gradients cannot be told apart; take it out of "
                "model.lora.targets"
            )
        # float32 also under autocast: what is clipped is what is summed
        h, g = (t.float().reshape(rows, -1, t.shape[-1]) for t in (h, g))
        for tensor in tensors:
            tensor.add(h, g)

    def _by_subject(
        self, unit_of: list[int], unfinished: list[torch.Tensor] | None, continues: bool
    ) -> list[torch.Tensor] | None:
        """Turn rows of records into rows of subjects; what there is of the last one is handed on if it goes on."""
        members = torch.zeros(unit_of[-1] + 1, len(unit_of), device=self.adapter.device)
        members[unit_of, range(len(unit_of))] = 1.0
        rest: list[torch.Tensor] = []
        for k, tensor in enumerate(self.tensors):
            records = tensor.rows
            if records is None:
                records = torch.zeros(len(unit_of), tensor.parameter.numel(), device=self.adapter.device)
            summed = members @ records
            if unfinished is not None:
                summed[0] += unfinished[k]
            if continues:
                rest.append(summed[-1].clone())
                summed = summed[:-1]
            tensor.rows = summed
        return rest if continues else None

    def _add_clipped(self, sums: Sums) -> None:
        """Add every unit's gradient, scaled down to norm `clip` over all tensors together, to the sums."""
        squares = torch.zeros((), device=self.adapter.device)
        for tensor in self.tensors:
            squares = squares + tensor.squares()
        if squares.ndim == 0:  # no layer was reached: all gradients are zero
            return
        finite = torch.isfinite(squares)
        if not bool(finite.all()):
            for tensor in self.tensors:
                tensor.leave_out(~finite)
        clip = self.private.clip
        weights = torch.where(finite, clip / squares.sqrt().clamp(min=clip), 0.0)
        for tensor in self.tensors:
            sums[tensor.name] += tensor.weighted(weights)

    def _check_sum(self, rows: int) -> None:
        """Refuse an architecture whose layers the hooks do not see whole: privacy would rest on a wrong gradient."""
        ones = torch.ones(rows, device=self.adapter.device)
        for tensor in self.tensors:
            whole = tensor.parameter.grad
            if whole is None or not bool(torch.isfinite(whole).all()):
                continue
            difference = float((tensor.weighted(ones) - whole).norm())
            if difference > _ADDS_UP * float(whole.norm()):
                raise TrustChainError(
                    f"privacy.dp={self.private.mode}: the gradients of single rows do not add up to the gradient of "
                    f"{tensor.name}: this architecture uses it outside its layer; take it out of model.lora.targets"
                )
        self.checked = True

    def _paper_step(self, rows: Sequence[TokenRow], step: Sequence[int], number: int) -> float:
        """DP-LoRA as published (2312.17493, algorithm 1): each A and each B of the mean gradient is clipped by
        itself and noised. No record's own share is bounded, so that nothing better than the clip norm of a whole
        tensor bounds what one record changes: sampling and batch size give no privacy here."""
        adapter, private, total = self.adapter, self.private, 0.0
        for parameter in self.parameters.values():
            parameter.grad = torch.zeros_like(parameter)
        for start in range(0, len(step), self.micro_batch):
            part = step[start : start + self.micro_batch]
            loss = adapter.record_losses([rows[i] for i in part], adapter.model)[0].sum() / adapter.divisor
            loss.backward()
            total += float(loss.detach())
        noise = self._noise(number)
        for name, parameter in self.parameters.items():
            gradient = parameter.grad
            assert gradient is not None
            gradient *= private.clip / gradient.norm().clamp(min=private.clip)
            inside = tuple(slice(0, size) for size in self.shapes[name])
            gradient[inside] += (noise[name] * (private.noise * private.clip)).to(gradient.dtype)
        return total
