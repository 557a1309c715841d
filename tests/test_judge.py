"""The judge: a rubric turned into a score with a reason; what cannot be judged is never a zero."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from typing import Any

import dspy
import pytest
from dspy import lm15

from question_optimizer.errors import StopRun
from question_optimizer.programs.judge import (
    CRITERIA,
    Judgement,
    JudgeQuestion,
    LLMMetric,
    QuestionJudge,
    Unjudged,
)
from question_optimizer.programs.runs import Arm, examples_of
from question_optimizer.records import GoldItem
from test_records import ScriptedLM, fields

GOLD = dspy.Example(
    chunk_text="The WAL file grows until a checkpoint.",
    persona_description="a storage engineer",
    gold_question="What ends the growth of the WAL file?",
)
ASKED = dspy.Prediction(query="When does the WAL file stop growing?")


def verdict(*scores: int | str, reason: str = "names its subject") -> str:
    written = dict(zip(CRITERIA, map(str, scores), strict=True))
    return fields(reason=reason, **written)


GOOD = verdict(5, 4, 3, 4, 5)
UNREADABLE = "I would rather talk about something else."


@pytest.fixture(autouse=True)
def _answers_are_cached_in_memory_only() -> Iterator[None]:
    dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=True)
    yield
    dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=True)


# ---------------------------------------------------------------------- scores


@pytest.mark.parametrize(
    ("scores", "value"),
    [
        ((1, 1, 1, 1, 1), 0.0),
        ((5, 5, 5, 5, 5), 1.0),
        ((3, 3, 3, 3, 3), 0.5),
        ((5, 4, 3, 2, 1), 0.5),
        ((5, 5, 5, 5, 4), 0.95),
        ((1, 1, 1, 1, 2), 0.05),
    ],
)
def test_a_score_is_the_mean_of_the_criteria_from_0_to_1(
    scores: tuple[int, ...], value: float
) -> None:
    llm_metric = LLMMetric(QuestionJudge(), ScriptedLM(verdict(*scores)))
    judged = llm_metric.judge(GOLD, ASKED)
    expected = dict(zip(CRITERIA, scores, strict=True))
    assert judged == Judgement(value, "names its subject", expected)
    assert llm_metric(GOLD, ASKED) == value
    assert type(llm_metric(GOLD, ASKED)) is float


def test_the_judge_sees_gold_and_question_and_reasons_before_it_scores() -> None:
    lm = ScriptedLM(GOOD)
    LLMMetric(QuestionJudge(), lm)(GOLD, ASKED)
    (message,) = lm.sent()
    for shown in (GOLD.chunk_text, GOLD.persona_description, GOLD.gold_question, ASKED.query):
        assert shown in message
    assert list(JudgeQuestion.output_fields) == ["reason", *CRITERIA]


@pytest.mark.parametrize(
    ("scores", "passes"),
    [
        ((4, 4, 4, 4, 4), True),
        ((5, 5, 5, 5, 3), True),
        ((5, 5, 3, 4, 3), True),
        ((4, 4, 4, 4, 3), False),  # a mean below 4
        ((5, 5, 5, 5, 2), False),  # a mean above 4, but one fault
        ((1, 1, 1, 1, 1), False),
    ],
)
def test_with_a_trace_it_says_whether_a_question_may_be_an_example(
    scores: tuple[int, ...], passes: bool
) -> None:
    llm_metric = LLMMetric(QuestionJudge(), ScriptedLM(verdict(*scores)))
    assert llm_metric(GOLD, ASKED, trace=[]) is passes
    assert llm_metric(GOLD, ASKED, [("predictor", {}, {})]) is passes


def test_the_passing_score_can_be_set() -> None:
    llm_metric = LLMMetric(QuestionJudge(), ScriptedLM(verdict(4, 4, 4, 4, 4)), pass_score=0.8)
    assert llm_metric(GOLD, ASKED, trace=[]) is False


@pytest.mark.parametrize("trace", [None, []])
def test_for_a_named_predictor_it_gives_score_and_feedback(trace: Any) -> None:
    llm_metric = LLMMetric(QuestionJudge(), ScriptedLM(GOOD))
    told = llm_metric(GOLD, ASKED, trace, "generator", [("generator", {}, {})])
    assert isinstance(told, dspy.Prediction)
    assert (told.score, told.feedback) == (0.8, "names its subject")
    by_name = llm_metric(GOLD, ASKED, trace=trace, pred_name="generator", pred_trace=None)
    assert (by_name.score, by_name.feedback) == (0.8, "names its subject")


@pytest.mark.parametrize(
    "prediction",
    [
        None,
        dspy.Prediction(),
        dspy.Prediction(query=None),
        dspy.Prediction(query=""),
        dspy.Prediction(query=" \n\t "),
    ],
)
def test_no_question_scores_zero_without_a_call(prediction: dspy.Prediction | None) -> None:
    lm = ScriptedLM(GOOD)
    llm_metric = LLMMetric(QuestionJudge(), lm)
    assert llm_metric(GOLD, prediction) == 0.0
    assert not isinstance(llm_metric(GOLD, prediction), Unjudged)
    assert llm_metric(GOLD, prediction, trace=[]) is False
    assert llm_metric(GOLD, prediction, None, "generator").feedback == "No question was written."
    assert lm.requests == []
    assert llm_metric.failures == []


def test_every_question_is_counted_and_told_to_the_progress() -> None:
    told: list[None] = []
    llm_metric = LLMMetric(QuestionJudge(), ScriptedLM(GOOD), judged=lambda: told.append(None))
    for prediction in (ASKED, ASKED, None):
        llm_metric(GOLD, prediction)
    assert llm_metric.judgements == len(told) == 3


# ---------------------------------------------------------------------- failures

UNREAD = "the judge's answer could not be read"


@pytest.mark.parametrize(
    "answer",
    [
        UNREADABLE,
        "",
        verdict(5, 4, 3, 4, 7),
        verdict(5, 4, 3, 4, 0),
        verdict(5, 4, 3, 4, "very well formed"),
        GOOD.partition("[[ ## well_formed")[0],
    ],
)
def test_an_unreadable_judge_gives_no_score_but_a_reason(answer: str) -> None:
    lm = ScriptedLM(answer)
    llm_metric = LLMMetric(QuestionJudge(), lm)
    judged = llm_metric(GOLD, ASKED)
    assert isinstance(judged, Unjudged)
    assert judged.reason == UNREAD
    assert llm_metric.failures == [UNREAD]
    assert llm_metric.judgements == 1
    assert len(lm.requests) == 6  # three attempts, each by the chat and the JSON adapter


def test_an_unreadable_answer_is_asked_for_again_past_the_cache() -> None:
    lm = ScriptedLM(UNREADABLE, UNREADABLE, GOOD, name="second rollout", cache=True)
    llm_metric = LLMMetric(QuestionJudge(), lm)
    assert llm_metric(GOLD, ASKED) == 0.8
    assert [request.config.temperature for request in lm.requests] == [None, None, 1.0]
    assert llm_metric.failures == []
    assert llm_metric(GOLD, ASKED) == 0.8  # garbage and rescue both come from the cache
    assert len(lm.requests) == 3


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (lm15.ServerError("overloaded"), "LMServerError: [test/failing] overloaded"),
        (RuntimeError("boom\nwith details"), "LMUnexpectedError: [test/failing] boom"),
    ],
)
def test_a_judge_that_cannot_be_reached_gives_no_score_but_the_reason(
    error: Exception, reason: str
) -> None:
    lm = ScriptedLM(error, name="failing")
    llm_metric = LLMMetric(QuestionJudge(), lm)
    judged = llm_metric(GOLD, ASKED)
    assert isinstance(judged, Unjudged)
    assert judged.reason == reason
    assert llm_metric.failures == [reason]
    assert len(lm.requests) == 3


def test_one_failed_call_does_not_cost_the_item_its_score() -> None:
    lm = ScriptedLM(lm15.ServerError("overloaded"), GOOD)
    assert LLMMetric(QuestionJudge(), lm)(GOLD, ASKED) == 0.8
    assert len(lm.requests) == 2


class SilentJudge(QuestionJudge):
    """A judge whose calls fail without a word, as an expired timeout does."""

    def forward(self, **inputs: Any) -> dspy.Prediction:
        raise TimeoutError


def test_a_failure_without_a_word_is_named_by_its_kind() -> None:
    judged = LLMMetric(SilentJudge(), ScriptedLM(GOOD))(GOLD, ASKED)
    assert isinstance(judged, Unjudged)
    assert judged.reason.startswith("TimeoutError")


class StoppedJudge(QuestionJudge):
    def forward(self, **inputs: Any) -> dspy.Prediction:
        raise StopRun("budget reached", exit_code=5)


def test_the_end_of_the_run_is_no_failed_item() -> None:
    llm_metric = LLMMetric(StoppedJudge(), ScriptedLM(GOOD))
    with pytest.raises(StopRun, match="budget reached"):
        llm_metric(GOLD, ASKED)
    assert llm_metric.failures == []


def test_an_unjudged_question_is_no_example_and_tells_its_reason() -> None:
    llm_metric = LLMMetric(QuestionJudge(), ScriptedLM(UNREADABLE))
    assert llm_metric(GOLD, ASKED, trace=[]) is False
    told = llm_metric(GOLD, ASKED, None, "generator", None)
    assert told.feedback == UNREAD


@pytest.mark.parametrize(
    "again", [copy.copy, copy.deepcopy, lambda u: pickle.loads(pickle.dumps(u))]
)
def test_unjudged_keeps_its_reason_when_copied(again) -> None:
    copied = again(Unjudged("the judge was out"))
    assert isinstance(copied, Unjudged)
    assert copied.reason == "the judge was out"


# ---------------------------------------------------------------------- through dspy.Evaluate


class Writer(dspy.Module):
    """Writes the chunk back as a question; fails as `fail` says."""

    def __init__(self, fail: Exception | None = None):
        super().__init__()
        self.fail = fail

    def forward(self, chunk_text: str, persona_description: str) -> dspy.Prediction:
        if self.fail and "bad" in chunk_text:
            raise self.fail
        return dspy.Prediction(query=f"What of {chunk_text}?")


def evaluated(writer: Writer, lm: dspy.LM) -> dict[str, dict[str, Any]]:
    items = [
        GoldItem(chunk_text=text, persona_description="p", gold_question="g?", chunk_id=text)
        for text in ("good", "bad")
    ]
    examples = examples_of(items)
    arm = Arm("original", writer, LLMMetric(QuestionJudge(), lm))
    dspy.Evaluate(devset=examples, metric=arm.metric, num_threads=1, display_progress=False)(arm)
    return {chunk_id: row for (chunk_id, _), row in arm.rows.items()}


def test_every_item_gets_a_row_with_score_and_reason() -> None:
    rows = evaluated(Writer(), ScriptedLM(GOOD))
    assert rows.keys() == {"good", "bad"}
    for row in rows.values():
        assert (row["score"], row["feedback"], row["error"]) == (0.8, "names its subject", "")
    assert rows["good"]["question"] == "What of good?"


@pytest.mark.parametrize(
    ("error", "reason"),
    [(ValueError("no such field"), "ValueError: no such field"), (TimeoutError(), "TimeoutError")],
)
def test_an_item_that_fails_is_a_row_with_a_reason_and_no_score(
    error: Exception, reason: str
) -> None:
    rows = evaluated(Writer(error), ScriptedLM(GOOD))
    assert rows["good"]["score"] == 0.8
    assert rows["bad"]["score"] is None
    assert rows["bad"]["error"].startswith(reason)


def test_an_item_that_cannot_be_judged_is_a_row_with_a_reason_and_no_score() -> None:
    rows = evaluated(Writer(), ScriptedLM(UNREADABLE))
    assert [row["score"] for row in rows.values()] == [None, None]
    assert {row["error"] for row in rows.values()} == {UNREAD}
