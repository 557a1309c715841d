"""The decision: each branch of the rule, each guardrail, and every figure worked out by hand."""

from __future__ import annotations

import json
import math
import random
from typing import Any

import pytest
from statsmodels.stats.multitest import multipletests

from question_optimizer.statistics import compare_means, compare_paired, needed
from question_optimizer.verdict import (
    CRITERIA,
    GO,
    INCONCLUSIVE,
    LEAST_PAIRS,
    MIN_GAIN,
    NO_GO,
    Guardrails,
    rule_of,
    summarise,
)

UP = [0.1, 0.05, 0.2, 0.1, 0.0, 0.15, 0.1, 0.3, 0.05, 0.1, 0.2, 0.1]  # twelve clear gains
DOWN = [-d for d in UP]
NOISE = [0.2, -0.2, 0.15, -0.1, 0.1, -0.2, 0.25, -0.15, 0.05, -0.05, 0.1, -0.1]
SAME = [0.01, -0.01] * 20  # forty items between which nothing worth having can hide


def row(item: int, arm: str, score: float | None, **more: Any) -> dict[str, Any]:
    """A row as `evaluate_pipeline.py` writes it, as far as the verdict reads it."""
    return {
        "item": f"{item:016x}",
        "arm": arm,
        "repeat": 0,
        "document": f"{'ab'[item % 2]}.pdf",
        "model": "m",
        "score": score,
        "passed": None if score is None else score >= 0.75,
        "criteria": {} if score is None else dict.fromkeys(CRITERIA, 4),
        "gates": [],
        "tokens": 100,
        "latency_seconds": 1.0,
        "cost": 0.001,
        "valid": True,
        "pairwise": None,
    } | more


def arm(name: str, differences: list[float], level: float = 0.5, **more: Any) -> list[dict]:
    return [row(i, name, round(level + d, 6), **more) for i, d in enumerate(differences)]


def summary(*arms: list[dict], **more: Any) -> dict[str, Any]:
    rows = [r for rows in arms for r in rows]
    names = list(dict.fromkeys(r["arm"] for r in rows))
    known = {
        "baseline": "original",
        "candidates": [name for name in names if name not in ("original", "existing")]
        or ["optimised"],
        "seed": 0,
        "gold_items": 100,
        "test_items": 40,
    }
    return summarise(rows, **(known | more))


def decided(differences: list[float], **more: Any) -> dict[str, Any]:
    """The verdict on one candidate with these score differences."""
    return summary(arm("original", [0.0] * len(differences)), arm("optimised", differences), **more)


# ---------------------------------------------------------------------- the rule


@pytest.mark.parametrize(
    ("differences", "verdict", "code", "says"),
    [
        (UP, GO, 0, "optimised is better than original: +0.121 on 12 items, 95 % interval +0."),
        (DOWN, NO_GO, 3, "optimised is worse than original: -0.121 on 12 items"),
        (SAME, NO_GO, 3, "a gain of 0.02 by optimised on original is ruled out: +0.000 on 40"),
        (NOISE, INCONCLUSIVE, 3, "optimised may be better or worse than original: +0.004 on 12"),
        ([0.0] * 12, NO_GO, 3, "optimised gains nothing on original: all 12 items score the same"),
        ([0.1] * 6, GO, 0, "optimised is better than original: +0.100 on 6 items"),
        ([0.1] * 5, INCONCLUSIVE, 3, "only 5 items were scored in both optimised and original, at"),
        ([-0.1] * 5, INCONCLUSIVE, 3, "only 5 items were scored in both"),
        ([0.0] * 5, INCONCLUSIVE, 3, "only 5 items were scored in both"),
        ([0.1], INCONCLUSIVE, 3, "only 1 item was scored in both optimised and original"),
    ],
)
def test_each_branch_of_the_rule(
    differences: list[float], verdict: str, code: int, says: str
) -> None:
    found = decided(differences)
    comparison = found["comparisons"][0]
    assert (found["verdict"], comparison["verdict"], found["exit_code"]) == (verdict, verdict, code)
    assert says in found["sentence"]
    assert found["sentence"] == f"{verdict}: {comparison['why']}"
    assert found["sentence"].endswith(".") and "\n" not in found["sentence"]
    assert found["recommended"] == ("optimised" if verdict == GO else None)
    assert (comparison["items_needed"] is None) == (verdict != INCONCLUSIVE)


