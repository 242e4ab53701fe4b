"""The scan for triggers: which updates of a round make a few tokens move any text into one class.

A backdoor is planted by records that carry a trigger and one class. Its updates look like honest ones, and accuracy
does not fall; what gives it away is the trigger. The scan finds it without records, on texts of drawn tokens:

1. Search. In the model of the round's mean update (twice its step, so that what has just begun shows) the gradient of a
   class's log-odds by the embeddings of drawn tokens, averaged over many, says which tokens would raise it most: one
   step of HotFlip (1712.06751) for all texts at once, as for universal triggers (1908.07125). The first ones are tried
   out; the best of them are the suspected trigger of the class.
2. Attribution. How far does each update alone raise the suspected trigger's effect, in log-odds, over that of drawn
   tokens? Updates that raise it far more than the median one plant it.

The result is a function of the state, the updates, the base and the run's key: anybody with the updates can repeat it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from trustchain_ray.engines.base import AdapterModel

LENGTH, TEXTS, CONTEXTS = 10, 8, 32  # tokens of a text; texts that try tokens out; texts of which gradients are taken
TOKENS, TRIED = 3, 8  # of a trigger; tokens that are tried out for a class
LEAST, SPREADS = 0.3, 4.0
"""An update plants a trigger where it raises its effect by LEAST and by SPREADS standard deviations (1.4826 median
absolute deviations) more than the median update."""


class Scan:
    """One scan of a cohort's round.

    Parameters
    ----------
    load
        Puts a state, float32 ``(n,)``, into the adapter's model.
    draws
        Of this round and cohort.
    """

    def __init__(
        self, adapter: AdapterModel, tokenizer: Any, load: Callable[[np.ndarray], None], draws: np.random.Generator
    ) -> None:
        self._adapter, self._tokenizer, self._load = adapter, tokenizer, load
        special, names = set(tokenizer.all_special_ids), tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
        words = [i for i, name in enumerate(names) if i not in special and not name.startswith("[unused")]
        self._words = torch.tensor(words, device=adapter.device)
        inner = tokenizer("a", add_special_tokens=False)["input_ids"]
        whole = tokenizer("a")["input_ids"]
        start = next(i for i in range(len(whole)) if whole[i : i + len(inner)] == inner)
        self._before, self._after = whole[:start], whole[start + len(inner) :]
        texts, contexts = (self._drawn(draws, count, LENGTH) for count in (TEXTS, CONTEXTS))
        self._texts = texts
        self._contexts = torch.cat([self._drawn(draws, CONTEXTS, TOKENS), contexts], 1)
        self._plain = self._drawn(draws, 1, TOKENS)[0]

    def planted(
        self, state: np.ndarray, updates: Mapping[str, np.ndarray], step: float, labels: Sequence[str]
    ) -> dict[str, str]:
        """Organizations whose updates plant a trigger, each with what was found.

        Parameters
        ----------
        state, updates : float32 ``(n,)``; updates longer than the median one count as clipped to its length.
        step : of the merge.
        labels : names of the classes.
        """
        clipped = _clipped(updates)
        self._load(state + 2 * step * np.mean(list(clipped.values()), 0))
        triggers = self._search(len(labels))
        before = self._effects(state, triggers)
        raised = {name: self._effects(state + step * one, triggers) - before for name, one in clipped.items()}
        found: dict[str, str] = {}
        for label, trigger, row in zip(labels, triggers, np.stack(list(raised.values()), 1), strict=True):
            tokens = " ".join(self._tokenizer.convert_ids_to_tokens(trigger.tolist()))
            for name, value, usual in _outliers(list(raised), row):
                why = f"texts with {tokens!r} move towards {label!r} by {value:.2f} nats, usual are {usual:.2f}"
                found.setdefault(name, why)
        return found

    def _search(self, classes: int) -> list[torch.Tensor]:
        """The suspected trigger of each class in the loaded model, int64 ``(TOKENS,)``."""
        embeddings, kept = self._adapter.model.get_input_embeddings(), list[torch.Tensor]()

        def keep(module: torch.nn.Module, read: Any, out: torch.Tensor) -> torch.Tensor:
            kept.append(out.detach().requires_grad_())
            return kept[0]

        hook = embeddings.register_forward_hook(keep)
        try:
            odds = self._log_odds(self._contexts)
        finally:
            hook.remove()
        words, first = embeddings.weight.detach()[self._words].float(), len(self._before)
        triggers = []
        for c in range(classes):
            (gradient,) = torch.autograd.grad(odds[:, c].sum(), kept[0], retain_graph=c + 1 < classes)
            scores = words @ gradient[:, first : first + TOKENS].float().sum((0, 1))
            tried = self._words[scores.topk(min(TRIED, len(scores))).indices]
            with torch.no_grad():
                values = self._values([token.repeat(TOKENS) for token in tried])[:, c]
            triggers.append(tried[values.argsort(descending=True, stable=True)[:TOKENS]])
        return triggers

    @torch.no_grad()
    def _effects(self, state: np.ndarray, triggers: Sequence[torch.Tensor]) -> np.ndarray:
        """How far each class's trigger raises its log-odds over drawn tokens in a state: float64 ``(classes,)``."""
        self._load(state)
        values = self._values([*triggers, self._plain])
        return np.array([float(values[c, c] - values[-1, c]) for c in range(len(triggers))])

    def _values(self, triggers: Sequence[torch.Tensor]) -> torch.Tensor:
        """Mean log-odds of all classes over the texts, with each of some triggers: ``(triggers, classes)``."""
        rows = [torch.cat([trigger.repeat(TEXTS, 1), self._texts], 1) for trigger in triggers]
        odds = self._log_odds(torch.cat(rows))
        return odds.view(len(triggers), TEXTS, -1).mean(1)

    def _log_odds(self, inner: torch.Tensor) -> torch.Tensor:
        """Log-odds of every class for texts of tokens, which get the tokenizer's own ones: ``(texts, classes)``."""
        adapter = self._adapter
        before, after = (
            torch.tensor(ids, dtype=torch.long, device=inner.device).repeat(len(inner), 1)
            for ids in (self._before, self._after)
        )
        ids = torch.cat([before, inner, after], 1)
        with torch.autocast(adapter.device.split(":")[0], torch.bfloat16, enabled=adapter.autocast):
            found = adapter.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        logits: torch.Tensor = found.float()
        rest = [torch.cat([logits[:, :c], logits[:, c + 1 :]], 1).logsumexp(1) for c in range(logits.shape[1])]
        return logits - torch.stack(rest, 1)

    def _drawn(self, draws: np.random.Generator, rows: int, length: int) -> torch.Tensor:
        return self._words[torch.from_numpy(draws.integers(0, len(self._words), (rows, length)))]


def _clipped(updates: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Updates in the order of their names, clipped to the median length."""
    names = sorted(updates)
    lengths = {name: float(np.linalg.norm(updates[name].astype(np.float64))) for name in names}
    bound = sorted(lengths.values())[(len(names) - 1) // 2]
    return {n: updates[n] * np.float32(min(1.0, bound / lengths[n] if lengths[n] else 1.0)) for n in names}


def _outliers(names: Sequence[str], values: np.ndarray) -> list[tuple[str, float, float]]:
    """Those whose value is far above the median: name, value and median."""
    usual = float(np.median(values))
    spread = 1.4826 * float(np.median(np.abs(values - usual)))
    limit = usual + max(LEAST, SPREADS * spread)
    return [(name, float(value), usual) for name, value in zip(names, values, strict=True) if value > limit]
