"""Paired comparison against values worked out by hand and by enumeration."""

from __future__ import annotations

import math
from itertools import product
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from question_optimizer.statistics import PairedComparison, compare_paired, smallest_detectable

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
        n=5, difference=0.0, low=0.0, high=0.0, p=1.0, wins=0, ties=5, losses=0
    )


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([], [], PairedComparison(0, 0.0, None, None, None, wins=0, ties=0, losses=0)),
        ([0.5], [0.75], PairedComparison(1, 0.25, None, None, None, wins=1, ties=0, losses=0)),
        ([0.5], [0.5], PairedComparison(1, 0.0, None, None, None, wins=0, ties=1, losses=0)),
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
    assert found.difference == pytest.approx(difference.mean(), abs=1e-6)
    assert found.low == pytest.approx(difference.mean() - half, abs=0.1 * half)
    assert found.high == pytest.approx(difference.mean() + half, abs=0.1 * half)


def test_the_interval_covers_the_truth_about_nineteen_times_in_twenty() -> None:
    rng = np.random.default_rng(11)
    covered = 0
    for repeat in range(100):
        drawn = rng.normal(0.05, 0.25, size=40).tolist()
        found = compare_paired([0.0] * 40, drawn, seed=repeat)
        covered += found.low <= 0.05 <= found.high
    assert 88 <= covered <= 100


@settings(max_examples=25, deadline=None)
@given(st.lists(quarters, min_size=2, max_size=30), st.integers(0, 2**32))
def test_the_interval_lies_within_the_differences_and_around_their_mean(
    differences: list[float], seed: int
) -> None:
    found = compare_paired([0.0] * len(differences), differences, seed=seed)
    low, high = min(differences), max(differences)
    assert low <= found.low <= found.high <= high
    assert low - 1e-6 <= found.difference <= high + 1e-6


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
