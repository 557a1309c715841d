"""Gates on a question's text: each defect is caught, and what only looks like one passes."""

from __future__ import annotations

import json
import random
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from conftest import SAMPLE
from question_optimizer.gates import (
    copies,
    copy_rate,
    folded,
    longest_run,
    looks_odd,
    near_duplicates,
    refers_outside,
)

GOLD = [
    row["gold_question"]
    for row in map(json.loads, (SAMPLE / "decisions.jsonl").read_text().splitlines())
    if row.get("gold_question")
]

# ---------------------------------------------------------------------- references to the unseen


@pytest.mark.parametrize(
    ("question", "phrase"),
    [
        ("What does this section say about WAL mode?", "this section"),
        ("Which limits are set in this chapter?", "this chapter"),
        ("Why do these figures differ?", "these figures"),
        ("What is the topic of the passage?", "topic of the passage"),
        ("Which value does the above table give for page_size?", "the above table"),
        ("How do the above differ?", "the above differ"),
        ("What are the advantages of the above approach?", "the above approach"),
        ("Which locks appear in the table above?", "table above"),
        ("Which of the two modes mentioned above is faster?", "mentioned above"),
        ("How does WAL avoid the problem described earlier?", "described earlier"),
        ("What does the document say about brakes?", "does the document say"),
        ("Which brake does the document describe first?", "does the document describe"),
        ("Which pressure, according to the text, is safe?", "according to the text"),
        ("Based on the context, when is a checkpoint run?", "Based on the context"),
        ("Which modes are listed in the document?", "listed in the document"),
        ("Why does the author recommend WAL mode?", "does the author recommend"),
        ("What does Figure 3 show about the pump?", "Figure 3"),
        ("Which pressure does Table 2.1 give?", "Table 2.1"),
        ("Which duties are listed in section 4.2?", "in section 4.2"),
        ("What does section 4 of this document require?", "this document"),
        ("What does Section 4 of the manual require?", "Section 4"),
        ("Which seal is drawn in figure 7?", "in figure 7"),
        ("What does the following example print?", "the following example"),
        ("Which of the following is a valid lock state?", "of the following"),
        ("What is true in the given passage?", "the given passage"),
        ("Which limits follow from the provided context?", "the provided context"),
        ("What is the result of the query in the example?", "in the example"),
        ("What did the previous section define?", "the previous section"),
        ("How does it differ from WAL mode?", "How does it differ"),
        ("Why is this important?", "Why is this important"),
        ("Does it support JSON?", "Does it support"),
        ("How do they interact?", "How do they interact"),
    ],
)
def test_a_reference_to_what_the_reader_cannot_see_is_found(question: str, phrase: str) -> None:
    assert refers_outside(question) == phrase


@pytest.mark.parametrize(
    "question",
    [
        # the thing is named
        "What does section 4 of EN 50128 require?",
        "Which locks does Chapter 5 of the SQLite manual explain?",
        "What does EN 50128 section 4 require of a validator?",
        "Which duties follow from EN 50128, Table 3?",
        "GDPR Chapter 3 rights of data subjects",
        "What does the section on foreign keys in the SQLite manual promise?",
        "According to the documentation of SQLite, is WAL faster?",
        "What is the purpose of the section of track before a signal?",
        # the noun or the content is in the question
        "If a table has no rowid, can this table still have an index?",
        "When I update a document, is this document locked?",
        "What does the following query return: SELECT 1?",
        'Why does the following statement fail: "DROP TABLE t"?',
        "When a document is stored, what does the document say of its author?",
        "Does EN 50128:2011 Table A.3 recommend formal proof?",
        "Appendix A of EN 50128 techniques",
        "Which brake test is required by section 5.2 of the UIC leaflet 540?",
        # "this" with a noun that is no piece of text
        "Why does this error occur on COMMIT?",
        "Can this lock be released early?",
        # another thing altogether
        "Table constraints in SQLite",
        "Which following-distance must a train keep?",
        "What is a document-oriented database?",
        "How do I get the root element of the document object model?",
        "Does the text column of a table keep trailing spaces?",
        "How long may the following page stay dirty?",
        "Which pipes run in the above-ground part of the depot?",
        "What happens at temperatures above 100 °C?",
        "Which signals protect section 3?",
        "Can two trains be in the same section at once?",
        "Section 508 compliance of web forms",
        "How do I set the title of the document?",
        "How do I cite a figure in the text in LaTeX?",
        "How do I add a row to the table below the header?",
        "How does the section above the bogie differ from the one below?",
        "What if the value is above the given limit?",
        "When is the following vehicle allowed to move?",
        "sqlite table 3 columns",
        "Who is the author of SQLite?",
        "Does the passage of time change a checksum?",
        "How do I list the tables above a given size?",
        # "it" stands for something in the question
        "Is it safe to delete the WAL file?",
        "What does it mean when SQLite returns SQLITE_BUSY?",
        "Why is it that a reader never blocks a writer?",
        "How does it help an app if SQLite uses WAL?",
        "How do they differ: WAL and DELETE mode?",
        "What does IT support need for a rollout?",
        "If SQLite crashes, how does it recover?",
        "How is that file kept small?",
        "Why is it called a hot journal?",
        "Does it matter whether a column is declared INT or INTEGER?",
        "Can they be nested, i.e. savepoints in SQLite?",
        # not English
        "Welche Bremse ist laut Abschnitt 4 der EN 50128 zu prüfen?",
        "Was steht in diesem Kapitel?",
        "この章では何を説明していますか。",
        "",
        "\ud800",
    ],
)
def test_what_only_looks_like_such_a_reference_passes(question: str) -> None:
    assert refers_outside(question) is None