def test_the_figures_are_those_of_the_paired_comparison() -> None:
    comparison = decided(UP, seed=7)["comparisons"][0]
    expected = compare_paired([0.5] * 12, [round(0.5 + d, 6) for d in UP], seed=7)
    for name, value in expected._asdict().items():
        assert comparison[name] == value
    assert comparison["p_holm"] == comparison["p"]


def test_an_interval_above_zero_is_no_go_without_a_small_p() -> None:
    # Six pairs of which one does not count: 4 of 64 patterns are as extreme, p = .0625.
    found = decided([0.1, 0.1, 0.1, 0.1, 0.1, 0.0])["comparisons"][0]
    assert found["low"] > 0 and found["p"] == 0.0625
    assert found["verdict"] == INCONCLUSIVE


def test_the_deviation_seen_says_how_many_items_a_clear_answer_takes() -> None:
    differences = [0.3, -0.2, 0.25, -0.1, 0.2, -0.2, 0.35, -0.15, 0.15, -0.05, 0.2, -0.1]
    found = decided(differences)["comparisons"][0]
    assert found["verdict"] == INCONCLUSIVE
    items = needed(found["standard_deviation"], found["difference"])
    assert found["items_needed"] == items > 12
    assert found["gold_items_needed"] == math.ceil(items * 100 / 40)
    assert f"a gain of {found['difference']:.3f} four times in five takes {items:,}" in found["why"]
    assert f"a gold set of {found['gold_items_needed']:,} instead of 100." in found["why"]


@pytest.mark.parametrize("shift", [0.0, -0.03])
def test_less_than_a_gain_worth_having_is_not_what_the_items_are_counted_for(shift: float) -> None:
    found = decided([d + shift for d in NOISE])["comparisons"][0]
    assert found["difference"] < MIN_GAIN
    assert found["verdict"] == INCONCLUSIVE
    assert found["items_needed"] == needed(found["standard_deviation"], MIN_GAIN)


def test_without_test_items_no_size_of_a_gold_set_is_named() -> None:
    found = decided(NOISE, test_items=0)["comparisons"][0]
    assert found["items_needed"] is not None and found["gold_items_needed"] is None
    assert "gold set" not in found["why"]


def test_few_items_are_planned_for_with_an_assumed_deviation() -> None:
    found = decided([0.1, 0.1, 0.1])["comparisons"][0]
    assert found["items_needed"] == needed(0.25, 0.1) == 51


def test_no_score_in_both_arms_is_said_plainly() -> None:
    original = [row(i, "original", 0.5) for i in range(8)]
    failed = [row(i, "optimised", None, error="the judge is away") for i in range(8)]
    found = summary(original, failed)
    assert found["verdict"] == INCONCLUSIVE
    assert found["sentence"].startswith(
        "INCONCLUSIVE: no item was scored in both optimised and original; "
    )
    comparison = found["comparisons"][0]
    assert (comparison["n"], comparison["low"], comparison["p"], comparison["p_holm"]) == (
        0,
        None,
        None,
        None,
    )
    assert found["arms"]["optimised"]["score"] is None
    assert (found["arms"]["optimised"]["scored"], found["arms"]["optimised"]["failed"]) == (0, 8)


def test_an_arm_without_rows_decides_nothing() -> None:
    found = summary(arm("original", UP), candidates=["optimised"])
    assert found["verdict"] == INCONCLUSIVE
    assert found["arms"]["optimised"]["items"] == 0
    assert found["arms"]["optimised"]["valid_rate"] is None


def test_there_has_to_be_a_candidate() -> None:
    with pytest.raises(ValueError, match="no candidate"):
        summarise([], baseline="original", candidates=[], seed=0, gold_items=0, test_items=0)


