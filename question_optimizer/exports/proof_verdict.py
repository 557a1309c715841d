"""What two rankings of the same questions show: the paired figures, and a rule fixed beforehand."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from question_optimizer.exports.training import CUT, Found, Question
from question_optimizer.statistics import (
    compare_paired,
    needed,
    smallest_detectable,
)
from question_optimizer.verdict import ALPHA, LEAST_PAIRS, MIN_GAIN

METRICS = {"ndcg": f"nDCG@{CUT}", "recall": f"recall@{CUT}"}
RULE = (
    f"Shown where the 95 % interval of the mean difference of {METRICS['ndcg']} over the human "
    f"questions leaves out 0, its sign-flip p is below {ALPHA:g}, and, with {LEAST_PAIRS} "
    "documents or more, the interval over whole documents leaves out 0 on the same side. Nothing "
    "else decides: not recall, not the synthetic questions, not a smaller share of the pairs."
)

Serving = Mapping[str, Found]  # by question id


def compared(
    questions: Sequence[Question], before: Serving, after: Serving, seed: int
) -> dict[str, Any]:
    """Each metric's means, and their paired difference over questions and over whole documents.

    Documents need `LEAST_PAIRS` of them; each counts once there, whatever its number of questions.
    """
    documents = [question.document for question in questions]
    told: dict[str, Any] = {"questions": len(questions), "documents": len(set(documents))}
    for metric in METRICS:
        a, b = ([getattr(side[q.id], metric) for q in questions] for side in (before, after))
        by_document = None
        if told["documents"] >= LEAST_PAIRS:
            found = compare_paired(a, b, seed=seed, clusters=documents)
            by_document = {k: getattr(found, k) for k in ("n", "difference", "low", "high", "p")}
        told[metric] = {
            "before": round(sum(a) / len(a), 6),
            "after": round(sum(b) / len(b), 6),
            **compare_paired(a, b, seed=seed)._asdict(),
            "over_documents": by_document,
        }
    return told


def verdict_of(human: Mapping[str, Any], *, gold_items: int | None = None) -> dict[str, Any]:
    """`RULE` applied to what `compared` found: state, sentence, and what a clear answer would take.

    state is "improved", "worse" or "not shown". With `gold_items`, the size of a gold set of which
    these questions are a split, what is needed is told in gold items, too.
    """
    c, documents = human["ndcg"], human["ndcg"]["over_documents"]
    sign = (c["difference"] > 0) - (c["difference"] < 0)
    over_questions = _leaves_out_0(c, sign) and c["p"] < ALPHA
    state = "not shown"
    if over_questions and (documents is None or _leaves_out_0(documents, sign)):
        state = "improved" if sign > 0 else "worse"
    words = {"improved": "shown", "worse": "shown to be worse"}.get(state, state)
    if over_questions and state == "not shown":
        low, high = signed(documents["low"]), signed(documents["high"])
        words += f", since over {documents['n']} whole documents it is {low} to {high}"
    p = "" if c["p"] is None else f", p = {c['p']:.4f}"
    return {
        "state": state,
        "sentence": f"{METRICS['ndcg']} on {human['questions']} human questions: "
        f"{c['before']:.3f} → {c['after']:.3f}, {signed(c['difference'])} "
        f"({_interval(c)}{p}): {words}",
        "rule": RULE,
        **_power(c, gold_items),
    }


def _power(c: Mapping[str, Any], gold_items: int | None) -> dict[str, Any]:
    """What so many questions can show, and how many the difference seen would take."""
    wanted, deviation = max(abs(c["difference"]), MIN_GAIN), c["standard_deviation"]
    if not deviation:
        return dict.fromkeys(
            ("wanted", "questions_needed", "gold_items_needed", "smallest_detectable")
        )
    questions = needed(deviation, wanted)
    return {
        "wanted": round(wanted, 4),
        "questions_needed": questions,
        "gold_items_needed": gold_items and math.ceil(questions * gold_items / c["n"]),
        "smallest_detectable": round(smallest_detectable(c["n"], standard_deviation=deviation), 4),
    }


def _leaves_out_0(interval: Mapping[str, Any], sign: int) -> bool:
    """Whether the interval lies wholly on the side of 0 that `sign` names."""
    if not sign or interval["low"] is None:
        return False
    return bool(interval["low"] > 0 if sign > 0 else interval["high"] < 0)


def signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


def _interval(c: Mapping[str, Any]) -> str:
    return f"95 % {signed(c['low'])} to {signed(c['high'])}"
