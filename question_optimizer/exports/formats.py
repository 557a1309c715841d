"""The files of an export: pairs, triplets, BEIR, Parquet and a Hugging Face dataset.

    pairs/{train,dev,test}.jsonl      anchor, positive; then what is known of them
    triplets/{train,dev,test}.jsonl   anchor, positive, negative (of several: negative_1 …)
    beir/                             corpus.jsonl of all chunks, queries.jsonl, qrels/*.tsv
    parquet/{train,dev,test}.parquet  every column
    hf/                               the same for `datasets.load_dataset`, with a card

Every side has its file, also where it is empty. Texts are written as they are, as data: JSON
escapes them, Parquet holds strings, and the ids of a TSV are such that nothing need be escaped.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from question_optimizer import files
from question_optimizer.errors import UserError
from question_optimizer.exports.workspace import SIDES, Row, Workspace
from question_optimizer.records import Split

if TYPE_CHECKING:
    import pyarrow

FORMATS = ("pairs", "triplets", "beir", "parquet", "hf")
COLUMNS = (
    *("question_id", "question", "chunk", "chunk_id", "document", "heading", "split_group"),
    *("persona_id", "query_type", "query_format", "query_length", "model", "checked", "split"),
    "provenance",
)
_PLAIN = re.compile(r"[\w.:@+-]{1,128}", re.ASCII)
_ROWS = 1000  # written to Parquet at a time


@dataclass(frozen=True)
class Origin:
    """What all questions of an export have in common."""

    configuration: str  # fingerprint
    pipeline: str
    rehearsal: str  # the model name by which a rehearsal's questions are known
    negatives: int = 1


def write(name: str, work: Workspace, folder: Path, origin: Origin) -> dict[str, int]:
    """Write one of FORMATS below `folder`; how many rows each side has, and what else is counted.

    Triplets need `negatives.mine` first; questions with fewer negatives than asked for are not
    among them.
    """
    return _WRITERS[name](work, folder / name, origin)


def require(names: Iterable[str]) -> None:
    """UserError unless what these formats need is installed."""
    if {"parquet", "hf"} & {*names} and importlib.util.find_spec("pyarrow") is None:
        raise UserError(
            "formats parquet and hf need pyarrow: pip install 'question-optimizer[exports]', "
            "or leave them out of --format"
        )


def plain_id(text: str) -> str:
    """`text` itself if it can stand in a TSV and as a JSON key, else a hash of it."""
    if _PLAIN.fullmatch(text):
        return text
    return "x" + hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:32]


# ---------------------------------------------------------------------- pairs and triplets


def _pairs(work: Workspace, folder: Path, origin: Origin) -> dict[str, int]:
    return {
        side: _write_lines(folder / f"{side}.jsonl", map(_pair, work.rows(side))) for side in SIDES
    }


def _pair(row: Row) -> dict[str, Any]:
    return {"anchor": row.question, "positive": row.text, **_known(row)}


def _known(row: Row) -> dict[str, Any]:
    return {
        "question_id": row.question_id,
        "chunk_id": row.chunk_id,
        "document": row.document,
        "split_group": row.split_group,
        "persona_id": row.persona_id,
        "query_type": row.query_type,
        "query_format": row.query_format,
        "query_length": row.query_length,
        "model": row.model,
    }


def _triplets(work: Workspace, folder: Path, origin: Origin) -> dict[str, int]:
    def rows(side: Split) -> Iterator[dict[str, Any]]:
        for row in work.rows(side):
            found = list(
                work.ask(
                    "SELECT c.text, c.id FROM negatives AS n JOIN chunks AS c ON c.number=n.chunk "
                    "WHERE n.question=? ORDER BY n.place",
                    row.number,
                )
            )
            if len(found) == origin.negatives:
                texts = dict(zip(negative_columns(len(found)), (t for t, _ in found), strict=True))
                pair = {"anchor": row.question, "positive": row.text, **texts}
                yield {**pair, **_known(row), "negative_chunk_ids": [i for _, i in found]}

    counts: dict[str, int] = {}
    for side in SIDES:
        counts[side] = _write_lines(folder / f"{side}.jsonl", rows(side))
    return {**counts, "too_few_negatives": sum(work.sizes().values()) - sum(counts.values())}


def negative_columns(count: int) -> list[str]:
    """The names of the columns of so many negatives."""
    return ["negative"] if count == 1 else [f"negative_{n}" for n in range(1, count + 1)]


def _write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    """One JSON object a line, as the rows come; how many."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    return count


