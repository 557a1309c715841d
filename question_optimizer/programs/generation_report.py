"""The summary and the page of a run of the generator, made from its ledger."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from question_optimizer.generation.examples import examples
from question_optimizer.generation.outcome import REPORT, SUMMARY, GenerationSummary
from question_optimizer.generation.quotas import Cell, planned
from question_optimizer.generation.summary import Run, summarise, write_summary
from question_optimizer.programs.generation_run import GenerationRun
from question_optimizer.reports.generation import write_generation_report


def write_report(
    data_dir: Path,
    session: GenerationRun,
    summary: GenerationSummary,
    *,
    targets: Mapping[Cell, float] | None,
    settings: Mapping[str, Any],
    started: float,
    seconds: float,
    accounts: Sequence[Mapping[str, Any]],
    seed: int,
    command: str,
) -> None:
    """Write both, and put what the summary file holds into `summary.report`.

    `command` is the script's, with what names the collection; '' inside an application.
    """
    ledger, texts_of = session.ledger, session.backlog.texts_of
    run = Run(
        name=summary.run,
        rehearsal=summary.rehearsal,
        points=summary.points,
        already_there=summary.already_there,
        kept=summary.kept,
        without_text=summary.without_text,
        beyond_limit=summary.beyond_limit,
        **settings,
        started=datetime.fromtimestamp(started, UTC).isoformat(timespec="seconds"),
        seconds=round(seconds, 1),
        made=summary.generated,
        exit_code=summary.exit_code,
        reason=summary.stopped,
        until=summary.until.isoformat() if summary.until else "",
        round_trip=session.round_trip_figures(),
        accounts=accounts,
        undo=f"python optimized_question_generator.py --undo {summary.run}"
        if summary.written
        else "",
    )
    summary.report = summarise(
        ledger,
        policy=session.policy,
        targets=planned(targets, ledger.counts().total()) if targets else None,
        run=run,
        texts_of=texts_of,
        seed=seed,
    )
    write_summary(data_dir / SUMMARY, summary.report)
    write_generation_report(
        summary.report,
        data_dir / REPORT,
        examples=examples(ledger, texts_of=texts_of, seed=seed),
    )
