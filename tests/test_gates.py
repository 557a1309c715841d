"""Gates on a question's text: each defect is caught, and what only looks like one passes."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from conftest import SAMPLE
from fetch_chunks import main as fetch_chunks
from question_optimizer import rehearsal
from question_optimizer.duplicates import folded, near_duplicates
from question_optimizer.gates import GATES, GateFailure, gate_failures, looks_odd
from question_optimizer.overlap import copies
from question_optimizer.references import refers_outside

GOLD = [
    row["gold_question"]
    for row in map(json.loads, (SAMPLE / "decisions.jsonl").read_text().splitlines())
    if row.get("gold_question")
]


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
    began = time.thread_time()
    refers_outside(long)
    looks_odd(long)
    copies(long, long)
    copies("a b c d " * 1000, "a b c d " * 50_000)
    assert time.thread_time() - began < 10


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
        ("What is WAL?\nAnswer: a log", "holds a label of a model's answer"),
        ("What is WAL?\n2. What is SHM?", "holds numbered lines"),
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


# ---------------------------------------------------------------------- all gates at once

LOG = (
    "The write-ahead log grows until a checkpoint moves its pages back into the database file. "
    "Readers do not block writers, and a writer does not block readers, because each of them looks "
    "at its own end mark of the log. FTS5 marks what it found with <b> and </b>."
)
BRAKE = (
    "Die Bremse des Güterzugs wird über die Hauptluftleitung gesteuert. Der Druck in der Leitung "
    "beträgt fünf bar, und bei einer Senkung legen die Bremsen an. Das Steuerventil ist an jedem "
    "Wagen angebracht und wird regelmäßig geprüft."
)
FREIN = (
    "Le frein du train est commandé par la conduite générale. La pression dans la conduite est de "
    "cinq bars, et les freins se serrent quand elle baisse. Un distributeur est monté sur chaque "
    "wagon et il est contrôlé tous les six ans."
)
SEIDO = "貨物列車のブレーキは制動管によって制御される。圧力が下がるとブレーキが作動する。" * 2
F, K = "formal question", "keywords"
ACCEPTED = [
    "How does an SQLite reader decide whether to fetch a page from the WAL or from the main file?",
    "How do I read a JSON value with the -> operator in SQLite when the path names an array?",
    "Why does SQLite keep 16 bytes of salt in the header of its write-ahead log file on disk?",
    "What happens in SQLite if a reader is still using the log while a checkpoint is running?",
    "",
]

PLANTED: dict[str, list[tuple[str | None, str, str | None]]] = {
    "empty": [
        (None, LOG, F),
        ("", LOG, K),
        (" \n\t ", LOG, None),
        ("???", LOG, F),
        ("\u200b\ufeff", LOG, F),
        ("N/A", LOG, K),
        ("None.", LOG, F),
        ("-> ->>", LOG, K),
    ],
    "preamble": [
        ("Here is a question: how does the log grow?", LOG, F),
        ("Here's one for a developer: how does the log grow?", LOG, F),
        ("**Question:** How does the log grow?", LOG, F),
        ("Query: sqlite log growth", LOG, K),
        ("I'm sorry, but which log is meant by this?", LOG, F),
        ("I cannot assist with this, is that fine?", LOG, F),
        ("Hier ist eine Frage: Wie hoch ist der Druck?", BRAKE, F),
        ("Voici une question : quelle est la pression ?", FREIN, F),
        ("How does the log grow?\n\nReasoning: the chunk tells of growth.", LOG, F),
        ("How does the log grow?\n**Explanation:** it tests recall", LOG, F),
    ],
    "list_residue": [
        ("1. How does the log grow?", LOG, F),
        ("(2) How does the log grow?", LOG, F),
        ("- sqlite log growth", LOG, K),
        ("## How does the log grow?", LOG, F),
        ("How does the log grow?\n2. When does it shrink?", LOG, F),
    ],
    "quoted": [
        ('"How does the log grow?"', LOG, F),
        ("“How does the log grow?”", LOG, F),
        ("„Wie hoch ist der Druck in der Leitung?“", BRAKE, F),
        ("'sqlite log growth'", LOG, K),
    ],
    "json": [
        ('{"query": "How does the log grow?"}', LOG, F),
        ('["How does the log grow?", "When?"]', LOG, F),
        ('{"question": "How does the log gr', LOG, F),  # cut off
        ("{'query': 'How does the log grow?'}", LOG, F),  # Python's spelling
    ],
    "markup": [
        ("[[ ## query ## ]] How does the log grow?", LOG, F),
        ("How does the log grow? [[ ## completed ## ]]", LOG, F),
        ("[\u200b[ ## query ## ]] How does the log grow?", LOG, F),
        ("<question>How does the log grow?</question>", LOG, F),
        ("<think>hm</think> How does the log grow?", LOG, F),
        ("How does the log grow?<br>", LOG, F),
        ('How does <a href="x">the log</a> grow?', LOG, F),
        ("How does the log grow &amp; shrink?", LOG, F),
        ("How does the log grow?<|im_end|>", LOG, F),
        ("```\nHow does the log grow?\n```", LOG, F),
        ("**How does the log grow?**", LOG, F),
        ("How does the \x1b[31mlog\x1b[0m grow?", LOG, F),
        ("How does the\x00 log grow?", LOG, F),
        ("How does the log \u202eworg?", LOG, F),
        ("How does the log grow \ud800?", LOG, F),
        ("How does the log grow?\U000e0041\U000e0042", LOG, F),
    ],
    "length": [
        ("WAL", LOG, K),
        ("WAL growth?", LOG, F),
        ("sqlite log growth reader writer block page file end mark size", LOG, K),
        ("why " * 61 + "?", LOG, F),
        ("管?", SEIDO, F),
        ("制" * 121 + "?", SEIDO, F),
        ("How does the log grow " + " " * 2000 + "?", LOG, F),
        ("x" * 1_000_000, LOG, None),
    ],
    "format": [
        ("sqlite log growth?", LOG, K),
        ("What is the growth of the log", LOG, K),
        ("how does sqlite grow its log", LOG, K),
        ("does sqlite truncate the log", LOG, K),
        ("Tell me about log growth", LOG, K),
        ("can I delete the log", LOG, K),
        ("explain how the log grows", LOG, K),
        ("was ist die Hauptluftleitung", BRAKE, K),
        ("SQLite log growth", LOG, F),
        ("A log of this kind shrinks at night.", LOG, F),
        ("Der Druck beträgt dort fünf bar.", BRAKE, F),
    ],
    "several_questions": [
        ("How does the log grow? When does a checkpoint run?", LOG, F),
        ("Which is faster, WAL or DELETE? And why?", LOG, F),
        ("管の圧力はいくらですか？いつ作動しますか？", SEIDO, F),
        ("Quelle est la pression ? Quand les freins se serrent-ils ?", FREIN, F),
        ("sqlite log? growth?", LOG, K),
    ],
    "refers_outside": [
        ("What does this section say about the log?", LOG, F),
        ("Which mark does Table 2.1 give for the log?", LOG, F),
        ("How does it differ from DELETE mode?", LOG, F),
        ("locks mentioned above", LOG, K),
    ],
    "copies": [
        ("Why is it that readers do not block writers, and a writer does not block?", LOG, F),
        ("How the log grows until a checkpoint moves its pages back?", LOG, F),
        ("log grows until a checkpoint moves its pages back into", LOG, K),
        # quoting the chunk does not hide a copy that is most of the question
        ('Is "grows until a checkpoint moves its pages back into the database file" so?', LOG, F),
    ],
    "generic": [
        ("What is the main purpose of the system?", LOG, F),
        ("What are the requirements?", LOG, F),
        ("How does this process work in general?", LOG, F),
        ("Explain the key concepts and benefits.", LOG, F),
        ("WHAT ARE THE MAIN POINTS?", LOG, F),
        ("main features overview", LOG, K),
    ],
    "language": [
        ("Wie hoch ist der Druck in der Hauptluftleitung?", LOG, F),
        ("Wie wächst das Protokoll, wenn ein Leser es noch braucht?", LOG, F),
        ("Which pressure is there in the pipe of a freight train?", BRAKE, F),
        ("Quelle est la pression dans la conduite du train ?", BRAKE, F),
        ("¿Cuál es la presión en la tubería cuando el tren frena?", LOG, F),
        ("制動管の圧力はいくらですか？", LOG, F),
        ("What is the pressure in the brake pipe of a train?", SEIDO, F),
        ("Как растёт журнал предзаписи?", LOG, F),
    ],
    "near_duplicate": [
        (ACCEPTED[0], LOG, F),
        (ACCEPTED[0].upper(), LOG, F),
        (ACCEPTED[0].replace("decide", "choose"), LOG, F),
        (ACCEPTED[2].replace("does", "must"), LOG, F),
        (f'"{ACCEPTED[1]}"', LOG, F),
    ],
}

PASSING: dict[str, list[tuple[str, str, str | None]]] = {
    "empty": [
        ("Why use WAL?", LOG, F),
        ("None of the readers blocks: why?", LOG, F),
        ("n/a value sqlite", LOG, K),
        ("制動管 圧力", SEIDO, K),
        ("-> operator", LOG, K),
        ("42 bytes", LOG, K),
        ("NULL handling", LOG, K),
        ("Unknown error 21?", LOG, None),
    ],
    "preamble": [
        ("Here's my query: SELECT a FROM t. Why is it slow?", LOG, F),
        ("I'm unable to open a database after a crash. What can I do?", LOG, F),
        ("I cannot provide a mutex of my own: can SQLite do without?", LOG, F),
        ("Unfortunately, a disk failed. Which SQLite tool saves most rows?", LOG, F),
        ("Sure ways to corrupt an SQLite file", LOG, K),
        ("Question marks as SQLite host parameters", LOG, K),
        ("Hier wird gebremst: Welcher Druck herrscht in der Leitung?", BRAKE, F),
        ("Voici un train arrêté : comment desserrer ses freins ?", FREIN, F),
        ("Query planner hints of SQLite", LOG, K),
        ("Why does this fail in SQLite:\nSELECT note: 1", LOG, F),
    ],
    "list_residue": [
        ("3.7.0 sqlite corruption", LOG, K),
        ("-> operator for a missing JSON key", LOG, K),
        ("--flag of the sqlite3 shell", LOG, K),
        ("#include sqlite3.h error", LOG, K),
        ("Why is 1 + 1\n2 in SQLite?", LOG, F),
    ],
    "quoted": [
        ('"status" compared with "state" in SQLite', LOG, K),
        ("'90s limits of SQLite", LOG, K),
        ('"no such table: t" in sqlite', LOG, K),
        ("`PRAGMA journal_mode` return value", LOG, K),
    ],
    "json": [
        ("[main].[t] quoting in SQLite", LOG, K),
        ("{name} as a host parameter", LOG, K),
        ("How does json('{\"query\": 1}') end in SQLite?", LOG, F),
        ("'{\"a\":1}' -> '$.a' result", LOG, K),
    ],
    "markup": [
        ("Why does FTS5 write <b> and </b> around a match?", LOG, F),  # the chunk's own tags
        ("What does `</td>` do in the shell's HTML mode?", LOG, F),
        ("How do I turn '&amp;' into a plain sign in SQLite?", LOG, F),
        ("Can a C++ vector<int> be bound as a blob?", LOG, F),
        ("How do I COPY <table> to a file?", LOG, F),
        ("Is a<b>c a valid comparison in SQLite?", LOG, F),
        ("Does a[[1]] index an array in SQL?", LOG, F),
        ("What is 2**3**2 in SQLite?", LOG, F),
        ("How does << differ from >> in SQLite?", LOG, F),
        ("What does **kwargs bind in sqlite3?", LOG, F),
        ("How does the log\tgrow\nat night?", LOG, F),
        ("Why \u2192 and not -> in JSON paths?", LOG, F),
        ("Do emoji \U0001f469\u200d\U0001f4bb fit into TEXT?", LOG, F),
        ("AT&T syntax in SQLite's assembly?", LOG, F),
        ("~/.sqliterc commands", LOG, K),
        ("x \\x1b escape in sqlite dump", LOG, K),
    ],
    "length": [
        ("WAL growth", LOG, K),
        ("Why use WAL?", LOG, F),
        ("What's WAL?", LOG, F),
        ("why " * 59 + "WAL?", LOG, F),
        ("制動距離は?", SEIDO, F),
        ("KE弁は?", SEIDO, F),
        ("制" * 118 + "?", SEIDO, F),
        ("EN 50128 SIL 4 tool qualification T2 T3 report", LOG, K),
    ],
    "format": [
        ("how to enable foreign keys sqlite", LOG, K),
        ("explain query plan sqlite output", LOG, K),
        ("list temporary and permanent tables sqlite", LOG, K),
        ("describe table sqlite equivalent", LOG, K),
        ("show create table sqlite", LOG, K),
        ("sqlite ?1 and ?NNN parameters", LOG, K),
        ("sqlite placeholder ?", LOG, K),
        ("IS NULL vs = NULL", LOG, K),
        ("do not block readers sqlite", LOG, K),
        ("In SQLite, how do I list the columns of a table", LOG, F),
        ("Compare WAL with DELETE mode.", LOG, F),
        ("I wonder whether VACUUM keeps rowids.", LOG, F),
        ("Suppose a reader never ends: the log of SQLite grows, but when does it stop", LOG, F),
        ("Erkläre die Aufgabe des Steuerventils.", BRAKE, F),
        ("制動管の圧力はいくらですか。", SEIDO, F),
        ("SQLite log growth", LOG, None),
    ],
    "several_questions": [
        ("What is the difference between ? and ?NNN parameters in SQLite?", LOG, F),
        ("How do I bind INSERT INTO t VALUES(?,?,?) in a loop?", LOG, F),
        ("Is WAL faster (or slower?) than DELETE mode on flash storage?", LOG, F),
        ('What should I answer to "Is the log full?" in a review?', LOG, F),
        ("Why do WHERE a = ? and WHERE a IN (?) differ in cost?", LOG, F),
        ("Does `SELECT 1? ` parse, and what does it mean?", LOG, F),
        ("My log grows. What can I do? I use WAL mode.", LOG, F),
        ("Does a checkpoint ever fail???", LOG, F),
    ],
    "refers_outside": [
        ("What does section 4 of EN 50128 require?", LOG, F),
        ("Can the EN 50128 techniques of Table A.3 be combined?", LOG, F),
        ("Is it safe to delete the WAL file?", LOG, F),
        ("If a table has no rowid, can this table have an index?", LOG, F),
    ],
    "copies": [
        ("Why do readers not wait for a writer in WAL mode?", LOG, F),
        ("write-ahead log checkpoint database file", LOG, K),
        ('What does "readers do not block writers" promise a phone app?', LOG, F),
        ("Will an index WHERE a=5 OR b=6 serve b=6 AND a=7?", "ON t(a,b) WHERE a=5 OR b=6", F),
    ],
    "generic": [
        ("What are the requirements of a hot journal?", LOG, F),
        ("What does -> do?", LOG, F),
        ("What is the purpose of WAL?", LOG, F),
        ("What is the main use of IT?", LOG, F),
        ("How does iOS work?", LOG, F),
        ("What happens on 5?", LOG, F),
        ("Wozu dient das System?", BRAKE, F),
        ("page size limits", LOG, K),
    ],
    "language": [
        ("Which torque does the Zylinderkopfschraube M8x40 of the Einspritzpumpe need?", LOG, F),
        ("What does the German word Hauptluftleitung mean for a train?", LOG, F),
        ("Wie hoch ist der Druck in der Hauptluftleitung?", BRAKE, F),
        ("Bremsdruck Güterzug maximal", LOG, K),
        ("PRAGMA foreign_keys SQLITE_BUSY", SEIDO, K),
        ("KE valveの制御弁とは何ですか？", SEIDO, F),
        ("How is the λ of a Poisson process estimated?", LOG, F),
        ("Quelle est la pression dans la conduite générale ?", FREIN, F),
        ("Was PRAGMA journal_mode=WAL set by the last reader, or in the file?", LOG, F),
        ("Which pressure is there in the pipe of a train?", "0x00 0xff 0x1b", F),
        ("Which pressure is there in the pipe of a train?", "x y a o y a si x no y a o e y a", F),
    ],
    "near_duplicate": [
        (ACCEPTED[1].replace("->", "->>"), LOG, F),
        (ACCEPTED[2].replace("16", "32"), LOG, F),
        (ACCEPTED[3].replace("is still", "is not"), LOG, F),
        (ACCEPTED[0].replace("WAL", "SHM"), LOG, F),
        ("Why does a checkpoint wait for the slowest reader?", LOG, F),
    ],
}


def failures(question: str | None, chunk: str, query_format: str | None) -> dict[str, str]:
    found = gate_failures(question, chunk_text=chunk, query_format=query_format, others=ACCEPTED)
    assert [f.gate for f in found] == [gate for gate in GATES if gate in dict(found)]  # the order
    return dict(found)


@pytest.mark.parametrize("gate", GATES)
def test_every_gate_has_planted_defects_and_as_many_near_misses(gate: str) -> None:
    assert len(PLANTED[gate]) >= 4
    assert len(PASSING[gate]) >= len(PLANTED[gate])
    assert GATES[gate]


def test_no_gate_is_planted_that_there_is_not() -> None:
    assert PLANTED.keys() == PASSING.keys() == GATES.keys()


@pytest.mark.parametrize(
    ("gate", "case"), [(gate, case) for gate, cases in PLANTED.items() for case in cases]
)
def test_a_planted_defect_is_caught_by_its_gate(
    gate: str, case: tuple[str | None, str, str | None]
) -> None:
    reason = failures(*case).get(gate)
    assert reason
    assert len(reason) < 200


@pytest.mark.parametrize("case", [case for cases in PASSING.values() for case in cases])
def test_what_only_looks_like_a_defect_passes_all_gates(case: tuple[str, str, str | None]) -> None:
    assert failures(*case) == {}


def test_all_defects_of_a_question_are_told_and_an_empty_one_has_no_other() -> None:
    question = "1. What does this section say? And <b>why</b> so?"
    found = gate_failures(question, chunk_text="", query_format="keywords")
    assert [f.gate for f in found] == [
        "list_residue",
        "markup",
        "format",
        "several_questions",
        "refers_outside",
    ]
    assert found[1].reason == "holds </b>"
    assert [f.gate for f in gate_failures("``` ", chunk_text=LOG)] == ["empty"]


@pytest.mark.parametrize(
    ("query_format", "caught"),
    [
        ("keywords", True),
        ("Keywords.", True),
        ("formal question", False),
        (None, False),
        ("", False),
    ],
)
def test_the_format_is_read_in_any_spelling(query_format: str | None, caught: bool) -> None:
    found = gate_failures("How does the log grow?", chunk_text=LOG, query_format=query_format)
    assert bool(found) is caught


# ---------------------------------------------------------------------- no false kill


@pytest.fixture(scope="module")
def chunks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """{id: text} of all chunks of the sample's folder."""
    data = tmp_path_factory.mktemp("sample")
    folder = str(SAMPLE / "small_sqlite")
    assert (
        fetch_chunks(["--qdrant-path", folder, "--sample-size", "648", "--data-dir", str(data)])
        == 0
    )
    rows = map(json.loads, (data / "raw_chunks.jsonl").read_text().splitlines())
    return {str(row["chunk_id"]): row["chunk_text"] for row in rows}


