"""Metrics of forgetting against hand-made cases and open-unlearning's definitions, derived here anew."""

import itertools
import math
import zlib

import numpy as np
import pytest
from scipy import stats

from trustchain_ray.errors import TrustChainError
from trustchain_ray.forgetting.metrics import agreement, canaries, likelihood, membership, tofu
from trustchain_ray.forgetting.metrics.memorisation import exact_memorisation, extraction_strength
from trustchain_ray.forgetting.metrics.scoring import TokenScores, losses

VOCABULARY, END = 11, 0


def answers(
    count: int, seed: int = 0, sharp: float = 2.0
) -> tuple[list[TokenScores], list[np.ndarray], list[list[int]]]:
    """Scores of random answers that end with the end of text, with the log-probabilities of the whole vocabulary
    ``(tokens, vocabulary)`` and the tokens that they stand for."""
    draws = np.random.default_rng(seed)
    scores, tables, targets = [], [], []
    for _ in range(count):
        size = int(draws.integers(2, 9))
        logits = draws.normal(0, sharp, (size, VOCABULARY))
        table = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        likely = draws.random(size) < 0.6
        tokens = np.where(likely, table.argmax(1), draws.integers(1, VOCABULARY, size))
        tokens[-1] = END
        mean = (np.exp(table) * table).sum(1)
        deviation = np.sqrt((np.exp(table) * (table - mean[:, None]) ** 2).sum(1))
        of_tokens = table[np.arange(size), tokens]
        scores.append(TokenScores(of_tokens, table.argmax(1) == tokens, mean, deviation, True))
        tables.append(table)
        targets.append([int(token) for token in tokens])
    return scores, tables, targets


def of(right: list[int], ends: bool = False) -> TokenScores:
    """Scores of which only `right` matters."""
    zeros = np.zeros(len(right))
    return TokenScores(zeros, np.asarray(right, bool), zeros, zeros, ends)


def test_probability_is_the_geometric_mean_of_token_probabilities() -> None:
    scores, tables, targets = answers(20)
    shown = likelihood.probability(losses(scores))
    for value, table, tokens in zip(shown, tables, targets, strict=True):
        product = math.prod(float(np.exp(table[i, token])) for i, token in enumerate(tokens))
        assert value == pytest.approx(product ** (1 / len(tokens)))


def test_truth_ratio_and_probability_among_answers_are_those_of_open_unlearning() -> None:
    draws = np.random.default_rng(1)
    right, wrong = draws.uniform(0.1, 4, 30), draws.uniform(0.1, 6, (30, 5))
    theirs = np.exp(-wrong.mean(1)) / (np.exp(-right) + 1e-10)
    ratios = likelihood.truth_ratio(right, wrong)
    np.testing.assert_allclose(ratios, theirs, rtol=1e-7)
    assert likelihood.forgotten_truth(ratios) == pytest.approx(np.minimum(theirs, 1 / (theirs + 1e-10)).mean())
    assert likelihood.retained_truth(ratios) == pytest.approx(np.maximum(0, 1 - theirs).mean())
    share = np.exp(-right) / (np.exp(-right) + np.exp(-wrong).sum(1) + 1e-10)
    np.testing.assert_allclose(likelihood.probability_among(right, wrong), share, rtol=1e-7)


def test_a_truth_ratio_by_hand() -> None:
    # Wrong answers of probability 1/2 and 1/8 have the geometric mean 1/4; the right one has 1/2.
    (ratio,) = likelihood.truth_ratio([math.log(2)], [[math.log(2), math.log(8)]])
    assert ratio == pytest.approx(0.5)
    assert likelihood.forgotten_truth([0.5, 4.0]) == pytest.approx((0.5 + 0.25) / 2)
    assert likelihood.retained_truth([0.5, 4.0]) == pytest.approx(0.25)


def test_truth_ratios_of_vanishing_probabilities_keep_their_order() -> None:
    ratios = likelihood.truth_ratio([100.0, 101.0, 5000.0], [[1.0], [1.0], [1.0]])
    assert np.isfinite(ratios).all()
    assert ratios[0] < ratios[1] < ratios[2]


