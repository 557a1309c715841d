"""Two arms on the same items: how large is the difference, and could it be chance?"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

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
