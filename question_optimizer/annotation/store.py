"""Every decision, durable before the next chunk shows, in an append-only event log.

`annotations.sqlite` is the truth; `gold_dataset.json` is exported from it after every decision and
can be made again at any time. Nothing is ever changed or deleted in the log: a later decision on
the same chunk supersedes the earlier one, an undo is an event too, splits are assigned once and
never moved. Several annotators, each in a process of their own, write to one log at the same time.
Beside the log stands a table of drafts, text that is being typed: it is overwritten as one types.

    kind        subject  what happened
    decision    chunk    picked, edited, written, skipped, deferred, flagged
    repeat      chunk    the same on a chunk that came back unannounced, for self-agreement
    undo        chunk    takes back the annotator's latest decision or repeat
    persona     chunk    who asks, as chosen by similarity, an LLM or a person
    suggested   chunk    suggestions as an LLM made them, for every annotator
    bad         chunk    a suggestion marked as bad, or no longer
    own         chunk    a blind annotator's own question, before the suggestions showed
    split       group    the side of a document (section, chunk)
"""

from __future__ import annotations

import functools
import json
import sqlite3
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar, cast

from question_optimizer import files, splits
from question_optimizer.errors import UserError
from question_optimizer.hostile_text import storable
from question_optimizer.records import Chunk, Decision, GoldItem, Persona, PointId, Split
from question_optimizer.sqlite_file import open_database

_SCHEMA = """
CREATE TABLE IF NOT EXISTS events (
    seq INTEGER PRIMARY KEY, at TEXT NOT NULL, kind TEXT NOT NULL,
    subject TEXT NOT NULL, data TEXT NOT NULL,
    annotator TEXT NOT NULL DEFAULT '', active_seconds REAL
);
CREATE TABLE IF NOT EXISTS drafts (
    annotator TEXT NOT NULL, subject TEXT NOT NULL, kind TEXT NOT NULL, text TEXT NOT NULL,
    PRIMARY KEY (annotator, subject, kind)
)
"""
_VERSION = 2
_MIGRATIONS = {
    1: """
    ALTER TABLE events ADD COLUMN annotator TEXT NOT NULL DEFAULT '';
    ALTER TABLE events ADD COLUMN active_seconds REAL
    """
}


_Method = TypeVar("_Method", bound=Callable[..., Any])


def _locked(method: _Method) -> _Method:
    """A method of the store that no other thread may change the store under."""

    @functools.wraps(method)
    def guarded(self: AnnotationStore, *args: Any, **kwargs: Any) -> Any:
        with self._lock:
            return method(self, *args, **kwargs)

    return cast(_Method, guarded)


@dataclass(frozen=True)
class Event:
    """One row of the log. `at` is ISO 8601 in UTC; `active_seconds` None where nobody was timed."""

    seq: int
    at: str
    kind: str
    subject: str
    annotator: str
    active_seconds: float | None
    data: dict[str, Any]

    @cached_property
    def decision(self) -> Decision:
        return Decision.model_validate(self.data["decision"])

    @cached_property
    def item(self) -> GoldItem | None:
        row = self.data.get("item")
        return GoldItem.model_validate(row) if row else None


@dataclass(frozen=True)
class Suggested:
    """One round of suggestions for a chunk and persona, in the order in which they were made."""

    suggestions: list[str]
    models: list[str]


