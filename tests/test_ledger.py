"""The ledger: results on disk by slot and configuration, pages along an index, nothing lost."""

from __future__ import annotations

import os
import pickle
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from conftest import ROOT, clean_environment
from ledger_marks import mark_undone, mark_written
from question_optimizer.errors import StopRun, UserError
from question_optimizer.generation.ledger import Ledger
from question_optimizer.generation.ledger_records import Configuration, Refusal, Result, State

UUID = "7f8ae809-67e1-4820-b5f3-f4e8ec22c291"
OURS = Configuration("docs", "a" * 16, "b" * 16, ("m1", "m2"), "node.text")
THEIRS = replace(OURS, pipeline="c" * 16)
ELSEWHERE = replace(OURS, collection="other_docs")
FULL = Result(
    chunk_id=7,
    slot=1,
    state="done",
    query="What is WAL?",
    query_type="fact retrieval",
    query_format="formal question",
    query_length="short",
    persona_id="depot-technician",
    model="m1",
    document="wal.html",
    heading="Checkpoints",
    text_sha256="0" * 64,
    calls=3,
    tokens=100,
    cost=0.25,
    attempts=2,
    reason="too near to another",
    gate="near_duplicate",
    findings=(("round_trip", 'rank 40 of "its" chunk'), ("copies", "9 words in a row")),
    checked="training",
    analysed=True,
)
REFUSAL = Refusal("What is it?", "refers_outside", "it", "reasoning", "keywords", "long", "p", "m1")


def done(chunk_id: int | str, slot: int = 0, query: str = "q?", **rest: Any) -> Result:
    return Result(chunk_id, slot, "done", query, **{"checked": "off", **rest})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "generation.sqlite"


@pytest.fixture
def open_ledger(path: Path) -> Iterator[Callable[..., Ledger]]:
    """Opens the ledger under a configuration; each is closed when the test ends."""
    opened: list[Ledger] = []

    def open_(configuration: Configuration = OURS) -> Ledger:
        opened.append(Ledger(path, configuration))
        return opened[-1]

    yield open_
    for ledger in opened:
        ledger.close()


@pytest.fixture
def ledger(open_ledger: Callable[..., Ledger]) -> Ledger:
    return open_ledger()


def places(results: list[Result]) -> list[tuple[int | str, int]]:
    return [(result.chunk_id, result.slot) for result in results]


def chunks(groups: list[list[Result]]) -> list[int | str]:
    return [group[0].chunk_id for group in groups]


# ---------------------------------------------------------------------- recording


def test_what_was_recorded_is_there_for_the_next_run_to_the_last_field(
    ledger: Ledger, open_ledger: Callable[..., Ledger]
) -> None:
    bare = Result(8)
    ledger.record([FULL, bare])
    again = open_ledger()
    assert list(again.results()) == [FULL, bare]
    assert again.slots_of([7, 8, 9]) == {7: [FULL], 8: [bare], 9: []}
    assert pickle.loads(pickle.dumps(FULL)) == FULL


def test_recording_a_slot_again_replaces_it_whole(ledger: Ledger) -> None:
    ledger.record([FULL])
    later = Result(7, 1, "failed", reason="the answer could not be read", calls=4)
    ledger.record([later])
    assert list(ledger.results()) == [later]


def test_a_batch_is_recorded_whole_or_not_at_all(ledger: Ledger) -> None:
    ledger.record([done(1)])
    broken: Any = object()
    with pytest.raises(StopRun):
        ledger.record([done(2), replace(done(3), query=broken)], [(2, 0, REFUSAL)])
    assert places(list(ledger.results())) == [(1, 0)]
    assert list(ledger.refusals()) == []
    ledger.record([done(2)])
    assert places(list(ledger.results())) == [(1, 0), (2, 0)]