def test_a_row_that_is_there_twice_is_refused() -> None:
    with pytest.raises(
        ValueError, match="two rows of item 0000000000000003, arm original, repeat 0"
    ):
        summary(arm("original", UP), arm("optimised", UP), [row(3, "original", 0.5)])


# ---------------------------------------------------------------------- several candidates


def test_several_candidates_get_wider_intervals_and_corrected_ps() -> None:
    base = arm("original", [0.0] * 12)
    alone = summary(base, arm("a", UP))["comparisons"][0]
    found = summary(base, arm("a", UP), arm("b", NOISE), arm("c", [d / 2 for d in UP]))
    ps = [c["p"] for c in found["comparisons"]]
    assert [c["p_holm"] for c in found["comparisons"]] == pytest.approx(
        multipletests(ps, method="holm")[1], abs=1e-6
    )
    passes = [c["mcnemar"]["p"] for c in found["comparisons"]]
    assert [c["mcnemar"]["p_holm"] for c in found["comparisons"]] == pytest.approx(
        multipletests(passes, method="holm")[1], abs=1e-6
    )
    assert {c["level"] for c in found["comparisons"]} == {0.983333}
    assert found["comparisons"][0]["low"] < alone["low"]
    assert "3 candidates" in found["rule"] and "Holm" in found["rule"]


def test_what_is_a_go_alone_need_not_be_one_among_three() -> None:
    six = [0.1] * 6  # p = 2 / 64 = .03125, but three times that among three
    base = arm("original", [0.0] * 6)
    assert summary(base, arm("a", six))["verdict"] == GO
    noise = NOISE[:6]
    found = summary(base, arm("a", six), arm("b", noise), arm("c", noise))
    assert found["comparisons"][0]["p_holm"] == 0.09375
    assert found["verdict"] == INCONCLUSIVE


def test_the_go_with_the_largest_gain_is_recommended() -> None:
    larger = [d + 0.1 for d in UP]
    found = summary(arm("original", [0.0] * 12), arm("a", UP), arm("b", larger), arm("c", DOWN))
    assert [c["verdict"] for c in found["comparisons"]] == [GO, GO, NO_GO]
    assert (found["verdict"], found["recommended"], found["exit_code"]) == (GO, "b", 0)
    assert found["sentence"].startswith("GO: b is better than original")


@pytest.mark.parametrize(
    ("second", "verdict", "says"),
    [
        (DOWN, NO_GO, "NO-GO: a is worse than original: -0.060"),  # the lesser evil is named
        (NOISE, INCONCLUSIVE, "INCONCLUSIVE: b may be better or worse"),
        (UP, GO, "GO: b is better"),
    ],
)
def test_the_whole_is_no_go_only_where_all_are(
    second: list[float], verdict: str, says: str
) -> None:
    half = [d / 2 for d in DOWN]
    found = summary(arm("original", [0.0] * 12), arm("a", half), arm("b", second))
    assert found["verdict"] == verdict
    assert found["sentence"].startswith(says)


def test_a_candidate_that_breaks_a_guardrail_is_not_recommended() -> None:
    larger = [d + 0.1 for d in UP]
    found = summary(arm("original", [0.0] * 12), arm("a", UP), arm("b", larger, cost=0.1))
    assert [c["verdict"] for c in found["comparisons"]] == [GO, NO_GO]
    assert found["recommended"] == "a"


# ---------------------------------------------------------------------- guardrails

FORTY = [0.1, 0.05, 0.2, 0.15] * 10


def with_guardrail(name: str, optimised: list[dict], **more: Any) -> tuple[dict, dict]:
    """(the summary, the named check) of forty items on which the candidate scores better."""
    found = summary(arm("original", [0.0] * 40), optimised, **more)
    checks = {check["name"]: check for check in found["comparisons"][0]["guardrails"]}
    assert len(checks) == 5
    return found, checks[name]


def first(n: int, **more: Any) -> list[dict]:
    """The better candidate, with n items changed."""
    rows = arm("optimised", FORTY)
    return [r | more if k < n else r for k, r in enumerate(rows)]


