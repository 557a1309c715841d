"""The statistics against values worked out by hand, by enumeration, by scipy and by statsmodels."""

from __future__ import annotations

import math
from itertools import product
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.inter_rater import cohens_kappa, to_table
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower
from statsmodels.stats.proportion import proportion_confint

from question_optimizer.statistics import (
    Agreement,
    Estimate,
    PairedComparison,
    agreement,
    clustered_mean,
    compare_means,
    compare_paired,
    holm,
    mcnemar_exact,
    needed,
    sign_test,
    smallest_detectable,
    t_quantile,
    wilson,
    wins_needed,
)

quarters = st.integers(-4, 4).map(lambda n: n / 4)  # binary fractions: sums are exact


def sign_flip_p(differences: list[float]) -> float:
    """The exact two-sided p: the share of sign patterns at least as far from zero as observed."""
    observed = abs(math.fsum(differences))
    patterns = list(product((-1, 1), repeat=len(differences)))
    extreme = sum(
        abs(math.fsum(s * d for s, d in zip(signs, differences, strict=True))) >= observed
        for signs in patterns
    )
    return extreme / len(patterns)


@pytest.mark.parametrize(
    ("differences", "p"),
    [
        ([1.0, 1.0], 2 / 4),
        ([1.0, 1.0, 1.0], 2 / 8),
        ([0.5, 0.25, 0.125, 0.0625], 2 / 16),
        ([1.0, -1.0], 1.0),
        ([0.0, 0.0, 0.0], 1.0),
        ([1.0, 0.0], 1.0),
        ([0.25] * 10, 2 / 1024),
        ([0.25] * 12, 2 / 4096),
        ([1.0, 1.0, 1.0, 1.0, -1.0], 12 / 32),
    ],
)
def test_p_is_exact_for_few_pairs(differences: list[float], p: float) -> None:
    found = compare_paired([0.0] * len(differences), differences, seed=0)
    assert found.p == pytest.approx(p, abs=1e-6)
    assert sign_flip_p(differences) == pytest.approx(p)


@settings(max_examples=40, deadline=None)
@given(st.lists(quarters, min_size=2, max_size=9), st.integers(0, 2**32))
def test_p_is_that_of_full_enumeration_whatever_the_seed(
    differences: list[float], seed: int
) -> None:
    found = compare_paired([0.0] * len(differences), differences, seed=seed)
    assert found.p == pytest.approx(sign_flip_p(differences), abs=1e-6)


def test_p_of_many_pairs_comes_near_the_exact_one() -> None:
    differences = [0.25, 0.5, -0.25, 0.0, 0.75, 0.25, -0.5, 0.5, 0.25, 0.0, 0.25, 0.5, -0.25, 0.25]
    found = compare_paired([0.0] * 14, differences, seed=1)
    assert found.p == pytest.approx(sign_flip_p(differences), abs=0.01)


def test_p_of_many_pairs_is_never_zero() -> None:
    found = compare_paired([0.0] * 100, [1.0] * 100, seed=0)
    assert found.p == pytest.approx(1 / 10_001, abs=1e-6)


def test_ties_wins_and_losses_are_counted() -> None:
    found = compare_paired([0.5, 0.5, 0.5, 0.5], [0.75, 0.5, 0.25, 1.0], seed=0)
    assert (found.n, found.wins, found.ties, found.losses) == (4, 2, 1, 1)
    assert found.difference == 0.125


def test_all_ties_say_nothing() -> None:
    assert compare_paired([0.3] * 5, [0.3] * 5, seed=0) == PairedComparison(
        n=5,
        difference=0.0,
        low=0.0,
        high=0.0,
        p=1.0,
        wins=0,
        ties=5,
        losses=0,
        standard_deviation=0.0,
        level=0.95,
    )


def test_equal_sums_are_ties_whatever_the_last_bit() -> None:
    found = compare_paired([0.1 + 0.2] * 8, [0.3] * 8, seed=0)
    assert (found.ties, found.p, found.low, found.high) == (8, 1.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([], [], PairedComparison(0, 0.0, None, None, None, 0, 0, 0, None, 0.95)),
        ([0.5], [0.75], PairedComparison(1, 0.25, None, None, None, 1, 0, 0, None, 0.95)),
        ([0.5], [0.5], PairedComparison(1, 0.0, None, None, None, 0, 1, 0, None, 0.95)),
    ],
)
def test_below_two_pairs_there_is_neither_interval_nor_p(
    a: list[float], b: list[float], expected: PairedComparison
) -> None:
    assert compare_paired(a, b, seed=0) == expected