def test_every_gold_question_of_the_sample_passes_all_gates(chunks: dict[str, str]) -> None:
    rows = [json.loads(line) for line in (SAMPLE / "decisions.jsonl").read_text().splitlines()]
    gold = [row for row in rows if row.get("gold_question")]
    assert len(gold) == 73
    for number, row in enumerate(gold):
        others = [other["gold_question"] for other in gold[:number]]
        text, chunk = row["gold_question"], chunks[str(row["chunk_id"])]
        form = row["query_format"]
        assert not gate_failures(text, chunk_text=chunk, query_format=form, others=others)


def test_the_rehearsals_good_questions_pass_all_gates(chunks: dict[str, str]) -> None:
    for chunk in list(chunks.values())[:150]:
        terms = [*rehearsal._terms(chunk), "limits", "scope", "pages"][:4]
        for template in rehearsal._TEMPLATES.values():
            assert not gate_failures(template.format(*terms), chunk_text=chunk, query_format=F)
        assert not gate_failures(" ".join(terms), chunk_text=chunk, query_format=K)


# Written by reading chunks that have no gold question.
ASKED = [
    (
        "a70df691-8f36-4fd0-af96-b8e766f6c4f4",
        F,
        "What should my unlock_notify wrapper return when waiting would deadlock?",
    ),
    ("a70df691-8f36-4fd0-af96-b8e766f6c4f4", K, "sqlite3_unlock_notify SQLITE_LOCKED wait"),
    (
        "833e7dcc-5980-4a8e-9ffd-03e56a4f836f",
        F,
        "Why can't I remove an artist from the SQLite database while songs still point at him?",
    ),
    ("833e7dcc-5980-4a8e-9ffd-03e56a4f836f", K, "foreign key constraint failed on delete"),
    (
        "67fb2720-7918-4434-9ca6-303e63e8839c",
        F,
        "How do I switch off memory-mapped I/O in SQLite for good at build time?",
    ),
    ("67fb2720-7918-4434-9ca6-303e63e8839c", K, "SQLITE_MAX_MMAP_SIZE vs PRAGMA mmap_size"),
    (
        "77dfe6e4-c83f-4f59-a6e6-5fdb06f6d724",
        F,
        "Is it a bug that I can put text into an INTEGER column?",
    ),
    ("77dfe6e4-c83f-4f59-a6e6-5fdb06f6d724", F, "Does SQLite enforce VARCHAR lengths"),
    ("7f9dc67b-a927-43da-a186-fda8eef34176", F, "Can two processes write at once in WAL mode?"),
    ("7f9dc67b-a927-43da-a186-fda8eef34176", K, "concurrent readers and writers WAL"),
    (
        "d2cd4b89-dc87-476a-9467-a92115d7cc65",
        F,
        "Which hook lets me decide myself when to checkpoint?",
    ),
    (
        "36ae6147-8c2d-44e0-81d9-0fd1c26cbce8",
        F,
        "Explain why passing thousands of arguments to a SQL function is suspicious.",
    ),
    ("36ae6147-8c2d-44e0-81d9-0fd1c26cbce8", K, "max number of function arguments sqlite"),
    ("2b8bb230-2b22-4fcc-8ccd-6ad10108d82e", F, "Is WAL_WRITE_LOCK ever shared?"),
    (
        "39975f5a-1504-424f-aeb2-28e8b046ff64",
        F,
        "When does a shared-cache connection let go of its table locks?",
    ),
    (
        "b73ad786-23f6-4d4e-a8c4-c169e1f0289f",
        F,
        "Where does SQLite keep the -shm file, and may I delete it?",
    ),
    (
        "f8b28f1e-a0fd-46cb-abdd-ae1a78a7f2da",
        F,
        'Why did SQLite name my trigger "AFTER" and make it run before the insert?',
    ),
    ("f8b28f1e-a0fd-46cb-abdd-ae1a78a7f2da", K, "keyword as identifier sqlite parser"),
    (
        "640baf04-d02a-4b84-800d-7905d7779276",
        F,
        "What happens to track.trackartist when artist.artistid becomes 100 with a CASCADE?",
    ),
    (
        "65e04009-2ff7-4cee-9532-67d44464a51c",
        F,
        "Does SQLite drop its page cache after every commit?",
    ),
    (
        "f566b3ba-3a2d-43ac-81c3-88506b24a723",
        F,
        "How would I declare that every track must belong to an existing artist?",
    ),
    ("30b02558-672f-46ad-ab30-227779e4f7ce", K, "nolock=1 uri parameter danger"),
    ("30b02558-672f-46ad-ab30-227779e4f7ce", F, "Is `nolock=1` safe on NFS?"),
    (
        "8359160e-341f-40cf-829b-7313604ab588",
        F,
        "What if the unlock callback fires before my thread starts to wait?",
    ),
    (
        "3d7cd2c2-e182-4121-ad0d-a200225b02ea",
        F,
        "What does '{\"a\":2,\"c\":[4,5]}' -> '$.c' give in SQLite: JSON or text?",
    ),
    ("3d7cd2c2-e182-4121-ad0d-a200225b02ea", K, "-> '$.c[2]' result"),
    (
        "3d7cd2c2-e182-4121-ad0d-a200225b02ea",
        F,
        "How do -> and ->> differ when the path points to a string?",
    ),
    (
        "a9fd614c-f90d-4cfb-b794-cf5cce48ea63",
        F,
        "How do I set an undo barrier in Tcl with the undolog table?",
    ),
    (
        "37ed82cd-1e0f-4965-b346-8d26a824609f",
        F,
        "How do I escape a '?' or '#' in an SQLite file: URI?",
    ),
    ("37ed82cd-1e0f-4965-b346-8d26a824609f", K, "%HH escapes sqlite uri filename"),
    (
        "5cdabec9-1082-4ced-8863-0636bf9f5094",
        F,
        "For a given frame i, which slot of aPgno[] holds its page number?",
    ),
    ("ff9904f3-36d4-4a7f-ae9d-e5da23c583ca", K, "SQLITE_TEMP_STORE 0 1 2 3"),
    (
        "ff9904f3-36d4-4a7f-ae9d-e5da23c583ca",
        F,
        "Does PRAGMA temp_store=MEMORY always win over the compile-time setting?",
    ),
    (
        "7a4b68ee-9588-4ef6-bbef-67e5f1e6f56b",
        F,
        "Could I throttle an online backup so that other users aren't blocked for long?",
    ),
    (
        "fb806b83-fcd2-4604-91e0-357ebf647a1c",
        F,
        'Will a partial index on (a,b) WHERE a=5 OR b=6 be used for "b=6 AND a=7"?',
    ),
    (
        "da24d1b5-5438-4b42-98e5-e74b78c872ee",
        F,
        "Why do SQLITE_OMIT_* options have no effect when I compile the amalgamation?",
    ),
    ("3f8a1a55-92a2-49d2-84f1-c7b72ce1e998", K, "max sqlite db size TB"),
    ("3f8a1a55-92a2-49d2-84f1-c7b72ce1e998", F, "How big can one database get at 64 KiB pages?"),
]


