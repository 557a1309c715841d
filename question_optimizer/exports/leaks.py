"""What stands on one side of an export and, the same or nearly so, on another: looked for in the
files as they were written, so that a mistake of the splitting or the writing cannot hide itself.
"""

from __future__ import annotations

import sqlite3
from array import array
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from question_optimizer.exports.dataset import holds_question
from question_optimizer.exports.likeness import alike, alike_pairs, text_digest
from question_optimizer.exports.reading import Asked, Missing, read
from question_optimizer.exports.splitting import SPLITS, read_kept
from question_optimizer.exports.workspace import Column
from question_optimizer.hostile_text import one_line

if TYPE_CHECKING:
    from question_optimizer.records import GoldItem

_GOLD = "gold"  # the "side" of what the gold set holds out: it may meet dev and test, never train
_SIDES = ("train", "dev", "test", _GOLD)
_ALIKE = {"questions": "question", "positives": "chunk text"}  # compared by likeness as well
_EXACT = {"documents": "document", "units": "split group", "chunks": "chunk"}
_TABLE = (
    "CREATE TABLE {} (number INTEGER PRIMARY KEY, digest TEXT NOT NULL, side INTEGER NOT NULL, "
    "text TEXT NOT NULL, place TEXT NOT NULL, UNIQUE (digest, side));"
)
_SCHEMA = (
    "PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF;"
    + "".join(map(_TABLE.format, (*_ALIKE, *_EXACT)))
    + "CREATE TABLE answers (question TEXT, chunk TEXT, PRIMARY KEY (question, chunk));"
    "CREATE TABLE refused (question TEXT, chunk TEXT, side INTEGER, text TEXT, place TEXT, "
    "PRIMARY KEY (question, chunk));"
)


@dataclass(frozen=True)
class Leak:
    """One thing that is where it must not be. `sides` are two, or one and the same."""

    kind: str
    sides: tuple[str, str]
    place: str
    example: str

    def __str__(self) -> str:
        one, other = self.sides
        where = f"in {one}" if one == other else f"between {one} and {other}"
        return f"leak {where}, {self.kind}: {one_line(self.example)[:100]!r} ({self.place})"


def find_leaks(folder: Path, gold: Sequence[GoldItem], scratch: Path) -> Iterator[Leak]:
    """What leaks in the export in `folder`, as it is found; nothing if all is well.

    Looked for, in every format: a document (or what else was split as a whole), chunk, question or
    chunk text on two sides, the latter two also if only nearly the same; any of that in train which
    the gold set's dev or test split holds; a question inside its own text; a negative that answers
    its question, or is another side's positive; a judgement on an id that is not there. `scratch`
    takes temporary files.
    """
    whole = read_kept(folder / SPLITS).unit in ("", "document")
    with closing(sqlite3.connect(scratch / "leaks.sqlite")) as seen:
        seen.executescript(_SCHEMA)
        for row in read(folder, scratch):
            if isinstance(row, Missing):
                kind = "a judgement on an id that is not there"
                yield Leak(kind, (row.side, row.side), row.where, row.id)
            else:
                yield from _within(row)
                _note(seen, row, whole)
        for item in gold:
            if item.split in ("dev", "test"):
                _note_gold(seen, item, whole)
        yield from _same(seen)
        yield from _answering(seen)
        for table, name in _ALIKE.items():
            yield from _nearly(seen, table, name, scratch)


# ---------------------------------------------------------------------- one row


def _within(row: Asked) -> Iterator[Leak]:
    sides = row.side, row.side
    if holds_question(row.positive, row.question):
        yield Leak("a question inside its own text", sides, row.where, row.question)
    for negative in row.negatives:
        if alike(negative, row.positive):
            yield Leak("a negative that repeats the positive", sides, row.where, negative)


