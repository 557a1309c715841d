"""A run of the generator as one JSON object: what came out, what the gates refused, what it cost.

Read from the ledger in one pass and in bounded memory, so that 10^6 questions can be summed up on
the machine that made them. The same ledger and run give the same bytes; what depends on the clock
stands in `times` alone.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from question_optimizer import files
from question_optimizer.errors import UserError
from question_optimizer.generation import quotas
from question_optimizer.generation.census import Census, by_chunk
from question_optimizer.generation.ledger import Ledger
from question_optimizer.generation.ledger_records import Result
from question_optimizer.generation.ledger_tables import UNDONE
from question_optimizer.generation.quotas import LENGTHS, Cell
from question_optimizer.generation.round_trip import BANDS
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
from question_optimizer.sqlite_file import open_read_only

SCHEMA_VERSION = 1
MAX_QUOTA_DISTANCE = 0.05  # total variation (facts on questions, section B)
FEWEST_PLANNED = 20  # questions; the mix of fewer says little
MAX_FAILED = 0.05  # share of the slots
STATES = ("done", "rejected", "failed", "pending")

TextsOf = Callable[[Sequence[PointId]], Mapping[PointId, str]]
NamesOf = Callable[[Mapping[str, PointId]], Mapping[str, str]]  # of documents, by a chunk of each


@dataclass(frozen=True)
class Run:
    """What the ledger does not know of a run.

    points, already_there, kept, without_text, beyond_limit
                    chunks of the collection, and those passed over: with somebody else's question,
                    done under another configuration, without a text, beyond --limit
    made, seconds   questions that were accepted in so many seconds: the speed
    reason, until   why it ended early, and from when on it can go on (ISO 8601); '' if it did not
    round_trip      what this run searched for, as `RoundTrip.figures` gives it; None for nothing
    max_rank        what counts as found where the summary is made from the ledger's ranks
    accounts        one dict an account, as `LLMDispatcher.snapshot` gives them
    undo            the command that takes its questions out again; '' where there is none
    """

    name: str = ""
    rehearsal: bool = False
    points: int | None = None
    already_there: int = 0
    kept: int = 0
    without_text: int = 0
    beyond_limit: int = 0
    per_chunk: int = 1
    refills: int = 0
    started: str = ""
    seconds: float = 0.0
    made: int = 0
    exit_code: int = 0
    reason: str = ""
    until: str = ""
    round_trip: Mapping[str, Any] | None = None
    max_rank: int = 10
    accounts: Sequence[Mapping[str, Any]] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    undo: str = ""


def summarise(
    ledger: Ledger,
    *,
    policy: str,
    targets: Mapping[Cell, float] | None = None,
    run: Run | None = None,
    gold: Sequence[Item] | None = None,
    texts_of: TextsOf | None = None,
    names_of: NamesOf | None = None,
    asks_again: Callable[[Result], bool] = lambda _: False,
    seed: int = 0,
) -> dict[str, Any]:
    """Everything about the questions of the ledger's configuration, as JSON takes it.

    `targets` are the shares that cells were to get, or any numbers in the same proportions; None
    where nothing was planned. `texts_of` gives the chunks of a sample of questions, so that its
    health can tell how much was copied; `gold` is what that health is compared with. `names_of`
    gives the names of the documents that are listed. Refused slots that `asks_again` holds of count
    as to be made. Reads the ledger once, row by row.
    """
    run = run or Run()
    with Tally() as tally:
        found = Census(policy, random.Random(seed), asks_again=asks_again, max_rank=run.max_rank)
        for chunk in by_chunk(ledger):
            found.add(chunk, tally)
        by_dimension = {dimension: yields(tally, dimension) for dimension in DIMENSIONS}
        names = _name_documents(tally, by_dimension["document"], names_of)
    summary = {
        **_head(ledger, policy, run),
        **_counts(found, by_dimension, run),
        "quotas": _quotas(targets, found) if targets else None,
        "round_trip": _round_trip(found, run),
        "rules": _rules(policy, run),
        "write_back": _write_back(ledger),
        "health": _health(found.sample, gold, texts_of),
        **_tail(run),
    }
    summary["sentence"] = _sentence(summary)
    summary["without"] = _without(summary)
    whole = by_dimension["type"].whole
    summary["warnings"] = [*gate_warnings(whole, by_dimension, names), *_warnings(summary)]
    return summary


def write_summary(path: Path, summary: Mapping[str, Any]) -> bool:
    """Write the summary as JSON, whole or not at all; return whether the file changed."""
    return files.write_json(path, summary)


def told_before(path: Path, fingerprint: str) -> dict[str, Any]:
    """The summary of this configuration that stands there; {} where there is none to be read."""
    with suppress(UserError, AttributeError, KeyError, TypeError):
        told = files.read_json(path, made_by=None)
        return told if told["configuration"].get("fingerprint") == fingerprint else {}
    return {}


# ---------------------------------------------------------------------- parts of the summary


def _name_documents(tally: Tally, documents: Yields, names_of: NamesOf | None) -> Mapping[str, str]:
    """Put a "name" beside every document that is listed; the names, also of suspicious ones."""
    wanted = (one["kind"] for one in [*documents.listed, *documents.suspects])
    chunks = tally.chunks_of(dict.fromkeys(kind for kind in wanted if kind))
    names = names_of(chunks) if names_of else {}
    for one in documents.listed:
        one["name"] = names.get(one["kind"])
    return names


def _head(ledger: Ledger, policy: str, run: Run) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "sentence": "",
        "without": "",
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
        "coverage": _coverage(by_dimension["document"], found, run),
    }


def _tail(run: Run) -> dict[str, Any]:
    return {
        "accounts": [dict(account) for account in run.accounts],
        "end": {
            "exit_code": run.exit_code,
            "reason": run.reason,
            "until": run.until,
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
    """A chunk is done with its first question; else what may still come of it counts. Beyond the
    limit are those that no earlier run came to; what none came to and no limit is to blame for is
    known where the chunks of the collection were counted."""
    known = found.chunks.total() + run.already_there + run.kept + run.without_text
    rest = run.beyond_limit if run.points is None else max(0, run.points - known)
    beyond_limit = min(run.beyond_limit, rest)
    return {
        "points": run.points,
        **{state: found.chunks[state] for state in STATES},
        "already_there": run.already_there,
        "kept": run.kept,
        "without_text": run.without_text,
        "beyond_limit": beyond_limit,
        "not_reached": None if run.points is None else rest - beyond_limit,
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
    """Accepted questions against the plan for all slots, by cell; distances are of the mixes.

    Questions without a planned length were made before there was a plan, and are counted apart.
    """
    achieved = Counter({cell: n for cell, n in found.cells.items() if cell.query_length})
    unplanned = found.cells.total() - achieved.total()
    slots, total = found.slots.total() - unplanned, sum(targets.values())
    counts = quotas.planned(targets, slots)  # as near to the shares as whole questions come
    pairs = quotas.total_variation(quotas.by_pair(achieved), quotas.by_pair(counts))
    every = quotas.total_variation(achieved, counts)
    return {
        "even": quotas.is_even(targets),
        "target": slots,
        "achieved": achieved.total(),
        "unplanned": unplanned,
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
            for row in quotas.plan_table(targets, achieved, slots)
        ],
    }


def _coverage(documents: Yields, found: Census, run: Run) -> dict[str, Any]:
    """Documents with at least one question, of those that something was asked about. These are
    `all` if that was every chunk of the collection."""
    known = documents.kinds
    return {
        "documents": known,
        "all": found.chunks.total() == run.points,
        "with_questions": documents.with_questions,
        "share": round(documents.with_questions / known, 4) if known else None,
        "without": {state: documents.states[state] for state in ("pending", "given_up", "failed")},
    }


def _round_trip(found: Census, run: Run) -> dict[str, Any] | None:
    """Over all questions whose ranks the ledger has, whichever run searched for them; those of this
    run alone where it has none. `of` are the questions that a search decides on."""
    this_run = dict(run.round_trip or {})
    if not found.ranks.questions:
        return {**this_run, "of": None} if this_run.get("questions") else None
    return {
        **this_run,
        **found.ranks.figures(),
        "within": run.max_rank,
        "of": max(found.to_search, found.ranks.questions),
        "in_this_run": this_run.get("questions", 0),
    }


def _rules(policy: str, run: Run) -> dict[str, Any]:
    """The numbers behind the words: how long is long, and what the policy's band lets pass."""
    band = BANDS.get(policy)
    return {
        "lengths": {form: {k: list(v) for k, v in by.items()} for form, by in LENGTHS.items()},
        "round_trip": {**asdict(band), "max_rank": run.max_rank} if band else None,
    }


