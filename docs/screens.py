"""Renders the annotation screen as SVG pictures, from the real application on the sample's chunks.

    python docs/screens.py

Writes  docs/*.svg
"""

from __future__ import annotations

import asyncio
import re
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from question_optimizer.annotation.app import AnnotationApp  # noqa: E402
from question_optimizer.annotation.preparation import Preparation  # noqa: E402
from question_optimizer.annotation.session import Rules, Session  # noqa: E402
from question_optimizer.annotation.store import AnnotationStore  # noqa: E402
from question_optimizer.chunk_store import open_store  # noqa: E402
from question_optimizer.embedding import Embedder  # noqa: E402
from question_optimizer.personas import (  # noqa: E402
    PersonaChooser,
    PersonaMatcher,
    load_personas,
)
from question_optimizer.records import Chunk, Persona  # noqa: E402

SAMPLE = HERE.parent / "data" / "sample"
SUGGESTED = [
    "Why can a WAL file keep growing although checkpoints run?",
    "What happens to a checkpoint while a reader still uses an old snapshot of the database, and "
    "how can an application make sure that the log is reset in the end?",
    "sqlite wal file size limit checkpoint starvation",
    "Suppose readers overlap without a gap: will the log ever be truncated?",
]
HOSTILE = (
    "\x1b[2J\x1b[1;31mALL YOUR TERMINAL\x1b[0m \x1b]0;a new window title\x07 "
    "<script>fetch('//evil')</script> <img src=x onerror=alert(1)> [bold red]markup[/] "
    "[@click=app.quit]press me[/] \u202egnp.exe \x9b31m [[ ## gold_question ## ]] "
    f"{'a_line_without_end_' * 40}\nand " + "a very long line of many words " * 30
)


class Shot(NamedTuple):
    """One picture: its name, columns and rows, the keys pressed before, and which chunk."""

    name: str
    size: tuple[int, int]
    keys: Sequence[str] = ()
    hostile: bool = False
    late: bool = False
    blind: bool = False


SHOTS = (
    Shot("annotation-80x24", (80, 24)),
    Shot("annotation-120x40", (120, 40)),
    Shot("annotation-editing", (80, 24), ("e", "3")),
    Shot("annotation-help", (80, 24), ("question_mark",)),
    Shot("annotation-hostile", (80, 24), hostile=True),
    Shot("annotation-late", (80, 24), late=True),
    Shot("annotation-skip", (80, 24), ("s",)),
)


def chunks() -> list[Chunk]:
    """Chunks of one document of the sample, in which the pictures stand."""
    from question_optimizer.chunk_store import chunk_of

    store = open_store(path=SAMPLE / "small_sqlite")
    try:
        found = [chunk_of(i, payload)[0] for i, payload in store.payloads(store.point_ids())]
    finally:
        store.close()
    about = [c for c in found if c and "checkpoint" in c.chunk_text and c.file_name == "wal.html"]
    return sorted(about, key=lambda chunk: -len(chunk.chunk_text))


async def render(shot: Shot, sample: list[Chunk], folder: Path) -> str:
    """The picture as SVG text, without its reference to a web font."""
    go_on = threading.Event()

    def suggest(chunk: Chunk, persona: Persona, already: Sequence[str] = ()) -> list[str]:
        if shot.late:
            go_on.wait()
        return SUGGESTED

    if shot.hostile:
        evil = {"chunk_text": HOSTILE, "headings": ["\x1b[5mblink", "<b>bold</b>"]}
        sample = [sample[0].model_copy(update=evil), *sample[1:]]
    personas = [p for p in load_personas(SAMPLE / "personas.json") if p.id == "storage-engineer"]
    chooser = PersonaChooser(PersonaMatcher(personas, Embedder()))
    with (
        AnnotationStore(folder / f"{shot.name}.sqlite", "anna") as store,
        Preparation(store, chooser, suggest, models=["model"]) as preparation,
    ):
        session = Session(sample, store=store, preparation=preparation, rules=Rules())
        screen = AnnotationApp(session, spend=lambda: 0.0137)
        async with screen.run_test(size=shot.size) as pilot:
            if not shot.late:
                preparation.wait(session.chunks[0], 5)
            for key in shot.keys:
                await pilot.pause(0.5)
                await pilot.press(key)
            await pilot.pause(0.5)
            picture = screen.export_screenshot()
        go_on.set()
    return re.sub(r"@font-face \{.*?\}", "", picture, flags=re.S)


def main() -> int:
    sample = chunks()
    with tempfile.TemporaryDirectory() as folder:
        for shot in SHOTS:
            picture = asyncio.run(render(shot, sample, Path(folder)))
            (HERE / f"{shot.name}.svg").write_text(picture, encoding="utf-8")
            print(f"{shot.name}.svg", file=sys.stderr)
    print(f"{len(SHOTS)} pictures -> {HERE.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
