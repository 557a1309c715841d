"""Which questions of the generator's ledger are exported, and why others are not.

A question goes in if it is done, passed the checks and carries no finding; its chunk is still in
the collection with the text that it was made from; and that text does not hold the question itself,
as it does where a re-embedded `generated_query` got into it.
"""

from __future__ import annotations

import hashlib
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from question_optimizer.chunk_store import (
    PROVENANCE_KEY,
    QUERY_KEY,
    chunk_of,
    neighbours_of,
)
from question_optimizer.errors import UserError
from question_optimizer.exports.likeness import folded, text_digest
from question_optimizer.exports.workspace import Workspace
from question_optimizer.generation.checks import ENFORCED
from question_optimizer.generation.ledger import Ledger
from question_optimizer.generation.ledger_configurations import Known
from question_optimizer.generation.ledger_records import Configuration
from question_optimizer.generation.outcome import described
from question_optimizer.hostile_text import one_line, storable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from question_optimizer.chunk_store import ChunkStore
    from question_optimizer.generation.ledger_records import Result
    from question_optimizer.records import PointId

CHECKED = ("training", "evaluation", "any")
LEFT_OUT = {
    "findings": "carry findings",
    "unchecked": "did not pass the checks asked for",
    "chunk_gone": "have a chunk that is no longer in the collection",
    "text_changed": "were made from another text than the chunk has now",
    "question_in_text": "stand in their own chunk word for word",
    "beyond_limit": "are beyond --limit",
    "gold_held": "belong to what the gold set holds out, or repeat it",
    "alike_elsewhere": "repeat a question or chunk text of another split",
}
_LONG = 6  # words from which a question is no mere run of keywords that a text may well contain
_NAMED = 5  # configurations
EVERY = "all"  # configurations
_MADE_BY = "optimized_question_generator.py"


class Choice(NamedTuple):
    """The configurations that are exported, the one used last first, and the collection's others
    that hold questions."""

    chosen: list[Known]
    others: list[Known]

    @property
    def fingerprints(self) -> str:
        return ", ".join(one.configuration.fingerprint for one in self.chosen)

    @property
    def pipelines(self) -> str:
        return ", ".join(dict.fromkeys(one.configuration.pipeline for one in self.chosen))

    @property
    def text_key(self) -> str | None:
        return self.chosen[0].configuration.text_key

    def told(self) -> str:
        """In a line or two, for people: whose questions these are, and whose they are not."""
        noun = "configuration" if len(self.chosen) == 1 else "configurations"
        said = f"exporting {noun} {_listed(self.chosen)}"
        if not self.others:
            return said
        choices = f"choose with --configuration, or take what stands: --configuration {EVERY}"
        return f"{said}\nnot exported: {_listed(self.others)}; {choices}"


def _listed(configurations: Sequence[Known]) -> str:
    listed = "; ".join(map(described, configurations[:_NAMED]))
    left = len(configurations) - _NAMED
    return f"{listed}; and {left} more" if left > 0 else listed


def choose(path: Path, collection: str, prefix: str | None) -> Choice:
    """The configuration of this collection whose fingerprint begins so, every one that holds
    questions for EVERY, or of these the one used last.

    UserError where the ledger does not exist or holds none, and for a beginning that is nobody's or
    several ones', naming those that it holds.
    """
    if not path.is_file():
        raise UserError(f"{path}: does not exist; run {_MADE_BY} first")
    ledger = Ledger(path, Configuration(collection, "", "", ()))
    try:
        known = ledger.known()
    finally:
        ledger.close()
    if not known:
        raise UserError(f"{path}: no questions for collection {collection!r}; run {_MADE_BY} first")
    holding = [one for one in known if one.questions] or known[:1]
    if prefix in (None, EVERY):
        count = len(holding) if prefix else 1
        return Choice(holding[:count], holding[count:])
    named = [one for one in known if one.configuration.fingerprint.startswith(prefix.lower())]
    if len(named) != 1:
        what = "several configurations begin with" if named else "no configuration begins with"
        listed = ", ".join(one.configuration.fingerprint for one in (named or holding)[:_NAMED])
        raise UserError(f"{path}: {what} {one_line(prefix)[:40]!r}; choose one of: {listed}")
    return Choice(named, [one for one in holding if one is not named[0]])


def results_of(path: Path, choice: Choice, store: ChunkStore) -> Iterator[Result]:
    """The finished questions of the chosen configurations. Where several are, of each chunk those
    of one alone: whose question stands in the collection, or else of the one used last."""
    several = len(choice.chosen) > 1
    whose = _standing(store) if several else {}
    for one in choice.chosen:
        with closing(Ledger(path, one.configuration)) as ledger:
            for result in ledger.results("done"):
                its = ledger.fingerprint
                if not several or whose.setdefault(result.chunk_id, its) == its:
                    yield result