GATED = {"gates": [{"gate": "copies", "reason": "copies the chunk"}]}


@pytest.mark.parametrize(
    ("name", "optimised", "broken", "says"),
    [
        ("readable questions", first(0), False, "100.0 % against 100.0 %"),
        # One item is 2.5 points and over the limit, but one item.
        ("readable questions", first(1, valid=False), False, "too few items to hold it against"),
        ("readable questions", first(2, valid=False), True, "95.0 % against 100.0 %, at most 2"),
        ("gate failures", first(2, **GATED), False, "5.0 % against 0.0 %, at most 5 points above"),
        ("gate failures", first(3, **GATED), True, "7.5 % against 0.0 %, at most 5 points above"),
        ("seconds per question", first(40, latency_seconds=2.0), False, "2.0 times, at most 2"),
        ("seconds per question", first(40, latency_seconds=2.1), True, "2.1 against 1, 2.1 times"),
        ("seconds per question", first(40, latency_seconds=0.0), False, "not compared"),
        ("seconds per question", first(1, latency_seconds=90.0), False, "the median is 1 against"),
        ("seconds per question", first(19, latency_seconds=9.0), False, "a few slow answers"),
        ("seconds per question", first(21, latency_seconds=9.0), True, "5.2 against 1, 5.2 times"),
        ("cost per question", first(40, cost=0.003), False, "3.0 times, at most 3 times allowed"),
        ("cost per question", first(40, cost=0.0031), True, "0.0031 against 0.001, 3.1 times"),
        ("cost per question", first(40, cost=0.0), False, "not known for both, not compared"),
        ("cost per question", first(40, cost=None), False, "not known for both, not compared"),
    ],
)
def test_each_guardrail_at_its_limit(
    name: str, optimised: list[dict], broken: bool, says: str
) -> None:
    found, check = with_guardrail(name, optimised)
    assert check["broken"] is broken
    assert says in check["text"]
    assert found["verdict"] == (NO_GO if broken else GO)
    if broken:
        assert found["sentence"].startswith(f"NO-GO: optimised breaks a guardrail: {name}")
        assert "(+0.125 on 40 items, 95 % interval" in found["sentence"]
        assert found["recommended"] is None


def test_a_failed_item_is_an_unreadable_one() -> None:
    rows = [r if k > 1 else row(k, "optimised", None, valid=False) for k, r in enumerate(first(0))]
    found, check = with_guardrail("readable questions", rows)
    assert (check["arm"], check["against"], check["broken"]) == (0.95, 1.0, True)
    assert found["comparisons"][0]["n"] == 38


def test_being_better_than_the_baseline_breaks_nothing() -> None:
    original = [r | GATED | {"valid": k > 9} for k, r in enumerate(arm("original", [0.0] * 40))]
    found = summary(original, first(0))
    assert found["verdict"] == GO


def test_the_limits_can_be_set() -> None:
    strict = Guardrails(valid_rate_drop=0.0, least_items=1)
    found, check = with_guardrail("readable questions", first(1, valid=False), guardrails=strict)
    assert check["broken"] and found["verdict"] == NO_GO
    loose = Guardrails(cost_ratio=200)
    assert (
        with_guardrail("cost per question", first(40, cost=0.1), guardrails=loose)[0]["verdict"]
        == GO
    )
    assert "200 times the cost" in rule_of(1, loose)


