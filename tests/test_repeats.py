"""The index on disk finds what comparing all pairs finds, in whatever order and batches."""

from __future__ import annotations

import json
import random
import sqlite3
import threading
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import SAMPLE
from question_optimizer import rehearsal
from question_optimizer.chunk_store import chunk_of, open_store
from question_optimizer.duplicates import (
    NEAR_DUPLICATE,
    alike,
    differ_in_a_name,
    near_duplicates,
)
from question_optimizer.errors import UserError
from question_optimizer.generation.repeats import (
    QuestionIndex,
    Repeat,
    delete_former_indexes,
    index_path,
)


def items(questions: Sequence[str]) -> list[tuple[str, str, str]]:
    return [(str(i), question, "") for i, question in enumerate(questions)]


def by_definition(questions: Sequence[str]) -> list[int | None]:
    """For each the first earlier one that it repeats, of those that repeat none themselves."""
    pairs: dict[int, list[int]] = {}
    for i, j, _ in near_duplicates(questions):
        pairs.setdefault(j, []).append(i)
    found: list[int | None] = []
    for j, question in enumerate(questions):
        like = (
            i
            for i in sorted(pairs.get(j, []))
            if found[i] is None and not differ_in_a_name(question, questions[i])
        )
        found.append(next(like, None))
    return found


def by_index(questions: Sequence[str], path: Path, batch: int = 1000) -> list[int | None]:
    with closing(QuestionIndex(path)) as index:
        rows = items(questions)
        found: list[Repeat | None] = []
        for start in range(0, len(rows), batch):
            found += index.check_and_add(rows[start : start + batch])
        assert len(index) == found.count(None)
    for question, repeat in zip(questions, found, strict=True):
        if repeat is not None:
            assert repeat.question == questions[int(repeat.key)]
            assert repeat.alike == alike(question, repeat.question) >= NEAR_DUPLICATE
    return [repeat and int(repeat.key) for repeat in found]


# Few letters and short texts: sets at the threshold, equal sizes, shared prefixes; and names,
# signs, spellings that fold together, a lone surrogate.
TEXTS = st.one_of(
    st.text("ab ", max_size=14),
    st.builds(
        "{} {} {}{}".format,
        st.sampled_from(["What is", "what is", "WHAT  is", "Why"]),
        st.sampled_from(
            ["the log", "the logs", "sqlite3_open", "sqlite3_openx", "a -> b", "a ->> b"]
        ),
        st.sampled_from(["of the database file", "of the database files", "not of it", "\ud800"]),
        st.sampled_from(["", "?", " ?", "."]),
    ),
)


@settings(max_examples=150, deadline=None)
@given(questions=st.lists(TEXTS, max_size=25), batch=st.integers(1, 10))
def test_the_index_finds_what_comparing_all_pairs_finds(
    tmp_path_factory: pytest.TempPathFactory, questions: list[str], batch: int
) -> None:
    path = tmp_path_factory.mktemp("index") / "questions.sqlite"
    assert by_index(questions, path, batch) == by_definition(questions)