def _standing(store: ChunkStore) -> dict[PointId, str]:
    """{chunk: the configuration whose question it holds}; without those that hold none of ours."""
    found: dict[PointId, str] = {}
    for point_id, payload in store.payloads(store.point_ids()):
        told = payload.get(PROVENANCE_KEY)
        its = told.get("configuration") if isinstance(told, dict) else None
        if payload.get(QUERY_KEY) and isinstance(its, str):
            found[point_id] = sys.intern(its)
    return found


def fill(
    work: Workspace,
    results: Iterable[Result],
    store: ChunkStore,
    *,
    checked: str | None,
    text_key: str | None,
    limit: int | None,
    seed: int,
    advance: Callable[[], None] = lambda: None,
) -> Counter[str]:
    """Put the collection's chunks and the questions to export into `work`; what was left out, by
    reason of LEFT_OUT.

    `checked`: a policy that questions must have passed; "any" takes them as they are; None those
    that passed any policy's checks and carry no findings. With a `limit` it is a random choice: the
    same seed gives the same order, so a larger limit only adds. `advance` is called for each chunk.
    """
    left_out: Counter[str] = Counter()
    work.add("drafts", _drafts(results, checked, seed, left_out))
    work.add("chunks", _chunks(store, text_key, advance))
    wanted = _fit(work, left_out)
    work.add("questions", enumerate_rows(islice(wanted, limit) if limit else wanted))
    left_out["beyond_limit"] += sum(1 for _ in wanted)
    work.connection.execute("DELETE FROM drafts")
    return +left_out


def enumerate_rows(rows: Iterable[tuple[object, ...]]) -> Iterator[tuple[object, ...]]:
    """Rows with a number from 0 before them."""
    return ((number, *row) for number, row in enumerate(rows))


def _drafts(
    results: Iterable[Result], checked: str | None, seed: int, left_out: Counter[str]
) -> Iterator[tuple[object, ...]]:
    for result in results:
        if reason := _unfit(result, checked):
            left_out[reason] += 1
            continue
        identity = f"{result.chunk_id}-{result.slot}"
        yield (
            *(identity, str(result.chunk_id), _rank(identity, seed), storable(result.query or "")),
            *(result.query_type, result.query_format, result.query_length),
            *(result.persona_id, result.model, result.checked, result.text_sha256),
        )


def _unfit(result: Result, checked: str | None) -> str | None:
    if not (result.query or "").strip():
        return "unchecked"
    if checked == "any":
        return None
    if result.checked in ("", "off") or checked not in (None, result.checked):
        return "unchecked"
    # Beside a question that passed where gates refuse they are notes, and no reason to drop it.
    return "findings" if result.findings and result.checked not in ENFORCED else None


def _rank(identity: str, seed: int) -> str:
    """Where a question stands in the random order of a seed."""
    return hashlib.sha256(f"{seed} {identity}".encode("utf-8", "replace")).hexdigest()[:16]


def _chunks(
    store: ChunkStore, text_key: str | None, advance: Callable[[], None]
) -> Iterator[tuple[object, ...]]:
    number = 0
    for point_id, payload in store.payloads(store.point_ids()):
        advance()
        chunk, _ = chunk_of(point_id, payload, text_key)
        if chunk is None:
            continue
        before, after = (None if near is None else str(near) for near in neighbours_of(payload))
        path = [storable(heading) for heading in chunk.headings]
        document = storable(chunk.document)
        yield (
            *(number, str(point_id), document, " › ".join([document, *path]) if path else ""),
            *(path[-1] if path else "", before, after, chunk.chunk_text),
            text_digest(chunk.chunk_text),
        )
        number += 1


def _fit(work: Workspace, left_out: Counter[str]) -> Iterator[tuple[object, ...]]:
    """The drafts in their random order that fit their chunk, as rows of `questions`."""
    rows = work.ask(
        "SELECT d.id, c.number, d.question, c.text, d.query_type, d.query_format, d.query_length, "
        "d.persona_id, d.model, d.checked, d.text_sha256 FROM drafts AS d "
        "LEFT JOIN chunks AS c ON c.id=d.chunk_id ORDER BY d.rank, d.id"
    )
    for identity, chunk, question, text, *rest, made_from in rows:
        if chunk is None:
            left_out["chunk_gone"] += 1
        elif made_from and made_from != hashlib.sha256(text.encode()).hexdigest():
            left_out["text_changed"] += 1
        elif holds_question(text, question):
            left_out["question_in_text"] += 1
        else:
            yield identity, chunk, question, text_digest(question), *rest, made_from


def holds_question(text: str, question: str) -> bool:
    """Whether a text holds a question as a label: a whole sentence of it, or anything under the
    key that questions are written to. Few words may stand in a text by themselves."""
    asked = folded(question)
    if not asked:
        return False
    plain = folded(text)
    return f"{QUERY_KEY}: {asked}" in plain or (len(asked.split()) >= _LONG and asked in plain)