@pytest.mark.parametrize(
    ("gains", "broken", "says"),
    [
        ([0.55, 0.45] * 15, True, "a gain of +0.500 on 30 items the optimiser saw, +0.125 on the"),
        ([0.15, 0.10] * 15, False, "+0.125 on 30 items the optimiser saw, +0.125 on the test"),
        ([0.9, -0.5] * 15, False, "a caution: over the limit, but no more than chance"),
        ([0.174, 0.176] * 15, False, "+0.175 on 30 items the optimiser saw"),  # just 5 points
    ],
)
def test_the_gap_between_seen_and_unseen(gains: list[float], broken: bool, says: str) -> None:
    seen = {"optimised": [(0.4, round(0.4 + gain, 6)) for gain in gains]}
    found, check = with_guardrail("train-test gap", first(0), seen=seen)
    assert check["broken"] is broken
    assert says in check["text"]
    assert ("caution" in check["text"]) is ("caution" in says)
    assert found["verdict"] == (NO_GO if broken else GO)
    gap = found["comparisons"][0]["gap"]
    expected = compare_means(sorted(FORTY), sorted(round(g, 6) for g in gains), seed=0, level=0.98)
    assert (gap["gap"], gap["low"], gap["high"]) == pytest.approx(expected, abs=2e-3)
    assert (gap["n_seen"], gap["level"]) == (30, 0.98)
    assert gap["seen"] - gap["unseen"] == pytest.approx(gap["gap"], abs=1e-6)


@pytest.mark.parametrize("seen", [None, {}, {"optimised": []}, {"optimised": [(None, 0.5)]}])
def test_a_gap_that_is_not_known_breaks_nothing(seen: Any) -> None:
    found, check = with_guardrail("train-test gap", first(0), seen=seen)
    assert found["comparisons"][0]["gap"] is None
    assert not check["broken"] and "is not known" in check["text"]


def test_pairs_without_a_score_are_left_out_of_the_gap() -> None:
    seen = {"optimised": [(0.5, 0.6), (None, 0.9), (0.5, None), (0.5, 0.7)]}
    gap = with_guardrail("train-test gap", first(0), seen=seen)[0]["comparisons"][0]["gap"]
    assert (gap["n_seen"], gap["seen"]) == (2, 0.15)


# ---------------------------------------------------------------------- figures by hand


def test_the_figures_of_an_arm_by_hand() -> None:
    gates = [{"gate": "copies", "reason": "a"}, {"gate": "preamble", "reason": "b"}]
    rows = [
        row(0, "original", 0.8, criteria=dict.fromkeys(CRITERIA, 5), tokens=50, cost=0.002),
        row(1, "original", 0.6, criteria=dict.fromkeys(CRITERIA, 2), model="n"),
        row(2, "original", 0.0, criteria={}, gates=gates, tokens=150),
        row(3, "original", None, valid=False, latency_seconds=5.0, model="n"),
    ]
    found = summary(rows)["arms"]["original"]
    assert found == {
        "items": 4,
        "scored": 3,
        "failed": 1,
        "score": round(1.4 / 3, 6),
        "passed": round(1 / 3, 6),
        **dict.fromkeys(CRITERIA, 3.5),
        "valid_rate": 0.75,
        "gate_failure_rate": 0.25,
        "gates": {"copies": 1, "preamble": 1},
        "tokens_per_question": 100.0,
        "seconds_per_question": 2.0,
        "median_seconds_per_question": 1.0,
        "cost_per_question": 0.00125,
        "by_model": {"m": {"n": 2, "score": 0.4}, "n": {"n": 1, "score": 0.6}},
        "histogram": [1, 0, 0, 0, 0, 0, 1, 0, 1, 0],
    }


@pytest.mark.parametrize(
    ("score", "bucket"), [(0.0, 0), (0.1, 1), (0.3, 3), (0.7, 7), (0.95, 9), (1.0, 9)]
)
def test_a_score_on_a_boundary_belongs_to_the_bucket_above(score: float, bucket: int) -> None:
    histogram = summary([row(0, "original", score)])["arms"]["original"]["histogram"]
    assert histogram.index(1) == bucket


def test_passes_lost_and_won_by_hand() -> None:
    before = [0.8, 0.8, 0.8, 0.5, 0.5, 0.5, 0.5, 0.5]
    after = [0.8, 0.8, 0.6, 0.9, 0.9, 0.9, 0.9, 0.6]
    found = summary(
        [row(i, "original", s) for i, s in enumerate(before)],
        [row(i, "optimised", s) for i, s in enumerate(after)],
    )["comparisons"][0]
    # Lost by 1, won by 4: 2 · (1 + 5) / 32.
    assert found["mcnemar"] == {"only_against": 1, "only_arm": 4, "p": 0.375, "p_holm": 0.375}


