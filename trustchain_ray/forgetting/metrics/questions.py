"""A record as the metrics read it: its tokens, its answer as text, and other answers to the same question."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from trustchain_ray.data import Record
from trustchain_ray.errors import TrustChainError
from trustchain_ray.rows import TokenRow, encode


@dataclass(frozen=True)
class Question:
    """`answer` is the text for ROUGE and zlib (of a classification: the text that is classified); `paraphrase` and
    `wrong` are the same prompt with another answer, for truth ratios."""

    row: TokenRow
    answer: str
    paraphrase: TokenRow | None = None
    wrong: tuple[TokenRow, ...] = ()


def questions(
    records: Sequence[Record],
    tokenizer: Any,
    task: str,
    max_length: int,
    paraphrased: Mapping[str, str] | None = None,
    wrong: Mapping[str, Sequence[str]] | None = None,
) -> list[Question]:
    """Tokenise records and their other answers, in the order of the records.

    Parameters
    ----------
    paraphrased, wrong : TOFU's ``paraphrased_answer`` and ``perturbed_answer`` by record id; they may name
        records that are not asked for, and leave out some.

    Raises
    ------
    TrustChainError
        Other answers for a classification.
    """
    if task != "causal" and (paraphrased or wrong):
        raise TrustChainError("paraphrased and wrong answers need model.task=causal; a classification says a label")

    def rows(record: Record, answers: Sequence[str]) -> list[TokenRow]:
        return encode([replace(record, answer=answer) for answer in answers], tokenizer, task, max_length)

    out = []
    for record, row in zip(records, encode(records, tokenizer, task, max_length), strict=True):
        text = record.answer if task == "causal" else f"{record.prompt} {record.answer}".strip()
        other = (paraphrased or {}).get(record.id)
        out.append(
            Question(
                row,
                text,
                rows(record, [other])[0] if other is not None else None,
                tuple(rows(record, (wrong or {}).get(record.id, ()))),
            )
        )
    return out
