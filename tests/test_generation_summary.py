"""What a run of the generator came to: counted by hand, and by gates that refuse too much."""

from __future__ import annotations

import json
import random
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from export_corpus import ListedStore, Passage
from ledger_marks import mark_written
from question_optimizer.generation.document_names import document_names
from question_optimizer.generation.examples import examples
from question_optimizer.generation.ledger import Ledger
from question_optimizer.generation.ledger_records import Configuration, Refusal, Result
from question_optimizer.generation.quotas import Cell, targets
from question_optimizer.generation.summary import Run, summarise, write_summary
from question_optimizer.generation.yields import DIMENSIONS, Tally, yields
from question_optimizer.records import QueryFormat, QueryType

CONFIGURATION = Configuration("sqlite_docs", "a" * 16, "b" * 16, ("mid-70b", "small-8b"))
Record = Callable[..., Ledger]
Refused = tuple[int | str, int, Refusal]


@pytest.fixture
def record(tmp_path: Path) -> Iterator[Record]:
    """Writes results and refusals into a ledger, which is closed in the end."""
    made: list[Ledger] = []

    def write(results: Sequence[Result], refusals: Sequence[Refused] = ()) -> Ledger:
        made.append(Ledger(tmp_path / f"generation-{len(made)}.sqlite", CONFIGURATION))
        made[-1].record(results, refusals)
        return made[-1]

    yield write
    for ledger in made:
        ledger.close()


def slot(chunk: int | str, number: int = 0, **more: Any) -> Result:
    """An accepted question, of one call for ten tokens."""
    told: dict[str, Any] = {
        "state": "done",
        "query": f"Why does chunk {chunk} hold {number}?",
        "query_type": "reasoning",
        "query_format": "formal question",
        "query_length": "short",
        "persona_id": "P1",
        "model": "small-8b",
        "document": "wal.html",
        "calls": 1,
        "tokens": 10,
        "cost": 0.5,
        "attempts": 1,
        "checked": "training",
    }
    return Result(chunk, number, **{**told, **more})


def gone(chunk: int | str, gate: str = "round_trip", number: int = 0, **more: Any) -> Result:
    """A slot that was given up."""
    given_up = {"state": "rejected", "query": None, "gate": gate, "reason": "because"}
    return slot(chunk, number, **{**given_up, **more})


def refused(chunk: int | str, gate: str, number: int = 0, **more: Any) -> Refused:
    kinds = {
        "query_type": "reasoning",
        "query_format": "formal question",
        "query_length": "short",
        "persona_id": "P1",
        "model": "small-8b",
    }
    query = f"What is refused in {chunk}?"
    return chunk, number, Refusal(query, gate, f"because of {gate}", **{**kinds, **more})


def kinds(summary: dict[str, Any], dimension: str) -> dict[Any, tuple[int, int, int]]:
    """{kind: (asked, accepted, failed)}"""
    return {
        one["kind"]: (one["asked"], one["accepted"], one["failed"])
        for one in summary["yields"][dimension]["listed"]
    }


def many(rng: random.Random, n: int = 1500) -> tuple[list[Result], list[Refused]]:
    """A run as it may be: every state, several slots a chunk, refusals in all of them."""
    results, refusals = [], []
    for place in range(n):
        chunk, number = place // 3, place % 3
        told = {
            "query_type": rng.choice(QueryType.members),
            "query_format": rng.choice(QueryFormat.members),
            "query_length": rng.choice(("short", "medium", "long")),
            "persona_id": f"P{rng.randrange(9)}",
            "model": rng.choice(("small-8b", "mid-70b")),
        }
        tries = rng.randrange(3)
        for _ in range(tries):
            gate = rng.choice(("round_trip", "copies", "planned_length"))
            refusals.append(refused(chunk, gate, number, **told))
        state = rng.choice(("done", "done", "done", "rejected", "failed", "pending"))
        words = " ".join(rng.choices("how why when lock page log table commit row".split(), k=9))
        results.append(
            slot(
                chunk,
                number,
                state=state,
                query=f"{words} {place}?" if state == "done" else None,
                gate="copies" if state == "rejected" else "",
                reason=f"no answer within {place} s" if state == "failed" else "",
                document=f"{chunk % 40}.html",
                attempts=tries + (state == "done"),
                **told,
            )
        )
    return results, refusals