def test_the_interval_is_about_that_of_the_normal_approximation() -> None:
    rng = np.random.default_rng(7)
    difference = rng.normal(0.1, 0.2, size=200)
    found = compare_paired(np.zeros(200).tolist(), difference.tolist(), seed=0)
    half = 1.96 * difference.std() / math.sqrt(200)
    assert found.level == 0.95
    assert found.difference == pytest.approx(difference.mean(), abs=1e-6)
    assert found.low == pytest.approx(difference.mean() - half, abs=0.1 * half)
    assert found.high == pytest.approx(difference.mean() + half, abs=0.1 * half)


@settings(max_examples=25, deadline=None)
@given(st.lists(quarters, min_size=2, max_size=30), st.integers(0, 2**32))
def test_the_interval_is_never_narrower_than_students_nor_beyond_what_scores_allow(
    differences: list[float], seed: int
) -> None:
    found = compare_paired([0.0] * len(differences), differences, seed=seed)
    mean = float(np.mean(differences))
    error = float(np.std(differences, ddof=1)) / math.sqrt(len(differences))
    half = float(stats.t.ppf(0.975, len(differences) - 1)) * error
    assert -1 <= found.low <= max(-1.0, mean - half) + 1e-6
    assert min(1.0, mean + half) - 1e-6 <= found.high <= 1
    assert found.low <= found.difference <= found.high
    assert found.standard_deviation == pytest.approx(np.std(differences, ddof=1), abs=1e-6)


def test_the_same_seed_gives_the_same_figures_and_swapping_arms_turns_the_sign() -> None:
    a = [0.1, 0.4, 0.35, 0.8, 0.6, 0.2, 0.9, 0.55, 0.5, 0.45, 0.3, 0.7, 0.65, 0.15]
    b = [0.3, 0.5, 0.30, 0.9, 0.7, 0.6, 0.8, 0.65, 0.5, 0.75, 0.4, 0.8, 0.95, 0.25]
    assert compare_paired(a, b, seed=5) == compare_paired(a, b, seed=5)
    assert compare_paired(a, b, seed=5) != compare_paired(a, b, seed=6)
    there, back = compare_paired(a, b, seed=5), compare_paired(b, a, seed=5)
    assert there.difference == -back.difference
    assert (there.wins, there.losses) == (back.losses, back.wins)
    assert (there.low, there.high) == (-back.high, -back.low)
    assert there.p == back.p


