"""What a run would ask for, counted before anything is asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from question_optimizer.chunk_store import ChunkStore
from question_optimizer.generation.backlog import Backlog, Found, Wanted
from question_optimizer.generation.checks import ENFORCED
from question_optimizer.generation.ledger import Ledger
from question_optimizer.generation.quotas import QuotaPlan

_SAMPLE = 20  # chunks whose prompts are rendered


@dataclass(frozen=True)
class Preview:
    """Questions to make, the calls for them, and the characters of a typical prompt."""

    found: Found
    questions: int
    calls: int
    most_calls: int  # if every question were refused as often as it may
    characters: float

    def told(self) -> list[str]:
        """Lines for people."""
        found = self.found
        passed = {
            "complete": found.complete + found.resumed + found.undone,
            "with somebody else's question": found.already_there,
            "done under another configuration": found.kept,
            "without text": found.without_text,
            "beyond --limit": found.beyond_limit,
        }
        rest = "".join(f", {count:,} {what}" for what, count in passed.items() if count)
        lines = [f"{found.points:,} chunks: {self.questions:,} questions to make{rest}"]
        if found.failed:
            lines.append(f"{found.failed:,} questions failed before; --retry-failed tries them")
        if self.most_calls > self.calls:
            lines.append(
                f"refused questions are asked for again: {self.most_calls:,} calls at the very most"
            )
        return lines


def preview(
    store: ChunkStore,
    ledger: Ledger,
    wanted: Wanted,
    *,
    plan: Callable[[], QuotaPlan | None],
    text_key: str | None,
    characters: Callable[[Sequence[str]], float],
) -> Preview:
    """Walk over the collection as a run would. `characters`: of a prompt, from some chunks' texts.

    A planned question takes one call, as its type and format are given; others take two.
    """
    backlog = Backlog(store, ledger, wanted, plan=plan, text_key=text_key, look_only=True)
    calls = most = 0
    texts: list[str] = []
    for batch in backlog.first_pass():
        for todo in batch:
            if len(texts) < _SAMPLE:
                texts.append(todo.chunk.chunk_text)
            for slot in todo.slots:
                calls += 1 if slot.query_type else 2
        most += sum(len(todo.slots) for todo in batch)
    again = wanted.tries * (2 if plan() else 1) - 1 if wanted.policy in ENFORCED else 0
    return Preview(
        found=backlog.found,
        questions=backlog.found.to_do,
        calls=calls,
        most_calls=calls + again * most,
        characters=characters(texts),
    )
