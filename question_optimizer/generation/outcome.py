"""What a call of the generator comes to, while it runs and when it has ended."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from question_optimizer.errors import StopRun, UserError
from question_optimizer.hostile_text import one_line

if TYPE_CHECKING:
    from question_optimizer.generation.backlog import Backlog, Found
    from question_optimizer.generation.ledger_configurations import Known
    from question_optimizer.generation.ledger_records import Configuration, Result
    from question_optimizer.generation.settling import Settled
    from question_optimizer.generation.write_back import Written

# The files of a run, in the data directory.
LEDGER = "generation.sqlite"
QUESTIONS = "generated_questions.jsonl"
SUMMARY = "generation_summary.json"
REPORT = "generation_report.html"
_PROBLEMS_SHOWN = 10
CHECKING = "checking against the corpus"
_SHORT = 8  # hex digits of a fingerprint or a pipeline's hash
_MODELS = 60  # characters


@dataclass
class GenerationSummary:
    """What one call of `generate` found and did. Counts are of chunks, where they do not say so."""

    run: str = ""  # the name under which its writes can be undone
    points: int = 0
    already_there: int = 0  # had somebody else's generated_query before
    kept: int = 0  # made under another configuration, and left as they are
    complete: int = 0  # made by earlier runs
    resumed: int = 0  # made by an earlier, interrupted run, and not written by it
    undone: int = 0  # made by earlier runs, and taken out of the collection by a person
    without_text: int = 0
    beyond_limit: int = 0
    to_do: int = 0  # questions this run set out to make, as far as is known by now
    again: int = 0  # of them, asked for once more, as the corpus-wide checks refused the first
    left: int = 0  # of them, not made yet
    generated: int = 0  # questions made and not refused
    refused: int = 0  # questions refused on the way
    rejected: int = 0  # questions given up, of this run and those before
    failed: int = 0  # questions
    failed_before: int = 0  # questions, by earlier runs, not tried again
    checked: int = 0  # questions held against the corpus
    written: int = 0
    missing: int = 0  # gone from the collection before their question could be written
    foreign: int = 0  # got somebody else's question before ours could be written, and keep it
    calls: int = 0
    tokens: int = 0
    cost: float = 0.0
    rehearsal: bool = False
    stopped: str = ""  # why the run ended early, '' if it did not
    until: datetime | None = None  # when it can go on, where that is known
    doing: str = ""  # what everything waits for while it runs, beside the models
    slept: float = 0.0  # seconds spent waiting for a quota
    exit_code: int = 0
    models: list[str] = field(default_factory=list)
    problems: dict[str, str] = field(default_factory=dict)  # chunk id -> reason, the first few
    # What generation_summary.json holds.
    report: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def idle(self) -> bool:
        """Whether nothing was asked, checked or written, so that nothing is to be told anew."""
        return not (self.calls or self.failed or self.checked or self.written or self.stopped)

    def found(self, found: Found) -> None:
        """What the collection holds, as far as it was looked at."""
        self.points, self.already_there, self.kept = found.points, found.already_there, found.kept
        self.complete, self.resumed, self.undone = found.complete, found.resumed, found.undone
        self.without_text, self.beyond_limit = found.without_text, found.beyond_limit
        self.to_do, self.again = found.to_do + found.ahead, found.again
        self.failed_before = found.failed

    def spent(self, result: Result, before: Result) -> None:
        """A slot has come so far, from what it was `before`."""
        self.calls += result.calls - before.calls
        self.tokens += result.tokens - before.tokens
        self.cost += result.cost - before.cost
        asked = result.attempts - before.attempts
        self.refused += max(0, asked - (result.state != "rejected"))

    def made(self, result: Result) -> None:
        """A slot came out of the engine."""
        self.generated += result.state == "done"
        self.failed += result.state == "failed"
        if result.state == "failed" and len(self.problems) < _PROBLEMS_SHOWN:
            self.problems[str(result.chunk_id)] = result.reason

    def settled(self, settled: Settled) -> None:
        """Finished questions were held against the corpus."""
        self.checked += settled.checked
        self.refused += settled.refused.total()
        self.generated = max(0, self.generated - settled.fresh)

    def indexed(self, chunks: int, of: int) -> None:
        """So many chunks are in the index of the corpus that questions are held against."""
        read = f"reading and embedding {of:,} chunks, {chunks:,} done"
        self.doing = CHECKING if chunks == of else read

    def wrote(self, written: Written) -> None:
        """Questions went into the collection."""
        self.written += written.changed
        self.missing += len(written.missing)
        self.foreign = max(self.foreign, written.foreign)  # they wait, and are met at each writing

    def ended(self, why: StopRun | UserError) -> None:
        """The run could not go on."""
        self.stopped, self.exit_code = str(why), why.exit_code
        self.until = getattr(why, "until", None)


def described(known: Known) -> str:
    """A configuration in a line for people: its short fingerprint, and what it stands for."""
    its = known.configuration
    models = one_line(", ".join(its.models))[:_MODELS] or "unknown models"
    noun = "question" if known.questions == 1 else "questions"
    return (
        f"{its.fingerprint[:_SHORT]} ({known.questions:,} {noun}, pipeline "
        f"{one_line(its.pipeline)[:_SHORT]}, {models}, last used {to_the_minute(known.seen_at)})"
    )


def to_the_minute(at: str) -> str:
    """A time of the ledger, ISO 8601 in UTC, as people write it: 2026-11-22 01:15 UTC."""
    return f"{at[:16].replace('T', ' ')} UTC"


class ConfigurationChanged(UserError):
    """Pipeline, personas or models are others than those that chunks were done under."""

    def __init__(self, now: Configuration, others: Sequence[Configuration], chunks: int):
        latest = others[0]
        self.chunks = chunks
        parts = [
            name
            for name in ("pipeline", "personas", "models", "text_key")
            if getattr(now, name) != getattr(latest, name)
        ]
        what = " and ".join(parts).replace("text_key", "text key")
        super().__init__(
            f"{what} changed since {self.chunks:,} chunks of {now.collection!r} got their "
            f"questions; --keep leaves those and makes the rest, --redo makes all {self.chunks:,} "
            "again"
        )


class Teller:
    """Carries what a run comes to into its summary and to whoever shows progress."""

    def __init__(
        self, summary: GenerationSummary, backlog: Backlog, progress: Callable[[str], None]
    ):
        self._summary, self._backlog, self._progress = summary, backlog, progress
        self._made = self._made_before = self._again_before = self._failed_before = 0

    def begins(self) -> None:
        """A pass over the collection; what earlier ones made is not handed out again."""
        planned = self._summary.to_do - self._summary.again
        self._again_before = max(0, self._made - planned)
        self._made_before, self._failed_before = self._made, self._summary.failed

    def spent(self, result: Result, before: Result) -> None:
        self._summary.spent(result, before)

    def made(self, result: Result) -> None:
        self._made += 1
        self.look()
        self._summary.made(result)
        self._progress(result.state)

    def doing(self, what: str) -> None:
        """What keeps everything waiting just now; '' when it is over."""
        self._summary.doing = what

    def settled(self, settled: Settled) -> None:
        self.look()
        self._summary.settled(settled)

    def written(self, written: Written) -> None:
        self._summary.wrote(written)

    def look(self) -> None:
        """Bring what was found up to date; a second pass meets the failures of the first."""
        self._summary.found(self._backlog.found)
        self._summary.to_do += self._made_before
        self._summary.again += self._again_before
        self._summary.left = max(0, self._summary.to_do - self._made)
        self._summary.failed_before = max(0, self._summary.failed_before - self._failed_before)