# ---------------------------------------------------------------------- counted


def test_slots_chunks_and_questions_are_counted(record: Record) -> None:
    ledger = record(
        [
            slot(1, attempts=2),
            gone(1, number=1, attempts=2),
            slot(2, state="failed", query=None, reason="no answer", query_type="analytical"),
            slot("c-3", state="pending", query=None, document="other.html", attempts=0, calls=0),
            gone(4, "copies", model="mid-70b", cost=0.25),
        ],
        [
            refused(1, "copies"),
            refused(1, "round_trip", 1, query_type="analytical"),
            refused(1, "round_trip", 1),
            refused(4, "copies", model="mid-70b"),
        ],
    )
    summary = summarise(ledger, policy="training")
    assert summary["slots"] == {
        "done": 1, "rejected": 2, "failed": 1, "pending": 1, "attempts": 6
    }  # fmt: skip
    assert [summary["chunks"][state] for state in ("done", "rejected", "failed", "pending")] == [
        1, 1, 1, 1
    ]  # fmt: skip
    questions = summary["questions"]
    assert (questions["asked"], questions["accepted"], questions["refused"]) == (5, 1, 4)
    assert questions["yield"]["value"] == 0.2
    assert questions["gates"] == {"copies": 2, "round_trip": 2}
    assert [(one["gate"], one["refused"], one["slots_rejected"]) for one in summary["gates"]] == [
        ("copies", 2, 1), ("round_trip", 2, 1)
    ]  # fmt: skip
    # A refusal belongs to the type that was asked for then.
    assert kinds(summary, "type") == {"analytical": (1, 0, 1), "reasoning": (4, 1, 0)}
    assert kinds(summary, "model") == {"mid-70b": (1, 0, 0), "small-8b": (4, 1, 1)}
    assert kinds(summary, "document") == {"wal.html": (5, 1, 1), "other.html": (0, 0, 0)}
    assert summary["usage"]["calls"] == 4
    assert [(one["model"], one["cost"]) for one in summary["usage"]["by_model"]] == [
        ("mid-70b", 0.25), ("small-8b", 2.0)
    ]  # fmt: skip
    assert summary["sentence"] == (
        "1 question for 1 of 4 chunks of sqlite_docs, 20 % of the 5 that were asked; "
        "2 given up, 1 failed, 1 to be made."
    )


def test_every_dimension_adds_up_to_the_whole(record: Record) -> None:
    results, refusals = many(random.Random(5))
    summary = summarise(record(results, refusals), policy="training")
    done = sum(result.state == "done" for result in results)
    failed = sum(result.state == "failed" for result in results)
    for dimension in DIMENSIONS:
        found = kinds(summary, dimension).values()
        assert [sum(column) for column in zip(*found, strict=True)] == [
            done + len(refusals), done, failed
        ]  # fmt: skip
        rates = [one["accepted"] / one["asked"] for one in summary["yields"][dimension]["listed"]]
        assert rates == sorted(rates)  # lowest first
    assert sum(summary["words"].values()) == done


def test_a_question_that_was_refused_once_and_is_accepted_now_counts_once(record: Record) -> None:
    chunk, number, refusal = refused(1, "copies")
    taken_back = slot(1, query=refusal.query, findings=(("copies", "because"),), checked="record")
    summary = summarise(record([taken_back], [(chunk, number, refusal)]), policy="record")
    assert (summary["questions"]["asked"], summary["questions"]["refused"]) == (1, 0)
    assert summary["questions"]["recorded"] == {"copies": 1}


