"""The ledger: results on disk by chunk and configuration, attempts counted, nothing lost."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import ROOT, clean_environment
from question_optimizer.errors import UserError
from question_optimizer.ledger import Ledger, Result

UUID = "7f8ae809-67e1-4820-b5f3-f4e8ec22c291"
DONE = Result(
    7,
    query="What is WAL?",
    query_type="fact retrieval",
    query_format="formal question",
    persona_id="depot-technician",
    model="m",
    tokens=100,
    cost=0.25,
)
FAILED = Result(8, tokens=40, cost=0.125, reason="the answer could not be read")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "generation.sqlite"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    ledger = Ledger(path, "a")
    yield ledger
    ledger.close()


def attempts(path: Path) -> dict[str, int]:
    """{chunk id: attempts}, as another process sees them."""
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        return dict(connection.execute("SELECT chunk_id, attempts FROM chunks"))
    finally:
        connection.close()


def test_what_was_recorded_is_there_for_the_next_run(ledger: Ledger, path: Path) -> None:
    ledger.record(DONE)
    ledger.record(FAILED)
    ledger.close()
    again = Ledger(path, "a")
    assert again.done() == [DONE]
    assert again.failed() == [FAILED]
    assert again.query_of(7) == "What is WAL?"
    assert again.query_of(8) is None
    assert again.query_of(9) is None
    again.close()


def test_a_result_is_on_disk_as_soon_as_it_is_recorded(ledger: Ledger, path: Path) -> None:
    ledger.record(DONE)
    other = Ledger(path, "a")
    assert other.done() == [DONE]
    other.close()


_KILLED = """
import os, signal, sys
from pathlib import Path
from question_optimizer.ledger import Ledger, Result
ledger = Ledger(Path(sys.argv[1]), "a")
for number in range(5):
    ledger.record(Result(number, query=f"q{number}"))
ledger.mark_written([0, 1])
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_results_survive_a_kill(path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _KILLED, str(path)], cwd=ROOT, env=clean_environment(), check=False
    )
    assert done.returncode == -signal.SIGKILL
    ledger = Ledger(path, "a")
    assert [result.query for result in ledger.done()] == ["q0", "q1", "q2", "q3", "q4"]
    assert [result.chunk_id for result in ledger.unwritten(9)] == [2, 3, 4]
    ledger.close()


def test_each_attempt_is_counted_and_paid_for(ledger: Ledger, path: Path) -> None:
    for _ in range(3):
        ledger.record(FAILED)
    assert attempts(path) == {"8": 3}
    (failed,) = ledger.failed()
    assert (failed.tokens, failed.cost) == (120, 0.375)


def test_a_success_after_failures_stands_and_keeps_their_cost(ledger: Ledger, path: Path) -> None:
    ledger.record(FAILED)
    ledger.record(Result(8, query="q?", tokens=100, cost=0.25))
    assert ledger.failed() == []
    assert ledger.done() == [Result(8, query="q?", tokens=140, cost=0.375)]
    assert attempts(path) == {"8": 2}


@pytest.mark.parametrize("query", [None, ""])
def test_no_query_is_a_failure_and_never_an_empty_result(ledger: Ledger, query: str | None) -> None:
    ledger.record(Result(1, query=query, reason="why"))
    assert ledger.done() == []
    assert [failure.reason for failure in ledger.failed()] == ["why"]


def test_results_of_another_configuration_are_left_alone(ledger: Ledger, path: Path) -> None:
    ledger.record(DONE)
    other = Ledger(path, "b")
    assert (other.done(), other.failed(), other.unwritten(9)) == ([], [], [])
    assert other.query_of(7) is None
    other.record(Result(7, query="Another?"))
    other.mark_written([7])
    other.close()
    assert ledger.done() == [DONE]
    assert ledger.unwritten(9) == [DONE]


def test_what_is_marked_written_is_not_offered_again_until_it_is_made_anew(
    ledger: Ledger,
) -> None:
    for number in (1, 2, 3):
        ledger.record(Result(number, query=f"q{number}"))
    ledger.mark_written([1, 3])
    assert [result.chunk_id for result in ledger.unwritten(9)] == [2]
    ledger.record(Result(1, query="better"))
    assert [result.query for result in ledger.unwritten(9)] == ["better", "q2"]
    ledger.mark_written([3], written=False)
    assert [result.chunk_id for result in ledger.unwritten(9)] == [1, 2, 3]
    assert [result.chunk_id for result in ledger.unwritten(2)] == [1, 2]
    ledger.mark_written([1, 2, 3, 99])
    assert ledger.unwritten(9) == []


@pytest.mark.parametrize("chunk_id", [0, 7, 2**64 - 1, UUID])
def test_ids_come_back_as_they_were(ledger: Ledger, chunk_id: int | str) -> None:
    ledger.record(Result(chunk_id, query="q?"))
    assert [result.chunk_id for result in ledger.done()] == [chunk_id]
    assert ledger.query_of(chunk_id) == "q?"
    ledger.mark_written([chunk_id])
    assert ledger.unwritten(9) == []


def test_opening_changes_no_byte(ledger: Ledger, path: Path) -> None:
    ledger.record(DONE)
    ledger.close()
    before = path.read_bytes()
    Ledger(path, "a").close()
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_a_file_that_is_no_ledger_is_refused_and_left_alone(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"this is not a database" * 100)
    with pytest.raises(UserError) as refusal:
        Ledger(path, "a")
    assert str(refusal.value) == (
        f"{path}: cannot be opened (file is not a database); restore it from a backup"
    )
    assert path.read_bytes() == b"this is not a database" * 100


def test_a_ledger_of_a_newer_program_is_refused(ledger: Ledger, path: Path) -> None:
    ledger.close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version=2")
    connection.close()
    with pytest.raises(UserError) as refusal:
        Ledger(path, "a")
    assert str(refusal.value).startswith(f"{path}: version 2 is newer than ")