def test_the_global_generator_is_neither_used_nor_disturbed() -> None:
    np.random.seed(1)
    before = np.random.get_state()[1].tolist()
    first = compare_paired([0.0] * 20, [0.25] * 10 + [-0.25] * 10, seed=3)
    assert np.random.get_state()[1].tolist() == before
    np.random.seed(2)
    assert compare_paired([0.0] * 20, [0.25] * 10 + [-0.25] * 10, seed=3) == first


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ([0.5], [], "1 and 0 scores are no pairs"),
        ([0.5, 0.5], [0.5, 0.5, 0.5], "2 and 3 scores are no pairs"),
        ([0.5, 0.5], [0.5, math.nan], "no finite number"),
        ([0.5, math.inf], [0.5, 0.5], "no finite number"),
    ],
)
def test_scores_of_unequal_number_are_refused(a: list[float], b: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compare_paired(a, b, seed=0)


def test_the_smallest_detectable_difference_is_that_of_the_power_formula() -> None:
    z = NormalDist().inv_cdf(0.975) + NormalDist().inv_cdf(0.8)
    assert smallest_detectable(30) == pytest.approx(z * 0.25 / math.sqrt(30), rel=1e-3)
    assert smallest_detectable(120) == pytest.approx(smallest_detectable(30) / 2)
    halved = smallest_detectable(30, standard_deviation=0.125)
    assert halved == pytest.approx(smallest_detectable(30) / 2)


@pytest.mark.parametrize("n", [0, 1])
def test_fewer_than_two_pairs_can_show_nothing(n: int) -> None:
    assert smallest_detectable(n) == math.inf


@pytest.mark.parametrize("n", range(201))
def test_the_wins_needed_are_the_fewest_of_the_exact_sign_test(n: int) -> None:
    def p(wins: int) -> float:
        return 2 * sum(math.comb(n, k) for k in range(wins, n + 1)) / 2**n

    enough = [wins for wins in range(n // 2 + 1, n + 1) if p(wins) < 0.05]
    assert wins_needed(n) == (enough[0] if enough else None)


@pytest.mark.parametrize(
    ("n", "wins"), [(5, None), (6, 6), (30, 21), (40, 27), (50, 33), (70, 44), (100, 61)]
)
def test_the_wins_needed_of_some_sizes(n: int, wins: int | None) -> None:
    assert wins_needed(n) == wins


# ---------------------------------------------------------------------- intervals, clusters


@settings(max_examples=30, deadline=None)
@given(st.lists(quarters, min_size=2, max_size=12))
def test_p_is_that_of_scipys_exact_permutation_test(differences: list[float]) -> None:
    theirs = stats.permutation_test(
        (np.array(differences),), np.sum, permutation_type="samples", n_resamples=np.inf
    )
    found = compare_paired([0.0] * len(differences), differences, seed=0)
    assert found.p == pytest.approx(float(theirs.pvalue), abs=1e-6)


def test_the_bootstrap_part_is_scipys_percentile_at_the_expanded_level() -> None:
    # Skewed to the right, so that the bootstrap's upper end lies beyond Student's t.
    differences = np.array([0.0] * 8 + [0.05] * 6 + [0.4, 0.9])
    n = len(differences)
    tail = stats.norm.cdf(-math.sqrt(n / (n - 1)) * stats.t.ppf(0.975, n - 1))
    theirs = stats.bootstrap(
        (differences,),
        np.mean,
        n_resamples=100_000,
        confidence_level=1 - 2 * tail,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    half = stats.t.ppf(0.975, n - 1) * differences.std(ddof=1) / math.sqrt(n)
    found = compare_paired([0.0] * n, differences.tolist(), seed=0)
    assert found.high == pytest.approx(theirs.high, abs=0.01)
    assert found.high > differences.mean() + half + 0.01
    assert found.low == pytest.approx(differences.mean() - half, abs=1e-6)


def test_a_higher_level_gives_a_wider_interval_and_the_same_p() -> None:
    differences = [0.25, 0.5, -0.25, 0.0, 0.75, 0.25, -0.5, 0.5, 0.25, 0.0, 0.25, 0.5, -0.25, 0.25]
    usual = compare_paired([0.0] * 14, differences, seed=1)
    wider = compare_paired([0.0] * 14, differences, seed=1, level=0.975)
    assert wider.low < usual.low < usual.high < wider.high
    assert (wider.p, wider.level) == (usual.p, 0.975)


@pytest.mark.parametrize("level", [0.5, 0.9, 0.95, 0.975, 0.98, 0.9875, 0.999])
def test_students_quantile_is_scipys(level: float) -> None:
    for df in (*range(1, 40), 99, 199, 1000, 2999):
        assert t_quantile(level, df) == pytest.approx(stats.t.ppf((1 + level) / 2, df), rel=1e-9)


@pytest.mark.parametrize(("level", "df"), [(0.95, 0), (1.0, 5), (0.0, 5)])
def test_a_quantile_that_does_not_exist_is_refused(level: float, df: int) -> None:
    with pytest.raises(ValueError, match="has no quantile"):
        t_quantile(level, df)


def test_repeats_of_an_item_are_one_value() -> None:
    a = [0.5, 0.25, 0.5, 0.75, 0.5, 1.0, 0.25, 0.5]
    b = [0.75, 0.75, 0.25, 0.5, 0.5, 1.0, 0.75, 0.5]
    found = compare_paired(a, b, seed=3, clusters=["p", "p", "q", "q", "r", "r", "s", "s"])
    means = [0.375, -0.25, 0.0, 0.25]
    assert found == compare_paired([0.0] * 4, means, seed=3)
    assert (found.n, found.wins, found.ties, found.losses) == (4, 2, 1, 1)


def test_each_pair_a_cluster_of_its_own_changes_nothing() -> None:
    a, b = [0.1, 0.4, 0.3, 0.8, 0.6, 0.2, 0.9], [0.3, 0.5, 0.3, 0.9, 0.7, 0.6, 0.8]
    assert compare_paired(a, b, seed=5, clusters=range(7)) == compare_paired(a, b, seed=5)


def test_labels_of_another_number_are_refused() -> None:
    with pytest.raises(ValueError, match="1 cluster labels for 2 values"):
        compare_paired([0.5, 0.5], [0.5, 0.5], seed=0, clusters=["p"])
    with pytest.raises(ValueError, match="3 cluster labels for 2 values"):
        clustered_mean([0.5, 0.5], ["p", "p", "q"], 0)


def test_ten_thousand_pairs_are_compared_in_blocks() -> None:
    rng = np.random.default_rng(0)
    found = compare_paired([0.0] * 10_000, rng.normal(0.01, 0.2, 10_000), seed=0, resamples=500)
    assert found.low < 0.01 < found.high
    assert found.high - found.low == pytest.approx(2 * 1.96 * 0.2 / 100, rel=0.15)


# ---------------------------------------------------------------------- exact tests


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 80), st.integers(0, 80))
def test_mcnemar_is_that_of_statsmodels_and_the_sign_test_that_of_scipy(b: int, c: int) -> None:
    theirs = mcnemar([[7, b], [c, 9]], exact=True).pvalue if b + c else 1.0
    assert mcnemar_exact(b, c) == pytest.approx(theirs, rel=1e-9)
    assert mcnemar_exact(b, c) == mcnemar_exact(c, b) == sign_test(b, c)
    if b + c:
        assert sign_test(b, c) == pytest.approx(stats.binomtest(b, b + c).pvalue, rel=1e-9)


@pytest.mark.parametrize(
    ("only_a", "only_b", "p"),
    [
        (0, 0, 1.0),
        (0, 5, 2 / 32),
        (0, 6, 2 / 64),
        (1, 8, 2 * (1 + 9) / 512),
        (3, 3, 1.0),  # twice the tail is 1.3
        (13, 27, 0.0385),
        (0, 2_000, 0.0),  # 2 / 2^2000 is less than a float holds
    ],
)
def test_mcnemar_worked_out_by_hand(only_a: int, only_b: int, p: float) -> None:
    assert mcnemar_exact(only_a, only_b) == pytest.approx(p, abs=1e-4)


def test_negative_counts_are_refused() -> None:
    with pytest.raises(ValueError, match="-1 and 3 are no counts"):
        mcnemar_exact(-1, 3)


@pytest.mark.parametrize("n", [6, 30, 40, 100])
def test_the_wins_needed_are_those_of_the_sign_test(n: int) -> None:
    wins = wins_needed(n)
    assert wins is not None
    assert sign_test(wins, n - wins) < 0.05 <= sign_test(wins - 1, n - wins + 1)


@settings(max_examples=10, deadline=None)
@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_is_that_of_statsmodels(p_values: list[float]) -> None:
    theirs = multipletests(p_values, method="holm")[1].tolist() if p_values else []
    assert holm(p_values) == pytest.approx(theirs, abs=1e-12)


def test_holm_by_hand() -> None:
    # Sorted .01, .03, .04: 3 · .01; 2 · .03; 1 · .04, which may not fall below what came before.
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0]


# ---------------------------------------------------------------------- what n pairs can show


@pytest.mark.parametrize("power", [0.5, 0.8, 0.9])
@pytest.mark.parametrize("level", [0.95, 0.975])
@pytest.mark.parametrize("effect", [0.05, 0.1, 0.2, 0.3, 0.5, 0.8])
def test_the_pairs_needed_are_statsmodels_to_within_one(
    effect: float, level: float, power: float
) -> None:
    theirs = TTestPower().solve_power(effect, alpha=1 - level, power=power)
    found = needed(0.25, 0.25 * effect, power=power, level=level)
    assert abs(found - math.ceil(theirs)) <= 1
    assert needed(0.25, -0.25 * effect, power=power, level=level) == found


def test_no_difference_is_shown_by_no_number_and_a_sure_one_by_few() -> None:
    with pytest.raises(ValueError, match="no number of pairs"):
        needed(0.25, 0.0)
    assert needed(0.0, 0.1) == 2


@pytest.mark.parametrize(("n", "within"), [(12, 0.14), (20, 0.08), (30, 0.05), (100, 0.015)])
@pytest.mark.parametrize("level", [0.95, 0.975])
def test_the_smallest_detectable_difference_is_a_little_below_statsmodels(
    n: int, level: float, within: float
) -> None:
    theirs = 0.3 * TTestPower().solve_power(nobs=n, alpha=1 - level, power=0.8)
    found = smallest_detectable(n, standard_deviation=0.3, level=level)
    assert (1 - within) * theirs <= found <= theirs


# ---------------------------------------------------------------------- means and shares


def test_a_clustered_mean_is_the_mean_of_all_values() -> None:
    values, chunks = [1.0, 1.0, 0.5, 0.0, 1.0, 1.0, 0.0], ["p", "p", "p", "q", "r", "r", "s"]
    found = clustered_mean(values, chunks, 1)
    assert found.value == pytest.approx(4.5 / 7, abs=1e-6)
    assert 0 <= found.low < found.value < found.high <= 1
    assert found == clustered_mean(values, chunks, 1)
    assert found != clustered_mean(values, chunks, 2) or found.low == 0


@pytest.mark.parametrize(
    ("values", "chunks", "successes", "n"),
    [
        ([1.0] * 12, list("aaabbbcccddd"), 4, 4),  # twelve pairs, but four chunks
        ([0.0] * 5, list("abcde"), 0, 5),
        ([0.5] * 6, list("aabbcc"), 1.5, 3),
    ],
)
def test_equal_values_are_as_many_as_their_clusters(
    values: list[float], chunks: list[str], successes: float, n: int
) -> None:
    found = clustered_mean(values, chunks, 0)
    z, share = float(stats.t.ppf(0.975, n - 1)), successes / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    assert (found.low, found.high) == pytest.approx(
        (max(0, middle - half), min(1, middle + half)), abs=1e-6
    )
    assert found.low <= wilson(successes, n)[0] <= wilson(successes, n)[1] <= found.high


def test_a_single_cluster_says_little_and_none_nothing() -> None:
    assert clustered_mean([1.0, 1.0, 0.0], ["p"] * 3, 0).low < 0.15
    assert clustered_mean([], [], 0) == Estimate(None, None, None)


def test_correlated_values_widen_the_interval() -> None:
    values = [1.0] * 60 + [0.0] * 30
    alone = clustered_mean(values, list(range(90)), 0)
    together = clustered_mean(values, [k // 6 for k in range(90)], 0)
    assert alone.value == together.value
    assert together.high - together.low > 1.8 * (alone.high - alone.low)


@pytest.mark.parametrize("values", [[-0.1, 0.5], [0.5, 1.1]])
def test_a_clustered_mean_of_other_values_is_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="0-to-1 values"):
        clustered_mean(values, ["p", "q"], 0)


@pytest.mark.parametrize("level", [0.9, 0.95, 0.98])
@pytest.mark.parametrize(("n", "m"), [(30, 40), (12, 60), (100, 100)])
def test_two_means_differ_by_about_welchs_interval(n: int, m: int, level: float) -> None:
    rng = np.random.default_rng(n)
    a, b = rng.normal(0.5, 0.2, n), rng.normal(0.6, 0.1, m)
    theirs = stats.ttest_ind(b, a, equal_var=False).confidence_interval(level)
    found = compare_means(a.tolist(), b.tolist(), seed=1, level=level)
    width = theirs.high - theirs.low
    assert found.value == pytest.approx(b.mean() - a.mean(), abs=1e-6)
    assert found.low == pytest.approx(theirs.low, abs=0.06 * width)
    assert found.high == pytest.approx(theirs.high, abs=0.06 * width)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([], [0.5], Estimate(None, None, None)),
        ([0.5], [0.75, 0.25], Estimate(0.0, None, None)),
        ([0.25, 0.25], [0.75, 0.75], Estimate(0.5, 0.5, 0.5)),
    ],
)
def test_two_means_of_few_values(a: list[float], b: list[float], expected: Estimate) -> None:
    assert compare_means(a, b, seed=0) == expected


