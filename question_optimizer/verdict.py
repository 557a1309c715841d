"""GO, NO-GO or INCONCLUSIVE: what the rows of an evaluation say, by a rule fixed beforehand.

The rule's numbers stand here and nowhere else: `ALPHA`, `MIN_GAIN`, `LEAST_PAIRS`, `Guardrails`.
`rule_of` puts them in words for the report.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from question_optimizer.errors import NO_GO as NO_GO_EXIT
from question_optimizer.statistics import (
    ASSUMED_DEVIATION,
    PairedComparison,
    compare_means,
    compare_paired,
    holm,
    mcnemar_exact,
    needed,
    sign_test,
    smallest_detectable,
)

GO, NO_GO, INCONCLUSIVE = "GO", "NO-GO", "INCONCLUSIVE"
ALPHA = 0.05  # the chance, over all candidates, that one no better than the baseline gets a GO
# On the 0-to-1 score: less is not worth a new prompt, and takes about 1,200 items to see.
MIN_GAIN = 0.02
# Of items, judgements or pairs: where more are missing, the others may be the easy ones.
MAX_MISSING = 0.05
LEAST_PAIRS = 6  # with 5, even 5 wins of 5 have a sign-flip p of 2 / 32
CRITERIA = ("answerable", "self_contained", "specific", "fits_persona", "well_formed")

Row = Mapping[str, Any]
Score = Callable[[Row], float | None]


@dataclass(frozen=True)
class Guardrails:
    """How much worse than the baseline a candidate may be in what the score does not see.

    The limits are ours: what we would not accept for a better score, not published figures. A share
    that is over its limit by fewer than `least_items` items does not break it: at 40 items a
    single unreadable answer is 2.5 points, and two identical programs that fail on one item in
    fifty each would differ by that much in every third evaluation.
    """

    valid_rate_drop: float = 0.02  # points of 1 below the baseline's share of readable questions
    gate_failure_rise: float = 0.05  # points of 1 above its share of questions a gate stops
    latency_ratio: float = 2.0  # times its seconds per question, in the mean and the median
    cost_ratio: float = 3.0  # times its cost per question
    gap: float = 0.05  # gain on what the optimiser saw, minus the gain on the test items
    gap_level: float = 0.98  # of the interval that has to exclude 0; see `_gap_check`
    least_items: float = 2.0


def summarise(
    rows: Iterable[Row],
    *,
    baseline: str,
    candidates: Sequence[str],
    gold_items: int,
    test_items: int,
    seed: int,
    repeats: int = 1,
    reference_arms: Sequence[str] = ("existing",),
    seen: Mapping[str, Sequence[tuple[float | None, float | None]]] | None = None,
    guardrails: Guardrails = Guardrails(),
) -> dict[str, Any]:
    """All of summary.json that follows from the rows; their order changes nothing.

    `rows` are one per item, arm and repeat. `seen` holds, for a candidate, (baseline's score, its
    score) on the items the optimiser worked with. `gold_items` and `test_items` count the gold set
    and its test split: they turn the test items a clear answer would take into gold items.

    Scores are compared over items scored in both arms; repeats of an item count as one value. A
    reference arm that occurs is compared with the first candidate and decides nothing. Refuses, as
    ValueError, two rows of one item, arm and repeat.
    """
    if not candidates:
        raise ValueError("no candidate to decide on")
    by_arm = _by_arm(rows)
    references = [arm for arm in reference_arms if arm in by_arm]
    order = [baseline, *candidates, *references]
    arms = {arm: _arm(by_arm.get(arm, [])) for arm in order}
    level = round(1 - ALPHA / len(candidates), 6)

    def compared(arm: str, against: str, level: float) -> _Compared:
        return _Compared(arm, against, by_arm.get(arm, []), by_arm.get(against, []), level, seed)

    deciding = [compared(arm, baseline, level) for arm in candidates]
    others = [compared(candidates[0], arm, 1 - ALPHA) for arm in references]
    for family in (deciding, *([other] for other in others)):
        _correct(family)
    comparisons = []
    for pair in deciding:
        gap = _gap(pair, (seen or {}).get(pair.arm, ()), seed, guardrails.gap_level)
        checks = _guardrails(arms[baseline], arms[pair.arm], gap, guardrails)
        comparisons.append(_decided(pair, True, checks, gap, gold_items, test_items, seed))
    comparisons += [
        _decided(pair, False, [], None, gold_items, test_items, seed) for pair in others
    ]
    return {
        **_overall(comparisons[: len(candidates)]),
        "baseline": baseline,
        "candidates": list(candidates),
        "arm_order": order,
        "items": len({row["item"] for arm in order for row in by_arm.get(arm, [])}),
        "repeats": repeats,
        "rule": rule_of(len(candidates), guardrails),
        "arms": arms,
        "comparisons": comparisons,
    }


def rule_of(candidates: int, guardrails: Guardrails = Guardrails()) -> str:
    """The decision rule in words, with the corrections that this many candidates bring."""
    g, level = guardrails, f"{100 * (1 - ALPHA / candidates):g} %"
    several = (
        f" With {candidates} candidates the intervals are at {level} (Bonferroni) and the p values "
        "are Holm's."
        if candidates > 1
        else ""
    )
    return (
        f"GO when the {level} interval of the mean score difference, item by item, lies above 0, "
        f"its sign-flip p is below {ALPHA:g}, and no guardrail is broken. NO-GO when a guardrail "
        f"is broken, or the interval lies at or below 0, or rules out a gain of {MIN_GAIN:g}. "
        f"INCONCLUSIVE otherwise, with fewer than {LEAST_PAIRS} items, and where more than "
        f"{100 * MAX_MISSING:g} % of the items could not be compared.{several} Guardrails: "
        f"readable questions at most {100 * g.valid_rate_drop:g} points fewer, questions stopped "
        f"by a gate at most {100 * g.gate_failure_rise:g} points more (and {g.least_items:g} items "
        f"or more over), at most {g.latency_ratio:g} times the seconds (mean and median) and "
        f"{g.cost_ratio:g} times the cost a question, and a gain on what the optimiser saw at most "
        f"{100 * g.gap:g} points above the gain on the test items, beyond chance."
    )


# ---------------------------------------------------------------------- one arm


def _by_arm(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Rows by arm, sorted by item and repeat, so that no figure hangs on their order."""
    known: dict[str, dict[tuple[str, int], Row]] = defaultdict(dict)
    for row in rows:
        key = (str(row["item"]), int(row.get("repeat", 0)))
        if key in known[row["arm"]]:
            raise ValueError(f"two rows of item {key[0]}, arm {row['arm']}, repeat {key[1]}")
        known[row["arm"]][key] = row
    return {arm: [mine[key] for key in sorted(mine)] for arm, mine in known.items()}


