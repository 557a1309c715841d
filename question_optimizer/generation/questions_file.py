"""data/generated_questions.jsonl: every question of a configuration, made from the ledger."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from question_optimizer import files
from question_optimizer.generation.ledger import Ledger


def write_questions(path: Path, ledger: Ledger, *, policy: str, rehearsal: bool) -> int:
    """Write one line a question, row by row, and the meta file; the number of questions."""
    written = _Totals()
    files.stream_jsonl(path, _rows(ledger, written))
    configuration = ledger.configuration
    files.write_meta(
        path,
        phase="optimized_question_generator",
        settings={
            "collection": configuration.collection,
            "models": list(configuration.models),
            "gates": policy,
        },
        inputs={"configuration": ledger.fingerprint},
        counts={
            "questions": written.questions,
            "failed": ledger.counts()["failed"],
            "rejected": ledger.counts()["rejected"],
        },
        usage={"tokens": written.tokens, "cost": round(written.cost, 6)},
        rehearsal=rehearsal,
    )
    return written.questions


class _Totals:
    questions = tokens = 0
    cost = 0.0


def _rows(ledger: Ledger, totals: _Totals) -> Iterator[dict[str, Any]]:
    for result in ledger.results("done"):
        totals.questions += 1
        totals.tokens += result.tokens
        totals.cost += result.cost
        row: dict[str, Any] = {
            "chunk_id": result.chunk_id,
            "slot": result.slot,
            "generated_query": result.query,
            "query_type": result.query_type,
            "query_format": result.query_format,
            "query_length": result.query_length,
            "persona_id": result.persona_id,
            "model": result.model,
            "document": result.document,
            "checked": result.checked,
        }
        if result.findings:
            row["findings"] = [list(finding) for finding in result.findings]
        yield row
