"""The screens that open over the main one: the keys, and a search.

What is found is hostile text, shown as plain text only.
"""

from __future__ import annotations

from collections.abc import Callable

from rich.table import Table
from rich.text import Text
from textual import events
from textual.app import ComposeResult
from textual.containers import Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from question_optimizer.annotation.wording import KEYS
from question_optimizer.hostile_text import printable


class HelpScreen(ModalScreen[None]):
    """The keys; any key goes back."""

    def compose(self) -> ComposeResult:
        table = Table.grid(padding=(0, 2))
        for key in KEYS:
            table.add_row(Text(key.press, style="bold"), Text(key.help))
        table.add_row(Text("↑ ↓", style="bold"), Text("scroll the chunk; also PgUp, PgDn, space"))
        table.add_row(Text("[ ]", style="bold"), Text("scroll the suggestions"))
        with VerticalScroll(id="help", can_focus=False):
            yield Static(Text("Keys", style="bold"))
            yield Static(table)
            yield Static(Text("While typing: Enter takes the text, Escape leaves it.", style="dim"))

    def on_key(self, event: events.Key) -> None:
        event.stop()
        self.dismiss()


class SearchScreen(ModalScreen["int | None"]):
    """Searches as one types; Enter chooses the marked line, Escape goes back.

    `find` gives (what it stands for, line) for a text; the screen returns what was chosen.
    """

    def __init__(self, find: Callable[[str], list[tuple[int, str]]], hint: str):
        super().__init__()
        self._find = find
        self._hint = hint
        self._found: list[tuple[int, str]] = []

    def compose(self) -> ComposeResult:
        with Vertical(id="search"):
            yield Input(placeholder=self._hint)
            yield OptionList()
            yield Static(
                Text("↑ ↓ choose · Enter takes the marked line · Escape back", style="dim")
            )

    def on_mount(self) -> None:
        self.query_one(OptionList).can_focus = False
        self.query_one(Input).focus()
        self._list("")

    def on_input_changed(self, event: Input.Changed) -> None:
        self._list(event.value)

    def _list(self, text: str) -> None:
        self._found = self._find(text)
        listing = self.query_one(OptionList)
        listing.clear_options()
        for _, line in self._found:
            listing.add_option(Option(Text(printable(line), no_wrap=True)))
        if self._found:
            listing.highlighted = 0
        elif text:
            listing.add_option(Option(Text("nothing found"), disabled=True))

    def on_key(self, event: events.Key) -> None:
        listing = self.query_one(OptionList)
        if event.key == "escape":
            self.dismiss(None)
        elif event.key == "enter":
            at = listing.highlighted
            self.dismiss(self._found[at][0] if at is not None and self._found else None)
        elif event.key == "down":
            listing.action_cursor_down()
        elif event.key == "up":
            listing.action_cursor_up()
        else:
            return
        event.stop()
