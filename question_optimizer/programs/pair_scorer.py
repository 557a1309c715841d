"""The judge as a program to be optimised: it is to tell the better question of a pair."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import dspy

from question_optimizer.pinning import on_item
from question_optimizer.programs.judge import (
    Judgement,
    NoAnswer,
    QuestionJudge,
    Unjudged,
    answered,
    judgement_of,
)
from question_optimizer.programs.judge_check import JudgePair
from question_optimizer.programs.runs import item_id

CLEAR_GAP = 0.25  # of the score: one level on every criterion


class PairScorer(dspy.Module):
    """Scores both questions of a pair, each by itself: what DSPy optimises to optimise the judge.

    `judge_of` takes the tuned judge out again.
    """

    def __init__(self, judge: QuestionJudge | None = None):
        super().__init__()
        self.question_judge = judge or QuestionJudge()

    def forward(
        self, chunk_text: str, persona_description: str, better: str, worse: str
    ) -> dspy.Prediction:
        """Prediction with the two scores, `better` and `worse`, and `reasons`.

        With `error` instead where a call failed, with nothing where an answer could not be read.
        The judge sees one question at a time and no reference, so it cannot know which is which.
        """
        told = {"chunk_text": chunk_text, "persona_description": persona_description}

        def ask(question: str, config: dict[str, Any]) -> Judgement:
            verdict = self.question_judge(
                **told, reference_question="", question=question, config=config
            )
            return judgement_of(verdict)

        try:
            with on_item(item_id(told)):  # the same model for both
                first, second = (answered(partial(ask, text)) for text in (better, worse))
        except NoAnswer as unread:
            return dspy.Prediction(error="" if unread.unreadable else str(unread))
        return dspy.Prediction(
            better=first.value, worse=second.value, reasons=[first.feedback, second.feedback]
        )


def judge_of(scorer: PairScorer) -> QuestionJudge:
    """A judge with the scorer's instructions and demonstrations, and no LM."""
    tuned, judge = scorer.question_judge.judge, QuestionJudge()
    judge.judge.signature, judge.judge.demos = tuned.signature, list(tuned.demos)
    return judge


def judge_examples(pairs: Sequence[JudgePair]) -> list[dspy.Example]:
    """The pairs that reach the judge as examples for optimising `PairScorer`."""
    return [
        dspy.Example(
            chunk_text=pair.item.chunk_text,
            persona_description=pair.item.persona_description,
            better=pair.better,
            worse=pair.worse,
            flaw=pair.flaw,
            chunk_id=pair.chunk,
        ).with_inputs("chunk_text", "persona_description", "better", "worse")
        for pair in pairs
        if not pair.gated
    ]


def judge_metric(
    example: dspy.Example,
    pred: dspy.Prediction | None,
    trace: Any = None,
    pred_name: str | None = None,
    pred_trace: Any = None,
) -> float | bool | dspy.Prediction:
    """How far apart, and on which side, `PairScorer` put the two questions of a pair.

    1 where the better one leads by `CLEAR_GAP` or more, ½ where both are equal, 0 where the worse
    one leads by as much, straight lines between. When DSPy bootstraps, whether it is 1. For GEPA
    with feedback. Answers that cannot be read are the instruction's fault and 0; where a call
    failed the pair is `Unjudged` at ½. Neither makes a demonstration.
    """
    score = _pair_score(pred)
    if pred_name is not None:
        return dspy.Prediction(score=score, feedback=_told(example, pred, score))
    if trace is not None:
        return not isinstance(score, Unjudged) and score >= 1
    return score


class PairMetric:
    """`judge_metric` that counts, as `LLMMetric` does: `judgements`, and `failures` with reasons.

    `judged` is called for each pair, for progress.
    """

    def __init__(self, judged: Callable[[], None] = lambda: None):
        self.judgements = 0
        self.failures: list[str] = []
        self._judged = judged
        self._lock = threading.Lock()

    def __call__(
        self,
        example: dspy.Example,
        pred: dspy.Prediction | None,
        trace: Any = None,
        pred_name: str | None = None,
        pred_trace: Any = None,
    ) -> float | bool | dspy.Prediction:
        self._judged()
        with self._lock:
            self.judgements += 1
            if isinstance(score := _pair_score(pred), Unjudged):
                self.failures.append(score.reason)
        return judge_metric(example, pred, trace, pred_name, pred_trace)


def _pair_score(pred: dspy.Prediction | None) -> float:
    if error := getattr(pred, "error", ""):
        return Unjudged(error, 0.5)
    if pred is None or getattr(pred, "better", None) is None:
        return 0.0
    gap = (pred.better - pred.worse) / CLEAR_GAP
    return round(0.5 + max(-1.0, min(1.0, gap)) / 2, 6)


def _told(example: dspy.Example, pred: dspy.Prediction | None, score: float) -> str:
    if isinstance(score, Unjudged):
        return f"This pair could not be judged ({score.reason}). Ignore it; its score is made up."
    if pred is None or getattr(pred, "better", None) is None:
        return "The answer could not be read: each field must be given, in the form asked for."
    sides = "rightly" if score > 0.5 else "both the same" if score == 0.5 else "the wrong way round"
    advice = "" if score >= 1 else " The first should score clearly more."
    scores = f"{pred.better:.2f} and {pred.worse:.2f}"
    return (
        f"Of {example.better!r} and {example.worse!r} the first is better; of the second: "
        f"{example.flaw}. They were scored {scores}, {sides}.{advice} "
        f"Reasons given: {pred.reasons[0]} / {pred.reasons[1]}"
    )
