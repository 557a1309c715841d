"""Two arms on the same items: how large is the difference, and could it be chance?

    compare_paired         mean difference of paired scores, its interval, a permutation p
    sign_test, mcnemar_exact, holm
                           exact tests of wins and losses; p values of several comparisons
    needed, smallest_detectable, wins_needed
                           what n pairs can show, and how many a difference asks for
    clustered_mean, compare_means, wilson
                           a mean of dependent values, two unpaired means, a share
    agreement              how far two raters of the same items agree, beyond chance

Scores are numbers from 0 to 1. Each function that resamples takes a seed and has a generator of its
own: the same arguments give the same figures to the last digit, on any machine.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from functools import lru_cache
from itertools import product
from statistics import NormalDist
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np

ASSUMED_DEVIATION = 0.25  # of score differences, before there are any; gates scatter them more
_RESAMPLES = 10_000
_EXACT_UP_TO = 12  # 2^12 sign patterns are enumerated, more are drawn
_CELLS = 1_000_000  # of a block of resamples, so that 10,000 pairs do not take gigabytes
_NORMAL = NormalDist()


class Estimate(NamedTuple):
    """A value with its interval (95 % unless said); all three are None where it is undefined."""

    value: float | None
    low: float | None
    high: float | None


_UNKNOWN = Estimate(None, None, None)


# ---------------------------------------------------------------------- paired scores


class PairedComparison(NamedTuple):
    """Mean of b − a over `n` pairs, its interval at `level`, and a two-sided p value.

    `standard_deviation` is that of the differences, with n − 1. It, `low`, `high` and `p` are None
    below two pairs, where nothing can be said.
    """

    n: int
    difference: float
    low: float | None
    high: float | None
    p: float | None
    wins: int
    ties: int
    losses: int
    standard_deviation: float | None
    level: float


def compare_paired(
    a: Sequence[float],
    b: Sequence[float],
    *,
    seed: int,
    level: float = 0.95,
    clusters: Sequence[Hashable] | None = None,
    resamples: int = _RESAMPLES,
) -> PairedComparison:
    """Compare b with a, pair by pair; with `clusters`, cluster by cluster.

    Pairs of one cluster (an item's repeats) are averaged first: they are drawn and flipped as a
    whole, and `n`, wins and losses count clusters. Differences are taken to nine decimals.

    Interval: the wider of Hesterberg's expanded percentile bootstrap (Hesterberg 2015, "What
    teachers should know about the bootstrap", § 3.4) and Student's t. In simulated sets of 12
    pairs the plain percentile bootstrap held the truth in 88–92 %. The expanded one mends that for
    judge scores, but not for differences of −1, 0 and 1 (92 %); Student's t does, but less well for
    skewed ones. The wider of the two holds it in 93–97 % of sets of 20 to 200 pairs, and of 12
    unless they are skewed (91 %, erring towards a smaller gain): tests/test_verdict_simulations.py.
    No method mends what the sample does not show: a jump that befalls one item in thirty is
    missing from one set of 40 in four.

    p: sign-flip permutation, Fisher's randomisation test for matched pairs; exact up to 12 pairs,
    then `resamples` seeded draws with the add-one correction of Phipson & Smyth 2010.
    """
    import numpy as np

    if len(a) != len(b):
        raise ValueError(f"{len(a)} and {len(b)} scores are no pairs")
    difference = np.asarray(b, dtype=float) - np.asarray(a, dtype=float)
    if not np.isfinite(difference).all():
        raise ValueError("a score that is no finite number cannot be compared")
    if clusters is not None:
        sums, counts = _by_cluster(difference, clusters)
        difference = sums / counts
    difference = np.round(difference, 9) + 0.0  # equal scores are a tie, whatever the last bit
    n = len(difference)
    mean = float(difference.mean()) if n else 0.0
    wins, losses = int((difference > 0).sum()), int((difference < 0).sum())
    low = high = p = deviation = None
    if n >= 2:
        rng = np.random.default_rng(seed)
        deviation = float(difference.std(ddof=1))
        low, high = _mean_interval(difference, deviation, rng, level, resamples)
        p, deviation = _sign_flip_p(difference, rng, resamples), _figure(deviation)
    return PairedComparison(
        n, _figure(mean), low, high, p, wins, n - wins - losses, losses, deviation, level
    )


def _by_cluster(values: np.ndarray, clusters: Sequence[Hashable]) -> tuple[np.ndarray, np.ndarray]:
    """(sum of the values, number of values) of each cluster, in order of first occurrence."""
    import numpy as np

    if len(values) != len(clusters):
        raise ValueError(f"{len(clusters)} cluster labels for {len(values)} values")
    known = {label: k for k, label in enumerate(dict.fromkeys(clusters))}
    index = np.array([known[label] for label in clusters], dtype=np.intp)
    return np.bincount(index, weights=values, minlength=len(known)), np.bincount(index)


def _mean_interval(
    values: np.ndarray, deviation: float, rng: np.random.Generator, level: float, resamples: int
) -> tuple[float, float]:
    """The wider of the expanded percentile and Student's t, within what scores allow."""
    import numpy as np

    n, mean = len(values), float(values.mean())
    tail = _expanded_tail(level, n)
    low, high = np.quantile(_resampled_sums(values, rng, resamples) / n, [tail, 1 - tail])
    half = t_quantile(level, n - 1) * deviation / math.sqrt(n)
    widest = max(1.0, float(abs(values).max()))  # scores of 0 to 1 differ by at most 1
    low, high = min(float(low), mean - half), max(float(high), mean + half)
    return _figure(max(low, -widest)), _figure(min(high, widest))


def _resampled_sums(values: np.ndarray, rng: np.random.Generator, resamples: int) -> np.ndarray:
    """Sums of `resamples` draws of len(values) values, with replacement; rows are drawn whole."""
    import numpy as np

    n = len(values)
    rows = max(1, _CELLS // n)
    sums = []
    for start in range(0, resamples, rows):
        size = (min(rows, resamples - start), n)
        sums.append(values[rng.integers(0, n, size=size)].sum(axis=1))
    return np.concatenate(sums)


def _sign_flip_p(values: np.ndarray, rng: np.random.Generator, resamples: int) -> float:
    import numpy as np

    n, total = len(values), float(values.sum())
    least = abs(total) - 1e-9  # a pattern that ties with what was seen is as extreme as it
    if n <= _EXACT_UP_TO:
        signs = np.array(list(product((-1.0, 1.0), repeat=n)))
        return _figure((abs(signs @ values) >= least).mean())
    rows, extreme = max(1, _CELLS // n), 0
    for start in range(0, resamples, rows):
        flipped = rng.integers(0, 2, size=(min(rows, resamples - start), n), dtype=bool)
        extreme += int((abs(total - 2 * (flipped.astype(float) @ values)) >= least).sum())
    return _figure((extreme + 1) / (resamples + 1))


def _expanded_tail(level: float, n: int) -> float:
    """The share to cut off each end of a bootstrap of n values (Hesterberg 2015 § 3.4).

    A bootstrap's spread is √((n − 1) / n) times too small and has normal tails; the quantiles are
    moved out by as much: Φ(−√(n / (n − 1)) · t).
    """
    return _NORMAL.cdf(-math.sqrt(n / (n - 1)) * t_quantile(level, n - 1))


@lru_cache(maxsize=256)
def t_quantile(level: float, df: int) -> float:
    """The t between whose minus and plus `level` of Student's distribution with `df` lies.

    2.228 for .95 and 10. By bisection on the closed form for whole degrees of freedom.
    """
    if not 0 < level < 1 or df < 1:
        raise ValueError(f"Student's t has no quantile at level {level} with {df} degrees")
    low, high = 0.0, 1.0
    while _t_within(high, df) < level:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_within(middle, df) < level else (low, middle)
    return high


def _t_within(t: float, df: int) -> float:
    """P(|T| ≤ t) for whole df: Abramowitz & Stegun 1964, 26.7.3 (odd) and 26.7.4 (even)."""
    angle = math.atan(t / math.sqrt(df))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = df % 2
    term = cosine if odd else 1.0
    series = term if df > 1 else 0.0
    for k in range(2 + odd, df, 2):
        term *= cosine * cosine * (k - 1) / k
        series += term
    return 2 / math.pi * (angle + sine * series) if odd else sine * series


def _figure(value: float) -> float:
    """Six decimals. First twelve: a half in the seventh must not hang on the last bit of a sum."""
    return round(round(float(value), 12), 6) + 0.0


# ---------------------------------------------------------------------- exact tests


def mcnemar_exact(only_a: int, only_b: int) -> float:
    """Two-sided p of items that only a, and items that only b, got right; 1 where there are none.

    Exact McNemar test: binomial(only_a + only_b, ½), the smaller tail doubled (McNemar 1947;
    Conover 1999 ch. 3.5).
    """
    if min(only_a, only_b) < 0:
        raise ValueError(f"{only_a} and {only_b} are no counts")
    n = only_a + only_b
    tail = sum(math.comb(n, k) for k in range(min(only_a, only_b) + 1))
    return min(1.0, 2 * tail / 2**n)


def sign_test(wins: int, losses: int) -> float:
    """Two-sided exact sign test, ties left out (Conover 1999 ch. 3.4): McNemar's on wins."""
    return mcnemar_exact(losses, wins)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p values adjusted for there being several, in the same order (Holm 1979).

    An adjusted value below .05 keeps the chance of any false alarm among all below 5 %.
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, k in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[k]))
        adjusted[k] = largest
    return adjusted


# ---------------------------------------------------------------------- what n pairs can show


def smallest_detectable(
    n: int, *, standard_deviation: float = ASSUMED_DEVIATION, level: float = 0.95
) -> float:
    """The mean difference that n pairs show with 80 % power at a two-sided test of `level`.

    (z + .84) · sd / √n, the normal approximation for paired differences (Cohen 1988 ch. 2): 4 % low
    at 30 pairs. The default standard deviation is that of a judge's 0-to-1 score difference before
    any is known.
    """
    if n < 2:
        return float("inf")
    return _power_z(0.8, level) * standard_deviation / n**0.5


def needed(
    standard_deviation: float, difference: float, *, power: float = 0.8, level: float = 0.95
) -> int:
    """How many pairs show a mean `difference` with this `power` at a two-sided test of `level`.

    The normal approximation with Guenther's correction for Student's t, + z² / 2 (Guenther 1981):
    at most one pair off the exact number.
    """
    if not difference:
        raise ValueError("no number of pairs shows a difference of 0")
    z = _NORMAL.inv_cdf((1 + level) / 2)
    pairs = (_power_z(power, level) * standard_deviation / difference) ** 2 + z * z / 2
    return max(2, math.ceil(pairs - 1e-9))


def _power_z(power: float, level: float) -> float:
    return _NORMAL.inv_cdf((1 + level) / 2) + _NORMAL.inv_cdf(power)


def wins_needed(n: int) -> int | None:
    """The fewest wins of n untied pairs at which the exact two-sided sign test has p < .05.

    None where not even n of n would do (n < 6). The sign test is the exact McNemar test on the
    discordant pairs (Conover 1999 ch. 3.4 f.).
    """
    tail = 0.0
    for wins in range(n, n // 2, -1):
        ways = math.lgamma(n + 1) - math.lgamma(wins + 1) - math.lgamma(n - wins + 1)
        tail += math.exp(ways - n * math.log(2))
        if 2 * tail >= 0.05:
            return wins + 1 if wins < n else None
    return None


# ---------------------------------------------------------------------- means and shares


def wilson(successes: float, n: int) -> tuple[float, float]:
    """The 95 % score interval of a share of `successes` in n; (0, 1) for n = 0.

    Source: Wilson 1927; recommended for small n by Brown, Cai & DasGupta 2001.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n} are no share")
    return _wilson(successes / n, n, _NORMAL.inv_cdf(0.975)) if n else (0.0, 1.0)


def _wilson(share: float, n: float, z: float) -> tuple[float, float]:
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return min(share, max(0.0, middle - half)), max(share, min(1.0, middle + half))


def clustered_mean(
    values: Sequence[float],
    clusters: Sequence[Hashable],
    seed: int,
    *,
    level: float = 0.95,
    resamples: int = _RESAMPLES,
) -> Estimate:
    """The mean of values from 0 to 1 of which those with the same cluster label go together.

    Interval: the wider of the expanded percentile bootstrap over whole clusters and of Wilson's
    with Student's t and the effective number of values, share · (1 − share) / variance of the
    clustered mean, at most all of them (Korn & Graubard 1998; Dean & Pagano 2015). The bootstrap
    alone collapses where nearly all values agree: it held a true 99 % in one simulated set of four
    with 20 clusters. Where all clusters have one mean, each counts as a single value.
    """
    import numpy as np

    if not len(values):
        return _UNKNOWN
    sums, counts = _by_cluster(np.asarray(values, dtype=float), clusters)
    if sums.min() < 0 or (sums > counts).any():
        raise ValueError("a mean of 0-to-1 values was asked for others")
    groups, n = len(counts), int(counts.sum())
    mean = float(sums.sum()) / n
    if groups == 1:
        return _rounded(mean, *_wilson(mean, 1, _NORMAL.inv_cdf((1 + level) / 2)))
    spread = float(((sums - mean * counts) ** 2).sum()) * groups / (groups - 1) / n**2
    # Rounding leaves 1e-33 where all clusters have one mean.
    effective = min(n, mean * (1 - mean) / spread) if spread > 1e-15 else groups
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, groups, size=(resamples, groups))
    tail = _expanded_tail(level, groups)
    low, high = np.quantile(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1), [tail, 1 - tail])
    by_wilson = _wilson(mean, effective, t_quantile(level, groups - 1))
    return _rounded(mean, min(float(low), by_wilson[0]), max(float(high), by_wilson[1]))


def compare_means(
    a: Sequence[float], b: Sequence[float], *, seed: int, level: float = 0.95
) -> Estimate:
    """Mean of b − mean of a, of values that are no pairs, with a bootstrap interval at `level`.

    Each side is resampled by itself and its deviations widened by √(n / (n − 1)); the quantiles are
    those of Student's t with Welch's degrees of freedom (Hesterberg 2015 § 3.4; Welch 1947).
    Without an interval where a side has fewer than two values, unknown where it has none.
    """
    import numpy as np

    sides = [np.asarray(side, dtype=float) for side in (a, b)]
    if not all(len(side) for side in sides):
        return _UNKNOWN
    difference = float(sides[1].mean() - sides[0].mean())
    if min(map(len, sides)) < 2:
        return Estimate(_figure(difference), None, None)
    rng = np.random.default_rng(seed)
    first, second = (
        (_resampled_sums(side, rng, _RESAMPLES) / len(side) - side.mean())
        * math.sqrt(len(side) / (len(side) - 1))
        for side in sides
    )
    tail = _NORMAL.cdf(-t_quantile(level, _welch(*sides)))
    low, high = np.quantile(second - first, [tail, 1 - tail])
    return _rounded(difference, difference + float(low), difference + float(high))


def _welch(a: np.ndarray, b: np.ndarray) -> int:
    """Welch's degrees of freedom, rounded down."""
    parts = [float(side.var(ddof=1)) / len(side) for side in (a, b)]
    if not sum(parts):
        return min(len(a), len(b)) - 1
    each = sum(part**2 / (len(side) - 1) for part, side in zip(parts, (a, b), strict=True))
    return max(1, int(sum(parts) ** 2 / each))


# ---------------------------------------------------------------------- two raters


class Agreement(NamedTuple):
    """How far two raters of `n` items agree. `raw` is a fraction from 0 to 1; `kappa` and `ac1`
    correct it for chance: 1 is perfect, 0 what chance would give, less is worse than chance."""

    n: int
    raw: Estimate
    kappa: Estimate
    ac1: Estimate


def agreement(pairs: Sequence[tuple[str, str]], *, seed: int = 0) -> Agreement:
    """How far the two ratings of each item agree; swapping the raters changes nothing.

    Sources: raw agreement with Wilson's interval; Cohen's kappa (Cohen 1960), undefined where both
    raters know one category only; AC1 (Gwet 2008), over the categories that occur in `pairs`, and 1
    where that is a single one. Intervals of kappa and AC1: see `_corrected`.
    """
    n = len(pairs)
    if n == 0:
        return Agreement(0, _UNKNOWN, _UNKNOWN, _UNKNOWN)
    import numpy as np

    cells = Counter(pairs)  # in order of occurrence, which does not depend on who is who
    counts = np.array(list(cells.values()))
    known = dict.fromkeys(rating for cell in cells for rating in cell)
    categories = {category: k for k, category in enumerate(known)}
    coded = np.array([[categories[rating] for rating in cell] for cell in cells])
    rng = np.random.default_rng(seed)
    # Drawing n items with replacement is drawing the cells' counts from a multinomial.
    shares = np.vstack([counts, rng.multinomial(n, counts / n, size=_RESAMPLES)]) / n
    raw = shares[:, coded[:, 0] == coded[:, 1]].sum(axis=1)
    first, second = (_margins(shares, coded[:, rater], len(categories)) for rater in (0, 1))
    agreed = sum(count for (a, b), count in cells.items() if a == b)
    return Agreement(
        n,
        _rounded(agreed / n, *wilson(agreed, n)),
        _corrected(raw, (first * second).sum(axis=1), agreed, n),
        _corrected(raw, _ac1_chance((first + second) / 2), agreed, n),
    )


def _margins(shares: np.ndarray, ratings: np.ndarray, categories: int) -> np.ndarray:
    """(resamples × categories): how often one rater chose each category."""
    import numpy as np

    return shares @ (ratings[:, None] == np.arange(categories)).astype(float)


def _ac1_chance(share: np.ndarray) -> np.ndarray:
    """Gwet 2008: Σ π(1 − π) / (categories − 1), for each row of category shares."""
    return (share * (1 - share)).sum(axis=1) / max(1, share.shape[1] - 1)


def _corrected(raw: np.ndarray, chance: np.ndarray, agreed: int, n: int) -> Estimate:
    """(raw − chance) / (1 − chance) with its interval; row 0 is the sample, the rest resamples.

    The interval is the wider of the bootstrap's and of Wilson's bounds taken through the same
    formula: where nearly all items agree resamples hardly vary, and the bootstrap alone held the
    truth in 88 % of 1,000 simulated sets of 100 items with 95 % agreement.
    """
    import numpy as np

    room = 1 - chance
    defined = room > 1e-12
    if not defined[0]:
        return _UNKNOWN
    values = np.where(defined, (raw - chance) / np.where(defined, room, 1), np.nan)
    low, high = _interval(values[1:])
    by_wilson = [float((share - chance[0]) / room[0]) for share in wilson(agreed, n)]
    low, high = min(low, by_wilson[0]), max(high, by_wilson[1])
    return _rounded(float(values[0]), max(-1.0, low), high)  # no coefficient lies below −1


def _interval(values: np.ndarray) -> tuple[float, float]:
    """Percentile bootstrap over items (Efron & Tibshirani 1993 ch. 13).

    A resample in which the value is undefined (nan: one category only is left) might be anything:
    it counts as −1 for the lower limit and as 1 for the upper. Where more than one resample in
    forty is such, the interval therefore says that nothing is known.
    """
    import numpy as np

    low = np.percentile(np.nan_to_num(values, nan=-1.0), 2.5)
    high = np.percentile(np.nan_to_num(values, nan=1.0), 97.5)
    return float(low), float(high)


def _rounded(*estimate: float) -> Estimate:
    return Estimate(*map(_figure, estimate))
