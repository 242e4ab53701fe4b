"""Gradients of single records without a backward pass for each.

Hooks on the linear layers that hold trained tensors see what goes in (h) and the gradient of what comes out (g):
the gradient of row i is ``sum_t g[i, t] h[i, t]^T`` (Goodfellow, 1510.01799). LoRA tensors are small enough for
it to be kept for every row of a micro-batch; where g and h are smaller, as in a dense head, they are kept
instead, and the norm comes from their Gram matrices ("ghost norm", 2110.05679), the clipped sum from one product
("book-keeping", 2210.00038).
"""

from typing import Any

import torch

from trustchain_ray.errors import TrustChainError


class RowGradients:
    """Gradients of each row of a micro-batch for one trained tensor, a weight or a bias of a linear layer."""

    def __init__(self, name: str, parameter: torch.nn.Parameter, is_bias: bool, keep_factors: bool) -> None:
        self.name, self.parameter, self.is_bias = name, parameter, is_bias
        self.keep_factors = keep_factors
        self.clear()

    def clear(self) -> None:
        self.rows: torch.Tensor | None = None  # (rows, values)
        self.factors: list[tuple[torch.Tensor, torch.Tensor]] = []  # g (rows, positions, out), h (rows, positions, in)

    def add(self, h: torch.Tensor, g: torch.Tensor) -> None:
        """What one call of the layer adds: h ``(rows, positions, in)``, g ``(rows, positions, out)``, float32."""
        positions, inputs, outputs = h.shape[1], h.shape[2], g.shape[2]
        if self.is_bias:
            self._add_rows(g.sum(1))
        elif self.factors or (
            self.keep_factors and self.rows is None and 2 * positions * (inputs + outputs) <= inputs * outputs
        ):
            self.factors.append((g, h))
        else:
            self._add_rows(torch.bmm(g.mT, h).flatten(1))

    def _add_rows(self, rows: torch.Tensor) -> None:
        self.rows = rows if self.rows is None else self.rows + rows

    def _joined(self) -> tuple[torch.Tensor, torch.Tensor]:
        """g and h of all calls: calls of a shared layer are further positions."""
        g, h = zip(*self.factors, strict=True)
        return torch.cat(g, 1), torch.cat(h, 1)

    def squares(self) -> torch.Tensor:
        """Squared norms ``(rows,)``; a scalar 0 where the layer was not reached."""
        if self.factors:
            g, h = self._joined()
            return (torch.bmm(g, g.mT) * torch.bmm(h, h.mT)).sum((1, 2))
        return self.parameter.new_zeros(()) if self.rows is None else self.rows.square().sum(1)

    def weighted(self, weights: torch.Tensor) -> torch.Tensor:
        """Sum of the rows' gradients by weights ``(rows,)``, in the tensor's shape."""
        if self.factors:
            g, h = self._joined()
            return (g * weights[:, None, None]).flatten(0, 1).T @ h.flatten(0, 1)
        if self.rows is None:
            return torch.zeros_like(self.parameter)
        return (weights @ self.rows).view_as(self.parameter)

    def leave_out(self, rows: torch.Tensor) -> None:
        """Set the gradients of rows (bool) to zero: 0 times infinity would be NaN."""
        if self.rows is not None:
            self.rows = self.rows.masked_fill(rows[:, None], 0.0)
        off = rows[:, None, None]
        self.factors = [(g.masked_fill(off, 0.0), h.masked_fill(off, 0.0)) for g, h in self.factors]


def trained_layers(
    model: Any, parameters: dict[str, torch.nn.Parameter], keep_factors: bool
) -> dict[torch.nn.Module, list[RowGradients]]:
    """The linear layers that hold the trained tensors.

    Raises
    ------
    TrustChainError
        A trained tensor belongs to no linear layer, or the model normalises over the batch.
    """
    names = {id(parameter): name for name, parameter in parameters.items()}  # a parameter is told by its identity
    layers: dict[torch.nn.Module, list[RowGradients]] = {}
    for path, module in model.named_modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            raise TrustChainError(
                f"privacy.dp: {path} normalises over the batch, so that a record's loss depends on other records; "
                "use a base without batch normalisation"
            )
        if isinstance(module, torch.nn.Linear):
            for parameter, is_bias in ((module.weight, False), (module.bias, True)):
                name = names.pop(id(parameter), None)
                if name is not None:
                    tensor = RowGradients(name, parameters[name], is_bias, keep_factors)
                    layers.setdefault(module, []).append(tensor)
    if names:
        raise TrustChainError(
            f"privacy.dp: {sorted(names.values())[0]} is trained but belongs to no linear layer; gradients of single "
            "records are known for linear layers alone"
        )
    return layers
