"""The annotator's desk: what a session begins with is what the command line asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from annotate_chunks import parse
from config import load_settings
from question_optimizer.annotation.store import AnnotationStore
from question_optimizer.programs.annotation_desk import desk_of, prepared


@pytest.mark.parametrize(
    ("flags", "calls", "cost"),
    [([], None, None), (["--max-calls", "3"], 3, None), (["--max-cost", "0.5"], None, 0.5)],
)
def test_the_ceilings_of_the_command_line_are_those_of_the_calls(
    flags: list[str], calls: int | None, cost: float | None, tmp_path: Path
) -> None:
    (tmp_path / "raw_chunks.jsonl").write_text('{"chunk_id": 1, "chunk_text": "The log grows."}\n')
    args = parse(["--data-dir", str(tmp_path), "--rehearsal", *flags])
    desk = desk_of(load_settings(args), args)
    with AnnotationStore(desk.log) as store, prepared(desk, store) as (_, dispatcher):
        assert (dispatcher.max_calls, dispatcher.max_cost) == (calls, cost)