def _arm(rows: list[Row]) -> dict[str, Any]:
    """An arm's own figures: qualities over what was scored, rates and costs over what was answered.

    A call that failed tells nothing of the arm: neither that its questions are unreadable nor that
    they are cheap.
    """
    scores = _by_item(rows, lambda row: row["score"])
    answered = [row for row in rows if not row.get("error")]
    items = len({row["item"] for row in rows})
    gates = Counter(gate for row in rows for gate in {g["gate"] for g in row.get("gates") or ()})
    buckets = Counter(min(9, int(score * 10 + 1e-9)) for score in scores.values())
    return {
        "items": items,
        "scored": len(scores),
        "failed": items - len(scores),
        "score": _rounded(_mean(scores.values()), 6),
        "passed": _rounded(_mean(_by_item(rows, _passed).values()), 6),
        **{
            name: _rounded(_mean(_by_item(rows, _criterion(name)).values()), 4) for name in CRITERIA
        },
        "valid_rate": _rounded(_mean(float(bool(row.get("valid"))) for row in answered), 6),
        "gate_failure_rate": _rounded(_mean(float(bool(row.get("gates"))) for row in answered), 6),
        "gates": dict(sorted(gates.items())),
        "tokens_per_question": _rounded(_mean(row.get("tokens") or 0 for row in answered), 1),
        "seconds_per_question": _rounded(
            _mean(row.get("latency_seconds") or 0 for row in answered), 4
        ),
        "median_seconds_per_question": _rounded(
            _median(row.get("latency_seconds") or 0 for row in answered), 4
        ),
        "cost_per_question": _rounded(_mean(row.get("cost") or 0 for row in answered), 8),
        "by_model": {
            model: {"n": len(mine), "score": _rounded(_mean(mine.values()), 6)}
            for model in sorted({row.get("model") or "" for row in rows} - {""})
            if (
                mine := _by_item([r for r in rows if r.get("model") == model], lambda r: r["score"])
            )
        },
        "histogram": [buckets[k] for k in range(10)],
    }


