"""One run of the generator over an open collection: make, check, ask again, write back."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from question_optimizer import files
from question_optimizer.chunk_store import ChunkStore
from question_optimizer.errors import INTERRUPTED, TRY_LATER, StopRun, UserError, reason_of
from question_optimizer.generation import maintenance, write_back
from question_optimizer.generation.backlog import Backlog
from question_optimizer.generation.checks import ENFORCED
from question_optimizer.generation.ledger import Ledger
from question_optimizer.generation.ledger_records import Configuration, Result
from question_optimizer.generation.outcome import CHECKING
from question_optimizer.generation.repeats import QuestionIndex, delete_former_indexes
from question_optimizer.generation.settling import Settled, fill, settle
from question_optimizer.programs.production import Character, Engine, Offload, Production

if TYPE_CHECKING:
    from question_optimizer.generation.round_trip import RoundTrip
    from question_optimizer.generation.stored_vectors import StoredVectors
    from question_optimizer.personas import PersonaMatcher
    from question_optimizer.records import Chunk, Persona

_WRITE_EVERY = 500  # questions between two write-backs through a client that is open anyway


class Told(Protocol):
    """Who counts: the generator's summary."""

    def begins(self) -> None: ...

    def spent(self, result: Result, before: Result) -> None: ...

    def made(self, result: Result) -> None: ...

    def doing(self, what: str) -> None: ...

    def settled(self, settled: Settled) -> None: ...

    def written(self, written: write_back.Written) -> None: ...

    def look(self) -> None: ...


@dataclass
class GenerationRun:
    """Everything that one run has open. `id` names it in the journal of what was written."""

    id: str
    run: Offload
    store: ChunkStore
    ledger: Ledger
    engine: Engine
    backlog: Backlog
    policy: str
    told: Told
    characters: Callable[[list[Chunk]], Awaitable[Sequence[Character]]]
    open_target: Callable[[], Any] | None  # a context manager over what writes into the collection
    always_open: bool  # it is open all the time: results are written as they come
    round_trip: Callable[[], RoundTrip | None]  # built when first needed: it reads the whole corpus
    index_path: Path
    _repeats: QuestionIndex | None = None
    _round_trip: RoundTrip | None = None
    _unsettled: int = 0
    _busy: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def go(self) -> StopRun | UserError | None:
        """Make all that is wanted; what ended the run early, if anything did.

        Whatever ended it, what was made is checked and written. Cancelling leaves it in the ledger.
        """
        self.told.begins()
        await self.engine.open()
        production = Production(
            self.engine,
            self.ledger,
            self.run,
            characters=self.characters,
            told=self._told,
            spent=self.told.spent,
        )
        stopped: StopRun | UserError | None = None
        try:
            await self._settle(others=True)  # what they left is kept, so it is checked too
            await self._settle()  # what an earlier run left, so that the rest is this one's
            await production.work(self.backlog.first_pass())
            await self._settle()
            while await self._refilled(production):
                await self._settle()
        except (StopRun, UserError) as stop:
            if isinstance(stop, UserError) and stop.exit_code != TRY_LATER:
                raise
            stopped = stop
            if stop.exit_code == INTERRUPTED and self._settling_takes_long:
                return stop  # somebody waits; the next start checks and writes
            await self._settle()
        problem = await self._write_back()
        return stopped or problem

    def round_trip_figures(self) -> dict[str, Any] | None:
        """How the questions that were looked at in this run find their chunks."""
        figures = self._round_trip.figures() if self._round_trip is not None else {}
        return figures if figures.get("questions") else None

    def close(self) -> None:
        """Release the indexes of questions and of the corpus. Blocking."""
        if self._repeats is not None:
            self._repeats.close()
        if self._round_trip is not None:
            self._round_trip.close()

    async def _refilled(self, production: Production) -> bool:
        """Ask again where a question was refused and tries are left; whether there was any."""
        before = self.backlog.found.to_do
        await production.work(self.backlog.refills())
        return self.backlog.found.to_do > before

    @property
    def _settling_takes_long(self) -> bool:
        return self.policy in ENFORCED and self._round_trip is None

    async def _told(self, result: Result) -> None:
        self.told.made(result)
        self._unsettled += result.state == "done"
        due = self._unsettled >= _WRITE_EVERY and not self._busy.locked()
        if due and self.always_open and self.policy not in ENFORCED:
            async with self._busy:
                self._unsettled = 0
                await self._settle()
                await self._write_back()

    async def _settle(self, *, others: bool = False) -> Settled:
        self.told.doing(CHECKING)
        try:
            settled = await self.run.embedding(self._settle_others if others else self._settle_now)
        finally:
            self.told.doing("")
        self.told.settled(settled)
        return settled

    def _settle_now(self) -> Settled:
        if not self.ledger.unchecked(self.policy, 1):
            return Settled()  # and no model is loaded for it
        return self._checked(self.ledger)

    def _settle_others(self) -> Settled:
        """What no policy checked of other configurations' questions; the rest of theirs stays as
        it is. A chunk whose question is refused is this configuration's to do."""
        total = Settled()
        for configuration in self.ledger.never_checked():
            with closing(Ledger(self.ledger.path, configuration)) as theirs:
                settled = self._checked(theirs, never=True)
            total.checked += settled.checked
            total.refused += settled.refused
        return total  # none is fresh: they are not among those that this run made

    def _checked(self, ledger: Ledger, *, never: bool = False) -> Settled:
        if self._repeats is None:
            self._repeats = _index_at(self.index_path)
            if self.policy != "off":
                fill(self._repeats, self.ledger, stopped=self.run.over.is_set)
        if self._round_trip is None and self.policy in ENFORCED:
            self._round_trip = self.round_trip()
        return settle(
            ledger,
            self.policy,
            self._repeats,
            texts_of=self.backlog.texts_of,
            round_trip=self._round_trip,
            stopped=self.run.over.is_set,
            redo=self.backlog.wanted.changed == "redo",
            never=never,
        )

    async def _write_back(self) -> UserError | None:
        """Move checked results from the ledger into the collection, through one short session."""
        self.told.doing("writing into the collection")
        try:
            written = await self.run.io(self._write_now)
        except UserError as error:  # the folder is open elsewhere: the ledger keeps the results
            return UserError(
                f"{error}; the questions are kept in {self.ledger.path}: --apply writes them later",
                exit_code=error.exit_code,
            )
        finally:
            self.told.doing("")
        if written is not None:
            self.told.written(written)
        return None

    def _write_now(self) -> write_back.Written | None:
        """Those of earlier configurations too, that a run left behind."""
        if self.open_target is None:
            return None
        return maintenance.apply(
            self.ledger.path,
            self.store.collection,
            self.open_target,
            run=self.id,
            overwrite=self.backlog.wanted.overwrite,
        )


