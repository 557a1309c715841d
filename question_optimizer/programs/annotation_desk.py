"""The annotator's desk: what a session, a replay or a browser tool's tasks begin with.

Everything is read and checked before anything is written or asked of a model.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from question_optimizer.errors import UserError

if TYPE_CHECKING:
    from config import Settings
    from question_optimizer.annotation.preparation import Preparation
    from question_optimizer.annotation.store import AnnotationStore
    from question_optimizer.dispatcher import LLMDispatcher
    from question_optimizer.providers import LLMClientConfig
    from question_optimizer.records import Chunk, Decision, Persona

SOURCE = "raw_chunks.jsonl"
OUTPUT = "gold_dataset.json"
LOG = "annotations.sqlite"
_REASONS = "skip_reasons.txt"


@dataclass(frozen=True)
class Desk:
    """All that was read; `decisions` are those of a file that is replayed."""

    settings: Settings
    args: argparse.Namespace
    accounts: list[LLMClientConfig]
    chunks: list[Chunk]
    personas: list[Persona]
    decisions: dict[str, Decision] | None
    skip_reasons: tuple[str, ...]

    @property
    def source(self) -> Path:
        return self.settings.data_dir / SOURCE

    @property
    def log(self) -> Path:
        return self.settings.data_dir / LOG

    @property
    def output(self) -> Path:
        return self.settings.data_dir / OUTPUT

    @property
    def elsewhere(self) -> bool:
        """Whether decisions come from a file."""
        return self.decisions is not None or self.args.import_from is not None


def desk_of(settings: Settings, args: argparse.Namespace) -> Desk:
    """UserError where an input is missing or wrong; nothing is written."""
    from config import accounts_of
    from question_optimizer import files
    from question_optimizer.personas import load_personas
    from question_optimizer.records import Chunk

    source = settings.data_dir / SOURCE
    files.check_schema(source)
    chunks = files.read_records(source, Chunk, made_by="fetch_chunks.py")
    if not chunks:
        raise UserError(f"{source}: holds no chunk; rerun fetch_chunks.py")
    if args.export and args.export.is_dir():
        raise UserError(f"{args.export}: is a folder; name a file")
    personas = load_personas(settings.personas_file)
    decisions = _read_decisions(args.replay) if args.replay else None
    accounts = [] if args.import_from else accounts_of(settings)
    reasons = _skip_reasons(settings.data_dir / _REASONS)
    return Desk(settings, args, accounts, chunks, personas, decisions, reasons)


def _read_decisions(path: Path) -> dict[str, Decision]:
    """{chunk id: decision}; the last line on a chunk wins."""
    from question_optimizer import files
    from question_optimizer.records import Decision

    decisions = files.read_records(path, Decision, made_by=None)
    return {str(decision.chunk_id): decision for decision in decisions}


def _skip_reasons(path: Path) -> tuple[str, ...]:
    """The lines of the file, at most nine; the usual reasons where there is none."""
    from question_optimizer.annotation.session import SKIP_REASONS
    from question_optimizer.hostile_text import one_line

    if not path.exists():
        return SKIP_REASONS
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); one reason a line, in UTF-8") from error
    reasons = tuple(filter(None, dict.fromkeys(map(one_line, lines))))
    if not 1 <= len(reasons) <= 9:
        raise UserError(
            f"{path}: has {len(reasons)} reasons; write one to nine, one a line, or delete it"
        )
    return reasons


@contextmanager
def prepared(desk: Desk, store: AnnotationStore) -> Iterator[tuple[Preparation, LLMDispatcher]]:
    """What makes personas and suggestions, and the dispatcher behind it."""
    from custom_lm import LanguageModels
    from question_optimizer.annotation.preparation import Preparation
    from question_optimizer.embedding import Embedder
    from question_optimizer.personas import PersonaCap, PersonaChooser, PersonaMatcher
    from question_optimizer.programs.suggester import LLMPersonaChoice, LLMSuggester

    settings, args = desk.settings, desk.args
    embedder = Embedder(settings.embedding_model, cache_dir=settings.data_dir / "cache")
    with LanguageModels(
        desk.accounts,
        data_dir=settings.data_dir,
        max_cost=args.max_cost,
        max_calls=args.max_calls,
        limits_url=settings.secret_of("limits_url"),
    ) as models:
        teacher = models.lm("teacher")
        chooser = PersonaChooser(
            PersonaMatcher(desk.personas, embedder),
            top_k=args.persona_top_k,
            cap=PersonaCap(args.max_persona_share),
            ask=LLMPersonaChoice(teacher) if args.persona_by == "llm" else None,
        )
        behind = models.dispatcher.models("teacher")
        with Preparation(store, chooser, LLMSuggester(teacher), models=behind) as preparation:
            yield preparation, models.dispatcher


def alone(settings: Settings, annotator: str) -> AbstractContextManager[None]:
    """Keep every other session of the same annotator away; UserError (75) if there is one."""
    from question_optimizer.locks import only_one

    lock = settings.data_dir / ".".join(filter(None, [LOG, annotator, "lock"]))
    who = annotator or "the unnamed annotator"
    advice = "wait for its end or give another --annotator"
    return only_one(lock, f"another session of {who}", advice=advice)
