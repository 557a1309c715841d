"""Finished questions from the ledger into the collection, what that would change, and back again.

A point gets `generated_query`, its provenance, with several questions `generated_queries`, and both
keys in LlamaIndex's node. Vectors, ids and all else stay as they are, and nothing is deleted and
added anew. What a point had before is in the ledger's journal before the point is changed, so
whatever a crash leaves behind can be written again or taken back.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from question_optimizer.chunk_store import PROVENANCE_KEY, QUERY_KEY, chunk_of, former_query_of
from question_optimizer.errors import UserError
from question_optimizer.files import digest
from question_optimizer.generation.checks import text_digest
from question_optimizer.generation.client_writer import Change, Changes, ClientWriter
from question_optimizer.generation.folder_writer import FolderWriter
from question_optimizer.generation.ledger import Ledger
from question_optimizer.generation.ledger_records import Result
from question_optimizer.generation.node_json import restored, with_keys
from question_optimizer.hostile_text import one_line
from question_optimizer.records import PointId

if TYPE_CHECKING:
    from qdrant_client import QdrantClient

QUERIES_KEY = "generated_queries"
_NODE_KEY = "_node_content"
_OURS = (QUERY_KEY, QUERIES_KEY, PROVENANCE_KEY)
_BATCH = 200


class Target(Protocol):
    """A collection, open for writing."""

    def payloads(self, ids: Sequence[PointId]) -> dict[PointId, dict[str, Any]]:
        """{id: payload} of those that are there."""

    def update(self, changes: Changes) -> set[PointId]:
        """Make the changes, each point's wholly or not; return the ids that are not there."""


class Written(NamedTuple):
    """How many points got a new value, had it already, are not there to be written, or hold
    somebody else's question, which stays."""

    changed: int
    unchanged: int
    missing: list[PointId]
    foreign: int = 0


class Undone(NamedTuple):
    """How many points got their former value back, hold another's by now, or are not there."""

    restored: int
    changed_since: int
    missing: list[PointId]


def client_target(client: QdrantClient, collection: str) -> AbstractContextManager[Target]:
    """Write through an open client, a local folder's or a server's; it stays open."""
    return ClientWriter(client, collection)


def folder_target(
    path: Path, collection: str | None = None, *, notice: Callable[[str], None] = lambda text: None
) -> AbstractContextManager[Target]:
    """Write into a local folder that nobody has open; `FolderWriter` says what it raises."""
    return FolderWriter(path, collection, notice=notice)


def new_run_id(now: datetime) -> str:
    """A run's name: when it began, to the minute, and four hex digits: 20261121-2201-4f2a."""
    return f"{now:%Y%m%d-%H%M}-{secrets.token_hex(2)}"


# ---------------------------------------------------------------------- one point


def changes_for(
    payload: Mapping[str, Any], results: Sequence[Result], provenance: Mapping[str, Any]
) -> tuple[Change, dict[str, Any]]:
    """(what a point with `payload` needs to hold the questions of `results`, what leads back).

    Results come by slot: the first is the point's `generated_query`; with several, all are in
    `generated_queries`, and with one a former list goes. Nothing is to be changed where all of this
    stands in it already, whichever run wrote it.
    """
    wanted: dict[str, Any] = {QUERY_KEY: results[0].query, QUERIES_KEY: None}
    if len(results) > 1:
        wanted[QUERIES_KEY] = [_told(result, "query") for result in results]
    set_, delete = dict[str, Any](), set[str]()
    for key, value in wanted.items():
        if value is None:
            delete |= {key} & payload.keys()
        elif payload.get(key) != value:
            set_[key] = value
    told = _provenance(payload, results, {**provenance, "questions": _checksum(wanted)})
    if _but_run(payload.get(PROVENANCE_KEY)) != _but_run(told):
        set_[PROVENANCE_KEY] = told
    former: dict[str, Any] = {"payload": {key: payload[key] for key in _OURS if key in payload}}
    content = payload.get(_NODE_KEY)
    if isinstance(content, str):
        changed, former["node"] = with_keys(content, wanted)
        if changed != content:
            set_[_NODE_KEY] = changed
    if set_ or delete:
        set_[PROVENANCE_KEY] = told  # names the run that wrote last
    return Change(set_, delete), former


def _told(result: Result, *first: str) -> dict[str, Any]:
    keys = (*first, "query_type", "query_format", "persona_id")
    return {key: getattr(result, key) for key in keys}


def _provenance(
    payload: Mapping[str, Any], results: Sequence[Result], given: Mapping[str, Any]
) -> dict[str, Any]:
    """Where the questions come from; `questions`, a checksum, tells whether they still do."""
    told = {**_told(results[0]), "model": results[0].model, **given}
    findings = [list(finding) for result in results for finding in result.findings]
    if findings:
        told["findings"] = findings
    if former := former_query_of(payload):
        told["former_query"] = former
    return told


def _but_run(provenance: Any) -> Any:
    if not isinstance(provenance, dict):
        return provenance
    return {key: value for key, value in provenance.items() if key != "run"}


