"""Between the event log and the browser tools: tasks as they stand, and answers that came home."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import NamedTuple

from question_optimizer import files, splits
from question_optimizer.annotation.answers import AnnotationTask, Answer
from question_optimizer.annotation.argilla import argilla_settings, argilla_user_id, to_argilla
from question_optimizer.annotation.exchange import Imported, read_answers
from question_optimizer.annotation.label_studio import label_studio_config, to_label_studio
from question_optimizer.annotation.preparation import Prepared
from question_optimizer.annotation.session import Card, Refused, gold_item, in_order
from question_optimizer.annotation.store import AnnotationStore, Event
from question_optimizer.errors import UserError
from question_optimizer.records import Chunk, Decision, GoldItem, Persona

UNNAMED = "unnamed"  # how the annotator without a name is called outside the log


def tasks_of(
    store: AnnotationStore,
    chunks: Sequence[Chunk],
    prepared: Callable[[Chunk], Prepared],
    *,
    seed: int,
    blind_test: bool = False,
) -> dict[str, AnnotationTask]:
    """{chunk id: task} with every annotator's answer; suggestions in the order made.

    With `blind_test` suggestions and answers of test items are withheld.
    """
    groups = store.assign_splits(chunks, expected=chunks, sample=chunks, seed=seed)
    decided = defaultdict(list)
    for name in store.annotators:
        for event in store.decisions(name):
            decided[event.subject].append(event)
    tasks = {}
    for chunk in chunks:
        there, side = prepared(chunk), store.side(groups[str(chunk.chunk_id)])
        suggestions = in_order([made.suggestions for made in there.rounds], None)
        withheld = blind_test and side == "test"
        answered = [] if withheld else decided[str(chunk.chunk_id)]
        tasks[str(chunk.chunk_id)] = AnnotationTask(
            chunk=chunk,
            persona=there.persona,
            suggestions=suggestions,
            suggested_by=there.models,
            split=side,
            withheld=withheld,
            answers=[_answer(event, suggestions) for event in answered],
        )
    return tasks


def write_tasks(
    path: Path, tasks: Mapping[str, AnnotationTask], tool: str, skip_reasons: Sequence[str]
) -> Path:
    """Write `tasks` for "argilla" or "label-studio", and, at the path returned, its set-up.

    One object a line; in a file that ends in .json one array, as Label Studio's upload wants.
    """
    if tool == "argilla":
        rows = [to_argilla(task, skip_reasons) for task in tasks.values()]
        set_up = path.with_name(f"{path.name}.settings.json")
        files.write_json(set_up, argilla_settings(skip_reasons))
    else:
        rows = [to_label_studio(task, skip_reasons) for task in tasks.values()]
        set_up = path.with_name(f"{path.name}.config.xml")
        files.write_atomic(set_up, label_studio_config(skip_reasons))
    (files.write_json if path.suffix == ".json" else files.write_jsonl)(path, rows)
    return set_up


class _Entry(NamedTuple):
    """An answer as it will stand in the log, all but its item's author checked."""

    task: AnnotationTask
    answer: Answer
    decision: Decision
    item: GoldItem | None


def take_answers(
    path: Path,
    store: AnnotationStore,
    tasks: Mapping[str, AnnotationTask],
    personas: Mapping[str, Persona],
    alone: Callable[[str], AbstractContextManager[object]],
) -> tuple[Imported, int]:
    """Append the answers in a tool's export, each under its annotator's name; returns how many.

    `alone(name)` keeps other sessions of an annotator away while theirs are written. An answer that
    its annotator has given before, or that is older than what stands, is passed over: they may
    have changed their mind since the export. UserError where one cannot be read, names a persona
    that is not there, or asks without a persona; then nothing is written.
    """
    known = {argilla_user_id(name or UNNAMED): name or UNNAMED for name in store.annotators}
    came = read_answers(path, tasks, known)
    groups = splits.grouped_by(store.split_unit, [task.chunk for task in tasks.values()])
    entries: dict[str, list[_Entry]] = defaultdict(list)
    for chunk_id, answer in came.answers:
        entry = _entry(
            tasks[chunk_id], answer, personas, groups[chunk_id], blind=chunk_id in came.blind
        )
        entries["" if answer.annotator == UNNAMED else answer.annotator].append(entry)
    with ExitStack() as stack:
        stores = {store.annotator: store}
        for name in entries:
            if name not in stores:
                stack.enter_context(alone(name))
                stores[name] = stack.enter_context(AnnotationStore(store.path, name))
        new = 0
        for name, given in entries.items():
            earlier = stores[name].decisions_ever()
            for entry in given:
                new += _record(stores[name], entry, earlier.get(entry.task.chunk_id, []))
    store.refresh()
    return came, new


