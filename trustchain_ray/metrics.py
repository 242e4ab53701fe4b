"""Metrics of an adapter on records, as sums that add up over organizations."""

from dataclasses import dataclass


@dataclass
class Metrics:
    """Sums over records: `loss` of mean-token negative log-likelihoods (nats), `correct` records (the class, or
    every token of the answer), `tokens` and `correct_tokens` of answers."""

    records: int = 0
    loss: float = 0.0
    correct: int = 0
    tokens: int = 0
    correct_tokens: int = 0

    def summary(self) -> dict[str, float]:
        """Means: `accuracy`, `loss` and, for texts, `token_accuracy`."""
        if not self.records:
            return {}
        out = {"accuracy": self.correct / self.records, "loss": self.loss / self.records}
        if self.tokens:
            out["token_accuracy"] = self.correct_tokens / self.tokens
        return out