def _checksum(payload: Mapping[str, Any]) -> str:
    """Eight hex digits each over a point's question and its list of questions."""
    return "".join(digest(payload.get(key))[:8] for key in (QUERY_KEY, QUERIES_KEY))


def was_edited(payload: Mapping[str, Any]) -> bool:
    """Whether somebody put another question in the place of one of ours."""
    told = payload.get(PROVENANCE_KEY)
    if not isinstance(told, dict) or "questions" not in told or not payload.get(QUERY_KEY):
        return False
    return bool(told["questions"] != _checksum(payload))


def is_foreign(payload: Mapping[str, Any], ours: Iterable[Result]) -> bool:
    """Whether the question that stands there is not one that we put there."""
    stored, told = payload.get(QUERY_KEY), payload.get(PROVENANCE_KEY)
    if not stored or stored in {result.query for result in ours}:
        return False
    if not isinstance(told, dict):
        return True
    # Of the question alone: a client that died in mid-write may have left a former list beside it.
    marked = str(told.get("questions", ""))[:8]
    return marked not in ("", _checksum(payload)[:8])


# ---------------------------------------------------------------------- into the collection


class _Pending(NamedTuple):
    results: list[Result]  # one chunk's
    payload: dict[str, Any]
    change: Change
    former: dict[str, Any]

    @property
    def chunk_id(self) -> PointId:
        return self.results[0].chunk_id


def apply(
    ledger: Ledger,
    target: Target,
    *,
    run: str,
    batch: int = _BATCH,
    provenance_extra: Mapping[str, Any] | None = None,
    overwrite: bool = True,
) -> Written:
    """Write every chunk whose questions wait; `run` names it in the journal and the provenance.

    Chunks that are not there, or whose text is another than the questions were made from, keep
    waiting; so do, without `overwrite`, those that hold somebody else's question by now. Repeating
    it after a crash writes what is left.
    """
    given = {**(provenance_extra or {}), "run": run}
    changed = unchanged = foreign = 0
    missing: list[PointId] = []
    for found, gone, stay in _pending(ledger, target, batch, given, overwrite):
        foreign += stay
        changes = {one.chunk_id: one.change for one in found if one.change}
        formers = [(one.chunk_id, json.dumps(one.former)) for one in found if one.change]
        ledger.note_write(run, formers)
        vanished = target.update(changes)
        kept = [one for one in found if one.chunk_id not in vanished]
        ledger.mark_results_written(result for one in kept for result in one.results)
        changed += len(changes) - len(vanished)
        unchanged += len(found) - len(changes)
        missing += [*gone, *vanished]
    return Written(changed, unchanged, missing, foreign)


def _stays(ledger: Ledger, one: _Pending) -> bool:
    """Whether somebody else's question stands there, and not one of ours without a provenance."""
    if not is_foreign(one.payload, one.results):
        return False
    ours = ledger.slots_of([one.chunk_id])[one.chunk_id]
    bare = PROVENANCE_KEY not in one.payload  # as earlier versions wrote
    return is_foreign(one.payload, ours) and not (bare and ledger.former([one.chunk_id]))


def _pending(
    ledger: Ledger, target: Target, batch: int, given: Mapping[str, Any], overwrite: bool
) -> Iterator[tuple[list[_Pending], list[PointId], int]]:
    """Batches of (chunks whose questions wait, chunks that are not there for theirs, how many hold
    somebody else's, which stays without `overwrite`)."""
    its = ledger.configuration
    provenance = {"pipeline": its.pipeline, "configuration": ledger.fingerprint, **given}
    after: PointId = ""
    while waiting := ledger.unwritten(batch, after):
        after = waiting[-1][0].chunk_id
        payloads = target.payloads([results[0].chunk_id for results in waiting])
        found, gone, stay = [], [], 0
        for results in waiting:
            payload = payloads.get(results[0].chunk_id)
            fitting = [] if payload is None else _fitting(results, payload, its.text_key)
            if payload is None or not fitting:
                gone.append(results[0].chunk_id)
                continue
            one = _Pending(fitting, payload, *changes_for(payload, fitting, provenance))
            if overwrite or not _stays(ledger, one):
                found.append(one)
            else:
                stay += 1
        yield found, gone, stay


def _fitting(
    results: Sequence[Result], payload: Mapping[str, Any], text_key: str | None
) -> list[Result]:
    """Those that were made from the text that the point has now."""
    chunk, _ = chunk_of(results[0].chunk_id, payload, text_key)
    if chunk is None:
        return []
    now = text_digest(chunk.chunk_text)
    return [result for result in results if result.text_sha256 in ("", now)]


# ---------------------------------------------------------------------- to look at