@pytest.mark.parametrize("question", GOLD)
def test_the_gold_questions_of_the_sample_pass(question: str) -> None:
    assert refers_outside(question) is None
    assert looks_odd(question) is None


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=st.characters(), max_size=300))
@example("the " * 5000)
@example("this section " * 5000 + "\x00")
@example("\ud800" * 5000)
@example("[" * 5000)
def test_no_text_makes_a_gate_fail(text: str) -> None:
    refers_outside(text)
    looks_odd(text)
    folded(text)
    assert copies(text, text) is None or len(text) > 3
    near_duplicates([text, text])


def test_a_very_long_text_takes_no_time() -> None:
    long = "in the above section of the following " * 300_000  # 11 MB
    began = time.perf_counter()
    refers_outside(long)
    looks_odd(long)
    copies(long, long)
    copies("a b c d " * 1000, "a b c d " * 50_000)
    assert time.perf_counter() - began < 5


# ---------------------------------------------------------------------- copied from the chunk

CHUNK = "The write-ahead log grows until a checkpoint moves its pages back into the database file."


@pytest.mark.parametrize(
    ("question", "rate", "run"),
    [
        # 9 words, 6 runs of four, of which "the write ahead log", "write ahead log grows",
        # "ahead log grows until" are the chunk's
        ("When the write-ahead log grows until noon?", 3 / 5, 6),
        ("What ends the growth of a journal?", 0.0, 1),
        ("checkpoint moves its pages", 1.0, 4),
        ("checkpoint moves", 0.0, 2),  # too short for a run of four
        ("", 0.0, 0),
        (CHUNK, 1.0, 16),
        ("THE WRITE AHEAD LOG", 1.0, 4),  # neither case nor hyphen hides a copy
        # part of a word is no word: "log" is not found in "logs"
        ("write ahead logs grow", 0.0, 2),
    ],
)
def test_copying_is_measured_in_words(question: str, rate: float, run: int) -> None:
    assert copy_rate(question, CHUNK) == pytest.approx(rate)
    assert longest_run(question, CHUNK) == run


@pytest.mark.parametrize(
    ("question", "keywords", "finding"),
    [
        ("Why does a checkpoint moves its pages?", False, None),  # 2 of 4 runs: the limit itself
        ("How a checkpoint moves its pages?", False, "67% of its runs of 4 words are in the chunk"),
        ("checkpoint moves its pages", True, None),
        (
            "a checkpoint moves its pages back into the database",
            True,
            "9 words in a row are those of the chunk",
        ),
        (
            "What is: write-ahead log grows until a checkpoint, in SQLite's own words and mine",
            False,
            None,
        ),  # 7 in a row: the limit itself
    ],
)
def test_copying_has_two_limits_and_keywords_one(
    question: str, keywords: bool, finding: str | None
) -> None:
    assert copies(question, CHUNK, keywords=keywords) == finding


