"""A planted defect of every lint code is found; the shipped sample's gold set is clean."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dspy
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from annotate_chunks import main as annotate_chunks
from conftest import SAMPLE
from fetch_chunks import main as fetch_chunks
from question_optimizer.errors import UserError
from question_optimizer.gold import read_gold
from question_optimizer.gold_lint import CODES, Finding, as_dict, lint, render

Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Rows:
    """The gold set that the sample's decisions make of the sample's folder.

    Skips are left out: they make no item, and to offer one a persona asks for the embedding model.
    """
    data = tmp_path_factory.mktemp("sample")
    common = ["--data-dir", str(data), "--personas-file", str(SAMPLE / "personas.json")]
    assert fetch_chunks(["--qdrant-path", str(SAMPLE / "small_sqlite"), *common]) == 0
    lines = (SAMPLE / "decisions.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    decisions = data / "decisions.jsonl"
    decisions.write_text("".join(line for line in lines if '"skip"' not in line))
    assert annotate_chunks(["--replay", str(decisions), "--rehearsal", *common]) == 0
    dspy.configure_cache(enable_disk_cache=False)  # let go of the one in the folder
    return json.loads((data / "gold_dataset.json").read_text(encoding="utf-8"))


def test_the_gold_set_of_the_sample_is_clean(sample: Rows) -> None:
    report = lint(sample)
    assert report.findings == []
    assert render(report) == (
        "73 items (22 train, 22 dev, 29 test): 0 errors, 0 warnings\n"
        "29 test items: can show a difference of 0.13 in the score "
        "(80 % power, if differences scatter by 0.25) or 21 wins of 29"
    )


# ---------------------------------------------------------------------- planted defects


def change(number: int, **values: Any) -> Callable[[Rows], None]:
    return lambda rows: rows[number - 1].update(values)


def lose(number: int, key: str) -> Callable[[Rows], None]:
    return lambda rows: rows[number - 1].pop(key)


def repeat(number: int, **values: Any) -> Callable[[Rows], None]:
    """Append entry `number` once more, with other values."""
    return lambda rows: rows.append({**rows[number - 1], **values})


def move(number: int) -> Callable[[Rows], None]:
    """Put entry `number` (test) on another side than the rest of its document."""

    def plant(rows: Rows) -> None:
        assert rows[number - 1]["split"] == "test"
        rows[number - 1]["split"] = "train"

    return plant


def same_text_elsewhere(rows: Rows) -> None:
    rows[6]["chunk_text"] = "\n".join(of_side(rows, "train")["chunk_text"].split())
    rows[6]["split"] = "dev"
    rows[6].update(document_id="another", split_group="another")


def of_side(rows: Rows, side: str) -> dict[str, Any]:
    return next(row for row in rows if row["split"] == side)


def keep_only(side: str, count: int) -> Callable[[Rows], None]:
    def plant(rows: Rows) -> None:
        kept = [row for row in rows if row["split"] == side][:count]
        rows[:] = [row for row in rows if row["split"] != side] + kept

    return plant


def split_by_section(rows: Rows) -> None:
    """As `splits` does where there are too few documents: each entry a group of its own."""
    for row in rows:
        row.update(document_id="only", split_group=f"only › {row['chunk_id']}")


WAL = "What ends the unbounded growth of SQLite's write-ahead log when readers overlap?"
QUOTE = "The use of the quote() function ensures that the SQL statements used are always safe?"


@pytest.mark.parametrize(
    ("plant", "code", "severity", "entry", "message"),
    [
        (lose(3, "persona_description"), "missing-field", "error", 3, "no persona_description; "),
        (lose(3, "gold_question"), "missing-field", "error", 3, "no gold_question; correct it or"),
        (change(3, gold_question=""), "missing-field", "error", 3, "gold_question: String should"),
        (change(3, gold_question=" \n"), "missing-field", "error", 3, "gold_question: is blank; "),
        (change(3, gold_question=["?"]), "missing-field", "error", 3, "gold_question: Input shou"),
        (change(9, chunk_text=None), "missing-field", "error", 9, "chunk_text: Input should be a"),
        (change(9, chunk_id=[]), "missing-field", "error", 9, "chunk_id.int: Input should be a v"),
        (change(9, chunk_id=2**70), "missing-field", "error", 9, "chunk_id: no point id has more"),
        (change(9, split="holdout"), "missing-field", "error", 9, "split: Input should be 'train'"),
        (change(9, suggestions="one"), "missing-field", "error", 9, "suggestions: Input should "),
        (change(9, query_format="ode"), "missing-field", "error", 9, "query_format: Value error,"),
        (lambda rows: rows.append(7), "missing-field", "error", 74, "is no object but a number; "),
        (change(5, persona_description=" "), "no-persona", "error", 5, "the persona description"),
        (repeat(4), "duplicate", "error", 74, "the chunk id is that of entry 4 too; keep one"),
        (
            repeat(4, gold_question=WAL),
            "duplicate",
            "error",
            74,
            "the chunk id is that of entry 4 too; keep one of them",
        ),
        (
            lambda rows: rows[7].update(gold_question=f" {rows[1]['gold_question'].upper()}!"),
            "duplicate",
            "error",
            8,
            "the question is that of entry 2 too; keep one of them",
        ),
        (
            lambda rows: rows[7].update(gold_question=f"{rows[1]['gold_question'][:-1]} today?"),
            "near-duplicate",
            "warning",
            8,
            "the question is nearly that of entry 2 (0.9",
        ),
        (
            lambda rows: rows.append(
                {
                    **rows[1],
                    "chunk_id": "new",
                    "gold_question": f"{rows[1]['gold_question'][:-1]} today?",
                }
            ),
            "near-duplicate",
            "warning",
            74,
            "the question is nearly that of entry 2 (0.95 alike); keep one of them",
        ),
        (
            change(6, gold_question="What does this section say about checkpoints?"),
            "refers-outside",
            "error",
            6,
            '"this section" refers to what its reader cannot see; name the thing',
        ),
        (
            change(1, gold_question=QUOTE),
            "copies-chunk",
            "warning",
            1,
            "12 words in a row are those of the chunk; put it in the words of someone who",
        ),
        (change(2, gold_question="1. How is WAL used?"), "looks-odd", "warning", 2, "the questio"),
        (change(2, gold_question="Why?"), "looks-odd", "warning", 2, "the question has fewer tha"),
        (
            change(2, persona_description="A developer\x1b[2J."),
            "looks-odd",
            "warning",
            2,
            "persona_description holds control characters or terminal escapes; remove them",
        ),
        (move(8), "split-leak", "error", 8, 'split group "'),
        (same_text_elsewhere, "split-leak", "error", 7, 'text "'),
        (split_by_section, "split-leak", "warning", 2, 'document "only": 22 train, 22 dev, 29'),
        (keep_only("dev", 0), "too-few", "error", None, "no item in the dev split; annotate chunk"),
        (keep_only("test", 19), "too-few", "warning", None, "19 test items are fewer than 20; an"),
        (keep_only("train", 9), "too-few", "warning", None, "9 train items are fewer than 10; an"),
        (lambda rows: rows.clear(), "too-few", "error", None, "holds no gold question yet; run "),
    ],
)
def test_a_planted_defect_of_every_code_is_found_and_nothing_else(
    sample: Rows,
    plant: Callable[[Rows], None],
    code: str,
    severity: str,
    entry: int | None,
    message: str,
) -> None:
    rows = copy.deepcopy(sample)
    plant(rows)
    findings = lint(rows).findings
    assert {(f.code, f.severity) for f in findings} >= {(code, severity)}
    found = next(f for f in findings if f.code == code)
    assert found.message.startswith(message)
    assert found.entry == entry
    assert [f for f in findings if f != found] == []


def test_every_code_is_planted_above() -> None:
    marks = test_a_planted_defect_of_every_code_is_found_and_nothing_else.pytestmark
    assert {case[1] for mark in marks for case in mark.args[1]} == set(CODES)


def test_all_defects_are_told_at_once_and_in_file_order(sample: Rows) -> None:
    rows = copy.deepcopy(sample)
    rows[4].update(gold_question="What does Figure 3 show?", persona_description="")
    rows[2].update(gold_question="Why?")
    rows[0].pop("chunk_text")
    rows.append("a question")
    assert [(f.entry, f.code) for f in lint(rows).findings] == [
        (1, "missing-field"),
        (3, "looks-odd"),
        (5, "no-persona"),
        (5, "refers-outside"),
        (74, "missing-field"),
    ]


def test_the_report_names_entry_chunk_and_what_to_do(sample: Rows) -> None:
    rows = copy.deepcopy(sample[:30])
    rows[0].update(chunk_id="\x1b[31mred\nline", gold_question="What is in the table above?")
    report = lint(rows)
    assert render(report).splitlines()[0] == (
        'entry 1 (chunk red line): error refers-outside: "table above" refers to what its reader '
        "cannot see; name the thing"
    )
    machine = json.loads(json.dumps(as_dict(report)))
    assert machine["findings"][0] == {
        "code": "refers-outside",
        "severity": "error",
        "entry": 1,
        "chunk_id": "red line",
        "message": '"table above" refers to what its reader cannot see; name the thing',
    }
    assert (machine["items"], machine["errors"]) == (30, 1)
    assert machine["can_show"] in render(report)


def test_keyword_questions_may_consist_of_the_terms_of_their_chunk(sample: Rows) -> None:
    rows = copy.deepcopy(sample)
    rows[0]["gold_question"] = "always safe from SQL injection"
    rows[0]["query_format"] = "formal question"
    assert [f.code for f in lint(rows).findings] == ["copies-chunk"]
    rows[0]["query_format"] = "keywords"
    assert lint(rows).findings == []


def foreign(number: int, **more: Any) -> dict[str, Any]:
    names = "ada bob cid dan eve fay gus hal ina joe kim lea max ned ola pam ron sue tom".split()
    return {
        "chunk_text": f"Chunk {number} tells of {names[number % 19]} and of little else.",
        "persona_description": "a reader",
        "gold_question": f"Whom does {names[number % 19]} meet at station {number * 7919}?",
        **more,
    }


def test_a_set_of_another_tool_is_sized_as_later_phases_split_it(tmp_path: Path) -> None:
    rows = [foreign(number) for number in range(100)]
    report = lint(rows)
    assert report.findings == []
    assert report.sizes == {"train": 30, "dev": 30, "test": 40}
    assert report.can_show == (
        "40 test items: can show a difference of 0.11 in the score "
        "(80 % power, if differences scatter by 0.25) or 27 wins of 40"
    )
    path = tmp_path / "gold_dataset.json"
    path.write_text(json.dumps(rows))
    assert [len(read_gold(path).side(side)) for side in ("train", "dev", "test")] == [30, 30, 40]


def test_five_test_items_can_show_nothing() -> None:
    assert lint([foreign(number) for number in range(12)]).can_show == (
        "5 test items: too few to show any difference; about 40 are wanted"
    )


# ---------------------------------------------------------------------- garbage


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


HUGE = "the following section " * 450_000  # 10 MB
GARBAGE: dict[str, Any] = {
    "null": None,
    "number": 7,
    "object": {"items": []},
    "text of 10 MB": HUGE,
    "numbers": [1, 2.5, float("nan"), True, None, "text"],
    "nested lists": [nested(100_000), [[]]],
    "empty objects": [{}, {}],
    "nested fields": [dict.fromkeys(foreign(0, split=0, chunk_id=0, query_type=0), nested(5000))],
    "huge texts": [foreign(0, chunk_text=HUGE, gold_question=HUGE, persona_description=HUGE)],
    "half characters": [
        foreign(0, chunk_text="\ud800", gold_question="\udfff x", chunk_id="\ud800")
    ],
    "half a character as key": [{"\ud800": "\udc00", "chunk_text": "a"}],
    "a number of 6,000 digits": [foreign(0, chunk_id=10**6000)],
    "escapes everywhere": [dict.fromkeys(foreign(0, split="", query_format=""), "\x1b[31m\x00")],
}


@pytest.mark.parametrize("rows", GARBAGE.values(), ids=GARBAGE.keys())
def test_garbage_is_reported_and_never_a_crash(rows: Any) -> None:
    began = time.thread_time()
    report = lint(rows)
    said = render(report)
    assert any(f.severity == "error" for f in report.findings)
    assert report.can_show in said
    assert "\x1b" not in said and "\x00" not in said
    assert len(said) < 3000
    said.encode()
    json.dumps(as_dict(report), ensure_ascii=False).encode()
    assert time.thread_time() - began < 5


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
entries = st.dictionaries(st.sampled_from([*foreign(0), "chunk_id", "split", "query_type"]), values)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    rows=st.lists(
        st.builds(
            lambda entry, good: {**good, **entry},
            entries,
            st.sampled_from([{}, foreign(1), foreign(2, split="dev", chunk_id=2)]),
        )
        | values,
        max_size=4,
    )
    | values
)
def test_what_the_reader_refuses_is_an_error(rows: Any, tmp_path: Path) -> None:
    path = tmp_path / "gold_dataset.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    report = lint(json.loads(path.read_text(encoding="utf-8")))
    render(report).encode()
    try:
        read_gold(path)
    except UserError:
        assert any(f.severity == "error" for f in report.findings)
    else:
        faults = [f for f in report.findings if f.code == "missing-field"]
        assert all("is blank" in f.message or "64 bits" in f.message for f in faults)


def test_findings_are_values() -> None:
    assert lint(None).findings == [
        Finding(
            code="missing-field",
            severity="error",
            entry=None,
            chunk_id=None,
            message="must be a list of gold items; rerun annotate_chunks.py",
        )
    ]


def test_ten_thousand_items_take_seconds() -> None:
    rows = [foreign(number, document_id=f"d{number % 97}") for number in range(10_000)]
    began = time.thread_time()
    lint(rows)
    assert time.thread_time() - began < 20
