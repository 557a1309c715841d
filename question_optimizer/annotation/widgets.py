"""What the main screen is made of: lines that keys choose from, a text being typed, hints."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text
from textual import events
from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.message import Message
from textual.widgets import Static, TextArea

from question_optimizer.hostile_text import one_line

CHOICES = "123456789abcdefghijklmnoprstvwxyz"  # keys for a list; 0, q and u mean other things


class Editor(TextArea):
    """A question being typed: Enter takes it, Escape leaves it."""

    class Taken(Message):
        def __init__(self, text: str):
            super().__init__()
            self.text = text

    class Left(Message):
        pass

    async def _on_paste(self, event: events.Paste) -> None:
        """Pasted text is hostile, too."""
        event.prevent_default()
        event.stop()
        self.insert(one_line(event.text))

    async def _on_key(self, event: events.Key) -> None:
        if event.key in ("enter", "ctrl+s"):
            event.stop()
            event.prevent_default()
            self.post_message(self.Taken(self.text))
        elif event.key == "escape":
            event.stop()
            event.prevent_default()
            self.post_message(self.Left())
        else:
            await super()._on_key(event)


class Rows(VerticalScroll):
    """Lines, each beside the key that takes it; the editor stands in the place of one, or below."""

    def compose(self) -> ComposeResult:
        for number in range(len(CHOICES) + 1):
            yield Static(id=f"row{number}")
        yield Editor(id="editor", soft_wrap=True, show_line_numbers=False, compact=True)

    def fill(self, lines: Sequence[tuple[str, Text]], *, edited: int | None = None) -> None:
        """Show these lines and no others, nor the one at the place `edited`."""
        for number in range(len(CHOICES) + 1):
            row = self.query_one(f"#row{number}", Static)
            row.set_class(number < len(lines) and number != edited, "-shown")
            if number < len(lines):
                row.update(_beside(*lines[number]))

    def place_editor(self, row: int | None = None) -> Editor:
        """The editor, now after `row`, or below all of them."""
        editor = self.query_one(Editor)
        last = len(CHOICES) if row is None else row
        self.move_child(editor, after=self.query_one(f"#row{last}"))
        return editor


def _beside(key: str, text: Text) -> Table:
    """A key and its text, wrapped beside the key."""
    grid = Table.grid(padding=(0, 1), expand=True)
    grid.add_column(width=2, justify="right", style="bold")
    grid.add_column(ratio=1, overflow="fold")
    grid.add_row(Text(key), text)
    return grid


def hints(pairs: list[tuple[str, str]], width: int) -> Text:
    """Keys and what they do in lines of `width` cells, broken between pairs."""
    text, used = Text(), 0
    for press, short in pairs:
        needed = len(press) + len(short) + 1
        gap = "" if not used else "  " if used + 2 + needed <= width else "\n"
        used = needed if gap == "\n" or not used else used + 2 + needed
        text.append(gap)
        text.append(press, style="bold")
        text.append(f" {short}")
    return text