# ---------------------------------------------------------------------- odd as a question


@pytest.mark.parametrize(
    ("question", "finding"),
    [
        ("Here are three questions about WAL:", "begins like a model's preamble"),
        ("Sure! What is WAL mode?", "begins like a model's preamble"),
        ("Question 2: What is WAL mode?", "begins like a model's preamble"),
        ("Question: What is WAL mode?", "begins like a model's preamble"),
        ("1. What is WAL mode?", "begins with what is left of a list"),
        ("2) What is WAL mode?", "begins with what is left of a list"),
        ("- What is WAL mode?", "begins with what is left of a list"),
        ("• What is WAL mode?", "begins with what is left of a list"),
        ("b) What is WAL mode?", "begins with what is left of a list"),
        ("```\nWhat is WAL mode?", "begins with what is left of a list"),
        ('"What is WAL mode?"', "stands in quotes"),
        ("“What is WAL mode?”", "stands in quotes"),
        ('{"question": "What is WAL mode?"}', "is JSON"),
        ("WAL?", "has fewer than 2 words"),
        ("?", "has fewer than 2 words"),
        ("why " * 61, "has more than 60 words"),
        # near misses
        ("Sure ways to corrupt an SQLite file", None),
        ("Question marks as SQLite host parameters", None),
        ("Question 42 parameters in SQLite?", "begins like a model's preamble"),
        ("3.7.0 sqlite corruption", None),
        ("-> operator for a missing JSON key", None),
        ("--flag of the sqlite3 shell", None),
        ('"status" compared with "state" in SQLite', None),
        ("'90s limits of SQLite", None),
        ("[main].[t] quoting in SQLite", None),
        ("{name} as a host parameter", None),
        ("WAL mode", None),
        ("why " * 60, None),
        ("制动距离是多少?", None),  # words are not parted by spaces
        ("Bremsweg eines Güterzugs?", None),
    ],
)
def test_what_is_no_plain_question_is_said(question: str, finding: str | None) -> None:
    assert looks_odd(question) == finding


# ---------------------------------------------------------------------- the same again


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("What is WAL?", "  what is\nwal ", True),
        ("What is WAL?", '"What is WAL?"', True),
        ("ﬁle", "file", True),
        ("What does -> return?", "What does ->> return?", False),
        ("WAL limit", "WAL limits", False),
    ],
)
def test_two_spellings_of_one_question_fold_into_one(a: str, b: str, same: bool) -> None:
    assert (folded(a) == folded(b)) is same


def test_the_index_is_that_of_character_runs_of_five() -> None:
    # "abcdefghi": 5 runs; "abcdefghj": 5 runs, 4 of them shared; 4 / 6
    assert near_duplicates(["abcdefghi", "abcdefghj"], 0.6) == [(0, 1, pytest.approx(4 / 6))]
    assert near_duplicates(["abcdefghi", "abcdefghj"], 0.7) == []
    assert near_duplicates(["ab", "ab", "", ""]) == [(0, 1, 1.0)]


def all_pairs(texts: list[str], threshold: float) -> list[tuple[int, int]]:
    sets = [{t[i : i + 5] for i in range(max(1, len(t) - 4))} if t else set() for t in texts]
    return [
        (i, j)
        for j in range(len(sets))
        for i in range(j)
        if sets[i] and sets[j] and len(sets[i] & sets[j]) / len(sets[i] | sets[j]) >= threshold
    ]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.text(alphabet="abc", max_size=14), max_size=25),
    st.sampled_from([0.3, 0.5, 0.6, 0.75, 0.8, 0.9, 1.0]),
)
def test_no_pair_is_missed_or_made_up(texts: list[str], threshold: float) -> None:
    found = [(i, j) for i, j, _ in near_duplicates(texts, threshold)]
    assert found == sorted(all_pairs(texts, threshold))


def test_five_thousand_questions_take_seconds() -> None:
    draw = random.Random(0)
    words = sorted({word for question in GOLD for word in question.split()})
    texts = [f"What is the {' '.join(draw.choices(words, k=6))} in SQLite?" for _ in range(4999)]
    began = time.perf_counter()
    found = near_duplicates([*texts, texts[17].replace("What", "what") + " "])
    assert [(i, j) for i, j, _ in found] == [(17, 4999)]
    assert time.perf_counter() - began < 10