def test_refusals_are_kept_in_order_beside_whatever_becomes_of_the_slot(ledger: Ledger) -> None:
    others = [replace(REFUSAL, query=f"{n}?") for n in range(3)]
    ledger.record([Result(7)], [(7, 0, REFUSAL), (7, 0, others[0])])
    ledger.record([done(7)], [(7, 0, others[1]), (7, 1, others[2])])
    assert ledger.refusals_of(7, 0) == [REFUSAL, *others[:2]]
    assert ledger.refusals_of(7, 1) == [others[2]]
    assert ledger.refusals_of(8, 0) == []
    assert list(ledger.refusals()) == [
        *((7, 0, refusal) for refusal in (REFUSAL, *others[:2])),
        (7, 1, others[2]),
    ]


def test_all_refusals_are_read_however_many(ledger: Ledger) -> None:
    made = [(n % 50, n % 3, replace(REFUSAL, query=f"{n}?")) for n in range(2500)]
    ledger.record([], made)
    found = list(ledger.refusals())
    assert len(found) == 2500
    assert {query for _, _, (query) in ((c, s, r.query) for c, s, r in found)} == {
        f"{n}?" for n in range(2500)
    }


def test_hostile_text_is_stored_and_read_back(ledger: Ledger) -> None:
    ledger.record(
        [done(1, query="what\ud800 is '; DROP TABLE results; --\x00 \u202e?")],
        [(1, 0, replace(REFUSAL, query="\udfff"))],
    )
    (found,) = ledger.results()
    assert found.query == "what\ufffd is '; DROP TABLE results; --\x00 \u202e?"
    assert ledger.refusals_of(1, 0)[0].query == "\ufffd"


@pytest.mark.parametrize("chunk_id", [0, 7, 2**64 - 1, UUID])
def test_ids_come_back_as_they_were(ledger: Ledger, chunk_id: int | str) -> None:
    ledger.record([done(chunk_id)], [(chunk_id, 0, REFUSAL)])
    ledger.note_write("r1", [(chunk_id, "{}")])
    assert list(ledger.slots_of([chunk_id])) == [chunk_id]
    assert places(list(ledger.results())) == [(chunk_id, 0)]
    assert [c for c, _, _ in ledger.refusals()] == [chunk_id]
    assert ledger.writes_of("r1", 9) == [(chunk_id, "{}")]
    assert chunks(ledger.unwritten(9)) == [chunk_id]
    mark_written(ledger, [chunk_id])
    assert ledger.unwritten(9) == []


def test_a_question_belongs_to_the_text_it_was_made_from(ledger: Ledger) -> None:
    ledger.record([done(1, query="old?", text_sha256="old")])
    mark_written(ledger, [1])
    (kept,) = ledger.slots_of([1])[1]
    assert (kept.query, kept.text_sha256) == ("old?", "old")
    ledger.record([done(1, query="new?", text_sha256="new")])
    assert [group[0].text_sha256 for group in ledger.unwritten(9)] == ["new"]


