"""ROUGE-L of generated answers (Lin 2004), on lower-case words and their Porter stems."""

import re
from collections.abc import Sequence

import numpy as np

from trustchain_ray.errors import TrustChainError
from trustchain_ray.forgetting.metrics.inputs import Values
from trustchain_ray.forgetting.metrics.stemmer import stem

SHORTEST_STEMMED = 4  # letters; shorter words stay as they are


def rouge_l_recall(generated: Sequence[str], answers: Sequence[str], stemmed: bool = True) -> Values:
    """``LCS(words of the generation, words of the answer) / words of the answer``, ``(records,)``.

    LCS is the longest common subsequence; 0 where one of the two has no word. Words are runs of ASCII letters
    and digits, as in the rouge-score package, whose `use_stemmer` is `stemmed`.

    Raises
    ------
    TrustChainError
        No records, or different numbers of texts.
    """
    if len(generated) != len(answers):
        raise TrustChainError(f"ROUGE-L: {len(generated)} generated texts for {len(answers)} answers")
    if not answers:
        raise TrustChainError("ROUGE-L: there are no records to measure on; give at least one")
    return np.asarray([_recall(g, a, stemmed) for g, a in zip(generated, answers, strict=True)], np.float64)


def words(text: str, stemmed: bool = True) -> list[str]:
    """Lower-case words of a text."""
    found = re.findall(r"[a-z0-9]+", text.lower())
    return [stem(word) if stemmed and len(word) >= SHORTEST_STEMMED else word for word in found]


def longest_common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Its length, by the usual table, one row at a time."""
    row = [0] * (len(second) + 1)
    for word in first:
        diagonal = 0
        for j, other in enumerate(second, start=1):
            diagonal, row[j] = row[j], diagonal + 1 if word == other else max(row[j], row[j - 1])
    return row[-1]


def _recall(generated: str, answer: str, stemmed: bool) -> float:
    wanted = words(answer, stemmed)
    return longest_common_subsequence(words(generated, stemmed), wanted) / len(wanted) if wanted else 0.0
