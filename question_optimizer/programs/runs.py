"""What optimisation and evaluation share in running a program over gold items."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence

import dspy

from question_optimizer.dispatcher import LLMDispatcher
from question_optimizer.hostile_text import promptable
from question_optimizer.records import GoldItem

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


@contextlib.contextmanager
def quiet_dspy() -> Iterator[None]:
    """Swallow DSPy's prints, log lines and progress bars, a hundred lines a run.

    They would land on stdout, which is for results, and break into our progress line. What fails
    is recorded where it fails, and exceptions pass.
    """
    sink = io.StringIO()
    with contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
        yield
