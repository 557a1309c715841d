"""Two arms on the same items: how large is the difference, and could it be chance?

And two raters of the same items: how far do they agree, beyond what chance would give?
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np

_RESAMPLES = 10_000
_EXACT_UP_TO = 12  # 2^12 sign patterns are enumerated, more are drawn


class PairedComparison(NamedTuple):
    """Mean of b − a over `n` pairs, its 95 % interval, and a two-sided p value.

    `low` and `high` are the percentile bootstrap's; `p` is the sign-flip permutation test's. Both
    are None below two pairs, where nothing can be said.
    """

    n: int
    difference: float
    low: float | None
    high: float | None
    p: float | None
    wins: int
    ties: int
    losses: int


def compare_paired(a: Sequence[float], b: Sequence[float], *, seed: int) -> PairedComparison:
    """Compare b with a, item by item. The same seed gives the same figures to the last digit.

    Sources: percentile bootstrap, Efron & Tibshirani 1993 ch. 13; sign-flip test, Fisher's
    randomisation test for matched pairs (exact up to 12 pairs, then 10,000 seeded draws with the
    add-one correction of Phipson & Smyth 2010).
    """
    import numpy as np

    if len(a) != len(b):
        raise ValueError(f"{len(a)} and {len(b)} scores are no pairs")
    difference = np.asarray(b, dtype=float) - np.asarray(a, dtype=float)
    n = len(difference)
    wins, losses = int((difference > 0).sum()), int((difference < 0).sum())
    counts = {"wins": wins, "ties": n - wins - losses, "losses": losses}
    if n < 2:
        mean = float(difference.mean()) if n else 0.0
        return PairedComparison(n, round(mean, 6), None, None, None, **counts)
    rng = np.random.default_rng(seed)
    means = difference[rng.integers(0, n, size=(_RESAMPLES, n))].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    observed = abs(difference.mean()) - 1e-12
    if n <= _EXACT_UP_TO:
        signs = np.array(list(product((-1.0, 1.0), repeat=n)))
        p = float((abs((signs * difference).mean(axis=1)) >= observed).mean())
    else:
        signs = rng.choice((-1.0, 1.0), size=(_RESAMPLES, n))
        extreme = int((abs((signs * difference).mean(axis=1)) >= observed).sum())
        p = (extreme + 1) / (_RESAMPLES + 1)
    mean = round(float(difference.mean()), 6)
    return PairedComparison(
        n, mean, round(float(low), 6), round(float(high), 6), round(p, 6), **counts
    )


def smallest_detectable(n: int, *, standard_deviation: float = 0.25) -> float:
    """The mean difference that n pairs show with 80 % power at a two-sided 5 % level.

    (1.96 + 0.84) · sd / √n, the normal approximation for paired differences (Cohen 1988 ch. 2). The
    default standard deviation is that of a judge's 0-to-1 score difference before any is known.
    """
    return float("inf") if n < 2 else (1.96 + 0.8416) * standard_deviation / n**0.5


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


# ---------------------------------------------------------------------- two raters


class Estimate(NamedTuple):
    """A value with its 95 % interval; all three are None where the value is undefined."""

    value: float | None
    low: float | None
    high: float | None


class Agreement(NamedTuple):
    """How far two raters of `n` items agree. `raw` is a fraction from 0 to 1; `kappa` and `ac1`
    correct it for chance: 1 is perfect, 0 what chance would give, less is worse than chance."""

    n: int
    raw: Estimate
    kappa: Estimate
    ac1: Estimate


_UNKNOWN = Estimate(None, None, None)


def wilson(successes: int, n: int) -> tuple[float, float]:
    """The 95 % score interval of a share of `successes` in n; (0, 1) for n = 0.

    Source: Wilson 1927; recommended for small n by Brown, Cai & DasGupta 2001.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n} are no share")
    if n == 0:
        return 0.0, 1.0
    z, share = 1.959964, successes / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return min(share, max(0.0, middle - half)), max(share, min(1.0, middle + half))


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
    return Estimate(*(round(float(part), 6) + 0.0 for part in estimate))
