"""What the browser tools are given, and what comes home from them."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from question_optimizer.annotation.answers import (
    CONTROLS,
    MOST_CHARACTERS,
    AnnotationTask,
    Answer,
    annotator_name,
)
from question_optimizer.annotation.argilla import argilla_settings, argilla_user_id, to_argilla
from question_optimizer.annotation.exchange import Imported, read_answers
from question_optimizer.annotation.label_studio import label_studio_config, to_label_studio
from question_optimizer.annotation.session import MOST_SUGGESTIONS
from question_optimizer.errors import UserError
from question_optimizer.records import Chunk, Persona

REASONS = ("boilerplate", "too short", "other")
FITTER = Persona(id="fitter", name="Fitter", description="mends pumps")
SEAL, HOURS = "Which seal is replaced?", "After how many hours?"
KIM = "5ba43e1e-0000-4000-8000-000000000001"
LEE = "5ba43e1e-0000-4000-8000-000000000002"


def a_task(chunk_id: int | str = "c1", **rest: Any) -> AnnotationTask:
    known = {"persona": FITTER, "suggestions": [SEAL, HOURS], "suggested_by": ["gpt-5"]} | rest
    chunk = Chunk(
        chunk_id=chunk_id,
        chunk_text="The shaft seal is replaced after 500 hours.",
        file_name="manual.pdf",
        headings=["Upkeep"],
        page_no=12,
        existing_query="the old query",
    )
    return AnnotationTask(chunk=chunk, **known)


def an_answer(action: Any, **rest: Any) -> Answer:
    return Answer(**({"annotator": "kim", "persona_id": "fitter"} | rest), action=action)


def read(path: Path, records: Sequence[Any], *tasks: AnnotationTask, **rest: Any) -> Imported:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return read_answers(path, {task.chunk_id: task for task in tasks or [a_task()]}, **rest)


def argilla(values: dict[str, Any], status: str | None = "submitted", **rest: Any) -> Any:
    """A record as Argilla exports it, with one response by Kim."""
    by = {"user_id": KIM} | ({"status": status} if status else {})
    responses = {question: [{"value": value, **by}] for question, value in values.items()}
    return to_argilla(a_task()) | {"responses": responses} | rest


def label_studio(values: dict[str, Any], **rest: Any) -> Any:
    """A task as Label Studio exports it: its own id, numbers for people, one result a control.

    Keys and times are those of "Label Studio JSON format of annotated tasks".
    """
    result = [
        {
            "id": f"r{number}",
            "from_name": name,
            "to_name": "chunk",
            "type": "textarea" if name in ("gold_question", "note") else "choices",
            "value": {"text" if name in ("gold_question", "note") else "choices": value},
            "origin": "manual",
        }
        for number, (name, value) in enumerate(values.items())
    ]
    annotation = {
        "id": 1001,
        "result": result,
        "was_cancelled": False,
        "ground_truth": False,
        "created_at": "2021-03-09T22:16:08.728353Z",
        "updated_at": "2021-03-09T22:17:08.728378Z",
        "lead_time": 4.288,
        "result_count": 0,
        "task": 1,
        "completed_by": 10,
    } | rest
    task = to_label_studio(a_task(), REASONS)
    return task | {"id": 1, "project": 83, "annotations": [annotation], "predictions": []}


# ------------------------------------------------------------------ what an answer is taken to be

PICK = {"action": "pick", "pick": 2, "gold_question": HOURS}
CASES = [
    ({"pick": "2"}, PICK),
    ({"decision": "question", "pick": 2}, PICK),
    ({"gold_question": " After  how many\nhours? "}, PICK),
    ({"pick": "1", "gold_question": HOURS}, PICK),
    ({"pick": HOURS}, PICK),
    (
        {"pick": "1", "gold_question": "Which seal?"},
        {"action": "edit", "pick": 1, "gold_question": "Which seal?"},
    ),
    ({"gold_question": "Why\x1b[2J?"}, {"action": "write", "gold_question": "Why?"}),
    (
        {"gold_question": "W?", "note": "hm"},
        {"action": "write", "gold_question": "W?", "note": "hm"},
    ),
    (
        {"gold_question": "W?", "bad": ["2", "1"]},
        {"action": "write", "gold_question": "W?", "bad": [1, 2]},
    ),
    ({"decision": "skip"}, {"action": "skip"}),
    ({"skip_reason": "too short"}, {"action": "skip", "reason": "too short"}),
    ({"decision": "question", "skip_reason": "other"}, {"action": "skip", "reason": "other"}),
    ({"decision": "skip", "note": "a table"}, {"action": "skip", "reason": "a table"}),
    ({"decision": "defer", "gold_question": "half"}, {"action": "defer"}),
    ({"decision": "flag", "note": "odd"}, {"action": "flag", "note": "odd"}),
]


@pytest.mark.parametrize(("said", "meant"), CASES)
def test_an_argilla_response_becomes_the_answer_it_means(
    said: dict[str, Any], meant: dict[str, Any], tmp_path: Path
) -> None:
    got = read(tmp_path / "a.jsonl", [argilla(said)])
    assert got == Imported([("c1", an_answer(**meant, annotator=KIM))], [], 0, 0)


@pytest.mark.parametrize(("said", "meant"), CASES)
def test_a_label_studio_annotation_becomes_the_answer_it_means(
    said: dict[str, Any], meant: dict[str, Any], tmp_path: Path
) -> None:
    listed = {name: value if isinstance(value, list) else [value] for name, value in said.items()}
    got = read(tmp_path / "l.jsonl", [label_studio(listed)])
    timed = {"active_seconds": 4.288, "at": "2021-03-09T22:17:08.728378+00:00"}
    assert got.answers == [("c1", an_answer(**meant, **timed, annotator="user-10"))]


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({}, "in the browser"),
        ({"gold_question": ["half"]}, "in the browser"),
        ({"skip_reason": ["other"]}, "other"),
    ],
)
def test_what_is_dismissed_in_the_browser_is_a_skip(
    values: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    skipped = read(tmp_path / "l", [label_studio(values, was_cancelled=True)]).answers[0][1]
    single = {name: value[0] for name, value in values.items()}
    discarded = read(tmp_path / "a", [argilla({"note": ""} | single, "discarded")]).answers[0][1]
    assert (skipped.action, discarded.action) == ("skip", "skip")
    own = reason == "other"
    assert skipped.reason == (reason if own else f"skipped {reason}")
    assert discarded.reason == (reason if own else f"discarded {reason}")


# ------------------------------------------------------------------ the shapes that tools export


def test_drafts_are_counted_and_are_no_answers(tmp_path: Path) -> None:
    draft = label_studio({}) | {"annotations": [], "drafts": [{"result": []}]}
    for records in ([argilla({"pick": "1"}, "draft")], [draft]):
        assert read(tmp_path / "d", records) == Imported([], [], 1, 1)


@pytest.mark.parametrize(("status", "count"), [("completed", 1), ("pending", 0)])
def test_where_argilla_tells_no_status_of_a_response_the_record_s_stands_in(
    status: str, count: int, tmp_path: Path
) -> None:
    """`Record.to_dict` of Argilla 2.8 leaves the status of responses out."""
    got = read(tmp_path / "a", [argilla({"pick": "1"}, None) | {"status": status}])
    assert (len(got.answers), got.drafts) == (count, 1 - count)


def test_argilla_s_flattened_list_tells_people_and_statuses(tmp_path: Path) -> None:
    """As `dataset.records.to_list(flatten=True)` of Argilla 2.8 writes it."""
    record = {
        "id": "c1",
        "status": "completed",
        "_server_id": "a7e4b0f2-0000-4000-8000-000000000001",
        "chunk": "The shaft seal",
        "suggestion_1": SEAL,
        "suggestion_2": HOURS,
        "persona_id": "fitter",
        "decision.responses": ["question", "question", "question"],
        "decision.responses.users": [KIM, LEE, "u3"],
        "decision.responses.status": ["submitted", "draft", "discarded"],
        "pick.responses": ["2"],
        "pick.responses.users": [KIM],
        "pick.responses.status": ["submitted"],
        "decision.suggestion": "question",
        "decision.suggestion.agent": "preset",
        "decision.suggestion.score": None,
    }
    got = read(tmp_path / "a.json", [record], names={KIM: "Kim K."})
    assert got.drafts == 1
    assert got.answers == [
        ("c1", an_answer("pick", annotator="Kim-K.", pick=2, gold_question=HOURS)),
        ("c1", an_answer("skip", annotator="u3", reason="discarded in the browser")),
    ]


def test_the_server_s_records_are_read_by_our_id(tmp_path: Path) -> None:
    by_user = [
        {"user_id": KIM, "status": "submitted", "values": {"pick": {"value": "2"}}},
        {"user_id": LEE, "status": "discarded", "values": None},
    ]
    by_question = [
        {"question_name": "pick", "value": "2", "user_id": KIM, "status": "submitted"},
        {"question_name": "note", "value": "-", "user_id": LEE, "status": "discarded"},
    ]
    for responses in (by_user, by_question):
        record = argilla({}) | {"id": "server's", "external_id": "c1", "responses": responses}
        got = [answer for _, answer in read(tmp_path / "a", [record]).answers]
        assert [answer.action for answer in got] == ["pick", "skip"]
        assert [answer.annotator for answer in got] == [KIM, LEE]


def test_a_json_array_is_read_like_json_lines(tmp_path: Path) -> None:
    records = [argilla({"pick": "1"}), label_studio({"pick": ["2"]})]
    lines = read(tmp_path / "lines", records)
    for indent in (None, 2):
        path = tmp_path / "array.json"
        path.write_text("\ufeff" + json.dumps(records, indent=indent), encoding="utf-8")
        assert read_answers(path, {"c1": a_task()}) == lines
    assert len(lines.answers) == 2


def test_controls_of_their_own_are_left_alone(tmp_path: Path) -> None:
    task = label_studio({"pick": ["1"]})
    box = {"height": 10.4, "rectanglelabels": ["Moonwalker"], "width": 12.4, "x": 50.8, "y": 5.8}
    task["annotations"][0]["result"] += [
        {"from_name": "tag", "to_name": "img", "type": "rectanglelabels", "value": box},
        {"type": "relation", "from_id": "a", "to_id": "b", "direction": "right"},
    ]
    assert read(tmp_path / "l", [task]).answers[0][1].gold_question == SEAL


def test_each_annotator_s_answer_counts_and_unknown_ids_are_told(tmp_path: Path) -> None:
    task = label_studio({"pick": ["1"]})
    second = {"completed_by": {"id": 3, "email": "lee.w@example.org"}, "lead_time": None}
    task["annotations"].append(task["annotations"][0] | second)
    stray = argilla({"pick": "1"}, id="gone\x1b[31m")
    got = read(tmp_path / "l", [task, stray, stray], a_task(), a_task("c2"))
    assert [answer.annotator for _, answer in got.answers] == ["user-10", "lee.w"]
    assert (got.unknown, got.open) == (["gone"], 1)


@pytest.mark.parametrize("told", [-1, True, "4", 10**400])
def test_a_duration_that_cannot_be_one_is_none(told: Any, tmp_path: Path) -> None:
    got = read(tmp_path / "l", [label_studio({"pick": ["1"]}, lead_time=told)])
    assert got.answers[0][1].active_seconds is None


def test_an_empty_file_holds_no_answers(tmp_path: Path) -> None:
    for text in ("", "\n", "[]"):
        (tmp_path / "e").write_text(text, encoding="utf-8")
        assert read_answers(tmp_path / "e", {"c1": a_task()}) == Imported([], [], 1, 0)


def test_suggestions_that_moved_since_are_found_by_their_text(tmp_path: Path) -> None:
    moved = a_task(suggestions=["New?", HOURS, SEAL])
    got = read(tmp_path / "a", [argilla({"pick": "1", "bad": ["2"]})], moved).answers[0][1]
    assert (got.pick, got.gold_question, got.bad) == (3, SEAL, [2])


def test_of_two_suggestions_that_read_the_same_the_picked_one_counts(tmp_path: Path) -> None:
    twins = a_task(suggestions=["Which seal?", "Which  seal?"])
    record = argilla({"pick": "2", "gold_question": "Which seal?"})
    got = read(tmp_path / "a", [record | {"fields": to_argilla(twins)["fields"]}], twins)
    assert (got.answers[0][1].pick, got.answers[0][1].gold_question) == (2, "Which  seal?")


def test_no_annotation_claims_to_be_the_ground_truth() -> None:
    """Label Studio takes an imported annotation for ground truth unless told otherwise."""
    told = to_label_studio(a_task(answers=[an_answer("defer")]), REASONS)
    assert [annotation["ground_truth"] for annotation in told["annotations"]] == [False]


@pytest.mark.parametrize(
    ("identity", "name"),
    [
        ("kim@example.org", "kim"),
        ("Kim Østby", "Kim-stby"),
        ("a\x1b[31mb", "a-31mb"),
        ("../x/", "..-x"),
        ("@", "unknown"),
        ("x" * 60, "x" * 40),
        (KIM, KIM),
    ],
)
def test_annotators_get_names_that_fit_anywhere(identity: str, name: str) -> None:
    assert annotator_name(identity) == name


# ------------------------------------------------------------------ refusals

BAD = [
    (b"\xff\xfe", "1: not UTF-8 text"),
    (b"{}\n\xff", "2: not UTF-8 text"),
    (b"{}", "1: neither an Argilla record nor a Label Studio task"),
    (b"\n{", "2: not JSON"),
    (b"[" * 20000, "1: not JSON that can be read"),
    (b'{"id": NaN}', "1: not JSON that can be read"),
    (b'{"id": 1' + b"0" * 5000 + b"}", "1: not JSON that can be read"),
    (b"3", "1: not an object"),
    (b"[", "1: ends in the middle of a list"),
    (b'{"annotation_id": 7, "chunk": "x", "id": 1}', "1: this is Label Studio's JSON-MIN"),
    (b'{"data": {"text": "x"}}', "1: no data.chunk_id"),
    (b'{"fields": {}, "id": null}', "1: no id"),
    (b'{"fields": {}, "id": "c1", "responses": 3}', "1: 'responses' has a shape"),
    (b'{"fields": {}, "id": "c1", "responses": {"pick": [{"value": "1"}]}}', "1: no user_id"),
    (b'{"data": {"chunk_id": "c1"}, "annotations": {"a": 1}}', "1: 'annotations' has a shape"),
    (b'{"chunk": "x", "id": 1, "pick.responses": ["1"]}', "1: 'pick.responses' has a shape"),
]


@pytest.mark.parametrize(("content", "message"), BAD)
def test_what_is_no_export_is_refused_with_its_line(
    content: bytes, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "bad.json"
    if content.startswith(b"[["):
        content = b'{"id": ' + content
    path.write_bytes(content)
    with pytest.raises(UserError, match=re.escape(f"{path}:{message}")) as raised:
        read_answers(path, {"c1": a_task()})
    assert "; " in str(raised.value)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist; name one that does"):
        read_answers(tmp_path / "none", {})


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"decision": "question"}, "an answer with neither text nor choice"),
        ({"gold_question": "  "}, "an answer with neither text nor choice"),
        ({"pick": "3"}, "picks suggestion 3 of 2"),
        ({"pick": "0"}, "picks suggestion 0 of 2"),
        ({"pick": "-1"}, "no suggestion '-1'"),
        ({"pick": {"x": 1}}, "no suggestion"),
        ({"pick": ["1", "2"]}, "more than one pick"),
        ({"pick": "1", "bad": ["4"]}, "picks suggestion 4 of 2"),
        ({"gold_question": ["a", "b"]}, "more than one question"),
        ({"gold_question": "x" * 2001}, f"gold_question of 2001 characters, {MOST_CHARACTERS}"),
        ({"pick": "1", "note": "x" * 2001}, "note of 2001 characters"),
        ({"skip_reason": "x" * 2001}, "skip_reason of 2001 characters"),
        ({"gold_question": "\ud800" * 2001}, "gold_question of 2001 characters"),
        ({"decision": "maybe\x1b[2J"}, "no decision 'maybe'"),
        ({"pick": "1", "skip_reason": "other"}, "a question and a reason to skip at once"),
    ],
)
def test_an_answer_that_cannot_be_meant_is_refused_with_its_place(
    said: dict[str, Any], message: str, tmp_path: Path
) -> None:
    fine = argilla({"pick": "1"})
    with pytest.raises(UserError) as raised:
        read(tmp_path / "a", [fine, argilla(said)])
    assert f"{tmp_path / 'a'}:2: chunk 'c1': {message}" in str(raised.value)
    assert "; correct it in the tool" in str(raised.value)
    assert str(raised.value).isprintable()


def test_a_pick_of_a_suggestion_that_the_log_has_lost_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="suggestion 1 is not one that the log knows; export the"):
        read(tmp_path / "a", [argilla({"pick": "1"})], a_task(suggestions=["Other?"]))


def test_two_people_never_become_one_annotator(tmp_path: Path) -> None:
    task = label_studio({"pick": ["1"]}, completed_by={"email": "kim@a.org"})
    task["annotations"].append(task["annotations"][0] | {"completed_by": {"email": "kim@b.org"}})
    with pytest.raises(
        UserError, match=r"'kim@a[.]org' and 'kim@b[.]org' would both be annotator kim"
    ):
        read(tmp_path / "l", [task])
    got = read(tmp_path / "l", [task], names={"kim@b.org": "kim-b"})
    assert [answer.annotator for _, answer in got.answers] == ["kim", "kim-b"]


# ------------------------------------------------------------------ what leaves the house


def test_of_a_withheld_task_no_suggestion_leaves_the_house() -> None:
    answers = [
        an_answer("pick", pick=1, gold_question=SEAL, bad=[2]),
        an_answer("edit", pick=1, gold_question=f"{SEAL} Now?"),
        an_answer("write", gold_question=f" {SEAL}"),
        an_answer("write", annotator="lee", gold_question="Mine?", bad=[1]),
    ]
    task = a_task(withheld=True, split="test", answers=answers)
    for told in (to_argilla(task, REASONS), to_label_studio(task, REASONS)):
        text = json.dumps(told)
        assert SEAL not in text and HOURS not in text and "gpt-5" not in text
        assert "Mine?" in text
        assert "the old query" not in text


def test_a_withheld_task_comes_home_as_written_even_if_it_equals_a_suggestion(
    tmp_path: Path,
) -> None:
    task = a_task(withheld=True)
    record = argilla({"gold_question": SEAL}) | {"fields": to_argilla(task)["fields"]}
    got = read(tmp_path / "a", [record], task).answers[0][1]
    assert (got.action, got.gold_question) == ("write", SEAL)


def test_hostile_text_is_inert_in_what_the_tools_get() -> None:
    hostile = "a\x00\x1b[31mb\u202e<script>"
    chunk = Chunk(chunk_id="c1", chunk_text=hostile, file_name=hostile, headings=[hostile])
    task = AnnotationTask(chunk=chunk, suggestions=[hostile])
    for told in (to_argilla(task), to_label_studio(task, ())):
        text = json.dumps(told, ensure_ascii=False)
        assert text.isprintable() and "ab<script>" in text


def test_argilla_gets_one_response_a_person_under_an_id_of_their_own() -> None:
    answers = [an_answer("defer"), an_answer("pick", pick=1, gold_question=SEAL)]
    told = to_argilla(a_task(answers=answers))
    assert told["responses"] == {
        "decision": [
            {"value": "question", "user_id": argilla_user_id("kim"), "status": "submitted"}
        ],
        "pick": [{"value": "1", "user_id": argilla_user_id("kim"), "status": "submitted"}],
    }


# ------------------------------------------------------------------ setting up


def test_every_control_that_is_exported_is_set_up_in_either_tool() -> None:
    setup = argilla_settings(REASONS)
    assert {question["name"] for question in setup["questions"]} == set(CONTROLS)
    full = a_task(suggestions=[f"{number}?" for number in range(MOST_SUGGESTIONS)])
    assert {one["name"] for one in setup["fields"]} == set(to_argilla(full)["fields"])
    view = ElementTree.fromstring(label_studio_config(REASONS))
    assert {tag.get("name") for tag in view if tag.get("toName") == "chunk"} == set(CONTROLS)
    variables = {(tag.get("value") or "") for tag in view if "$" in (tag.get("value") or "")}
    data = to_label_studio(a_task(), REASONS)["data"]
    assert {name.removeprefix("$") for name in variables} <= set(data)


def test_hostile_skip_reasons_stay_inside_their_attribute() -> None:
    hostile = ['"/><Script name="chunk"', "a\x1b[31m\n\ufffeb", "", "a b", "a b"]
    view = ElementTree.fromstring(label_studio_config(hostile))
    listed = view.find("Choices[@name='skip_reason']")
    assert listed is not None
    assert [tag.get("value") for tag in listed] == [hostile[0], "a b"]
    assert re.findall(r'name="chunk"', label_studio_config(hostile)) == ['name="chunk"']


def test_without_skip_reasons_the_note_takes_them() -> None:
    assert "skip_reason" not in label_studio_config([])
    for reasons in ([], ["other"]):  # Argilla has no choice of fewer than two
        names = {question["name"] for question in argilla_settings(reasons)["questions"]}
        assert "skip_reason" not in names
        told = to_argilla(a_task(answers=[an_answer("skip", reason="other")]), reasons)
        assert set(told["responses"]) == {"decision", "note"}


# ------------------------------------------------------------------ there and back

WORDS = (
    st.text(min_size=1, max_size=30)
    .map(lambda text: f"q{text}")
    .map(lambda text: " ".join("".join(c for c in text if c.isprintable()).split()))
)


@st.composite
def annotated_tasks(draw: st.DrawFn) -> AnnotationTask:
    persona = draw(st.sampled_from([None, FITTER]))
    suggestions = draw(st.lists(WORDS, unique=True, max_size=MOST_SUGGESTIONS))
    annotators = draw(
        st.lists(st.from_regex(r"[A-Za-z0-9_.]{1,40}", fullmatch=True), unique=True, max_size=3)
    )
    task = a_task(draw(st.integers() | WORDS), persona=persona, suggestions=suggestions)
    numbers = st.integers(1, len(suggestions)) if suggestions else st.nothing()
    for annotator in annotators:
        wanted = ["write", "skip", "defer", "flag"] + ["pick", "edit"] * bool(suggestions)
        action = draw(st.sampled_from(wanted))
        typed = draw(WORDS.filter(lambda text: text not in suggestions))
        pick = draw(numbers) if action in ("pick", "edit") else None
        questions = {"pick": suggestions[(pick or 1) - 1] if pick else None}
        task.answers.append(
            Answer(
                annotator=annotator,
                action=action,
                pick=pick,
                gold_question=questions.get(action, typed if action in ("edit", "write") else None),
                persona_id=persona.id if persona else None,
                reason=draw(st.sampled_from([*REASONS, None]) | WORDS)
                if action == "skip"
                else None,
                note=draw(st.none() | WORDS) if action == "flag" else None,
                bad=sorted(draw(st.sets(numbers))) if suggestions else [],
                active_seconds=draw(st.none() | st.floats(0, 1e6)),
                at=draw(st.none() | st.datetimes().map(lambda at: f"{at.isoformat()}+00:00")),
            )
        )
    return task


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(tasks=st.lists(annotated_tasks(), max_size=3, unique_by=lambda task: task.chunk_id))
def test_answers_survive_label_studio_and_back(
    tasks: list[AnnotationTask], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "there.jsonl"
    got = read(path, [to_label_studio(task, REASONS) for task in tasks], *tasks)
    assert got.answers == [(task.chunk_id, answer) for task in tasks for answer in task.answers]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(tasks=st.lists(annotated_tasks(), max_size=3, unique_by=lambda task: task.chunk_id))
def test_answers_survive_argilla_and_back_but_for_their_times(
    tasks: list[AnnotationTask], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "there.jsonl"
    got = read(path, [to_argilla(task, REASONS) for task in tasks], *tasks)
    timeless = {"active_seconds": None, "at": None}
    assert sorted(got.answers, key=repr) == sorted(
        (
            (task.chunk_id, answer.model_copy(update=timeless))
            for task in tasks
            for answer in task.answers
        ),
        key=repr,
    )


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=5)
    | st.sampled_from(["1", "skip"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                "id data chunk_id fields chunk responses annotations result value choices text "
                "from_name pick decision status user_id metadata annotators suggestions".split()
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(record=st.dictionaries(st.sampled_from("id chunk status".split()), JSON), rest=JSON)
def test_any_json_is_read_or_refused_in_one_line(
    record: dict[str, Any], rest: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    for shape in (
        {"data": {"chunk_id": "c1", "suggestions": rest}, "annotations": [{"result": rest}]},
        {"data": {"chunk_id": "c1"}, "annotations": rest, "drafts": rest},
        {"id": "c1", "fields": {"suggestion_1": rest}, "responses": rest, "metadata": rest},
        record | {"pick.responses": rest, "pick.responses.users": rest},
    ):
        try:
            read(path, [shape])
        except UserError as error:
            assert str(error).startswith(f"{path}:1: ") and "; " in str(error)