def rehearsed(count: int) -> list[str]:
    """Questions that the rehearsal's writer asks of the sample's chunks."""
    store = open_store(path=SAMPLE / "small_sqlite")
    kinds = list(rehearsal.QueryType.members)
    asked: list[str] = []
    for number, (point_id, payload) in enumerate(store.payloads(store.point_ids()[: count // 4])):
        chunk, _ = chunk_of(point_id, payload)
        if chunk is not None:
            for kind in kinds[number % 3 :][:4]:
                asked.append(written(chunk.chunk_text, kind))
    store.close()
    return asked


def written(chunk_text: str, kind: str) -> str:
    fields = {"chunk_text": chunk_text, "query_type": kind, "query_format": "formal question"}
    system = (
        "Your output fields are:\n1. `query` (str):\nAll interactions will be structured\n"
        "your objective is: a self-contained, specific query with at least three distinctive terms"
    )
    user = "\n\n".join(f"[[ ## {name} ## ]]\n{value}" for name, value in fields.items())
    messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
    answer = rehearsal.answer(messages)
    return answer.split("[[ ## query ## ]]\n")[1].split("\n\n")[0]


def test_two_thousand_real_questions_repeat_what_comparing_all_pairs_says(tmp_path: Path) -> None:
    questions = rehearsed(2400)
    random.Random(1).shuffle(questions)
    questions = questions[:2000]
    expected = by_definition(questions)
    assert len(questions) == 2000
    assert 100 < sum(found is not None for found in expected) < 1000  # there is something to find
    assert by_index(questions, tmp_path / "a.sqlite", 137) == expected


def test_the_same_call_twice_gives_the_same(tmp_path: Path) -> None:
    questions = ["What is the write-ahead log for?", "What is the write-ahead log for", "Why lock?"]
    with closing(QuestionIndex(tmp_path / "q.sqlite")) as index:
        first = index.check_and_add(items(questions))
        assert first == [None, Repeat("0", questions[0], 1.0), None]
        assert index.check_and_add(items(questions)) == first
        assert len(index) == 2
    with closing(QuestionIndex(tmp_path / "q.sqlite")) as index:  # and after a restart
        assert index.check_and_add(items(questions)) == first


def test_another_question_under_a_key_takes_the_place_of_the_first(tmp_path: Path) -> None:
    with closing(QuestionIndex(tmp_path / "q.sqlite")) as index:
        index.check_and_add([("a", "What is the write-ahead log for?", "")])
        assert index.check_and_add([("a", "Which locks does a reader hold?", "")]) == [None]
        assert index.check_and_add([("b", "What is the write-ahead log for?", "")]) == [None]
        (repeat,) = index.check_and_add([("a", "What is the write-ahead log  for ?", "")])
        assert repeat is not None
        assert repeat.key == "b"
        assert len(index) == 1  # neither the old nor the new one of "a"


def test_what_is_removed_is_repeated_no_more(tmp_path: Path) -> None:
    question = "Which locks does a reader hold?"
    with closing(QuestionIndex(tmp_path / "q.sqlite")) as index:
        index.check_and_add([("a", question, ""), ("c", "What is a page?", "")])
        index.remove(["a", "never there"])
        assert index.check_and_add([("b", question, "")]) == [None]
    with closing(sqlite3.connect(tmp_path / "q.sqlite")) as database:
        numbers = "SELECT DISTINCT number FROM {} ORDER BY number"
        of_grams, of_questions = (
            database.execute(numbers.format(table)).fetchall() for table in ("grams", "questions")
        )
    assert of_grams == of_questions == [(2,), (3,)]


def test_questions_removed_after_the_order_was_made_anew_leave_nothing(tmp_path: Path) -> None:
    rng = random.Random(5)
    questions = [f"{rng.random():.17f} {rng.random():.17f}" for _ in range(250)]
    with closing(QuestionIndex(tmp_path / "q.sqlite")) as index:
        assert index.check_and_add(items(questions)) == [None] * 250
        (repeat,) = index.check_and_add([("x", questions[3] + " ", "")])  # from before the order
        assert repeat is not None
        assert repeat.key == "3"
        index.remove([str(i) for i in range(250)])
        assert len(index) == 0
    with closing(sqlite3.connect(tmp_path / "q.sqlite")) as database:
        assert database.execute("SELECT count(*) FROM grams").fetchone() == (0,)
        assert database.execute("SELECT count(*) FROM common").fetchone()[0] > 0


def test_a_batch_that_fails_leaves_the_index_as_it_was(tmp_path: Path) -> None:
    with closing(QuestionIndex(tmp_path / "q.sqlite")) as index:
        index.check_and_add([("a", "What is a page?", "")])
        with pytest.raises(TypeError):
            index.check_and_add([("b", "Which locks are there?", ""), ("c", 7, "")])  # type: ignore[list-item]
        assert len(index) == 1
        assert index.check_and_add([("d", "Which locks are there?", "")]) == [None]


def test_threads_add_to_one_index(tmp_path: Path) -> None:
    found: list[Repeat | None] = []
    with closing(QuestionIndex(tmp_path / "q.sqlite")) as index:

        def add(thread: int) -> None:
            for i in range(30):
                found.extend(
                    index.check_and_add([(f"{thread}/{i}", f"question number {i:07}", "")])
                )

        threads = [threading.Thread(target=add, args=(thread,)) for thread in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 120
        assert found.count(None) == len(index) == 30


def test_a_file_that_is_no_index_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "q.sqlite").write_text(json.dumps({"not": "SQLite"}) * 100)
    with pytest.raises(UserError, match=r"q\.sqlite: cannot be opened"):
        QuestionIndex(tmp_path / "q.sqlite")


# ---------------------------------------------------------------------- of several configurations


def test_what_may_be_repeated_is_passed_over_and_stays(tmp_path: Path) -> None:
    question = "Which locks does a reader hold?"
    with closing(QuestionIndex(tmp_path / "q.sqlite")) as index:
        index.check_and_add([("old", question, "")])
        rows = [("new", question, ""), ("new too", question + " ", "")]
        one, other = index.check_and_add(rows, lambda key, there: there != "old")
        assert (one, other) == (None, Repeat("new", question, 1.0))
        (repeat,) = index.check_and_add([("any", question, "")])
        assert repeat == Repeat("old", question, 1.0)


def test_a_question_is_forgotten_only_while_it_is_the_one_that_was_found(tmp_path: Path) -> None:
    was, now = "Which locks does a reader hold?", "What is the write-ahead log for?"
    with closing(QuestionIndex(tmp_path / "q.sqlite")) as index:
        index.check_and_add([("a", was, "")])
        (found,) = index.check_and_add([("b", was, "")])
        assert found is not None
        index.check_and_add([("a", now, "")])
        index.forget([found])
        assert len(index) == 1
        index.forget([found._replace(question=now), Repeat("never there", was, 1.0)])
        assert len(index) == 0


def test_every_collection_has_a_file_of_its_own_under_a_name_that_any_disk_takes(
    tmp_path: Path,
) -> None:
    names = ["a/b", "a_b", "../up", "\u00fcber " * 60, "units"]
    paths = [index_path(tmp_path, name) for name in names]
    assert len(set(paths)) == len(names)
    for path in paths:
        assert path.parent == tmp_path
        path.touch()
    former = [tmp_path / f"questions-0123456789abcdef.sqlite{end}" for end in ("", "-wal", "-shm")]
    for path in former:
        path.touch()
    delete_former_indexes(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(paths)
