"""The session on a full screen, down to 80×24 and over SSH: one key, one decision.

Shows `Session.card`, and turns keys into calls of `Session`. Chunk text is hostile: it is shown as
plain text only, stripped of whatever a terminal would obey, never as markup.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Any

from rich.text import Text
from textual import events
from textual.app import App, ComposeResult
from textual.binding import Binding
from textual.containers import Container, Horizontal, Vertical, VerticalScroll
from textual.message import Message
from textual.widgets import Static

from question_optimizer.annotation.screens import HelpScreen, SearchScreen
from question_optimizer.annotation.session import Card, Found, Refused, Session
from question_optimizer.annotation.terminal_watch import TerminalWatch
from question_optimizer.annotation.widgets import CHOICES, Editor, Rows, hints
from question_optimizer.annotation.wording import (
    KEYS,
    notices_of,
    persona_line,
    place_of,
    progress_line,
    suggestions_notice,
)
from question_optimizer.errors import INTERRUPTED, UserError
from question_optimizer.hostile_text import printable

_WIDE = 110  # columns from which chunk and questions stand side by side
_UNSEEN_SECONDS = 0.4  # suggestions that came this short ago may not have been read
_DRAFT_SECONDS = 1.0  # after which what is being typed is kept
_DID = {
    "pick": "picked",
    "edit": "edited",
    "write": "written",
    "skip": "skipped",
    "defer": "deferred",
    "flag": "flagged",
}


class AnnotationApp(App[int]):
    """The main screen. Returns 0, or 130 where Ctrl-C, SIGTERM or a hang-up ended it.

    `spend` is what was paid so far; `trouble` a standing problem to show, '' if there is none.
    """

    class Changed(Message):
        """There is news on a chunk's persona or suggestions."""

        def __init__(self, chunk_id: str):
            super().__init__()
            self.chunk_id = chunk_id

    AUTO_FOCUS = None  # keys are ours, but for a text being typed
    ENABLE_COMMAND_PALETTE = False
    BINDINGS = [Binding("ctrl+c", "interrupt", priority=True)]  # noqa: RUF012 - as Textual has it
    TITLE = "annotate_chunks.py"
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (_WIDE, "-wide")]  # noqa: RUF012 - as Textual has it
    CSS = """
    Screen { background: $background; }
    #header { height: 1; background: $primary-background; color: $text; padding: 0 1; }
    #progress { width: 1fr; }
    #who { width: auto; }
    #place { height: 1; color: $text-muted; padding: 0 1; text-style: italic; }
    #body { height: 1fr; layout: vertical; }
    #chunk { height: 1fr; min-height: 4; padding: 0 1; scrollbar-size-vertical: 1; }
    .near { color: $text-disabled; display: none; }
    .near.-shown { display: block; }
    #side { height: auto; max-height: 70%; border-top: solid $primary-background-lighten-2; }
    #persona { color: $accent; padding: 0 1; height: auto; max-height: 2; }
    #persona.-whole { max-height: 12; }
    #rows { height: auto; padding: 0 1; scrollbar-size-vertical: 1; }
    #rows > Static { height: auto; display: none; }
    #rows > Static.-shown { display: block; }
    #notice { color: $warning; padding: 0 1; height: auto; display: none; }
    #notice.-shown { display: block; }
    Editor { display: none; height: auto; min-height: 3; max-height: 8;
             border: round $accent; padding: 0 1; }
    Editor.-shown { display: block; }
    #message { height: 1; padding: 0 1; }
    #message.-good { color: $success; }
    #message.-bad { color: $warning; }
    #keys { height: auto; color: $text-muted; padding: 0 1; }
    .-wide #body { layout: horizontal; }
    .-wide #chunk { width: 3fr; height: 100%; }
    .-wide #side { width: 2fr; height: 100%; max-height: 100%; border-top: none;
                   border-left: solid $primary-background-lighten-2; }
    .-wide #persona { max-height: 8; margin-bottom: 1; }
    .-wide #rows > Static { margin-bottom: 1; }
    HelpScreen, SearchScreen { align: center middle; }
    #help { width: 78; max-width: 100%; height: auto; max-height: 100%; padding: 0 2;
            background: $panel; border: round $accent; scrollbar-size-vertical: 1; }
    #search { width: 90%; height: 80%; background: $panel; border: round $accent; }
    #search OptionList { height: 1fr; border: none; }
    """

    def __init__(
        self,
        session: Session,
        *,
        spend: Callable[[], float] = lambda: 0.0,
        trouble: Callable[[], str] = str,
    ):
        super().__init__()
        self.session = session
        self._spend = spend
        self._trouble = trouble
        self._mode = ""  # "", "edit", "bad", "skip", "persona": what the next key chooses
        self._take: Callable[[str], None] | None = None  # what becomes of the text being typed
        self._kind = ""  # what the text being typed is for, as drafts are kept
        self._row_edited: int | None = None
        self._shown: Card | None = None
        self._filled_in = 0.0  # when suggestions last came to a chunk already on the screen
        self._keeping: asyncio.TimerHandle | None = None
        self._terminal = TerminalWatch()

    def compose(self) -> ComposeResult:
        with Horizontal(id="header"):
            yield Static(id="progress")
            yield Static(id="who")
        yield Static(id="place")
        with Container(id="body"):
            with VerticalScroll(id="chunk", can_focus=False):
                yield Static(id="before", classes="near")
                yield Static(id="text")
                yield Static(id="after", classes="near")
            with Vertical(id="side"):
                yield Static(id="persona")
                yield Static(id="notice")
                yield Rows(id="rows", can_focus=False)
        yield Static(id="message")
        yield Static(id="keys")

    def on_mount(self) -> None:
        self.session.preparation.changed = self._tell
        self.begin_capture_print(self, stdout=False)
        self.set_focus(None)
        if not self.is_headless:
            self._terminal.begin(lambda: self.call_later(self._leave, INTERRUPTED))
        self._show()

    def _tell(self, chunk_id: str) -> None:
        """Called from the threads that make suggestions."""
        self.post_message(self.Changed(chunk_id))

    def on_unmount(self) -> None:
        self.session.preparation.changed = lambda chunk_id: None

    def run(self, *args: Any, **kwargs: Any) -> int | None:
        """As `App.run`; SIGTERM, SIGHUP and a terminal that is gone end it with 130, too."""
        with self._terminal:
            return super().run(*args, **kwargs)

    # ------------------------------------------------------------------ showing

    def _show(self, message: str = "", *, good: bool = True) -> None:
        """Bring the whole screen in line with the session."""
        card = self.session.card
        same = bool(
            card
            and self._shown
            and card.chunk is self._shown.chunk
            and card.repeat == self._shown.repeat
        )
        if same and card and self._shown and card.suggestions != self._shown.suggestions:
            self._filled_in = time.monotonic()
        self._shown = card
        self._update("progress", Text(progress_line(self.session.progress, self._spend())))
        self._update("who", Text(self._standing()))
        self._update("place", Text(place_of(card.chunk) if card else "", no_wrap=True))
        self._show_chunk(card, same=same)
        if card:
            self._update("persona", Text(self._cut(persona_line(card), lines=2)))
        self._show_rows()
        told = " · ".join(filter(None, [message, self._trouble()]))
        self._say(told, good=good and not self._trouble())

    def _standing(self) -> str:
        name = printable(self.session.store.annotator)
        return f"{name} · saved ✓" if name else "saved ✓"

    def _show_chunk(self, card: Card | None, *, same: bool) -> None:
        if card is None:
            self._update("text", Text("Every chunk of the sample is decided. u undoes, q leaves."))
            self.query_one("#side").display = False
            return
        self.query_one("#side").display = True
        if not same:
            self._near(False)
            self._update("text", Text(printable(card.chunk.chunk_text)))
            before, after = card.chunk.previous_text, card.chunk.next_text
            self._update("before", Text(f"before: {printable(before or '(none known)')}"))
            self._update("after", Text(f"after: {printable(after or '(none known)')}"))
            self.query_one("#chunk", VerticalScroll).scroll_home(animate=False)

    def _show_rows(self) -> None:
        notice, lines = self._lines_now()
        self._update("notice", Text(notice))
        self.query_one("#notice").set_class(bool(notice), "-shown")
        self.query_one(Rows).fill(lines, edited=self._row_edited)
        self._update("keys", self._hints())
        self.call_after_refresh(self._fit)

    def _lines_now(self) -> tuple[str, list[tuple[str, Text]]]:
        """A notice, and the suggestions or the list that the next key chooses from."""
        card = self._shown
        if self._mode == "skip":
            notice = "Why skip? A digit says; 0 types another reason; Escape goes back."
            return notice, [(CHOICES[i], Text(line)) for i, line in enumerate(self._reasons())]
        if self._mode == "persona":
            notice = "Who asks? 0 none of them fits: skip; Escape goes back."
            return notice, [(key, Text(line, no_wrap=True)) for key, line in self._personas()]
        if card is None:
            return "", []
        lines = [
            (str(number), Text(line, style="strike dim" if line in card.bad else ""))
            for number, line in enumerate(card.suggestions, 1)
        ]
        if card.own:
            lines.append(("0", Text(f"{card.own}  (yours: 0 keeps it)")))
        return "\n".join(notices_of(card)), lines

    def _cut(self, text: str, *, lines: int) -> str:
        """`text` as far as it fits into so many narrow lines; a wide screen has room for more."""
        text = printable(text)
        room = lines * (self.size.width - 6)
        return text if len(text) <= room or self.size.width >= _WIDE else f"{text[: room - 1]}…"

    def _hints(self) -> Text:
        return hints(self._keys_now(), self.size.width - 2)

    def _keys_now(self) -> list[tuple[str, str]]:
        """The keys that mean something now, and what."""
        if self._take:
            return [("enter", "save"), ("esc", "back; the text is kept")]
        if self._mode in ("edit", "bad"):
            count = len(self._shown.suggestions) if self._shown else 0
            return [(f"1-{count}", f"{self._mode} which?"), ("esc", "back")]
        if self._mode:
            return [("esc", "back")]
        card = self._shown
        count = len(card.suggestions) if card else 0
        hidden = {"" if card and card.own else "0", "" if count else "1-9"}
        digits = {"1-9": f"1-{count}" if count > 1 else "1"}
        shown = [key for key in KEYS if key.press not in hidden]
        return [(digits.get(key.press, key.press), key.short) for key in shown]

    def on_resize(self) -> None:
        self._update("keys", self._hints())
        self.call_after_refresh(self._fit)

    def _fit(self) -> None:
        """Give the suggestions what room there is, so that they scroll where it is too little."""
        body = self.query_one("#body").size.height
        room = body if self.size.width >= _WIDE else int(body * 0.7) - 1
        above = self.query_one("#persona").outer_size.height
        notice = self.query_one("#notice")
        if notice.has_class("-shown"):  # a hidden one keeps the size it had
            above += notice.outer_size.height
        self.query_one("#rows").styles.max_height = max(3, room - above)
        if self._take:
            self.call_after_refresh(self.query_one(Editor).scroll_visible, animate=False)

    def _say(self, text: str, *, good: bool = True) -> None:
        message = self.query_one("#message", Static)
        message.update(Text(printable(text), no_wrap=True))
        message.set_class(good, "-good")
        message.set_class(not good, "-bad")

    def _update(self, name: str, text: Text) -> None:
        self.query_one(f"#{name}", Static).update(text)

    def _reasons(self) -> tuple[str, ...]:
        return self.session.rules.skip_reasons[:9]

    def _personas(self) -> list[tuple[str, str]]:
        personas = self.session.preparation.chooser.personas.values()
        return [
            (key, self._cut(f"{persona.name}: {persona.description}", lines=1))
            for key, persona in zip(CHOICES, personas, strict=False)
        ]

    def on_annotation_app_changed(self, event: Changed) -> None:
        if self._shown and event.chunk_id == str(self._shown.chunk.chunk_id):
            lasting = self._last_message.startswith(("saved", "undone", "deferred", "flagged"))
            self._show(self._last_message if lasting else "")
        else:
            self._update("progress", Text(progress_line(self.session.progress, self._spend())))

    def on_print(self, event: events.Print) -> None:
        """What the dispatcher has to say (an account is out) must not tear the screen."""
        if event.text.strip():
            self._say(" ".join(event.text.split()), good=False)

    @property
    def _last_message(self) -> str:
        return str(self.query_one("#message", Static).render())

    # ------------------------------------------------------------------ keys

    def on_key(self, event: events.Key) -> None:
        if len(self.screen_stack) > 1:
            return  # another screen's
        if self._take:
            editor = self.query_one(Editor)
            if self.focused is not editor:  # quick fingers: the focus is still on its way
                editor.post_message(events.Key(event.key, event.character))
            return
        self.session.touch()
        key = event.character if event.character and event.is_printable else event.key
        event.stop()
        try:
            if self._mode:
                self._choose(key)
            else:
                self._obey(key)
        except Refused as refusal:
            self._mode = ""
            self._show(str(refusal), good=False)
        except UserError as error:  # the disk is full: nothing was decided, the chunk stays
            self._show(str(error), good=False)

    def _obey(self, key: str) -> None:
        """One key of the main screen."""
        session = self.session
        match key:
            case "1" | "2" | "3" | "4" | "5" | "6" | "7" | "8" | "9":
                self._only_if_seen()
                session.pick(int(key), self._card())
                self._show(f"saved: picked {key}")
            case "0":
                session.keep(self._card())
                self._show("saved: your own question")
            case "e" | "x":
                self._which("edit" if key == "e" else "bad")
            case "w":
                card = self._card()
                self._type(card.draft or card.own, "write", lambda text: self._write(text, card))
            case "s":
                self._card()
                self._enter("skip")
            case "p":
                self._choose_persona()
            case "d":
                session.defer()
                self._show("deferred: it comes back at the end")
            case "f":
                self._type(session.draft("flag") or self._card().note, "flag", self._flag)
            case "u":
                undone = session.undo()
                self._show(f"undone: was {_DID[undone.action]}")
            case "r":
                session.more()
                self._show("asking for other suggestions")
            case "n":
                self._near(not self.query_one("#before").has_class("-shown"))
            case "/":
                hint = "words of the chunk, its place or its question"
                self.push_screen(SearchScreen(self._search, hint), self._go_to)
            case "?":
                self.push_screen(HelpScreen())
            case "q":
                self._leave(0)
            case _:
                self._scroll(key)

    def _choose(self, key: str) -> None:
        """One key of a list: which suggestion, which reason, which persona."""
        mode, self._mode = self._mode, ""
        if key == "escape":
            self._show()
        elif mode == "skip" and key == "0":
            self._type(self.session.draft("skip"), "skip", self._skip)
        elif mode == "skip" and key in CHOICES[: len(self._reasons())]:
            self._skip(self._reasons()[CHOICES.index(key)])
        elif mode == "persona" and key in f"0{CHOICES[: len(self._personas())]}":
            self._take_persona(-1 if key == "0" else CHOICES.index(key))
        elif mode in ("edit", "bad") and key.isdecimal():
            self._on_suggestion(mode, int(key))
        elif key in ("up", "down", "pageup", "pagedown", " ", "home", "end"):
            self._mode = mode
            self._scroll(key, "#rows")
        else:
            self._enter(mode)
            self._say(f"{key} is not in the list; Escape goes back", good=False)

    def _which(self, mode: str) -> None:
        """Ask which suggestion is meant; a single one is meant already."""
        self._only_if_seen()
        suggestions = self._card().suggestions
        if len(suggestions) == 1:
            self._on_suggestion(mode, 1)
        elif suggestions:
            self._enter(mode)
        else:
            raise Refused(suggestions_notice(self._card()) or "there is no suggestion")

    def _on_suggestion(self, mode: str, number: int) -> None:
        card = self._card()
        if not 1 <= number <= len(card.suggestions):
            raise Refused(f"there is no suggestion {number}")
        if mode == "edit":
            line = card.suggestions[number - 1]
            kind = f"edit {line}"
            text = self.session.draft(kind) or line
            self._type(text, kind, lambda text: self._edit(number, text, card), row=number - 1)
        else:
            bad = self.session.mark_bad(number, card)
            self._show(f"{number} is {'marked as bad' if bad else 'no longer marked'}")

    def _only_if_seen(self) -> None:
        if time.monotonic() - self._filled_in < _UNSEEN_SECONDS:
            raise Refused("suggestions have just come: look, then press again")

    def _enter(self, mode: str) -> None:
        self._mode = mode
        self._show()

    def _scroll(self, key: str, what: str = "#chunk") -> None:
        chunk = self.query_one(what, VerticalScroll)
        match key:
            case "[" | "]":
                self.query_one(Rows).scroll_relative(y=-3 if key == "[" else 3, animate=False)
            case "down" | "j":
                chunk.scroll_relative(y=1, animate=False)
            case "up" | "k":
                chunk.scroll_relative(y=-1, animate=False)
            case "pagedown" | " ":
                chunk.scroll_page_down(animate=False)
            case "pageup":
                chunk.scroll_page_up(animate=False)
            case "home":
                chunk.scroll_home(animate=False)
            case "end":
                chunk.scroll_end(animate=False)
            case _:
                if len(key) == 1:
                    self._say(f"{key} is no key here; ? shows them", good=False)

    def _near(self, shown: bool) -> None:
        for name in ("before", "after"):
            self.query_one(f"#{name}").set_class(shown, "-shown")
        persona = self.query_one("#persona", Static)
        persona.set_class(shown, "-whole")
        if shown and self._shown is not None:
            persona.update(Text(persona_line(self._shown)))
            text = self.query_one("#text")
            self.call_after_refresh(text.scroll_visible, top=True, animate=False)

    def _search(self, text: str) -> list[tuple[int, str]]:
        """Chunks by their place in the sample, with what stands on them."""
        places = {chunk.chunk_id: at for at, chunk in enumerate(self.session.chunks)}
        return [(places[hit.chunk.chunk_id], _hit_line(hit)) for hit in self.session.find(text)]

    def _go_to(self, place: int | None) -> None:
        self.session.touch()
        if place is not None:
            self.session.open(self.session.chunks[place].chunk_id)
            self._show()

    def _choose_persona(self) -> None:
        """From a list of keys, or, where they are too many for that, by typing."""
        self._card()
        people = list(self.session.preparation.chooser.personas.values())
        if len(people) < len(CHOICES):
            self._enter("persona")
            return

        def matching(text: str) -> list[tuple[int, str]]:
            lines = ["none of them fits: skip", *(f"{p.name}: {p.description}" for p in people)]
            wanted = text.casefold()
            return [(at - 1, line) for at, line in enumerate(lines) if wanted in line.casefold()]

        self.push_screen(SearchScreen(matching, "words of a persona"), self._take_persona)

    def _take_persona(self, place: int | None) -> None:
        """The persona at `place` asks; at -1 none fits."""
        if place == -1:
            self.session.none_fits()
            self._show("saved: skipped, no persona fits")
        elif place is not None:
            personas = list(self.session.preparation.chooser.personas.values())
            self.session.choose_persona(personas[place])
            self._show("persona changed; its suggestions follow")

    def _card(self) -> Card:
        if self._shown is None:
            raise Refused("every chunk of the sample is decided")
        return self._shown

    def action_interrupt(self) -> None:
        self._leave(INTERRUPTED)

    def _leave(self, code: int) -> None:
        self._keep_draft()
        self.exit(code)

    # ------------------------------------------------------------------ typing

    def _type(
        self, text: str, kind: str, take: Callable[[str], None], *, row: int | None = None
    ) -> None:
        """Open the editor with `text`, in place of `row`; Enter hands what is in it to `take`.

        `kind` is what the text is for, as drafts are kept.
        """
        self._take, self._kind, self._row_edited = take, kind, row
        editor = self.query_one(Rows).place_editor(row)
        self._show()
        editor.load_text(text)
        editor.move_cursor(editor.document.end)
        editor.add_class("-shown")
        editor.focus()
        self.call_after_refresh(self._fit)

    def on_text_area_changed(self) -> None:
        self.session.touch()
        if self._take is None or self._keeping is not None:
            return
        loop = asyncio.get_running_loop()
        self._keeping = loop.call_later(_DRAFT_SECONDS, self._keep_draft)

    def _keep_draft(self) -> None:
        if self._keeping:
            self._keeping.cancel()
            self._keeping = None
        if self._take:
            with contextlib.suppress(UserError):  # the decision itself will say it
                self.session.keep_draft(self.query_one(Editor).text, self._kind)

    def on_editor_taken(self, event: Editor.Taken) -> None:
        take = self._take
        if take is None:
            return
        try:
            take(event.text)
        except (Refused, UserError) as refusal:
            self._say(str(refusal), good=False)

    def on_editor_left(self) -> None:
        self._keep_draft()
        self._close_editor()
        self._show()

    def _close_editor(self) -> None:
        self._take = self._row_edited = None
        self.query_one(Rows).place_editor().remove_class("-shown")
        self.set_focus(None)

    def _write(self, text: str, card: Card) -> None:
        self.session.write(text, card)
        self._close_editor()
        self._show("0 keeps yours, or pick" if card.withheld else "saved: written")

    def _edit(self, number: int, text: str, card: Card) -> None:
        self.session.edit(number, text, card)
        self._close_editor()
        self._show(f"saved: edited {number}")

    def _flag(self, note: str) -> None:
        self.session.flag(note)
        self._close_editor()
        self._show("flagged: it comes back at the end")

    def _skip(self, reason: str) -> None:
        self.session.skip(reason)
        if self._take:
            self._close_editor()
        self._show(f"saved: skipped, {reason}")


def _hit_line(hit: Found) -> str:
    state = _DID[hit.standing.action] if hit.standing else "open"
    return f"{state:8} {hit.chunk.file_name or hit.chunk.chunk_id}: …{hit.excerpt}…"