# ---------------------------------------------------------------------- two raters


def rated(table: dict[str, int]) -> list[tuple[str, str]]:
    """{"yn": 3} is three items that the first rater calls y and the second n."""
    return [(cell[0], cell[1]) for cell, count in table.items() for _ in range(count)]


@pytest.mark.parametrize(
    ("table", "raw", "kappa", "ac1"),
    [
        # First rater: y 25, n 25 of 50; second: y 30, n 20. Raw (20 + 15) / 50 = .7.
        # kappa: chance .5 · .6 + .5 · .4 = .5; (.7 - .5) / .5 = .4.
        # AC1: π(y) = (.5 + .6) / 2 = .55; chance 2 · .55 · .45 = .495; .205 / .505.
        ({"yy": 20, "yn": 5, "ny": 10, "nn": 15}, 0.7, 0.4, 0.205 / 0.505),
        # Three categories. First rater: a .5, b .4, c .1; second: a .4, b .4, c .2. Raw .8.
        # kappa: chance .5 · .4 + .4 · .4 + .1 · .2 = .38; .42 / .62.
        # AC1: π = .45, .4, .15; Σ π(1 - π) = .2475 + .24 + .1275 = .615; chance .615 / 2 = .3075.
        ({"aa": 4, "bb": 3, "cc": 1, "ab": 1, "bc": 1}, 0.8, 0.42 / 0.62, 0.4925 / 0.6925),
        # The kappa paradox: they agree on 118 of 125, and kappa is below 0.
        # First rater: y 123/125 = .984; second: 120/125 = .96. Raw .944.
        # kappa: chance .984 · .96 + .016 · .04 = .94528; -.00128 / .05472.
        # AC1: π(y) = .972; chance 2 · .972 · .028 = .054432; .889568 / .945568.
        ({"yy": 118, "yn": 5, "ny": 2}, 0.944, -0.00128 / 0.05472, 0.889568 / 0.945568),
        ({"yy": 5, "nn": 5}, 1.0, 1.0, 1.0),
        # Always opposite: chance .5 for both; (0 - .5) / .5.
        ({"yn": 5, "ny": 5}, 0.0, -1.0, -1.0),
        # One category: nothing to correct for kappa; no chance at all for AC1.
        ({"yy": 7}, 1.0, None, 1.0),
        # Each rater knows one, but not the same: chance 0 for kappa; .5 for AC1.
        ({"yn": 4}, 0.0, 0.0, -1.0),
    ],
)
def test_agreement_is_that_worked_out_by_hand(
    table: dict[str, int], raw: float, kappa: float | None, ac1: float
) -> None:
    found = agreement(rated(table))
    assert found.n == sum(table.values())
    assert found.raw.value == pytest.approx(raw, abs=1e-6)
    assert found.kappa.value == (None if kappa is None else pytest.approx(kappa, abs=1e-6))
    assert found.ac1.value == pytest.approx(ac1, abs=1e-6)