def _entry(
    task: AnnotationTask,
    answer: Answer,
    personas: Mapping[str, Persona],
    group: str,
    *,
    blind: bool,
) -> _Entry:
    """What `answer` makes of its task; UserError where it does not fit."""
    where = f"answer on chunk {task.chunk_id}"
    if answer.persona_id is not None and answer.persona_id not in personas:
        raise UserError(f"{where}: no persona {answer.persona_id!r}; known: {', '.join(personas)}")
    persona = personas.get(answer.persona_id or "", task.persona)
    decision = Decision(
        chunk_id=task.chunk.chunk_id,
        action=answer.action,
        pick=answer.pick,
        gold_question=answer.gold_question if answer.action in ("edit", "write") else None,
        persona_id=persona.id if persona else None,
        reason=answer.reason,
        note=answer.note,
        at=answer.at,
    )
    if answer.action not in ("pick", "edit", "write"):
        return _Entry(task, answer, decision, None)
    card = Card(
        task.chunk,
        Prepared(persona, "person", [], "", ""),
        suggestions=task.suggestions,
        bad=frozenset(task.suggestions[number - 1] for number in answer.bad),
        blind=blind and bool(task.suggestions),
        own=answer.gold_question or "" if blind else "",
    )
    try:
        item = gold_item(card, decision, group=group)
    except Refused as refusal:
        raise UserError(f"{where}: {refusal}") from None
    item.suggested_by = task.suggested_by if task.suggestions else []
    return _Entry(task, answer, decision, item)


def _record(store: AnnotationStore, entry: _Entry, earlier: Sequence[Event]) -> bool:
    """Append an answer unless it is among `earlier` ones or older; returns whether it was new.

    Its times are not kept as active: a browser counts pauses too.
    """
    number, suggestions = entry.task.chunk.chunk_id, entry.task.suggestions
    if any(_same(_answer(event, suggestions), entry.answer) for event in earlier):
        return False
    if earlier and entry.answer.at and entry.answer.at <= earlier[-1].at:
        return False
    marked = {suggestions[place - 1] for place in entry.answer.bad}
    for line in sorted(marked - store.bad(number)):
        store.mark_bad(number, line, True)
    if entry.item is not None:
        entry.item.annotator = store.annotator
    shown = bool(suggestions) and not (entry.item and entry.item.blind)
    store.record(entry.task.chunk, entry.decision, entry.item, saw=shown)
    return True


def _same(one: Answer, other: Answer) -> bool:
    """Whether two answers say the same, whenever they were given."""
    when: dict[str, object] = {"at": None, "active_seconds": None, "annotator": "", "bad": []}
    return one.model_copy(update=when) == other.model_copy(update=when)


def _answer(event: Event, suggestions: Sequence[str]) -> Answer:
    """What an event decided, in terms of the task's own `suggestions`."""
    decision, item = event.decision, event.item
    chosen = item.suggestions[decision.pick - 1] if item and decision.pick else ""
    listed = chosen in suggestions
    action = decision.action
    if action in ("pick", "edit") and not listed:  # made from what only this person was shown
        action = "write"
    bad = item.bad_suggestions if item else []
    return Answer(
        annotator=event.annotator or UNNAMED,
        action=action,
        pick=suggestions.index(chosen) + 1 if listed else None,
        gold_question=item.gold_question if item else None,
        persona_id=decision.persona_id,
        reason=decision.reason,
        note=decision.note,
        bad=[number for number, line in enumerate(suggestions, 1) if line in bad],
        active_seconds=event.active_seconds,
        at=event.at,
    )