# ---------------------------------------------------------------------- BEIR


def _beir(work: Workspace, folder: Path, origin: Origin) -> dict[str, int]:
    """The corpus is the whole collection. A question's relevant chunks are all that have, word for
    word, the text of a chunk that it or its equal was made from."""
    chunks = work.ask("SELECT id, heading, text, document FROM chunks ORDER BY number")
    corpus = (
        {"_id": plain_id(i), "title": heading, "text": text, "metadata": {"document": document}}
        for i, heading, text, document in chunks
    )
    counts = {"corpus": _write_lines(folder / "corpus.jsonl", corpus)}
    queries = (_query(row) for side in SIDES for row in work.rows(side))
    counts["queries"] = _write_lines(folder / "queries.jsonl", queries)
    for side in SIDES:
        counts[side] = _write_qrels(folder / "qrels" / f"{side}.tsv", work, side)
    return counts


def _query(row: Row) -> dict[str, Any]:
    known = {"chunk_id": row.chunk_id, "document": row.document, "split_group": row.split_group}
    return {"_id": plain_id(row.question_id), "text": row.question, "metadata": known}


def _write_qrels(path: Path, work: Workspace, side: Split) -> int:
    """Judgements of one side; how many."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write("query-id\tcorpus-id\tscore\n")
        for question, chunk in work.ask(
            "SELECT DISTINCT q.id, twin.id FROM questions AS q "
            "JOIN questions AS same ON same.digest=q.digest AND same.side=q.side "
            "JOIN chunks AS own ON own.number=same.chunk "
            "JOIN chunks AS twin ON twin.digest=own.digest "
            "WHERE q.side=? ORDER BY q.number, twin.number",
            side,
        ):
            file.write(f"{plain_id(question)}\t{plain_id(chunk)}\t1\n")
            count += 1
    return count


# ---------------------------------------------------------------------- Parquet, Hugging Face


def _parquet(work: Workspace, folder: Path, origin: Origin) -> dict[str, int]:
    return {
        side: _write_parquet(folder / f"{side}.parquet", work.rows(side), side, origin)
        for side in SIDES
    }


def _hugging_face(work: Workspace, folder: Path, origin: Origin) -> dict[str, int]:
    return _parquet(work, folder / "data", origin)


def _write_parquet(path: Path, rows: Iterator[Row], side: Split, origin: Origin) -> int:
    import pyarrow
    from pyarrow import parquet

    fields = [pyarrow.field(name, pyarrow.string()) for name in COLUMNS]
    schema = pyarrow.schema([*fields, pyarrow.field("rehearsal", pyarrow.bool_())])
    path.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    with parquet.ParquetWriter(path, schema) as writer:
        while batch := [_full(row, side, origin) for row in islice(rows, _ROWS)]:
            writer.write_table(_table(batch, schema))
            count += len(batch)
    return count


def _table(batch: list[dict[str, Any]], schema: pyarrow.Schema) -> pyarrow.Table:
    import pyarrow

    return pyarrow.Table.from_pylist(batch, schema=schema)


def _full(row: Row, side: Split, origin: Origin) -> dict[str, Any]:
    """All columns. `provenance` is a hash of what the question was made of and by."""
    made = [origin.configuration, row.question_id, row.question, row.text_sha256, row.model]
    return {
        **_known(row),
        "question": row.question,
        "chunk": row.text,
        "heading": row.heading,
        "checked": row.checked,
        "split": side,
        "provenance": files.digest(made)[:16],
        "rehearsal": row.model == origin.rehearsal,
    }


_WRITERS: dict[str, Callable[[Workspace, Path, Origin], dict[str, int]]] = {
    "pairs": _pairs,
    "triplets": _triplets,
    "beir": _beir,
    "parquet": _parquet,
    "hf": _hugging_face,
}
