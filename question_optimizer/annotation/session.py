"""The annotation session without its screen: which chunk comes, and what a decision does.

Screens (`app`, `plain`) show `Session.card` and call one method for each key. A decision is on disk
when its method returns; only then does the next chunk come. Every method that refuses raises
`Refused` with one line for the person, and changes nothing.
"""

from __future__ import annotations

import hashlib
import random
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

from question_optimizer.annotation.preparation import Preparation, Prepared
from question_optimizer.annotation.store import AnnotationStore, Event
from question_optimizer.hostile_text import one_line
from question_optimizer.records import Chunk, Decision, GoldItem, Origin, Persona, PointId

NO_PERSONA = "no persona fits"
SKIP_REASONS = ("boilerplate", "too short", "code only", "needs context", NO_PERSONA, "other")
WITHHELD = "suggestions are withheld until you have written a question (w)"
ALL_DECIDED = "every chunk of the sample is decided"
MOST_SUGGESTIONS = 9  # one digit each
LOOKAHEAD = 6  # chunks whose suggestions are made while a person reads
_IDLE_SECONDS = 60.0  # a longer pause is not counted as work
_PACE_OVER = 30  # latest decisions that the pace is taken from
_PACE_FROM = 3
_REPEAT_AFTER = 10  # decisions before a chunk may come back

Action = Literal["pick", "edit", "write", "skip", "defer", "flag"]


class Refused(Exception):
    """What was asked for cannot be done now; the message says why, in one line."""


@dataclass(frozen=True)
class Rules:
    """How a session goes. `repeats` is the share of chunks that come back unannounced."""

    seed: int = 0
    shuffle: bool = True
    blind_test: bool = False
    repeats: float = 0.05
    skip_reasons: tuple[str, ...] = SKIP_REASONS
    lookahead: int = LOOKAHEAD


@dataclass(frozen=True)
class Card:
    """What is before the annotator.

    `suggestions` are in the order shown; empty while `withheld`. `note` is what the chunk was
    flagged with; `draft` what was typed and not decided on.
    """

    chunk: Chunk
    prepared: Prepared
    suggestions: list[str] = field(default_factory=list)
    bad: frozenset[str] = frozenset()
    order_seed: int | None = None
    repeat: bool = False
    blind: bool = False
    withheld: bool = False
    own: str = ""
    note: str = ""
    standing: Decision | None = None
    question: str = ""  # that stands
    draft: str = ""

    @property
    def persona(self) -> Persona | None:
        return self.prepared.persona

    @property
    def complete(self) -> bool:
        """Whether all that is to be shown is there."""
        return not self.prepared.pending and not self.prepared.problem


class Progress(NamedTuple):
    """Where the annotator stands. `per_hour` and `hours_left` are in active time; None at first."""

    done: int
    left: int
    per_hour: float | None
    hours_left: float | None


class Found(NamedTuple):
    """A chunk that a search found, with the words around the hit and what stands on it."""

    chunk: Chunk
    excerpt: str
    standing: Decision | None