def test_no_items_no_agreement() -> None:
    nothing = Estimate(None, None, None)
    assert agreement([]) == Agreement(0, raw=nothing, kappa=nothing, ac1=nothing)


ratings = st.sampled_from("abcd")


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(ratings, ratings), min_size=1, max_size=30), st.integers(0, 2**32))
def test_agreement_keeps_its_bounds_whoever_comes_first_and_whatever_things_are_called(
    pairs: list[tuple[str, str]], seed: int
) -> None:
    found = agreement(pairs, seed=seed)
    assert agreement([(b, a) for a, b in pairs], seed=seed) == found
    assert agreement([(f"{a}!", f"{b}!") for a, b in pairs], seed=seed) == found
    for estimate, least in ((found.raw, 0.0), (found.kappa, -1.0), (found.ac1, -1.0)):
        if estimate.value is None:
            assert estimate == Estimate(None, None, None)
        else:
            assert least <= estimate.low <= estimate.value <= estimate.high <= 1
    same = len({rating for pair in pairs for rating in pair}) == 1
    assert (found.kappa.value is None) is same
    assert (found.raw.low, found.raw.high) == pytest.approx(
        wilson(sum(a == b for a, b in pairs), len(pairs)), abs=1e-6
    )


def test_the_interval_of_kappa_is_about_that_of_the_large_sample_formula() -> None:
    # Cohen 1960: standard error √(raw (1 - raw) / n) / (1 - chance), with chance taken as known.
    found = agreement(rated({"yy": 200, "yn": 50, "ny": 100, "nn": 150}))
    half = 1.96 * math.sqrt(0.7 * 0.3 / 500) / 0.5
    assert found.kappa.low == pytest.approx(0.4 - half, abs=0.1 * half)
    assert found.kappa.high == pytest.approx(0.4 + half, abs=0.1 * half)


