"""What a run is to make: the collection held against the ledger, batch by batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from conftest import tree_digest
from generator_runs import change, corpus, text_of
from ledger_marks import mark_undone, mark_written
from question_optimizer.generation.backlog import Backlog, Todo, Wanted
from question_optimizer.generation.checks import text_digest
from question_optimizer.generation.ledger import Ledger
from question_optimizer.generation.ledger_records import Configuration, Refusal, Result
from question_optimizer.generation.quotas import Cell, QuotaPlan, targets, total_variation
from question_optimizer.generation.write_back import changes_for
from question_optimizer.qdrant_folder import QdrantFolder

CONFIGURATION = Configuration("units", "p" * 16, "q" * 16, ("m",))
EVEN = targets("even")


class Corpus:
    """Five chunks (or more), a ledger, and what a run is told to do with them."""

    def __init__(self, folder: Path, count: int = 5):
        self.folder = corpus(folder / "qdrant", count)
        self.path = folder / "generation.sqlite"
        self.ledger = Ledger(self.path, CONFIGURATION)
        self.backlog: Backlog

    def todo(self, plan: QuotaPlan | None = None, **wanted: Any) -> list[Todo]:
        with self.run(plan, **wanted) as batches:
            return [todo for batch in batches for todo in batch]

    def run(self, plan: QuotaPlan | None = None, *, look_only: bool = False, **wanted: Any) -> Any:
        return _Run(self, plan, look_only, Wanted(**wanted))

    def slots(self, plan: QuotaPlan | None = None, **wanted: Any) -> list[Result]:
        return [slot for todo in self.todo(plan, **wanted) for slot in todo.slots]

    def record(self, *results: Result) -> None:
        self.ledger.record(results)


class _Run:
    def __init__(self, its: Corpus, plan: QuotaPlan | None, look_only: bool, wanted: Wanted):
        self._store = QdrantFolder(its.folder)
        its.backlog = Backlog(
            self._store, its.ledger, wanted, plan=lambda: plan, look_only=look_only
        )
        self._backlog = its.backlog

    def __enter__(self) -> Iterator[list[Todo]]:
        return self._backlog.first_pass()

    def __exit__(self, *exc: object) -> None:
        self._store.close()


@pytest.fixture
def five(tmp_path: Path) -> Iterator[Corpus]:
    its = Corpus(tmp_path)
    yield its
    its.ledger.close()


def result(number: int, slot: int = 0, **rest: Any) -> Result:
    digest = text_digest(text_of(number))
    return Result(number, slot, **{"state": "done", "text_sha256": digest, **rest})


def done(number: int, slot: int = 0, **rest: Any) -> Result:
    given = {"query": f"question {number}/{slot}?", "checked": "record", **rest}
    return result(number, slot, attempts=1, **given)


def rejected(number: int, *, attempts: int, **rest: Any) -> Result:
    given = {"gate": "length", "reason": "too long", **rest}
    return result(number, state="rejected", attempts=attempts, **given)


# ---------------------------------------------------------------------- what is wanted


def test_every_chunk_wants_its_question_and_says_where_it_comes_from(five: Corpus) -> None:
    slots = five.slots()
    assert [slot.chunk_id for slot in slots] == [1, 2, 3, 4, 5]
    assert {(slot.state, slot.slot, slot.attempts, slot.query) for slot in slots} == {
        ("pending", 0, 0, None)
    }
    assert slots[0].document == "manual-1.pdf"
    assert slots[0].text_sha256 == text_digest(text_of(1))
    assert (five.backlog.found.points, five.backlog.found.to_do) == (5, 5)


def test_a_corpus_is_handed_out_in_batches(tmp_path: Path) -> None:
    its = Corpus(tmp_path, 70)
    with its.run() as batches:
        assert [len(batch) for batch in batches] == [64, 6]


def test_what_is_done_is_not_wanted_again(five: Corpus) -> None:
    five.record(done(2), done(4))
    change(five.folder, {"generated_query": "question 2/0?"}, 2)
    mark_written(five.ledger, [2, 4])
    assert [slot.chunk_id for slot in five.slots()] == [1, 3, 5]
    found = five.backlog.found
    assert (found.complete, found.resumed, found.to_do) == (1, 1, 3)
    assert [results[0].chunk_id for results in five.ledger.unwritten(9)] == [4]


def test_a_pending_slot_comes_back_with_the_first_step_that_was_paid_for(five: Corpus) -> None:
    paid: dict[str, Any] = {
        "query_type": "reasoning",
        "query_format": "keywords",
        "analysed": True,
        "calls": 1,
    }
    five.record(result(3, state="pending", **paid))
    (slot,) = (slot for slot in five.slots() if slot.chunk_id == 3)
    assert slot == result(3, state="pending", **paid)


def test_a_failed_slot_is_left_alone_until_it_is_asked_for(five: Corpus) -> None:
    five.record(result(1, state="failed", reason="HTTP 400", attempts=1))
    assert [slot.chunk_id for slot in five.slots()] == [2, 3, 4, 5]
    assert five.backlog.found.failed == 1
    slot = five.slots(retry_failed=True)[0]
    assert (slot.chunk_id, slot.attempts, slot.state) == (1, 1, "failed")
    assert five.backlog.found.failed == 0


def test_a_chunk_without_its_question_is_not_complete(five: Corpus) -> None:
    five.record(
        result(1, state="failed", reason="HTTP 400", attempts=1), rejected(2, attempts=3), done(3)
    )
    change(five.folder, {"generated_query": "question 3/0?"}, 3)
    five.slots(policy="training")
    assert five.backlog.found.complete == 1


def test_a_limit_counts_what_earlier_runs_made(five: Corpus) -> None:
    assert [slot.chunk_id for slot in five.slots(limit=2)] == [1, 2]
    assert five.backlog.found.beyond_limit == 3
    five.record(done(1))
    assert [slot.chunk_id for slot in five.slots(limit=2)] == [2]
    assert five.slots(limit=0) == []


def test_a_point_without_text_is_counted_and_left_out(tmp_path: Path) -> None:
    its = Corpus(tmp_path)
    change(its.folder, {"text": "   "}, 2)
    assert [slot.chunk_id for slot in its.slots()] == [1, 3, 4, 5]
    assert its.backlog.found.without_text == 1


# ---------------------------------------------------------------------- whose question stands there


def test_somebody_elses_question_is_replaced_only_when_asked(five: Corpus) -> None:
    change(five.folder, {"generated_query": "the old one?"}, 3)
    assert [slot.chunk_id for slot in five.slots()] == [1, 2, 4, 5]
    assert five.backlog.found.already_there == 1
    assert len(five.slots(overwrite=True)) == 5
    assert five.backlog.found.already_there == 0


def test_a_question_of_ours_that_the_ledger_lost_is_not_paid_for_again(five: Corpus) -> None:
    told, _ = changes_for({}, [done(2)], {"run": "r", "configuration": "of a lost ledger"})
    change(five.folder, told.set, 2)
    assert [slot.chunk_id for slot in five.slots()] == [1, 3, 4, 5]
    assert five.backlog.found.already_there == 1
    assert len(five.slots(overwrite=True)) == 5


def test_another_configurations_questions_are_kept_or_made_again(five: Corpus) -> None:
    former = Ledger(five.path, replace(CONFIGURATION, pipeline="o" * 16))
    former.record([done(1), done(2)])
    former.close()
    change(five.folder, {"generated_query": "question 1/0?"}, 1)
    assert [slot.chunk_id for slot in five.slots()] == [3, 4, 5]
    assert five.backlog.found.kept == 2
    assert len(five.slots(changed="redo")) == 5


def test_a_text_that_changed_under_the_same_id_gets_a_question_of_its_own(five: Corpus) -> None:
    five.record(done(1), done(2))
    change(five.folder, {"text": "The door leaf closes by a spindle drive and a belt."}, 2)
    slots = {slot.chunk_id: slot for slot in five.slots()}
    assert slots.keys() == {2, 3, 4, 5}
    assert (slots[2].state, slots[2].attempts) == ("pending", 0)
    assert slots[2].text_sha256 != text_digest(text_of(2))


def test_a_changed_text_is_asked_about_though_our_former_question_stands_there(
    five: Corpus,
) -> None:
    five.record(done(2))
    change(five.folder, {"generated_query": "question 2/0?"}, 2)
    change(five.folder, {"text": "The door leaf closes by a spindle drive and a belt."}, 2)
    assert 2 in [slot.chunk_id for slot in five.slots()]
    assert five.backlog.found.already_there == 0


def test_what_a_person_took_out_stays_out(five: Corpus) -> None:
    five.record(done(1))
    mark_undone(five.ledger, [1])
    assert [slot.chunk_id for slot in five.slots()] == [2, 3, 4, 5]
    assert (five.backlog.found.undone, five.backlog.found.resumed) == (1, 0)
    assert five.ledger.unwritten(9) == []


def test_a_written_question_that_the_collection_lost_waits_again(five: Corpus) -> None:
    five.record(done(1))
    mark_written(five.ledger, [1])
    five.slots()
    assert five.backlog.found.resumed == 1
    assert len(five.ledger.unwritten(9)) == 1


def test_looking_changes_nothing_in_the_ledger(five: Corpus) -> None:
    five.record(done(1), rejected(2, attempts=1))
    five.ledger.record([], [(2, 0, Refusal("too long?", "length", "too long"))])
    mark_written(five.ledger, [1])
    before = [five.ledger.slots_of([1, 2]), five.ledger.unwritten(9)]
    with five.run(look_only=True, policy="record") as batches:
        assert sum(len(batch) for batch in batches) == 3
    assert [five.ledger.slots_of([1, 2]), five.ledger.unwritten(9)] == before


def test_looking_at_a_corpus_changes_no_byte_of_it(five: Corpus) -> None:
    before = tree_digest(five.folder)
    five.slots()
    assert tree_digest(five.folder) == before


# ---------------------------------------------------------------------- refused questions


def test_a_rejected_slot_is_asked_for_again_while_tries_are_left(five: Corpus) -> None:
    five.record(*(rejected(number, attempts=number) for number in (1, 2, 3)))
    assert [s.chunk_id for s in five.slots(policy="training", refills=2)] == [1, 2, 4, 5]
    assert five.backlog.found.rejected == 1
    again = five.slots(policy="training", refills=2, retry_rejected=True)
    assert [s.chunk_id for s in again] == [1, 2, 3, 4, 5]


def test_a_run_that_refuses_nothing_takes_back_what_was_refused(five: Corpus) -> None:
    five.record(rejected(1, attempts=3, calls=4, query_type="reasoning"))
    refusals = [Refusal(f"try {n}?", "length", f"reason {n}") for n in range(3)]
    five.ledger.record([], [(1, 0, refusal) for refusal in refusals])
    assert [slot.chunk_id for slot in five.slots(policy="record")] == [2, 3, 4, 5]
    (slot,) = five.ledger.slots_of([1])[1]
    assert (slot.state, slot.query, slot.checked, slot.calls) == ("done", "try 2?", "", 4)
    assert slot.findings == (("length", "reason 2"),)
    assert slot.query_type == "reasoning"


def test_refills_are_the_rejected_slots_that_have_tries_left(five: Corpus) -> None:
    five.record(*(rejected(number, attempts=number) for number in (1, 2, 3)), done(4))
    change(five.folder, {"text": "Another text altogether, about sand and its box."}, 2)
    with five.run(policy="training"):
        batches = list(five.backlog.refills())
    assert [todo.chunk.chunk_id for batch in batches for todo in batch] == [1]


def test_refills_hand_out_no_empty_batch(tmp_path: Path) -> None:
    """Whoever works on batches takes an empty one for the end."""
    its = Corpus(tmp_path, 66)
    ids = sorted(range(1, 67), key=str)
    its.record(*(rejected(number, attempts=1) for number in ids))
    change(its.folder, {"text": "Another text altogether, about sand and its box."}, *ids[:64])
    with its.run(policy="training"):
        batches = list(its.backlog.refills())
    assert [[todo.chunk.chunk_id for todo in batch] for batch in batches] == [ids[64:]]


# ---------------------------------------------------------------------- several questions a chunk


def test_more_questions_a_chunk_pay_only_for_the_new_ones(five: Corpus) -> None:
    five.record(
        *(done(n, query_type="reasoning", query_format="keywords") for n in (1, 2, 3, 4, 5))
    )
    plan = QuotaPlan(EVEN, seed=0)
    todo = five.todo(plan, per_chunk=3)
    assert [[slot.slot for slot in one.slots] for one in todo] == [[1, 2]] * 5
    for one in todo:
        pairs = {(slot.query_type, slot.query_format) for slot in one.slots}
        assert len(pairs | {("reasoning", "keywords")}) == 3


def test_a_plan_is_met_exactly_over_a_corpus_and_a_resumed_one_goes_on_with_it(
    tmp_path: Path,
) -> None:
    """Batches of 64: stopped after the first, and again by a run that makes what is left."""
    its = Corpus(tmp_path, 90)
    with its.run(QuotaPlan(EVEN, seed=0), per_chunk=2) as batches:
        first = next(batches)
    its.record(*(replace(s, state="done", query="q?") for todo in first for s in todo.slots))
    taken = {Cell(*cell): n for cell, n in its.ledger.cells(2).items()}
    rest = its.slots(QuotaPlan(EVEN, seed=0, taken=taken), per_chunk=2)
    assert len(rest) == 2 * (90 - 64)
    its.record(*(replace(slot, state="done", query="q?") for slot in rest))
    cells = {Cell(*cell): float(n) for cell, n in its.ledger.cells(2).items()}
    assert sum(cells.values()) == 180
    pairs = Counter[tuple[str, str]]()
    for cell, n in cells.items():
        pairs[cell.pair] += int(n)
    assert sorted(pairs.values()) == [10] * 6 + [20] * 6
    assert total_variation(cells, EVEN) < 0.05


def test_a_slot_that_used_up_its_plan_gets_another_and_gives_the_first_back(five: Corpus) -> None:
    cell = Cell("reasoning", "keywords", "short")
    five.record(rejected(1, attempts=3, **cell._asdict()))
    plan = QuotaPlan(EVEN, seed=0, taken={cell: 1})
    (slot,) = (s for s in five.slots(plan, policy="training") if s.chunk_id == 1)
    assert slot.attempts == 3
    assert (slot.query_type, slot.query_format) != ("reasoning", "keywords")
    assert plan.taken.total() == 5
    five.record(rejected(1, attempts=6, **cell._asdict()))
    assert 1 not in [s.chunk_id for s in five.slots(QuotaPlan(EVEN, seed=0), policy="training")]


def test_a_planned_slot_that_was_given_up_can_be_asked_for_once_more(five: Corpus) -> None:
    five.record(
        rejected(
            1,
            attempts=6,
            query_type="reasoning",
            query_format="keywords",
            query_length="short",
        )
    )
    taken = five.ledger.cells(2 * 3)
    plan = QuotaPlan(EVEN, seed=0, taken=taken)
    slots = five.slots(plan, policy="training", retry_rejected=True)
    assert slots[0].chunk_id == 1
    assert plan.taken.total() == 5


# ---------------------------------------------------------------------- what others did since


def written_by(number: int, query: str, **provenance: Any) -> dict[str, Any]:
    """The payload keys of a point that a generator wrote a question into."""
    given = {"configuration": CONFIGURATION.fingerprint, "run": "r1", **provenance}
    change, _ = changes_for({}, [done(number, query=query)], given)
    return change.set


def test_a_failed_slot_is_not_retried_where_somebody_elses_question_stands_by_now(
    five: Corpus,
) -> None:
    five.record(*(result(n, state="failed", reason="HTTP 400", attempts=1) for n in (1, 2)))
    change(five.folder, {"generated_query": "the host's own?"}, 2)
    assert [slot.chunk_id for slot in five.slots(retry_failed=True)] == [1, 3, 4, 5]
    assert five.backlog.found.already_there == 1
    assert [s.chunk_id for s in five.slots(retry_failed=True, overwrite=True)] == [1, 2, 3, 4, 5]


def test_a_refused_slot_is_not_asked_for_again_where_a_person_wrote_another_question(
    five: Corpus,
) -> None:
    """It stood in the collection, a person edited it, then a stricter policy refused it."""
    for number in (1, 2):
        change(five.folder, written_by(number, "ours?"), number)
    change(five.folder, {"generated_query": "by a person?"}, 2)
    five.record(*(rejected(number, attempts=1) for number in (1, 2)))

    def again(**wanted: Any) -> list[object]:
        with five.run(policy="training", **wanted):
            return [todo.chunk.chunk_id for batch in five.backlog.refills() for todo in batch]

    assert again() == [1]
    assert again(overwrite=True) == [1, 2]


def test_a_question_that_a_person_edited_is_neither_made_again_nor_written_over(
    five: Corpus,
) -> None:
    """Ours under this configuration, and another's that is to be made again."""
    former = Ledger(five.path, replace(CONFIGURATION, pipeline="o" * 16))
    former.record([done(2)])
    former.close()
    five.record(done(1))
    mark_written(five.ledger, [1])
    for number in (1, 2):
        change(five.folder, written_by(number, f"question {number}/0?"), number)
        change(five.folder, {"generated_query": "by a person?"}, number)
    assert [slot.chunk_id for slot in five.slots(changed="redo")] == [3, 4, 5]
    found = five.backlog.found
    assert (found.already_there, found.resumed) == (2, 0)
    assert five.ledger.unwritten(9) == []


