"""What optimisation and evaluation share in running a program over gold items."""

from __future__ import annotations

import contextlib
import contextvars
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import Any, TypeVar

import dspy
from dspy.utils.exceptions import AdapterParseError

from question_optimizer import files
from question_optimizer.dispatcher import LLMDispatcher
from question_optimizer.errors import reason_of
from question_optimizer.hostile_text import promptable
from question_optimizer.pinning import on_item
from question_optimizer.records import GoldItem
from question_optimizer.usage import metered

S = TypeVar("S")
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


def chunk_digest(text: str) -> str:
    """What a chunk's text is known by in a program's meta file: did the program see it?"""
    return files.digest(promptable(text))[:16]


def item_id(inputs: Mapping[str, Any]) -> str:
    """What an item's model is chosen by: the program's inputs, which every arm gets alike."""
    return files.digest(sorted((name, str(value)) for name, value in inputs.items()))


def pinned(metric: Callable[..., T]) -> Callable[..., T]:
    """`metric`, with all calls for one example going to the same of the judge's models."""

    def judged(
        gold: dspy.Example,
        pred: Any,
        trace: Any = None,
        pred_name: str | None = None,
        pred_trace: Any = None,
    ) -> T:
        with on_item(item_id(gold.inputs().toDict())):
            return metric(gold, pred, trace, pred_name, pred_trace)

    return judged


def threads_for(dispatcher: LLMDispatcher, roles: Iterable[Any] = ("student", "judge")) -> int:
    """How many items to run at once: what the accounts can serve, and no more.

    `dspy.Evaluate` submits an item again that takes longer than 120 s, so an item's calls must not
    queue longer than about a minute.
    """
    roles = list(roles)
    slots = min(dispatcher.slots(role) for role in roles)
    in_a_minute = min(dispatcher.calls_per_minute(role) for role in roles)
    return int(max(1, min(_MOST_THREADS, slots, in_a_minute / _CALLS_PER_ITEM)))


def in_threads(work: Callable[[S], T], items: Sequence[S], *, threads: int) -> list[T]:
    """[work(item) for item in items], several at once; DSPy's settings hold inside.

    The first exception ends it: what has not begun does not, and the exception is raised.
    """
    pool = ThreadPoolExecutor(threads, thread_name_prefix="items")
    try:
        futures = [pool.submit(contextvars.copy_context().run, work, item) for item in items]
        wait(futures, return_when=FIRST_EXCEPTION)
        failed = next((f for f in futures if f.done() and f.exception() is not None), None)
        if failed is not None:
            failed.result()
        return [future.result() for future in futures]
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def ask_program(program: dspy.Module, item: GoldItem) -> tuple[dspy.Prediction, Any]:
    """(what `program` writes for the item, the usage of the calls). See `recording_failures`."""
    [example] = examples_of([item])
    inputs = example.inputs().toDict()
    with on_item(item_id(inputs)), metered() as meter:
        return _attempted(program, inputs), meter


def recording_failures(program: type[dspy.Module]) -> type[dspy.Module]:
    """`program` with failed runs as predictions, and each item's calls on one model.

    Inside an optimiser an exception becomes a score of zero. A call that failed becomes a
    prediction with an `error`, which `LLMMetric` takes for `Unjudged`: an outage is nobody's fault.
    An answer that cannot be read is the prompt's, and a prediction without a `query`.
    """

    class Recording(program):  # type: ignore[misc,valid-type]
        def forward(self, **inputs: Any) -> dspy.Prediction:
            with on_item(item_id(inputs)):
                return _attempted(super().forward, inputs)

    # MIPROv2 and SIMBA show the program's source to the model that is to improve it.
    Recording.__name__ = Recording.__qualname__ = program.__name__
    Recording.__module__ = program.__module__
    return Recording


def _attempted(run: Callable[..., dspy.Prediction], inputs: Mapping[str, Any]) -> dspy.Prediction:
    try:
        return run(**inputs)
    except AdapterParseError:
        return dspy.Prediction(query=None)
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