def test_an_empty_ledger_has_a_summary(record: Record) -> None:
    summary = summarise(record([]), policy="training", targets=targets("even"))
    assert summary["sentence"] == "0 questions for 0 of 0 chunks of sqlite_docs."
    assert summary["warnings"] == []
    assert summary["health"] is None
    assert examples(record([])) == {"refused": [], "accepted": []}


def test_failures_that_differ_in_numbers_only_are_one_kind(record: Record) -> None:
    reasons = ["no answer within 61.5 s", "no answer within 9 s", "id 0f3a9c4e12: 500", "\x1b[31m"]
    rows = [slot(n, state="failed", query=None, reason=reason) for n, reason in enumerate(reasons)]
    found = summarise(record(rows), policy="training")["failures"]
    assert [(one["reason"], one["slots"], one["chunks"]) for one in found["reasons"]] == [
        ("no answer within 61.5 s", 2, [0, 1]),
        ("id 0f3a9c4e12: 500", 1, [2]),
        ("no reason was recorded", 1, [3]),
    ]
    assert found["slots"] == 4


def test_many_documents_are_listed_up_to_a_bound_and_the_rest_is_summed(record: Record) -> None:
    rows = [slot(n, document=f"{n % 7}.html") for n in range(7 * 3)]
    rows += [slot(100 + n, document="large.html") for n in range(9)]
    with Tally(held=4) as spilt, Tally() as held:  # the first has its counts on disk
        for row in rows:
            spilt.add(row, [])
            held.add(row, [])
        found, same = yields(spilt, "document", most=3), yields(held, "document", most=3)
        wanted = ["6.html", "large.html", "none.html"]
        first = {"6.html": 6, "large.html": 100}
        assert spilt.chunks_of(wanted) == held.chunks_of(wanted) == first
    assert found == same
    assert [one["kind"] for one in found.listed] == ["large.html", "0.html", "1.html"]
    assert found.rest is not None
    assert (found.rest["kinds"], found.rest["asked"], found.kinds) == (5, 15, 8)
    assert found.with_questions == 8


def test_coverage_is_of_the_documents_that_were_asked_about(record: Record) -> None:
    rows = [slot(1), gone(2, document="b.html"), slot(3, state="pending", document="c.html")]
    summary = summarise(record(rows), policy="training", run=Run(points=3))
    without = {"pending": 1, "failed": 0, "given_up": 1}
    found = {"documents": 3, "all": True, "with_questions": 1, "share": 0.3333, "without": without}
    assert summary["coverage"] == found
    asked_about = summarise(record(rows), policy="training", run=Run(points=9))["coverage"]
    assert (asked_about["documents"], asked_about["all"]) == (3, False)


@pytest.mark.parametrize(
    ("run", "said"),
    [
        (
            Run(points=4),
            "Without a question: 3 chunks (1 to be made, 1 given up, 1 failed); 2 documents of 3 "
            "(1 given up, 1 failed).",
        ),
        (
            Run(points=20, already_there=2, kept=1, without_text=3, beyond_limit=4),
            "Without a question: 16 chunks (1 to be made, 1 given up, 1 failed, 3 without a text, "
            "4 beyond --limit, 6 not reached yet); 2 documents of 3 asked about (1 given up, 1 "
            "failed).",
        ),
        (  # of those beyond the limit an earlier run did some
            Run(points=5, beyond_limit=4),
            "Without a question: 4 chunks (1 to be made, 1 given up, 1 failed, 1 beyond --limit); "
            "2 documents of 3 asked about (1 given up, 1 failed).",
        ),
    ],
)
def test_chunks_and_documents_without_a_question_are_told_with_the_reason(
    record: Record, run: Run, said: str
) -> None:
    rows = [slot(1), slot(2, state="pending", query=None), gone(3, document="b.html")]
    rows += [slot(4, state="failed", query=None, document="c.html")]
    assert summarise(record(rows), policy="training", run=run)["without"] == said
    assert summarise(record(rows[:1]), policy="training", run=Run(points=1))["without"] == ""