def _write_back(ledger: Ledger) -> dict[str, Any]:
    """Chunks with accepted and checked questions, by whether they stand in the collection.

    A chunk waits as long as one of its questions does.
    """
    with closing(open_read_only(ledger.path)) as connection:
        row = connection.execute(
            "SELECT SUM(waits), SUM(NOT waits AND undone), SUM(NOT waits AND NOT undone) FROM ("
            "SELECT MAX(written=0) AS waits, MAX(written=?) AS undone FROM results "
            "WHERE fingerprint=? AND state='done' AND checked<>'' GROUP BY chunk_id)",
            (UNDONE, ledger.fingerprint),
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
    unchecked = 0 if summary["policy"] == "off" else questions["unchecked"]
    left = [
        f"{count:,} {words}"
        for count, words in (
            (unchecked, "not yet checked against the corpus"),
            (slots["rejected"], "given up"),
            (slots["failed"], "failed"),
            (slots["pending"], "to be made"),
        )
        if count
    ]
    return f"{said}; {', '.join(left)}." if left else f"{said}."


_NO_QUESTION = {
    "pending": "to be made",
    "rejected": "given up",
    "given_up": "given up",
    "failed": "failed",
    "without_text": "without a text",
    "beyond_limit": "beyond --limit",
    "not_reached": "not reached yet",
}


def _without(summary: Mapping[str, Any]) -> str:
    """How many chunks and documents have no question, and why; '' if all that is known has one."""
    chunks, coverage = summary["chunks"], summary["coverage"]
    counts = {key: chunks[key] or 0 for key in _NO_QUESTION if key in chunks}
    said = _counted(counts, "chunk")
    of = coverage["documents"]
    whole = f"of {of:,}" if coverage["all"] else f"of {of:,} asked about"
    documents = _counted(coverage["without"], "document", whole)
    return f"Without a question: {'; '.join(filter(None, (said, documents)))}." if said else ""


def _counted(counts: Mapping[str, int], noun: str, of: str = "") -> str:
    """ "12 chunks (9 given up, 3 failed)", "3 chunks (failed)"; '' for none."""
    if not (total := sum(counts.values())):
        return ""
    why = [(n, _NO_QUESTION[key]) for key, n in counts.items() if n]
    said = ", ".join(f"{n:,} {words}" for n, words in why) if len(why) > 1 else why[0][1]
    nouns = noun if total == 1 else f"{noun}s"
    return " ".join(filter(None, (f"{total:,}", nouns, of, f"({said})")))


def _warnings(summary: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Beside the gates: quotas missed, failures, and the alarms of the questions as a set."""
    slots = summary["slots"]
    if _is_over(summary):
        yield from _missed(summary["quotas"])
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


def _is_over(summary: Mapping[str, Any]) -> bool:
    """Whether no more questions are to come: until then every mix is on its way."""
    waiting = summary["slots"]["pending"] or summary["questions"]["unchecked"]
    return not (waiting or summary["end"]["reason"])


def _missed(plan: Mapping[str, Any] | None) -> Iterator[dict[str, Any]]:
    """The figures stand in `quotas`; of few questions one that is missing would be a miss."""
    if not plan or plan["achieved"] < FEWEST_PLANNED:
        return
    if max(plan["distance"].values()) > MAX_QUOTA_DISTANCE:
        last = max(plan["cells"], key=lambda cell: cell["target"] - cell["achieved"])
        name = ", ".join(last[key] or "not known" for key in ("type", "format", "length"))
        yield {
            "code": "quotas",
            "text": f"the questions miss the plan's mix by more than {percent(MAX_QUOTA_DISTANCE)} "
            f"(total variation): most are missing of {name}, {last['achieved']:,} of "
            f"{last['target']:,} are there",
        }
