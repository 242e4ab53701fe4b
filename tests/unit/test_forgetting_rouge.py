"""ROUGE-L against its definition, and against the rouge-score package where it is installed."""

import itertools
import random

import pytest

from trustchain_ray.errors import TrustChainError
from trustchain_ray.forgetting.metrics.rouge import longest_common_subsequence, rouge_l_recall, words
from trustchain_ray.forgetting.metrics.stemmer import stem

# Generation, answer, recall with stems and without: given by rouge-score 0.1.2.
GIVEN = [
    ("Jaime Vasquez was born in Santiago.", "The author Jaime Vasquez hails from Santiago, Chile.", 0.375, 0.375),
    ("the cats were running quickly", "a cat runs quickly", 0.75, 0.25),
    ("nothing alike", "completely different words", 0.0, 0.0),
    ("", "an answer", 0.0, 0.0),
    ("an answer", "", 0.0, 0.0),
    ("b a", "a b", 0.5, 0.5),
    ("He's 25 years old; née 1999", "he s 25 year olds n e 1999", 1.0, 0.75),
    (
        "ponies relational conditional rationally hopefulness",
        "pony relation condition rational hopeful",
        1.0,
        0.0,
    ),
    ("sky skies dying die", "skies sky die dying", 1.0, 0.5),
]
STEMS = {
    "caresses": "caress", "ponies": "poni", "ties": "tie", "cats": "cat", "feed": "feed", "agreed": "agre",
    "plastered": "plaster", "bled": "bled", "motoring": "motor", "sing": "sing", "conflated": "conflat",
    "troubled": "troubl", "sized": "size", "hopping": "hop", "tanned": "tan", "falling": "fall", "hissing": "hiss",
    "failing": "fail", "filing": "file", "happy": "happi", "sky": "sky", "relational": "relat", "rational": "ration",
    "digitizer": "digit", "radically": "radic", "vietnamization": "vietnam", "feudalism": "feudal",
    "decisiveness": "decis", "sensibiliti": "sensibl", "triplicate": "triplic", "formative": "form",
    "goodness": "good", "revival": "reviv", "allowance": "allow", "inference": "infer", "adjustable": "adjust",
    "replacement": "replac", "adoption": "adopt", "communism": "commun", "effective": "effect", "probate": "probat",
    "rate": "rate", "cease": "ceas", "controlling": "control", "rolling": "roll", "geology": "geolog", "enjoy": "enjoy",
}  # fmt: skip


def test_stems_are_those_of_porter_s_paper() -> None:
    assert {word: stem(word) for word in STEMS} == STEMS


def test_recall_is_what_rouge_score_gives() -> None:
    generated, answers, stemmed, plain = zip(*GIVEN, strict=True)
    assert rouge_l_recall(generated, answers).tolist() == pytest.approx(stemmed)
    assert rouge_l_recall(generated, answers, stemmed=False).tolist() == pytest.approx(plain)


def test_the_longest_common_subsequence_is_the_longest_of_all() -> None:
    draws = random.Random(0)
    for _ in range(40):
        one, two = (tuple(draws.choices("abc", k=draws.randint(0, 6))) for _ in range(2))
        ours = {part for size in range(len(one) + 1) for part in itertools.combinations(one, size)}
        theirs = {part for size in range(len(two) + 1) for part in itertools.combinations(two, size)}
        assert longest_common_subsequence(one, two) == max(len(part) for part in ours & theirs)


@pytest.mark.slow
def test_random_texts_agree_with_the_package() -> None:
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rougeL"], use_stemmer=True)
    draws, vocabulary = random.Random(1), [*STEMS, "Was", "born", "in", "1999", "née", "O'Neil"]
    texts = [" ".join(draws.choices(vocabulary, k=draws.randint(1, 12))) for _ in range(80)]
    for generated, answer in itertools.pairwise(texts):
        theirs = scorer.score(answer, generated)["rougeL"].recall
        assert rouge_l_recall([generated], [answer])[0] == pytest.approx(theirs)


def test_words_are_runs_of_ascii_letters_and_digits() -> None:
    assert words("Née in 1999, O'Neil!", stemmed=False) == ["n", "e", "in", "1999", "o", "neil"]


def test_no_texts_and_unequal_numbers_are_refused() -> None:
    with pytest.raises(TrustChainError, match="no records"):
        rouge_l_recall([], [])
    with pytest.raises(TrustChainError, match="1 generated texts for 2 answers"):
        rouge_l_recall(["a"], ["a", "b"])