@pytest.mark.parametrize(("chunk_id", "form", "question"), ASKED)
def test_questions_as_people_ask_them_pass_all_gates(
    chunks: dict[str, str], chunk_id: str, form: str, question: str
) -> None:
    assert gate_failures(question, chunk_text=chunks[chunk_id], query_format=form) == []


# ---------------------------------------------------------------------- any text at all

PIECES = [pair[0] or "" for cases in PLANTED.values() for pair in cases]


@settings(max_examples=150, deadline=None)
@given(
    st.one_of(
        st.text(alphabet=st.characters(), max_size=300),
        st.lists(st.sampled_from(PIECES), max_size=3).map(" ".join),
    ),
    st.one_of(st.sampled_from(["", LOG, SEIDO, "\x00", "\ud800"]), st.text(max_size=200)),
    st.sampled_from([None, F, K, "?"]),
)
@example("\ud800" * 5000, "\ud800", F)
@example("\x00", "\x00", K)
@example("x" + "\n" * 1900 + "x", LOG, F)
@example("A" * 1_000_000, "", None)
@example("{" * 2000, "{" * 5000, F)
def test_gates_take_any_text_and_say_the_same_twice(
    question: str, chunk: str, query_format: str | None
) -> None:
    def run() -> list[GateFailure]:
        return gate_failures(
            question, chunk_text=chunk, query_format=query_format, others=[chunk, *ACCEPTED]
        )

    found = run()
    assert found == run()
    assert all(gate in GATES and reason for gate, reason in found)


def test_only_the_beginning_of_a_question_is_looked_at() -> None:
    found = gate_failures("Why use WAL? " + " " * 2000 + "```", chunk_text=LOG, query_format=F)
    assert [f.gate for f in found] == ["length"]
