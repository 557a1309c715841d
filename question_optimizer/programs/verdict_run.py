"""The verdict's rows: every arm writes a question for every test item, and the judge scores it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import dspy

from question_optimizer import files
from question_optimizer.pinning import on_item
from question_optimizer.programs.judge import LLMMetric, QuestionJudge, Unjudged
from question_optimizer.programs.pairwise import Comparison, PairwiseJudge, Written
from question_optimizer.programs.runs import ask_program, examples_of, in_threads, item_id
from question_optimizer.records import GoldItem
from question_optimizer.usage import CallUsage, metered

BASELINE, OPTIMISED, EXISTING = "original", "optimised", "existing"

Row = dict[str, Any]


class Arm(NamedTuple):
    """What is compared: a program, or None for the query that the chunk carries already."""

    name: str
    program: dspy.Module | None

    def covers(self, item: GoldItem) -> bool:
        return self.program is not None or bool(item.existing_query)


@dataclass(frozen=True)
class Judging:
    """The models and judges of one repeat."""

    student: dspy.LM
    judge_lm: dspy.LM
    judge: QuestionJudge
    pairwise: PairwiseJudge
    pass_score: float
    price: Callable[[CallUsage], float]  # of a call today; what it was when made may be long ago

    def repeat(self, rollout: str) -> Judging:
        """The same with answers of its own, for a repeat in live mode."""
        return Judging(
            self.student.copy(rollout_id=rollout),
            self.judge_lm.copy(rollout_id=rollout),
            self.judge,
            self.pairwise,
            self.pass_score,
            self.price,
        )


def row_id(item: GoldItem) -> str:
    """What an item's rows are known by, 16 hex digits."""
    return files.digest([str(item.chunk_id), item.gold_question, item.persona_description])[:16]


def calls_of(arms: Sequence[Arm], items: Sequence[GoldItem], repeats: int) -> dict[str, int]:
    """Calls by role if none fails and no gate or equal text spares one."""
    covered = [(arm, sum(arm.covers(item) for item in items)) for arm in arms]
    written = sum(n for arm, n in covered if arm.program is not None)
    compared = sum(n for arm, n in covered[1:] if arm.program is not None)
    judged = sum(n for _, n in covered)
    return {"student": 2 * written * repeats, "judge": (judged + 2 * compared) * repeats}


def steps_of(arms: Sequence[Arm], items: Sequence[GoldItem], repeats: int) -> int:
    """How often `evaluate` calls `done`."""
    return repeats * sum(
        arm.covers(item) * (1 if place == 0 or arm.program is None else 2)
        for place, arm in enumerate(arms)
        for item in items
    )


def evaluate(
    arms: Sequence[Arm],
    items: Sequence[GoldItem],
    judgings: Sequence[Judging],
    *,
    threads: int,
    done: Callable[[bool], None] = lambda failed: None,
) -> list[Row]:
    """A row for each item, arm and repeat, in this order; the first of `arms` is the baseline.

    A program's row is compared with the baseline's, side by side, both orders. What failed has no
    score but an error.
    """
    units = [
        (item, arm, repeat)
        for item in items
        for arm in arms
        if arm.covers(item)
        for repeat in range(len(judgings))
    ]

    def score(unit: tuple[GoldItem, Arm, int]) -> Row:
        item, arm, repeat = unit
        row = _row(arm, item, repeat, judgings[repeat])
        done(bool(row["error"]))
        return row

    rows = in_threads(score, units, threads=threads)
    known = {(id(item), arm.name, n): row for (item, arm, n), row in zip(units, rows, strict=True)}

    def compare(unit: tuple[GoldItem, Arm, int]) -> None:
        item, arm, repeat = unit
        row, other = known[id(item), arm.name, repeat], known[id(item), arms[0].name, repeat]
        row["pairwise"] = _compared(row, other, item, judgings[repeat])
        done(bool(row["pairwise"]["error"]))

    rivals = [unit for unit in units if unit[1].name != arms[0].name and unit[1].program]
    in_threads(compare, rivals, threads=threads)
    return rows


def _row(arm: Arm, item: GoldItem, repeat: int, judging: Judging) -> Row:
    """What the arm wrote for the item, and what the judge says of it."""
    if arm.program is None:
        prediction = dspy.Prediction(query=item.existing_query, query_type=None, query_format=None)
        calls, usage = [], None
    else:
        with dspy.context(lm=judging.student, trace=None):
            prediction, meter = ask_program(arm.program, item)
        calls, usage = list(meter.calls.values()), meter.total
    question = (prediction.get("query") or "").strip()
    row: Row = {
        "item": row_id(item),
        "arm": arm.name,
        "repeat": repeat,
        "chunk_id": str(item.chunk_id),
        "document": item.file_name or item.document_id or item.split_group,
        "persona_description": item.persona_description,
        "model": _models(calls),
        "judge_model": "",
        "score": None,
        "passed": None,
        "criteria": {},
        "feedback": "",
        "gates": [],
        "question": question or None,
        "query_type": prediction.get("query_type"),
        "query_format": prediction.get("query_format"),
        "gold_question": item.gold_question,
        "chunk_text": item.chunk_text,
        "tokens": usage.input_tokens + usage.output_tokens if usage else 0,
        "latency_seconds": round(usage.seconds, 3) if usage else 0.0,
        "cost": round(math.fsum(map(judging.price, calls)), 8),
        "error": "",
        "valid": bool(question) or bool(prediction.get("error")),  # an outage is no fault of it
        "pairwise": None,
    }
    [example] = examples_of([item])
    metric = LLMMetric(judging.judge, judging.judge_lm, pass_score=judging.pass_score)
    with on_item(item_id(example.inputs().toDict())), metered() as asked:
        judged = metric.judge(example, prediction)
    row["judge_model"] = _models(asked.calls.values())
    if isinstance(judged, Unjudged):
        return row | {"error": judged.reason}
    return row | {
        "score": judged.value,
        "passed": metric.passes(judged),
        "criteria": judged.criteria,
        "feedback": judged.feedback,
        "gates": [failure._asdict() for failure in judged.gates],
    }


def _compared(row: Row, other: Row, item: GoldItem, judging: Judging) -> dict[str, Any]:
    [example] = examples_of([item])
    if row["error"] or other["error"]:
        found = Comparison(None, error=row["error"] or other["error"])
    else:
        with on_item(item_id(example.inputs().toDict())):
            found = judging.pairwise.compare(
                judging.judge_lm,
                example,
                Written(row["question"], row["query_format"]),
                Written(other["question"], other["query_format"]),
            )
    return {
        "against": other["arm"],
        "outcome": found.outcome,
        "consistent": found.consistent,
        "asked": found.asked,
        "reasons": list(found.reasons),
        "error": found.error,
    }


def _models(calls: Any) -> str:
    return " + ".join(sorted({call.model for call in calls}))


def judgings_of(first: Judging, live: str | None, repeats: int) -> list[Judging]:
    """One for each repeat. `live` names a run whose answers are its own; None replays what is
    known already."""
    if live is None:
        return [first]
    return [first.repeat(f"{live}.{repeat}") for repeat in range(repeats)]