def test_what_will_be_asked_again_is_not_given_up(record: Record) -> None:
    ledger = record([slot(1), gone(2, attempts=1), gone(3, attempts=3)])
    summary = summarise(ledger, policy="training", asks_again=lambda slot: slot.attempts % 3 > 0)
    assert summary["sentence"].endswith("1 given up, 1 to be made.")
    assert (summary["slots"]["rejected"], summary["slots"]["pending"]) == (1, 1)
    assert (summary["chunks"]["rejected"], summary["chunks"]["pending"]) == (1, 1)
    assert (summary["questions"]["given_up"], summary["questions"]["pending"]) == (1, 1)


def test_the_round_trip_is_over_all_that_the_ledger_knows_the_ranks_of(record: Record) -> None:
    rows = [slot(n, dense_rank=n, bm25_rank=30) for n in range(1, 9)] + [slot(20)]
    rows += [gone(30)]
    place, number, refusal = refused(30, "round_trip")
    refusals = [(place, number, replace(refusal, dense_rank=200, bm25_rank=40))]
    refusals += [refused(30, "round_trip"), refused(30, "copies")]
    this_run = {"questions": 2, "model": "m", "chunks": 100, "found": {}, "recall": {}, "ranks": {}}
    run = Run(round_trip=this_run, max_rank=4)
    found = summarise(record(rows, refusals), policy="training", run=run)["round_trip"]
    assert (found["questions"], found["of"], found["in_this_run"]) == (9, 11, 2)
    assert found["found"] == {"dense": 0.4444, "bm25": 0.0, "both": 0.0, "either": 0.4444}
    assert found["recall"]["dense"] == {"1": 0.1111, "5": 0.5556, "10": 0.8889, "20": 0.8889}
    assert found["ranks"]["bm25"] == {
        "1": 0, "2-5": 0, "6-10": 0, "11-20": 0, "21-100": 9, "above 100": 0
    }  # fmt: skip
    assert (found["within"], found["model"], found["chunks"]) == (4, "m", 100)
    old = summarise(record([slot(1)]), policy="training", run=run)["round_trip"]
    assert (old["questions"], old["of"]) == (2, None)


def named_chunk(number: int, document: str, file_name: str | None) -> Passage:
    return Passage(number, document, "text", file_name=file_name)


def test_documents_have_their_file_names_and_ids_only_where_these_are_alike(
    record: Record,
) -> None:
    hostile = "<b>re\x1b[31mport\u202e\n.pdf"
    store = ListedStore(
        [
            named_chunk(1, "d1", "wal.pdf"),
            named_chunk(2, "d2", hostile),
            named_chunk(3, "d3", "manual.pdf"),
            named_chunk(4, "d4", "manual.pdf"),
            named_chunk(5, "d5", None),
            named_chunk(6, "d6", "x" * 300 + "/end.pdf"),
        ]
    )
    rows = [slot(n, document=f"d{n}") for n in range(1, 8)] + [slot(9, document="d1")]
    rows += [slot(400 + n, document="d4") for n in range(30)]
    rows += [slot(700 + n, document="d7") for n in range(90)]
    refusals = [refused(400 + n, "generic", query_type="analytical") for n in range(29)]
    ledger = record(rows, refusals)
    names_of = partial(document_names, store)
    summary = summarise(ledger, policy="training", names_of=names_of)
    names = {one["kind"]: one["name"] for one in summary["yields"]["document"]["listed"]}
    long = names.pop("d6")
    assert names == {
        "d1": "wal.pdf",
        "d2": "<b>report .pdf",
        "d3": "manual.pdf [d3]",
        "d4": "manual.pdf [d4]",
        "d5": None,
        "d7": None,  # its chunk is gone
    }
    assert long.startswith("…xxx") and long.endswith("x/end.pdf") and len(long) == 121
    assert any("on document 'manual.pdf [d4]'" in w["text"] for w in summary["warnings"])
    found = examples(ledger, names_of=names_of, seed=1)["accepted"]
    assert {one["document"]: one["document_name"] for one in found}.items() <= {
        **names, "d6": long, "d3": "manual.pdf", "d4": "manual.pdf"
    }.items()  # fmt: skip