def test_few_items_that_all_agree_are_no_proof_of_agreement() -> None:
    found = agreement(rated({"yy": 3, "nn": 2}))
    # All resamples agree too, so Wilson's lower bound of 5 in 5, .5655, goes through the formula.
    assert found.raw.low == pytest.approx(0.565518, abs=1e-4)
    # In .6^5 + .4^5 = 9 % of the resamples one category is left, so kappa may be anything.
    assert found.kappa.low == -1.0
    # AC1: chance 2 · .6 · .4 = .48; (.5655 - .48) / .52.
    assert found.ac1.low == pytest.approx((0.565518 - 0.48) / 0.52, abs=1e-4)
    assert found.kappa.value == found.kappa.high == 1.0


def test_kappa_that_hangs_on_one_item_is_said_to_be_unknown() -> None:
    # In (29/30)^30 = 36 % of the resamples the only n is missing, and kappa is undefined.
    found = agreement(rated({"yy": 29, "nn": 1}))
    assert found.kappa == Estimate(1.0, -1.0, 1.0)
    assert found.ac1.low > 0.8


def test_agreement_is_the_same_for_the_same_seed_and_leaves_the_global_generator_alone() -> None:
    pairs = rated({"yy": 20, "yn": 5, "ny": 10, "nn": 15})
    before = np.random.get_state()[1].tolist()
    assert agreement(pairs, seed=3) == agreement(pairs, seed=3)
    assert agreement(pairs, seed=3) != agreement(pairs, seed=4)
    assert np.random.get_state()[1].tolist() == before


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        # 24 of 30, z² = 3.8415: middle (.8 + .064025) / 1.12805 = .76595;
        # half 1.96 · √(.16 / 30 + 3.8415 / 3600) / 1.12805 = .13901.
        (24, 30, 0.62694, 0.90496),
        (37, 40, 0.80138, 0.97416),
        (0, 30, 0.0, 0.11351),  # 3.8415 / (30 + 3.8415)
        (30, 30, 0.88649, 1.0),
        (0, 0, 0.0, 1.0),
    ],
)
def test_wilsons_interval(successes: int, n: int, low: float, high: float) -> None:
    assert wilson(successes, n) == pytest.approx((low, high), abs=1e-4)


@pytest.mark.parametrize(("successes", "n"), [(-1, 3), (4, 3), (0, -1)])
def test_a_share_that_is_none_is_refused(successes: int, n: int) -> None:
    with pytest.raises(ValueError, match=f"{successes} successes of {n} are no share"):
        wilson(successes, n)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilsons_interval_is_that_of_statsmodels(share: tuple[int, int]) -> None:
    theirs = proportion_confint(*share, method="wilson")
    assert wilson(*share) == pytest.approx(theirs, abs=1e-9)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(ratings, ratings), min_size=2, max_size=40))
def test_kappa_is_that_of_statsmodels(pairs: list[tuple[str, str]]) -> None:
    found = agreement(pairs)
    if found.kappa.value is not None:
        coded = np.array([["abcd".index(rating) for rating in pair] for pair in pairs])
        with np.errstate(all="ignore"):  # its standard error may be 0 / 0
            theirs = cohens_kappa(to_table(coded, bins=np.arange(5) - 0.5)[0]).kappa
        assert found.kappa.value == pytest.approx(theirs, abs=1e-6)