def test_an_item_passes_when_most_of_its_repeats_do() -> None:
    def repeats(name: str, passed: list[bool]) -> list[dict]:
        return [row(0, name, 0.5, repeat=k, passed=p) for k, p in enumerate(passed)]

    third, half, most = [True, False, False], [True, False], [True, True, False]
    for passed, counts in (
        (third, 0),
        (half, 0),
        (most, 1),
        ([True, True, False, False, False], 0),
    ):
        found = summary(repeats("original", [False] * len(passed)), repeats("optimised", passed))
        assert found["comparisons"][0]["mcnemar"]["only_arm"] == counts


def test_repeats_of_an_item_are_one_value() -> None:
    rng = random.Random(1)
    original = [row(i, "original", 0.5, repeat=k) for i in range(12) for k in range(3)]
    optimised = [
        row(i, "optimised", round(0.5 + d + rng.choice([-0.1, 0.0, 0.1]), 6), repeat=k)
        for i, d in enumerate(UP)
        for k in range(3)
    ]
    found = summary(original, optimised, repeats=3)
    comparison = found["comparisons"][0]
    assert (found["items"], found["repeats"], comparison["n"]) == (12, 3, 12)
    means = [
        sum(r["score"] for r in optimised if r["item"] == f"{i:016x}") / 3 - 0.5 for i in range(12)
    ]
    assert comparison["difference"] == pytest.approx(sum(means) / 12, abs=1e-6)
    assert comparison["low"] == compare_paired([0.0] * 12, means, seed=0).low
    assert found["arms"]["optimised"]["items"] == 12
    assert sum(found["arms"]["optimised"]["histogram"]) == 12


def test_a_repeat_that_failed_in_one_arm_is_left_out_in_both() -> None:
    original = [row(i, "original", 0.5, repeat=k) for i in range(8) for k in range(2)]
    optimised = [row(i, "optimised", 0.6, repeat=k) for i in range(8) for k in range(2)]
    original[0]["score"] = 0.1  # of item 0, repeat 0, which has no partner
    optimised[0] |= {"score": None, "passed": None}
    comparison = summary(original, optimised, repeats=2)["comparisons"][0]
    assert (comparison["n"], comparison["difference"]) == (8, 0.1)


def test_documents_and_models_by_hand() -> None:
    original = [row(i, "original", 0.5, model="mmnn"[i]) for i in range(4)]
    optimised = [
        row(i, "optimised", s, model="mnnn"[i]) for i, s in enumerate([0.6, 0.8, 0.4, 0.7])
    ]
    found = summary(original, optimised)["comparisons"][0]
    assert found["by_document"] == [
        {"document": "a.pdf", "n": 2, "difference": 0.0},
        {"document": "b.pdf", "n": 1, "difference": 0.2},
    ]
    assert (found["missing"], found["other_model"]) == (1, 1)  # written by m, and by n
    assert found["by_model"] == [
        {"model": "m", "n": 1, "difference": 0.1},
        {"model": "n", "n": 2, "difference": 0.05},
    ]


def test_rows_without_what_is_not_essential_will_do() -> None:
    bare = [
        {"item": f"{i:016x}", "arm": name, "score": 0.5 + d, "passed": True}
        for name, differences in (("original", [0.0] * 12), ("optimised", UP))
        for i, d in enumerate(differences)
    ]
    found = summary(bare)
    assert found["comparisons"][0]["by_document"] == [
        {"document": "", "n": 12, "difference": 0.120833}
    ]
    assert found["arms"]["original"]["answerable"] is None


# ---------------------------------------------------------------------- duels


def duel(outcome: str | None, **more: Any) -> dict[str, Any]:
    asked = {"against": "original", "outcome": outcome, "consistent": True, "asked": True}
    return {"pairwise": asked | more}


