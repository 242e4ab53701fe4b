"""The scan for triggers: which updates of a round keep up a few tokens that move any text into one class.

A backdoor is planted by records that carry a trigger and one class. Its updates look like honest ones, and accuracy
does not fall; what gives it away is the trigger:

1. Search. In the model of each update (twice its step, so that what has just begun shows) the gradient of a class's
   log-odds by the embeddings of drawn tokens, averaged over many, says how far each token would raise it: one step of
   HotFlip (1712.06751) for all texts at once, as for universal triggers (1908.07125). Words that mean something are
   raised by all updates alike; the suspected trigger of a class are the tokens that one raises most beyond the median.
2. Alarm. Does the cohort's state, what was merged so far, put the scanner's own records of other classes into the class
   once the suspected trigger stands in them? Members' texts and classes differ, and so do the words that their updates
   raise; but the model that they share follows a word against the rest of a text only where a backdoor is.
3. Attribution, where there is an alarm. How far does each update alone raise the trigger's effect, in log-odds, over
   that of drawn tokens? Updates that raise it far more than the median one keep it up.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import torch

from trustchain_ray.engines.base import AdapterModel
from trustchain_ray.rows import TokenRow

LENGTH, TEXTS, CONTEXTS = 10, 8, 8  # tokens of a text; texts that try triggers out; texts of which gradients are taken
TOKENS = 3  # of a trigger
RECORDS, ALARM = 32, 0.8  # own records that are asked at most; share of them that a trigger moves in a planted model
LEAST, SPREADS = 0.3, 2.0
"""An update keeps a trigger up where it raises its effect by LEAST and by SPREADS standard deviations (1.4826 median
absolute deviations) more than the median update."""


class Scan:
    """One scan of a cohort's round.

    Parameters
    ----------
    load
        Puts a state, float32 ``(n,)``, into the adapter's model.
    rows
        Records of the scanner that no member trains on.
    draws
        Of this round and cohort.
    """

    def __init__(
        self,
        adapter: AdapterModel,
        tokenizer: Any,
        load: Callable[[np.ndarray], None],
        rows: Sequence[TokenRow],
        draws: np.random.Generator,
    ) -> None:
        self._adapter, self._tokenizer, self._load, self._rows = adapter, tokenizer, load, rows
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
        """Organizations whose updates keep a trigger up, each with what was found.

        Parameters
        ----------
        state : what was merged so far, float32 ``(n,)``.
        updates : float32 ``(n,)``; those longer than the median one count as clipped to its length.
        step : of the merge.
        labels : names of the classes.
        """
        clipped = _clipped(updates)
        triggers = self._search(torch.stack([self._raises(state + 2 * step * one) for one in clipped.values()]))
        self._load(state)
        moved = [self._moved(c, trigger) for c, trigger in enumerate(triggers)]
        if max(moved) < ALARM:
            return {}
        before = self._effects(state, triggers)
        raised = {name: self._effects(state + step * one, triggers) - before for name, one in clipped.items()}
        found: dict[str, str] = {}
        for c, row in enumerate(np.stack(list(raised.values()), 1)):
            if moved[c] < ALARM:
                continue
            tokens = " ".join(self._tokenizer.convert_ids_to_tokens(triggers[c].tolist()))
            for name, value, usual in _outliers(list(raised), row):
                why = f"the model puts {moved[c]:.0%} more records with {tokens!r} into {labels[c]!r}, and this update"
                found.setdefault(name, f"{why} moves texts there by {value:.2f} nats, usual are {usual:.2f}")
        return found

    @torch.no_grad()
    def _moved(self, wanted: int, trigger: torch.Tensor) -> float:
        """Share of own records of other classes that the loaded model puts into a class because of a trigger."""
        others = (row for row in self._rows if row.label != wanted and wanted in (row.choices or [wanted]))
        rows = list(islice(others, RECORDS))
        if not rows:
            return 0.0
        with_it = [replace(row, tokens=self._inserted(row.tokens, trigger)) for row in rows]
        into = [self._adapter.logits(some, self._adapter.model)[0].argmax(1) == wanted for some in (rows, with_it)]
        return float((into[1].float() - into[0].float()).mean())

    def _inserted(self, tokens: np.ndarray, trigger: torch.Tensor) -> np.ndarray:
        """A text's tokens with a trigger in front; as many of its last ones are left out."""
        first, end = len(self._before), len(tokens) - len(self._after)
        inner = tokens[first : max(first, end - len(trigger))]
        return np.concatenate([tokens[:first], trigger.cpu().numpy(), inner, tokens[end:]]).astype(tokens.dtype)

    def _search(self, raises: torch.Tensor) -> list[torch.Tensor]:
        """The suspected trigger of each class, int64 ``(TOKENS,)``, from :meth:`_raises` of all updates."""
        words = self._adapter.model.get_input_embeddings().weight.detach()[self._words].float()
        beyond = (raises - raises.median(0).values) @ words.T
        most = beyond.max(0).values.topk(min(TOKENS, len(words)))
        return list(self._words[most.indices])

    def _raises(self, state: np.ndarray) -> torch.Tensor:
        """Gradients of all classes' log-odds in a state, by the embedding of a first token: ``(classes, width)``."""
        self._load(state)
        embeddings, kept = self._adapter.model.get_input_embeddings(), list[torch.Tensor]()

        def keep(module: torch.nn.Module, read: Any, out: torch.Tensor) -> torch.Tensor:
            kept.append(out.detach().requires_grad_())
            return kept[0]

        hook = embeddings.register_forward_hook(keep)
        try:
            odds = self._log_odds(self._contexts)
        finally:
            hook.remove()
        first, classes, found = len(self._before), odds.shape[1], list[torch.Tensor]()
        for c in range(classes):
            (gradient,) = torch.autograd.grad(odds[:, c].sum(), kept[0], retain_graph=c + 1 < classes)
            found.append(gradient[:, first : first + TOKENS].float().mean((0, 1)))
        return torch.stack(found)

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
