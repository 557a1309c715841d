"""Answers given in a browser tool come home into the event log, once, under their author."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from question_optimizer.annotation.exchange import Imported
from question_optimizer.annotation.handover import take_answers as take_answers_alone
from question_optimizer.annotation.handover import tasks_of, write_tasks
from question_optimizer.annotation.label_studio import to_label_studio
from question_optimizer.annotation.preparation import Prepared, stored
from question_optimizer.annotation.store import AnnotationStore
from question_optimizer.errors import UserError
from question_optimizer.records import Chunk, Decision, Persona
from test_annotation import SUGGESTED, TECHNICIAN, chunks_of

PERSONAS = {TECHNICIAN.id: TECHNICIAN}
REASONS = ("boilerplate", "too short")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[AnnotationStore]:
    """A log with a persona and suggestions for six chunks, and nothing decided."""
    with AnnotationStore(tmp_path / "annotations.sqlite") as store:
        for chunk in chunks_of(6):
            store.choose_persona(chunk.chunk_id, TECHNICIAN.id, by="similarity")
            store.keep_suggestions(chunk.chunk_id, TECHNICIAN, SUGGESTED, ["model-a"])
        yield store


def take_answers(*args: Any) -> tuple[Imported, int]:
    return take_answers_alone(*args, lambda name: nullcontext())


def tasks(store: AnnotationStore, personas: dict[str, Persona] | None = None, **how: bool):
    def prepared(chunk: Chunk) -> Prepared:
        return stored(store, chunk, PERSONAS if personas is None else personas)

    return tasks_of(store, chunks_of(6), prepared, seed=0, **how)


def label_studio(
    path: Path, store: AnnotationStore, *answers: tuple[int, dict[str, object]], minute: int = 0
) -> Path:
    """An export of Label Studio: one annotation by anna for each (chunk id, values by control)."""
    rows = []
    there = tasks(store)
    for chunk_id, values in answers:
        result = [
            {
                "from_name": name,
                "to_name": "chunk",
                "type": "textarea" if name in ("gold_question", "note") else "choices",
                "value": {
                    "text" if name in ("gold_question", "note") else "choices": value
                    if isinstance(value, list)
                    else [value]
                },
            }
            for name, value in values.items()
        ]
        told = {
            "completed_by": {"email": "anna@example.org"},
            "lead_time": 31.5,
            "updated_at": f"2026-11-20T10:{minute:02}:00Z",
            "result": result,
        }
        data = to_label_studio(there[str(chunk_id)], REASONS)["data"]
        rows.append({"data": data, "annotations": [told]})
    path.write_text(json.dumps(rows))
    return path


ANSWERED = (
    (0, {"decision": "question", "pick": "2"}),
    (1, {"decision": "question", "pick": "1", "gold_question": "What is the limit of wear?"}),
    (2, {"decision": "question", "gold_question": "Who checks the pads?"}),
    (3, {"decision": "skip", "skip_reason": "too short"}),
    (4, {"decision": "flag", "note": "two brakes?"}),
)


def test_answers_of_a_browser_become_decisions_and_gold(
    store: AnnotationStore, tmp_path: Path
) -> None:
    export = label_studio(tmp_path / "export.json", store, *ANSWERED)
    came, new = take_answers(export, store, tasks(store), PERSONAS)
    assert (new, came.open) == (5, 1)
    gold = store.gold("anna")
    assert [(item.chunk_id, item.origin, item.gold_question) for item in gold] == [
        (0, "picked", SUGGESTED[1]),
        (1, "edited", "What is the limit of wear?"),
        (2, "written", "Who checks the pads?"),
    ]
    assert {item.annotator for item in gold} == {"anna"}
    assert {item.active_seconds for item in gold} == {None}  # a browser counts pauses too
    assert [item.suggested_by for item in gold] == [["model-a"]] * 3
    assert all(item.split for item in gold)
    assert store.skipped("anna") == {"too short": 1}
    assert store.decision(4, "anna") == Decision(
        chunk_id=4,
        action="flag",
        note="two brakes?",
        persona_id="tech",
        at="2026-11-20T10:00:00+00:00",
    )


def test_the_same_file_again_brings_nothing_new(store: AnnotationStore, tmp_path: Path) -> None:
    export = label_studio(tmp_path / "export.json", store, *ANSWERED)
    take_answers(export, store, tasks(store), PERSONAS)
    before = len(store.events())
    assert take_answers(export, store, tasks(store), PERSONAS)[1] == 0
    assert len(store.events()) == before


@pytest.mark.parametrize("tool", ["argilla", "label-studio"])
def test_what_is_exported_comes_home_as_what_stands(
    store: AnnotationStore, tmp_path: Path, tool: str
) -> None:
    export = label_studio(tmp_path / "export.json", store, *ANSWERED)
    take_answers(export, store, tasks(store), PERSONAS)
    path = tmp_path / "tasks.jsonl"
    set_up = write_tasks(path, tasks(store), tool, REASONS)
    assert set_up.exists()
    assert len(path.read_text().splitlines()) == 6
    came, new = take_answers(path, store, tasks(store), PERSONAS)
    assert new == 0
    assert len(came.answers) == 5


def test_a_changed_answer_supersedes_the_earlier_one(
    store: AnnotationStore, tmp_path: Path
) -> None:
    first = label_studio(tmp_path / "1.json", store, (0, {"pick": "1"}))
    second = label_studio(tmp_path / "2.json", store, (0, {"pick": "3"}), minute=5)
    take_answers(first, store, tasks(store), PERSONAS)
    assert take_answers(second, store, tasks(store), PERSONAS)[1] == 1
    assert [item.gold_question for item in store.gold()] == [SUGGESTED[2]]


def test_an_old_export_does_not_bring_back_what_was_changed_since(
    store: AnnotationStore, tmp_path: Path
) -> None:
    old = label_studio(tmp_path / "1.json", store, (0, {"pick": "1"}), (1, {"pick": "1"}))
    take_answers(old, store, tasks(store), PERSONAS)
    with AnnotationStore(store.path, "anna") as anna:
        assert anna.undo() is not None  # of chunk 1
    newer = label_studio(tmp_path / "2.json", store, (0, {"pick": "3"}), minute=5)
    store.refresh()
    take_answers(newer, store, tasks(store), PERSONAS)
    assert take_answers(old, store, tasks(store), PERSONAS)[1] == 0
    earlier = label_studio(tmp_path / "3.json", store, (0, {"pick": "2"}), minute=2)
    assert take_answers(earlier, store, tasks(store), PERSONAS)[1] == 0
    assert [item.gold_question for item in store.gold()] == [SUGGESTED[2]]


def test_the_unnamed_annotators_answers_come_home_to_them(
    store: AnnotationStore, tmp_path: Path
) -> None:
    chunk = chunks_of(1)[0]
    store.record(chunk, Decision(chunk_id=0, action="skip", reason="x", persona_id="tech"), None)
    for tool in ("argilla", "label-studio"):
        write_tasks(tmp_path / "tasks.jsonl", tasks(store), tool, REASONS)
        assert take_answers(tmp_path / "tasks.jsonl", store, tasks(store), PERSONAS)[1] == 0
    assert store.annotators == [""]


def test_whether_an_item_is_blind_is_told_by_what_the_file_showed(
    store: AnnotationStore, tmp_path: Path
) -> None:
    blind = tasks(store, blind_test=True)
    number, task = next((i, task) for i, task in blind.items() if task.withheld)
    row = to_label_studio(task, REASONS)
    result = [
        {
            "from_name": "gold_question",
            "to_name": "chunk",
            "type": "textarea",
            "value": {"text": ["Mine?"]},
        }
    ]
    row["annotations"] = [{"completed_by": 3, "result": result}]
    export = tmp_path / "export.json"
    export.write_text(json.dumps([row]))
    take_answers(export, store, tasks(store), PERSONAS)  # nobody says --blind-test now
    (item,) = store.gold()
    assert (str(item.chunk_id), item.blind, item.suggestions_shown) == (number, True, False)


def test_an_answer_that_does_not_fit_leaves_all_others_unwritten(
    store: AnnotationStore, tmp_path: Path
) -> None:
    export = label_studio(
        tmp_path / "export.json", store, (0, {"pick": "1"}), (1, {"gold_question": "Why?"})
    )
    there = tasks(store)
    there["1"] = there["1"].model_copy(update={"persona": None})
    rows = json.loads(export.read_text())
    rows[1]["data"]["persona_id"] = None
    export.write_text(json.dumps(rows))
    before = len(store.events())
    with pytest.raises(UserError, match="answer on chunk 1: no persona"):
        take_answers(export, store, there, PERSONAS)
    assert len(store.events()) == before


def test_a_blind_task_tells_nothing_of_its_suggestions(
    store: AnnotationStore, tmp_path: Path
) -> None:
    blind = {i: task for i, task in tasks(store, blind_test=True).items() if task.withheld}
    assert blind
    assert {task.split for task in blind.values()} == {"test"}
    for tool in ("argilla", "label-studio"):
        write_tasks(tmp_path / "tasks.jsonl", blind, tool, REASONS)
        text = (tmp_path / "tasks.jsonl").read_text()
        assert not any(line in text for line in [*SUGGESTED, "model-a"])


def test_an_answer_for_a_persona_that_is_gone_changes_nothing(
    store: AnnotationStore, tmp_path: Path
) -> None:
    path = tmp_path / "tasks.jsonl"
    with AnnotationStore(store.path, "anna") as anna:
        anna.record(
            chunks_of(1)[0],
            Decision(chunk_id=0, action="skip", reason="too short", persona_id="tech"),
            None,
        )
    store.refresh()
    write_tasks(path, tasks(store), "label-studio", REASONS)
    before = len(store.events())
    pirate = {"pirate": TECHNICIAN.model_copy(update={"id": "pirate"})}
    with pytest.raises(UserError, match=r"chunk 0: no persona 'tech'; known: pirate"):
        take_answers(path, store, tasks(store), pirate)
    assert len(store.events()) == before
