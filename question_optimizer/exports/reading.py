"""An export's files read back row by row, for checks: what was written counts, not what was meant.

Every format gives the same thing: a question, the text that answers it, where both come from.
"""

from __future__ import annotations

import csv
import re
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from question_optimizer import files
from question_optimizer.errors import UserError
from question_optimizer.exports.workspace import SIDES
from question_optimizer.records import Split

MADE_BY = "export_questions.py"
_NEGATIVE = re.compile(r"negative(_\d+)?")
_BATCH = 500


@dataclass(frozen=True)
class Asked:
    """A question and a chunk that answers it, as one row of a file has them."""

    where: str  # file, and line or id
    side: Split
    question: str
    positive: str
    chunk_id: str
    document: str | None  # of the question; None where the file does not tell
    split_group: str | None
    negatives: tuple[str, ...] = ()


@dataclass(frozen=True)
class Missing:
    """A judgement on an id that the corpus or the queries do not have."""

    where: str
    side: Split
    id: str


def read(folder: Path, scratch: Path) -> Iterator[Asked | Missing]:
    """Every row of every format in `folder`; UserError naming a file that is damaged.

    `scratch` is a folder for temporary files.
    """
    for side in SIDES:
        for name in ("pairs", "triplets"):
            yield from _lines(folder / name / f"{side}.jsonl", side)
        for place in ("parquet", "hf/data"):
            yield from _parquet(folder / place / f"{side}.parquet", side)
    if (folder / "beir").is_dir():
        yield from _beir(folder / "beir", scratch / "beir.sqlite")


def formats_in(folder: Path) -> list[str]:
    """The formats that an export holds."""
    return [
        name for name in ("pairs", "triplets", "beir", "parquet", "hf") if (folder / name).is_dir()
    ]


def _lines(path: Path, side: Split) -> Iterator[Asked]:
    if not path.parent.is_dir():
        return
    for number, row in files.read_jsonl(path, made_by=MADE_BY):
        where = f"{path}:{number}"
        negatives = (_text(row, key, where) for key in row if _NEGATIVE.fullmatch(key))
        yield Asked(
            where,
            side,
            _text(row, "anchor", where),
            _text(row, "positive", where),
            _text(row, "chunk_id", where),
            _text(row, "document", where),
            _text(row, "split_group", where),
            tuple(negatives),
        )


def _text(row: dict[str, Any], key: str, where: str) -> str:
    if not isinstance(row.get(key), str):
        raise UserError(f"{where}: no {key}; rerun {MADE_BY}")
    return str(row[key])


def _parquet(path: Path, side: Split) -> Iterator[Asked]:
    if not path.parent.is_dir():
        return
    import pyarrow
    from pyarrow import parquet

    columns = ["question", "chunk", "chunk_id", "document", "split_group", "question_id"]
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(_BATCH, columns=columns):
                for row in batch.to_pylist():
                    where = f"{path}: {row['question_id']}"
                    question, chunk, *rest = (_text(row, key, where) for key in columns[:5])
                    yield Asked(where, side, question, chunk, rest[0], rest[1], rest[2])
    except (OSError, KeyError, pyarrow.ArrowException) as error:
        raise UserError(f"{path}: cannot be read ({error}); rerun {MADE_BY}") from error


# ---------------------------------------------------------------------- BEIR


def _beir(folder: Path, scratch: Path) -> Iterator[Asked | Missing]:
    """One row a judgement."""
    known = sqlite3.connect(scratch)
    try:
        known.executescript(
            "PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF;"
            "CREATE TABLE corpus (id TEXT PRIMARY KEY, text TEXT);"
            "CREATE TABLE queries (id TEXT PRIMARY KEY, text TEXT, chunk TEXT, document TEXT,"
            " split_group TEXT);"
        )
        _load(known, "corpus", folder / "corpus.jsonl", lambda row: ())
        _load(known, "queries", folder / "queries.jsonl", _origin)
        for side in SIDES:
            yield from _judged(folder / "qrels" / f"{side}.tsv", side, known)
    finally:
        known.close()


def _origin(row: dict[str, Any]) -> tuple[object, ...]:
    known = row.get("metadata")
    keys = ("chunk_id", "document", "split_group")
    return tuple(known.get(key) if isinstance(known, dict) else None for key in keys)


def _load(
    known: sqlite3.Connection,
    table: str,
    path: Path,
    more: Callable[[dict[str, Any]], tuple[object, ...]],
) -> None:
    for number, row in files.read_jsonl(path, made_by=MADE_BY):
        where = f"{path}:{number}"
        values = (_text(row, "_id", where), _text(row, "text", where), *more(row))
        try:
            marks = ",".join("?" * len(values))
            known.execute(f"INSERT INTO {table} VALUES ({marks})", values)  # noqa: S608 - our own
        except sqlite3.IntegrityError:
            raise UserError(f"{where}: _id occurs twice; rerun {MADE_BY}") from None


def _judged(path: Path, side: Split, known: sqlite3.Connection) -> Iterator[Asked | Missing]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for number, row in enumerate(csv.reader(file, delimiter="\t"), 1):
                if number > 1:
                    yield _judgement(f"{path}:{number}", side, row, known)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read ({error}); rerun {MADE_BY}") from error


def _judgement(
    where: str, side: Split, row: list[str], known: sqlite3.Connection
) -> Asked | Missing:
    if len(row) != 3:
        raise UserError(f"{where}: must be query-id, corpus-id, score; rerun {MADE_BY}")
    query = known.execute("SELECT * FROM queries WHERE id=?", row[:1]).fetchone()
    chunk = known.execute("SELECT * FROM corpus WHERE id=?", row[1:2]).fetchone()
    if query is None or chunk is None:
        return Missing(where, side, row[0] if query is None else row[1])
    return Asked(where, side, query[1], chunk[1], row[1], query[3], query[4])
