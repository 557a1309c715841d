"""What a question is compared with, and what is written again: as it stands now, not as it was."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from generator_runs import Asked, Scripted, corpus, generator_for, good_question, text_of
from ledger_marks import mark_written
from question_optimizer.dispatcher import LLMDispatcher
from question_optimizer.errors import StopRun
from question_optimizer.generation.checks import text_digest
from question_optimizer.generation.ledger import Ledger
from question_optimizer.generation.ledger_records import Configuration, Result
from question_optimizer.generation.repeats import QuestionIndex
from question_optimizer.generation.settling import Settled, fill, settle
from question_optimizer.programs.question_worker import Job, QuestionWorker
from question_optimizer.providers import rehearsal_account
from question_optimizer.records import PointId

ALIKE = "How often are the brake pads of the leading bogie looked at by hand in winter?"
OTHER = "What does the pantograph of a tram wear by when nobody greases it?"
BAD = "What does this section say about it?"


class Standing:
    """A ledger, an index of questions, and a collection from which chunks go."""

    def __init__(self, folder: Path):
        self.ledger = Ledger(folder / "generation.sqlite", Configuration("units", "p", "q", ("m",)))
        self.index = QuestionIndex(folder / "questions.sqlite")
        self.gone: set[PointId] = set()

    def close(self) -> None:
        self.ledger.close()
        self.index.close()

    def texts_of(self, chunk_ids: Sequence[PointId]) -> dict[PointId, str]:
        return {i: text_of(int(i)) for i in chunk_ids if i not in self.gone}

    def settle(self, policy: str = "training", **rest: Any) -> Settled:
        return settle(self.ledger, policy, self.index, texts_of=self.texts_of, **rest)

    def states(self) -> dict[PointId, str]:
        return {result.chunk_id: result.state for result in self.ledger.results()}


@pytest.fixture
def its(tmp_path: Path) -> Iterator[Standing]:
    with closing(Standing(tmp_path)) as its:
        yield its


def done(number: int, query: str, slot: int = 0, **rest: Any) -> Result:
    given = {"attempts": 1, "query_format": "formal question", **rest}
    return Result(number, slot, "done", query, text_sha256=text_digest(text_of(number)), **given)


# ---------------------------------------------------------------------- what it is compared with


def test_a_question_repeats_none_of_a_chunk_that_is_gone(its: Standing) -> None:
    """A document that was put in anew under other ids asks the same of the same texts."""
    its.ledger.record([done(1, ALIKE), done(2, OTHER)])
    its.settle()
    its.gone = {1}
    its.ledger.record([done(3, ALIKE), done(4, OTHER)])
    assert its.settle().refused == {"near_duplicate": 1}
    assert its.states() == {1: "done", 2: "done", 3: "done", 4: "rejected"}
    its.ledger.record([done(5, ALIKE)])
    assert its.settle().refused == {"near_duplicate": 1}, "the new chunk's stands in its place"


@pytest.mark.parametrize(("gone", "refused"), [({1}, 1), ({2}, 1), ({1, 2}, 0)])
def test_of_several_that_it_is_alike_to_those_whose_chunks_are_there_count(
    its: Standing, gone: set[PointId], refused: int
) -> None:
    """Two that are not alike to one another; the third is alike to both."""
    its.ledger.record([done(1, f"{ALIKE[:-1]} or autumn?"), done(2, f"Tell me now: {ALIKE}")])
    assert its.settle().refused == {}
    its.gone = gone
    its.ledger.record([done(3, ALIKE)])
    assert its.settle().refused.total() == refused


async def test_a_document_that_was_put_in_anew_gets_its_questions_for_one_call_each(
    tmp_path: Path,
) -> None:
    from qdrant_client import QdrantClient, models

    folder, data = corpus(tmp_path / "units", 6), tmp_path / "data"
    await generator_for(folder, data, pipeline=Scripted(), gates="training").generate()
    with closing(QdrantClient(path=str(folder))) as client:
        records, _ = client.scroll("units", limit=10, with_vectors=True)
        client.delete("units", models.PointIdsList(points=[record.id for record in records]))
        for record in records:
            before = record.payload or {}
            payload = {k: v for k, v in before.items() if not k.startswith("generated")}
            vector: Any = record.vector
            point = models.PointStruct(id=int(record.id) + 1000, vector=vector, payload=payload)
            client.upsert("units", [point])
    program = Scripted()
    again = await generator_for(folder, data, pipeline=program, gates="training").generate()
    assert (again.generated, again.written, again.refused, len(program.asked)) == (6, 6, 0, 6)


# ---------------------------------------------------------------------- a lost index


def test_an_index_that_was_filled_in_part_is_filled_wholly_by_the_next_start(its: Standing) -> None:
    """It ended at a row that could not be read, behind the first thousand."""
    asked = [f"{number:o} {number * 7919:o} {number * 104729:o}" for number in range(1100)]
    its.ledger.record([done(n, query, checked="training") for n, query in enumerate(asked)])

    def findings(text: str) -> None:
        with closing(sqlite3.connect(its.ledger.path)) as database, database:
            database.execute("UPDATE results SET findings=? WHERE chunk_id='999'", (text,))

    findings("{")
    with pytest.raises(ValueError, match="Expecting"):
        fill(its.index, its.ledger)
    findings("[]")
    its.index.close()
    its.index = QuestionIndex(its.ledger.path.with_name("questions.sqlite"))
    fill(its.index, its.ledger)
    assert len(its.index) == 1100


async def test_a_run_that_lost_its_index_compares_with_what_the_ledger_has(tmp_path: Path) -> None:
    folder, data = corpus(tmp_path / "units", 4), tmp_path / "data"
    given = {"gates": "training", "refills": 0}
    await generator_for(folder, data, pipeline=Scripted(), limit=2, **given).generate()
    for path in (data / "cache").glob("questions-*.sqlite*"):
        path.unlink()

    def write(asked: Asked, number: int) -> str:
        first = Asked(text_of(1), asked.query_type, asked.query_format, asked.advice)
        return good_question(first if asked.chunk_text == text_of(3) else asked, number)

    summary = await generator_for(folder, data, pipeline=Scripted(write), **given).generate()
    assert (summary.generated, summary.rejected) == (1, 1)
    (refused,) = (row for row in summary.report["gates"] if row["refused"])
    assert refused["gate"] == "near_duplicate"


# ---------------------------------------------------------------------- what is looked at again


async def test_a_kill_where_gates_are_off_leaves_nothing_that_another_policy_lets_pass(
    its: Standing,
) -> None:
    """The question is in the ledger as the worker gave it; nobody settled it."""
    program = Scripted(lambda asked, number: BAD)
    dispatcher = LLMDispatcher([rehearsal_account()])
    worker = QuestionWorker(program, dispatcher, policy="off", refills=0)
    slot = Result(1, text_sha256=text_digest(text_of(1)))
    result, _ = await worker.do(Job(1, text_of(1), "A reader.", slot))
    its.ledger.record([result])
    assert its.settle("training").refused == {"refers_outside": 1}


def test_a_chunk_that_lost_one_of_its_written_questions_is_written_again(its: Standing) -> None:
    its.ledger.record([done(1, BAD), done(1, OTHER, 1)])
    its.settle("off")
    mark_written(its.ledger, [1])
    assert its.ledger.unwritten(9) == []
    assert its.settle("training").refused == {"refers_outside": 1}
    ((left,),) = its.ledger.unwritten(9)
    assert left.query == OTHER


def test_who_wants_to_end_waits_for_one_batch_at_most(its: Standing) -> None:
    its.ledger.record([done(1, ALIKE)])
    with pytest.raises(StopRun) as stopped:
        its.settle(stopped=lambda: True)
    assert stopped.value.exit_code == 130
    assert its.settle().checked == 1
