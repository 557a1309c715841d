"""The sample as tasks for a browser tool, and the answers that its export brings back."""

from __future__ import annotations

import sys

from question_optimizer.annotation.gold_file import GoldFile
from question_optimizer.annotation.handover import take_answers, tasks_of, write_tasks
from question_optimizer.annotation.preparation import Preparation, stored
from question_optimizer.annotation.store import AnnotationStore
from question_optimizer.annotation.wording import rehearsal_note
from question_optimizer.cli import finish_on_interrupt
from question_optimizer.errors import FAILED_ITEMS
from question_optimizer.programs.annotation_desk import Desk, alone, prepared
from question_optimizer.progress import Progress


def export_tasks(desk: Desk, store: AnnotationStore, gold_file: GoldFile) -> int:
    """Write the sample as tasks for a browser tool, with what sets the tool up beside it.

    Personas and suggestions that are missing are made first; a chunk whose suggestions fail goes
    without.
    """
    args, target = desk.args, desk.args.export
    with (
        prepared(desk, store) as (preparation, dispatcher),
        finish_on_interrupt(dispatcher),
        Progress("tasks", len(desk.chunks), spend=lambda: dispatcher.spend) as progress,
    ):
        failed = _made_ready(desk, preparation, progress)
        tasks = tasks_of(
            store,
            desk.chunks,
            preparation.prepared,
            seed=desk.settings.seed,
            blind_test=args.blind_test,
        )
    tool = args.format or "label-studio"
    set_up = write_tasks(target, tasks, tool, desk.skip_reasons)
    by = rehearsal_note(task.suggested_by for task in tasks.values())
    print(f"the {tool} project is set up by {set_up}", file=sys.stderr)
    print(f"{len(tasks)} tasks{by} -> {target}")
    return FAILED_ITEMS if failed else 0


def _made_ready(desk: Desk, preparation: Preparation, progress: Progress) -> int:
    """Wait for every chunk's suggestions; for how many they failed."""
    failed = 0
    preparation.look_ahead(desk.chunks)
    for chunk in desk.chunks:
        there = preparation.wait(chunk, None)
        if there.problem and preparation.ended:
            raise preparation.ended
        failed += bool(there.problem)
        progress.advance(failed=bool(there.problem))
    return failed


def import_answers(desk: Desk, store: AnnotationStore, gold_file: GoldFile) -> int:
    """Record the answers of a browser tool's export, each under its annotator's name."""
    personas = {persona.id: persona for persona in desk.personas}
    tasks = tasks_of(
        store,
        desk.chunks,
        lambda chunk: stored(store, chunk, personas),
        seed=desk.settings.seed,
        blind_test=desk.args.blind_test,
    )
    came, new = take_answers(
        desk.args.import_from, store, tasks, personas, lambda name: alone(desk.settings, name)
    )
    if came.unknown:
        print(
            f"{len(came.unknown)} tasks are not in the sample (such as {came.unknown[0]})",
            file=sys.stderr,
        )
    names = sorted({answer.annotator for _, answer in came.answers})
    by = f" by {', '.join(names)}" if names else ""
    print(
        f"{new} new of {len(came.answers)} answers"
        f"{by}, {came.drafts} drafts left out, "
        f"{came.open} tasks without an answer <- {desk.args.import_from}",
        file=sys.stderr,
    )
    return 0
