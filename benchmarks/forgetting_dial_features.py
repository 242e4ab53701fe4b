"""What the frozen base makes of every training record: the features from which closed forms are summed."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.forgetting_dial_closed import HEAD, Integers, Sums, sums_of_record, with_one
from trustchain_ray.engines.torch_engine import TorchEngine
from trustchain_ray.rows import TokenRow

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Features:
    """One record on the frozen base.

    Attributes
    ----------
    layers : Gram matrix of A x over the record's tokens, by layer, int64 ``(r, r)``.
    head : input of a head that is trained in full, ``(1, d + 1)``; None for a causal model.
    answers : last hidden states from which an answer's tokens (or, averaged over tokens, the class) are told,
        ``(positions, d + 1)``.
    classes : what is right there.
    """

    layers: dict[str, Integers]
    head: NDArray[np.float64] | None
    answers: NDArray[np.float64]
    classes: list[int]

    def sums(self, count: int) -> Sums:
        """The record's part of an analytic head of so many classes."""
        return sums_of_record(self.answers, self.classes, count)

    def grams(self) -> dict[str, Integers]:
        """Gram matrices of the layers, and of the head where there is one."""
        return self.layers if self.head is None else {**self.layers, HEAD: sums_of_record(self.head).gram}


@torch.no_grad()
def features(engine: TorchEngine, rows: Sequence[TokenRow], layers: bool = True) -> list[Features]:
    """Features of rows, each in a batch of its own: those of a record are then a function of this record alone.

    Parameters
    ----------
    engine : with the initial adapter loaded (B = 0).
    layers : also the Gram matrices, which take the most time.
    """
    adapter = engine.adapter
    adapter.model.eval()
    found = []
    with _recorded(engine) as seen:
        for row in rows:
            seen.clear()
            tokens = torch.from_numpy(row.tokens.astype(np.int64))[None].to(adapter.device)
            with torch.autocast(adapter.device.split(":")[0], torch.bfloat16, enabled=adapter.autocast):
                hidden = adapter.model(input_ids=tokens, output_hidden_states=True).hidden_states[-1][0]
            states = hidden.float().cpu().numpy()
            if adapter.task == "classification":
                answers, classes, head = states.mean(0, keepdims=True), [row.label], with_one(seen[HEAD])
            else:
                answers, head = states[row.answer_start - 1 : -1], None
                classes = [int(token) for token in row.tokens[row.answer_start :]]
            grams = {n: sums_of_record(x).gram for n, x in seen.items() if n != HEAD} if layers else {}
            found.append(Features(grams, head, with_one(answers), classes))
    adapter.model.train()
    return found


@contextmanager
def _recorded(engine: TorchEngine) -> Iterator[dict[str, Floats]]:
    """A x of every layer, ``(tokens, r)``, and the input of the head, ``(1, d)``, of the last forward pass."""
    seen: dict[str, Floats] = {}
    head = next((p for n, p in engine.adapter.parameters.items() if n.endswith("classifier.weight")), None)

    def keep(name: str, value: torch.Tensor) -> None:
        seen[name] = value.detach().float().reshape(-1, value.shape[-1]).cpu().numpy()

    def keep_output(name: str) -> Any:
        return lambda module, arguments, output: keep(name, output)

    with ExitStack() as stack:
        for name, layer in engine.adapter.lora.items():
            stack.callback(layer.lora_A["default"].register_forward_hook(keep_output(name)).remove)
        for module in engine.adapter.model.modules() if head is not None else ():
            if getattr(module, "weight", None) is head:
                hook = module.register_forward_pre_hook(lambda module, arguments: keep(HEAD, arguments[0]))
                stack.callback(hook.remove)
        yield seen


def grams_of(members: Sequence[Features]) -> dict[str, Integers]:
    """Gram matrices of a cohort: sums over its records."""
    out: dict[str, Integers] = {}
    for record in members:
        for name, gram in record.grams().items():
            out[name] = out[name] + gram if name in out else gram
    return out