def test_a_list_of_questions_that_a_person_edited_gets_no_more_of_them(five: Corpus) -> None:
    two = [done(1, query="first?"), done(1, 1, query="second?")]
    five.record(*two)
    told, _ = changes_for({}, two, {"configuration": CONFIGURATION.fingerprint})
    change(five.folder, told.set, 1)
    assert [slot.slot for slot in five.slots(per_chunk=3) if slot.chunk_id == 1] == [2]
    change(five.folder, {"generated_queries": [{"query": "by a person?"}]}, 1)
    assert 1 not in [slot.chunk_id for slot in five.slots(per_chunk=3)]
    assert five.backlog.found.already_there == 1


def test_a_question_that_another_configuration_put_in_the_place_of_ours_stands(
    five: Corpus,
) -> None:
    five.record(done(1))
    mark_written(five.ledger, [1])
    change(five.folder, written_by(1, "theirs?", configuration="o" * 16), 1)
    assert [slot.chunk_id for slot in five.slots()] == [2, 3, 4, 5]
    assert (five.backlog.found.kept, five.backlog.found.resumed) == (1, 0)
    assert five.ledger.unwritten(9) == []
    five.slots(changed="redo")
    assert (five.backlog.found.kept, five.backlog.found.resumed) == (0, 1)


