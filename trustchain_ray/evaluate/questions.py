"""Records with their other answers: from a file of the user's, and from the organizations' own sources.

Columns `paraphrased_answer` (a text) and `perturbed_answer` (a list of texts), where a source has them, are TOFU's
other answers (https://arxiv.org/abs/2401.06121), from which truth ratios come.
"""

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trustchain_ray.config import Config
from trustchain_ray.data import Record, load_public
from trustchain_ray.errors import TrustChainError, UsageError
from trustchain_ray.evaluate.standing import Standing
from trustchain_ray.forgetting.metrics.questions import Question, questions
from trustchain_ray.keys import derive
from trustchain_ray.sources import Row, read_rows

PARAPHRASED, WRONG = "paraphrased_answer", "perturbed_answer"
Owned = tuple[str, Record]
"""A record and the organization that holds it."""


@dataclass
class OtherAnswers:
    """Other answers by record id."""

    paraphrased: dict[str, str] = field(default_factory=dict)
    wrong: dict[str, list[str]] = field(default_factory=dict)


def read_records(config: Config, path: str, option: str) -> list[Record]:
    """Records of a file with the run's columns (`data.columns`); in a classification all labels are allowed.

    Raises
    ------
    UsageError
        There is no such file, or no record in it.
    TrustChainError
        A bad row, with file and line.
    """
    if not path.startswith("hf:") and not Path(path).is_file():
        raise UsageError(f"{option} {path}: there is no such file")
    strict = copy.deepcopy(config)
    strict.data.bad_rows = "refuse"  # a figure over fewer records than were given would mislead
    records = load_public(strict, path)
    if not records:
        raise UsageError(f"{option} {path}: holds no record")
    return records


def questions_of_file(config: Config, path: str, records: Sequence[Record], tokenizer: Any) -> list[Question]:
    """Records of a file, tokenised with their other answers."""
    return _questions(config, records, tokenizer, _other_answers(config, path))


def questions_of_run(standing: Standing, split: str, records: Sequence[Owned], tokenizer: Any) -> list[Question]:
    """Records of organizations, tokenised with the other answers of their sources.

    Parameters
    ----------
    split : `train` or `test`.
    """
    config, found = standing.config, list[Question]()
    by_source: dict[str, OtherAnswers] = {}
    for name in standing.holdings:
        own = [record for owner, record in records if owner == name]
        if own:
            source = _source_of(config, name, split)
            if source not in by_source:
                by_source[source] = _other_answers(config, source)
            found += _questions(config, own, tokenizer, by_source[source])
    return found


def pick(standing: Standing, split: str, most: int, without: Iterable[Record]) -> list[Owned]:
    """At most so many records that are still in the run, the first by keyed order, without those that are named.

    Test records whose text is trained on, too, are no holdout and are left out.
    """
    named = {text_of(record) for record in without}
    if split == "test":
        named |= {text_of(record) for held in standing.holdings.values() for record in held.train}
    owned = [(n, r) for n, held in standing.holdings.items() for r in getattr(held, split) if text_of(r) not in named]
    key = standing.config.run.key
    return sorted(owned, key=lambda item: derive(key, "evaluate", split, item[0], item[1].id))[:most]


def text_of(record: Record) -> tuple[str, str, int]:
    """What a record says, without its id, which may differ between files."""
    return record.prompt, record.answer, record.label


def _questions(config: Config, records: Sequence[Record], tokenizer: Any, other: OtherAnswers) -> list[Question]:
    model = config.model
    return questions(records, tokenizer, model.task, model.max_length, other.paraphrased, other.wrong)


def _source_of(config: Config, organization: str, split: str) -> str:
    data = config.data
    source = data.organizations[organization] if data.split == "sources" else data
    return source.test or source.train if split == "test" else source.train


def _other_answers(config: Config, source: str) -> OtherAnswers:
    """Other answers in a source by the ids of its records; none for a classification, which has no other answers."""
    other = OtherAnswers()
    if config.model.task != "causal":
        return other
    for row in read_rows(source):
        if row.problem is not None:
            continue  # whoever read the records has refused or skipped it
        identifier = _id_of(config, row)
        paraphrase, wrong = row.values.get(PARAPHRASED), row.values.get(WRONG)
        if paraphrase is not None:
            other.paraphrased[identifier] = _text(row, PARAPHRASED, paraphrase)
        if wrong is not None:
            if not isinstance(wrong, list) or not wrong:
                raise TrustChainError(f"{row.where}: {WRONG} must be a list of texts, at least one")
            other.wrong[identifier] = [_text(row, WRONG, text) for text in wrong]
    return other


def _text(row: Row, column: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise TrustChainError(f"{row.where}: {column} must be text that is not empty, not {value!r}")
    return value


def _id_of(config: Config, row: Row) -> str:
    """The id of the record of a row, as :func:`trustchain_ray.data.load_holdings` gives it."""
    value = row.values.get(config.data.columns.id)
    return f"row-{row.number:08d}" if value in (None, "") else str(value)