def _passed(row: Row) -> float | None:
    return None if row["score"] is None else float(bool(row.get("passed")))


def _criterion(name: str) -> Score:
    return lambda row: (row.get("criteria") or {}).get(name)


def _by_item(rows: Iterable[Row], value: Score) -> dict[str, float]:
    """Each item's mean over its repeats that have a value; an item without any is left out."""
    values: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        if (found := value(row)) is not None:
            values[str(row["item"])].append(float(found))
    return {item: sum(mine) / len(mine) for item, mine in values.items()}


def _mean(values: Iterable[float]) -> float | None:
    known = list(values)
    return math.fsum(known) / len(known) if known else None


def _median(values: Iterable[float]) -> float | None:
    known = list(values)
    return median(known) if known else None


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits) + 0.0


# ---------------------------------------------------------------------- two arms


class _Compared:
    """One arm against another over the items scored in both; `p_holm`s are set by `_correct`."""

    def __init__(
        self, arm: str, against: str, mine: list[Row], theirs: list[Row], level: float, seed: int
    ):
        self.arm, self.against = arm, against
        other = {(row["item"], row.get("repeat", 0)): row for row in theirs}
        matched = [(other.get((row["item"], row.get("repeat", 0))), row) for row in mine]
        both = [(a, b) for a, b in matched if a]
        self.pairs = [
            (a, b)
            for a, b in both
            if a["score"] is not None and b["score"] is not None and same_models(a, b)
        ]
        self.items = len({row["item"] for _, row in both})
        self.other_model = sum(not same_models(a, b) for a, b in both)
        self.scores: PairedComparison = compare_paired(
            [a["score"] for a, _ in self.pairs],
            [b["score"] for _, b in self.pairs],
            clusters=[b["item"] for _, b in self.pairs],
            seed=seed,
            level=level,
        )
        passed = [
            [share > 0.5 for share in _by_item(side, _passed).values()]
            for side in ([a for a, _ in self.pairs], [b for _, b in self.pairs])
        ]
        self.only_against = sum(a and not b for a, b in zip(*passed, strict=True))
        self.only_arm = sum(b and not a for a, b in zip(*passed, strict=True))
        self.mcnemar_p = mcnemar_exact(self.only_against, self.only_arm)
        self.pairwise = _pairwise(mine, against)
        self.p_holm: float | None = None
        self.mcnemar_p_holm: float | None = None

    @property
    def missing(self) -> int:
        """Items that both arms have a row of and that could not be compared."""
        return self.items - self.scores.n

    def over_documents(self, seed: int) -> dict[str, Any] | None:
        """The difference with whole documents as the units, each counted once; None for fewer
        than two. Items of a document resemble each other, which the items' interval ignores."""
        documents = [b.get("document") or b["item"] for _, b in self.pairs]
        if len(set(documents)) < 2:
            return None
        found = compare_paired(
            [a["score"] for a, _ in self.pairs],
            [b["score"] for _, b in self.pairs],
            clusters=documents,
            seed=seed,
            level=self.scores.level,
        )
        return {name: getattr(found, name) for name in ("n", "difference", "low", "high")}

    def differences(self, group: Callable[[Row, Row], str] | None = None) -> dict[str, list[float]]:
        """The items' mean differences, by what `group` says of (their row, my row)."""
        found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        for a, b in self.pairs:
            name = group(a, b) if group else ""
            found[name][b["item"]].append(b["score"] - a["score"])
        return {
            name: [sum(mine) / len(mine) for mine in by_item.values()]
            for name, by_item in sorted(found.items())
        }

    def grouped(self, key: str, group: Callable[[Row, Row], str]) -> list[dict[str, Any]]:
        return [
            {key: name, "n": len(mine), "difference": _rounded(_mean(mine), 6)}
            for name, mine in self.differences(group).items()
        ]


def same_models(against: Row, arm: Row) -> bool:
    """Whether one model wrote for both arms and one judged both: else they differ by more than the
    prompt. An arm that no model wrote for ("") differs from none, nor does a question that a gate
    stopped before the judge."""
    keys = ("model", "judge_model")
    return all(not (against.get(key) and arm.get(key)) or against[key] == arm[key] for key in keys)


