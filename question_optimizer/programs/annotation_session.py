"""A person's session at the desk, or the replay of one from a file of decisions."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from question_optimizer.annotation.gold_file import GoldFile
from question_optimizer.annotation.preparation import Preparation
from question_optimizer.annotation.replay import replay
from question_optimizer.annotation.session import Rules, Session
from question_optimizer.annotation.store import AnnotationStore
from question_optimizer.cli import finish_on_interrupt
from question_optimizer.hostile_text import printable
from question_optimizer.programs.annotation_desk import Desk, prepared

if TYPE_CHECKING:
    from question_optimizer.dispatcher import LLMDispatcher
    from question_optimizer.records import Chunk


def hold_session(desk: Desk, store: AnnotationStore, gold_file: GoldFile) -> int:
    """A person's session, on the screen or in line mode; returns the exit code."""
    gold_file.request()  # a killed session may have left it behind the log
    with prepared(desk, store) as (preparation, dispatcher):
        session = _session(desk, store, preparation, gold_file)
        if desk.args.plain or not _has_screen():
            _in_lines(session, dispatcher)
            return ended(session, dispatcher, 0)
        return ended(session, dispatcher, _on_screen(session, dispatcher, gold_file))


def _session(
    desk: Desk, store: AnnotationStore, preparation: Preparation, gold_file: GoldFile
) -> Session:
    rules = Rules(
        seed=desk.settings.seed,
        blind_test=desk.args.blind_test,
        repeats=desk.args.repeats,
        skip_reasons=desk.skip_reasons,
    )
    return Session(
        desk.chunks,
        store=store,
        preparation=preparation,
        rules=rules,
        saved=gold_file.request,
    )


def _has_screen() -> bool:
    """Whether there is a terminal that can show more than lines."""
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    return terminal and os.environ.get("TERM", "dumb") != "dumb"


def _in_lines(session: Session, dispatcher: LLMDispatcher) -> None:
    from rich.console import Console

    from question_optimizer.annotation.plain import PATIENCE_SECONDS, LineMode

    patience = PATIENCE_SECONDS if sys.stdin.isatty() else None  # lines wait in a pipe
    lines = LineMode(session, Console(), patience_seconds=patience, spend=lambda: dispatcher.spend)
    lines.run()


def _on_screen(session: Session, dispatcher: LLMDispatcher, gold_file: GoldFile) -> int:
    from question_optimizer.annotation.app import AnnotationApp

    screen = AnnotationApp(
        session, spend=lambda: dispatcher.spend, trouble=lambda: gold_file.problem
    )
    return screen.run() or screen.return_code or 0


def ended(session: Session, dispatcher: LLMDispatcher, code: int) -> int:
    """`code`, or, where suggestions ended for good while chunks are open, the code for why, said.

    What is in flight is paid for and kept when it comes, so the end waits for it a while.
    """
    why = session.preparation.ended  # before the dispatcher's own end ends them
    if coming := session.preparation.unfinished:
        let_come(coming, dispatcher)
    if code or why is None or session.current is None:
        return code
    print(f"no more suggestions: {why}", file=sys.stderr)
    return why.exit_code


def let_come(coming: int, dispatcher: LLMDispatcher) -> None:
    """Wait for what is in flight, and say so; Ctrl-C ends that, from the first letter said on."""
    try:
        print(
            f"waiting for the suggestions of {coming} chunks, at most 10 s; Ctrl-C leaves at once",
            file=sys.stderr,
        )
        dispatcher.close()
    except KeyboardInterrupt:
        dispatcher.close(patience_seconds=0)  # or the end of the `with` would wait once more
        raise


def replay_decisions(desk: Desk, store: AnnotationStore, gold_file: GoldFile) -> int:
    """Take the file's decisions that are not recorded yet; UserError where one does not fit."""
    todo = _unrecorded(desk, store)
    _tell_outsiders(desk)
    if todo:
        with prepared(desk, store) as (preparation, dispatcher), finish_on_interrupt(dispatcher):
            replay(
                todo,
                desk.decisions or {},
                store=store,
                preparation=preparation,
                sample=desk.chunks,
                seed=desk.settings.seed,
                saved=gold_file.request,
            )
    given = len(desk.decisions or {})
    print(f"{len(todo)} of {given} decisions were new to the log", file=sys.stderr)
    return 0


def _unrecorded(desk: Desk, store: AnnotationStore) -> list[Chunk]:
    """The chunks whose decision in the file is not in the log yet."""
    decisions = desk.decisions or {}
    return [
        chunk
        for chunk in desk.chunks
        if (decision := decisions.get(str(chunk.chunk_id)))
        and not store.is_decided(chunk, decision)
    ]


def _tell_outsiders(desk: Desk) -> None:
    """Say how many decisions of the file are on chunks that the sample does not hold."""
    there = {str(chunk.chunk_id) for chunk in desk.chunks}
    decisions = desk.decisions or {}
    if elsewhere := [chunk_id for chunk_id in decisions if chunk_id not in there]:
        print(
            f"{len(elsewhere)} of {len(decisions)} decisions are on chunks outside the sample "
            f"(such as {printable(elsewhere[0])}); fetch a larger one to use them",
            file=sys.stderr,
        )