def _index_at(path: Path) -> QuestionIndex:
    """It is a cache: a damaged one is made anew from the ledger, and the files that earlier
    versions kept for each configuration are deleted."""
    delete_former_indexes(path.parent)
    try:
        return QuestionIndex(path)
    except UserError:
        for part in path.parent.glob(f"{path.name}*"):
            part.unlink()
        return QuestionIndex(path)


def configuration_for(
    collection: str,
    program: Any,
    asks: Callable[[str], Any] | Sequence[Persona],
    *,
    models: Sequence[str],
    text_key: str | None,
) -> Configuration:
    """Whose questions a run makes, and what they depend on. A function of the host's, and a program
    of its own with `acall`, are known by their names."""
    if callable(asks):
        personas: Any = _name_of(asks)
    else:
        personas = [persona.model_dump() for persona in asks]
    if hasattr(program, "dump_state"):
        state = program.dump_state()
    else:
        state = f"{type(program).__module__}.{type(program).__qualname__}"
    return Configuration(
        collection=collection,
        pipeline=files.digest(state)[:16],
        personas=files.digest(personas)[:16],
        models=tuple(models),
        text_key=text_key,
    )


def _name_of(function: Callable[[str], Any]) -> str:
    """The same from one start to the next."""
    function = getattr(function, "func", function)  # functools.partial
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return f"{function.__module__}.{name}"


async def characters_of(
    chunks: list[Chunk],
    run: Offload,
    function: Callable[[str], Any] | None,
    matcher: Callable[[], PersonaMatcher],
    vectors: StoredVectors,
) -> list[Character]:
    """Who asks about each chunk: by the host's function on its text, or by matching personas. One
    chunk's failure is its own."""
    if function is not None:
        asked = (_character(function, chunk.chunk_text, run) for chunk in chunks)
        return list(await asyncio.gather(*asked))
    matching = await run.embedding(matcher)
    several = len(matching.personas) > 1  # else nothing is compared, and nothing loaded
    # On the thread that all reading is done on: a client is no thing to share.
    known = await run.io(lambda: vectors.of([c.chunk_id for c in chunks])) if several else None
    texts = [chunk.chunk_text for chunk in chunks]
    personas = await run.embedding(lambda: matching.choose(texts, known))
    return [Character(persona.description, persona.id) for persona in personas]


async def _character(function: Callable[[str], Any], text: str, run: Offload) -> Character:
    try:
        chosen = await run.embedding(partial(function, text))
        if inspect.isawaitable(chosen):  # an async function, or anything that returns one
            chosen = await chosen
    except Exception as error:  # the host's code: this chunk fails, with the reason
        return Character("", problem=f"no persona: {reason_of(error)}")
    return Character(str(chosen))
