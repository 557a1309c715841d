"""A run's questions, its summary and its page, made from the generator's ledger."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from question_optimizer.errors import INTERRUPTED
from question_optimizer.generation.document_names import document_names
from question_optimizer.generation.examples import examples
from question_optimizer.generation.outcome import QUESTIONS, REPORT, SUMMARY, GenerationSummary
from question_optimizer.generation.questions_file import write_questions
from question_optimizer.generation.quotas import Cell
from question_optimizer.generation.round_trip import BANDS, TRAINING
from question_optimizer.generation.summary import Run, summarise, told_before, write_summary
from question_optimizer.programs.generation_run import GenerationRun
from question_optimizer.reports.generation import write_generation_report

_AT_ONCE = 20_000  # questions that are told of while somebody waits for the end


def is_due(data_dir: Path, fingerprint: str, summary: GenerationSummary, *, slots: int) -> bool:
    """Whether there is something to tell anew of so many questions. Where nothing was done,
    `summary.report` gets what stands there already."""
    if not slots or (summary.exit_code == INTERRUPTED and slots > _AT_ONCE):
        return False
    if summary.idle:
        summary.report = told_before(data_dir / SUMMARY, fingerprint)
    return not summary.report


def script_command(collection: str, path: Path | None, url: str | None, data_dir: Path) -> str:
    """How a person starts the script on a collection, in a folder or on a server."""
    where = ["--qdrant-path", str(path)] if path else ["--qdrant-url", str(url)]
    rest = ["--collection", collection, "--data-dir", str(data_dir)]
    return shlex.join(["python", "optimized_question_generator.py", *where, *rest])


def write_report(
    data_dir: Path,
    session: GenerationRun,
    summary: GenerationSummary,
    *,
    targets: Mapping[Cell, float] | None,
    settings: Mapping[str, Any],
    started: float,
    wall: Callable[[], float],
    accounts: Sequence[Mapping[str, Any]],
    seed: int,
    command: str,
) -> None:
    """Write all three, and put what the summary file holds into `summary.report`.

    `started` is when the run did, by `wall`. `command` is the script's, with what names the
    collection; '' inside an application.
    """
    ledger, texts_of = session.ledger, session.backlog.texts_of
    write_questions(
        data_dir / QUESTIONS, ledger, policy=session.policy, rehearsal=summary.rehearsal
    )
    names_of = partial(document_names, session.store, text_key=ledger.configuration.text_key)
    searched = session.round_trip_figures()
    band = BANDS.get(session.policy, TRAINING)
    run = Run(
        name=summary.run,
        rehearsal=summary.rehearsal,
        points=summary.points or None,  # a run that ended before it counted them
        already_there=summary.already_there,
        kept=summary.kept,
        without_text=summary.without_text,
        beyond_limit=summary.beyond_limit,
        **settings,
        started=datetime.fromtimestamp(started, UTC).isoformat(timespec="seconds"),
        seconds=round(wall() - started, 1),
        made=summary.generated,
        exit_code=summary.exit_code,
        reason=summary.stopped,
        until=summary.until.isoformat() if summary.until else "",
        round_trip=searched,
        max_rank=searched["within"] if searched else band.max_rank,
        accounts=accounts,
        undo=f"{command} --undo {summary.run}" if command and summary.written else "",
    )
    summary.report = summarise(
        ledger,
        policy=session.policy,
        targets=targets,
        run=run,
        texts_of=texts_of,
        names_of=names_of,
        asks_again=lambda slot: (
            slot.slot < settings["per_chunk"] and session.backlog.asks_again(slot)
        ),
        seed=seed,
    )
    summary.rejected = summary.report["slots"]["rejected"]
    write_summary(data_dir / SUMMARY, summary.report)
    write_generation_report(
        summary.report,
        data_dir / REPORT,
        examples=examples(ledger, texts_of=texts_of, names_of=names_of, seed=seed),
    )