def diff(
    ledger: Ledger, target: Target, *, limit: int, batch: int = _BATCH, overwrite: bool = True
) -> Iterator[str]:
    """What `apply` would change, in printable lines: the first `limit` points, then the counts."""
    changed = unchanged = foreign = missing = 0
    for found, gone, stay in _pending(ledger, target, batch, {}, overwrite):
        missing += len(gone)
        foreign += stay
        for one in found:
            unchanged += not one.change
            if one.change:
                changed += 1
                if changed <= limit:
                    yield from _difference(one)
    if changed > limit:
        yield f"… and {changed - limit} more"
    rest = f", {foreign} hold somebody else's" if foreign else ""
    yield f"{changed} to change, {unchanged} hold their question already, {missing} not there{rest}"


def _difference(one: _Pending) -> Iterator[str]:
    """A point's id and document, and each value of ours that would go (-) or come (+)."""
    yield one_line(f"{one.chunk_id}  {one.results[0].document}")
    after = {**one.payload, **one.change.set}
    former = _flat({key: one.payload[key] for key in _OURS if key in one.payload})
    latter = _flat({key: after[key] for key in _OURS if key in after.keys() - one.change.delete})
    for key in {**former, **latter}:
        if former.get(key) != latter.get(key) and key != f"{PROVENANCE_KEY}.run":
            for sign, values in (("-", former), ("+", latter)):
                if key in values:
                    yield one_line(f"{sign} {key}: {values[key]}")
    if one.change.set.keys() == {_NODE_KEY, PROVENANCE_KEY}:
        yield f"~ {_NODE_KEY}: gets what the payload has"


def _flat(value: Any, path: str = "") -> dict[str, str]:
    """{path: value as text} of everything inside."""
    if isinstance(value, dict):
        inside: Iterable[tuple[Any, Any]] = ((f".{key}", item) for key, item in value.items())
    elif isinstance(value, list):
        inside = ((f"[{place}]", item) for place, item in enumerate(value))
    else:
        return {path.removeprefix("."): value if isinstance(value, str) else json.dumps(value)}
    return {key: text for name, item in inside for key, text in _flat(item, path + name).items()}


# ---------------------------------------------------------------------- back again


def undo(
    ledger: Ledger, target: Target, run: str, *, dry_run: bool = False, batch: int = _BATCH
) -> Undone:
    """Give every point that `run` wrote the values it had before, if it still holds the run's.

    Keys that were absent are deleted again, and the node's text is the former one to the byte
    unless others changed it since. The questions stay in the ledger, marked as taken out.
    Repeating it, after a crash or without, changes nothing that is restored already. UserError for
    a run that wrote nothing.
    """
    runs = ledger.runs()
    if run not in {known.run for known in runs}:
        there = ", ".join(f"{known.run} ({known.chunks} chunks)" for known in runs) or "none"
        raise UserError(f"{ledger.path}: no run {run!r}; it has: {there}")
    count = changed_since = 0
    missing: list[PointId] = []
    after = ""
    while journal := ledger.writes_of(run, batch, after):
        after = str(journal[-1][0])
        payloads = target.payloads([point_id for point_id, _ in journal])
        missing += [point_id for point_id, _ in journal if point_id not in payloads]
        found = [(i, payloads[i], json.loads(text)) for i, text in journal if i in payloads]
        back = {i: _way_back(payload, former) for i, payload, former in found}
        ours = {i for i, payload, former in found if back[i] and _is_of(run, payload, former)}
        changed_since += sum(bool(change) and i not in ours for i, change in back.items())
        vanished = set[PointId]()
        if not dry_run:
            vanished = target.update({i: back[i] for i in back if i in ours})
            as_before = [i for i, change in back.items() if not change]
            ledger.mark_undone(run, [*as_before, *(ours - vanished)])
        missing += vanished
        count += len(ours - vanished)
    return Undone(count, changed_since, missing)


def _way_back(payload: Mapping[str, Any], former: Mapping[str, Any]) -> Change:
    """What leads from `payload` to the former values; empty where they stand in it."""
    before = former["payload"]
    set_ = {k: v for k, v in before.items() if k not in payload or payload[k] != v}
    content = payload.get(_NODE_KEY)
    if isinstance(content, str):
        text = restored(content, former.get("node"))
        if text != content:
            set_[_NODE_KEY] = text
    return Change(set_, {key for key in _OURS if key in payload and key not in before})


def _is_of(run: str, payload: Mapping[str, Any], former: Mapping[str, Any]) -> bool:
    """Whether the point holds what the run wrote, or what an interrupted undo left of it.

    A client deletes keys after it has set the others, so each may be the run's or the former one.
    """
    before, provenance = former["payload"], payload.get(PROVENANCE_KEY)
    if not isinstance(provenance, dict):
        return False
    if provenance == before.get(PROVENANCE_KEY):
        return bool(payload.get(QUERY_KEY) == before.get(QUERY_KEY))
    written, now = str(provenance.get("questions")), _checksum(payload)
    return provenance.get("run") == run and all(
        payload.get(key) == before.get(key) or now[part] == written[part]
        for key, part in ((QUERY_KEY, slice(8)), (QUERIES_KEY, slice(8, None)))
    )