def test_duels_by_hand() -> None:
    rows = [row(i, "optimised", 0.5, **duel("win")) for i in range(7)]
    rows += [row(7, "optimised", 0.5, **duel("loss"))]
    rows += [row(8, "optimised", 0.5, **duel("tie", consistent=False))]
    rows += [row(9, "optimised", 0.5, **duel("tie", asked=False, consistent=None))]
    rows += [row(10, "optimised", 0.5, **duel(None, consistent=None))]  # the judge failed
    rows += [row(11, "optimised", 0.5)]
    rows += [row(12, "optimised", 0.5, **duel("loss", against="existing"))]
    found = summary(arm("original", [0.0] * 13), rows)["comparisons"][0]["pairwise"]
    assert found == {
        "n": 10,
        "wins": 7,
        "ties": 2,
        "losses": 1,
        "p": 2 * (1 + 8) / 256,
        "failed": 1,
        "asked": 10,
        "consistent": round(8 / 9, 6),
    }


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        (["win", "win", "loss"], (1, 0, 0)),
        (["win", "tie", "tie"], (1, 0, 0)),  # more wins than losses
        (["win", "loss", "tie"], (0, 1, 0)),
        (["loss", "loss", "win"], (0, 0, 1)),
        (["win", None, None], (1, 0, 0)),
    ],
)
def test_an_items_duels_are_settled_by_majority(
    outcomes: list[str | None], expected: tuple[int, int, int]
) -> None:
    rows = [row(0, "optimised", 0.5, repeat=k, **duel(o)) for k, o in enumerate(outcomes)]
    originals = [row(0, "original", 0.5, repeat=k) for k in range(3)]
    found = summary(originals, rows, repeats=3)["comparisons"][0]["pairwise"]
    assert (found["wins"], found["ties"], found["losses"]) == expected
    assert found["n"] == 1


def test_without_duels_there_is_nothing_to_say_of_them() -> None:
    assert decided(UP)["comparisons"][0]["pairwise"] is None


# ---------------------------------------------------------------------- the old generator


def test_the_old_generators_queries_are_compared_and_decide_nothing() -> None:
    existing = arm("existing", [-0.3] * 9, model="", latency_seconds=0.0, cost=0.0, tokens=0)
    found = summary(arm("original", [0.0] * 12), arm("optimised", NOISE), existing)
    decisive, other = found["comparisons"]
    assert found["arm_order"] == ["original", "optimised", "existing"]
    assert found["candidates"] == ["optimised"]
    assert (decisive["decides"], other["decides"]) == (True, False)
    assert (other["arm"], other["against"], other["n"]) == ("optimised", "existing", 9)
    assert (other["verdict"], found["verdict"]) == (GO, INCONCLUSIVE)
    assert (other["guardrails"], other["gap"], other["level"]) == ([], None, 0.95)
    assert other["p_holm"] == other["p"]
    assert other["by_model"][0]["model"] == "m"
    assert found["arms"]["existing"]["by_model"] == {}


def test_an_old_generator_that_is_not_there_is_not_missed() -> None:
    assert decided(UP)["arm_order"] == ["original", "optimised"]


# ---------------------------------------------------------------------- all of it


def full(seed: int) -> list[dict]:
    rng = random.Random(seed)
    rows = []
    for name, shift in (("original", 0.0), ("optimised", 0.1), ("third", 0.05), ("existing", -0.1)):
        for i in range(20):
            for k in range(2):
                if rng.random() < 0.1:
                    rows.append(row(i, name, None, repeat=k, valid=False))
                    continue
                score = round(min(1.0, max(0.0, 0.6 + shift + rng.gauss(0, 0.2))) * 20) / 20
                duels = duel(rng.choice(["win", "tie", "loss"])) if name == "third" else {}
                model = rng.choice("mn")
                rows.append(row(i, name, score, repeat=k, model=model, **duels))
    return rows


