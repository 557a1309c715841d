"""The ledger's values, and how each becomes a row of its tables and a row becomes it again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from typing import Any, Literal

from question_optimizer import files
from question_optimizer.hostile_text import storable
from question_optimizer.records import PointId

State = Literal["pending", "done", "rejected", "failed"]
Slot = tuple[str, str, int]  # of any configuration: fingerprint, chunk id as text, number


@dataclass(frozen=True)
class Configuration:
    """Whose questions these are, and what they depend on."""

    collection: str
    pipeline: str  # 16 hex digits, of the pipeline's state
    personas: str  # 16 hex digits
    models: tuple[str, ...]  # sorted
    text_key: str | None = None

    @property
    def fingerprint(self) -> str:
        """16 hex digits over all of it."""
        return files.digest(astuple(self))[:16]


@dataclass(frozen=True)
class Refusal:
    """A question that a gate refused, and why."""

    query: str
    gate: str
    reason: str
    query_type: str | None = None
    query_format: str | None = None
    query_length: str | None = None
    persona_id: str | None = None
    model: str | None = None
    dense_rank: int | None = None  # as those of a `Result`
    bm25_rank: int | None = None


@dataclass(frozen=True)
class Result:
    """One slot (0 … n-1) of one chunk: a question, or how far one has come, or why there is none.

    `calls`, `tokens`, `cost` (US dollars) and `attempts` are sums over everything asked so far.
    """

    chunk_id: PointId
    slot: int = 0
    state: State = "pending"
    query: str | None = None
    query_type: str | None = None  # of a pending one: what is planned, or chosen and paid for
    query_format: str | None = None
    query_length: str | None = None  # planned: short, medium, long; None where nothing was planned
    persona_id: str | None = None
    model: str | None = None
    document: str = ""  # `Chunk.document`
    heading: str = ""  # the innermost
    text_sha256: str = ""  # of the text it was made from
    calls: int = 0
    tokens: int = 0
    cost: float = 0.0
    attempts: int = 0  # questions asked for in this slot
    reason: str = ""  # of a failure, or of the last refusal
    gate: str = ""  # of the last refusal, if rejected
    findings: tuple[tuple[str, str], ...] = ()  # (gate, reason), recorded and not enforced
    checked: str = ""  # the policy whose checks over the whole corpus it passed
    analysed: bool = False  # type and format are the pipeline's own first step's
    dense_rank: int | None = None  # of its own chunk, where the question was searched for
    bm25_rank: int | None = None


# ---------------------------------------------------------------------- rows

CONFIGURATION_COLUMNS = tuple(field.name for field in fields(Configuration))
RESULT_COLUMNS = tuple(field.name for field in fields(Result))
REFUSAL_COLUMNS = tuple(field.name for field in fields(Refusal))


def configuration_row(configuration: Configuration) -> list[Any]:
    """Its columns, in the order of `CONFIGURATION_COLUMNS`."""
    its = configuration
    return [its.collection, its.pipeline, its.personas, json.dumps(its.models), its.text_key]


def configuration_of(row: Sequence[Any]) -> Configuration:
    collection, pipeline, personas, models, text_key = row
    return Configuration(collection, pipeline, personas, tuple(json.loads(models)), text_key)


def result_row(result: Result) -> list[Any]:
    """Its columns, in the order of `RESULT_COLUMNS`."""
    values = {name: _stored(getattr(result, name)) for name in RESULT_COLUMNS}
    values["chunk_id"] = str(result.chunk_id)
    values["findings"] = _stored(json.dumps(result.findings, ensure_ascii=False))
    return list(values.values())


def result_of(row: Sequence[Any]) -> Result:
    values = dict(zip(RESULT_COLUMNS, row, strict=True))
    values["chunk_id"] = point_id(values["chunk_id"])
    values["findings"] = tuple((gate, reason) for gate, reason in json.loads(values["findings"]))
    values["analysed"] = bool(values["analysed"])
    return Result(**values)


def refusal_row(refusal: Refusal) -> list[Any]:
    """Its columns, in the order of `REFUSAL_COLUMNS`."""
    return [_stored(value) for value in astuple(refusal)]


def point_id(text: str) -> PointId:
    """Qdrant's ids are numbers or UUIDs, so digits alone are a number."""
    return int(text) if text.isdecimal() else text


def _stored(value: Any) -> Any:
    return storable(value) if isinstance(value, str) else value
