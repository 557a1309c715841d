"""A run of the generator as one JSON object: what came out, what the gates refused, what it cost.

Read from the ledger in one pass and in bounded memory, so that 10^6 questions can be summed up on
the machine that made them. The same ledger and run give the same bytes; what depends on the clock
stands in `times` alone.
"""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from question_optimizer import files
from question_optimizer.generation import quotas
from question_optimizer.generation.census import Census, by_chunk
from question_optimizer.generation.ledger import Ledger, Result
from question_optimizer.generation.quotas import Cell
from question_optimizer.generation.yields import (
    DIMENSIONS,
    Tally,
    Yields,
    gate_warnings,
    percent,
    share,
    yields,
)
from question_optimizer.records import PointId
from question_optimizer.set_health import Item, set_health

SCHEMA_VERSION = 1
MAX_QUOTA_DISTANCE = 0.05  # total variation (facts on questions, section B)
MAX_FAILED = 0.05  # share of the slots
STATES = ("done", "rejected", "failed", "pending")

TextsOf = Callable[[Sequence[PointId]], Mapping[PointId, str]]


@dataclass(frozen=True)
class Run:
    """What the ledger does not know of a run.

    points, already_there, kept, without_text, beyond_limit
                    chunks of the collection, and those passed over: with somebody else's question,
                    done under another configuration, without a text, beyond --limit
    documents       of the collection; None where nobody counted them
    made, seconds   questions that were accepted in so many seconds: the speed
    reason, until   why it ended early, and from when on it can go on (ISO 8601); '' if it did not
    round_trip      {"questions": n, "found": {"dense": share, "bm25": …, "both": …},
                    "recall": {"dense": {"1": share, "5": …, "10": …}, …},
                    "ranks": {"dense": {"1": n, "2-5": …}, …}}, each part where it is known
    accounts        one dict an account, as `LLMDispatcher.snapshot` gives them
    resume, undo    commands, for people
    """

    name: str = ""
    rehearsal: bool = False
    points: int | None = None
    already_there: int = 0
    kept: int = 0
    without_text: int = 0
    beyond_limit: int = 0
    documents: int | None = None
    per_chunk: int = 1
    refills: int = 0
    started: str = ""
    seconds: float = 0.0
    made: int = 0
    exit_code: int = 0
    reason: str = ""
    until: str = ""
    round_trip: Mapping[str, Any] | None = None
    near_duplicates: Mapping[str, Any] | None = None
    accounts: Sequence[Mapping[str, Any]] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    resume: str = ""
    undo: str = ""


