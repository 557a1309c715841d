"""What a run would ask for, counted before anything is asked."""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from question_optimizer.chunk_store import ChunkStore
from question_optimizer.generation import maintenance
from question_optimizer.generation.backlog import Backlog, Found, Wanted
from question_optimizer.generation.checks import ENFORCED
from question_optimizer.generation.ledger import Ledger
from question_optimizer.generation.ledger_records import Configuration
from question_optimizer.generation.ledger_tables import UNDONE
from question_optimizer.generation.quotas import QuotaPlan
from question_optimizer.sqlite_file import open_read_only

_SAMPLE = 20  # chunks whose prompts are rendered


@dataclass(frozen=True)
class Preview:
    """Questions to make, the calls for them, and the characters of a typical prompt."""

    found: Found
    questions: int
    calls: int
    most_calls: int  # if every question were refused as often as it may
    characters: float
    collection: str

    def told(self) -> list[str]:
        """Lines for people."""
        found = self.found
        passed = {
            "complete": found.complete + found.resumed + found.undone,
            "with somebody else's question": found.already_there,
            "done under another configuration": found.kept,
            "without text": found.without_text,
            "beyond --limit": found.beyond_limit,
        }
        rest = "".join(f", {count:,} {what}" for what, count in passed.items() if count)
        lines = [f"{found.points:,} chunks: {self.questions:,} questions to make{rest}"]
        if found.failed:
            lines.append(f"{found.failed:,} questions failed before; --retry-failed tries them")
        if self.most_calls > self.calls:
            lines.append(
                f"refused questions are asked for again: {self.most_calls:,} calls at the very most"
            )
        return lines


@dataclass(frozen=True)
class Held:
    """What the ledger holds of a collection, of all configurations, beside what is written."""

    waiting: int  # questions that `--apply` would write
    unchecked: int  # questions not held against the corpus yet
    undone: int  # chunks whose questions a person took out


def held(path: Path, collection: str) -> Held:
    """Of the ledger at `path`, which is left as it is."""
    with closing(open_read_only(path)) as connection:
        waiting, unchecked, undone = connection.execute(
            "SELECT SUM(checked<>'' AND written=0), SUM(checked=''), "
            "COUNT(DISTINCT CASE WHEN written=? THEN chunk_id END) "
            "FROM results WHERE state='done' AND fingerprint IN "
            "(SELECT fingerprint FROM configurations WHERE collection=?)",
            (UNDONE, collection),
        ).fetchone()
    return Held(waiting or 0, unchecked or 0, undone)


@contextmanager
def readmitted(path: Path, collection: str) -> Iterator[Path]:
    """A copy of the ledger at `path` in which what a person took out waits to be written."""
    with tempfile.TemporaryDirectory(prefix="question-optimizer-") as elsewhere:
        copy = Path(elsewhere) / path.name
        with closing(sqlite3.connect(path)) as one, closing(sqlite3.connect(copy)) as other:
            one.backup(other)
        with maintenance.waiting(copy, collection, undone=True):
            pass
        yield copy


@contextmanager
def ledger_to_look_at(path: Path, configuration: Configuration) -> Iterator[Ledger]:
    """The ledger, or an empty one elsewhere where there is none: looking makes no file."""
    with tempfile.TemporaryDirectory(prefix="question-optimizer-") as elsewhere:
        place = path if path.is_file() else Path(elsewhere) / path.name
        with closing(Ledger(place, configuration)) as ledger:
            yield ledger


def preview(
    store: ChunkStore,
    ledger: Ledger,
    wanted: Wanted,
    *,
    plan: Callable[[], QuotaPlan | None],
    text_key: str | None,
    characters: Callable[[Sequence[str]], float],
) -> Preview:
    """Walk over the collection as a run would. `characters`: of a prompt, from some chunks' texts.

    A planned question takes one call, as its type and format are given; others take two.
    """
    backlog = Backlog(store, ledger, wanted, plan=plan, text_key=text_key, look_only=True)
    calls = most = 0
    texts: list[str] = []
    for batch in backlog.first_pass():
        for todo in batch:
            if len(texts) < _SAMPLE:
                texts.append(todo.chunk.chunk_text)
            for slot in todo.slots:
                calls += 1 if slot.query_type else 2
        most += sum(len(todo.slots) for todo in batch)
    again = wanted.tries * (2 if plan() else 1) - 1 if wanted.policy in ENFORCED else 0
    return Preview(
        found=backlog.found,
        questions=backlog.found.to_do,
        calls=calls,
        most_calls=calls + again * most,
        characters=characters(texts),
        collection=store.collection,
    )