def _model(_: Row, arm: Row) -> str:
    return arm.get("model") or ""


def _pairwise(rows: list[Row], against: str) -> dict[str, Any] | None:
    """The blind duels of an arm: each item goes to who won more of its repeats."""
    duels = [(row["item"], row["pairwise"]) for row in rows if row.get("pairwise")]
    duels = [(item, duel) for item, duel in duels if duel["against"] == against]
    if not duels:
        return None
    balance: dict[str, int] = {}
    for item, duel in duels:
        if duel.get("outcome") is not None:
            step = {"win": 1, "tie": 0, "loss": -1}[duel["outcome"]]
            balance[item] = balance.get(item, 0) + step
    wins, losses = (sum(sign * b > 0 for b in balance.values()) for sign in (1, -1))
    asked = [duel for _, duel in duels if duel.get("asked")]
    answered = [duel["consistent"] for duel in asked if duel.get("consistent") is not None]
    return {
        "n": len(balance),
        "wins": wins,
        "ties": len(balance) - wins - losses,
        "losses": losses,
        "p": sign_test(wins, losses),
        "failed": len({item for item, _ in duels} - balance.keys()),
        "asked": len(asked),
        "consistent": _rounded(_mean(map(float, answered)), 6),
    }


def _correct(family: Sequence[_Compared]) -> None:
    """Holm over the comparisons that are decided together; one without a p counts as p = 1."""
    scores = holm([1.0 if pair.scores.p is None else pair.scores.p for pair in family])
    passes = holm([pair.mcnemar_p for pair in family])
    for pair, p, mcnemar_p in zip(family, scores, passes, strict=True):
        pair.p_holm = None if pair.scores.p is None else _rounded(p, 6)
        pair.mcnemar_p_holm = mcnemar_p


# ---------------------------------------------------------------------- guardrails


def _gap(
    pair: _Compared, seen: Sequence[tuple[float | None, float | None]], seed: int, level: float
) -> dict[str, Any] | None:
    """The gain on what the optimiser saw against the gain on the test items."""
    gains = [b - a for a, b in seen if a is not None and b is not None]
    unseen = pair.differences().get("", [])
    if not gains or not unseen:
        return None
    gap = compare_means(sorted(unseen), sorted(gains), seed=seed, level=level)
    return {
        "seen": _rounded(_mean(gains), 6),
        "unseen": _rounded(_mean(unseen), 6),
        "gap": gap.value,
        "low": gap.low,
        "high": gap.high,
        "level": level,
        "n_seen": len(gains),
    }


def _guardrails(
    baseline: dict[str, Any], arm: dict[str, Any], gap: dict[str, Any] | None, limits: Guardrails
) -> list[dict[str, Any]]:
    least = limits.least_items / arm["items"] if arm["items"] else 1.0
    return [
        _share("readable questions", "valid_rate", -limits.valid_rate_drop, baseline, arm, least),
        _share(
            "gate failures", "gate_failure_rate", limits.gate_failure_rise, baseline, arm, least
        ),
        _latency(limits.latency_ratio, baseline, arm),
        _ratio("cost per question", "cost_per_question", limits.cost_ratio, baseline, arm),
        _gap_check(gap, limits.gap),
    ]


def _share(
    name: str, key: str, allowed: float, baseline: dict[str, Any], arm: dict[str, Any], least: float
) -> dict[str, Any]:
    """A share may move by `allowed` in its bad direction, whose sign it has."""
    before, now = baseline[key], arm[key]
    limit = f"at most {100 * abs(allowed):g} points {'below' if allowed < 0 else 'above'}"
    if before is None or now is None:
        return _check(name, before, now, limit, False, f"{name}: there is nothing to compare")
    worse = (now - before) * math.copysign(1, allowed)
    over = worse > abs(allowed) + 1e-9
    broken = over and worse > least - 1e-5  # the rates are rounded to six digits
    text = f"{name}: {100 * now:.1f} % against {100 * before:.1f} %, {limit} allowed"
    if over and not broken:
        text += "; more than that, but too few items to hold it against the candidate"
    return _check(name, before, now, limit, broken, text)