def summarise(
    ledger: Ledger,
    *,
    policy: str,
    targets: Mapping[Cell, float] | None = None,
    run: Run | None = None,
    gold: Sequence[Item] | None = None,
    texts_of: TextsOf | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Everything about the questions of the ledger's configuration, as JSON takes it.

    `targets` are what cells were to get, as shares or as numbers of questions; None where nothing
    was planned. `texts_of` gives the chunks of a sample of questions, so that its health can tell
    how much was copied; `gold` is what that health is compared with. Reads the ledger once, row by
    row.
    """
    run = run or Run()
    with Tally() as tally:
        found = Census(policy, random.Random(seed))
        for chunk in by_chunk(ledger):
            found.add(chunk, tally)
        by_dimension = {dimension: yields(tally, dimension) for dimension in DIMENSIONS}
    summary = {
        **_head(ledger, policy, run),
        **_counts(found, by_dimension, run),
        "quotas": _quotas(targets, found) if targets else None,
        "round_trip": None if run.round_trip is None else dict(run.round_trip),
        "near_duplicates": None if run.near_duplicates is None else dict(run.near_duplicates),
        "write_back": _write_back(ledger),
        "health": _health(found.sample, gold, texts_of),
        **_tail(run),
    }
    summary["sentence"] = _sentence(summary)
    whole = by_dimension["type"].whole
    summary["warnings"] = [*gate_warnings(whole, by_dimension), *_warnings(summary)]
    return summary


def write_summary(path: Path, summary: Mapping[str, Any]) -> bool:
    """Write the summary as JSON, whole or not at all; return whether the file changed."""
    return files.write_json(path, summary)


# ---------------------------------------------------------------------- parts of the summary


def _head(ledger: Ledger, policy: str, run: Run) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "sentence": "",
        "warnings": [],
        "rehearsal": run.rehearsal,
        "policy": policy,
        "configuration": _configuration(ledger, run),
    }


def _counts(found: Census, by_dimension: Mapping[str, Yields], run: Run) -> dict[str, Any]:
    types = by_dimension["type"]  # any dimension's sum is that of all
    questions = types.whole.figures()
    del questions["kind"]
    return {
        "chunks": _chunk_counts(found, run),
        "slots": {**{state: found.slots[state] for state in STATES}, "attempts": found.attempts},
        "questions": {**questions, "unchecked": found.unchecked},
        "gates": _gates(types, found),
        "yields": {
            name: {"kinds": one.kinds, "listed": one.listed, "rest": one.rest}
            for name, one in by_dimension.items()
        },
        "words": {str(words): n for words, n in sorted(found.words.items())},
        "usage": found.usage(),
        "failures": found.failures.told(),
        "coverage": _coverage(by_dimension["document"], run),
    }


def _tail(run: Run) -> dict[str, Any]:
    return {
        "accounts": [dict(account) for account in run.accounts],
        "end": {
            "exit_code": run.exit_code,
            "reason": run.reason,
            "until": run.until,
            "resume": run.resume,
            "undo": run.undo,
        },
        "times": {
            "started": run.started,
            "seconds": round(run.seconds, 3),
            "questions_a_second": round(run.made / run.seconds, 3) if run.seconds > 0 else None,
        },
    }


def _configuration(ledger: Ledger, run: Run) -> dict[str, Any]:
    one = ledger.configuration
    return {
        "collection": one.collection,
        "pipeline": one.pipeline,
        "personas": one.personas,
        "models": list(one.models),
        "text_key": one.text_key,
        "fingerprint": one.fingerprint,
        "run": run.name,
        "settings": dict(run.settings),
    }


def _chunk_counts(found: Census, run: Run) -> dict[str, Any]:
    """A chunk is done with its first question; else what may still come of it counts."""
    return {
        "points": run.points,
        **{state: found.chunks[state] for state in STATES},
        "already_there": run.already_there,
        "kept": run.kept,
        "without_text": run.without_text,
        "beyond_limit": run.beyond_limit,
        "per_chunk": run.per_chunk,
    }


def _gates(one: Yields, found: Census) -> list[dict[str, Any]]:
    """What each gate refused, of all questions that were asked; the strictest first."""
    whole = one.whole
    rows = [
        {
            "gate": gate,
            "refused": whole.gates[gate],
            "share": share(whole.gates[gate], whole.asked),
            "slots_rejected": found.rejected_by[gate],
            "recorded": whole.recorded[gate],
        }
        for gate in sorted({*whole.gates, *whole.recorded, *found.rejected_by})
    ]
    return sorted(rows, key=lambda row: (-row["refused"], -row["recorded"], row["gate"]))


def _quotas(targets: Mapping[Cell, float], found: Census) -> dict[str, Any]:
    """Accepted questions against the plan for all slots, by cell; distances are of the mixes."""
    achieved = found.cells
    total = sum(targets.values())
    pairs = quotas.total_variation(quotas.by_pair(achieved), quotas.by_pair(targets))
    every = quotas.total_variation(achieved, targets)
    return {
        "target": found.slots.total(),
        "achieved": achieved.total(),
        "distance": {
            "type_format": round(pairs, 4) if achieved else None,
            "all": round(every, 4) if achieved else None,
        },
        "cells": [
            {
                "type": row.cell.query_type or None,
                "format": row.cell.query_format or None,
                "length": row.cell.query_length or None,
                "share": round(row.share / total, 6),
                "target": row.planned,
                "achieved": row.achieved,
            }
            for row in quotas.plan_table(targets, achieved, found.slots.total())
        ],
    }


def _coverage(documents: Yields, run: Run) -> dict[str, Any]:
    """Documents with at least one question, of those in the collection where they are counted."""
    known = documents.kinds if run.documents is None else max(run.documents, documents.kinds)
    return {
        "documents": known,
        "with_questions": documents.with_questions,
        "share": round(documents.with_questions / known, 4) if known else None,
    }


def _write_back(ledger: Ledger) -> dict[str, Any]:
    """Chunks with accepted and checked questions, by whether they stand in the collection.

    A chunk waits as long as one of its questions does.
    """
    place = f"{ledger.path.resolve().as_uri()}?mode=ro"
    with closing(sqlite3.connect(place, uri=True)) as connection:
        row = connection.execute(
            "SELECT SUM(waits), SUM(NOT waits AND undone), SUM(NOT waits AND NOT undone) FROM ("
            "SELECT MAX(written=0) AS waits, MAX(written=-1) AS undone FROM results "
            "WHERE fingerprint=? AND state='done' AND checked<>'' GROUP BY chunk_id)",
            (ledger.fingerprint,),
        ).fetchone()
    waiting, undone, written = (int(n or 0) for n in row)
    return {
        "written": written,
        "waiting": waiting,
        "undone": undone,
        "runs": [asdict(run) for run in ledger.runs()],
    }


def _health(
    sample: Sequence[Result], gold: Sequence[Item] | None, texts_of: TextsOf | None
) -> dict[str, Any] | None:
    """The figures of `set_health` over the sample; None where nothing was accepted."""
    if not sample:
        return None
    texts = texts_of([one.chunk_id for one in sample]) if texts_of else {}
    items = [
        Item(
            one.query,
            chunk_text=texts.get(one.chunk_id, ""),
            query_type=one.query_type,
            query_format=one.query_format,
            document=one.document,
        )
        for one in sample
    ]
    return set_health(items, gold=gold)


# ---------------------------------------------------------------------- in words


def _sentence(summary: Mapping[str, Any]) -> str:
    """What came out, in one sentence."""
    questions, slots, chunks = (summary[key] for key in ("questions", "slots", "chunks"))
    of = chunks["points"]
    of = sum(chunks[s] for s in STATES) if of is None else of
    noun = "question" if questions["accepted"] == 1 else "questions"
    said = (
        f"{questions['accepted']:,} {noun} for {chunks['done']:,} of {of:,} chunks of "
        f"{summary['configuration']['collection']}"
    )
    if questions["refused"]:
        part = percent(questions["yield"]["value"])
        said += f", {part} of the {questions['asked']:,} that were asked"
    left = [
        f"{slots[state]:,} {words}"
        for state, words in (
            ("rejected", "given up"),
            ("failed", "failed"),
            ("pending", "to be made"),
        )
        if slots[state]
    ]
    return f"{said}; {', '.join(left)}." if left else f"{said}."


def _warnings(summary: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Beside the gates: quotas missed, failures, and the alarms of the questions as a set."""
    slots = summary["slots"]
    if summary["quotas"]:
        distance = summary["quotas"]["distance"]
        missed = [
            f"{percent(distance[key], 1)} {words}"
            for key, words in (("type_format", "by type and format"), ("all", "with length"))
            if distance[key] is not None and distance[key] > MAX_QUOTA_DISTANCE
        ]
        if missed:
            yield {
                "code": "quotas",
                "text": f"the questions miss the plan's mix: {', '.join(missed)} (total variation, "
                f"limit {percent(MAX_QUOTA_DISTANCE)})",
            }
    made = sum(slots[state] for state in ("done", "rejected", "failed"))
    if made and slots["failed"] / made > MAX_FAILED:
        yield {
            "code": "failures",
            "text": f"{slots['failed']:,} of {made:,} questions failed; see the reasons, and try "
            "them again with --retry-failed",
        }
    for alarm in (summary["health"] or {}).get("alarms", []):
        if alarm["level"] == "warning":
            yield {"code": f"health-{alarm['code']}", "text": alarm["text"]}
