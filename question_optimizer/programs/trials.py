"""How far a search is: counted from outside, as DSPy tells it in print only."""

from __future__ import annotations

import threading
from typing import Any

import dspy
from dspy.utils.callback import BaseCallback


class Trials(BaseCallback):
    """Counts the evaluations over a whole side of the split, and keeps the best mean.

    A search's own minibatches are left out: a mean over three items is no score. SIMBA evaluates
    without `dspy.Evaluate`, so of that only what `say` is told shows.
    """

    def __init__(self, *sides: int):
        self._sides = set(sides)  # items of each
        self._trials = 0
        self._best: float | None = None
        self._stage = ""
        self.unread = 0  # of the teacher's answers; GEPA and SIMBA pass over them without a word
        self._lock = threading.Lock()

    def say(self, stage: str, score: float | None = None) -> None:
        """What is being done now, and the score of a program that was looked at before."""
        with self._lock:
            self._stage = stage
            if score is not None:
                self._best = score if self._best is None else max(self._best, score)

    @property
    def line(self) -> str:
        """ "searching, trial 7, best 0.712"."""
        trial = f"trial {self._trials}" if self._trials else ""
        best = "" if self._best is None else f"best {self._best:.3f}"
        return ", ".join(filter(None, (self._stage, trial, best)))

    def on_adapter_parse_end(
        self, call_id: str, outputs: Any, exception: Exception | None = None
    ) -> None:
        if exception is not None and str(getattr(dspy.settings.lm, "model", "")).endswith(
            "teacher"
        ):
            with self._lock:
                self.unread += 1

    def on_evaluate_end(
        self, call_id: str, outputs: Any, exception: Exception | None = None
    ) -> None:
        results = getattr(outputs, "results", None)
        if results is None or len(results) not in self._sides:
            return
        mean = sum(float(score) for _, _, score in results) / len(results)
        with self._lock:
            self._trials += 1
            self._best = mean if self._best is None else max(self._best, mean)