def _ratio(
    name: str, key: str, allowed: float, baseline: dict[str, Any], arm: dict[str, Any]
) -> dict[str, Any]:
    before, now = baseline[key], arm[key]
    limit = f"at most {allowed:g} times"
    if not before or not now:  # free, not priced, or all from a cache that kept no time
        return _check(name, None, None, limit, False, f"{name}: not known for both, not compared")
    text = f"{name}: {now:.4g} against {before:.4g}, {now / before:.1f} times, {limit} allowed"
    return _check(name, before, now, limit, now > allowed * before * (1 + 1e-9), text)


def _latency(allowed: float, baseline: dict[str, Any], arm: dict[str, Any]) -> dict[str, Any]:
    """Broken where mean and median are both over: one call that a busy provider kept for a minute
    doubles the mean of 30, and tells nothing of the arm."""
    check = _ratio("seconds per question", "seconds_per_question", allowed, baseline, arm)
    before, now = (one["median_seconds_per_question"] for one in (baseline, arm))
    if check["broken"] and before and now <= allowed * before * (1 + 1e-9):
        check["broken"] = False
        check["text"] += f"; by a few slow answers, the median is {now:.4g} against {before:.4g}"
    return check


def _gap_check(gap: dict[str, Any] | None, allowed: float) -> dict[str, Any]:
    """Fitted to what the optimiser saw? Broken only where the gap is more than chance.

    With 30 items seen and 40 unseen, two means of score differences whose deviation is .2 are .08
    apart in every tenth evaluation by chance alone, so a bare "over 5 points" would refuse good
    candidates; such a gap is a caution. And a candidate that was picked as the best of several on
    what the optimiser saw looks better there than it is: with a 90 % interval that alone broke
    this guardrail for 15–18 % of simulated bests of eight equals, with a 98 % interval 4–6 %.
    """
    name, limit = "train-test gap", f"at most {100 * allowed:g} points, beyond chance"
    if gap is None:
        text = f"{name}: the gain on what the optimiser saw is not known"
        return _check(name, None, None, limit, False, text)
    over = gap["gap"] > allowed + 1e-9
    broken = over and gap["low"] is not None and gap["low"] > 0
    text = (
        f"{name}: a gain of {gap['seen']:+.3f} on {gap['n_seen']} items the optimiser saw, "
        f"{gap['unseen']:+.3f} on the test items"
    )
    if over and not broken:
        text += "; a caution: over the limit, but no more than chance and picking the best may do"
    return _check(name, gap["unseen"], gap["seen"], limit, broken, text)


def _check(
    name: str, against: float | None, arm: float | None, limit: str, broken: bool, text: str
) -> dict[str, Any]:
    return {
        "name": name,
        "against": against,
        "arm": arm,
        "limit": limit,
        "broken": broken,
        "text": text,
    }


# ---------------------------------------------------------------------- the decision


def _decided(
    pair: _Compared,
    decides: bool,
    guardrails: list[dict[str, Any]],
    gap: dict[str, Any] | None,
    gold_items: int,
    test_items: int,
    seed: int,
) -> dict[str, Any]:
    """One entry of `comparisons`: the figures, and what the rule makes of them."""
    scores = pair.scores
    verdict, why = _verdict(pair, guardrails)
    documents = pair.over_documents(seed)
    if verdict == GO and documents and documents["low"] is not None and documents["low"] <= 0:
        why += (
            f"; a caution: over {documents['n']} whole documents the interval is "
            f"{documents['low']:+.3f} to {documents['high']:+.3f}, so it rests on few of them"
        )
    items = _items_needed(scores) if verdict == INCONCLUSIVE else None
    gold = None if items is None or not test_items else math.ceil(items * gold_items / test_items)
    if items is not None:
        gain = max(scores.difference, MIN_GAIN)
        why += f"; to see a gain of {gain:.3f} four times in five takes {items:,} test items"
        why += "" if gold is None else f", so a gold set of {gold:,} instead of {gold_items:,}"
    detectable = None
    if scores.standard_deviation:
        detectable = smallest_detectable(
            scores.n, standard_deviation=scores.standard_deviation, level=scores.level
        )
    return {
        "arm": pair.arm,
        "against": pair.against,
        "decides": decides,
        **scores._asdict(),
        "p_holm": pair.p_holm,
        "mcnemar": {
            "only_against": pair.only_against,
            "only_arm": pair.only_arm,
            "p": pair.mcnemar_p,
            "p_holm": pair.mcnemar_p_holm,
        },
        "pairwise": pair.pairwise,
        "guardrails": guardrails,
        "gap": gap,
        "missing": pair.missing,
        "other_model": pair.other_model,
        "over_documents": documents,
        "by_document": pair.grouped("document", lambda _, row: row.get("document") or ""),
        "by_model": pair.grouped("model", _model),
        "smallest_detectable": _rounded(detectable, 4),
        "verdict": verdict,
        "why": why + ".",
        "items_needed": items,
        "gold_items_needed": gold,
    }