def test_naming_documents_reads_one_chunk_of_each(record: Record) -> None:
    read: list[int | str] = []

    class Watched(ListedStore):
        def payloads(self, ids: list[int | str]) -> Iterator[tuple[int | str, dict[str, Any]]]:
            read.extend(ids)
            return super().payloads(ids)

    store = Watched([named_chunk(n, f"d{n % 3}", f"{n % 3}.pdf") for n in range(90)])
    ledger = record([slot(n, document=f"d{n % 3}") for n in range(90)])
    summarise(ledger, policy="training", names_of=partial(document_names, store))
    assert len(read) == 3


def test_write_back_tells_written_waiting_and_undone_chunks(record: Record) -> None:
    ledger = record([slot(n) for n in range(6)] + [slot(9, checked="")])
    ledger.note_write("run-1", [(n, "{}") for n in range(4)])
    mark_written(ledger, range(4))
    ledger.mark_undone("run-1", [3])
    found = summarise(ledger, policy="training")["write_back"]
    assert (found["written"], found["waiting"], found["undone"]) == (3, 2, 1)
    assert [(run["run"], run["chunks"], run["undone"]) for run in found["runs"]] == [
        ("run-1", 4, False)
    ]


# ---------------------------------------------------------------------- what to suspect


@pytest.mark.parametrize(
    ("stopped", "asked", "warned"),
    [
        (92, 200, True),
        (11, 20, True),
        (9, 20, False),  # 45 %, but 26 % are as likely
        (15, 19, False),  # too few
        (80, 200, False),  # 40 % is not more than 40 %
    ],
)
def test_a_gate_that_refuses_many_of_one_kind_is_suspected(
    record: Record, stopped: int, asked: int, warned: bool
) -> None:
    rows = [slot(n) for n in range(1000)]
    rows += [slot(2000 + n, query_type="summarisation") for n in range(asked - stopped)]
    rows += [gone(4000 + n, query_type="summarisation") for n in range(stopped)]
    refusals = [refused(4000 + n, "round_trip", query_type="summarisation") for n in range(stopped)]
    summary = summarise(record(rows, refusals), policy="training")
    said = [w["text"] for w in summary["warnings"] if w["code"] == "gate"]
    assert len(said) == warned
    if stopped == 92:
        assert said == [
            "gate round_trip refuses 46 % of 'summarisation' questions (92 of 200; 95 % interval "
            "39 % to 53 %): a gate that refuses so many of one kind is more likely wrong than they "
            "are; look at its refusals"
        ]


def test_a_gate_that_refuses_many_of_all_kinds_is_told_of_once(record: Record) -> None:
    rows = [slot(n, document=f"{n % 2}.html") for n in range(50)]
    refusals = [refused(n, "language") for n in range(50)]
    summary = summarise(record(rows, refusals), policy="training")
    said = [w for w in summary["warnings"] if w["code"] == "gate"]
    assert [(one["dimension"], one["share"]) for one in said] == [("all", 0.5)]
    assert "refuses 50 % of all questions" in said[0]["text"]


def test_what_is_only_recorded_would_be_refused(record: Record) -> None:
    rows = [slot(n, findings=(("copies", "because"),) * 2, checked="record") for n in range(30)]
    said = [w["text"] for w in summarise(record(rows), policy="record")["warnings"]]
    assert any("gate copies would refuse 100 % of all questions (30 of 30;" in one for one in said)