class Session:
    """One annotator's way through `chunks`; `saved` is called after each decision is on disk.

    Decisions are on the card that was seen: the one given, else the one that `card` returned last.
    Suggestions that came since do not move the numbers under a person's fingers.
    """

    def __init__(
        self,
        chunks: Sequence[Chunk],
        *,
        store: AnnotationStore,
        preparation: Preparation,
        rules: Rules | None = None,
        saved: Callable[[], object] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.chunks = list(chunks)
        self.rules = rules or Rules()
        self.store = store
        self.preparation = preparation
        self._saved = saved
        self._clock = clock
        self._by_id = {str(chunk.chunk_id): chunk for chunk in self.chunks}
        self._groups = store.assign_splits(
            self.chunks, expected=self.chunks, sample=self.chunks, seed=self.rules.seed
        )
        self.current: Chunk | None = None
        self._seen: Card | None = None
        self._active, self._touched = 0.0, clock()
        # A chunk that came back shows nothing of the first time, so what is said of it now is kept
        # here until it is decided.
        self._repeat = False
        self._bad_now: set[str] = set()
        self._own_now = ""
        self._go_on()

    # ------------------------------------------------------------------ looking

    @property
    def card(self) -> Card | None:
        """What to show now; None when everything is decided."""
        self._seen = None if self.current is None else self._card_of(self.current)
        return self._seen

    def _card_of(self, chunk: Chunk) -> Card:
        store, again, number = self.store, self._repeat, chunk.chunk_id
        prepared, item = self.preparation.prepared(chunk), store.item_on(number)
        own = self._own_now if again else store.own_question(number)
        blind = self.rules.blind_test and self._side_of(chunk) == "test"
        blind = blind and (again or bool(own) or not store.saw_suggestions(number))
        seed = self._order_seed(chunk)
        withheld = blind and not own
        return Card(
            chunk=chunk,
            prepared=prepared,
            suggestions=[] if withheld else in_order(self._rounds(prepared), seed),
            bad=frozenset(self._bad_now if again else store.bad(number)),
            order_seed=seed,
            repeat=again,
            blind=blind,
            withheld=withheld,
            own=own if blind else "",
            note="" if again else self._note_on(chunk),
            standing=None if again else store.decision(number),
            question=item.gold_question if item and not again else "",
            draft=store.draft(number),
        )

    def _rounds(self, prepared: Prepared) -> list[list[str]]:
        """The rounds of suggestions to show; on a chunk that came back those of the first time."""
        rounds = [made.suggestions for made in prepared.rounds]
        if not self._repeat or self.current is None:
            return rounds
        first = self.store.item_on(self.current.chunk_id)
        return [sorted(first.suggestions)] if first and len(rounds) > 1 else rounds[:1]

    @property
    def progress(self) -> Progress:
        """Done and left count chunks that come back, so that they do not give themselves away."""
        done = sum(event.decision.settles for event in self._mine()) + len(self._settled_repeats())
        planned = len(self.chunks) + int(len(self.chunks) * self.rules.repeats)
        left = max(0, planned - done) if self.current else 0
        timed = [
            event.active_seconds
            for event in self.store.history()
            if event.active_seconds and event.decision.settles
        ][-_PACE_OVER:]
        if len(timed) < _PACE_FROM:
            return Progress(done, left, None, None)
        per_hour = 3600 * len(timed) / sum(timed)
        return Progress(done, left, per_hour, left / per_hour)

    def find(self, text: str, limit: int = 50) -> list[Found]:
        """Chunks whose text, place or question holds `text`, in sample order; case is ignored."""
        wanted = re.compile(re.escape(one_line(text)), re.IGNORECASE)
        found: list[Found] = []
        for chunk in self.chunks if one_line(text) else []:
            standing = self.store.decision(chunk.chunk_id)
            item = self.store.item_on(chunk.chunk_id)
            place = [chunk.file_name or "", *chunk.headings]
            question = item.gold_question if item else ""
            whole = one_line(" ".join([*place, chunk.chunk_text, question]))
            if hit := wanted.search(whole):
                excerpt = whole[max(0, hit.start() - 15) : hit.start() + 40]
                found.append(Found(chunk, excerpt, standing))
            if len(found) == limit:
                break
        return found

    def touch(self) -> None:
        """A key was pressed: the time since the last one was work, as far as it was no pause."""
        now = self._clock()
        self._active += min(max(0.0, now - self._touched), _IDLE_SECONDS)
        self._touched = now

    # ------------------------------------------------------------------ deciding

    def pick(self, number: int, seen: Card | None = None) -> None:
        """Take suggestion `number` as it is (from 1)."""
        card = self._at(seen)
        _suggestion(card, number)
        self._decide(card, "pick", pick=number)

    def edit(self, number: int, text: str, seen: Card | None = None) -> None:
        """Take `text`, made from suggestion `number`; an unchanged one counts as picked."""
        card = self._at(seen)
        original, text = _suggestion(card, number), one_line(text)
        if text == original:
            self._decide(card, "pick", pick=number)
        else:
            self._decide(card, "edit", pick=number, gold_question=_written(text))

    def write(self, text: str, seen: Card | None = None) -> None:
        """Take a question of one's own; one that repeats a suggestion in sight counts as picked.

        On a blind item it is kept, and the suggestions show: then `keep` takes it.
        """
        card, text = self._at(seen), _written(one_line(text))
        if card.withheld:
            _with_persona(card)
            if self._repeat:
                self._own_now = text
            else:
                self.store.keep_own_question(card.chunk.chunk_id, text)
            self.store.keep_draft(card.chunk.chunk_id, "")
        elif text in card.suggestions:
            self._decide(card, "pick", pick=card.suggestions.index(text) + 1)
        else:
            self._decide(card, "write", gold_question=text)

    def keep(self, seen: Card | None = None) -> None:
        """Keep the own question written before the suggestions of a blind item showed."""
        card = self._at(seen)
        if not card.own:
            raise Refused("there is no question of yours here; w writes one")
        self._decide(card, "write", gold_question=card.own)

    def skip(self, reason: str) -> None:
        """This chunk makes no good question, because of `reason`."""
        self._decide(self._at(), "skip", reason=one_line(reason) or "other")

    def defer(self) -> None:
        """Later: the chunk comes back when all others are done."""
        self._decide(self._at(), "defer")

    def flag(self, note: str) -> None:
        """To be discussed: as deferred, with a note that stays with the chunk."""
        self._decide(self._at(), "flag", note=_written(one_line(note), what="note"))

    def none_fits(self) -> None:
        """No persona would ask about this chunk: it is skipped for that reason."""
        self.skip(NO_PERSONA)

    def undo(self) -> Decision:
        """Take back the latest decision, from an earlier session too, and return to its chunk.

        Decisions on chunks that have left the sample stay.
        """
        event = self.store.undo(self._by_id)
        if event is None:
            raise Refused("there is nothing left to undo")
        self._saved()
        chunk, decision = self._by_id[event.subject], event.decision
        self._show(chunk, repeat=event.kind == "repeat")
        if decision.action == "write":
            self.store.keep_draft(chunk.chunk_id, decision.gold_question or "")
        elif decision.action == "edit" and event.item and decision.pick:
            line = event.item.suggestions[decision.pick - 1]
            self.keep_draft(decision.gold_question or "", f"edit {line}")
        elif decision.action == "flag":
            self.keep_draft(decision.note or "", "flag")
        return decision

    # ------------------------------------------------------------------ around a decision

    def choose_persona(self, persona: Persona) -> None:
        """From now on `persona` asks about this chunk; its suggestions follow."""
        card = self._at()
        if persona != card.persona:
            self.store.choose_persona(card.chunk.chunk_id, persona.id, by="person")
        self.preparation.make(card.chunk)

    def more(self) -> None:
        """Ask for other suggestions, or again where the last try failed."""
        card = self._at()
        if card.withheld:
            raise Refused(WITHHELD)
        if self.preparation.prepared(card.chunk).pending:
            raise Refused("suggestions are still being made")
        if not card.prepared.problem:
            _with_persona(card)
        self.preparation.make(card.chunk, more=bool(card.prepared.rounds))

    def mark_bad(self, number: int, seen: Card | None = None) -> bool:
        """Mark suggestion `number` as bad, or no longer; returns which it is now."""
        card = self._at(seen)
        suggestion = _suggestion(card, number)
        bad = suggestion not in card.bad
        if card.repeat:
            (self._bad_now.add if bad else self._bad_now.discard)(suggestion)
        else:
            self.store.mark_bad(card.chunk.chunk_id, suggestion, bad)
        return bad

    def open(self, chunk_id: PointId) -> None:
        """Go to a chunk of the sample, decided or not; a new decision supersedes the old one."""
        self._show(self._by_id[str(chunk_id)])

    def draft(self, kind: str) -> str:
        """What was typed for the current chunk and not decided on; kinds as in `keep_draft`."""
        return self.store.draft(self.current.chunk_id, kind) if self.current else ""

    def keep_draft(self, text: str, kind: str = "write") -> None:
        """Keep what is being typed, so that a broken connection does not cost it.

        `kind` is what it is for: "write", "flag", "skip", or "edit " and the suggestion.
        """
        if self.current is not None:
            self.store.keep_draft(self.current.chunk_id, text, kind)

    # ------------------------------------------------------------------ inside

    def _at(self, seen: Card | None = None) -> Card:
        """The card that a decision is on, with the marks made on it since it was seen."""
        if self.current is None:
            raise Refused(ALL_DECIDED)
        card = seen or self._seen
        if card is None:
            return self._card_of(self.current)
        if (card.chunk, card.repeat) != (self.current, self._repeat):
            raise Refused("another chunk is up by now: look at it first")
        bad = self._bad_now if card.repeat else self.store.bad(card.chunk.chunk_id)
        return replace(card, bad=frozenset(bad))

    def _decide(self, card: Card, action: Action, **details: object) -> None:
        self.touch()
        question = action in ("pick", "edit", "write")
        persona = _with_persona(card) if question else card.persona
        decision = Decision(
            chunk_id=card.chunk.chunk_id,
            action=action,
            persona_id=persona.id if persona else None,
            **details,  # type: ignore[arg-type]
        )
        seconds = round(self._active, 1)
        item = None
        if question:
            item = gold_item(card, decision, group=self._groups[str(card.chunk.chunk_id)])
            item.active_seconds = seconds
            item.annotator = self.store.annotator
        self.store.record(
            card.chunk,
            decision,
            item,
            active_seconds=seconds,
            repeat=card.repeat,
            saw=bool(card.suggestions),
        )
        self._saved()
        self._go_on()

    def _go_on(self) -> None:
        """Show what comes next, and prepare what comes after it."""
        ahead = self._fresh() or self._put_off()
        again = self._due_again() or (None if ahead else self._put_off_again())
        if again is not None:
            self._show(again, repeat=True)
        elif ahead:
            self._show(ahead[0])
        else:
            self.current = None

    def _show(self, chunk: Chunk, *, repeat: bool = False) -> None:
        self.current, self._repeat, self._seen = chunk, repeat, None
        self._bad_now, self._own_now = set(), ""
        self._active, self._touched = 0.0, self._clock()
        coming = [*self._fresh(), *self._put_off()][: self.rules.lookahead + 1]
        ahead = [other for other in coming if other is not chunk][: self.rules.lookahead]
        self.preparation.look_ahead([chunk, *ahead])

    def _mine(self) -> list[Event]:
        return [event for event in self.store.decisions() if event.subject in self._by_id]

    def _settled_repeats(self) -> set[str]:
        return {i for i, event in self.store.repeats().items() if event.decision.settles}

    def _fresh(self) -> list[Chunk]:
        return [c for c in self.chunks if self.store.decision(c.chunk_id) is None]

    def _put_off(self) -> list[Chunk]:
        """Deferred and flagged chunks, the longest put off first."""
        off = [event for event in self._mine() if not event.decision.settles]
        return [self._by_id[event.subject] for event in sorted(off, key=lambda e: e.seq)]

    def _due_again(self) -> Chunk | None:
        """The chunk that is to come back now, if one is due and one was decided long enough ago."""
        settled = [event for event in self._mine() if event.decision.settles]
        repeated = self.store.repeats()
        if int(len(settled) * self.rules.repeats) <= len(repeated):
            return None
        recent = {event.subject for event in self.store.history()[-_REPEAT_AFTER:]}
        may = [e for e in settled if e.subject not in repeated and e.subject not in recent]
        if not may:
            return None
        chosen = min(may, key=lambda event: self._number("repeat", event.subject))
        return self._by_id[chosen.subject]

    def _put_off_again(self) -> Chunk | None:
        """A chunk that came back and was put off, the longest put off first."""
        off = [event for event in self.store.repeats().values() if not event.decision.settles]
        may = sorted((e for e in off if e.subject in self._by_id), key=lambda e: e.seq)
        return self._by_id[may[0].subject] if may else None

    def _side_of(self, chunk: Chunk) -> str | None:
        return self.store.side(self._groups[str(chunk.chunk_id)])

    def _note_on(self, chunk: Chunk) -> str:
        """What this chunk was flagged with last."""
        flags = [
            event.decision.note or ""
            for event in self.store.history()
            if event.subject == str(chunk.chunk_id) and event.decision.action == "flag"
        ]
        return flags[-1] if flags else ""

    def _order_seed(self, chunk: Chunk) -> int | None:
        if not self.rules.shuffle:
            return None
        return self._number("repeat order" if self._repeat else "order", str(chunk.chunk_id))

    def _number(self, *what: str) -> int:
        """A number that depends on the seed, the annotator and `what` alone."""
        text = "\0".join([str(self.rules.seed), self.store.annotator, *what])
        return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16)