def test_threads_share_one_ledger(ledger: Ledger) -> None:
    def work(first: int) -> None:
        for number in range(first, first + 40):
            ledger.record([done(number, slot) for slot in (0, 1)], [(number, 0, REFUSAL)])
            assert len(ledger.slots_of([number])[number]) == 2

    threads = [threading.Thread(target=work, args=(100 * n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ledger.counts() == {"done": 320}
    assert len(list(ledger.refusals())) == 160


# ---------------------------------------------------------------------- kills

_KILLED = """
import sys
from pathlib import Path
from question_optimizer.generation.ledger import Ledger
from question_optimizer.generation.ledger_records import Configuration, Refusal, Result
ledger = Ledger(Path(sys.argv[1]), Configuration("docs", "a" * 16, "b" * 16, ("m1", "m2")))
number = 0
while True:
    number += 1
    made = [Result(number, slot, "done", f"q{number}?", checked="off") for slot in (0, 1)]
    ledger.record(made, [(number, 0, Refusal("no?", "generic", "why"))])
    ledger.note_write("run", [(number, "{}")])
    ledger.mark_results_written(made)
    print(number, flush=True)
"""


def test_what_was_acknowledged_survives_a_kill_and_no_batch_is_half_there(path: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", _KILLED, str(path)],
        cwd=ROOT,
        env=clean_environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    acknowledged = [int(child.stdout.readline()) for _ in range(25)]
    child.send_signal(signal.SIGKILL)
    acknowledged += map(int, child.stdout.read().split("\n")[:-1])
    assert child.wait() == -signal.SIGKILL
    child.stdout.close()
    ledger = Ledger(path, replace(OURS, text_key=None))
    found = list(ledger.results())
    numbers = {int(result.chunk_id) for result in found}
    assert {*acknowledged} <= numbers
    assert len(numbers) - len(acknowledged) in (0, 1)
    assert len(found) == 2 * len(numbers)
    assert len(list(ledger.refusals())) == len(numbers)
    assert {c for c, _ in ledger.writes_of("run", 10_000)} >= {*acknowledged}
    assert not {*chunks(ledger.unwritten(10_000))} & {*acknowledged}
    ledger.close()


# ---------------------------------------------------------------------- configurations


def test_a_fingerprint_depends_on_everything_and_the_models_order_is_theirs() -> None:
    changes: list[dict[str, Any]] = [
        {"collection": "x"},
        {"pipeline": "d" * 16},
        {"personas": "d" * 16},
        {"models": ("m1",)},
        {"text_key": None},
    ]
    seen = {replace(OURS, **change).fingerprint for change in changes} | {OURS.fingerprint}
    assert len(seen) == 1 + len(changes)
    assert all(len(one) == 16 and int(one, 16) >= 0 for one in seen)
    assert Configuration(*[getattr(OURS, f) for f in OURS.__match_args__]).fingerprint in seen


def test_configurations_stand_beside_each_other(
    ledger: Ledger, open_ledger: Callable[..., Ledger]
) -> None:
    other = open_ledger(THEIRS)
    ledger.record([done(7), done(8)], [(7, 0, REFUSAL)])
    other.record([done(7, query="another?", query_type="t")])
    mark_written(other, [7, 8])
    assert [result.query for result in ledger.results()] == ["q?", "q?"]
    assert [result.query for result in other.results()] == ["another?"]
    assert chunks(ledger.unwritten(9)) == [7, 8]
    assert other.refusals_of(7, 0) == [] == list(other.refusals())
    assert (ledger.counts(), other.counts()) == ({"done": 2}, {"done": 1})
    assert other.unchecked("training", 9) == list(other.results())


def test_former_are_chunks_that_another_configuration_of_the_collection_did(
    ledger: Ledger, open_ledger: Callable[..., Ledger]
) -> None:
    ledger.record([done(1), done(5)])
    changed = done(3, 1, text_sha256="b" * 64)
    open_ledger(THEIRS).record([done(2), done(3), changed, Result(4, 0, "failed")])
    open_ledger(ELSEWHERE).record([done(1), done(9)])
    assert ledger.former([1, 2, 3, 4, 9]) == {2: {""}, 3: {"", "b" * 64}}
    assert ledger.former([]) == {}
    assert open_ledger(THEIRS).former(range(10)).keys() == {1, 5}


def test_other_configurations_come_latest_first_with_their_chunks(
    ledger: Ledger, open_ledger: Callable[..., Ledger]
) -> None:
    third = replace(OURS, personas="e" * 16, models=(), text_key=None)
    ledger.record([done(1)])
    open_ledger(THEIRS).record([done(2), done(3), done(3, 1), Result(4, 0, "failed")])
    open_ledger(third).record([Result(1, 0, "pending")])
    open_ledger(ELSEWHERE).record([done(1)])
    assert ledger.other_configurations() == [(third, 0), (THEIRS, 2)]
    open_ledger(THEIRS).record([done(5)])
    assert ledger.other_configurations() == [(THEIRS, 3), (third, 0)]


# ---------------------------------------------------------------------- checking and writing


def test_unchecked_are_done_ones_that_another_policy_checked_in_pages(ledger: Ledger) -> None:
    policies = ["", "training", "record", "off", "evaluation"]
    ledger.record([done(f"c{n:02}", n % 2, checked=policies[n % 5]) for n in range(50)])
    ledger.record([Result("c99", 0, state) for state in ("pending", "rejected", "failed")])
    expected = [(f"c{n:02}", n % 2) for n in range(50) if n % 5 != 1]
    found: list[tuple[int | str, int]] = []
    place = ("", -1)
    while page := ledger.unchecked("training", 7, place):
        assert len(page) <= 7
        found += places(page)
        place = (str(page[-1].chunk_id), page[-1].slot)
    assert found == expected
    assert places(ledger.unchecked("training", 3)) == expected[:3]
    ledger.record([replace(r, checked="training") for r in ledger.unchecked("training", 99)])
    assert ledger.unchecked("training", 99) == []


def test_unchecked_can_begin_between_two_slots_of_a_chunk(ledger: Ledger) -> None:
    ledger.record([done(5, slot, checked="") for slot in range(3)])
    assert places(ledger.unchecked("off", 9, ("5", 0))) == [(5, 1), (5, 2)]


def test_unwritten_are_whole_chunks_by_id_in_pages(ledger: Ledger) -> None:
    ledger.record([done(f"c{n}", slot) for n in range(5) for slot in (0, 1)])
    first = ledger.unwritten(2)
    assert [places(group) for group in first] == [[("c0", 0), ("c0", 1)], [("c1", 0), ("c1", 1)]]
    assert chunks(ledger.unwritten(9, after="c1")) == ["c2", "c3", "c4"]
    mark_written(ledger, ["c0", "c3", "unknown"])
    assert chunks(ledger.unwritten(9)) == ["c1", "c2", "c4"]
    ledger.written_again(["c3"])
    assert chunks(ledger.unwritten(9)) == ["c1", "c2", "c3", "c4"]


def test_only_done_and_checked_ones_are_written(ledger: Ledger) -> None:
    others: tuple[State, ...] = ("pending", "rejected", "failed")
    states = [Result(n, 0, state) for n, state in enumerate(others)]
    ledger.record([*states, done(5, checked=""), done(6, 0), done(6, 1, checked="")])
    assert [places(group) for group in ledger.unwritten(9)] == [[(6, 0)]]
    mark_written(ledger, [5, 6])
    assert ledger.unwritten(9) == []
    ledger.record([done(6, 1, checked="off")])  # checked after its chunk was written
    assert [places(group) for group in ledger.unwritten(9)] == [[(6, 0), (6, 1)]]


def test_another_question_is_written_anew_and_the_same_one_is_not(ledger: Ledger) -> None:
    ledger.record([done(1), done(2)])
    mark_written(ledger, [1, 2])
    ledger.record([done(1, checked="training", cost=1.0), done(2, query="better?")])
    assert chunks(ledger.unwritten(9)) == [2]


def test_undone_ones_are_not_written_again_unless_asked(ledger: Ledger) -> None:
    ledger.record([done(1), done(2), done(3)])
    mark_written(ledger, [1, 2, 3])
    mark_undone(ledger, [1, 2])
    assert ledger.unwritten(9) == []
    ledger.record([done(2, 1, query="one more?")])
    assert [places(group) for group in ledger.unwritten(9)] == [[(2, 1)]]
    assert ledger.readmit_undone() == 2
    assert [places(group) for group in ledger.unwritten(9)] == [[(1, 0)], [(2, 0), (2, 1)]]


def test_what_was_recorded_while_a_chunk_was_being_written_is_written_later(
    ledger: Ledger,
) -> None:
    ledger.record([done(1), done(2)])
    taken = [result for group in ledger.unwritten(9) for result in group]
    ledger.record([done(1, 1), done(2, query="better?")])
    ledger.mark_results_written(taken)
    assert [places(group) for group in ledger.unwritten(9)] == [[(1, 0), (1, 1)], [(2, 0)]]
    ledger.mark_results_written([done(1, 1), done(2, query="better?")])
    assert ledger.unwritten(9) == []


def test_what_the_collection_lacks_is_written_again_but_not_what_a_person_took_out(
    ledger: Ledger,
) -> None:
    ledger.record([done(1), done(2), done(3), done(4)])
    mark_written(ledger, [1, 2, 3])
    mark_undone(ledger, [2])
    assert ledger.written_again([1, 2, 99]) == 1
    assert chunks(ledger.unwritten(9)) == [1, 4]
    assert ledger.readmit_undone() == 1
    assert chunks(ledger.unwritten(9)) == [1, 2, 4]


def test_a_decision_on_what_others_did_is_remembered_by_configuration(
    ledger: Ledger, open_ledger: Callable[..., Ledger]
) -> None:
    assert ledger.decision() == ""
    ledger.decide("keep")
    ledger.record([done(1)])
    assert open_ledger().decision() == "keep"
    assert open_ledger(THEIRS).decision() == ""
    ledger.decide("redo")
    assert open_ledger().decision() == "redo"


# ---------------------------------------------------------------------- all of them


def test_results_are_streamed_by_state_in_order(ledger: Ledger) -> None:
    states: list[Any] = ["done", "failed", "pending", "rejected", "done"]
    ledger.record([Result(f"c{n:02}", s, states[(n + s) % 5]) for n in range(20) for s in (0, 1)])
    everything = list(ledger.results(batch=3))
    assert places(everything) == [(f"c{n:02}", slot) for n in range(20) for slot in (0, 1)]
    for asked in (("failed",), ("done", "rejected")):
        found = list(ledger.results(*asked, batch=3))
        assert found == [result for result in everything if result.state in asked] != []
    assert ledger.counts() == {"done": 16, "failed": 8, "pending": 8, "rejected": 8}


def test_what_is_recorded_while_streaming_is_not_seen_twice(ledger: Ledger) -> None:
    ledger.record([Result(f"c{n}") for n in range(6)])
    seen = []
    for result in ledger.results(batch=2):
        seen.append(result.chunk_id)
        ledger.record([replace(result, state="done", query="q?")])
    assert seen == [f"c{n}" for n in range(6)]


def test_cells_count_planned_slots_that_are_done_or_may_still_be(ledger: Ledger) -> None:
    planned = done(1, query_type="analytical", query_format="keywords", query_length="short")
    states: tuple[State, ...] = ("pending", "done", "rejected", "failed")
    ledger.record([replace(planned, slot=slot, state=state) for slot, state in enumerate(states)])
    ledger.record([replace(planned, chunk_id=7, state="rejected", attempts=6)])
    ledger.record([replace(planned, chunk_id=8, query_length=None)])
    ledger.record([replace(planned, chunk_id=9, query_length="long")])
    short, long = (("analytical", "keywords", length) for length in ("short", "long"))
    assert ledger.cells(given_up=6) == {short: 4, long: 1}
    assert ledger.cells(given_up=7) == {short: 5, long: 1}


# ---------------------------------------------------------------------- the journal


def test_the_journal_keeps_what_stood_there_first(ledger: Ledger) -> None:
    ledger.note_write("r1", [(1, '{"generated_query": "old"}'), (2, "{}")])
    ledger.note_write("r1", [(1, '{"generated_query": "ours"}'), (3, "{}")])
    assert ledger.writes_of("r1", 2) == [(1, '{"generated_query": "old"}'), (2, "{}")]
    assert ledger.writes_of("r1", 9, after="2") == [(3, "{}")]
    assert ledger.writes_of("r2", 9) == []


def test_an_undo_can_be_stopped_and_taken_up(ledger: Ledger) -> None:
    ledger.record([done(1), done(2), done(3)])
    ledger.note_write("r1", [(1, "{}"), (2, "{}")])
    mark_written(ledger, [1])  # killed before 2 was marked, though it is in the collection
    ledger.mark_undone("r1", [1])
    assert [(run.run, run.chunks, run.undone) for run in ledger.runs()] == [("r1", 2, False)]
    assert ledger.writes_of("r1", 9) == [(2, "{}")]
    ledger.mark_undone("r1", [2])
    assert [(run.run, run.chunks, run.undone) for run in ledger.runs()] == [("r1", 2, True)]
    assert chunks(ledger.unwritten(9)) == [3]
    ledger.note_write("r1", [(1, '{"now": 1}')])
    assert ledger.writes_of("r1", 9) == [(1, '{"now": 1}')]


def test_an_undo_under_another_configuration_marks_the_questions_that_were_written(
    ledger: Ledger, open_ledger: Callable[..., Ledger]
) -> None:
    ledger.record([done(1)])
    ledger.note_write("r1", [(1, "{}")])
    mark_written(ledger, [1])
    other = open_ledger(THEIRS)
    other.record([done(1)])
    other.mark_undone("r1", [1])
    assert ledger.unwritten(9) == []
    assert chunks(other.unwritten(9)) == [1]
    ledger.record([done(1, query="anew?")])
    assert chunks(ledger.unwritten(9)) == [1]


def test_runs_are_those_of_the_collection_latest_first(
    ledger: Ledger, open_ledger: Callable[..., Ledger]
) -> None:
    ledger.note_write("first", [(1, "{}")])
    open_ledger(THEIRS).note_write("second", [(1, "{}"), (2, "{}")])
    open_ledger(ELSEWHERE).note_write("elsewhere", [(1, "{}")])
    assert [(run.run, run.chunks) for run in ledger.runs()] == [("second", 2), ("first", 1)]
    assert ledger.runs()[0].at > ledger.runs()[1].at
    assert ledger.writes_of("elsewhere", 9) == []


# ---------------------------------------------------------------------- size


def plans_of(ledger: Ledger, act: Callable[[], object]) -> list[str]:
    """How SQLite carries out the statements of `act`, as its planner says."""
    statements: list[str] = []
    connection = ledger._connection
    connection.set_trace_callback(statements.append)
    act()
    connection.set_trace_callback(None)
    return [
        row[3]
        for statement in statements
        if statement.startswith(("SELECT", "UPDATE", "INSERT"))
        for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}")
    ]


@pytest.mark.parametrize(
    ("act", "by"),
    [
        (lambda ledger: ledger.unchecked("training", 5), "results_by_state"),
        (lambda ledger: ledger.unwritten(5), ""),
        (lambda ledger: list(ledger.results()), ""),
        (lambda ledger: list(ledger.results("failed", "rejected")), ""),
        (lambda ledger: list(ledger.refusals()), ""),
        (lambda ledger: ledger.slots_of([1, 2]), ""),
        (lambda ledger: ledger.former([1, 2]), ""),
        (lambda ledger: ledger.counts(), ""),
        (lambda ledger: ledger.writes_of("r1", 5), ""),
        (lambda ledger: ledger.mark_results_written([done(1), done(2)]), ""),
        (lambda ledger: ledger.mark_undone("r1", [1, 2]), ""),
        (lambda ledger: ledger.record([done(1)], [(1, 0, REFUSAL)]), ""),
    ],
)
def test_no_page_scans_or_sorts_a_table(
    ledger: Ledger, open_ledger: Callable[..., Ledger], act: Callable[[Ledger], object], by: str
) -> None:
    open_ledger(THEIRS).record([done(n) for n in range(9)])
    ledger.record([done(n, checked="record") for n in range(9)], [(1, 0, REFUSAL)])
    ledger.note_write("r1", [(n, "{}") for n in range(9)])
    ledger._connection.execute("ANALYZE")  # as somebody may; it plans otherwise then
    plans = plans_of(ledger, lambda: act(ledger))
    of_tables = [plan for plan in plans if "json_each" not in plan]
    assert any("SEARCH" in plan for plan in of_tables)
    # the one scan is of `configurations`, of which there are few
    assert [plan for plan in of_tables if "SCAN" in plan and plan != "SCAN c"] == []
    assert [plan for plan in of_tables if "ORDER BY" in plan] == []
    assert [plan for plan in of_tables if "SEARCH results" in plan and by not in plan] == []


def test_other_configurations_are_told_without_a_look_at_their_results(
    ledger: Ledger, open_ledger: Callable[..., Ledger]
) -> None:
    """Every write-back asks for them, over a ledger of a million results too."""
    for configuration in (THEIRS, ELSEWHERE):
        open_ledger(configuration).record([done(1)])
    assert ledger.others() == [known for known, _ in ledger.other_configurations()] == [THEIRS]
    assert [plan for plan in plans_of(ledger, ledger.others) if "results" in plan] == []


# ---------------------------------------------------------------------- files

_V1 = """
CREATE TABLE chunks (
    fingerprint TEXT NOT NULL, chunk_id TEXT NOT NULL, text_sha256 TEXT NOT NULL,
    state TEXT NOT NULL,
    query TEXT, query_type TEXT, query_format TEXT, persona_id TEXT, model TEXT,
    tokens INTEGER NOT NULL DEFAULT 0, cost REAL NOT NULL DEFAULT 0,
    reason TEXT NOT NULL DEFAULT '', attempts INTEGER NOT NULL DEFAULT 0,
    written INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (fingerprint, chunk_id)
) WITHOUT ROWID
"""


def ledger_of_version_1(path: Path, fingerprint: str) -> None:
    path.parent.mkdir(parents=True)
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute(_V1)
    connection.execute("PRAGMA user_version=1")
    said = ("fact retrieval", "keywords", "p", "m1", 100, 0.25)
    connection.executemany(
        "INSERT INTO chunks VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [
            (fingerprint, "7", "abc", "done", "wal checkpoint", *said, "", 1, 1),
            (fingerprint, UUID, "abd", "done", "wal reader", *said, "", 2, 0),
            (fingerprint, "8", "abe", "failed", *[None] * 5, 40, 0.125, "unreadable", 3, 0),
        ],
    )
    connection.commit()
    connection.close()


def test_a_ledger_of_version_1_is_carried_over_with_what_is_written(path: Path) -> None:
    ledger_of_version_1(path, OURS.fingerprint)
    for _ in range(2):  # the second opening finds it carried over
        ledger = Ledger(path, OURS)
        first = Result(
            *(7, 0, "done", "wal checkpoint", "fact retrieval", "keywords", None, "p", "m1"),
            text_sha256="abc",
            tokens=100,
            cost=0.25,
            attempts=1,
            checked="off",
        )
        second = replace(first, chunk_id=UUID, query="wal reader", text_sha256="abd", attempts=2)
        failed = Result(
            *(8, 0, "failed"),
            text_sha256="abe",
            tokens=40,
            cost=0.125,
            attempts=3,
            reason="unreadable",
            checked="off",
        )
        assert list(ledger.results()) == [first, second, failed]
        assert ledger.unwritten(9) == [[second]]
        ledger.close()


def test_a_ledger_of_version_2_is_carried_over_without_ranks(path: Path) -> None:
    ledger = Ledger(path, OURS)
    ledger.record([done(1)], [(1, 0, REFUSAL)])
    ledger.close()
    connection = sqlite3.connect(path)
    for table in ("results", "refusals"):
        for column in ("dense_rank", "bm25_rank"):
            connection.execute(f"ALTER TABLE {table} DROP COLUMN {column}")
    connection.execute("PRAGMA user_version=2")
    connection.commit()
    connection.close()
    for rank in (None, 7):  # the second opening finds it carried over
        ledger = Ledger(path, OURS)
        assert list(ledger.results()) == [replace(done(1), dense_rank=rank)]
        assert ledger.refusals_of(1, 0)[0] == REFUSAL
        ledger.record([replace(done(1), dense_rank=7)])
        ledger.close()


def test_known_configurations_come_latest_first_with_their_questions(
    ledger: Ledger, open_ledger: Callable[..., Ledger]
) -> None:
    assert ledger.known() == []
    ledger.record([done(1), done(2), Result(3, 0, "failed")])
    open_ledger(THEIRS).record([done(1)])
    open_ledger(ELSEWHERE).record([done(1)])
    known = ledger.known()
    assert [(one.configuration, one.questions) for one in known] == [(THEIRS, 1), (OURS, 2)]
    assert known[0].seen_at > known[1].seen_at


def test_what_an_old_ledger_holds_counts_as_former_though_its_collection_is_unknown(
    path: Path, open_ledger: Callable[..., Ledger]
) -> None:
    ledger_of_version_1(path, "0123456789abcdef")
    ledger = open_ledger()
    assert ledger.former([7, 8, UUID]) == {7: {"abc"}, UUID: {"abd"}}
    assert ledger.other_configurations() == [(Configuration("", "", "", ("m1",)), 2)]
    assert ledger.slots_of([7]) == {7: []}


def test_opening_changes_no_byte(path: Path) -> None:
    ledger = Ledger(path, OURS)
    ledger.record([FULL])
    ledger.close()
    before = path.read_bytes()
    again = Ledger(path, THEIRS)
    again.unwritten(9)
    again.close()
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def foreign(path: Path) -> None:
    path.write_bytes(b"this is not a database" * 100)


def another_programs(path: Path, version: int) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE events (id INTEGER PRIMARY KEY)")
    connection.execute(f"PRAGMA user_version={version}")
    connection.commit()
    connection.close()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (foreign, "cannot be opened (file is not a database); restore it from a backup"),
        (
            lambda path: another_programs(path, 1),
            "cannot be opened (no such table: chunks); restore it from a backup",
        ),
        (
            lambda path: another_programs(path, 3),
            "cannot be opened (no such table: results); restore it from a backup",
        ),
        (lambda path: another_programs(path, 4), "version 4 is newer than the 3 known here"),
    ],
)
def test_a_file_that_is_no_ledger_is_refused_and_left_alone(
    path: Path, make: Callable[[Path], None], message: str
) -> None:
    path.parent.mkdir()
    make(path)
    connection_or_text = path.read_bytes()
    with pytest.raises(UserError) as refusal:
        Ledger(path, OURS)
    assert str(refusal.value) == f"{path}: {message}"
    if make is foreign:
        assert path.read_bytes() == connection_or_text
    else:
        connection = sqlite3.connect(path)
        tables = connection.execute("SELECT name FROM sqlite_master").fetchall()
        connection.close()
        assert tables == [("events",)]


def test_a_full_disk_ends_the_run_and_loses_nothing_that_was_recorded(ledger: Ledger) -> None:
    ledger.record([done(1)])
    pages = ledger._connection.execute("PRAGMA page_count").fetchone()[0]
    ledger._connection.execute(f"PRAGMA max_page_count={pages}")  # SQLite's own full disk
    with pytest.raises(StopRun) as stop:
        ledger.record([done(n, query="q" * 900) for n in range(500)])
    assert str(stop.value) == (
        f"{ledger.path}: cannot be used (database or disk is full); free the disk, or restore the "
        "file from a backup, then start again: what was recorded is not asked again"
    )
    assert stop.value.exit_code == 2
    assert places(list(ledger.results())) == [(1, 0)]


def test_damage_while_running_ends_the_run(path: Path) -> None:
    ledger = Ledger(path, OURS)
    ledger.record([done(n, query="q" * 500) for n in range(2000)])
    ledger.close()
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(size // 2)
        file.write(os.urandom(size - size // 2))
    ledger = Ledger(path, OURS)
    with pytest.raises(StopRun, match="cannot be used"):
        list(ledger.results())
    ledger.close()