def _verdict(pair: _Compared, guardrails: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """The verdict on one candidate, and why, without the full stop."""
    scores, arm, against = pair.scores, pair.arm, pair.against
    if broken := [check["text"] for check in guardrails if check["broken"]]:
        seen = f" ({_figures(pair)})" if scores.low is not None else ""
        return NO_GO, f"{arm} breaks a guardrail: {'; '.join(broken)}{seen}"
    if not scores.n:
        return INCONCLUSIVE, f"no item was scored in both {arm} and {against}"
    if scores.n < LEAST_PAIRS or scores.low is None or scores.high is None or pair.p_holm is None:
        only = f"only {scores.n} item{'s were' if scores.n > 1 else ' was'} scored"
        return (
            INCONCLUSIVE,
            f"{only} in both {arm} and {against}, at least {LEAST_PAIRS} are needed",
        )
    figures = _figures(pair)
    missing = pair.missing > max(1.0, MAX_MISSING * pair.items)
    if missing and scores.high > 0:
        cure = "run again, which asks for these only"
        if pair.other_model:
            cure = "two models had a hand in them: take the account that died out, and run again"
        return (
            INCONCLUSIVE,
            f"{pair.missing} of {pair.items} items could not be compared in {arm} and {against} "
            f"({cure}); of the others: {figures}",
        )
    if scores.low > 0 and pair.p_holm < ALPHA:
        return GO, f"{arm} is better than {against}: {figures}"
    if not scores.standard_deviation and not scores.difference:
        return NO_GO, f"{arm} gains nothing on {against}: all {scores.n} items score the same"
    if scores.high <= 0:
        return NO_GO, f"{arm} is worse than {against}: {figures}"
    if scores.high < MIN_GAIN:
        return NO_GO, f"a gain of {MIN_GAIN:g} by {arm} on {against} is ruled out: {figures}"
    if scores.low > 0:
        return (
            INCONCLUSIVE,
            f"{arm} is probably better than {against}, but p is too high: {figures}",
        )
    return INCONCLUSIVE, f"{arm} may be better or worse than {against}: {figures}"


def _figures(pair: _Compared) -> str:
    c = pair.scores
    p = "" if pair.p_holm is None else f", p = {pair.p_holm:.4f}"
    return (
        f"{c.difference:+.3f} on {c.n} items, "
        f"{100 * c.level:g} % interval {c.low:+.3f} to {c.high:+.3f}{p}"
    )


def _items_needed(scores: PairedComparison) -> int:
    """Test items for 80 % power at the difference seen, or at `MIN_GAIN` where that is larger."""
    seen = scores.standard_deviation if scores.n >= LEAST_PAIRS else None
    difference = max(scores.difference, MIN_GAIN)
    pairs = needed(seen or ASSUMED_DEVIATION, difference, power=0.8, level=scores.level)
    return max(pairs, scores.n + 1, LEAST_PAIRS)


def _overall(deciding: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """GO with any candidate's GO, the largest gain recommended; NO-GO where all are NO-GO."""
    verdicts = [comparison["verdict"] for comparison in deciding]
    undecided = INCONCLUSIVE if INCONCLUSIVE in verdicts else NO_GO
    verdict = GO if GO in verdicts else undecided
    decisive = max(
        (comparison for comparison in deciding if comparison["verdict"] == verdict),
        key=lambda comparison: comparison["difference"],
    )
    return {
        "verdict": verdict,
        "sentence": f"{verdict}: {decisive['why']}",
        "recommended": decisive["arm"] if verdict == GO else None,
        "exit_code": 0 if verdict == GO else NO_GO_EXIT,
    }