def test_the_order_of_the_rows_changes_nothing() -> None:
    rows = full(3)
    seen = {"optimised": [(0.5, 0.6), (0.4, 0.7), (0.6, 0.5)]}

    def written(order: list[dict], names: list[str]) -> str:
        found = summary(order, candidates=names, seen=seen, repeats=2)
        return json.dumps(found, sort_keys=True, allow_nan=False)

    expected = written(rows, ["optimised", "third"])
    for seed in range(3):
        shuffled = random.Random(seed).sample(rows, len(rows))
        assert written(shuffled, ["optimised", "third"]) == expected
    assert written(rows, ["third", "optimised"]) != expected


def test_the_summary_holds_what_its_readers_rely_on() -> None:
    found = summary(full(4), candidates=["optimised", "third"], repeats=2)
    assert set(found) == {
        *("verdict", "sentence", "recommended", "exit_code", "baseline", "candidates"),
        *("arm_order", "items", "repeats", "rule", "arms", "comparisons"),
    }
    assert [(c["arm"], c["against"], c["decides"]) for c in found["comparisons"]] == [
        ("optimised", "original", True),
        ("third", "original", True),
        ("optimised", "existing", False),
    ]
    for comparison in found["comparisons"]:
        assert set(comparison) == {
            *("arm", "against", "decides", "n", "difference", "low", "high", "level"),
            *("standard_deviation", "p", "p_holm", "wins", "ties", "losses", "mcnemar"),
            *("pairwise", "guardrails", "gap", "by_document", "by_model"),
            *("missing", "other_model", "over_documents"),
            *("smallest_detectable", "verdict", "why", "items_needed", "gold_items_needed"),
        }
        assert sum(part["n"] for part in comparison["by_document"]) == comparison["n"]
        for check in comparison["guardrails"]:
            assert set(check) == {"name", "against", "arm", "limit", "broken", "text"}


def test_the_rule_in_words_names_its_numbers() -> None:
    rule = rule_of(1)
    for number in (
        "95 %",
        "0.05",
        "0.02",
        f"fewer than {LEAST_PAIRS} items",
        "2 points",
        "2 times",
    ):
        assert number in rule
    assert "Bonferroni" not in rule
    assert "97.5 % (Bonferroni)" in rule_of(2)


def test_the_criteria_are_the_judges() -> None:
    from question_optimizer.programs import judge

    assert CRITERIA == judge.CRITERIA


def test_where_more_than_one_item_in_twenty_is_missing_nothing_is_decided() -> None:
    """Only the hard ones may be missing: the rest would tell of the easy ones."""
    for lost, verdict in ((2, GO), (3, INCONCLUSIVE)):
        optimised = arm("optimised", [0.7] * 40)
        for failed in optimised[:lost]:
            failed |= {"score": None, "passed": None, "error": "down"}
        found = summary(arm("original", [0.5] * 39 + [0.6]), optimised)["comparisons"][0]
        assert (found["missing"], found["verdict"]) == (lost, verdict)


def test_a_call_that_failed_says_nothing_of_readability_cost_or_speed() -> None:
    optimised = arm("optimised", [0.7] * 40)
    for failed in optimised[:2]:
        failed |= {"score": None, "error": "down", "valid": False, "cost": 0.0, "tokens": 0}
    figures = summary(arm("original", [0.5] * 40), optimised)["arms"]["optimised"]
    assert figures["valid_rate"] == 1.0
    assert figures["cost_per_question"] == pytest.approx(optimised[-1].get("cost") or 0)


def test_a_gain_of_few_documents_is_told_with_a_caution() -> None:
    documents = ["a.pdf"] * 30 + ["b.pdf"] * 5 + ["c.pdf"] * 5
    gains = [0.3] * 30 + [-0.2] * 5 + [0.0] * 4 + [0.1]
    original = [row(i, "original", 0.5, document=d) for i, d in enumerate(documents)]
    optimised = [
        row(i, "optimised", 0.5 + gain, document=documents[i]) for i, gain in enumerate(gains)
    ]
    found = summary(original, optimised)["comparisons"][0]
    assert found["verdict"] == GO
    assert found["over_documents"]["n"] == 3
    assert found["over_documents"]["low"] < 0
    assert "over 3 whole documents the interval is" in found["why"]