def gold_item(card: Card, decision: Decision, *, group: str) -> GoldItem:
    """The entry of the gold set that `decision` makes of `card`.

    Refused where it does not fit: a pick of what is not there, a question without a word.
    """
    origin: Origin
    if decision.action == "pick":
        if decision.pick is None or decision.pick > len(card.suggestions):
            raise Refused(f"picks suggestion {decision.pick} of {len(card.suggestions)}")
        question, origin = card.suggestions[decision.pick - 1], "picked"
    else:
        question = one_line(decision.gold_question or "")
        origin = "edited" if decision.action == "edit" else "written"
    if not question:
        raise Refused(f"{decision.action} without gold_question")
    if card.persona is None:
        raise Refused("no persona")
    before_any = card.blind and question == card.own  # written before a suggestion showed
    return GoldItem(
        chunk_text=card.chunk.chunk_text,
        persona_description=card.persona.description,
        gold_question=question,
        chunk_id=card.chunk.chunk_id,
        document_id=card.chunk.document_id,
        persona_id=card.persona.id,
        query_type=decision.query_type,
        query_format=decision.query_format,
        suggestions=card.suggestions,
        suggestions_shown=bool(card.suggestions) and not before_any,
        suggested_by=card.prepared.models if card.suggestions else [],
        bad_suggestions=[line for line in card.suggestions if line in card.bad],
        order_seed=card.order_seed if card.suggestions else None,
        origin=origin,
        blind=card.blind,
        note=card.note or None,
        split_group=group,
        existing_query=card.chunk.existing_query,
        file_name=card.chunk.file_name,
    )


def in_order(rounds: Sequence[Sequence[str]], seed: int | None) -> list[str]:
    """The suggestions of all rounds, each round shuffled by `seed`; later rounds come below."""
    shown: list[str] = []
    for number, made in enumerate(rounds):
        lines = [one_line(line) for line in made]
        if seed is not None:
            random.Random(seed + number).shuffle(lines)
        shown += [line for line in lines if line not in shown]
    return shown[-MOST_SUGGESTIONS:]


def _suggestion(card: Card, number: int) -> str:
    if card.withheld:
        raise Refused(WITHHELD)
    if not 1 <= number <= len(card.suggestions):
        raise Refused(f"there is no suggestion {number}")
    return card.suggestions[number - 1]


def _with_persona(card: Card) -> Persona:
    if card.persona is None:
        if card.prepared.chosen_by:
            raise Refused("no persona fits; p chooses one, s skips the chunk")
        raise Refused("the persona is still being chosen; p chooses one now")
    return card.persona


def _written(text: str, *, what: str = "question") -> str:
    if not text:
        raise Refused(f"no {what} written; the chunk is still open")
    return text