class AnnotationStore:
    """The event log at `path`, made if missing, as `annotator` writes to it.

    One commit an event, flushed to disk. Safe to use from several threads; `refresh` brings in
    what other processes have written.
    """

    def __init__(self, path: Path, annotator: str = ""):
        self.path = path
        self.annotator = annotator
        self.split_unit = ""
        self._connection = open_database(path, _SCHEMA, version=_VERSION, migrations=_MIGRATIONS)
        self._lock = threading.RLock()
        self._last = 0  # the seq up to which the log is applied
        # annotator -> chunk id -> decisions that stand, the latest last
        self._stacks: dict[str, dict[str, list[Event]]] = defaultdict(dict)
        self._undoable: dict[str, list[Event]] = defaultdict(list)
        self._items: dict[int, GoldItem] = {}  # seq -> item with its side
        self._repeats: dict[str, dict[str, Event]] = defaultdict(dict)
        # (annotator, or None for everybody; chunk id) -> who asks, and who chose
        self._personas: dict[tuple[str | None, str], tuple[str | None, str]] = {}
        self._suggested: dict[tuple[str, str], list[Suggested]] = defaultdict(list)
        self._bad: dict[tuple[str, str], set[str]] = defaultdict(set)
        self._own: dict[tuple[str, str], str] = {}
        self._saw: set[tuple[str, str]] = set()  # (annotator, chunk id) decided beside suggestions
        self._sides: dict[str, Split] = {}
        self.refresh()

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    def __enter__(self) -> AnnotationStore:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # ------------------------------------------------------------------ decisions

    @property
    def annotators(self) -> list[str]:
        """Everybody with a decision that stands, in the order of their first."""
        with self._lock:
            firsts = {
                name: min(stack[0].seq for stack in stacks.values())
                for name, stacks in self._stacks.items()
                if stacks
            }
        return sorted(firsts, key=lambda name: firsts[name])

    @_locked
    def decision(self, chunk_id: PointId, annotator: str | None = None) -> Decision | None:
        """What stands on a chunk: this store's annotator's decision, or the named one's."""
        stack = self._stacks[self._named(annotator)].get(str(chunk_id))
        return stack[-1].decision if stack else None

    def decisions_ever(self) -> dict[str, list[Event]]:
        """{chunk id: every decision of this annotator, undone ones too, in the order made}."""
        found: dict[str, list[Event]] = {}
        for event in self.events():
            if event.kind == "decision" and event.annotator == self.annotator:
                found.setdefault(event.subject, []).append(event)
        return found

    def item_on(self, chunk_id: PointId) -> GoldItem | None:
        """This annotator's gold item on a chunk, if there is one."""
        with self._lock:
            stack = self._stacks[self.annotator].get(str(chunk_id))
        return stack[-1].item if stack else None

    @_locked
    def decisions(self, annotator: str | None = None) -> list[Event]:
        """The decisions that stand, one a chunk, in the order of first decisions."""
        stacks = self._stacks[self._named(annotator)].values()
        return [stack[-1] for stack in sorted(stacks, key=lambda stack: stack[0].seq)]

    @_locked
    def repeats(self, annotator: str | None = None) -> dict[str, Event]:
        """{chunk id: the latest decision made when it came back}."""
        return dict(self._repeats[self._named(annotator)])

    @_locked
    def history(self, annotator: str | None = None) -> list[Event]:
        """Decisions and repeats that stand, superseded ones too, in the order made."""
        return list(self._undoable[self._named(annotator)])

    def is_decided(self, chunk: Chunk, decision: Decision | None = None) -> bool:
        """Whether `chunk` is done with; given `decision`, whether this very one stands."""
        standing = self.decision(chunk.chunk_id)
        if decision is None:
            return standing is not None and standing.settles
        return standing == decision

    def record(
        self,
        chunk: Chunk,
        decision: Decision,
        item: GoldItem | None,
        *,
        active_seconds: float | None = None,
        repeat: bool = False,
        saw: bool = False,
    ) -> None:
        """Append a decision; on return it is on disk. `item` is None where there is no question.

        `saw` is whether suggestions stood beside it.
        """
        subject = str(chunk.chunk_id)
        with self._lock:
            with self._writing():
                self.refresh()
                former = self.decision(chunk.chunk_id)
                data = {
                    "old": former.model_dump(mode="json") if former else None,
                    "decision": decision.model_dump(mode="json"),
                    "item": item.model_dump(mode="json", exclude={"split"}) if item else None,
                    "saw": saw,
                }
                kind = "repeat" if repeat else "decision"
                self._insert(kind, subject, data, decision.at, self.annotator, active_seconds)
                self._connection.execute(
                    "DELETE FROM drafts WHERE annotator = ? AND subject = ?",
                    (self.annotator, subject),
                )
            self.refresh()

    def undo(self, among: Container[str] | None = None) -> Event | None:
        """Take back this annotator's latest decision; returns its event, None if none is left.

        Given `among`, the latest one on a chunk whose id is in it.
        """
        with self._lock:
            self.refresh()
            mine = self._undoable[self.annotator]
            may = [event for event in mine if among is None or event.subject in among]
            if not may:
                return None
            last = may[-1]
            stack = self._stacks[self.annotator].get(last.subject, [])
            beneath = stack[-2].data["decision"] if len(stack) > 1 else None
            if last.kind == "repeat":
                beneath = None
            data: dict[str, Any] = {
                "undoes": last.seq,
                "old": last.data["decision"],
                "new": beneath,
            }
            self._append("undo", last.subject, data)
            return last

    @_locked
    def gold(self, annotator: str | None = None) -> list[GoldItem]:
        """The gold set as of now, in the order in which chunks were first decided.

        One item a chunk: the annotator's, or, if none is named, that of whoever decided the chunk
        first among those who have a question for it. Putting a chunk off decides nothing.
        """
        names = list(self._stacks) if annotator is None else [annotator]
        firsts: dict[str, tuple[int, GoldItem]] = {}
        for name in names:
            for subject, stack in self._stacks[name].items():
                if (item := self._item_of(stack[-1])) is None:
                    continue
                since = next(event.seq for event in stack if event.decision.settles)
                if subject not in firsts or since < firsts[subject][0]:
                    firsts[subject] = since, item
        return [item for _, item in sorted(firsts.values(), key=lambda pair: pair[0])]

    def _item_of(self, event: Event) -> GoldItem | None:
        """The gold item of an event with its side; the same object every time."""
        if event.seq not in self._items and (item := event.item) is not None:
            side = self._sides.get(item.split_group)
            self._items[event.seq] = item.model_copy(update={"split": side})
        return self._items.get(event.seq)

    def skipped(self, annotator: str | None = None) -> Counter[str]:
        """How many chunks were skipped, by reason."""
        skips = (event.decision for event in self.decisions(annotator))
        return Counter(d.reason or "no reason" for d in skips if d.action == "skip")

    # ------------------------------------------------------------------ around a decision

    @_locked
    def persona_of(
        self, chunk_id: PointId, known: Container[str] | None = None
    ) -> tuple[str | None, str] | None:
        """(persona id or None for "none fits", who chose it), None where nobody has chosen yet.

        This annotator's own choice goes before the one made for everybody. Given `known`, choices
        of other personas count as not made: they have left the file.
        """
        for whose in (self.annotator, None):
            chosen = self._personas.get((whose, str(chunk_id)))
            if chosen and (known is None or chosen[0] is None or chosen[0] in known):
                return chosen
        return None

    @_locked
    def given_personas(self) -> list[str | None]:
        """The persona ids that similarity or an LLM chose for a chunk."""
        return [chosen[0] for (whose, _), chosen in self._personas.items() if whose is None]

    def choose_persona(
        self,
        chunk_id: PointId,
        persona_id: str | None,
        *,
        by: str,
        known: Container[str] | None = None,
    ) -> None:
        """Keep who asks about a chunk; `by` is "similarity", "llm", "fallback" or "person".

        A person's choice is theirs alone. Of the others, made for everybody, the first one stands,
        unless it is of a persona that is not in `known`.
        """
        subject = str(chunk_id)
        with self._lock:
            with self._writing():
                self.refresh()
                shared = self._personas.get((None, subject))
                gone = shared and known is not None and shared[0] and shared[0] not in known
                if by != "person" and shared and not gone:
                    return
                former = self.persona_of(chunk_id)
                data = {"old": former[0] if former else None, "new": persona_id, "by": by}
                name = self.annotator if by == "person" else ""
                self._insert("persona", subject, data, None, name)
            self.refresh()

    @_locked
    def suggested(self, chunk_id: PointId, persona: Persona) -> list[Suggested]:
        """Every round of suggestions made for a chunk and persona, oldest first."""
        return list(self._suggested[str(chunk_id), _identity(persona)])

    def keep_suggestions(
        self, chunk_id: PointId, persona: Persona, suggestions: list[str], models: list[str]
    ) -> None:
        data = {
            "persona_id": persona.id,
            "persona": _identity(persona),
            "suggestions": suggestions,
            "models": models,
        }
        self._append("suggested", str(chunk_id), data, annotator="")

    @_locked
    def bad(self, chunk_id: PointId, annotator: str | None = None) -> set[str]:
        """The suggestions that the annotator has marked as bad."""
        return set(self._bad[self._named(annotator), str(chunk_id)])

    def mark_bad(self, chunk_id: PointId, suggestion: str, bad: bool) -> None:
        data = {"suggestion": suggestion, "old": not bad, "new": bad}
        self._append("bad", str(chunk_id), data)

    @_locked
    def saw_suggestions(self, chunk_id: PointId) -> bool:
        """Whether suggestions stood beside any decision of this annotator on the chunk."""
        return (self.annotator, str(chunk_id)) in self._saw

    @_locked
    def own_question(self, chunk_id: PointId) -> str:
        """What this annotator wrote before seeing any suggestion; '' if nothing."""
        return self._own.get((self.annotator, str(chunk_id)), "")

    def keep_own_question(self, chunk_id: PointId, text: str) -> None:
        data = {"old": self.own_question(chunk_id), "new": text}
        self._append("own", str(chunk_id), data)

    @_locked
    def draft(self, chunk_id: PointId, kind: str = "write") -> str:
        """Text that was typed for something and not decided on; '' if there is none."""
        row = self._connection.execute(
            "SELECT text FROM drafts WHERE annotator = ? AND subject = ? AND kind = ?",
            (self.annotator, str(chunk_id), storable(kind)),
        ).fetchone()
        return row[0] if row else ""

    def keep_draft(self, chunk_id: PointId, text: str, kind: str = "write") -> None:
        """Keep what is being typed, so that a broken connection costs none of it; '' drops it.

        `kind` is what it is for: "write", "flag", "skip", or "edit " and the suggestion.
        """
        key = (self.annotator, str(chunk_id), storable(kind))
        with self._writing():
            if text:
                self._connection.execute(
                    "INSERT OR REPLACE INTO drafts VALUES (?, ?, ?, ?)", (*key, storable(text))
                )
            else:
                self._connection.execute(
                    "DELETE FROM drafts WHERE annotator = ? AND subject = ? AND kind = ?", key
                )

    # ------------------------------------------------------------------ splits

    def assign_splits(
        self,
        chunks: Iterable[Chunk],
        *,
        expected: Iterable[Chunk],
        sample: Iterable[Chunk],
        seed: int,
    ) -> dict[str, str]:
        """Give every document of `chunks` that has none yet a side; returns {chunk id: group}.

        `expected` are those of `chunks` that are likely to yield a gold question: the shares are
        to come out right for items, and there are none yet. The unit (document, section or
        chunk) is chosen by the whole `sample`, and fixed for good by the first call.
        """
        chunks = list(chunks)
        with self._writing(), self._lock:
            self.refresh()  # inside the transaction: nobody else assigns meanwhile
            unit = self.split_unit or splits.groups_of(sample)[1]
            groups = splits.grouped_by(unit, chunks)
            sizes = Counter(dict.fromkeys(groups.values(), 0))
            sizes.update(groups[str(chunk.chunk_id)] for chunk in expected)
            for item in self.gold():
                if str(item.chunk_id) not in groups:
                    sizes[item.split_group] += 1
            sides = splits.assign(sizes, seed=seed, kept=self._sides)
            for group in sorted(sizes):
                if group not in self._sides:
                    self._insert("split", group, {"side": sides[group], "unit": unit}, at="")
        self.refresh()
        return groups

    @_locked
    def side(self, group: str) -> Split | None:
        """The side of a group; None for one that was never assigned."""
        return self._sides.get(group)

    # ------------------------------------------------------------------ events

    def refresh(self) -> None:
        """Bring in what this and other processes have appended since the last time."""
        with self._lock:
            for event in self.events(after=self._last):
                self._apply(event)
                self._last = event.seq

    @_locked
    def events(self, after: int = 0) -> list[Event]:
        """The log from the first event with a higher number than `after`, in order."""
        rows = self._connection.execute(
            "SELECT seq, at, kind, subject, annotator, active_seconds, data FROM events "
            "WHERE seq > ? ORDER BY seq",
            (after,),
        )
        return [Event(*row[:6], json.loads(row[6])) for row in rows.fetchall()]  # type: ignore[call-arg]

    def _append(
        self,
        kind: str,
        subject: str,
        data: dict[str, Any],
        *,
        at: str | None = None,
        annotator: str | None = None,
        active_seconds: float | None = None,
    ) -> None:
        with self._lock:
            with self._writing():
                self._insert(kind, subject, data, at, self._named(annotator), active_seconds)
            self.refresh()

    def _insert(
        self,
        kind: str,
        subject: str,
        data: dict[str, Any],
        at: str | None,
        annotator: str = "",
        active_seconds: float | None = None,
    ) -> None:
        at = datetime.now(UTC).isoformat(timespec="seconds") if at is None else at
        text = storable(json.dumps(data, ensure_ascii=False))
        self._connection.execute(
            "INSERT INTO events (at, kind, subject, annotator, active_seconds, data) "
            "VALUES (?, ?, ?, ?, ?, ?)",
            (at, kind, subject, annotator, active_seconds, text),
        )

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """One transaction, on disk when the block ends."""
        try:
            with self._lock, self._connection:
                self._connection.execute("BEGIN IMMEDIATE")
                yield
        except sqlite3.OperationalError as error:
            raise UserError(
                f"{self.path}: decision not saved ({error}); "
                "free the disk or close the other session"
            ) from error

    def _named(self, annotator: str | None) -> str:
        return self.annotator if annotator is None else annotator

    def _apply(self, event: Event) -> None:
        data, subject, name = event.data, event.subject, event.annotator
        match event.kind:
            case "decision" | "repeat":
                self._undoable[name].append(event)
                if event.kind == "repeat":
                    self._repeats[name][subject] = event
                else:
                    self._stacks[name].setdefault(subject, []).append(event)
                if data.get("saw"):
                    self._saw.add((name, subject))
            case "undo":
                self._take_back(event)
            case "persona":
                whose = name if data["by"] == "person" else None
                self._personas[whose, subject] = data["new"], data["by"]
            case "suggested":
                made = Suggested(data["suggestions"], data["models"])
                self._suggested[subject, data["persona"]].append(made)
            case "bad":
                marked = self._bad[name, subject]
                (marked.add if data["new"] else marked.discard)(data["suggestion"])
            case "own":
                self._own[name, subject] = data["new"]
            case "split":
                self._sides.setdefault(subject, data["side"])
                self._items.clear()
                self.split_unit = data["unit"]

    def _take_back(self, undo: Event) -> None:
        name, subject, undone = undo.annotator, undo.subject, undo.data["undoes"]

        def others(events: list[Event]) -> list[Event]:
            return [event for event in events if event.seq != undone]

        self._undoable[name] = others(self._undoable[name])
        if stack := others(self._stacks[name].pop(subject, [])):
            self._stacks[name][subject] = stack
        repeat = self._repeats[name].get(subject)
        if repeat and repeat.seq == undone:
            del self._repeats[name][subject]


def _identity(persona: Persona) -> str:
    """A persona by what an LLM sees of it: after an edit of its description it is another one."""
    return files.digest([persona.id, persona.description])[:16]