def test_of_many_suspicious_documents_the_worst_are_named(record: Record) -> None:
    rows = [slot(n, document="fine.html", persona_id=f"P{n}") for n in range(900)]
    refusals = []
    for document in range(8):
        for n in range(20):
            chunk = 1000 + 20 * document + n
            rows.append(gone(chunk, document=f"bad-{document}.html", persona_id=f"P{chunk}"))
            refusals.append(refused(chunk, "generic", persona_id=f"P{chunk}"))
    said = [
        w
        for w in summarise(record(rows, refusals), policy="training")["warnings"]
        if w["code"] == "gate"
    ]
    assert [one["kind"] for one in said] == [f"bad-{n}.html" for n in range(5)]
    assert "and as many of 3 others" in said[0]["text"]


def test_quotas_stand_beside_what_came_of_them(record: Record) -> None:
    wanted = {
        Cell("reasoning", "formal question", "short"): 0.5,
        Cell("analytical", "keywords", "short"): 0.5,
    }
    rows = [slot(n) for n in range(18)]
    rows += [slot(90 + n, query_type="analytical", query_format="keywords") for n in range(12)]
    summary = summarise(record(rows), policy="training", targets=wanted)
    quotas = summary["quotas"]
    assert quotas["distance"] == {"type_format": 0.1, "all": 0.1}
    assert [(one["type"], one["target"], one["achieved"], one["share"]) for one in quotas["cells"]
            ] == [("analytical", 15, 12, 0.5), ("reasoning", 15, 18, 0.5)]  # fmt: skip
    assert [w["text"] for w in summary["warnings"] if w["code"] == "quotas"] == [
        "the questions miss the plan's mix by more than 5 % (total variation): most are missing of "
        "analytical, keywords, short, 12 of 15 are there"
    ]
    counts = dict.fromkeys(wanted, 5)  # numbers of questions say the same as shares
    assert summarise(record(rows), policy="training", targets=counts)["quotas"] == quotas
    for fine in (
        rows[:12] + rows[18:],
        rows[:9] + rows[18:22],  # too few to tell
        [*rows, slot(200, state="pending", query=None)],  # on its way
    ):
        even = summarise(record(fine), policy="training", targets=wanted)
        assert not [w for w in even["warnings"] if w["code"] == "quotas"]


def test_questions_of_before_there_was_a_plan_are_not_held_against_it(record: Record) -> None:
    wanted = {
        Cell("reasoning", "formal question", "short"): 0.5,
        Cell("analytical", "formal question", "long"): 0.5,
    }
    older = [slot(n, query_length=None) for n in range(60)]
    interrupted = Run(reason="interrupted; everything so far is saved")
    summary = summarise(record(older), policy="training", targets=wanted, run=interrupted)
    assert summary["quotas"]["distance"] == {"type_format": None, "all": None}
    assert not [w for w in summary["warnings"] if w["code"] == "quotas"]
    planned = [slot(n, 1) for n in range(30)]
    planned += [slot(n, 2, query_type="analytical", query_length="long") for n in range(30)]
    summary = summarise(record(older + planned), policy="training", targets=wanted)
    quotas = summary["quotas"]
    assert (quotas["target"], quotas["achieved"], quotas["unplanned"]) == (60, 60, 60)
    assert quotas["distance"] == {"type_format": 0.0, "all": 0.0}
    assert not [w for w in summary["warnings"] if w["code"] == "quotas"]


def test_what_is_not_checked_yet_is_part_of_the_sentence(record: Record) -> None:
    rows = [slot(1), slot(2, checked=""), slot(3, state="pending", query=None)]
    assert summarise(record(rows), policy="training")["sentence"] == (
        "2 questions for 2 of 3 chunks of sqlite_docs; 1 not yet checked against the corpus, 1 to "
        "be made."
    )
    ended = summarise(record(rows[1:2]), policy="off")["sentence"]  # which checks nothing
    assert ended == "1 question for 1 of 1 chunks of sqlite_docs."


