"""The judge: a rubric turned into a score with a reason; what cannot be judged is never a zero."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import dspy
import pytest
from dspy import lm15
from dspy.utils.exceptions import AdapterParseError

from conftest import LLMServer
from custom_lm import DispatcherLM
from question_optimizer import rehearsal
from question_optimizer.dispatcher import LLMDispatcher
from question_optimizer.errors import StopRun
from question_optimizer.gates import GateFailure
from question_optimizer.programs.judge import (
    CRITERIA,
    NO_REFERENCE,
    Judgement,
    JudgeQuestion,
    LLMMetric,
    NoAnswer,
    QuestionJudge,
    Unjudged,
    answered,
)
from question_optimizer.providers import LLMClientConfig
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


ADVICE = (
    "names its subject. Scored low: specific 3 of 5 (wanted: would find this chunk rather than its "
    "neighbours). As an example of the level, for the same chunk a person chose: "
    "'What ends the growth of the WAL file?'."
)


@pytest.mark.parametrize("trace", [None, []])
def test_for_a_named_predictor_it_gives_score_and_feedback(trace: Any) -> None:
    llm_metric = LLMMetric(QuestionJudge(), ScriptedLM(GOOD))
    told = llm_metric(GOLD, ASKED, trace, "generator", [("generator", {}, {})])
    assert isinstance(told, dspy.Prediction)
    assert (told.score, told.feedback) == (0.8, ADVICE)
    by_name = llm_metric(GOLD, ASKED, trace=trace, pred_name="generator", pred_trace=None)
    assert (by_name.score, by_name.feedback) == (0.8, ADVICE)


def test_without_a_chosen_question_the_judge_is_told_so() -> None:
    lm = ScriptedLM(GOOD)
    LLMMetric(QuestionJudge(), lm)(dspy.Example(**{**GOLD, "gold_question": ""}), ASKED)
    (message,) = lm.sent()
    assert f"[[ ## reference_question ## ]]\n{NO_REFERENCE}\n" in message


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
    told = llm_metric(GOLD, prediction, None, "generator").feedback
    assert told.startswith("No question was written. As an example of the level")
    assert [failure.gate for failure in llm_metric.judge(GOLD, prediction).gates] == ["empty"]
    assert lm.requests == []
    assert llm_metric.failures == []


# ---------------------------------------------------------------------- gates


def served(server: LLMServer, **more: Any) -> LLMDispatcher:
    """A dispatcher over the server, as a phase has it."""
    account = LLMClientConfig(
        "local", "m", base_url=f"{server.url}/v1", api_key="sk-local", concurrency=4, **more
    )
    return LLMDispatcher([account])


@pytest.mark.parametrize(
    ("query", "query_format", "gate"),
    [
        ("What does this section say about the WAL file?", None, "refers_outside"),
        ("Sure! Here is a question: when does it end?", None, "preamble"),
        ("growth of the WAL file", "formal question", "format"),
        ("", None, "empty"),
    ],
)
def test_what_a_gate_refuses_never_reaches_the_judge(
    llm_server: Callable[..., LLMServer], query: str, query_format: str | None, gate: str
) -> None:
    server = llm_server(rehearsal.answer)
    with served(server) as dispatcher:
        llm_metric = LLMMetric(QuestionJudge(), DispatcherLM(dispatcher))
        prediction = dspy.Prediction(query=query, query_format=query_format)
        judged = llm_metric.judge(GOLD, prediction)
        assert isinstance(judged, Judgement)
        assert (judged.value, judged.criteria) == (0.0, {})
        assert gate in [failure.gate for failure in judged.gates]
        assert llm_metric.gated[gate] == 1
        assert not llm_metric.passes(judged)
        assert server.requests == []
        assert isinstance(llm_metric.judge(GOLD, ASKED), Judgement)
        assert len(server.requests) == 1
    assert (llm_metric.judgements, llm_metric.failures) == (2, [])


def test_a_refusal_tells_an_instruction_writer_which_gate_and_why() -> None:
    llm_metric = LLMMetric(QuestionJudge(), ScriptedLM(GOOD))
    prediction = dspy.Prediction(query="What does this section say about the WAL file?")
    [failure] = llm_metric.judge(GOLD, prediction).gates
    assert isinstance(failure, GateFailure)
    told = llm_metric(GOLD, prediction, None, "generator", None)
    assert told.score == 0.0
    assert told.feedback.startswith(
        "Refused by a fixed check before any judge saw it (refers_outside: "
    )
    assert failure.reason in told.feedback
    assert told.feedback.endswith("a person chose: 'What ends the growth of the WAL file?'.")


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
    assert told.feedback == f"This item could not be judged ({UNREAD}). Ignore it; " + (
        "its score is made up."
    )


def test_an_unjudged_question_counts_as_the_stand_in_and_not_as_bad() -> None:
    llm_metric = LLMMetric(QuestionJudge(), ScriptedLM(UNREADABLE))
    assert float(llm_metric(GOLD, ASKED)) == 0.0
    llm_metric.stand_in = 0.625
    unjudged = llm_metric(GOLD, ASKED)
    assert isinstance(unjudged, Unjudged)
    assert (float(unjudged), unjudged.reason) == (0.625, UNREAD)
    told = llm_metric(GOLD, ASKED, None, "generator", None)
    assert told.score == 0.625
    assert isinstance(told.score, Unjudged)


def test_a_prediction_that_failed_is_unjudged_with_its_error() -> None:
    lm = ScriptedLM(GOOD)
    llm_metric = LLMMetric(QuestionJudge(), lm)
    judged = llm_metric(GOLD, dspy.Prediction(query=None, error="the writer was out"))
    assert isinstance(judged, Unjudged)
    assert judged.reason == "the writer was out"
    assert llm_metric.failures == ["the writer was out"]
    assert lm.requests == []


# ---------------------------------------------------------------------- fresh attempts


def test_answers_that_are_only_replayed_do_not_use_up_attempts(
    llm_server: Callable[..., LLMServer],
) -> None:
    """A run that failed on three unreadable answers asks anew when it is run again."""
    healthy = False
    server = llm_server(lambda m: rehearsal.answer(m) if healthy else UNREADABLE)
    with served(server) as dispatcher:
        lm = DispatcherLM(dispatcher)  # remembers answers, good and bad
        llm_metric = LLMMetric(QuestionJudge(), lm)
        assert isinstance(llm_metric.judge(GOLD, ASKED), Unjudged)
        asked = len(server.requests)
        healthy = True
        assert isinstance(llm_metric.judge(GOLD, ASKED), Judgement)
        assert len(server.requests) == asked + 1
        assert isinstance(llm_metric.judge(GOLD, ASKED), Judgement)
        assert len(server.requests) == asked + 1


def test_no_answer_says_whether_it_was_unreadable_or_never_came() -> None:
    def ask(error: Exception) -> Callable[[dict[str, Any]], None]:
        def fail(config: dict[str, Any]) -> None:
            raise error

        return fail

    with pytest.raises(NoAnswer, match="OSError: no route") as unreached:
        answered(ask(OSError("no route")))
    assert unreached.value.unreadable is False
    with pytest.raises(NoAnswer, match=UNREAD) as unread:
        answered(ask(AdapterParseError("Chat", JudgeQuestion, "x")))
    assert unread.value.unreadable is True


@pytest.mark.parametrize(
    "again", [copy.copy, copy.deepcopy, lambda u: pickle.loads(pickle.dumps(u))]
)
def test_unjudged_keeps_its_reason_when_copied(again) -> None:
    copied = again(Unjudged("the judge was out", 0.5))
    assert isinstance(copied, Unjudged)
    assert (copied.reason, float(copied)) == ("the judge was out", 0.5)
