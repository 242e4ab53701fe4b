"""The scan for triggers: which members put a few tokens into the model that move any text into one class.

A backdoor is planted by records that carry a trigger and one class. Its updates look like honest ones, and accuracy
does not fall; what gives it away is the trigger, and who it rests on:

1. Search. Every token of the vocabulary, alone as a text: how probable does the cohort's state find each class? What
   moves any text moves an empty one, too. (Gradients by embeddings, as in HotFlip, 1712.06751, miss rare tokens: what a
   trigger does is not linear so far from other tokens.)
2. Attribution. How much of that does the state lose without all that one member ever put in? Words that mean something
   rest on many members, words of one member's topic less so, a planted one on those who planted it: the few tokens of
   a class in which one member stands out most are its suspected trigger.
3. Alarm. Do they put the scanner's own records of other classes into the class?

A member is named where a suspected trigger moves the scanner's records, and its effect rests on this member.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import torch

from trustchain_ray.engines.base import AdapterModel
from trustchain_ray.rows import TokenRow

LENGTH, TEXTS = 10, 8  # tokens of a drawn text, and how many of them try a trigger out
LIKELY, FIRST, JOINED = 0.02, 8, 3
"""Tokens of a class whose attribution is asked for: alone as a text (a share of the vocabulary), in other texts; and
how many are tried together."""
RECORDS, ALARM = 32, 0.5  # own records that are asked at most; share of them that a trigger moves in a planted model
FIRST_ONE, ACCOMPLICE, MOST, SPREADS = (11.0, 5.0), (4.0, 3.0), 0.75, 2.0
"""Of n members, an effect rests on one where the state loses without it so many nats / n, so many equal shares of the
effect (or MOST of it), and so many standard deviations (1.4826 median absolute deviations) more than without the median
member. Where it rests on nobody as much as on a FIRST_ONE, nobody planted it; where it does, less makes an ACCOMPLICE.
"""
_BATCH = 1024


@dataclass(frozen=True)
class Suspect:
    """Tokens that may be the trigger of a class, their effect in nats, and what is lost of it without each member."""

    wanted: int
    tokens: torch.Tensor
    effect: float
    lost: Mapping[str, float]

    def planters(self) -> dict[str, float]:
        """Members on whom the effect rests, each with its share of it."""
        values = np.array(list(self.lost.values()))
        usual = float(np.median(values))
        spread = 1.4826 * float(np.median(np.abs(values - usual)))

        def above(nats: float, shares: float) -> dict[str, float]:
            part = min(MOST, shares / len(values)) * self.effect
            least = usual + max(nats / len(values), part, SPREADS * spread)
            return {name: lost for name, lost in self.lost.items() if self.effect > 0 and lost > least}

        found = above(*ACCOMPLICE) if above(*FIRST_ONE) else {}
        return {name: min(1.0, lost / self.effect) for name, lost in found.items()}

    def first(self) -> str:
        """The member on whom it rests most."""
        return max(self.lost, key=lambda name: self.lost[name])

    def clear(self) -> float:
        """How far that member stands out, and no more than the effect, in nats."""
        return min(self.effect, max(self.lost.values()) - float(np.median(list(self.lost.values()))))


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
        self._texts, self._plain = self._drawn(draws, TEXTS, LENGTH), self._drawn(draws, TEXTS, JOINED)

    @torch.no_grad()
    def planted(self, state: np.ndarray, put: Mapping[str, np.ndarray], labels: Sequence[str]) -> dict[str, str]:
        """Organizations on whom a trigger rests, each with what was found.

        Parameters
        ----------
        state : the cohort's, float32 ``(n,)``.
        put : what each member ever put into it, float32 ``(n,)``: the state less it is the state without the member.
        labels : names of the classes.
        """
        self._adapter.model.eval()
        try:
            return self._planted(state, put, labels)
        finally:
            self._adapter.model.train()

    def _planted(self, state: np.ndarray, put: Mapping[str, np.ndarray], labels: Sequence[str]) -> dict[str, str]:
        suspects = self._attributed(state, put, self._search(state, put))
        found: dict[str, str] = {}
        for c in range(len(labels)):
            own = sorted((one for one in suspects if one.wanted == c), key=Suspect.clear, reverse=True)
            tokens = torch.cat([one.tokens for one in own if one.first() == own[0].first()][:JOINED])
            (trigger,) = self._attributed(state, put, [(c, tokens)])
            planters = trigger.planters()
            self._load(state)
            if not planters or (moved := self._moved(c, tokens)) < ALARM:
                continue
            text = " ".join(self._tokenizer.convert_ids_to_tokens(tokens.tolist()))
            why = f"{text!r} puts {moved:.0%} more records into {labels[c]!r}, and of what it does"
            for name, share in planters.items():
                found.setdefault(name, f"{why}, {share:.0%} is gone without what this member ever sent")
        return found

    def _search(self, state: np.ndarray, put: Mapping[str, np.ndarray]) -> list[tuple[int, torch.Tensor]]:
        """Tokens, with a class that they make likely as texts, and where one member did more for that than others."""
        self._load(state)
        alone = self._alone(self._words)
        count = max(min(FIRST, len(self._words)), int(LIKELY * len(self._words)))
        likely = alone.topk(count, 0).indices  # (tokens, classes)
        classes = torch.arange(likely.shape[1], device=likely.device)

        def odds(of: np.ndarray) -> torch.Tensor:
            self._load(of)
            each = self._alone(self._words[likely.flatten()])  # (tokens * classes, classes)
            return each.view(*likely.shape, -1)[:, classes, classes]

        whole = odds(state)
        lost = torch.stack([whole - odds(state - put[name]) for name in sorted(put)])
        beyond, raised = lost.max(0).values - lost.median(0).values, whole - alone.median(0).values
        most = torch.minimum(beyond, raised).topk(min(FIRST, count), 0).indices
        return [(c, self._words[likely[i, c]][None]) for c, row in enumerate(most.T.tolist()) for i in row]

    def _alone(self, words: torch.Tensor) -> torch.Tensor:
        """Log-odds of every class for each token as a text, in the loaded state: ``(tokens, classes)``."""
        return torch.cat([self._log_odds(some[:, None]) for some in words.split(_BATCH)])

    def _attributed(
        self, state: np.ndarray, put: Mapping[str, np.ndarray], triggers: Sequence[tuple[int, torch.Tensor]]
    ) -> list[Suspect]:
        """The effects of triggers of classes in a state, and what is lost of them without each member."""
        self._load(state)
        effects, lost = self._effects(triggers), dict[str, np.ndarray]()
        for name in sorted(put):
            self._load(state - put[name])
            lost[name] = effects - self._effects(triggers)
        return [
            Suspect(c, tokens, float(effects[i]), {name: float(row[i]) for name, row in lost.items()})
            for i, (c, tokens) in enumerate(triggers)
        ]

    def _effects(self, triggers: Sequence[tuple[int, torch.Tensor]]) -> np.ndarray:
        """How far each trigger raises its class's log-odds over drawn tokens in the loaded state: ``(triggers,)``."""
        size = len(triggers[0][1])
        texts = [torch.cat([tokens.repeat(TEXTS, 1), self._texts], 1) for _, tokens in triggers]
        plain = torch.cat([self._plain[:, :size], self._texts], 1)
        odds = self._log_odds(torch.cat([plain, *texts])).view(len(triggers) + 1, TEXTS, -1).mean(1)
        return np.array([float(odds[i + 1, c] - odds[0, c]) for i, (c, _) in enumerate(triggers)])

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