def test_forget_quality_is_the_exact_kolmogorov_smirnov_p_value() -> None:
    own, other = [0.1, 0.4, 0.5, 0.9], [0.3, 0.7, 0.8, 1.2, 1.5]

    def distance(x: tuple[float, ...], y: tuple[float, ...]) -> float:
        return max(abs(np.mean(np.asarray(x) <= v) - np.mean(np.asarray(y) <= v)) for v in (*x, *y))

    found = tofu.forget_quality(own, other)
    assert found.statistic == pytest.approx(distance(tuple(own), tuple(other)))
    pooled = (*own, *other)
    splits = list(itertools.combinations(range(len(pooled)), len(own)))
    as_far = 0
    for split in splits:
        x = tuple(pooled[i] for i in split)
        y = tuple(v for i, v in enumerate(pooled) if i not in split)
        as_far += distance(x, y) >= found.statistic - 1e-12
    assert found.p_value == pytest.approx(as_far / len(splits))
    assert tofu.forget_quality(own, own).p_value == 1.0
    assert tofu.forget_quality(own, other).records == 4
    assert tofu.forget_quality(own, other).retrained_records == 5


def test_forget_quality_does_not_change_under_a_monotone_map() -> None:
    draws = np.random.default_rng(2)
    own, other = draws.lognormal(0, 1, 40), draws.lognormal(0.5, 1, 40)
    ours = tofu.forget_quality(own, other)
    assert tofu.forget_quality(1 / (own + 1e-10), 1 / (other + 1e-10)).p_value == pytest.approx(ours.p_value)
    assert tofu.forget_quality(np.append(own, np.inf), other).statistic > 0


def test_model_utility_is_the_harmonic_mean() -> None:
    names = [f"{s} {m}" for s in tofu.UTILITY_SETS for m in tofu.UTILITY_METRICS]
    parts = dict(zip(names, np.linspace(0.2, 1.0, 9), strict=True))
    assert tofu.model_utility(parts) == pytest.approx(stats.hmean(list(parts.values())))
    assert tofu.model_utility({"a": 1.0, "b": 0.5}) == pytest.approx(2 / 3)
    assert tofu.model_utility({**parts, "another": 0.0}) == 0.0
    with pytest.raises(TrustChainError, match=r"another is 1\.5, outside"):
        tofu.model_utility({**parts, "another": 1.5})


def test_memorisation_by_hand() -> None:
    scores = [of([1, 1, 1, 1]), of([1, 0, 1, 1]), of([1, 1, 1, 0]), of([0, 0, 0, 0]), of([0, 1, 0], ends=True)]
    np.testing.assert_allclose(extraction_strength(scores), [1.0, 0.5, 0.0, 0.0, 0.5])
    np.testing.assert_allclose(exact_memorisation(scores), [1.0, 0.75, 0.75, 0.0, 0.5])


def test_memorisation_is_open_unlearning_s_but_for_a_wrong_last_token() -> None:
    scores, tables, targets = answers(60, seed=3)
    ours = extraction_strength(scores), exact_memorisation(scores)
    wrong_ends = 0
    for i, (table, tokens) in enumerate(zip(tables, targets, strict=True)):
        said, meant = table.argmax(1)[:-1], np.asarray(tokens)[:-1]  # without the end of text
        for k in range(len(meant)):
            if np.array_equal(said[k:], meant[k:]):
                break
        if said[-1] == meant[-1]:
            assert ours[0][i] == pytest.approx(1 - k / len(meant))
        else:
            wrong_ends += 1
            assert ours[0][i] == 0
        assert ours[1][i] == pytest.approx((said == meant).mean())
    assert 0 < wrong_ends < 60