def _note(seen: sqlite3.Connection, row: Asked, whole: bool) -> None:
    side = _SIDES.index(row.side)
    question, positive = text_digest(row.question), text_digest(row.positive)
    found = [("questions", question, row.question), ("positives", positive, row.positive)]
    found.append(("chunks", row.chunk_id, row.chunk_id))
    if row.split_group is not None:
        found.append(("units", row.split_group, row.split_group))
    if row.document is not None and whole:
        found.append(("documents", row.document, row.document))
    for table, digest, text in found:
        _add(seen, table, digest, side, text, row.where)
    seen.execute("INSERT OR IGNORE INTO answers VALUES (?, ?)", (question, positive))
    for negative in row.negatives:
        values = (question, text_digest(negative), side, negative, row.where)
        seen.execute("INSERT OR IGNORE INTO refused VALUES (?, ?, ?, ?, ?)", values)


def _note_gold(seen: sqlite3.Connection, item: GoldItem, whole: bool) -> None:
    side, place = _SIDES.index(_GOLD), f"gold item {item.chunk_id}"
    _add(seen, "chunks", str(item.chunk_id), side, str(item.chunk_id), place)
    for name in (item.document_id, item.file_name) if whole else ():
        if name:
            _add(seen, "documents", name, side, name, place)
    for table, text in (("questions", item.gold_question), ("positives", item.chunk_text)):
        _add(seen, table, text_digest(text), side, text, place)


def _add(
    seen: sqlite3.Connection, table: str, digest: str, side: int, text: str, place: str
) -> None:
    seen.execute(
        f"INSERT OR IGNORE INTO {table} VALUES "  # noqa: S608 - our own
        f"((SELECT COALESCE(MAX(number) + 1, 0) FROM {table}), ?, ?, ?, ?)",
        (digest, side, text, place),
    )


# ---------------------------------------------------------------------- all of them


def _clash(one: int, other: int) -> bool:
    """Whether the same thing must not be on both sides."""
    return one != other and (min(one, other) == 0 or _SIDES[max(one, other)] != _GOLD)


def _same(seen: sqlite3.Connection) -> Iterator[Leak]:
    for table, name in {**_EXACT, **_ALIKE}.items():
        for one, other, text, place in seen.execute(
            "SELECT a.side, b.side, a.text, a.place FROM "  # noqa: S608 - our own
            f"{table} AS a JOIN {table} AS b ON b.digest=a.digest AND a.side<b.side"
        ):
            if _clash(one, other):
                yield Leak(f"the same {name}", (_SIDES[one], _SIDES[other]), place, text)


def _answering(seen: sqlite3.Connection) -> Iterator[Leak]:
    """Negatives that are a positive of another side, or elsewhere of the same question."""
    for side, other, text, place in seen.execute(
        "SELECT r.side, p.side, r.text, r.place FROM refused AS r "
        "JOIN positives AS p ON p.digest=r.chunk AND p.side<>r.side"
    ):
        if _clash(*sorted((side, other))):
            kind = "a negative that is a positive of another side"
            yield Leak(kind, (_SIDES[side], _SIDES[other]), place, text)
    for side, text, place in seen.execute(
        "SELECT r.side, r.text, r.place FROM refused AS r "
        "JOIN answers AS a ON a.question=r.question AND a.chunk=r.chunk"
    ):
        kind = "a negative that is a positive of the same question"
        yield Leak(kind, (_SIDES[side], _SIDES[side]), place, text)


def _nearly(seen: sqlite3.Connection, table: str, name: str, scratch: Path) -> Iterator[Leak]:
    sides = array("b")
    for (side,) in seen.execute(f"SELECT side FROM {table} ORDER BY number"):  # noqa: S608
        sides.append(side)
    texts = Column(seen, (table, "text"))
    for i, j in alike_pairs(texts, scratch, lambda i, j: _clash(sides[i], sides[j])):
        one, other = sorted((i, j), key=lambda number: sides[number])
        sql = f"SELECT place FROM {table} WHERE number=?"  # noqa: S608 - our own
        place = seen.execute(sql, (one,)).fetchone()[0]
        between = _SIDES[sides[one]], _SIDES[sides[other]]
        yield Leak(f"nearly the same {name}", between, place, texts[one])