def test_the_set_is_looked_at_by_one_question_a_chunk(record: Record) -> None:
    rows = [
        slot(chunk, n, query=f"What is the same in {n}?") for chunk in range(30) for n in (0, 1)
    ]
    texts: dict[int | str, str] = dict.fromkeys(range(30), "A text that nobody copied from.")
    summary = summarise(record(rows), policy="training", texts_of=lambda ids: texts)
    assert summary["health"]["n"] == 30
    assert summary["health"]["copying"]["over"] == 0.0
    codes = {warning["code"] for warning in summary["warnings"]}
    assert {"health-same-opening", "health-near-duplicates"} <= codes


def test_failures_beyond_a_twentieth_are_warned_of(record: Record) -> None:
    rows = [slot(n) for n in range(18)]
    rows += [slot(90 + n, state="failed", query=None, reason="no") for n in range(2)]
    codes = [w["code"] for w in summarise(record(rows), policy="training")["warnings"]]
    assert "failures" in codes
    few = [*rows[:-2], *(slot(200 + n) for n in range(30)), rows[-1]]
    assert "failures" not in [
        w["code"] for w in summarise(record(few), policy="training")["warnings"]
    ]


# ---------------------------------------------------------------------- the file, the examples


def test_the_same_ledger_gives_the_same_bytes_but_for_the_times(
    record: Record, tmp_path: Path
) -> None:
    results, refusals = many(random.Random(3), 600)
    backwards = record(results[::-1], refusals)
    made = [
        summarise(ledger, policy="training", targets=targets("even"), run=run)
        for ledger, run in (
            (record(results, refusals), Run(name="r", started="2026-01-01", seconds=5, made=10)),
            (backwards, Run(name="r", started="2026-02-02", seconds=7, made=10)),
        )
    ]
    assert made[0].pop("times") == {
        "started": "2026-01-01", "seconds": 5, "questions_a_second": 2.0
    }  # fmt: skip
    made[1].pop("times")
    assert json.dumps(made[0]) == json.dumps(made[1])
    path = tmp_path / "generation_summary.json"
    assert write_summary(path, made[0])
    assert not write_summary(path, made[1])
    assert json.loads(path.read_text(encoding="utf-8")) == json.loads(json.dumps(made[0]))


def test_reading_changes_nothing_in_the_ledger(record: Record) -> None:
    results, refusals = many(random.Random(4), 300)
    ledger = record(results, refusals)
    with sqlite3.connect(ledger.path) as connection:
        before = list(connection.iterdump())
    summarise(ledger, policy="training")
    examples(ledger)
    with sqlite3.connect(ledger.path) as connection:
        assert list(connection.iterdump()) == before


def test_examples_are_a_few_of_each_gate_with_their_chunks(record: Record) -> None:
    results, refusals = many(random.Random(6), 900)
    results = [replace(one, heading="Locks") for one in results]
    ledger = record(results, refusals)

    def texts_of(ids: Sequence[int | str]) -> dict[int | str, str]:
        return {chunk: f"text of {chunk}" for chunk in ids}

    found = examples(ledger, texts_of=texts_of, seed=1, per_gate=2)
    assert [one["gate"] for one in found["refused"]] == [
        gate for gate in ("copies", "planned_length", "round_trip") for _ in range(2)
    ]
    assert {one["query_type"] for one in found["accepted"]} == set(QueryType.members)
    for one in [*found["refused"], *found["accepted"]]:
        assert one["chunk_text"] == f"text of {one['chunk_id']}"
        assert one["document"] == f"{one['chunk_id'] % 40}.html"
        assert one["heading"] == "Locks"
    assert examples(ledger, texts_of=texts_of, seed=1, per_gate=2) == found
    assert examples(ledger, texts_of=texts_of, seed=2, per_gate=2) != found