def test_membership_signals_are_open_unlearning_s_with_the_sign_turned() -> None:
    scores, tables, targets = answers(40, seed=4)
    reference = answers(40, seed=4, sharp=1.0)[0]
    texts = ["word " * (i + 1) for i in range(40)]
    share = 0.4
    for i, (table, tokens) in enumerate(zip(tables, targets, strict=True)):
        loss = -np.mean([table[j, token] for j, token in enumerate(tokens)])
        assert membership.loss_signal(scores)[i] == pytest.approx(-loss)
        assert membership.zlib_signal(scores, texts)[i] == pytest.approx(-loss / len(zlib.compress(texts[i].encode())))
        text, own = table[:-1], np.asarray([table[j, token] for j, token in enumerate(tokens)])[:-1]
        count = max(1, int(len(own) * share))
        assert membership.min_k_signal(scores, share)[i] == pytest.approx(np.sort(own)[:count].mean())
        mu = (np.exp(text) * text).sum(-1)
        variance = (np.exp(text) * text**2).sum(-1) - mu**2
        standard = (own - mu) / np.sqrt(np.maximum(variance, 1e-6))
        assert membership.min_k_plus_plus_signal(scores, share)[i] == pytest.approx(np.sort(standard)[:count].mean())
        assert membership.reference_signal(scores, reference)[i] == pytest.approx(losses(reference)[i] - loss)


def test_min_k_takes_at_least_one_token_and_refuses_a_share_of_none() -> None:
    scores = [TokenScores(np.asarray([-3.0, -1.0]), np.ones(2, bool), np.zeros(2), np.ones(2))]
    assert membership.min_k_signal(scores, 0.1) == pytest.approx([-3.0])
    assert membership.min_k_signal(scores, 1.0) == pytest.approx([-2.0])
    with pytest.raises(TrustChainError, match="share=0 must be"):
        membership.min_k_signal(scores, 0.0)


@pytest.mark.parametrize(("gamma", "offline"), [(1.0, 1.0), (2.0, 1.0), (1.0, 0.3)])
def test_rmia_counts_the_population_that_a_record_beats(gamma: float, offline: float) -> None:
    draws = np.random.default_rng(5)
    own, references = draws.uniform(0.1, 3, 12), draws.uniform(0.1, 3, (3, 12))
    population, of_population = draws.uniform(0.1, 3, 25), draws.uniform(0.1, 3, (3, 25))

    def ratio(losses_of: np.ndarray, others: np.ndarray) -> np.ndarray:
        known = 0.5 * ((1 + offline) * np.exp(-others).mean(0) + (1 - offline))
        return np.exp(-losses_of) / known

    beaten = ratio(own, references)[:, None] / ratio(population, of_population)[None, :] >= gamma
    found = membership.rmia_signal(own, list(references), population, list(of_population), gamma, offline)
    np.testing.assert_allclose(found, beaten.mean(1))


def test_rmia_needs_a_reference() -> None:
    with pytest.raises(TrustChainError, match="a reference model is needed"):
        membership.rmia_signal([1.0], [], [1.0], [])


def test_exposure_by_hand() -> None:
    twins = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
    np.testing.assert_allclose(canaries.exposure([0.5, 3.5, 9.0], twins), [3.0, 3.0 - 2.0, 0.0])
    np.testing.assert_allclose(canaries.exposure([2.0], twins), [3.0 - math.log2(2.5)])  # rank 2 or 3


@pytest.mark.slow
def test_canaries_that_were_never_seen_pass_and_known_ones_do_not() -> None:
    draws = np.random.default_rng(6)
    clean = [canaries.canary_test(draws.normal(5, 1, 64), draws.normal(5, 1, 64)) for _ in range(200)]
    assert 0.01 < np.mean([found.p_value < 0.05 for found in clean]) < 0.1  # as often as the test says
    assert np.mean([found.mean_exposure for found in clean]) == pytest.approx(1 / math.log(2), abs=0.1)
    leaking = canaries.canary_test(draws.normal(2, 1, 64), draws.normal(5, 1, 64))
    assert leaking.p_value < 1e-6
    assert leaking.auc.low > 0.9