def test_a_text_that_changed_is_not_kept_with_another_configurations_question(
    five: Corpus,
) -> None:
    former = Ledger(five.path, replace(CONFIGURATION, pipeline="o" * 16))
    former.record([done(1), done(2)])
    former.close()
    for number in (1, 2):
        change(five.folder, written_by(number, f"question {number}/0?"), number)
    change(five.folder, {"text": "The door leaf closes by a spindle drive and a belt."}, 2)
    assert [slot.chunk_id for slot in five.slots()] == [2, 3, 4, 5]
    assert (five.backlog.found.kept, five.backlog.found.already_there) == (1, 0)


@pytest.mark.parametrize("state", ["failed", "rejected"])
def test_what_a_day_did_not_reach_is_retried_by_the_next_pass_and_the_rest_is_not(
    five: Corpus, state: str
) -> None:
    def given_up(number: int, attempts: int) -> Result:
        return result(number, state=state, gate="length", reason="no", attempts=attempts)

    five.record(*(given_up(number, 3) for number in (1, 2)))
    wanted: dict[str, Any] = {"policy": "training", f"retry_{state}": True}
    with five.run(limit=2, **wanted) as batches:
        assert [todo.chunk.chunk_id for batch in batches for todo in batch] == [1, 2]
        five.record(given_up(1, 6))  # then the quota was spent
        again = [todo.chunk.chunk_id for batch in five.backlog.first_pass() for todo in batch]
    assert again == [2]
