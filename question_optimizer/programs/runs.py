"""What optimisation and evaluation share in running a program over gold items."""

from __future__ import annotations

import contextlib
import contextvars
import io
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import dspy
from dspy.utils.exceptions import AdapterParseError

from question_optimizer import files
from question_optimizer.dispatcher import LLMDispatcher
from question_optimizer.errors import reason_of
from question_optimizer.hostile_text import promptable
from question_optimizer.programs.judge import LLMMetric, Unjudged
from question_optimizer.records import GoldItem
from question_optimizer.usage import metered

T = TypeVar("T")
_MOST_THREADS = 64
_CALLS_PER_ITEM = 3  # analyse, write, judge


def examples_of(items: Sequence[GoldItem]) -> list[dspy.Example]:
    """DSPy examples with the pipeline's inputs, the gold question, and the id that knows the item.

    Texts are made inert here, because DSPy copies an example's inputs into demonstrations.
    """
    return [
        dspy.Example(
            chunk_text=promptable(item.chunk_text),
            persona_description=promptable(item.persona_description),
            gold_question=item.gold_question,
            chunk_id=str(item.chunk_id),
        ).with_inputs("chunk_text", "persona_description")
        for item in items
    ]


def threads_for(dispatcher: LLMDispatcher) -> int:
    """How many items to run at once: what the accounts can serve, and no more.

    `dspy.Evaluate` submits an item again that takes longer than 120 s, so an item's calls must not
    queue longer than about a minute.
    """
    slots = min(dispatcher.slots(role) for role in ("student", "judge"))
    in_a_minute = min(dispatcher.calls_per_minute(role) for role in ("student", "judge"))
    return int(max(1, min(_MOST_THREADS, slots, in_a_minute / _CALLS_PER_ITEM)))


class Arm(dspy.Module):
    """One program under evaluation: runs it and keeps a row an item, failures with their reason.

    `dspy.Evaluate` turns an exception into a score of zero and an empty prediction. Here it
    becomes a row without a score.
    """

    def __init__(self, name: str, program: dspy.Module, llm_metric: LLMMetric):
        super().__init__()
        self.name = name
        self.program = program
        self.rows: dict[tuple[str, str], dict[str, Any]] = {}
        self._llm_metric = llm_metric

    def forward(self, **inputs: str) -> dspy.Prediction:
        """The program's prediction with `usage`; with `error` and no `query` where it failed."""
        with metered() as meter:
            prediction = _attempted(self.program, inputs)
        return dspy.Prediction(**{**prediction, "usage": meter.total})

    def metric(self, gold: dspy.Example, prediction: dspy.Prediction) -> float:
        """Score for DSPy's own mean; what counts is the row it leaves in `rows`."""
        usage = prediction.usage
        row: dict[str, Any] = {
            "item": files.digest([gold.chunk_id, gold.gold_question])[:16],
            "arm": self.name,
            "chunk_id": gold.chunk_id,
            "score": None,
            "criteria": {},
            "feedback": "",
            "question": prediction.get("query"),
            "query_type": prediction.get("query_type"),
            "query_format": prediction.get("query_format"),
            "gold_question": gold.gold_question,
            "chunk_text": gold.chunk_text,
            "tokens": usage.input_tokens + usage.output_tokens,
            "latency_seconds": round(usage.seconds, 3),
            "cost": round(usage.cost, 8),
            "error": "",
        }
        self.rows[gold.chunk_id, gold.gold_question] = row
        judged = self._llm_metric.judge(gold, prediction)
        if isinstance(judged, Unjudged):
            row["error"] = judged.reason
            return 0.0
        row |= {"score": judged.value, "criteria": judged.criteria, "feedback": judged.feedback}
        return judged.value


def recording_failures(program: type[dspy.Module]) -> type[dspy.Module]:
    """`program` with failed runs as predictions that carry their `error`.

    Inside an optimiser an exception becomes a score of zero. A prediction with an `error` is
    `Unjudged` by `LLMMetric` instead, and can be left out.
    """

    class Recording(program):  # type: ignore[misc,valid-type]
        def forward(self, **inputs: str) -> dspy.Prediction:
            return _attempted(super().forward, inputs)

    return Recording


def _attempted(run: Callable[..., dspy.Prediction], inputs: dict[str, str]) -> dspy.Prediction:
    try:
        return run(**inputs)
    except AdapterParseError:
        return dspy.Prediction(query=None, error="the answer could not be read")
    except Exception as error:  # this item's failure is data, not the run's end
        return dspy.Prediction(query=None, error=reason_of(error))


def run_quietly(work: Callable[[], T]) -> T:
    """Run DSPy's blocking work in a thread of its own, and return or raise what it does.

    Outside the main thread DSPy leaves Ctrl-C to us. Its prints, log lines and progress bars, a
    hundred lines a run, are swallowed: they would land on stdout, which is for results, and break
    into our progress line. What fails is recorded where it fails, and exceptions pass.
    """
    sink = io.StringIO()
    context = contextvars.copy_context()  # dspy.context(...) around the call holds inside it
    with (
        contextlib.redirect_stdout(sink),
        contextlib.redirect_stderr(sink),
        ThreadPoolExecutor(1, thread_name_prefix="dspy") as pool,
    ):
        return pool.submit(context.run, work).result()
