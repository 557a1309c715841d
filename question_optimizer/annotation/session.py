"""The line-mode session: one chunk, one persona, a few suggestions, one decision, saved at once.

Where a decision comes from is a `Decider`: a person at a terminal, or a file of decisions made
earlier. Everything else (persona, suggestions, gold item, saving) is the same code for both.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

from rich.console import Console
from rich.text import Text

from question_optimizer.annotation.store import AnnotationStore
from question_optimizer.errors import UserError
from question_optimizer.hostile_text import printable
from question_optimizer.personas import PersonaMatcher
from question_optimizer.records import Chunk, Decision, GoldItem, Origin, Persona

SKIP_REASONS = ("boilerplate", "too short", "code only", "needs context", "other")
_LOOKAHEAD = 4  # chunks whose suggestions are made while a person reads
_PERSONA_BATCH = 16
_IDLE_SECONDS = 60.0  # a longer pause is not counted as work
_HELP = """\
  1-5     take that suggestion
  e 2     edit suggestion 2, then take it        (e alone edits the first)
  w       write a question of your own
  s       skip this chunk, with a reason
  ?       this help
  q       quit; the same command goes on here"""


class Suggester(Protocol):
    def __call__(self, chunk: Chunk, persona: Persona) -> list[str]:
        """Three to five suggestions. May raise; the chunk is then offered without."""


@dataclass(frozen=True)
class Offer:
    """What is put before the annotator."""

    number: int
    total: int
    chunk: Chunk
    persona: Persona
    suggestions: list[str]
    problem: str = ""  # why there are no suggestions, if there are none


class Decider(Protocol):
    """A source of decisions.

    `patience_seconds` is how long it waits for suggestions before a chunk is offered without; None
    is for ever.
    """

    patience_seconds: float | None

    def persona_id(self, chunk: Chunk) -> str | None:
        """The persona already chosen for `chunk`, if one was."""

    def expects_gold(self, chunk: Chunk) -> bool:
        """Whether `chunk` is likely to get a gold question, as far as is known beforehand."""

    def decide(self, offer: Offer) -> tuple[Decision, float | None] | None:
        """(decision, active seconds or None where nobody was timed); None to quit."""


def annotate(
    chunks: Sequence[Chunk],
    *,
    store: AnnotationStore,
    matcher: PersonaMatcher,
    suggester: Suggester,
    decider: Decider,
    suggested_by: list[str],
    seed: int,
    sample: Sequence[Chunk] = (),
    saved: Callable[[], object],
    lookahead: int = _LOOKAHEAD,
) -> int:
    """Offer each of `chunks` to the decider until it quits; returns how many were decided.

    `sample` is what `chunks` are the open part of (by default all of it): whether items are split
    by document or by section depends on the whole.

    `suggested_by` names the models behind `suggester`. `saved` is called after each
    decision is on disk and before the next chunk shows.
    """
    expected = [chunk for chunk in chunks if decider.expects_gold(chunk)]
    groups = store.assign_splits(chunks, expected=expected, sample=sample or chunks, seed=seed)
    decided = 0
    pool = ThreadPoolExecutor(max_workers=lookahead)
    offers = _offers(chunks, matcher, suggester, decider, pool, lookahead)
    try:
        for offer in offers:
            answer = decider.decide(offer)
            if answer is None:
                offers.close()
                break
            decision, active_seconds = answer
            item = gold_item(offer, decision, active_seconds)
            if item is not None:
                item.split_group = groups[str(offer.chunk.chunk_id)]
                item.suggested_by = suggested_by if offer.suggestions else []
            store.record(offer.chunk, decision, item)
            saved()
            decided += 1
    finally:  # whoever quits does not wait for suggestions nobody will read
        pool.shutdown(wait=False, cancel_futures=True)
    return decided


def gold_item(offer: Offer, decision: Decision, active_seconds: float | None) -> GoldItem | None:
    """The entry of the gold set that `decision` makes of `offer`; None for a skip.

    UserError where the decision does not fit the offer.
    """
    where = f"decision on chunk {offer.chunk.chunk_id}"
    origin: Origin
    if decision.action == "skip":
        return None
    if decision.action == "pick":
        if decision.pick is None or decision.pick > len(offer.suggestions):
            raise UserError(
                f"{where}: picks suggestion {decision.pick} of {len(offer.suggestions)}"
            )
        question, origin = offer.suggestions[decision.pick - 1], "picked"
    else:
        question = " ".join(printable(decision.gold_question or "").split())
        origin = "edited" if decision.action == "edit" else "written"
    if not question:
        raise UserError(f"{where}: {decision.action} without gold_question")
    return GoldItem(
        chunk_text=offer.chunk.chunk_text,
        persona_description=offer.persona.description,
        gold_question=question,
        chunk_id=offer.chunk.chunk_id,
        document_id=offer.chunk.document_id,
        persona_id=offer.persona.id,
        query_type=decision.query_type,
        query_format=decision.query_format,
        suggestions=offer.suggestions,
        suggestions_shown=bool(offer.suggestions),
        origin=origin,
        active_seconds=active_seconds,
    )


def _offers(
    chunks: Sequence[Chunk],
    matcher: PersonaMatcher,
    suggester: Suggester,
    decider: Decider,
    pool: ThreadPoolExecutor,
    lookahead: int,
) -> Generator[Offer]:
    """Offers in order, with the suggestions of the next few chunks already under way."""
    waiting: list[tuple[int, Chunk, Persona, Future[list[str]]]] = []
    personas = _personas(chunks, matcher, decider)
    numbered = iter(enumerate(chunks, 1))
    try:
        while True:
            while len(waiting) <= lookahead and (pair := next(numbered, None)):
                persona = next(personas)
                wanted = suggester if decider.expects_gold(pair[1]) else _no_suggestions
                waiting.append((*pair, persona, pool.submit(wanted, pair[1], persona)))
            if not waiting:
                return
            number, chunk, persona, future = waiting.pop(0)
            suggestions: list[str] = []
            problem = ""
            try:
                suggestions = future.result(timeout=decider.patience_seconds)
            except Exception as error:  # the chunk is offered without, and says why
                problem = " ".join(str(error).split())[:160] or type(error).__name__
                if not future.done():
                    problem = f"no answer within {decider.patience_seconds:.0f} seconds"
            yield Offer(number, len(chunks), chunk, persona, suggestions, problem)
    finally:
        for *_, future in waiting:
            future.cancel()


def _no_suggestions(chunk: Chunk, persona: Persona) -> list[str]:
    """For a chunk that is known to be skipped: no call is paid for."""
    return []


def _personas(
    chunks: Sequence[Chunk], matcher: PersonaMatcher, decider: Decider
) -> Iterator[Persona]:
    """The persona of each chunk: the one already chosen, else the one that fits best."""
    by_id = {persona.id: persona for persona in matcher.personas}
    for start in range(0, len(chunks), _PERSONA_BATCH):
        batch = chunks[start : start + _PERSONA_BATCH]
        chosen = [decider.persona_id(chunk) for chunk in batch]
        open_ = [c.chunk_text for c, known in zip(batch, chosen, strict=True) if known is None]
        matched = iter(matcher.choose(open_))
        for chunk, known in zip(batch, chosen, strict=True):
            if known is None:
                yield next(matched)
            elif known in by_id:
                yield by_id[known]
            else:
                raise UserError(
                    f"decision on chunk {chunk.chunk_id}: no persona {known!r}; "
                    f"known: {', '.join(by_id)}"
                )


class Replay:
    """Decisions made earlier, by chunk id."""

    patience_seconds: float | None = None

    def __init__(self, decisions: Mapping[str, Decision]):
        self._decisions = decisions

    def persona_id(self, chunk: Chunk) -> str | None:
        return self._decisions[str(chunk.chunk_id)].persona_id

    def expects_gold(self, chunk: Chunk) -> bool:
        return self._decisions[str(chunk.chunk_id)].action != "skip"

    def decide(self, offer: Offer) -> tuple[Decision, float | None]:
        return self._decisions[str(offer.chunk.chunk_id)], None


class Person:
    """A person at a terminal, asked line by line. End of input quits."""

    patience_seconds: float | None = 20.0

    def __init__(
        self,
        console: Console,
        read_line: Callable[[str], str] = input,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._console = console
        self._read_line = read_line
        self._clock = clock
        self._active = 0.0

    def persona_id(self, chunk: Chunk) -> str | None:
        return None

    def expects_gold(self, chunk: Chunk) -> bool:
        return True

    def decide(self, offer: Offer) -> tuple[Decision, float | None] | None:
        self._active = 0.0
        self._show(offer)
        try:
            decision = self._ask_until_decided(offer)
        except EOFError:
            self._console.print()
            decision = None
        return None if decision is None else (decision, round(self._active, 1))

    def _ask_until_decided(self, offer: Offer) -> Decision | None:
        chunk_id = offer.chunk.chunk_id
        count = len(offer.suggestions)
        choices = f"1-{count} pick · e edit · " if count else ""
        while True:
            key, _, rest = self._ask(f"{choices}w write · s skip · ? help · q quit > ").partition(
                " "
            )
            if key.isdecimal() and 1 <= int(key) <= count:
                return Decision(chunk_id=chunk_id, action="pick", pick=int(key))
            if key == "e" and count:
                which = int(rest or 1) if (rest or "1").isdecimal() else 0
                if not 1 <= which <= count:
                    self._console.print(f"  there is no suggestion {rest!r}", markup=False)
                    continue
                text = self._ask("question: ", prefill=offer.suggestions[which - 1])
                if text:
                    return Decision(
                        chunk_id=chunk_id, action="edit", pick=which, gold_question=text
                    )
            elif key == "w":
                text = rest or self._ask("question: ")
                if text:
                    return Decision(chunk_id=chunk_id, action="write", gold_question=text)
                self._console.print("  nothing written; this chunk is still open")
            elif key == "s":
                return Decision(chunk_id=chunk_id, action="skip", reason=self._skip_reason(rest))
            elif key == "q":
                return None
            elif key == "?":
                self._console.print(_HELP, markup=False, highlight=False)
            elif key:
                self._console.print(f"  {key!r} is no key here; ? shows them", markup=False)

    def _skip_reason(self, given: str) -> str:
        listed = " ".join(f"{number} {reason}" for number, reason in enumerate(SKIP_REASONS, 1))
        answer = given or self._ask(f"why? {listed} > ")
        if answer.isdecimal() and 1 <= int(answer) <= len(SKIP_REASONS):
            return SKIP_REASONS[int(answer) - 1]
        return answer or SKIP_REASONS[-1]

    def _ask(self, prompt: str, prefill: str = "") -> str:
        """One line, its time counted as work unless it is a pause; `prefill` can be edited."""
        started = self._clock()
        with _prefilled(prefill, self._console):
            try:
                return self._read_line(prompt).strip()
            finally:
                self._active += min(self._clock() - started, _IDLE_SECONDS)

    def _show(self, offer: Offer) -> None:
        chunk, console = offer.chunk, self._console
        console.rule(f"chunk {offer.number} of {offer.total}", style="dim")
        place = [chunk.file_name or "", *chunk.headings]
        if chunk.page_no:
            place.append(f"page {chunk.page_no}")
        console.print(Text(" › ".join(printable(part) for part in place if part), style="dim"))
        console.print(Text(printable(chunk.chunk_text)))
        console.print()
        console.print(Text(f"{offer.persona.name}: {offer.persona.description}", style="cyan"))
        console.print()
        if offer.problem:
            console.print(Text(f"no suggestions: {printable(offer.problem)}", style="yellow"))
        for number, suggestion in enumerate(offer.suggestions, 1):
            console.print(Text(f"  {number}  {suggestion}"))


@contextlib.contextmanager
def _prefilled(text: str, console: Console) -> Iterator[None]:
    """Lines read inside start with `text`, ready to be edited, or else it is shown."""
    try:
        import readline
    except ImportError:  # Windows
        if text:
            console.print(f"  {text}", markup=False)
        yield
        return
    readline.set_startup_hook((lambda: readline.insert_text(text)) if text else None)
    try:
        yield
    finally:
        readline.set_startup_hook(None)
