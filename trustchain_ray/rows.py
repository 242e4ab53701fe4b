"""Token rows: what a worker reads of a record, and fixed ways to put rows into a batch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np

from trustchain_ray.data import Record

PAD_MULTIPLE = 8


@dataclass(frozen=True)
class TokenRow:
    """Tokens of a record, int32 ``(length,)``; the loss is on those from `answer_start` on, or on `label`."""

    tokens: np.ndarray
    answer_start: int
    label: int
    choices: tuple[int, ...] = ()


def encode(records: Sequence[Record], tokenizer: Any, task: str, max_length: int) -> list[TokenRow]:
    """Tokens of records. A long prompt loses its beginning, then a long answer its end.

    Causal: [bos] prompt answer eos, the loss on answer and eos. Classification: the text with the
    tokenizer's own special tokens, the loss on the label.
    """
    return list(Rows(records, tokenizer, task, max_length))


class Rows(Sequence[TokenRow]):
    """What :func:`encode` gives, each row made when it is first read: a replay reads few of them."""

    def __init__(self, records: Sequence[Record], tokenizer: Any, task: str, max_length: int) -> None:
        self.records, self.tokenizer, self.task, self.max_length = records, tokenizer, task, max_length
        self.made: dict[int, TokenRow] = {}

    def __len__(self) -> int:
        return len(self.records)

    @overload
    def __getitem__(self, index: int) -> TokenRow: ...
    @overload
    def __getitem__(self, index: slice) -> list[TokenRow]: ...
    def __getitem__(self, index: int | slice) -> TokenRow | list[TokenRow]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if index not in self.made:
            self.made[index] = _encode(self.records[index], self.tokenizer, self.task, self.max_length)
        return self.made[index]


def _encode(record: Record, tokenizer: Any, task: str, max_length: int) -> TokenRow:
    if task == "classification":
        text = f"{record.prompt} {record.answer}".strip()
        tokens = tokenizer(text, truncation=True, max_length=max_length)["input_ids"]
        return TokenRow(np.asarray(tokens, np.int32), len(tokens), record.label, record.choices)
    begin = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []
    prompt = tokenizer(record.prompt, add_special_tokens=False)["input_ids"] if record.prompt else []
    end = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    answer = tokenizer(record.answer, add_special_tokens=False)["input_ids"] + end
    answer = answer[: max_length - len(begin) - 1]
    prompt = prompt[max(0, len(prompt) + len(answer) + len(begin) - max_length) :]
    tokens = begin + prompt + answer
    return TokenRow(np.asarray(tokens, np.int32), max(1, len(tokens) - len(answer)), -1)


@dataclass(frozen=True)
class Batch:
    """Padded arrays of a forward pass: `tokens`, `mask` and, for a causal model, `targets`, int64
    ``(rows, length)`` (-100 where there is no loss); `labels` int64 ``(rows,)`` for a classification."""

    tokens: np.ndarray
    mask: np.ndarray
    targets: np.ndarray
    labels: np.ndarray


def collate(rows: Sequence[TokenRow], pad_token: int) -> Batch:
    """Pad rows on the right to the longest, rounded up to a multiple of 8: a function of these rows alone."""
    longest = max((len(row.tokens) for row in rows), default=1)
    length = -(-longest // PAD_MULTIPLE) * PAD_MULTIPLE
    tokens = np.full((len(rows), length), pad_token, np.int64)
    mask = np.zeros((len(rows), length), np.int64)
    targets = np.full((len(rows), length), -100, np.int64)
    for i, row in enumerate(rows):
        size = len(row.tokens)
        tokens[i, :size] = row.tokens
        mask[i, :size] = 1
        targets[i, row.answer_start : size] = row.tokens[row.answer_start :]
    return Batch(tokens, mask, targets, np.asarray([row.label for row in rows], np.int64))
