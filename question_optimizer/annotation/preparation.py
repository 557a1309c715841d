"""Personas and suggestions for the chunks ahead, made while a person reads.

A person never waits for a language model: what is late or failed is said so, and fills in when it
comes. Whatever was made is in the event log, so a restart, and a second annotator, get it for
nothing.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from queue import SimpleQueue
from typing import Protocol

from question_optimizer.annotation.store import AnnotationStore, Suggested
from question_optimizer.errors import StopRun
from question_optimizer.personas import PersonaChooser
from question_optimizer.records import Chunk, Persona

_WORKERS = 6
THREAD = "preparation"  # the name of its threads


class Suggester(Protocol):
    def __call__(self, chunk: Chunk, persona: Persona, already: Sequence[str] = ()) -> list[str]:
        """Three to five suggestions, none of them in `already`. May raise."""


@dataclass(frozen=True)
class Prepared:
    """What there is for a chunk by now.

    `persona` is None while it is being chosen, and where none fits (`chosen_by` is then not
    empty). `pending` is what is being made, "" if nothing; `problem` why the last try failed.
    """

    persona: Persona | None
    chosen_by: str
    rounds: list[Suggested]
    pending: str
    problem: str

    @property
    def models(self) -> list[str]:
        """Who made the suggestions."""
        return list(dict.fromkeys(model for made in self.rounds for model in made.models))


@dataclass
class _Job:
    pending: str = "persona"
    problem: str = ""
    again: bool = False  # asked for once more while it ran


class Preparation:
    """Makes personas and suggestions on threads of its own; use as a context manager.

    `models` names what is behind `suggester`. `changed`, which may be set later, is called with a
    chunk's id from some thread whenever `prepared` would say something new about it.
    """

    def __init__(
        self,
        store: AnnotationStore,
        chooser: PersonaChooser,
        suggester: Suggester,
        *,
        models: list[str],
        workers: int = _WORKERS,
    ):
        self.changed: Callable[[str], None] = lambda chunk_id: None
        self.ended: StopRun | None = None  # why the run as a whole gets no more suggestions
        self.chooser = chooser
        self._store = store
        self._suggester = suggester
        self._models = models
        self._jobs: dict[str, _Job] = {}
        self._news = threading.Condition()
        self._closed = False
        for persona_id in store.given_personas():
            chooser.count(persona_id)
        # Chunks are ranked one batch after the other: the cap on personas depends on the order.
        self._ranking: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._making: SimpleQueue[Callable[[], None]] = SimpleQueue()
        for queue in (self._ranking, *[self._making] * workers):
            # Daemons: whoever quits does not wait for suggestions that nobody will read.
            threading.Thread(target=_work_off, args=(queue,), name=THREAD, daemon=True).start()
        self._workers = workers

    def __enter__(self) -> Preparation:
        return self

    def __exit__(self, *exc: object) -> None:
        """Start nothing more; what is being made is left to itself."""
        self._closed = True
        self._ranking.put(_leave)
        for _ in range(self._workers):
            self._making.put(_leave)

    @property
    def unfinished(self) -> int:
        """For how many chunks suggestions are being made now."""
        return sum(job.pending == "suggestions" for job in list(self._jobs.values()))

    def look_ahead(self, chunks: Sequence[Chunk]) -> None:
        """Start on those of `chunks` that have neither suggestions nor a job yet; at once."""
        unranked = []
        for chunk in chunks:
            if str(chunk.chunk_id) in self._jobs:
                continue
            self._jobs[str(chunk.chunk_id)] = _Job()
            if self._there(chunk).chosen_by:
                self._submit(self._make, chunk, False)
            else:
                unranked.append(chunk)
        if unranked:
            self._ranking.put(lambda: self._rank(unranked))

    def prepared(self, chunk: Chunk) -> Prepared:
        """What there is for `chunk` by now; never waits."""
        job = self._jobs.get(str(chunk.chunk_id), _Job(pending=""))
        pending, problem = job.pending, job.problem  # first: what was made is there when it ends
        return replace(self._there(chunk), pending=pending, problem=problem)

    def wait(self, chunk: Chunk, timeout_seconds: float | None) -> Prepared:
        """As `prepared`, after waiting until nothing is pending or the time is over."""
        job = self._jobs.get(str(chunk.chunk_id))
        with self._news:
            self._news.wait_for(lambda: job is None or not job.pending, timeout_seconds)
        return self.prepared(chunk)

    def make(self, chunk: Chunk, *, more: bool = False) -> None:
        """Start on `chunk` again: after a change of persona, a failure, or (`more`) for others."""
        with self._news:
            job = self._jobs.setdefault(str(chunk.chunk_id), _Job(pending=""))
            if job.pending:
                job.again = True
                return
            job.pending, job.problem = "persona", ""
        if self._there(chunk).chosen_by:
            self._submit(self._make, chunk, more)
        else:
            self._ranking.put(lambda: self._rank([chunk]))

    # ------------------------------------------------------------------ on other threads

    def _rank(self, chunks: list[Chunk]) -> None:
        try:
            shortlists = self.chooser.shortlists(chunks)
        except Exception as error:  # the model folder is gone, say: chunks are offered without
            for chunk in chunks:
                self._finish(chunk, problem=_line(error))
            return
        for chunk, shortlist in zip(chunks, shortlists, strict=True):
            self._submit(self._choose, chunk, shortlist)

    def _choose(self, chunk: Chunk, shortlist: list[Persona]) -> None:
        persona, by = self.chooser.choose(chunk, shortlist)
        if self._closed:  # the end of the session cut the choice off: the next one makes it
            self._finish(chunk, problem="the session is over")
            return
        self._store.choose_persona(
            chunk.chunk_id, persona.id if persona else None, by=by, known=self.chooser.personas
        )
        self._make(chunk, False)

    def _submit(self, work: Callable[..., None], chunk: Chunk, *args: object) -> None:
        def guarded() -> None:
            try:
                work(chunk, *args)
            except (Exception, StopRun) as error:  # the chunk is offered without, and says why
                if isinstance(error, StopRun):
                    self.ended = error
                self._finish(chunk, problem=_line(error))

        self._making.put(guarded)

    def _make(self, chunk: Chunk, more: bool) -> None:
        if (persona := self._there(chunk).persona) is not None:
            with self._news:
                self._jobs[str(chunk.chunk_id)].pending = "suggestions"
            self.changed(str(chunk.chunk_id))
            self._store.refresh()  # a second annotator may have had them made
            rounds = self._store.suggested(chunk.chunk_id, persona)
            if more or not rounds:
                already = [line for made in rounds for line in made.suggestions]
                lines = self._suggester(chunk, persona, already)
                if not lines:
                    raise ValueError("the model had nothing else to suggest")
                self._store.keep_suggestions(chunk.chunk_id, persona, lines, self._models)
        self._finish(chunk)

    def _there(self, chunk: Chunk) -> Prepared:
        return stored(self._store, chunk, self.chooser.personas)

    def _finish(self, chunk: Chunk, *, problem: str = "") -> None:
        with self._news:  # one step with `make`, which looks whether anything is pending
            job = self._jobs[str(chunk.chunk_id)]
            again, job.again = job.again and not self._closed, False
            if not again:
                job.pending, job.problem = "", problem
                self._news.notify_all()
        if again:  # a person has changed the persona meanwhile
            self._submit(self._make, chunk, False)
        else:
            self.changed(str(chunk.chunk_id))


class _Leave(Exception):
    """Ends a worker."""


def _leave() -> None:
    raise _Leave


def _work_off(queue: SimpleQueue[Callable[[], None]]) -> None:
    with contextlib.suppress(_Leave):
        while True:
            queue.get()()


def stored(store: AnnotationStore, chunk: Chunk, personas: Mapping[str, Persona]) -> Prepared:
    """What the log holds for `chunk`; a persona that is none of `personas` was never chosen."""
    persona_id, by = store.persona_of(chunk.chunk_id, personas) or (None, "")
    if persona_id is None:
        return Prepared(None, by, [], "", "")
    persona = personas[persona_id]
    return Prepared(persona, by, store.suggested(chunk.chunk_id, persona), "", "")


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
