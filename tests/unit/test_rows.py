"""Token rows and batches."""

import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trustchain_ray.data import Record
from trustchain_ray.rows import Rows, TokenRow, collate, encode

BOS, EOS, PAD = 1, 2, 0


class Letters:
    """A tokenizer of one token a letter, with the calls that `encode` makes of a real one."""

    def __init__(self, bos: int | None = BOS, eos: int | None = EOS) -> None:
        self.bos_token_id, self.eos_token_id = bos, eos

    def __call__(
        self,
        text: str,
        add_special_tokens: bool = True,
        truncation: bool = False,
        max_length: int | None = None,
    ) -> dict[str, list[int]]:
        tokens = [ord(letter) for letter in re.sub(r"\s", "_", text)]
        if add_special_tokens:
            tokens = [101, *tokens[: max_length - 2 if truncation and max_length else None], 102]
        return {"input_ids": tokens}


def letters(text: str) -> list[int]:
    return [ord(letter) for letter in text]


def one(prompt: str, answer: str, length: int, tokenizer: Any = None, task: str = "causal") -> TokenRow:
    return encode([Record("i", "s", prompt, answer, 3)], tokenizer or Letters(), task, length)[0]


def test_a_short_record_is_whole():
    row = one("ab", "cde", 16)
    assert row.tokens.tolist() == [BOS, *letters("abcde"), EOS]
    assert row.tokens.dtype == np.int32
    assert (row.answer_start, row.label) == (3, -1)


def test_a_long_prompt_loses_its_beginning():
    row = one("abcdefgh", "xy", 8)
    assert row.tokens.tolist() == [BOS, *letters("efghxy"), EOS]
    assert row.answer_start == 5


def test_a_long_answer_loses_its_end_but_one_token_of_the_prompt_stays():
    row = one("abc", "uvwxyz", 6)
    assert row.tokens.tolist() == [BOS, *letters("cuvwx")]
    assert row.answer_start == 2


def test_a_plain_text_is_all_answer():
    row = one("", "xyz", 8)
    assert row.tokens.tolist() == [BOS, *letters("xyz"), EOS]
    assert row.answer_start == 1
    bare = one("", "xyz", 8, Letters(bos=None))
    assert bare.tokens.tolist() == [*letters("xyz"), EOS]
    assert bare.answer_start == 1, "nothing predicts the first token"


def test_a_tokenizer_without_an_end_token():
    row = one("ab", "cd", 8, Letters(eos=None))
    assert row.tokens.tolist() == [BOS, *letters("abcd")]
    assert row.answer_start == 3


@given(st.text("abc", max_size=30), st.text("xyz", min_size=1, max_size=30), st.integers(4, 24))
def test_truncation_keeps_the_answer_first(prompt: str, answer: str, length: int):
    row = one(prompt, answer, length)
    assert len(row.tokens) <= length
    kept = row.tokens[row.answer_start :].tolist()
    assert kept == [*letters(answer), EOS][: length - 2]
    before = row.tokens[1 : row.answer_start].tolist()
    assert before == letters(prompt)[len(prompt) - len(before) :]
    assert row.tokens[0] == BOS
    assert len(row.tokens) == length or before == letters(prompt), "nothing is cut without need"


def test_a_classification_has_the_tokens_of_the_tokenizer_and_a_label():
    row = one("what", "is it", 6, task="classification")
    assert row.tokens.tolist() == [101, *letters("what"), 102]
    assert row.label == 3
    assert one("", "ab", 9, task="classification").tokens.tolist() == [101, *letters("ab"), 102]
    batch = collate([row], PAD)
    assert batch.labels.tolist() == [3]
    assert (batch.targets == -100).all()


def test_targets_are_the_answer_at_its_own_positions():
    batch = collate([one("ab", "cde", 16), one("", "x", 16)], PAD)
    assert batch.tokens.tolist() == [
        [BOS, *letters("abcde"), EOS, PAD],
        [BOS, *letters("x"), EOS, *[PAD] * 5],
    ]
    assert batch.mask.tolist() == [[1] * 7 + [0], [1] * 3 + [0] * 5]
    assert batch.targets.tolist() == [
        [-100] * 3 + [*letters("cde"), EOS, -100],
        [-100, *letters("x"), EOS] + [-100] * 5,
    ]
    assert {array.dtype for array in vars(batch).values()} == {np.dtype(np.int64)}


@pytest.mark.parametrize(("longest", "length"), [(1, 8), (7, 8), (8, 8), (9, 16), (16, 16), (17, 24)])
def test_rows_are_padded_to_a_multiple_of_eight(longest: int, length: int):
    rows = [TokenRow(np.arange(1, n + 1, dtype=np.int32), n, -1) for n in {longest, 1}]
    assert collate(rows, PAD).tokens.shape == (len(rows), length)


def test_no_rows_are_an_empty_batch():
    assert collate([], PAD).tokens.shape == (0, 8)


@given(st.lists(st.integers(1, 20), min_size=1, max_size=5))
def test_what_a_row_holds_does_not_depend_on_its_neighbours(sizes: list[int]):
    rows = [TokenRow(np.arange(1, n + 1, dtype=np.int32), min(2, n), n) for n in sizes]
    batch = collate(rows, PAD)
    for i, row in enumerate(rows):
        alone = SimpleNamespace(**vars(collate([row], PAD)))
        width = alone.tokens.shape[1]
        assert batch.tokens[i, :width].tolist() == alone.tokens[0].tolist()
        assert batch.targets[i, :width].tolist() == alone.targets[0].tolist()
        assert not batch.mask[i, len(row.tokens) :].any()


def test_rows_are_made_when_they_are_read():
    said: list[str] = []

    class Heard(Letters):
        def __call__(self, text: str, *args: Any, **options: Any) -> dict[str, list[int]]:
            said.append(text)
            return super().__call__(text, *args, **options)

    records = [Record(str(i), f"person {i}", f"question {i}", f"answer {i}") for i in range(4)]
    rows = Rows(records, Heard(), "causal", 40)
    assert (len(rows), said) == (4, [])
    whole = encode(records, Letters(), "causal", 40)
    assert rows[2].tokens.tolist() == whole[2].tokens.tolist()
    assert rows[2] is rows[2]
    assert said == ["question 2", "answer 2"]
    assert [row.tokens.tolist() for row in rows] == [row.tokens.tolist() for row in whole]
    assert [row.answer_start for row in rows[1:3]] == [row.answer_start for row in whole[1:3]]
