"""Which questions are still to be made: the collection held against the ledger, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Literal, NamedTuple

from question_optimizer.chunk_store import PROVENANCE_KEY, QUERY_KEY, ChunkStore, chunk_of
from question_optimizer.generation.checks import ENFORCED, text_digest
from question_optimizer.generation.ledger import Ledger
from question_optimizer.generation.ledger_records import Refusal, Result
from question_optimizer.generation.quotas import Cell, QuotaPlan
from question_optimizer.generation.write_back import is_foreign, was_edited
from question_optimizer.records import Chunk, PointId

_BATCH = 64  # chunks whose personas are matched together


@dataclass(frozen=True)
class Wanted:
    """What a run is to make. `refills`: how often a refused question is asked for again."""

    per_chunk: int = 1
    policy: str = "record"
    refills: int = 2
    overwrite: bool = False  # also chunks that somebody else's question stands in
    changed: Literal["keep", "redo"] = "keep"  # chunks done under another configuration
    retry_failed: bool = False
    retry_rejected: bool = False
    limit: int | None = None  # only the first so many chunks that need a question

    @property
    def tries(self) -> int:
        """Questions asked for before a slot is given up, or planned anew."""
        return 1 + (self.refills if self.policy in ENFORCED else 0)


@dataclass
class Found:
    """What the collection holds, in chunks; slots where it says so."""

    points: int = 0
    already_there: int = 0  # somebody else's question stands in it
    kept: int = 0  # done under another configuration
    without_text: int = 0
    beyond_limit: int = 0
    complete: int = 0  # every question made by earlier runs
    resumed: int = 0  # as complete, and waiting to be written
    undone: int = 0  # as complete, and taken out of the collection by a person
    failed: int = 0  # slots, of earlier runs, left alone
    rejected: int = 0  # slots, of earlier runs, left alone
    to_do: int = 0  # slots handed out
    again: int = 0  # of them, once more by `refills`
    ahead: int = 0  # slots of chunks not looked at yet, at the most


class Todo(NamedTuple):
    """A chunk, and its slots that want a question."""

    chunk: Chunk
    slots: list[Result]


class Backlog:
    """Hands out what is to be made. Blocking; one thread at a time.

    `plan` makes the plan over what the ledger holds, anew for each pass, as a pass that was ended
    early dealt cells to questions that were never asked for. With `look_only` the ledger is left
    as it is.
    """

    def __init__(
        self,
        store: ChunkStore,
        ledger: Ledger,
        wanted: Wanted,
        *,
        plan: Callable[[], QuotaPlan | None] = lambda: None,
        text_key: str | None = None,
        look_only: bool = False,
    ):
        self.found = Found()
        self._look_only = look_only
        self._store = store
        self._ledger = ledger
        self.wanted = wanted
        self._make_plan = plan
        self._plan: QuotaPlan | None = None
        self._text_key = text_key
        self._taken = self._settled = 0
        self._attempts: dict[tuple[PointId, int], int] = {}  # of what was given up before

    def first_pass(self) -> Iterator[list[Todo]]:
        """Batches over the whole collection, a bounded number of chunks in memory."""
        self.found, self._taken, self._plan = Found(), 0, self._make_plan()
        ids = self._store.point_ids()
        self.found.points = len(ids)
        self._settled = self._settled_slots()
        for start in range(0, len(ids), _BATCH):
            batch = ids[start : start + _BATCH]
            needy = self._in_need(batch)
            self._look_ahead(len(ids) - start - len(batch))
            if todo := self._planned(needy):
                self.found.to_do += sum(len(one.slots) for one in todo)
                yield todo

    def _settled_slots(self) -> int:
        """Slots of chunks not looked at yet that need no question, as far as the ledger knows."""
        counts = self._ledger.counts()
        known = counts.total() - counts["pending"]
        if self.wanted.changed == "keep":
            kept = sum(chunks for _, chunks in self._ledger.other_configurations())
            known += kept * self.wanted.per_chunk
        return known

    def _look_ahead(self, chunks: int) -> None:
        if self.wanted.limit is not None:
            chunks = min(chunks, self.wanted.limit - self._taken)
        self.found.ahead = max(0, chunks * self.wanted.per_chunk - max(0, self._settled))

    def refills(self) -> Iterator[list[Todo]]:
        """Batches of slots whose question was refused and may be asked for again."""
        wanted = (
            result
            for result in self._ledger.results("rejected")
            if result.slot < self.wanted.per_chunk and self.asks_again(result)
        )
        while slots := list(islice(wanted, _BATCH)):
            if todo := self._with_text(slots):
                handed_out = sum(len(one.slots) for one in todo)
                self.found.to_do += handed_out
                self.found.again += handed_out
                yield todo

    def texts_of(self, chunk_ids: Sequence[PointId]) -> dict[PointId, str]:
        """The present texts of chunks; those that are gone are left out."""
        return {chunk.chunk_id: chunk.chunk_text for chunk in self._chunks(chunk_ids)}

    # ------------------------------------------------------------------ the collection

    def _chunks(
        self, ids: Sequence[PointId], ours: Mapping[PointId, Sequence[Result]] | None = None
    ) -> Iterator[Chunk]:
        """With `ours` only those whose question is still ours to replace."""
        for point_id, payload in self._store.payloads(list(ids)):
            known = None if ours is None or self.wanted.overwrite else ours.get(point_id, ())
            if known is not None and is_foreign(payload, known):
                continue
            chunk, _ = chunk_of(point_id, payload, self._text_key)
            if chunk is not None:
                yield chunk

    def _in_need(self, ids: Sequence[PointId]) -> list[tuple[Todo, list[Result]]]:
        """(what is wanted of a chunk, the slots it has already) where anything is wanted."""
        known = self._ledger.slots_of(ids)
        former = self._ledger.former(ids)
        waiting: list[PointId] = []
        needy = []
        for point_id, payload in self._store.payloads(list(ids)):
            chunk, _ = chunk_of(point_id, payload, self._text_key)
            if chunk is None:
                self.found.without_text += 1
                continue
            digest = text_digest(chunk.chunk_text)
            slots = [slot for slot in known.get(point_id, []) if slot.text_sha256 == digest]
            self._settled -= sum(slot.state != "pending" for slot in known.get(point_id, []))
            stored = payload.get(QUERY_KEY)
            if (
                not slots
                and former.get(point_id, set()) & {digest, ""}
                and self.wanted.changed == "keep"
            ):
                self.found.kept += 1
                self._settled -= self.wanted.per_chunk
                continue
            ours = known.get(point_id, [])
            lost = stored and not ours  # made by us, for all we know, and paid for
            foreign = point_id not in former and (lost or is_foreign(payload, ours))
            edited = was_edited(payload)  # by a person: that stays
            lacks = sum(slot.state == "done" for slot in slots) < self.wanted.per_chunk
            if not self.wanted.overwrite and (edited or (foreign and lacks)):
                self.found.already_there += 1
                continue
            if slots and self._is_anothers(payload):  # it did these chunks after us, and stands
                self.found.kept += 1
                continue
            if not self._within_limit():
                self.found.beyond_limit += 1
                continue
            wanted = self._slots(chunk, slots)
            if wanted:
                needy.append((Todo(chunk, wanted), slots))
            elif self._is_missing(slots, stored):
                waiting.append(point_id)
            elif not lacks:
                self.found.complete += 1
        if waiting and not self._look_only:  # not written yet, or lost with a restored folder
            resumed = self._ledger.written_again(waiting)
            self.found.resumed += resumed
            self.found.undone += len(waiting) - resumed
        return needy

    def _is_anothers(self, payload: Mapping[str, Any]) -> bool:
        """Whether another configuration's question stands there, and is to stay."""
        told = payload.get(PROVENANCE_KEY)
        whose = told.get("configuration") if isinstance(told, dict) else None
        return (
            self.wanted.changed == "keep"
            and bool(payload.get(QUERY_KEY))
            and whose not in (None, self._ledger.fingerprint)
        )

    def _within_limit(self) -> bool:
        limit = self.wanted.limit
        if limit is not None and self._taken >= limit:
            return False
        self._taken += 1
        return True

    def _is_missing(self, slots: Sequence[Result], stored: object) -> bool:
        first = next((slot.query for slot in slots if slot.state == "done"), None)
        return first is not None and first != stored

    # ------------------------------------------------------------------ slots

    def _slots(self, chunk: Chunk, known: Sequence[Result]) -> list[Result]:
        """The slots of a chunk that are to be made now; the ledger's own where it knows them."""
        by_number = {slot.slot: slot for slot in known}
        wanted = []
        for number in range(self.wanted.per_chunk):
            slot = by_number.get(number)
            if slot is None:
                wanted.append(_new_slot(chunk, number))
            elif slot.state == "pending" or (slot.state == "failed" and self._retries(slot)):
                wanted.append(slot)
            elif slot.state == "failed":
                self.found.failed += 1
            elif slot.state == "rejected" and self._may_try(slot):
                wanted.append(slot)
        return wanted

    def _retries(self, slot: Result) -> bool:
        """What was given up is tried again once, however many passes a run takes."""
        failed = slot.state == "failed"
        asked = self.wanted.retry_failed if failed else self.wanted.retry_rejected
        before = self._attempts.setdefault((slot.chunk_id, slot.slot), slot.attempts)
        return asked and slot.attempts == before

    def _may_try(self, slot: Result) -> bool:
        """Whether a rejected slot is asked for again in a first pass."""
        if self.wanted.policy not in ENFORCED:  # nothing is refused now: what was paid for serves
            if not self._look_only:
                self._ledger.record([self._readmitted(slot)])
            return False
        if self.asks_again(slot) or self._retries(slot):
            return True
        self.found.rejected += 1
        return False

    def _readmitted(self, slot: Result) -> Result:
        last: Refusal = self._ledger.refusals_of(slot.chunk_id, slot.slot)[-1]
        return replace(
            slot,
            state="done",
            query=last.query,
            findings=((last.gate, last.reason),),
            gate="",
            reason="",
            checked="",
        )

    def asks_again(self, slot: Result) -> bool:
        """Tries are left, of this plan or of a second one."""
        if self.wanted.policy not in ENFORCED:
            return False
        tries = self.wanted.tries
        if slot.attempts % tries:
            return True
        return self._plan is not None and slot.attempts == tries

    def _planned(self, needy: Sequence[tuple[Todo, list[Result]]]) -> list[Todo]:
        """Type, format and length for the slots that have none yet, by the plan over the corpus."""
        if self._plan is None:
            return [todo for todo, _ in needy]
        plan, tries = self._plan, self.wanted.tries
        free = [[slot for slot in todo.slots if _wants_plan(slot, tries)] for todo, _ in needy]
        avoid = []
        for (_, known), slots in zip(needy, free, strict=True):
            again = {slot.slot for slot in slots}
            avoid.append(
                {
                    (s.query_type or "", s.query_format or "")
                    for s in known
                    if s.slot not in again and s.slot < self.wanted.per_chunk
                }
            )
            for slot in slots:
                if plan.taken[_cell(slot)]:  # it keeps its place in the corpus, not its cell
                    plan.give_back(_cell(slot))
        dealt = plan.assign([len(slots) for slots in free], avoid)
        todo = []
        for (one, _), slots, cells in zip(needy, free, dealt, strict=True):
            given = {s.slot: _with_cell(s, cell) for s, cell in zip(slots, cells, strict=True)}
            todo.append(Todo(one.chunk, [given.get(slot.slot, slot) for slot in one.slots]))
        return todo

    def _with_text(self, slots: Sequence[Result]) -> list[Todo]:
        """Rejected slots with their chunks; those whose text has changed since wait."""
        by_chunk: dict[PointId, list[Result]] = {}
        for slot in slots:
            by_chunk.setdefault(slot.chunk_id, []).append(slot)
        known = self._ledger.slots_of(list(by_chunk))
        needy = []
        for chunk in self._chunks(list(by_chunk), known):
            digest = text_digest(chunk.chunk_text)
            mine = [slot for slot in by_chunk[chunk.chunk_id] if slot.text_sha256 == digest]
            if mine:
                needy.append((Todo(chunk, mine), known.get(chunk.chunk_id, [])))
        return self._planned(needy)


def _new_slot(chunk: Chunk, number: int) -> Result:
    return Result(
        chunk_id=chunk.chunk_id,
        slot=number,
        document=chunk.document,
        heading=chunk.headings[-1] if chunk.headings else "",
        text_sha256=text_digest(chunk.chunk_text),
    )


def _wants_plan(slot: Result, tries: int) -> bool:
    """It has none yet, or used up the tries of its first one."""
    unplanned = slot.query_length is None and slot.query_type is None
    return unplanned or (slot.state == "rejected" and slot.attempts % tries == 0)


def _with_cell(slot: Result, cell: Cell) -> Result:
    return replace(
        slot,
        query_type=cell.query_type,
        query_format=cell.query_format,
        query_length=cell.query_length,
        analysed=False,
    )


def _cell(slot: Result) -> Cell:
    return Cell(slot.query_type or "", slot.query_format or "", slot.query_length or "")
