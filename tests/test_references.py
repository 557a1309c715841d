"""References to what a reader cannot see are found, and what only looks like one passes."""

from __future__ import annotations

import pytest

from question_optimizer.references import refers_outside


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