def test_tug_of_war_by_hand() -> None:
    assert agreement.tug_of_war({"F": 0.5, "R": 0.9}, {"F": 0.5, "R": 0.9}) == 1.0
    assert agreement.tug_of_war({"F": 0.75, "R": 0.9}, {"F": 0.25, "R": 1.0}) == pytest.approx(0.5 * 0.9)
    with pytest.raises(TrustChainError, match="same sets"):
        agreement.tug_of_war({"F": 0.75}, {"R": 0.25})


def test_equivalence_is_two_one_sided_t_tests() -> None:
    draws = np.random.default_rng(7)
    own = draws.normal(2.0, 0.5, 40)
    other = own + draws.normal(0.02, 0.1, 40)
    for margin in (0.01, 0.05, 0.2):
        paired = agreement.paired_equivalence(own, other, margin)
        above = stats.ttest_rel(own + margin, other, alternative="greater").pvalue
        below = stats.ttest_rel(own - margin, other, alternative="less").pvalue
        assert paired.p_value == pytest.approx(max(above, below), rel=1e-6)
        assert paired.equivalent == (-margin < paired.low and paired.high < margin)
        welch = agreement.equivalence(own, other[:30], margin)
        above = stats.ttest_ind(own + margin, other[:30], equal_var=False, alternative="greater").pvalue
        below = stats.ttest_ind(own - margin, other[:30], equal_var=False, alternative="less").pvalue
        assert welch.p_value == pytest.approx(max(above, below), rel=1e-6)
    assert agreement.paired_equivalence(own, other, 0.2).equivalent
    assert not agreement.paired_equivalence(own, other, 0.01).equivalent


def test_equal_models_are_equivalent_and_a_constant_difference_is_not() -> None:
    same = agreement.paired_equivalence([1.0, 2.0], [1.0, 2.0], 0.1)
    assert (same.p_value, same.equivalent, same.low, same.high) == (0.0, True, 0.0, 0.0)
    assert not agreement.paired_equivalence([1.5, 2.5], [1.0, 2.0], 0.1).equivalent
    assert agreement.equivalence([1.0, 1.0], [1.0, 1.0], 0.1).equivalent


def test_a_margin_is_twice_the_spread_of_seeds() -> None:
    assert agreement.seed_margin([1.0, 3.0]) == pytest.approx(2 * math.sqrt(2))
    for seeds in ([1.0], [1.0, 1.0]):
        with pytest.raises(TrustChainError, match="at least two different keys"):
            agreement.seed_margin(seeds)
    with pytest.raises(TrustChainError, match="margin 0 must be above 0"):
        agreement.paired_equivalence([1.0, 2.0], [1.0, 2.0], 0.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: likelihood.probability([]), "there are no records"),
        (lambda: likelihood.probability([0.5, math.nan]), r"1 of 2 values are not finite \(the first at index 1\)"),
        (lambda: likelihood.probability([[0.5]]), r"shape \(1, 1\)"),
        (lambda: likelihood.truth_ratio([1.0, 2.0], [[1.0]]), "wrong answers of 1 records against 2"),
        (lambda: likelihood.truth_ratio([1.0], [[]]), "wrong answers of record 0: there are no records"),
        (lambda: likelihood.forgotten_truth([0.0]), "ratios are positive"),
        (lambda: tofu.forget_quality([1.0, math.nan], [1.0]), "not finite"),
        (lambda: tofu.model_utility({}), "there are no records"),
        (lambda: extraction_strength([]), "there are no records"),
        (lambda: exact_memorisation([of([])]), "record 0 has no token"),
        (lambda: membership.zlib_signal(answers(2)[0], ["one"]), "1 texts for 2 records"),
        (lambda: membership.reference_signal(answers(2)[0], answers(3)[0]), "2 values against 3"),
        (lambda: membership.rmia_signal([1.0], [[1.0]], [1.0], [[1.0]], gamma=0.5), "gamma=0.5 must be at least 1"),
        (lambda: canaries.exposure([1.0], []), "twins of canaries: there are no records"),
        (lambda: canaries.canary_test([1.0], [2.0]), "at least two"),
    ],
)
def test_bad_input_is_refused(call, message) -> None:
    with pytest.raises(TrustChainError, match=message):
        call()
